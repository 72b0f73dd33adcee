"""What `curricula eval` shows: bars while it waits, and the tables at the end."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Lines
from rich.table import Table
from rich.text import Text

from curriculum.progress import Progress


class Bars:
    """A bar for each stretch of the work, on a terminal; elsewhere a line for each that ends."""

    def __init__(self, console: Console) -> None:
        self.console = console
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

        def report(done: int, total: int, **_: Any) -> None:
            self._lines.update(task, completed=done, total=total)
            if not self.console.is_terminal and done == total:
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


def percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def interval(low: float | None, high: float | None) -> str:
    return "–" if low is None or high is None else f"{low:.1%} to {high:.1%}"


def new_table(title: str, *columns: str, words: int = 1) -> Table:
    """A table whose first `words` columns are words, and the others numbers."""
    table = Table(title=Text(title), title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number < words else "right", no_wrap=number < words)
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
    several, corrected = any(cell.samples > 1 for cell in cells), any(cell.corrected is not None for cell in cells)
    columns = ["decoder", "benchmark", "prompts", "ASR@1", "95% interval"]
    columns += ["std over seeds", "ASR@k", "flips"] if several else []
    columns += ["corrected", "95% interval"] if corrected else []
    table = new_table(f"Attack success rate. Judge and version: {judges}", *columns, "unparsed", "missing", words=2)
    for cell in cells:
        row = [cell.decoder, cell.benchmark, str(cell.prompts), percent(cell.rate), interval(cell.low, cell.high)]
        row += [percent(cell.std), percent(cell.any_of), percent(cell.flip_share)] if several else []
        row += [percent(cell.corrected), interval(cell.corrected_low, cell.corrected_high)] if corrected else []
        table.add_row(*row, str(cell.unparsed), str(cell.missing))
    return table


def _overrefusals(cells: Sequence[Any]) -> Table:
    judges = ", ".join(sorted({cell.judges for cell in cells}))
    names = ["helpful", "unhelpful", "partial", "refused", "cut"]
    table = new_table(
        f"Answers to benign requests. Judge and version: {judges}",
        "decoder",
        "prompts",
        "over-refusal",
        "95% interval",
        *names,
        "unparsed",
    )
    for cell in cells:
        shares = [percent(share) for share in cell.shares.values()] or ["–"] * len(names)
        table.add_row(
            cell.decoder,
            str(cell.prompts),
            percent(cell.rate),
            interval(cell.low, cell.high),
            *shares,
            str(cell.unparsed),
        )
    return table
