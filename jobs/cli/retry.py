"""The verbs `retry` (run again what failed, was cancelled, was lost or is stale, and what needs it, nothing else) and `cancel`
(take a run, or exactly the selected part of it, out of Slurm's queue)."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

from rich.console import Console

from curricula.errors import UserError
from curricula.jobs.cli.local import run_here
from curricula.jobs.cli.options import is_confirmed
from curricula.jobs.graph import plan_study
from curricula.jobs.monitor.state import TO_REPEAT, ElementStatus, run_status
from curricula.jobs.plan import Key, Plan, chosen_of, keys_of
from curricula.jobs.run import Run
from curricula.jobs.selection import Selection, check_needs, select
from curricula.jobs.slurm.commands import on_cluster, scancel
from curricula.jobs.slurm.profile import kept_cluster, kept_profile, load_profile
from curricula.jobs.slurm.submissions import known_tasks, queued, submissions, unrecorded


def retry(args: argparse.Namespace) -> int:
    run, selection = Run.open(args.run), Selection.from_args(args)
    plan = plan_study(run.study)
    elements = run_status(run, plan).elements
    again = to_run_again(plan, elements, set(keys_of(select(plan, selection))))
    console = Console(highlight=False, markup=False, soft_wrap=True)
    if not again:
        console.print(f"{run.root}: nothing has failed, was cancelled or is stale")
    elif args.dry_run:
        for job, label in again:
            console.print(f"{job}/{label}")
        console.print(f"{len(again)} elements would run again")
    elif run.submissions.exists():
        _submit(run, again, args.profile, console)
    else:
        run_here(run.root, plan, chosen_of(again) if selection else None)
    for job, label in overtaken(plan, elements, set(again)):
        console.print(f"{job}/{label} is running on the old results; give the same command again when it has ended")
    return 0


def _submit(run: Run, again: Sequence[Key], profile: Path | None, console: Console) -> None:
    from curricula.jobs.slurm.submit import Standing, standing, submit_plan

    used = load_profile(profile) if profile else kept_profile(run.profile)
    plan = plan_study(run.study, used)
    with Run.locked(run.root):
        now = standing(run, plan, used, console.print)
        live = {key: tasks for key, tasks in now.live.items() if key not in again}
        left = Standing(now.done - set(again), live)
        check_needs(plan, chosen_of(again), left.done, left.live)  # before anything is cancelled
        scancel(task for key in again for task in now.live.get(key, ()))  # they wait for what ended badly
        made = submit_plan(run, plan, chosen_of(again), used, left, console.print)
    count = len({(one.job, label) for one in made for label in one.labels})  # some arrays may continue others
    console.print(f"{count} elements in {len(made)} arrays. Watch them with `curricula status {run.root}`.")


def to_run_again(plan: Plan, elements: Sequence[ElementStatus], chosen: Collection[Key] | None = None) -> list[Key]:
    """In the plan's order, the elements that ended badly or are stale (only those in `chosen`, if given), and those that
    need them.

    Running elements are left alone; those among them that need what runs again will be stale (`overtaken`), and so will done
    ones, unless they ran in spite of the failure, as a report does: these run again at once. Of a run on Slurm, only elements
    that were submitted before run again.
    """
    on_slurm = any(element.task for element in elements)
    outside = {(element.job, element.label) for element in elements if on_slurm and not element.task}
    state = {(element.job, element.label): element.state for element in elements}
    # Whole arrays wait for whole arrays, so an element can wait in vain for one that it does not need.
    in_vain = {(item.job, item.label) for item in elements if item.reason == "DependencyNeverSatisfied"}
    again: dict[Key, None] = {}
    for key, needs in plan.needs.items():  # each after those it needs
        must_repeat = (state[key] in TO_REPEAT or key in in_vain) and (chosen is None or key in chosen)
        follows = any(need in again for need, _ in needs) and state[key] != "running"
        is_open = state[key] != "done" or any(need in again and not must_be_ok for need, must_be_ok in needs)
        if key not in outside and (must_repeat or (follows and is_open)):
            again[key] = None
    return list(again)


def overtaken(plan: Plan, elements: Sequence[ElementStatus], again: Collection[Key]) -> list[Key]:
    """The running elements that need one of `again`: they read what is there now, and will be stale when they are done."""
    running = [(element.job, element.label) for element in elements if element.state == "running"]
    return [key for key in running if any(need in again for need, _ in plan.needs[key])]


def cancel(args: argparse.Namespace) -> int:
    run = Run.open(args.run)
    chosen = set(keys_of(select(plan_study(run.study), Selection.from_args(args))))
    if not run.slurm.exists():
        raise UserError(
            f"{run.root}: nothing of it was submitted to Slurm; end a run on this machine with Ctrl-C where it runs"
        )
    on_cluster(kept_cluster(run.profile))
    try:
        queue = queued(run)
        on_record = [*submissions(run), *unrecorded(run, queue)]
    except UserError as error:
        raise UserError(f"{error}; nothing was cancelled") from None
    known = known_tasks(run, on_record, queue)
    live = sorted(
        task
        for key, tasks in known.items()
        for task, state in tasks.items()
        if key in chosen and (state.is_running or state.is_waiting)
    )
    if not live:
        print(f"{run.root}: nothing of this is in Slurm's queue")
        return 0
    states = Counter("running" if queue[task].is_running else "pending" for task in live)
    what = " and ".join(f"{number} {state}" for state, number in states.items())
    question = f"Cancel {what} of {run.root}?"
    unattended = UserError(f"{question} Standard input is not a terminal: give --yes")
    if not args.yes and not is_confirmed(question, unattended):
        print("nothing was cancelled")
        return 1
    scancel(live)
    print(f"cancelled {what}; `curricula retry {run.root}` submits them again, with what needs them")
    return 0
