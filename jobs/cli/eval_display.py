"""What `curricula eval` shows: bars while it waits, and the tables at the end."""

from __future__ import annotations

import contextlib
import os
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Lines
from rich.table import Table
from rich.text import Text

from curricula.progress import Progress


class Bars:
    """A bar for each stretch of the work, on a terminal; elsewhere a line at its beginning, its end, and now and then."""

    def __init__(self, console: Console, line_interval_s: float = 60.0) -> None:
        self.console, self.line_interval_s = console, line_interval_s
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self._lines = Lines(*columns, console=console, disable=not console.is_terminal)

    def __enter__(self) -> Bars:
        self._lines.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._lines.stop()

    def line(self, name: str) -> Progress:
        """A new bar, as the progress that draws it."""
        task = self._lines.add_task(name, total=None)
        ended, next_line = False, 0.0

        def report(done: int, total: int, **_: Any) -> None:
            nonlocal ended, next_line
            self._lines.update(task, completed=done, total=total)
            now = time.monotonic()
            if self.console.is_terminal or ended or (done < total and now < next_line):
                return
            ended, next_line = done == total, now + self.line_interval_s
            self.console.print(Text(f"{name}: {done:,} of {total:,}"))

        return report

    @contextlib.contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """A bar without an end that goes when the block ends."""
        task = self._lines.add_task(what, total=None)
        try:
            yield
        finally:
            self._lines.remove_task(task)


def no_other_bars() -> None:
    """Keep libraries from drawing bars into ours; tqdm reads this when it is imported."""
    os.environ["TQDM_DISABLE"] = "1"


def quiet_libraries() -> None:
    """Keep transformers from its own bars, and from warnings about what is as it should be."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.simplefilter("ignore")


def percent(value: float | None) -> str:
    """A share in percent, without the sign: the tables say that in their titles."""
    return "–" if value is None else f"{value * 100:.1f}"


def interval(low: float | None, high: float | None) -> str:
    return "–" if low is None or high is None else f"{low * 100:.1f}–{high * 100:.1f}"


def new_table(title: str, *columns: str, words: int = 1) -> Table:
    """A table whose first `words` columns are words, and the others numbers."""
    table = Table(
        title=Text(title),
        title_justify="left",
        title_style="bold",
        box=None,
        pad_edge=False,
        collapse_padding=True,
    )
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number < words else "right", overflow="fold")
    return table


def print_cells(cells: Mapping[str, Sequence[Any]], console: Console) -> None:
    if cells["attacks"]:
        console.print(_attacks(cells["attacks"]))
    if cells["overrefusal"]:
        console.print(_overrefusals(cells["overrefusal"]))
    if any(cell.judges.startswith("refusal-phrases") for cell in cells["attacks"]):
        console.print(
            "Refusal phrases overstate attack success: on HarmBench's labelled answers such a test reads 13 points high.",
            style="dim",
        )


def _attacks(cells: Sequence[Any]) -> Table:
    judges = ", ".join(sorted({cell.judges for cell in cells}))
    samples, corrected = max(cell.samples for cell in cells), any(cell.corrected is not None for cell in cells)
    columns = ["decoder", "benchmark", "n", "ASR@1", "95%\ninterval"]
    columns += ["std over\nsamples", f"ASR@{samples}", "flips"] if samples > 1 else []
    columns += ["corrected", "95%\ninterval"] if corrected else []
    table = new_table(
        f"Attack success rate in percent, n prompts. Judge and version: {judges}",
        *columns,
        "un-\nparsed",
        "mis-\nsing",
        words=2,
    )
    for cell in cells:
        name = "all, mean" if cell.benchmark == "all" else cell.benchmark
        row = [cell.decoder, name, str(cell.prompts), percent(cell.rate), interval(cell.low, cell.high)]
        row += [percent(cell.std), percent(cell.any_of), percent(cell.flip_share)] if samples > 1 else []
        row += [percent(cell.corrected), interval(cell.corrected_low, cell.corrected_high)] if corrected else []
        table.add_row(*row, str(cell.unparsed), str(cell.missing))
    return table


def _overrefusals(cells: Sequence[Any]) -> Table:
    judges = ", ".join(sorted({cell.judges for cell in cells}))
    names = ["help-\nful", "un-\nhelpful", "partly\nrefused", "re-\nfused", "short-\ncircuit"]
    table = new_table(
        f"Answers to benign requests in percent, n prompts. Judge and version: {judges}",
        *("decoder", "n", "over-\nrefusal", "95%\ninterval", *names, "un-\nparsed"),
    )
    for cell in cells:
        shares = [percent(share) for share in cell.shares.values()] or ["–"] * len(names)
        rate = [percent(cell.rate), interval(cell.low, cell.high)]
        table.add_row(cell.decoder, str(cell.prompts), *rate, *shares, str(cell.unparsed))
    return table
