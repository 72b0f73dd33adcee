"""Shows the progress of a long command to people: as bars on a terminal, as lines elsewhere."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.table import Column

from curricula.progress import Progress
from curricula.terminal import clock, say

Described = Callable[[int, float, dict[str, Any]], str]
"""Describes work in about 30 characters, from the amount done, the seconds it took, and its figures."""


class Bars(RichProgress):
    """A bar for each part of the work on a terminal; elsewhere a line at its start, at its end and every minute."""

    def __init__(self, console: Console, line_interval_s: float = 60.0) -> None:
        self.line_interval_s = line_interval_s
        bar = BarColumn(bar_width=None, table_column=Column(ratio=1))  # takes the room that the others leave
        columns = (
            *(TextColumn("{task.description}", markup=False), bar, MofNCompleteColumn()),
            *(TextColumn("{task.fields[more]}", markup=False), TimeElapsedColumn(), TimeRemainingColumn()),
        )
        super().__init__(*columns, console=console, disable=not console.is_terminal, expand=True)

    def line(self, name: str, described: Described = lambda *_: "") -> Progress:
        """A `Progress` that draws a new bar. A total below the amount done means that the total is unknown."""
        task = self.add_task(name, total=None, more="")
        ended, next_line, began = False, 0.0, time.monotonic()
        done_before: int | None = None  # at the first report, as after a resume

        def report(done: int, total: int, **figures: Any) -> None:
            nonlocal ended, next_line, done_before
            done_before = done if done_before is None else done_before
            now = time.monotonic()
            seconds = max(now - began, 1e-9)
            more = described(done, seconds, figures)
            if done > total:
                self.tasks[task].total = None  # `update` cannot remove a total
            self.update(task, completed=done, total=total if done <= total else None, more=more)
            if self.console.is_terminal or ended or (done != total and now < next_line):
                return
            ended, next_line = done == total, now + self.line_interval_s
            left = ""
            if done_before < done < total:
                left = f"{clock((total - done) * seconds / (done - done_before))} left"
            counts = f"{done:,} of {total:,}" if done <= total else f"{done:,}"
            say(self.console, ", ".join(filter(None, (f"{name}: {counts}", more, left))))

        return report


def no_other_bars() -> None:
    """Keep libraries from drawing bars over ours; tqdm reads this when it is imported."""
    os.environ["TQDM_DISABLE"] = "1"


def quiet_libraries() -> None:
    """Turn off transformers' own bars, and warnings that mean nothing here."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.simplefilter("ignore")
