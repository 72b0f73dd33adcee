"""The verb `curricula retry`: run again what failed, was cancelled, was lost or is stale, and what needs it. Nothing else."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from curricula.jobs.cli.local import run_here
from curricula.jobs.graph import plan_study
from curricula.jobs.monitor.state import run_status
from curricula.jobs.plan import Key, chosen_of, keys_of
from curricula.jobs.recovery import overtaken, to_run_again
from curricula.jobs.run import Run
from curricula.jobs.selection import Selection, select


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
        console.print(f"{job}/{label} runs without the new results; when it has ended, give the same command again")
    return 0


def _submit(run: Run, again: Sequence[Key], profile: Path | None, console: Console) -> None:
    from curricula.jobs.slurm.commands import scancel
    from curricula.jobs.slurm.profile import kept_profile, load_profile
    from curricula.jobs.slurm.submit import Standing, standing, submit_plan

    used = load_profile(profile) if profile else kept_profile(run.profile)
    plan = plan_study(run.study, used)
    with Run.locked(run.root):
        now = standing(run, plan, used, console.print)
        scancel(task for key in again for task in now.live.get(key, ()))  # they wait for what ended badly
        now = Standing(now.done - set(again), {key: tasks for key, tasks in now.live.items() if key not in again})
        for key in again:
            (run.element(*key) / "failed.json").unlink(missing_ok=True)
        made = submit_plan(run, plan, chosen_of(again), used, now, console.print)
    count = sum(len(submission.labels) for submission in made)
    console.print(f"{count} elements in {len(made)} arrays. Watch them with `curricula status {run.root}`.")
