"""The verbs `retry` and `cancel`.

`retry` runs again what failed, was cancelled, was lost or is stale, and what needs that; nothing else. `cancel` removes a run,
or exactly the selected part of it, from Slurm's queue.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from rich.console import Console

from curricula.errors import UsageError, UserError
from curricula.jobs.cli.local import run_here
from curricula.jobs.cli.options import confirm
from curricula.jobs.completion import done_elements
from curricula.jobs.graph import plan_study
from curricula.jobs.monitor.state import TO_REPEAT, ElementStatus, run_status
from curricula.jobs.plan import Key, Plan
from curricula.jobs.run import Run
from curricula.jobs.selection import Selection, select
from curricula.jobs.slurm.commands import QueueFull, Task, TaskState, on_cluster, scancel
from curricula.jobs.slurm.profile import kept_cluster, kept_profile, load_profile, with_secrets
from curricula.jobs.slurm.submissions import Submission, cancel_waiting, known_tasks, queued, submissions, unrecorded
from curricula.terminal import plural


def retry(args: argparse.Namespace) -> int:
    run, selection = Run.open(args.run), Selection.from_args(args)
    plan = plan_study(run.study)
    chosen = set(select(plan, selection))
    console = Console(highlight=False, markup=False, soft_wrap=True)
    on_slurm = run.submissions.exists()
    if args.profile and not on_slurm:  # the run would continue on this machine, and the profile be ignored
        raise UsageError(
            f"--profile {args.profile}: {run.root} was never submitted to Slurm; leave it out, or give `curricula submit` "
            f"--cluster slurm --profile {args.profile} --run {run.root}"
        )
    if on_slurm and not args.dry_run:
        with Run.locked(run.root):  # from the decision on, since other commands could change what it is based on
            again = _submit(run, chosen, args.profile, console)
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
    again = to_run_again(plan, status.elements, chosen)
    for job, label in overtaken(plan, status.elements, again):
        console.print(f"{job}/{label} is running on the old results; run the same command again when it has ended")
    return again


def _submit(run: Run, chosen: Collection[Key], profile: Path | None, console: Console) -> list[Key]:
    """Submit what to run again, and cancel the queued tasks that this replaces; returns the resubmitted elements."""
    from curricula.jobs.slurm.submit import Standing, standing, submit_plan

    used = load_profile(profile) if profile else with_secrets(kept_profile(run.profile), run.profile)
    plan = plan_study(run.study, used)
    now = standing(run, plan, used, console.print)
    again = _decide(run, plan, chosen, console)
    if not again:
        return again
    left = Standing(now.done, {key: tasks for key, tasks in now.live.items() if key not in again})
    replaced = [task for key in reversed(again) for task in now.live.get(key, ())]
    before = len(submissions(run))

    def submit() -> list[Submission]:
        return submit_plan(run, plan, again, used, left, console.print)

    try:
        arrays = submit()
    except QueueFull:  # the tasks to be replaced may be what fills it
        if not replaced or len(submissions(run)) > before:
            raise
        cancel_waiting(run, replaced, console.print)
        arrays = submit()
    finally:
        if len(submissions(run)) > before:  # otherwise everything keeps its place in the queue
            cancel_waiting(run, replaced, console.print)
    elements = plural(len({key for array in arrays for key in array.keys}), "element")  # some arrays may continue others
    console.print(f"{elements} in {plural(len(arrays), 'array')}. Watch them with `curricula status {run.root}`.")
    return again


def to_run_again(plan: Plan, elements: Sequence[ElementStatus], chosen: Collection[Key]) -> list[Key]:
    """The `chosen` elements that ended badly or are stale, and all elements that need them, in the plan's order.

    Left out are running elements (those that need what runs again become stale: `overtaken`) and done elements, which become
    stale likewise. But done elements that had run in spite of the failure, as a report does, run again at once. On Slurm,
    elements that were neither submitted nor begun are left out too.
    """
    status = {(element.job, element.label): element for element in elements}
    on_slurm = any(element.task for element in elements)
    again: dict[Key, None] = {}
    for key, needs in plan.needs.items():  # each after those it needs
        state = status[key].state
        if on_slurm and not status[key].task and state == "waiting":
            continue
        # Whole arrays wait for whole arrays, so an element can wait in vain for one that it does not need.
        waits_in_vain = status[key].reason == "DependencyNeverSatisfied"
        must_repeat = (state in TO_REPEAT or waits_in_vain) and key in chosen
        follows = any(need in again for need, _ in needs) and state != "running"
        is_open = state != "done" or any(need in again and not must_be_ok for need, must_be_ok in needs)
        if must_repeat or (follows and is_open):
            again[key] = None
    return list(again)


def overtaken(plan: Plan, elements: Sequence[ElementStatus], again: Collection[Key]) -> list[Key]:
    """The running elements that need one of `again`. They read the old results and will be stale when they are done."""
    running = [(element.job, element.label) for element in elements if element.state == "running"]
    return [key for key in running if any(need in again for need, _ in plan.needs[key])]


def cancel(args: argparse.Namespace) -> int:
    run = Run.open(args.run)
    chosen = set(select(plan_study(run.study), Selection.from_args(args)))
    if not run.slurm.exists():
        raise UserError(f"{run.root}: none of it was submitted to Slurm; end a run on this machine with Ctrl-C")
    on_cluster(kept_cluster(run.profile))
    with Run.locked(run.root):  # otherwise a `submit` at work could go on to submit what needs the cancelled elements
        live = _live(run, chosen)
    if live and not args.yes:
        question = f"Cancel {_counted(live)} of {run.root}?"
        unattended = UserError(f"{question} Standard input is not a terminal: give --yes")
        confirm(question, unattended, UserError("nothing was cancelled"))
    with Run.locked(run.root):  # again: nothing is locked while the user is asked
        still = {task: state for task, state in _live(run, chosen).items() if task in live}
        scancel(still)
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
