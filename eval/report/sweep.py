"""The overview of a sweep: the points with their settings and sizes, the effect of each arm at each point, and the tables of
all points as one CSV each, with the point in the first columns.

Each point has a report of its own, with its verdicts, which the overview links.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curricula import durable
from curricula.eval.report.page import template
from curricula.eval.report.tables import cell
from curricula.eval.report.wording import DECODERS

POINTS = "points"
"""The folder of the points' reports, within that of the sweep."""


@dataclass(frozen=True)
class SweptPoint:
    """A point of a sweep, whose report has been written."""

    name: str
    settings: str
    """What it changes in the study, such as "model.preset: smollm2-135m"."""
    parameters: int
    tokens: int
    """Of each arm's pretraining."""
    page: Path


def write_overview(study: str, points: Sequence[SweptPoint], out: Path) -> Path:
    """Write the overview to `out` and return its path."""
    for path in sorted({path.name for point in points for path in (point.page.parent / "tables").glob("*.csv")}):
        _join(path, points, out)
    summaries = {point.name: durable.read_json(point.page.parent / "summary.json") for point in points}
    effects: dict[tuple[str, str, str], dict[str, dict[str, Any]]] = {}
    for name, summary in summaries.items():
        for gap in summary["differences"]:
            if gap["task"].startswith("attacks"):
                family = effects.setdefault((gap["stage"], gap["decoder"], gap["reference"]), {})
                family.setdefault(gap["arm"], {})[name] = gap
    outcomes = {name: _outcomes(summary["trends"]) for name, summary in summaries.items()}
    page = template("sweep.html.j2").render(
        study=study, points=points, effects=effects, outcomes=outcomes, decoders=DECODERS, folder=POINTS
    )
    with durable.open_atomically(out / "index.html") as file:
        file.write(page.encode())
    return out / "index.html"


def _outcomes(tests: Sequence[dict[str, Any]]) -> str:
    """Such as "2 reproduced, 3 inconclusive"."""
    found = [test["outcome"] for test in tests]
    return ", ".join(f"{found.count(outcome)} {outcome}" for outcome in dict.fromkeys(found))


def _join(name: str, points: Sequence[SweptPoint], out: Path) -> None:
    """Write the table `name` of all points as one."""
    rows: list[dict[str, Any]] = []
    for point in points:
        path = point.page.parent / "tables" / name
        if path.exists():
            with open(path, newline="", encoding="utf-8") as file:
                own = {"point": point.name, "parameters": point.parameters, "tokens": point.tokens}
                rows += [{**own, **row} for row in csv.DictReader(file)]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: cell(value) for key, value in row.items()} for row in rows)
    with durable.open_atomically(out / "tables" / name) as file:
        file.write(text.getvalue().encode())
