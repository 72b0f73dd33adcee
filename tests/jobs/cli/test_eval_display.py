"""The progress of a long command: bars on a terminal, however narrow, and lines elsewhere."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from curricula.jobs.cli.bars import Bars


@pytest.mark.parametrize(
    ("interval_s", "lines"),
    [
        (1e9, ["topk: 0 of 1,200", "topk: 1,200 of 1,200"]),
        (0, ["topk: 0 of 1,200", "topk: 600 of 1,200, 0:00 left", "topk: 1,200 of 1,200"]),
    ],
)
def test_without_a_terminal_a_long_part_reports_its_progress(interval_s, lines):
    shown = io.StringIO()
    with Bars(Console(file=shown, force_terminal=False), interval_s) as bars:
        report = bars.line("topk")
        for done in (0, 600, 1200, 1200):
            report(done, 1200)
        bars.line("resumed")(600, 1200)
    assert shown.getvalue().endswith("resumed: 600 of 1,200\n")
    assert shown.getvalue().split("\n")[: len(lines)] == lines
    assert shown.getvalue().count("topk:") == len(lines)


def test_a_total_that_is_not_known_is_not_shown():
    shown = io.StringIO()
    with Bars(Console(file=shown, force_terminal=False), 1e9) as bars:
        report = bars.line("rows of part 3")
        for done in (1000, 2000):
            report(done, 0)
        bars.line("judge")(0, 0)
    assert shown.getvalue() == "rows of part 3: 1,000\njudge: 0 of 0\n"


def test_a_size_that_turns_out_too_small_is_no_longer_shown():
    shown = io.StringIO()
    with Bars(Console(file=shown, force_terminal=True, width=80)) as bars:
        report = bars.line("rows")
        report(1000, 1000)
        report(2000, 1000)
    last = [line for line in shown.getvalue().splitlines() if "rows" in line][-1]
    assert "2000/?" in last


def test_on_a_narrow_terminal_a_line_keeps_its_bar_its_count_and_the_time_left():
    shown = io.StringIO()
    with Bars(Console(file=shown, force_terminal=True, width=80)) as bars:
        bars.line("part 12", lambda *_: "60.0 docs/s, 123 retries, 12 dead")(600, 90_000)
    last = [line for line in shown.getvalue().splitlines() if "part 12" in line][-1]
    assert "━" in last and "600/90000" in last and "60.0 docs/s, 123 retries, 12 dead" in last and last.count(":") >= 4
