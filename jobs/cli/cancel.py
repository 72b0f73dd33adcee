"""The verb `curricula cancel`: take a run, or exactly the selected part of it, out of Slurm's queue."""

from __future__ import annotations

import argparse
from collections import Counter

from curricula.errors import UserError
from curricula.jobs.cli.options import is_confirmed
from curricula.jobs.graph import plan_study
from curricula.jobs.plan import keys_of
from curricula.jobs.run import Run
from curricula.jobs.selection import Selection, select
from curricula.jobs.slurm.commands import on_cluster, scancel
from curricula.jobs.slurm.profile import kept_cluster
from curricula.jobs.slurm.submissions import known_tasks, queued, submissions, unrecorded


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
