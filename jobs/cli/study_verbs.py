"""The verbs about a whole study: plan, submit, render, report."""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import time
from pathlib import Path

from rich.console import Console

from curricula.curriculum.sources.registry import local_root
from curricula.errors import UserError
from curricula.jobs.graph import build_graph
from curricula.jobs.local import Outcome
from curricula.jobs.run import Run
from curricula.jobs.study import Study, load_study


def run_root(study: Study, given: Path | None) -> Path:
    return given or Path("runs") / study.name


def plan(words: argparse.Namespace) -> int:
    from curricula.jobs import plan as planning

    study = load_study(words.study)
    value = planning.plan(study, Run(run_root(study, words.run)).shards)
    if words.json:
        print(json.dumps(value, indent=1))
    else:
        planning.print_plan(value, study, Console())
    return 0


def submit(words: argparse.Namespace) -> int:
    from curricula.jobs.slurm.options import check_local

    if words.cluster == "slurm":
        from curricula.jobs.slurm.submit_verb import submit_to_slurm

        return submit_to_slurm(words)
    check_local(words)
    study = load_study(words.study)
    if not study.world:
        local_root()  # a wrong CURRICULA_DATA is better said before anything starts
    return run_here(run_root(study, words.run), study)


def run_here(root: Path, study: Study) -> int:
    """Run all of a study that is not done yet on this machine, in the run folder `root`."""
    from curricula.jobs.cli.display import Display
    from curricula.jobs.local import run_graph
    from curricula.terminal import clock

    console = Console(highlight=False, markup=False)
    jobs = build_graph(study)
    started = time.monotonic()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # save and stop as on Ctrl-C
    with Run.locked(root):
        run = Run.create(root, study)
        with Display(run, jobs, console) as display:
            outcome = run_graph(run, jobs, display)
    failures(run, outcome)
    console.print(
        f"{run.root}: all {len(outcome.done)} elements done, {clock(time.monotonic() - started)} in this call."
    )
    if (run.report / "index.html").exists():
        console.print(f"Report: {(run.report / 'index.html').resolve()}", soft_wrap=True)
    return 0


def failures(run: Run, outcome: Outcome) -> None:
    """Raise UserError when elements failed."""
    if outcome.failed:
        names = ", ".join("/".join(key) for key in outcome.failed)
        raise UserError(
            f"{run.root}: {len(outcome.failed)} elements failed ({names}) and {len(outcome.skipped)} were not started for it; "
            f"see `curricula logs {run.root} {outcome.failed[0][0]}`, mend it and give the same command again"
        )


def render(words: argparse.Namespace) -> int:
    from curricula.jobs.slurm.profile import keep_profile, load_profile
    from curricula.jobs.slurm.render import render as render_scripts
    from curricula.jobs.slurm.resubmit import write_resubmit
    from curricula.jobs.slurm.script import check_root
    from curricula.jobs.slurm.submissions import submissions

    study, profile = load_study(words.study), load_profile(words.profile)
    root = check_root(words.run or profile.run_root(study.name))
    words.out.mkdir(parents=True, exist_ok=True)  # before the run folder: it may be the one that cannot be made
    with Run.locked(root):
        run = Run.create(root, study)
        scripts = render_scripts(run, profile, words.out)
        if not submissions(run):  # else its jobs go by the profile that they were submitted with
            keep_profile(run, profile)
            write_resubmit(run, profile)
    print(f"{len(scripts) - 1} job arrays. Submit them all with {shlex.quote(str(scripts[-1]))}")
    return 0


def report(words: argparse.Namespace) -> int:
    from curricula.jobs.stages.stages import write_run_report

    run = Run.open(words.run)
    path = write_run_report(run)
    print(f"Report: {path.resolve()}")
    return 0
