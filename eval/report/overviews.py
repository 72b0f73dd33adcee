"""Pages on several reports. They are made from each report's `summary.json`, so all pages have the same numbers.

    curricula report runs/demo runs/demo-full

- The overview of a sweep: the points with their settings and sizes, the effect of each arm at each point, and the tables of all
  points as one file each, with the point in the first columns. It links to the report of each point, which has the verdicts.
- The comparison of several studies: their curves in one figure, their claims and rates side by side.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from curricula import durable
from curricula.eval.analysis.statistics import grouped
from curricula.eval.analysis.study_rows import ArmInfo
from curricula.eval.report.drawing import curves_of
from curricula.eval.report.figures import save_figure
from curricula.eval.report.page import template
from curricula.eval.report.panels import Panel, Series, draw_panels
from curricula.eval.report.points import COMPLIED
from curricula.eval.report.tables import write_each, write_tables
from curricula.eval.report.web.data import CHART_SCRIPTS, embedded, embedded_json, head, plain_data
from curricula.eval.report.wording import CATEGORIES, DECODERS, START_AXIS

Summary = Mapping[str, Any]

POINTS = "points"
"""Folder of the points' reports, in the folder of the sweep's report."""


@dataclass(frozen=True)
class SweptPoint:
    """A point of a sweep, whose report has been written."""

    name: str
    settings: str
    """What it changes in the study, such as "model.preset: smollm2-135m"."""
    parameters: int
    tokens: int
    """Tokens of each arm's pretraining."""
    page: Path


def write_overview(study: str, points: Sequence[SweptPoint], out: Path) -> Path:
    """Write the overview of a sweep to `out`, and return the path of its page."""
    summaries = {point.name: durable.read_json(point.page.parent / "summary.json") for point in points}
    tables: dict[str, list[dict[str, Any]]] = {}
    for point in points:
        first_columns = {"point": point.name, "parameters": point.parameters, "budget_tokens": point.tokens}
        for name, rows in summaries[point.name].items():
            if name != "arms":
                tables.setdefault(name, []).extend({**first_columns, **row} for row in rows)
    write_each(out / "tables", tables)
    page = template("sweep.html.j2").render(
        study=study,
        points=points,
        effects=_effects(summaries),
        outcomes={name: Counter(test["outcome"] for test in summary["trends"]) for name, summary in summaries.items()},
        **head(()),
        folder=POINTS,
        tables=[name for name, rows in tables.items() if rows],
    )
    durable.write_text(out / "index.html", page)
    return out / "index.html"


def _effects(summaries: Mapping[str, Summary]) -> dict[tuple[str, str, str], dict[str, dict[str, Any]]]:
    """The differences in attack success: by (stage, decoder, reference), by arm and by point."""
    effects: dict[tuple[str, str, str], dict[str, dict[str, Any]]] = {}
    for point, summary in summaries.items():
        for gap in summary["differences"]:
            if gap["task"].startswith("attacks"):
                by_arm = effects.setdefault((gap["stage"], gap["decoder"], gap["reference"]), {})
                by_arm.setdefault(gap["arm"], {})[point] = gap
    return effects


def write_comparison(summaries: Mapping[str, Summary], out: Path) -> Path:
    """Write the comparison of several studies, whose `summaries` are by name, to `out`, and return the path of its page."""
    panels = comparison_panels(summaries)
    rows = side_by_side(summaries)
    write_tables(out, {"comparison": rows}, ())
    page = template("compare.html.j2").render(
        names=list(summaries),
        **head(CHART_SCRIPTS),
        data=embedded_json(plain_data(panels)),
        picture=embedded(save_figure("comparison", partial(draw_panels, panels), out / "figures")) if panels else "",
        rows=rows,
        words=CATEGORIES,
        claims=_claims(summaries),
    )
    durable.write_text(out / "index.html", page)
    return out / "index.html"


def comparison_panels(summaries: Mapping[str, Summary]) -> list[Panel]:
    """A panel for each measure, stage and decoder that any study has; a colour for each intervention set of each study."""
    series_of: dict[tuple[str, str, str], list[Series]] = defaultdict(list)
    colours: dict[str, int] = {}
    for study, summary in summaries.items():
        arms = {arm["name"]: ArmInfo(arm["name"], arm["start"], arm["interventions"]) for arm in summary["arms"]}
        points = ({**point, "start": arms[point["arm"]].start} for point in _points(summary))
        drawn = [point for point in points if point["measure"] in ("attack success", "probe AUC")]
        for place, own in grouped(drawn, lambda point: (point["measure"], point["stage"], point["place"])).items():
            by_arm = {point["arm"]: point for point in own}
            for curve in curves_of([arms[name] for name in by_arm]):
                label = f"{study}: {curve.label}"
                colour = colours.setdefault(label, len(colours))
                series_of[place] += _curve(label, [by_arm[arm.name] for arm in curve.arms], colour)
    return [
        Panel(
            f"{measure[0].upper()}{measure[1:]}, {stage}, {DECODERS.get(place, place)}",
            START_AXIS,
            "",
            series,
            x_format="percent",
            y_format="percent" if measure == "attack success" else "",
        )
        for (measure, stage, place), series in series_of.items()
    ]


def _curve(label: str, points: Sequence[dict[str, Any]], colour: int) -> Iterator[Series]:
    """A line through the points, with their whiskers and their dots."""

    def column(name: str, of: Sequence[dict[str, Any]] = points) -> list[float]:
        return [point[name] for point in of]

    yield Series(label, "line", column("start"), column("value"), colour=colour)
    sure = [point for point in points if point["low"] is not None]
    yield Series("", "whisker", column("start", sure), (), column("low", sure), column("high", sure), colour=colour, faint=True)
    for hollow in (False, True):
        if own := [point for point in points if point["hollow"] is hollow]:
            yield Series("", "dots", column("start", own), column("value", own), colour=colour, hollow=hollow)


def side_by_side(summaries: Mapping[str, Summary]) -> list[dict[str, Any]]:
    """A row for each measure, stage, decoder and arm, with the value and interval of each study."""
    rows: dict[tuple[str, ...], dict[str, Any]] = {}
    for name, summary in summaries.items():
        for point in _points(summary):
            key = {field: point[field] for field in ("measure", "stage", "place", "arm")}
            row = rows.setdefault(tuple(key.values()), key)
            row |= {name: point["value"], f"{name}: low": point["low"], f"{name}: high": point["high"]}
            row[f"{name}: incoherent"] = point["hollow"]
    return [rows[key] for key in sorted(rows)]


def _points(summary: Summary) -> Iterator[dict[str, Any]]:
    """The points by the study's own judge over all benchmarks together, and those of the probes.

    Answers to benign requests are divided into categories only if the judge can tell helpful from unhelpful ones.
    """
    coarse = {(entry["stage"], entry["decoder"]) for entry in summary["overrefusal"] if not entry["tells_helpful"]}
    for point in summary["points"]:
        is_vague = point["measure"] in CATEGORIES and (point["stage"], point["place"]) in coarse
        if not point["judge"] and not point["benchmark"] and not is_vague:
            yield point
    if len({entry["seed"] for entry in summary["overrefusal"]}) == 1:  # with several seeds, the points have this share already
        # An arm's last entry at a stage and decoder is over all sets of requests.
        overall = {(entry["stage"], entry["decoder"], entry["arm"]): entry for entry in summary["overrefusal"]}
        for (stage, decoder, arm), entry in overall.items():
            if entry["rate"] is not None:
                shares = {"value": 1 - entry["rate"], "low": 1 - entry["high"], "high": 1 - entry["low"]}
                yield {"measure": COMPLIED, "stage": stage, "place": decoder, "arm": arm, **shares, "hollow": False}


def _claims(summaries: Mapping[str, Summary]) -> list[tuple[str, list[tuple[str, float | None, str]]]]:
    """Each claim with its outcome, its deciding difference and the measure of that difference in every study."""
    claims: dict[str, dict[str, tuple[str, float | None, str]]] = defaultdict(dict)
    for name, summary in summaries.items():
        for test in summary["trends"]:
            claims[test["sentence"]][name] = (test["outcome"], test["difference"], test["measure"])
    not_measured = ("not measured", None, "")
    return [(sentence, [by_study.get(name, not_measured) for name in summaries]) for sentence, by_study in claims.items()]
