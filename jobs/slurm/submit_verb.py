"""`curricula submit STUDY --cluster slurm --profile P`: the whole study, or a part of it, as job arrays."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from curricula.curriculum.sources.registry import local_root
from curricula.errors import UsageError, UserError
from curricula.jobs.graph import Job, build_graph
from curricula.jobs.run import Run
from curricula.jobs.slurm.cost import gpu_hours
from curricula.jobs.slurm.profile import Profile, load_profile
from curricula.jobs.slurm.scope import Chosen, choose
from curricula.jobs.slurm.script import check_root
from curricula.jobs.study import Study, load_study


def submit_to_slurm(words: argparse.Namespace) -> int:
    study = load_study(words.study)
    if words.profile is None:
        raise UsageError("--cluster slurm needs --profile; copy one of env/profiles/ and change its marked lines")
    profile = load_profile(words.profile)
    if not study.world:
        local_root()  # a wrong CURRICULA_DATA is better said before anything starts
    jobs = build_graph(study)
    chosen = choose(study, jobs, words.only, words.start, words.arms)
    root = check_root(words.run or profile.run_root(study.name))
    console = Console(highlight=False, markup=False, soft_wrap=True)
    if words.dry_run:
        return dry_run(study, profile, jobs, chosen, root, console)
    return _submit(study, profile, jobs, chosen, root, words.yes, console)


def _submit(
    study: Study, profile: Profile, jobs: Sequence[Job], chosen: Chosen, root: Path, sure: bool, console: Console
) -> int:
    from curricula.jobs.slurm.queue import require_slurm
    from curricula.jobs.slurm.submit import standing, submit_graph

    require_slurm()
    is_new = not (root / "study.yaml").exists()
    if is_new:  # ask before anything is made
        _confirm(study, profile, jobs, chosen, sure, console)
    with Run.locked(root):
        run = Run.create(root, study)
        now = standing(run, jobs, console.print)
        still = now.open(chosen)
        if not still:
            queued = sum((job, label) in now.live for job, labels in chosen.items() for label in labels)
            console.print(f"{root}: nothing to submit; {queued} elements are queued or running, the others are done.")
            return 0
        if not is_new:
            _confirm(study, profile, jobs, still, sure, console)
        made = submit_graph(run, jobs, still, profile, now, console.print)
    count = sum(len(submission.labels) for submission in made)
    console.print(
        f"{count} elements in {len(made)} arrays. Watch them with `curricula status {root}` or `squeue --me`."
    )
    return 0


def _confirm(study: Study, profile: Profile, jobs: Sequence[Job], chosen: Chosen, sure: bool, console: Console) -> None:
    """Ask before more GPU-hours than the profile's limit; raises UserError when the answer is no or nobody is there."""
    hours = gpu_hours(study, profile, jobs, chosen)
    console.print(f"Up to {hours:,.0f} GPU-hours (the profile asks above {profile.gpu_hours_limit:g}).")
    if hours <= profile.gpu_hours_limit or sure:
        return
    if not sys.stdin.isatty():
        raise UserError(
            f"{hours:,.0f} GPU-hours are more than the profile's gpu_hours_limit of {profile.gpu_hours_limit:g}; "
            "give --yes, or choose less with --only or --arms"
        )
    if input("Submit them? [y/N] ").strip().lower() not in ("y", "yes"):
        raise UserError("nothing was submitted")


def dry_run(study: Study, profile: Profile, jobs: Sequence[Job], chosen: Chosen, root: Path, console: Console) -> int:
    """Print the graph, every sbatch script and, where Slurm is, what it says to each; writes nothing."""
    from curricula.jobs.slurm.preview import preview

    previews = preview(study, profile, jobs, chosen, root)
    asks = shutil.which("sbatch") is not None
    for one in previews:
        console.rule(f"{one.job}: {one.count} elements", characters="─", align="left")
        console.print(one.script)
        if asks:
            console.print(f"sbatch --test-only: {_tested(one.script)}\n")
    table = Table(box=None, pad_edge=False)
    for column in ("job", "elements", "nodes", "GPUs", "time limit", "waits for"):
        table.add_column(
            column,
            justify="left" if column in ("job", "waits for") else "right",
            overflow="fold",
            no_wrap=column == "job",
        )
    for one in previews:
        first, *others = one.waits.split(",")
        waits = first + (f" and {len(others)} more" if others else "")
        request = one.request
        table.add_row(one.job, str(one.count), str(request.nodes), str(request.gpus),
                      f"{request.minutes // 60}:{request.minutes % 60:02d}", waits)  # fmt: skip
    console.print(table, soft_wrap=False)
    hours = gpu_hours(study, profile, jobs, chosen)
    console.print(
        f"\n{len(previews)} sbatch calls; up to {hours:,.0f} GPU-hours. Run folder: {root}. Nothing was submitted."
    )
    if not asks:
        console.print("sbatch is not on this machine's PATH, so Slurm was not asked about them.")
    return 0


def _tested(script: str) -> str:
    """What Slurm says to a script without its dependencies: when and where it would start, or why never."""
    independent = "\n".join(line for line in script.splitlines() if not line.startswith("#SBATCH --dependency"))
    words = ["sbatch", "--test-only", "--output=/dev/null"]
    try:
        asked = subprocess.run(words, input=independent, capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired:
        return "no answer within 60 s"
    return " ".join((asked.stderr or asked.stdout).replace("sbatch: ", "").split())
