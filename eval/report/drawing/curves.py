"""Draws curves over the start of interventions: attack success and probe AUC.

Colours are Okabe and Ito's, which readers with any colour vision can tell apart; curves also differ in marker.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.transforms import Bbox

from curricula.eval.analysis.study_rows import ArmInfo
from curricula.eval.report.points import Point, Shown
from curricula.eval.report.wording import CORRECTED, NO_INTERVENTIONS, NOT_EVALUATED, PAPER_SETS, START_AXIS, start_label

SAFE_ONLY_COLOUR = "#222222"
CURVE_LOOKS = (("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "v"), ("#E69F00", "P"), ("#56B4E9", "X"))
"""Colour and marker of each intervention set."""


@dataclass(frozen=True)
class Curve:
    """The arms of one intervention set by start, ending in the safe-only arm, and their look."""

    label: str
    colour: str
    marker: str
    arms: list[ArmInfo]

    def along(self, points: Iterable[Point]) -> list[tuple[float, Point]]:
        """Those of `points` that are of its arms, each with the start of its arm."""
        by_arm = {point.arm: point for point in points}
        return [(arm.start, by_arm[arm.name]) for arm in self.arms if arm.name in by_arm]


def curves_of(arms: Sequence[ArmInfo]) -> list[Curve]:
    """One curve per intervention set: the paper's two first, then the others by name. A custom arm is a single point."""
    names = sorted({arm.interventions for arm in arms} - {"none"}, key=lambda name: (name not in PAPER_SETS, name))
    by_start = sorted(arms, key=lambda arm: arm.start)
    curves = []
    for name, (colour, marker) in zip(names, itertools.cycle(CURVE_LOOKS)):
        own = [arm for arm in by_start if arm.interventions == name]
        end = [arm for arm in by_start if arm.interventions == "none" and not own[0].is_custom]
        curves.append(Curve(PAPER_SETS.get(name, name), colour, marker, own + end))
    return curves


def side_by_side(*titles: str) -> tuple[Canvas, Sequence[Axes]]:
    """A panel for each title."""
    size = (8.4 if len(titles) > 1 else 6.8, 3.7)
    canvas, grid = pyplot.subplots(1, len(titles), figsize=size, sharey=True, layout="constrained", squeeze=False)
    panels = list(grid[0])
    for panel, title in zip(panels, titles):
        panel.set_title(title)
    return canvas, panels


def finish_panels(
    canvas: Canvas, panels: Sequence[Axes], drawn: Sequence[bool], arms: Sequence[ArmInfo], has_corrected: bool = False
) -> list[Bbox]:
    """Add axes, legend and notes of what is missing; returns the extents of the panels with curves."""
    starts = sorted({arm.start for arm in arms})
    for panel, has_curves in zip(panels, drawn):
        panel.set_xticks(starts, [start_label(start) for start in starts])
        panel.set_xlim(-0.06, 1.06)
        panel.set_xlabel(START_AXIS)
        if not has_curves:
            look: Any = {"ha": "center", "color": "#777777", "style": "italic"}
            panel.text(0.5, 0.5, NOT_EVALUATED, transform=panel.transAxes, **look)
    add_legend(canvas, arms, has_corrected)
    return [panel.dataLim for panel, has_curves in zip(panels, drawn) if has_curves]


def add_legend(canvas: Canvas, arms: Sequence[ArmInfo], has_corrected: bool = False) -> None:
    """Name the curves in their colours, in a row above the panels, where no curve can cross the names."""
    looks = [(curve.label, curve.colour, curve.marker) for curve in curves_of(arms)]
    if any(arm.interventions == "none" for arm in arms):
        looks.append((NO_INTERVENTIONS, SAFE_ONLY_COLOUR, "D"))
    handles = [
        Line2D([], [], color=colour, marker=marker, ms=6, lw=1.9 if marker != "D" else 0, mec="white", label=label)
        for label, colour, marker in looks
    ]
    if has_corrected:
        handles.append(Line2D([], [], color=SAFE_ONLY_COLOUR, marker="x", ms=6, mew=1.6, lw=0, label=CORRECTED))
    if handles:
        canvas.legend(
            handles=handles,
            loc="outside upper center",
            ncols=len(handles),
            frameon=False,
            labelcolor="linecolor",
            prop={"weight": "bold", "size": 9},
            columnspacing=1.6,
        )


def draw_attacks(panel: Axes, shown: Shown, stage: str, decoder: str) -> bool:
    """Draw the mean of the benchmarks with each benchmark faint behind it. False: nothing to draw."""
    found, drawn = shown.at(stage, decoder, "attack success"), False
    for curve, shift in _shifted(shown):
        for name in dict.fromkeys(point.benchmark for point in found):
            points = curve.along(point for point in found if point.benchmark == name)
            if name:
                starts, values = [start for start, _ in points], [point.value for _, point in points]
                panel.plot(starts, values, color=curve.colour, lw=0.9, alpha=0.3, zorder=1)
            else:
                draw_curve(panel, curve, points, shift)
            drawn |= bool(points)
    return drawn


def draw_probes(panel: Axes, shown: Shown, stage: str, layer: str) -> bool:
    """Draw probe AUC and, dashed, what text length alone achieves. False: nothing to draw."""
    drawn = False
    for curve, shift in _shifted(shown):
        points = curve.along(shown.at(stage, layer, "probe AUC"))
        draw_curve(panel, curve, points, shift)
        drawn |= bool(points)
    level = shown.length_auc(stage, layer)
    if level is not None:
        panel.axhline(level, color="#777777", lw=1, ls=(0, (4, 3)), zorder=1)
        look: Any = {"color": "#666666", "fontsize": 8, "textcoords": "offset points"}
        panel.annotate("text length alone", (0.0, level), (0, 3), **look)
    return drawn


def _shifted(shown: Shown) -> list[tuple[Curve, float]]:
    """Each curve with how far to shift it to the right: intervals over seeds are wide, and would cover each other."""
    curves = curves_of(shown.arms)
    middle = (len(curves) - 1) / 2
    return [(curve, (i - middle) * 0.022 if shown.several else 0.0) for i, curve in enumerate(curves)]


def draw_curve(panel: Axes, curve: Curve, points: Sequence[tuple[float, Point]], shift: float = 0.0) -> None:
    points = [(start if start >= 1 else start + shift, point) for start, point in points]
    if not points:
        return
    banded = [(start, point.value, point.std) for start, point in points if point.std is not None]
    if banded:
        panel.fill_between(
            [start for start, _, _ in banded],
            [value - std for _, value, std in banded],
            [value + std for _, value, std in banded],
            color=curve.colour,
            alpha=0.2,
            lw=0,
            zorder=2,
        )
    panel.plot([start for start, _ in points], [point.value for _, point in points], color=curve.colour, lw=1.9, zorder=3)
    for start, point in points:
        safe_only = start >= 1
        look: dict[str, Any] = {"color": SAFE_ONLY_COLOUR, "zorder": 5} if safe_only else {"color": curve.colour, "zorder": 4}
        if point.low is not None and point.high is not None:
            style: Literal["dotted", "solid"] = "dotted" if point.one_run else "solid"
            panel.vlines(start, point.low, point.high, lw=1, alpha=0.75, linestyles=style, **look)
        for value, is_incoherent in point.runs:
            small: Any = {"mfc": "white" if is_incoherent else look["color"], "mec": look["color"]}
            panel.plot(start, value, marker="o", ms=3.2, ls="none", alpha=0.55, zorder=3.5, **small)
        if point.corrected is not None:
            panel.plot(start, point.corrected, marker="x", ms=7, mew=1.6, ls="none", **look)
        marker = "D" if safe_only else curve.marker
        face: Any = {"mfc": "white", "mec": look["color"], "mew": 1.4} if point.hollow else {"mec": "white", "mew": 0.8}
        panel.plot(start, point.value, marker=marker, ms=5.5, ls="none", **face, **look)
