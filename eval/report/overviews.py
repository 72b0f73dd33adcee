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
from curricula.eval.analysis.metrics import ANSWER_CATEGORIES
from curricula.eval.report.figures import save_figure
from curricula.eval.report.page import MARKS, template
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
    outcomes = {}
    for name, summary in summaries.items():
        counts = Counter(test["outcome"] for test in summary["trends"])
        outcomes[name] = ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
    page = template("sweep.html.j2").render(
        study=study, points=points, effects=effects, outcomes=outcomes, decoders=DECODERS, folder=POINTS
    )
    durable.write_text(out / "index.html", page)
    return out / "index.html"


def write_comparison(summaries: Mapping[str, Summary], out: Path) -> Path:
    panels = comparison_panels(summaries)
    rows = side_by_side(summaries)
    write_tables(out, {"comparison": rows}, ())
    page = template("compare.html.j2").render(
        names=list(summaries),
        **head(CHART_SCRIPTS),
        data=embedded_json(plain_data(panels)),
        picture=embedded(save_figure("comparison", partial(draw_panels, panels), out / "figures")) if panels else "",
        rows=rows,
        words=dict(zip(ANSWER_CATEGORIES, CATEGORIES, strict=True)),
        claims=_claims(summaries),
        marks=MARKS,
    )
    durable.write_text(out / "index.html", page)
    return out / "index.html"


def comparison_panels(summaries: Mapping[str, Summary]) -> list[Panel]:
    """A panel for each measure, stage and decoder that any study has; a colour for each intervention set of each study."""
    found: dict[tuple[str, str, str], list[Series]] = defaultdict(list)
    colours: dict[str, int] = {}
    for name, summary in summaries.items():
        arms = {arm["name"]: arm for arm in summary["arms"]}
        curves: dict[tuple[str, str, str], dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
        for point in _points(summary):
            if point["measure"] in ("attack success", "probe AUC"):
                place = (point["measure"], point["stage"], point["place"])
                curves[place][arms[point["arm"]]["interventions"]].append(point)
        for place, by_set in curves.items():
            sets = by_set.keys() - arms.keys() - {"none"}  # an arm whose phases the study spells out is a set named after it
            end = by_set.pop("none", []) if sets else []  # every curve of a set ends in the safe-only arm
            for kind, own in by_set.items():
                label = f"{name}: {kind}"
                colour = colours.setdefault(label, len(colours))
                points = own + end if kind in sets else own
                found[place] += _curve(label, sorted(points, key=lambda one: arms[one["arm"]]["start"]), arms, colour)
    return [
        Panel(
            f"{measure[0].upper()}{measure[1:]}, {stage}, {DECODERS.get(place, place)}",
            START_AXIS,
            "",
            series,
            x_format="percent",
            y_format="percent" if measure == "attack success" else "",
        )
        for (measure, stage, place), series in found.items()
    ]


def _curve(label: str, points: Sequence[dict[str, Any]], arms: Mapping[str, Any], colour: int) -> list[Series]:
    def column(of: Sequence[dict[str, Any]], field: str) -> list[float]:
        return [arms[point["arm"]]["start"] if field == "start" else point[field] for point in of]

    sure = [point for point in points if point["low"] is not None]
    found = [
        Series(label, "line", column(points, "start"), column(points, "value"), colour=colour),
        Series("", "whisker", column(sure, "start"), (), column(sure, "low"), column(sure, "high"), colour=colour, faint=True),
    ]
    for hollow in (False, True):
        if own := [point for point in points if point["hollow"] is hollow]:
            found.append(Series("", "dots", column(own, "start"), column(own, "value"), colour=colour, hollow=hollow))
    return found


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
    coarse = {(one["stage"], one["decoder"]) for one in summary["overrefusal"] if not one["tells_helpful"]}
    for point in summary["points"]:
        is_vague = point["measure"] in ANSWER_CATEGORIES and (point["stage"], point["place"]) in coarse
        if not point["judge"] and not point["benchmark"] and not is_vague:
            yield point
    if len({one["seed"] for one in summary["overrefusal"]}) == 1:  # with several seeds, the points have this share already
        last = {(one["stage"], one["decoder"], one["arm"]): one for one in summary["overrefusal"]}  # the last: of all requests
        for (stage, decoder, arm), one in last.items():
            if one["rate"] is not None:
                told = {"value": 1 - one["rate"], "low": 1 - one["high"], "high": 1 - one["low"], "hollow": False}
                yield {"measure": COMPLIED, "stage": stage, "place": decoder, "arm": arm, **told}


def _claims(summaries: Mapping[str, Summary]) -> list[tuple[str, list[tuple[str, float | None, str]]]]:
    """Each claim with its outcome, its deciding difference and the measure of that difference in every study."""
    found: dict[str, dict[str, tuple[str, float | None, str]]] = defaultdict(dict)
    for name, summary in summaries.items():
        for test in summary["trends"]:
            found[test["sentence"]][name] = (test["outcome"], test["difference"], test["measure"])
    nothing = ("not measured", None, "")
    return [(sentence, [by_study.get(name, nothing) for name in summaries]) for sentence, by_study in found.items()]
