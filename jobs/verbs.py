"""The verbs about a whole study: plan, submit, status, logs, report."""

from __future__ import annotations

import argparse
import json
import signal
import time
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from curriculum.errors import UsageError, UserError
from curriculum.sources import local_root
from jobs.graph import build_graph
from jobs.local import Outcome
from jobs.run import Run
from jobs.study import Study, load_study


def run_root(study: Study, given: Path | None) -> Path:
    return given or Path("runs") / study.name


def plan(words: argparse.Namespace) -> int:
    from jobs import planning

    study = load_study(words.study)
    value = planning.plan(study, Run(run_root(study, words.run)).shards)
    if words.json:
        print(json.dumps(value, indent=1))
    else:
        planning.print_plan(value, study, Console())
    return 0


def submit(words: argparse.Namespace) -> int:
    from jobs.display import Display, clock
    from jobs.local import run_graph

    study = load_study(words.study)
    if not study.world:
        local_root()  # a wrong CURRICULA_DATA is better said before anything starts
    root = run_root(study, words.run)
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
    from jobs.render import render as render_scripts

    study = load_study(words.study)
    scripts = render_scripts(Run.create(run_root(study, words.run), study), words.out)
    print(f"{len(scripts) - 1} jobs. Submit them all with {scripts[-1]} --account=ACCOUNT --partition=PARTITION")
    return 0


def status(words: argparse.Namespace) -> int:
    from jobs.state import run_status

    run = Run.open(words.run or _newest_run())
    jobs = build_graph(run.study)
    if words.json:
        print(json.dumps([asdict(element) for element in run_status(run, jobs)], indent=1))
        return 0
    console = Console()
    if not words.watch:
        console.print(_status_table(run, jobs))
        return 0
    with Live(console=console, auto_refresh=False) as live:
        while True:
            live.update(_status_table(run, jobs), refresh=True)
            time.sleep(1.0)


def _status_table(run: Run, jobs: list) -> Table:
    """A row per job; elements that run or failed get rows of their own."""
    from jobs.display import clock, progress_cells
    from jobs.state import run_status

    table = Table(title=Text(str(run.root)), title_justify="left", box=None)
    for column in ("job", "element", "state", "", "steps", "loss", "time"):
        table.add_column(column, overflow="fold", no_wrap=column in ("job", "element", "state"))
    elements = run_status(run, jobs)
    for job in jobs:
        of_job = [element for element in elements if element.job == job.name]
        done = [element for element in of_job if element.state == "done"]
        seconds = sum(element.seconds or 0.0 for element in done)
        took = clock(seconds) if done else ""
        table.add_row(job.name, f"{len(done)}/{len(of_job)} done", "", "", "", "", took)
        for element in of_job:
            if element.state in ("running", "interrupted"):
                table.add_row("", element.label, element.state, *progress_cells(element.progress))
            elif element.state == "failed":
                table.add_row("", element.label, Text("failed", "red"), "", "", "", Text(element.error))
    return table


def _newest_run() -> Path:
    runs = sorted(Path("runs").glob("*/study.yaml"), key=lambda path: path.stat().st_mtime)
    if not runs:
        raise UsageError("runs/: no run here; name a run folder, or make one with `curricula submit STUDY`")
    return runs[-1].parent


def logs(words: argparse.Namespace) -> int:
    run = Run.open(words.run)
    jobs = {job.name: job for job in build_graph(run.study)}
    if words.job not in jobs:
        raise UsageError(f"job {words.job!r} is not in {run.root}; its jobs are {', '.join(jobs)}")
    labels = [element.label for element in jobs[words.job].elements]
    if words.element and words.element not in labels:
        raise UsageError(f"job {words.job} has no element {words.element!r}; it has {', '.join(labels)}")
    paths = {
        label: run.element(words.job, label) / "log.txt" for label in ([words.element] if words.element else labels)
    }
    read = dict.fromkeys(paths, 0)
    while True:
        for label, path in paths.items():
            if path.exists():
                with open(path, errors="replace") as file:
                    file.seek(read[label])
                    for line in file:
                        print(f"{label}: {line}" if len(paths) > 1 else line, end="")
                    read[label] = file.tell()
        if not words.follow:
            break
        time.sleep(0.5)
    if not any(read.values()):
        print(f"(no log yet: {words.job} has not started)")
    return 0


def report(words: argparse.Namespace) -> int:
    from jobs.stages import write_run_report

    run = Run.open(words.run)
    path = write_run_report(run)
    print(f"Report: {path.resolve()}")
    return 0
