"""The verb `curricula status`: how far a run is, as JSON or as a table.

The table has a row for each job, and one for each element that runs or went wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import msgspec
from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from curricula.errors import UsageError
from curricula.jobs.cli.options import require_with
from curricula.jobs.graph import plan_study
from curricula.jobs.monitor.progress import number
from curricula.jobs.monitor.state import ENDED_BADLY, TO_REPEAT, ElementStatus, RunStatus, State, run_status
from curricula.jobs.run import Run, newest_run
from curricula.jobs.selection import Selection, select
from curricula.jobs.slurm.commands import Task, explained
from curricula.terminal import age, clock, count, json_text, one_line, plural

LOOK_EVERY_S = 2.0
ASK_SLURM_EVERY_S = 15.0
"""Interval on Slurm, where administrators notice users who call squeue often."""
COUNTED: tuple[State, ...] = ("running", "pending", *TO_REPEAT)
"""States that are counted beside the number of done elements."""
WITH_ROWS: tuple[State, ...] = ("running", *TO_REPEAT)
"""States of the elements that get rows of their own."""
ROWS_EACH, MANY_ROWS = 8, 200
"""Elements of one job and state that get a row, at most, and the number of rows after which none do; the others are counted."""
NOTES_SHOWN = 10
"""Notes shown of each kind, at most: errors, failures that were restarted, and ranks that hold others up."""
LABEL_WIDTH, STATE_WIDTH = 26, 22
"""Widths in characters. Longer states wrap; longer labels wrap if there is no room, but never within a name."""
GAP = 2
"""Spaces between columns."""
LATE_S = 300.0
"""A heartbeat older than this is coloured: its element may hang."""
STYLES: dict[State, str] = {
    "done": "green", "running": "cyan", "pending": "", "failed": "bold red", "cancelled": "magenta",
    "interrupted": "yellow", "stale": "yellow", "waiting": "dim",
}  # fmt: skip


def show_status(args: argparse.Namespace) -> int:
    require_with(args, "--interval", "--watch")
    run = Run.open(args.run or newest_run())
    plan = plan_study(run.study)
    chosen = set(select(plan, Selection.from_args(args)))
    console = Console(highlight=False, markup=False)

    def look() -> RunStatus:
        status = run_status(run, plan)
        return replace(status, elements=[element for element in status.elements if element.key in chosen])

    if args.json:
        status = look()
        print(json_text(msgspec.json.decode(msgspec.json.encode(status.elements))))  # a loss that is NaN becomes null
        if status.problem:
            print(f"curricula: {status.problem}", file=sys.stderr)
    elif not args.watch:
        console.print(status_view(run, look(), console))
    elif not console.is_terminal:
        raise UsageError("--watch: standard output is not a terminal; leave it out, or use --json")
    else:
        interval_s = args.interval or (ASK_SLURM_EVERY_S if run.submissions.exists() else LOOK_EVERY_S)
        _watch(run, look, console, interval_s)
    return 0


def _watch(run: Run, look: Callable[[], RunStatus], console: Console, interval_s: float) -> None:
    """Show the status until everything is done, or until Ctrl-C."""
    with contextlib.suppress(KeyboardInterrupt), Live(console=console, auto_refresh=False) as live:
        while True:
            status = look()
            live.update(status_view(run, status, console, compact=True), refresh=True)
            if all(element.state == "done" for element in status.elements):
                return
            time.sleep(interval_s)


class Row(NamedTuple):
    """A line of the table: a job, or an `element`."""

    job: Text
    state: Text
    element: ElementStatus | None = None
    took: str = ""


def _figure(name: str, form: Callable[[float], str]) -> Callable[[ElementStatus], str]:
    def cell(element: ElementStatus) -> str:
        value = number(element.progress.figures, name) if element.progress else None
        return "" if value is None else form(value)

    return cell


def _steps(element: ElementStatus) -> str:
    reading = element.progress
    if reading is None:
        return ""
    if reading.done > reading.total:
        return f"{reading.done:,}"
    return f"{reading.done:,}/{reading.total:,}" if reading.total < 1e5 else f"{count(reading.done)}/{count(reading.total)}"


def _left(element: ElementStatus) -> str:
    left_s = element.progress.left_s if element.progress else None
    return "" if left_s is None or element.state != "running" else f"{clock(left_s)} left"


def _beat(element: ElementStatus) -> str:
    return age(time.time() - element.progress.updated) if element.progress and element.state != "done" else ""


COLUMNS: dict[str, Callable[[ElementStatus], str]] = {
    "steps": _steps,
    "tokens": _figure("tokens", count),
    "loss": _figure("loss", "{:.3f}".format),
    "tok/s": _figure("tokens_per_second", count),
    "MFU": _figure("mfu", "{:.0%}".format),
    "time": _left,
    "beat": _beat,
    "requeued": lambda element: f"{element.restarts}x" if element.restarts else "",
    "nodes": lambda element: one_line(element.nodes),
}
DROPPED_FIRST = ("tokens", "nodes", "requeued", "tok/s", "MFU", "beat", "loss")
"""Columns that a narrow terminal drops, in this order."""


def status_view(run: Run, status: RunStatus, console: Console, compact: bool = False) -> RenderableType:
    """The whole status. If `compact`, jobs that are entirely done, pending or waiting share one row for each state."""
    counts = Counter(element.state for element in status.elements)
    headline = Text.assemble((one_line(str(run.root)), "bold"), f": {counts['done']} of {len(status.elements)} done")
    parts: list[RenderableType] = [_with_counts(headline, counts, (*COUNTED, "waiting"))]
    if status.problem:
        parts.append(Text(one_line(status.problem), "yellow"))
    parts.append(element_table(_rows(status, compact), console))
    parts += _footnotes(run, status)
    return Group(*parts)


def _with_counts(line: Text, counts: Counter[State], states: Sequence[State]) -> Text:
    for state in states:
        if counts[state]:
            line.append(", ").append(f"{counts[state]} {state}", STYLES[state])
    return line


def _rows(status: RunStatus, compact: bool) -> list[Row]:
    by_job: dict[str, list[ElementStatus]] = defaultdict(list)
    for element in status.elements:
        by_job[element.job].append(element)
    rows: list[Row] = []
    quiet = Counter[str]()
    for name, elements in by_job.items():
        states = Counter(element.state for element in elements)
        if compact and len(states) == 1 and elements[0].state not in WITH_ROWS:
            quiet[elements[0].state] += 1
            continue
        seconds = sum(element.seconds or 0.0 for element in elements)
        rows.append(Row(Text(name), _summary(states), took=clock(seconds) if states["done"] else ""))
        if len(rows) > MANY_ROWS:
            continue
        for state in WITH_ROWS:
            if state == "cancelled" and all(item.state in (state, "waiting") and not item.progress for item in elements):
                continue  # the job's row says it
            of_state = [element for element in elements if element.state == state]
            for element in of_state[:ROWS_EACH]:
                rows.append(Row(Text(f"  {one_line(element.label)}"), Text(state, STYLES[state]), element))
            if len(of_state) > ROWS_EACH:
                rows.append(Row(Text(f"  and {len(of_state) - ROWS_EACH} more"), Text(state, STYLES[state])))
    return rows + [Row(Text(plural(jobs, "job"), "dim"), Text(f"all {state}", "dim")) for state, jobs in quiet.items()]


def _summary(states: Counter[State]) -> Text:
    total = sum(states.values())
    if states["done"] == total:
        return Text(f"{total}/{total} done", STYLES["done"])
    return _with_counts(Text(f"{states['done']}/{total}"), states, COUNTED)


def element_table(rows: list[Row], console: Console) -> Table:
    """The widest table that fits; empty columns are left out."""
    cells = {column: [_cell(column, row) for row in rows] for column in COLUMNS}
    cells = {column: of_column for column, of_column in cells.items() if any(of_column)}
    job_width = max((row.job.cell_len for row in rows if row.element is None), default=0)
    longest = max((row.job.cell_len for row in rows), default=0)
    names = (name for row in rows for name in _folded(row.job, 0).plain.split("\n"))
    label_width = max(min(LABEL_WIDTH, longest), *map(cell_len, names), 0)  # breaks no name
    state_width = max(len("state"), min(STATE_WIDTH, max((row.state.cell_len for row in rows), default=0)))
    widths = {column: max(cell_len(column), *(cell.cell_len for cell in cells[column])) for column in cells}
    for dropped in ("", *DROPPED_FIRST):
        widths.pop(dropped, None)
        room = console.width - state_width - sum(widths.values()) - GAP * (1 + len(widths))
        if label_width <= room:
            label_width = min(longest, room)
            break
    else:  # no column is left to drop: states wrap
        words = (word for row in rows for word in row.state.plain.split())
        state_width = max(state_width - (label_width - room), *map(cell_len, words))
    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0))
    table.add_column("job", overflow="fold", min_width=job_width, max_width=label_width)
    table.add_column("state", max_width=state_width)
    for column in widths:
        table.add_column(column, justify="left" if column == "nodes" else "right", no_wrap=True)
    for row, *others in zip(rows, *(cells[column] for column in widths)):
        table.add_row(_folded(row.job, label_width), row.state, *others)
    return table


def _folded(label: Text, width: int) -> Text:
    """A label, broken into lines of whole names if it is too wide: `arm/task/` and below it `benchmark`."""
    lines = [""]
    for name in re.split(r"(?<=/)", label.plain):
        if lines[-1] and cell_len(lines[-1] + name) > width:
            lines.append("    ")
        lines[-1] += name
    return Text("\n".join(lines), label.style)


def _cell(column: str, row: Row) -> Text:
    element = row.element
    if element is None:
        return Text(row.took if column == "time" else "")
    is_late = element.progress and time.time() - element.progress.updated > LATE_S
    return Text(COLUMNS[column](element), "yellow" if column == "beat" and element.state == "running" and is_late else "")


def _footnotes(run: Run, status: RunStatus) -> list[RenderableType]:
    waits: dict[str, list[Task]] = defaultdict(list)
    for element in status.elements:
        if element.state == "pending" and element.reason:
            array, _, place = element.task.partition("_")
            waits[element.reason].append(Task(array, int(place)))
    by_number = sorted(waits.items(), key=lambda item: -len(item[1]))
    notes = [Text(f"{len(tasks)} pending: {explained(one_line(reason), tasks)}") for reason, tasks in by_number]
    wrong: dict[tuple[str, str], list[ElementStatus]] = defaultdict(list)
    restarted, held_up = [], []
    for element in status.elements:
        if text := element.reason if element.state == "stale" else element.error:
            wrong[element.job, text].append(element)
        if element.last_failure:
            restarted.append((element, "", f"restarted {element.restarts}x, last failure: {element.last_failure}"))
        slow = element.progress.figures.get("straggler") if element.progress and element.state == "running" else None
        if isinstance(slow, str):
            held_up.append((element, "", f"held up: {slow}"))
    errors = [(first, f" and {len(alike)} more" if alike else "", text) for (_, text), (first, *alike) in wrong.items()]
    for of_kind in (errors, restarted, held_up):
        for element, more, text in of_kind[:NOTES_SHOWN]:
            name = one_line(f"{element.job}/{element.label}{more}")
            style = STYLES[element.state] if element.state in TO_REPEAT else "yellow"
            notes.append(Text.assemble((f"{name}: ", style), one_line(text)))
        if len(of_kind) > NOTES_SHOWN:
            notes.append(Text(f"and {len(of_kind) - NOTES_SHOWN} more; --json shows all", "dim"))
    bad = [element for element in status.elements if element.state in ENDED_BADLY]
    if first := min(bad, key=lambda element: ENDED_BADLY.index(element.state), default=None):  # a failure, if there is one
        again = "" if status.problem else f"; `curricula retry {run.root}` runs it again"  # with a problem, retry refuses
        notes.append(Text(f"see `curricula logs {run.root} {first.job}`{again}", "dim"))
    elif not status.problem and any(element.state == "stale" for element in status.elements):
        notes.append(Text(f"`curricula retry {run.root}` runs again what is stale", "dim"))
    if run.submissions.exists() and (left := sum(element.state == "waiting" for element in status.elements)):
        notes.append(Text(f"{left} waiting: not submitted yet; repeat `curricula submit`", "dim"))
    return [Text(""), *notes] if notes else []
