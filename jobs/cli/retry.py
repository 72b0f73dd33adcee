"""The verb `curricula retry`: run again what failed, was cancelled or was lost, and what waits for it. Nothing else."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from curricula.jobs.cli.local import run_study
from curricula.jobs.local import Key
from curricula.jobs.monitor.state import run_status
from curricula.jobs.recovery import to_run_again
from curricula.jobs.run import Run
from curricula.jobs.selection import Chosen, Selection, keys_of, select


def retry(args: argparse.Namespace) -> int:
    run, selection = Run.open(args.run), Selection.of(args)
    again = to_run_again(run.jobs, run_status(run).elements, set(keys_of(select(run.jobs, selection))))
    console = Console(highlight=False, markup=False, soft_wrap=True)
    if not again:
        console.print(f"{run.root}: nothing has failed or was cancelled")
    elif args.dry_run:
        for job, label in again:
            console.print(f"{job}/{label}")
        console.print(f"{len(again)} elements would run again")
    elif run.submissions.exists():
        _submit(run, again, args.profile, console)
    else:
        run_study(run.root, run.study, _by_job(again) if selection else None)
    return 0


def _submit(run: Run, again: Sequence[Key], profile: Path | None, console: Console) -> None:
    from curricula.jobs.slurm.commands import scancel
    from curricula.jobs.slurm.profile import load_profile, profile_of
    from curricula.jobs.slurm.submit import Standing, standing, submit_graph

    used = load_profile(profile) if profile else profile_of(run)
    with Run.locked(run.root):
        now = standing(run, run.jobs, console.print)
        scancel(now.live[key] for key in again if key in now.live)  # they wait for what ended badly
        now = Standing(now.done - set(again), {key: task for key, task in now.live.items() if key not in again})
        for key in again:
            (run.element(*key) / "failed.json").unlink(missing_ok=True)
        made = submit_graph(run, run.jobs, _by_job(again), used, now, console.print)
    console.print(f"{len(again)} elements in {len(made)} arrays. Watch them with `curricula status {run.root}`.")


def _by_job(keys: Sequence[Key]) -> Chosen:
    chosen: Chosen = {}
    for job, label in keys:
        chosen[job] = (*chosen.get(job, ()), label)
    return chosen
