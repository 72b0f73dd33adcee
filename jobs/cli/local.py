"""Runs a study, or a part of it, on this machine while a person watches.

On a terminal a live table shows what runs; elsewhere each finished element gets a line.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from pathlib import Path

from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from curricula.errors import UsageError, UserError
from curricula.jobs.cli.options import confirm
from curricula.jobs.cli.status import STYLES, Row, element_table
from curricula.jobs.completion import Failure, done_elements, read_done, read_failure
from curricula.jobs.downloads import check_change
from curricula.jobs.estimates import MOST_HERE, about, minutes_here, seconds_here
from curricula.jobs.local import run_plan, stop_on_signals
from curricula.jobs.monitor.progress import Reading, number, read_progress
from curricula.jobs.monitor.state import ElementStatus
from curricula.jobs.plan import Key, Plan
from curricula.jobs.run import Run
from curricula.jobs.selection import check_needs
from curricula.jobs.stages import STAGES
from curricula.jobs.stages.base import Training
from curricula.jobs.study import Study
from curricula.terminal import clock, one_line, plural, say

FULL_BYTES = 1 << 16
"""Free disk space below which an element may be unable to write why it failed."""
BAR = 24
"""Width of a bar in characters."""
NAMED = 8
"""Failed elements that the error names, at most."""
TRUSTED_S = 60.0
"""Weight of the plan's pace in the estimate of the time left: it counts as much as this many seconds of the measured pace."""


def run_root(study: Study, given: Path | None) -> Path:
    return given or Path("runs") / study.name


def run_here(root: Path, plan: Plan, chosen: Sequence[Key], yes: bool = True) -> None:
    """Run the `chosen` elements that are not done yet in the run folder `root`, in the plan's order, and print the outcome.

    Unless `yes`, ask before work that is meant for GPUs. Raises UserError if the answer is no or nobody can answer.
    """
    console = Console(highlight=False, markup=False)
    check_change(Run(root), plan.study)
    done_before = done_elements(Run(root), plan)
    check_needs(plan, chosen, done_before, ())
    started = time.monotonic()
    stop_on_signals()
    if to_run := set(chosen) - done_before:
        split = plan.study.resources.tensor_parallel
        if split > 1 and any(isinstance(STAGES[plan.by_name[job].stage], Training) for job, _ in to_run):
            raise UsageError(
                f"resources.tensor_parallel is {split}, but a training here is a single process; set it to 1, or submit "
                "to a cluster with --cluster slurm --profile P"
            )
        minutes = minutes_here(plan, to_run)
        what = f"{root}: {plural(len(to_run), 'element')} to run, {about(minutes)} on this machine"
        if minutes > MOST_HERE and not yes:
            confirm(
                f"{what}; a cluster takes it with --cluster slurm --profile P. Start it here all the same?",
                UserError(
                    f"{what}; submit it to a cluster with --cluster slurm --profile P, select less with --stage, --job, --arm "
                    "or --seeds, or give `curricula submit` --yes"
                ),
                UserError("nothing was started"),
            )
        say(console, f"{what}. Ctrl-C stops it; the same command continues.")
    run = run_elements(root, plan, console, chosen)
    is_all = len(chosen) == len(plan.needs)
    count_done = f"all {plural(len(chosen), 'element')}" if is_all else plural(len(chosen), "chosen element")
    took = clock(time.monotonic() - started)
    console.print(f"{run.root}: {count_done} done, {took} in this call.", soft_wrap=True)
    if (run.report / "index.html").exists():
        console.print(f"Report: {(run.report / 'index.html').resolve()}", soft_wrap=True)


def run_elements(root: Path, plan: Plan, console: Console, chosen: Sequence[Key], workers: int | None = None) -> Run:
    """Run the `chosen` elements that are not done yet, in the plan's order. Raises UserError if some failed."""
    with Run.locked(root):
        run = Run.create(root, plan.study)
        done = done_elements(run, plan)
        workers = workers or plan.study.resources.workers
        display = Display(run, plan, console, chosen, done, workers)
        with display.live if console.is_terminal else contextlib.nullcontext():
            outcome = run_plan(run, plan, display, chosen, done, workers)
    if outcome.failed:
        more = f" and {len(outcome.failed) - NAMED} more" if len(outcome.failed) > NAMED else ""
        names = ", ".join("/".join(key) for key in outcome.failed[:NAMED]) + more
        behind = len(outcome.skipped)
        not_started = "needs them was not started" if behind == 1 else "need them were not started"
        waiting = f", and {behind} that {not_started}" if behind else ""
        raise UserError(
            f"{run.root}: {plural(len(outcome.failed), 'element')} failed ({names}){waiting}; see `curricula logs {run.root} "
            f"{outcome.failed[0][0]}`, fix it and run the same command again"
        )
    return run


class Display:
    """A `curricula.jobs.local.Watcher` that counts the `chosen` elements, of which `done` need not run. `live` shows it."""

    def __init__(self, run: Run, plan: Plan, console: Console, chosen: Sequence[Key], done: Set[Key], workers: int):
        self.run, self.console, self.workers = run, console, workers
        self.stage_of = {job.name: job.stage for job in plan.jobs}
        self.total = Counter(self.stage_of[name] for name, _ in chosen)
        self.done = Counter(self.stage_of[name] for name, label in chosen if (name, label) in done)
        self.running: list[Key] | None = None
        """None until the first element has started."""
        self.started = time.monotonic()
        seconds = seconds_here(plan)
        self.estimates = {key: seconds[key] for key in chosen}
        self.open = set(chosen) - done
        self.done_before = self._estimate_done({})
        self.needs_torch = any(STAGES[self.stage_of[name]].needs_torch for name, _ in self.open)
        self.live = Live(get_renderable=self._render, console=console, refresh_per_second=4, transient=True)

    def update(self, running: list[Key], finished: Key | None = None) -> None:
        self.running = running
        if finished is None:
            return
        self.open.discard(finished)
        folder = self.run.element(*finished)
        counter = f"{sum(self.done.values()) + 1}/{sum(self.total.values())}"
        try:
            done, failure = read_done(folder), read_failure(folder)
        except UserError as error:
            done, failure = None, Failure(str(error))
        if done:
            self.done[self.stage_of[finished[0]]] += 1
            text, style = f"done in {done.seconds:.1f} s", "green"
        elif failure:
            counter, text, style = "", f"failed: {one_line(failure.error)}", "bold red"
        else:
            why = "the disk is full" if shutil.disk_usage(folder).free < FULL_BYTES else f"see {folder / 'log.txt'}"
            counter, text, style = "", f"ended without finishing; {why}", "bold red"
        reading = read_progress(folder / "progress.json")
        loss = number(reading.figures, "loss") if reading else None
        reached = f", loss {loss:.3f}" if loss is not None else ""
        line = Text.assemble(f"{counter:>7}  {finished[0]}/{finished[1]} ", (text, style), reached)
        self.console.print(line, soft_wrap=not self.console.is_terminal)

    def first_look(self, page: Path) -> None:
        self.console.print(f"A first look, at one training seed: {page.resolve()}", soft_wrap=True)

    def _estimate_done(self, readings: Mapping[Key, Reading | None]) -> float:
        """The estimated seconds of the elements that are done, plus the finished fraction of those of the running elements."""
        done = sum(seconds for key, seconds in self.estimates.items() if key not in self.open)
        parts = ((key, reading) for key, reading in readings.items() if reading and reading.done <= reading.total > 0)
        return done + sum(self.estimates[key] * reading.done / reading.total for key, reading in parts)

    def _render(self) -> RenderableType:
        readings = {key: read_progress(self.run.element(*key) / "progress.json") for key in self.running or ()}
        elapsed_s = time.monotonic() - self.started
        total, done = sum(self.estimates.values()), self._estimate_done(readings)
        # The pace begins at the plan's and approaches this machine's as elements end.
        expected_s = (done - self.done_before) / self.workers
        pace = (elapsed_s + TRUSTED_S) / (expected_s + TRUSTED_S)
        left = clock((total - done) / self.workers * pace)
        overall = Table.grid(padding=(0, 2))
        bar = ProgressBar(total=total, completed=done, width=BAR)
        overall.add_row(self.run.study.name, bar, f"{done / total:.0%}", f"{clock(elapsed_s)}, about {left} left")
        counts = [
            Text(f"{stage} {self.done[stage]}/{elements}", "green" if self.done[stage] == elements else "")
            for stage, elements in self.total.items()
        ]
        stages = Columns(counts, padding=(0, 2))
        if self.running is None:
            loading = "loading PyTorch and Megatron-core" if self.needs_torch else "starting"
            return Group(overall, stages, Text(f"{loading} ({elapsed_s:.0f} s)", "dim"))
        rows = []
        for (job, label), reading in readings.items():
            element = ElementStatus(job, self.stage_of[job], label, "running", progress=reading)
            rows.append(Row(Text(f"{job}/{label}"), Text("running" if reading else "starting", STYLES["running"]), element))
        return Group(overall, stages, element_table(rows, self.console))
