"""The verbs that start work or end it: demo, submit, render, retry, cancel.

`retry` runs again what failed, was cancelled, was lost or is stale, what needs that, and what is done between two of these;
nothing else. `cancel` removes a run, or exactly the selected part of it, from Slurm's queue.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import shlex
import shutil
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from curricula.errors import UsageError, UserError
from curricula.jobs.cli.local import run_here, run_root
from curricula.jobs.cli.options import confirm
from curricula.jobs.cli.plan import print_table
from curricula.jobs.completion import done_elements
from curricula.jobs.downloads import check_change, read_study
from curricula.jobs.graph import check_batches, plan_study
from curricula.jobs.monitor.state import TO_REPEAT, ElementStatus, run_status
from curricula.jobs.plan import Key, Plan
from curricula.jobs.run import Run, cut_branches, refusal
from curricula.jobs.selection import Selection, check_needs, select
from curricula.jobs.slurm import commands
from curricula.jobs.slurm.commands import DependencyLost, QueueFull, Task, TaskState
from curricula.jobs.slurm.profile import Profile, keep_profile, kept_cluster, kept_profile, load_profile, with_secrets
from curricula.jobs.slurm.script import check_root, write_resubmit
from curricula.jobs.slurm.script import render as write_scripts
from curricula.jobs.slurm.snapshot import planned_snapshot
from curricula.jobs.slurm.submissions import (
    Submission,
    cancel_waiting,
    known_tasks,
    latest_tasks,
    live_elements,
    queued,
    submissions,
    unrecorded,
)
from curricula.jobs.study import STUDIES, load_study
from curricula.terminal import plural

if TYPE_CHECKING:
    from curricula.jobs.slurm.submit import Standing


def demo(args: argparse.Namespace) -> int:
    plan = plan_study(load_study(STUDIES / ("demo-full.yaml" if args.full else "demo.yaml")))
    run_here(run_root(plan.study, None), plan, list(plan.needs))
    return 0


def submit(args: argparse.Namespace) -> int:
    """Run the study, or the selected part of it, here or on Slurm."""
    if args.cluster == "local" and (args.profile or args.dry_run):
        raise UsageError("--profile and --dry-run need --cluster slurm; `curricula plan` shows what a study will do here")
    if args.cluster == "slurm" and args.profile is None:
        raise UsageError("--cluster slurm needs --profile; copy one of env/profiles/ and change its marked lines")
    study = read_study(args.study, args.set)
    profile = load_profile(args.profile) if args.profile else None
    plan = plan_study(study, profile)
    chosen = select(plan, Selection.from_args(args), with_needs=True)
    if profile is None:
        run_here(run_root(study, args.run), plan, chosen, args.yes)
        return 0
    root = check_root(args.run or profile.run_root(study.name))
    console = Console(highlight=False, markup=False, soft_wrap=True)
    if args.dry_run:
        _print_dry_run(plan, chosen, profile, root, console)
    else:
        _submit_to_slurm(plan, chosen, profile, root, args.yes, console)
    return 0


def _submit_to_slurm(plan: Plan, chosen: Collection[Key], profile: Profile, root: Path, yes: bool, console: Console) -> None:
    from curricula.jobs.slurm.submit import submit_plan

    commands.require_slurm()
    if not yes and _gpu_hours(plan, chosen) > profile.gpu_hours_limit:  # ask before anything is written
        to_submit = chosen
        if (root / "study.yaml").exists():  # what is left to do may stay below the limit
            with Run.locked(root):  # released before the user is asked
                to_submit = _standing(Run.open(root), plan, profile, console).open(chosen)
        _confirm(plan, to_submit, profile)
    with Run.locked(root):
        run = Run.open(root) if (root / "study.yaml").exists() else Run.create(root, plan.study)
        now = _standing(run, plan, profile, console)
        before = len(submissions(run))
        with contextlib.suppress(UsageError):  # the profile of the latest submission may be gone or damaged
            if now.live and profile != kept_profile(run.profile):
                console.print(f"{root}: the profile has changed; what is queued keeps its own until you `curricula cancel` it")
        if plan.study != run.study:  # a change that `_standing` accepts
            console.print(f"{root}: its study has changed; elements that start from now on read the new one.")
        run = Run.create(root, plan.study, knows_queue=True)
        now.done.intersection_update(done_elements(run, plan))  # with another data folder, fewer may count as done
        to_submit = now.open(chosen)
        if not to_submit:
            live = sum(key in now.live for key in chosen)
            console.print(f"{root}: nothing to submit; {plural(live, 'element')} queued or running, the others done.")
            return
        hours = _gpu_hours(plan, to_submit)
        console.print(f"Up to {hours:,.0f} GPU-hours (the profile asks above {profile.gpu_hours_limit:g}).")
        try:
            submit_plan(run, plan, to_submit, profile, now, console.print)
        except DependencyLost:
            console.print("Slurm has forgotten jobs of this run; submitting again what is missing.")
            now = _standing(run, plan, profile, console)
            submit_plan(run, plan, now.open(chosen), profile, now, console.print)
        _print_submitted(run, submissions(run)[before:], console)


def _print_submitted(run: Run, arrays: Sequence[Submission], console: Console) -> None:
    elements = plural(len({key for array in arrays for key in array.keys}), "element")  # some arrays may continue others
    what = f"{elements} in {plural(len(arrays), 'array')}"
    console.print(f"{what}. Watch them with `curricula status {run.root}` or `squeue --me`.")


def _standing(run: Run, plan: Plan, profile: Profile, console: Console) -> Standing:
    """The run's done and live elements. Raises UserError if the run cannot continue, or not yet, with the plan's study."""
    from curricula.jobs.slurm.submit import standing

    check_change(run, plan.study)
    now = standing(run, plan, profile, console.print)
    _refuse_conflicts(run, plan, now.live)
    return now


def _refuse_conflicts(run: Run, plan: Plan, live: Mapping[Key, tuple[Task, ...]]) -> None:
    """Raise UserError if `live` elements conflict with a change of the study."""
    conflict = next(_conflicts(run, plan, live), None) if live and plan.study != run.study else None
    if conflict:
        raise UserError(f"{run.root}: {conflict}; submit again when that has ended, or `curricula cancel` it first")


def _conflicts(run: Run, plan: Plan, live: Mapping[Key, tuple[Task, ...]]) -> Iterator[str]:
    """Why `live` elements, which began with the run's study, cannot go on with that of the plan."""
    cut = cut_branches(run.study, plan.study)
    for key in sorted(live.keys() & plan.by_key.keys()):
        _, element = plan.by_key[key]
        if element.segment and plan.segments[element.segment].branch in cut:  # two elements would write to its folder
            yield f"{'/'.join(key)} is queued or running, and new arms would branch off before its end"
    # An older version might refuse keys that this one writes, and a job that cannot read its study fails for good.
    code = f"/code/{planned_snapshot(run.root).folder.name}"
    for job_id in sorted({task.job_id for tasks in live.values() for task in tasks}, key=int):
        kept = run.slurm / f"{job_id}_submission.sh"
        script = kept.read_text(encoding="utf-8") if os.access(kept, os.R_OK) else commands.batch_script(job_id)
        if script and code not in script:
            yield (
                f"array {job_id} is queued or running with another version of the code, which might be unable to read the "
                "changed study"
            )
    # Jobs keep the nodes and GPUs that they were submitted with, and the changed work might not divide among these.
    old = plan_study(run.study, kept_profile(run.profile))
    for job in sorted({job for job, _ in live} & old.by_name.keys() & plan.by_name.keys()):
        requests = (old.by_name[job].request, plan.by_name[job].request)
        had, asked = (f"{plural(request.nodes, 'node')} of {plural(request.gpus_per_node, 'GPU')}" for request in requests)
        if had != asked:
            yield f"{job} is queued or running, and the changed study or the profile asks for {asked} instead of {had}"
    if changed := refusal(run.study, plan.study, {old.by_key[key][1].kind for key in live.keys() & old.by_key.keys()}):
        yield f"jobs of that stage, or of one that continues from it, are queued or running, and {changed}"


def _gpu_hours(plan: Plan, chosen: Collection[Key]) -> float:
    return sum(plan.gpu_hours(chosen).values())


def _confirm(plan: Plan, chosen: Collection[Key], profile: Profile) -> None:
    """Ask before exceeding the profile's limit of GPU-hours. Raises UserError if the answer is no or nobody can answer."""
    hours, limit = _gpu_hours(plan, chosen), f"the profile's gpu_hours_limit of {profile.gpu_hours_limit:g}"
    if hours <= profile.gpu_hours_limit:
        return
    unattended = UserError(
        f"{hours:,.0f} GPU-hours are more than {limit}; select less with --stage, --arm or --seeds, or give --yes"
    )
    confirm(f"Submit up to {hours:,.0f} GPU-hours, more than {limit}?", unattended, UserError("nothing was submitted"))


def _print_dry_run(plan: Plan, chosen: Collection[Key], profile: Profile, root: Path, console: Console) -> None:
    """Print every sbatch script, Slurm's answer to it if Slurm is installed, and a table of the arrays. Writes nothing."""
    from curricula.jobs.slurm.submit import preview, use_cluster

    if explained := commands.ignored_explained():
        console.print(explained)
    has_slurm, run = shutil.which("sbatch") is not None, Run(root)
    use_cluster(run, profile)
    check_change(run, plan.study)
    submitted = submissions(run)
    live = live_elements(run, queued(run)) if submitted and has_slurm else {}
    _refuse_conflicts(run, plan, live)
    check_needs(plan, chosen, done_elements(run, plan), live if has_slurm else latest_tasks(submitted))
    check_batches(plan, chosen)
    previews = preview(plan, chosen, profile, root)
    limits = (commands.partition_minutes(), commands.qos_minutes()) if has_slurm else ({}, {})
    problems = defaultdict[str, list[str]](list)
    rows = []
    for shown in previews:
        console.rule(f"{shown.job}: {plural(len(shown.array.labels), 'element')}", characters="─", align="left")
        console.print(shown.script)
        if has_slurm:
            answer = commands.tested(shown.script)
            console.print(f"sbatch --test-only: {answer}\n")
            if commands.STARTS not in answer:
                problems[f"Slurm names no start ({answer or 'no answer'})"].append(shown.job)
        first, *others = shown.waits.split(",")
        waits = first + (f" and {len(others)} more" if others else "")
        request = shown.array.request
        if why := commands.too_long(request, *limits):
            problems[why].append(shown.job)
        rows.append((shown.job, str(len(shown.array.labels)), str(request.nodes), str(request.gpus),
                     f"{request.minutes // 60}:{request.minutes % 60:02d}", waits))  # fmt: skip
    print_table(console, "Arrays", ("job", "elements", "nodes", "GPUs", "time limit", "waits for"), rows, left=(0, 5))
    for problem, jobs in problems.items():
        console.print(f"\n{', '.join(jobs)}: {problem}")
    calls, hours = plural(len(previews), "sbatch call"), _gpu_hours(plan, chosen)
    console.print(f"\n{calls}; up to {hours:,.0f} GPU-hours. Run folder: {root}. Nothing was submitted.")
    if not has_slurm:
        console.print("sbatch is not on this machine's PATH, so Slurm was not asked about them.")


def render(args: argparse.Namespace) -> int:
    study, profile = read_study(args.study, args.set), load_profile(args.profile)
    plan = plan_study(study, profile)
    check_batches(plan, plan.needs)
    root = check_root(args.run or profile.run_root(study.name))
    args.out.mkdir(parents=True, exist_ok=True)  # first: if this fails, no run folder must be left behind
    with Run.locked(root):
        check_change(Run(root), study)
        run = Run.create(root, study)
        scripts = write_scripts(run, plan, profile, args.out)
        if not submissions(run):  # otherwise its jobs keep the profile that they were submitted with
            keep_profile(run.profile, profile)
            write_resubmit(run, plan, profile, list(plan.needs))
    print(f"{plural(len(scripts) - 1, 'job array')}. Submit all with {shlex.quote(os.path.join(args.out, scripts[-1].name))}")
    return 0


def retry(args: argparse.Namespace) -> int:
    run, selection = Run.open(args.run), Selection.from_args(args)
    plan = plan_study(run.study)
    chosen = set(select(plan, selection))
    console = Console(highlight=False, markup=False, soft_wrap=True)
    on_slurm = run.submissions.exists()
    profile = load_profile(args.profile) if args.profile else None
    if args.profile and not on_slurm:  # the run would continue on this machine, and the profile be ignored
        raise UsageError(
            f"--profile {args.profile}: {run.root} was never submitted to Slurm; leave it out, or give `curricula submit` "
            f"--cluster slurm --profile {args.profile} --run {run.root}"
        )
    if on_slurm and not args.dry_run:
        with Run.locked(run.root):  # from the decision on, since other commands could change what it is based on
            again = _resubmit(run, chosen, profile, console)
    else:
        again = _decide(run, plan, chosen, console)
        if again and not (on_slurm or selection):  # on this machine, a run continues as a whole
            done = done_elements(run, plan)
            again = [key for key in plan.needs if key not in done]
    if not again:
        what = "nothing selected" if selection else "nothing"
        console.print(f"{run.root}: {what} has failed, been cancelled or interrupted, or gone stale")
    elif args.dry_run:
        for job, label in again:
            console.print(f"{job}/{label}")
        console.print(f"{plural(len(again), 'element')} would run")
    elif not on_slurm:
        run_here(run.root, plan, again if selection else list(plan.needs), yes=False)
    return 0


def _decide(run: Run, plan: Plan, chosen: Collection[Key], console: Console) -> list[Key]:
    """What to run again; prints which elements are running on old results. Raises UserError if the run's state is unknown."""
    status = run_status(run, plan)
    if status.problem:  # elements that wait or run would look as if they had failed
        raise UserError(f"{run.root}: nothing was submitted or cancelled, because {status.problem}; try again later")
    elements = status.elements
    again = to_run_again(plan, elements, chosen)
    done = done_elements(run, plan) if again else set()
    # An element that needs what runs again can be marked as done itself. What needs this one must wait for it, so it runs, too.
    while between := _needed(plan, again) & {item.key for item in elements if item.state == "done"} - done:
        elements = [replace(item, state="stale") if item.key in between else item for item in elements]
        again = to_run_again(plan, elements, chosen)
    for item in elements:
        if item.state == "running" and any(need in again for need, _ in plan.needs[item.key]):
            name = "/".join(item.key)
            console.print(f"{name} is running on the old results; run the same command again when it has ended")
    if not again and (left := sum(item.state == "waiting" for item in elements)):
        console.print(f"{plural(left, 'element')} not submitted or begun yet: repeat `curricula submit`")
    return again


def _needed(plan: Plan, keys: Iterable[Key]) -> set[Key]:
    """The elements that must succeed before `keys` can start."""
    return {need for key in keys for need, must_be_ok in plan.needs[key] if must_be_ok}


def _resubmit(run: Run, chosen: Collection[Key], profile: Profile | None, console: Console) -> list[Key]:
    """Submit what to run again, and cancel the queued tasks that this replaces; returns the resubmitted elements."""
    from curricula.jobs.slurm.submit import Standing, standing, submit_plan

    used = profile or with_secrets(kept_profile(run.profile), run.profile)
    plan = plan_study(run.study, used)
    now = standing(run, plan, used, console.print)
    again = _decide(run, plan, chosen, console)
    if not again:
        return again
    left = Standing(now.done, {key: tasks for key, tasks in now.live.items() if key not in again})
    replaced = [task for key in reversed(again) for task in now.live.get(key, ())]
    before = len(submissions(run))
    submit_again = partial(submit_plan, run, plan, again, used, left, console.print)
    try:
        arrays = submit_again()
    except QueueFull:  # the tasks to be replaced may be what fills it
        if not replaced or len(submissions(run)) > before:
            raise
        cancel_waiting(run, replaced, console.print)
        arrays = submit_again()
    finally:
        if len(submissions(run)) > before:  # otherwise everything keeps its place in the queue
            cancel_waiting(run, replaced, console.print)
    _print_submitted(run, arrays, console)
    return again


def to_run_again(plan: Plan, elements: Sequence[ElementStatus], chosen: Collection[Key]) -> list[Key]:
    """The `chosen` elements that ended badly or are stale, and all elements that need them, in the plan's order.

    Left out are running and done elements, which become stale if they need what runs again. But done elements that had run in
    spite of the failure, as a report does, run again at once. On Slurm, elements that were neither submitted nor begun are left
    out too.
    """
    status = {element.key: element for element in elements}
    on_slurm = any(element.task for element in elements)
    again: dict[Key, None] = {}
    gone: dict[str, int] = {}
    """By job, the number of the first array of which a task has ended badly or will be cancelled."""
    for key, needs in plan.needs.items():  # each after those it needs
        state = status[key].state
        if on_slurm and not status[key].task and state == "waiting":
            continue
        # Whole arrays wait for whole arrays, so an element can wait in vain for one that it does not need. While the rest of
        # that array goes on, Slurm gives the same reason as for any wait. An array waits for none that was submitted later.
        reason, array = status[key].reason, int(status[key].task.partition("_")[0] or 0)
        earlier = (edge.job for edge in plan.by_name[key[0]].needs if edge.kind == "afterok")
        must_repeat = (state in TO_REPEAT or reason == "DependencyNeverSatisfied") and key in chosen
        can_run = all(need in again or status[need].state not in TO_REPEAT for need, must_be_ok in needs if must_be_ok)
        will_wait_in_vain = reason == "Dependency" and can_run and any(gone.get(job, math.inf) <= array for job in earlier)
        follows = will_wait_in_vain or (any(need in again for need, _ in needs) and state != "running")
        is_open = state != "done" or any(need in again and not must_be_ok for need, must_be_ok in needs)
        if must_repeat or (follows and is_open):
            again[key] = None
            if array and state not in ("done", "stale"):
                gone[key[0]] = min(array, gone.get(key[0], array))
    return list(again)


def cancel(args: argparse.Namespace) -> int:
    run = Run.open(args.run)
    chosen = set(select(plan_study(run.study), Selection.from_args(args)))
    if not run.slurm.exists():
        raise UserError(f"{run.root}: none of it was submitted to Slurm; end a run on this machine with Ctrl-C")
    commands.on_cluster(kept_cluster(run.profile))
    with Run.locked(run.root):  # otherwise a `submit` at work could go on to submit what needs the cancelled elements
        live = _live(run, chosen)
    if live and not args.yes:
        question = f"Cancel {_counted(live)} of {run.root}?"
        unattended = UserError(f"{question} Standard input is not a terminal: give --yes")
        confirm(question, unattended, UserError("nothing was cancelled"))
    with Run.locked(run.root):  # again: nothing is locked while the user is asked
        still = {task: state for task, state in _live(run, chosen).items() if task in live}
        commands.scancel(still)
    if still:
        print(f"cancelled {_counted(still)}; `curricula retry {run.root}` submits them again, with what needs them")
    else:
        print(f"{run.root}: none of this is in Slurm's queue")
    return 0


def _live(run: Run, chosen: Collection[Key]) -> dict[Task, TaskState]:
    """The tasks of the `chosen` elements that Slurm runs or will run, recorded or not."""
    try:
        queue = queued(run)
        known = known_tasks(run, [*submissions(run), *unrecorded(run, queue)], queue)
    except UserError as error:
        raise UserError(f"{error}; nothing was cancelled") from None
    tasks = [task_and_state for key, of_key in known.items() if key in chosen for task_and_state in of_key.items()]
    return {task: state for task, state in sorted(tasks) if state.is_running or state.is_waiting}


def _counted(live: Mapping[Task, TaskState]) -> str:
    """How many tasks run and how many wait, such as "2 running and 5 pending"."""
    states = Counter("running" if state.is_running else "pending" for state in live.values())
    return " and ".join(f"{number} {state}" for state, number in states.items())
