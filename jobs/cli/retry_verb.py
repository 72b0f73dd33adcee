"""The verb `curricula retry`: run again what failed, was cancelled or was lost, and what waits for it. Nothing else."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from curricula.errors import UsageError
from curricula.jobs.cli.help_text import HelpFormatter
from curricula.jobs.cli.selection import add_options, select

if TYPE_CHECKING:
    from rich.console import Console

    from curricula.jobs.graph import Job
    from curricula.jobs.local import Key
    from curricula.jobs.run import Run


def add_parser(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "retry",
        help="run again what failed or was cancelled, and what waits for it",
        description="Run again the elements that failed, were cancelled or were lost, and those that wait for them. Training "
        "goes on from its last checkpoint, evaluation after its last row. Where the run was submitted to Slurm it is "
        "submitted there again, by the same profile; else it goes on on this machine.",
        epilog="examples:\n  curricula retry runs/demo\n  curricula retry /scratch/paper --stage evaluate --dry-run",
        formatter_class=HelpFormatter,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a run folder")
    add_options(parser)
    parser.add_argument(
        "--profile", type=Path, metavar="P", help="another cluster profile than the run was submitted by"
    )
    parser.add_argument("--dry-run", action="store_true", help="only say what would run again")
    parser.set_defaults(verb=retry)


def retry(words: argparse.Namespace) -> int:
    from rich.console import Console

    from curricula.jobs.cli.study_verbs import run_here
    from curricula.jobs.monitor.state import run_status
    from curricula.jobs.recovery import to_run_again
    from curricula.jobs.run import Run

    run = Run.open(words.run)
    jobs = run.jobs
    chosen = {(job.name, item.label) for job, item in select(jobs, None, None, words.stage, words.arm)}
    again = to_run_again(jobs, run_status(run, jobs).elements, chosen)
    console = Console(highlight=False, markup=False, soft_wrap=True)
    if not again:
        console.print(f"{run.root}: nothing has failed or was cancelled")
        return 0
    if words.dry_run:
        for job, label in again:
            console.print(f"{job}/{label}")
        console.print(f"{len(again)} elements would run again")
        return 0
    if run.submissions.exists():
        return _on_slurm(run, jobs, again, words.profile, console)
    if words.stage or words.arm:
        raise UsageError("--stage and --arm choose among what was submitted to Slurm; here all that is open goes on")
    return run_here(run.root, run.study)


def _on_slurm(run: Run, jobs: list[Job], again: list[Key], profile: Path | None, console: Console) -> int:
    from curricula.jobs.run import Run as RunFolder
    from curricula.jobs.slurm.commands import scancel
    from curricula.jobs.slurm.profile import load_profile, profile_of
    from curricula.jobs.slurm.submit import Standing, standing, submit_graph

    used = load_profile(profile) if profile else profile_of(run)
    with RunFolder.locked(run.root):
        now = standing(run, jobs, console.print)
        scancel(now.live[key] for key in again if key in now.live)  # they wait for what has ended badly
        now = Standing(now.done - set(again), {key: task for key, task in now.live.items() if key not in again})
        wanted: dict[str, tuple[str, ...]] = {}
        for job, label in again:
            wanted[job] = (*wanted.get(job, ()), label)
            (run.element(job, label) / "failed.json").unlink(missing_ok=True)
        made = submit_graph(run, jobs, wanted, used, now, console.print)
    console.print(f"{len(again)} elements in {len(made)} arrays. Watch them with `curricula status {run.root}`.")
    return 0
