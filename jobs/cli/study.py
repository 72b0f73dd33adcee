"""The verbs that take a study file: plan, submit, render."""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from curricula.curriculum.sources.registry import local_root
from curricula.errors import UsageError, UserError
from curricula.jobs.cli.local import run_here, run_root
from curricula.jobs.cli.plan_view import print_plan
from curricula.jobs.estimates import describe
from curricula.jobs.graph import plan_study
from curricula.jobs.plan import Chosen, Plan
from curricula.jobs.run import Run
from curricula.jobs.selection import Selection, select
from curricula.jobs.slurm.profile import Profile, keep_profile, load_profile
from curricula.jobs.slurm.script import check_root
from curricula.jobs.study import load_study


def plan(args: argparse.Namespace) -> int:
    study = load_study(args.study)
    value = describe(plan_study(study), Run(run_root(study, args.run)).shards)
    if args.json:
        print(json.dumps(value, indent=1))
    else:
        print_plan(value, study, Console())
    return 0


def submit(args: argparse.Namespace) -> int:
    """Run the study, or the selected part of it, here or on Slurm."""
    if args.cluster == "local":
        for option, given in (("--profile", args.profile), ("--dry-run", args.dry_run)):
            if given:
                raise UsageError(f"{option} needs --cluster slurm; `curricula plan` shows what a study will do here")
    study = load_study(args.study)
    if args.cluster == "slurm" and args.profile is None:
        raise UsageError("--cluster slurm needs --profile; copy one of env/profiles/ and change its marked lines")
    profile = load_profile(args.profile) if args.profile else None
    if not study.world:
        local_root()  # refuse a wrong CURRICULA_DATA before anything starts
    plan, selection = plan_study(study, profile), Selection.of(args)
    chosen = select(plan, selection, with_needs=True)
    if profile is None:
        run_here(run_root(study, args.run), plan, chosen if selection else None)
        return 0
    root = check_root(args.run or profile.run_root(study.name))
    console = Console(highlight=False, markup=False, soft_wrap=True)
    if args.dry_run:
        _print_dry_run(plan, chosen, profile, root, console)
    else:
        _submit_to_slurm(plan, chosen, profile, root, args.yes, console)
    return 0


def _submit_to_slurm(plan: Plan, chosen: Chosen, profile: Profile, root: Path, yes: bool, console: Console) -> None:
    from curricula.jobs.slurm.commands import require_slurm
    from curricula.jobs.slurm.submit import standing, submit_plan

    require_slurm()
    is_new = not (root / "study.yaml").exists()
    if is_new:  # ask before anything is made
        _confirm(plan, chosen, profile, yes, console)
    with Run.locked(root):
        run = Run.create(root, plan.study)
        now = standing(run, plan, console.print)
        still = now.open(chosen)
        if not still:
            queued = sum((job, label) in now.live for job, labels in chosen.items() for label in labels)
            console.print(f"{root}: nothing to submit; {queued} elements are queued or running, the others are done.")
            return
        if not is_new:
            _confirm(plan, still, profile, yes, console)
        made = submit_plan(run, plan, still, profile, now, console.print)
    count = sum(len(submission.labels) for submission in made)
    console.print(
        f"{count} elements in {len(made)} arrays. Watch them with `curricula status {root}` or `squeue --me`."
    )


def _confirm(plan: Plan, chosen: Chosen, profile: Profile, yes: bool, console: Console) -> None:
    """Ask before more GPU-hours than the profile's limit; raises UserError if the answer is no or nobody can answer."""
    hours = sum(plan.gpu_hours(chosen).values())
    console.print(f"Up to {hours:,.0f} GPU-hours (the profile asks above {profile.gpu_hours_limit:g}).")
    if hours <= profile.gpu_hours_limit or yes:
        return
    if not sys.stdin.isatty():
        raise UserError(
            f"{hours:,.0f} GPU-hours are more than the profile's gpu_hours_limit of {profile.gpu_hours_limit:g}; "
            "give --yes, or select less with --stage, --job or --arm"
        )
    if input("Submit them? [y/N] ").strip().lower() not in ("y", "yes"):
        raise UserError("nothing was submitted")


def _print_dry_run(plan: Plan, chosen: Chosen, profile: Profile, root: Path, console: Console) -> None:
    """Print every sbatch script, Slurm's answer to it where Slurm is installed, and the graph; writes nothing."""
    from curricula.jobs.slurm.commands import tested
    from curricula.jobs.slurm.submit import preview

    previews = preview(plan, chosen, profile, root)
    has_slurm = shutil.which("sbatch") is not None
    for one in previews:
        console.rule(f"{one.job}: {len(one.array.labels)} elements", characters="─", align="left")
        console.print(one.script)
        if has_slurm:
            console.print(f"sbatch --test-only: {tested(one.script)}\n")
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
        request = one.array.job.request
        table.add_row(one.job, str(len(one.array.labels)), str(request.nodes), str(request.gpus),
                      f"{request.minutes // 60}:{request.minutes % 60:02d}", waits)  # fmt: skip
    console.print(table, soft_wrap=False)
    hours = sum(plan.gpu_hours(chosen).values())
    console.print(
        f"\n{len(previews)} sbatch calls; up to {hours:,.0f} GPU-hours. Run folder: {root}. Nothing was submitted."
    )
    if not has_slurm:
        console.print("sbatch is not on this machine's PATH, so Slurm was not asked about them.")


def render(args: argparse.Namespace) -> int:
    from curricula.jobs.slurm.render import render as render_scripts
    from curricula.jobs.slurm.render import write_resubmit
    from curricula.jobs.slurm.submissions import submissions

    study, profile = load_study(args.study), load_profile(args.profile)
    plan = plan_study(study, profile)
    root = check_root(args.run or profile.run_root(study.name))
    args.out.mkdir(parents=True, exist_ok=True)  # first: if it cannot be made, no run folder must remain
    with Run.locked(root):
        run = Run.create(root, study)
        scripts = render_scripts(run, plan, profile, args.out)
        if not submissions(run):  # else its jobs keep the profile that they were submitted with
            keep_profile(run.profile, profile)
            write_resubmit(run, plan, profile)
    print(f"{len(scripts) - 1} job arrays. Submit them all with {shlex.quote(str(scripts[-1]))}")
    return 0
