"""The progress of an evaluation where there is no terminal for bars."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from curricula.jobs.cli.bars import Bars


@pytest.mark.parametrize(
    ("interval_s", "lines"),
    [(1e9, ["topk: 0 of 1,200", "topk: 1,200 of 1,200"]), (0, [f"topk: {n} of 1,200" for n in (0, 600, "1,200")])],
)
def test_without_a_terminal_a_long_part_reports_its_progress(interval_s, lines):
    shown = io.StringIO()
    with Bars(Console(file=shown, force_terminal=False), interval_s) as bars:
        report = bars.line("topk")
        for done in (0, 600, 1200, 1200):
            report(done, 1200)
    assert shown.getvalue().split("\n")[: len(lines)] == lines
    assert shown.getvalue().count("topk:") == len(lines)
