"""Draws what was measured along the way: for each stage one figure, with a panel for each measure and a curve for each arm."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import EngFormatter, PercentFormatter

from curricula.eval.analysis.along import CurvePoint, mean_over_seeds
from curricula.eval.report.drawing.curves import CURVE_LOOKS
from curricula.eval.report.figures import save_figure
from curricula.eval.report.wording import DECODERS

RATES = ("attack success", "refusals", "over-refusal")
MEASURES = (*RATES, "probe AUC", "validation loss")
"""In the order of their panels."""
LEFT_OUT = ("first", "middle")
"""Probed layers that only the table shows."""
MOST_PANELS = 6


@dataclass(frozen=True)
class AlongFigure:
    """The figure of one stage."""

    name: str
    """Of its files, and its id on the page."""
    title: str
    caption: str
    picture: Path
    """As SVG."""


def draw_along(points: Sequence[CurvePoint], stages: Sequence[str], folder: Path) -> Iterator[AlongFigure]:
    """Write the figure of each stage that was measured along the way, as PNG and SVG."""
    for stage in stages:
        own = [point for point in points if stage == point.stage]
        if not own:
            continue
        panels = list(dict.fromkeys((point.measure, point.series) for point in own if point.series not in LEFT_OUT))
        panels = sorted(panels, key=lambda panel: MEASURES.index(panel[0]))[:MOST_PANELS]
        name = f"along-{stage}"
        picture = save_figure(name, partial(_draw, own, panels, stage == "base"), folder)
        seeds = len({point.seed for point in own})
        shown = "mean over the runs; faint: single runs" if seeds > 1 else "bars: 95% interval over prompts"
        title = f"Measured during {'pretraining' if stage == 'base' else stage}"
        caption = (
            f"Each point is a checkpoint, judged on the same prompts as all others of its curve. {seeds} training "
            f"seed{'s' if seeds > 1 else ''}; {shown}. Numbers: tables/along.csv."
        )
        yield AlongFigure(name, title, caption, picture)


def _draw(points: Sequence[CurvePoint], panels: Sequence[tuple[str, str]], by_tokens: bool) -> Canvas:
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    canvas, axes = pyplot.subplots(
        rows, columns, figsize=(2.1 + 3.1 * columns, 0.9 + 2.6 * rows), layout="constrained", squeeze=False
    )
    looks = dict(zip(dict.fromkeys(point.arm for point in points), itertools.cycle(CURVE_LOOKS)))
    for panel, (measure, series) in zip(axes.flat, panels):
        own = [point for point in points if (point.measure, point.series) == (measure, series)]
        shown = f"{series} layer" if measure == "probe AUC" else DECODERS.get(series, series)
        panel.set_title(f"{measure}, {shown}", fontsize=9)
        panel.set_xlabel("tokens" if by_tokens else "steps")
        panel.xaxis.set_major_formatter(EngFormatter(sep=""))
        if measure in RATES:
            panel.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
            panel.set_ylim(-0.03, 1.03)
        for arm, (colour, marker) in looks.items():
            _draw_arm(panel, [point for point in own if point.arm == arm], colour, marker, by_tokens)
    for panel in list(axes.flat)[len(panels) :]:
        panel.set_visible(False)
    handles = [pyplot.Line2D([], [], color=colour, marker=marker, label=arm) for arm, (colour, marker) in looks.items()]
    canvas.legend(handles=handles, loc="outside upper center", ncols=min(4, len(handles)), frameon=False, fontsize=9)
    return canvas


def _draw_arm(panel: Axes, points: Sequence[CurvePoint], colour: str, marker: str, by_tokens: bool) -> None:
    def place(point: CurvePoint) -> int:
        return point.tokens if by_tokens else point.step

    several = len({point.seed for point in points}) > 1
    for seed in dict.fromkeys(point.seed for point in points) if several else ():
        run = sorted((point for point in points if point.seed == seed), key=place)
        panel.plot([place(point) for point in run], [point.value for point in run], color=colour, lw=0.8, alpha=0.35)
    means = sorted(mean_over_seeds(points), key=place)
    look: Any = {"color": colour, "marker": marker, "ms": 4.5, "lw": 1.7, "mec": "white", "mew": 0.6}
    panel.plot([place(point) for point in means], [point.value for point in means], **look)
    for point in means:
        if point.low is not None and point.high is not None:
            panel.vlines(place(point), point.low, point.high, color=colour, lw=0.9, alpha=0.6)
