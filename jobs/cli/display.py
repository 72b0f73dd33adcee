"""What a person sees while a study runs on one machine: a live table on a terminal, a line per finished element elsewhere."""

from __future__ import annotations

import shutil
import time
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from curricula.errors import UserError
from curricula.jobs.graph import Job
from curricula.jobs.local import Key, done_elements
from curricula.jobs.marks import Failure, read_done, read_failure
from curricula.jobs.monitor.progress import Reading, number, read_progress
from curricula.jobs.run import Run
from curricula.terminal import clock, one_line

FULL_BYTES = 1 << 16  # less is not enough for an element to say why it failed


class Display:
    """A `curricula.jobs.local.Watcher`; use it as a context manager."""

    def __init__(self, run: Run, jobs: list[Job], console: Console):
        self.run, self.console = run, console
        self.stages = list(dict.fromkeys(job.stage for job in jobs))
        self.stage_of = {job.name: job.stage for job in jobs}
        self.total = {stage: sum(len(job.elements) for job in jobs if job.stage == stage) for stage in self.stages}
        self.done = dict.fromkeys(self.stages, 0)
        for name, _ in done_elements(run, jobs):
            self.done[self.stage_of[name]] += 1
        self.running: list[Key] = []
        self.started = time.monotonic()
        self.live = Live(get_renderable=self._render, console=console, refresh_per_second=4, transient=True)

    def __enter__(self) -> Display:
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *_: Any) -> None:
        if self.console.is_terminal:
            self.live.stop()

    def update(self, running: list[Key], finished: Key | None = None) -> None:
        self.running = running
        if finished is None:
            return
        folder = self.run.element(*finished)
        count = f"{sum(self.done.values()) + 1}/{sum(self.total.values())}"
        try:
            done, failure = read_done(folder), read_failure(folder)
        except UserError as error:
            done, failure = None, Failure(str(error))
        if done:
            self.done[self.stage_of[finished[0]]] += 1
            text, style = f"done in {done.seconds:.1f} s", "green"
        elif failure:
            count, text, style = "", f"failed: {one_line(failure.error)}", "bold red"
        else:
            why = "the disk is full" if shutil.disk_usage(folder).free < FULL_BYTES else f"see {folder / 'log.txt'}"
            count, text, style = "", f"ended without finishing; {why}", "bold red"
        reading = read_progress(folder / "progress.json")
        reached = number(reading.figures, "loss") if reading else None
        loss = f", loss {reached:.3f}" if reached is not None else ""
        line = Text.assemble(f"{count:>7}  {finished[0]}/{finished[1]} ", (text, style), loss)
        self.console.print(line, soft_wrap=True)

    def _render(self) -> RenderableType:
        stages = Text("  ").join(
            Text(
                f"{stage} {self.done[stage]}/{self.total[stage]}",
                "green" if self.done[stage] == self.total[stage] else "",
            )
            for stage in self.stages
        )
        table = Table.grid(padding=(0, 2))
        for key in self.running:
            reading = read_progress(self.run.element(*key) / "progress.json")
            table.add_row(Text("/".join(key)), *progress_cells(reading))
        elapsed = Text(f"{clock(time.monotonic() - self.started)} elapsed", "dim")
        return Group(stages, table, elapsed)


def progress_cells(reading: Reading | None) -> tuple[RenderableType, ...]:
    """Bar, counts, loss and time left of an element."""
    if reading is None:
        return (ProgressBar(total=1, completed=0, width=24), "starting", "", "")
    loss, speed = number(reading.figures, "loss"), number(reading.figures, "tokens_per_second")
    left = "" if reading.left_s is None else f"{clock(reading.left_s)} left"
    return (
        ProgressBar(total=max(1, reading.total), completed=reading.done, width=24),
        f"{reading.done:,}/{reading.total:,}",
        f"loss {loss:.3f}" if loss is not None else f"{speed:,.0f} tok/s" if speed is not None else "",
        left,
    )
