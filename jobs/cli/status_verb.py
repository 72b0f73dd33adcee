"""The verb `curricula status`: how far a run is, on this machine or on a cluster."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from curricula.errors import UsageError
from curricula.jobs.cli.help_text import HelpFormatter

if TYPE_CHECKING:  # a command's help needs none of this
    from rich.console import Console, RenderableType

LOOK_EVERY_S = 2.0
ASK_SLURM_EVERY_S = 15.0
"""Administrators watch who asks squeue often."""


def add_parser(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "status",
        help="show how far a run is: states, steps, loss, speed, time left, errors",
        description="Show how far a run is, from its folder and, where it was submitted to Slurm, one call of squeue. "
        "`beat` is the time since an element last said how far it is.",
        epilog="example:\n  curricula status runs/demo\n  curricula status /scratch/paper --watch\n"
        "  curricula status runs/demo --json | jq '.[] | select(.state == \"failed\")'",
        formatter_class=HelpFormatter,
    )
    parser.add_argument("run", type=Path, metavar="RUN", nargs="?", help="a run folder (default: the newest in runs/)")
    parser.add_argument("--watch", action="store_true", help="keep showing until all is done, or Ctrl-C")
    parser.add_argument(
        "--interval", type=float, metavar="S", help="seconds between two looks (default: 2, with Slurm 15)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON for scripts: a list of elements")
    parser.set_defaults(verb=show_status)


def show_status(words: argparse.Namespace) -> int:
    import msgspec
    from rich.console import Console

    from curricula.jobs.cli.status_table import status_view
    from curricula.jobs.monitor.state import run_status
    from curricula.jobs.run import Run

    if words.interval is not None and not words.interval > 0:
        raise UsageError(f"--interval {words.interval}: give a number of seconds above 0")
    run = Run.open(words.run or newest_run())
    jobs = run.jobs
    if words.json:
        status = run_status(run, jobs)
        print(msgspec.json.format(msgspec.json.encode(status.elements), indent=1).decode())
        if status.problem:
            print(f"curricula: {status.problem}", file=sys.stderr)
        return 0
    console = Console(highlight=False, markup=False)
    if not words.watch:
        console.print(status_view(run, jobs, run_status(run, jobs), console))
        return 0
    if not console.is_terminal:
        raise UsageError("--watch: standard output is no terminal; leave it out, or use --json")

    def look() -> tuple[RenderableType, bool]:
        status = run_status(run, jobs)
        view = status_view(run, jobs, status, console, compact=True)
        return view, all(element.state == "done" for element in status.elements)

    _watch(console, look, words.interval or (ASK_SLURM_EVERY_S if run.submissions.exists() else LOOK_EVERY_S))
    return 0


def _watch(console: Console, look: Callable[[], tuple[RenderableType, bool]], interval_s: float) -> None:
    """Show what `look` returns until it says that all is done, or until Ctrl-C."""
    from rich.live import Live

    with contextlib.suppress(KeyboardInterrupt), Live(console=console, auto_refresh=False) as live:
        while True:
            view, is_done = look()
            live.update(view, refresh=True)
            if is_done:
                return
            time.sleep(interval_s)


def newest_run() -> Path:
    """The run folder under runs/ whose study was frozen last; raises UsageError without any."""
    runs = sorted(Path("runs").glob("*/study.yaml"), key=lambda path: path.stat().st_mtime)
    if not runs:
        raise UsageError("runs/: no run here; name a run folder, or make one with `curricula submit STUDY`")
    return runs[-1].parent
