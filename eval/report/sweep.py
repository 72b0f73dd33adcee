"""The overview of a sweep: the points with their settings and sizes, the effect of each arm at each point, and the tables of
all points as one file each, with the point in the first columns.

Each point has a report of its own, with its verdicts, which the overview links.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curricula import durable
from curricula.eval.report.page import template
from curricula.eval.report.tables import write_each
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
    summaries = {point.name: durable.read_json(point.page.parent / "summary.json") for point in points}
    tables: dict[str, list[dict[str, Any]]] = {}
    for point in points:
        own = {"point": point.name, "parameters": point.parameters, "budget_tokens": point.tokens}
        for name, rows in summaries[point.name].items():
            if name != "arms":
                tables.setdefault(name, []).extend({**own, **row} for row in rows)
    write_each(out / "tables", tables)
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
    durable.write_text(out / "index.html", page)
    return out / "index.html"


def _outcomes(tests: Sequence[dict[str, Any]]) -> str:
    """Such as "2 reproduced, 3 inconclusive"."""
    found = [test["outcome"] for test in tests]
    return ", ".join(f"{found.count(outcome)} {outcome}" for outcome in dict.fromkeys(found))
