"""Several studies on one page: their figures over each other, their claims and rates side by side.

    curricula report runs/demo runs/demo-full

Reads the `summary.json` of each report, so the numbers are those of the single pages.
"""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from markupsafe import Markup
from matplotlib import pyplot

from curricula import durable
from curricula.eval.report.drawing.panels import Panel, Series, draw_panels
from curricula.eval.report.figures import FORMATS, STYLE
from curricula.eval.report.page import MARKS, policy, template
from curricula.eval.report.tables import write_tables
from curricula.eval.report.web.data import CHART_SCRIPTS, HERE, embedded_json, embedded_svg, plain_data, program
from curricula.eval.report.wording import DECODERS

Summary = Mapping[str, Any]


def write_comparison(summaries: Mapping[str, Summary], out: Path) -> Path:
    """Write the page that compares the studies, by name; returns its path."""
    panels = comparison_panels(summaries)
    rows = side_by_side(summaries)
    write_tables(out, {"comparison": rows}, ())
    script, style = program(CHART_SCRIPTS), (HERE / "report.css").read_text()
    page = template("compare.html.j2").render(
        names=list(summaries),
        policy=policy(script, style),
        script=Markup(script),
        style=Markup(style),
        data=embedded_json(plain_data("comparison", panels)),
        picture=_picture(panels, out) if panels else "",
        rows=rows,
        claims=_claims(summaries),
        marks=MARKS,
    )
    durable.write_text(out / "index.html", page)
    return out / "index.html"


def comparison_panels(summaries: Mapping[str, Summary]) -> list[Panel]:
    """A panel for each measure, stage and decoder that any study has; a colour for each study."""
    found: dict[tuple[str, str, str], list[Series]] = defaultdict(list)
    for colour, (name, summary) in enumerate(summaries.items()):
        starts = {arm["name"]: arm["start"] for arm in summary["arms"]}
        sets = {arm["name"]: arm["interventions"] for arm in summary["arms"]}
        curves: dict[tuple[str, str, str], dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
        for point in summary["points"]:
            if not point["judge"] and not point["benchmark"] and point["measure"] in ("attack success", "probe AUC"):
                place = (point["measure"], point["stage"], point["place"])
                curves[place][sets[point["arm"]]].append(point)
        for place, by_set in curves.items():
            for kind, points in by_set.items():
                points.sort(key=lambda point: starts[point["arm"]])
                x, y = [starts[point["arm"]] for point in points], [point["value"] for point in points]
                found[place].append(Series(f"{name}: {kind}", "line", x, y, colour=colour))
                found[place].append(Series("", "dots", x, y, colour=colour))
                sure = [point for point in points if point["low"] is not None]
                low, high = [point["low"] for point in sure], [point["high"] for point in sure]
                at = [starts[point["arm"]] for point in sure]
                found[place].append(Series("", "whisker", at, (), low, high, colour=colour, faint=True))
    return [
        Panel(
            f"{measure.capitalize()}, {stage}, {DECODERS.get(place, place)}",
            "interventions start after … of pretraining",
            "",
            series,
            x_format="percent",
            y_format="percent" if measure == "attack success" else "",
        )
        for (measure, stage, place), series in found.items()
    ]


def side_by_side(summaries: Mapping[str, Summary]) -> list[dict[str, Any]]:
    """A row for each measure, stage, decoder and arm; for each study its value and interval."""
    rows: dict[tuple[str, ...], dict[str, Any]] = {}
    for name, summary in summaries.items():
        for point in summary["points"]:
            if not point["judge"] and not point["benchmark"]:
                key = {field: point[field] for field in ("measure", "stage", "place", "arm")}
                row = rows.setdefault(tuple(key.values()), key)
                row |= {name: point["value"], f"{name}: low": point["low"], f"{name}: high": point["high"]}
    return [rows[key] for key in sorted(rows)]


def _claims(summaries: Mapping[str, Summary]) -> list[tuple[str, list[tuple[str, float | None]]]]:
    """Each claim with its outcome and difference in every study."""
    found: dict[str, dict[str, tuple[str, float | None]]] = defaultdict(dict)
    for name, summary in summaries.items():
        for test in summary["trends"]:
            found[test["sentence"]][name] = (test["outcome"], test["difference"])
    nothing = ("not measured", None)
    return [(sentence, [by_study.get(name, nothing) for name in summaries]) for sentence, by_study in found.items()]


def _picture(panels: Sequence[Panel], out: Path) -> str:
    with matplotlib.rc_context(STYLE):
        canvas = draw_panels(panels)
        drawn = io.BytesIO()
        canvas.savefig(drawn, format="svg", metadata=FORMATS[".svg"])
        for suffix, metadata in FORMATS.items():
            with durable.open_atomically(out / "figures" / f"comparison{suffix}") as file:
                canvas.savefig(file, format=suffix[1:], dpi=300, metadata=metadata)
        pyplot.close(canvas)
    return embedded_svg(drawn.getvalue())
