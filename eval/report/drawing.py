"""Draws points for the files: as curves over the start of interventions or, for answers to benign requests, as bars.

Colours are Okabe and Ito's, which readers with any colour vision can tell apart; curves also differ in marker.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter
from matplotlib.transforms import Bbox

from curricula.eval.analysis.metrics import ANSWER_CATEGORIES
from curricula.eval.analysis.statistics import grouped
from curricula.eval.analysis.study_rows import ArmInfo
from curricula.eval.report.panels import PALETTE
from curricula.eval.report.points import COMPLIED, Place, Point, Shown
from curricula.eval.report.wording import (
    CATEGORIES,
    CORRECTED,
    NO_INTERVENTIONS,
    NOT_EVALUATED,
    PAPER_SETS,
    START_AXIS,
    arm_label,
    set_label,
    start_label,
)
from curricula.terminal import fixed

SAFE_ONLY_COLOUR = "#222222"
MARKERS = ("o", "s", "^", "v", "P", "X")


@dataclass(frozen=True)
class Curve:
    """The arms of one intervention set by start, ending in the safe-only arm, and the look of their curve."""

    label: str
    colour: str
    marker: str
    arms: list[ArmInfo]

    def along(self, points: Iterable[Point]) -> list[tuple[float, Point]]:
        """The `points` of the curve's arms, each with its arm's start."""
        by_arm = {point.arm: point for point in points}
        return [(arm.start, by_arm[arm.name]) for arm in self.arms if arm.name in by_arm]


def curves_of(arms: Sequence[ArmInfo]) -> list[Curve]:
    """One curve per intervention set: the paper's two first, then the others by name. A custom arm is a single point, and so is
    the safe-only arm if there is no set."""
    # A custom arm can have the name of a set.
    by_set = grouped(sorted(arms, key=lambda arm: arm.start), lambda arm: (arm.interventions, arm.is_custom))
    safe_only = by_set.pop(("none", False), [])
    names = sorted(by_set, key=lambda name: (name[0] not in PAPER_SETS, *name))
    curves = []
    for (name, is_custom), colour, marker in zip(names, itertools.cycle(PALETTE), itertools.cycle(MARKERS)):
        own = by_set[name, is_custom]
        label = set_label(own[0]) + " (arm)" * (is_custom and (name, False) in by_set)
        curves.append(Curve(label, colour, marker, own if is_custom else own + safe_only))
    if safe_only and all(is_custom for _, is_custom in names):
        curves.append(Curve(NO_INTERVENTIONS, SAFE_ONLY_COLOUR, "D", safe_only))
    return curves


def draw_starts(shown: Shown, places: Sequence[Place]) -> tuple[Canvas, list[Bbox]]:
    """Draw a panel of curves, or a note that there are none, for each place; returns also the extents of panels with curves."""
    size = (8.4 if len(places) > 1 else 6.8, 3.7)
    canvas, grid = pyplot.subplots(1, len(places), figsize=size, sharey=True, layout="constrained", squeeze=False)
    starts = sorted({arm.start for arm in shown.arms})
    for panel, place in zip(grid[0], places):
        panel.set_title(place.title)
        _draw_place(panel, shown, place)
        panel.set_xticks(starts, [start_label(start) for start in starts])
        panel.set_xlim(-0.06, 1.06)
        panel.set_xlabel(START_AXIS)
        if not panel.has_data():
            look: Any = {"ha": "center", "color": "#777777", "style": "italic"}
            panel.text(0.5, 0.5, NOT_EVALUATED, transform=panel.transAxes, **look)
    means = [point for place in places for point in shown.means(place.stage, place.place, place.measure)]
    add_legend(canvas, shown.arms, has_corrected=any(point.corrected is not None for point in means))
    return canvas, [panel.dataLim for panel in grid[0] if panel.has_data()]


def add_legend(canvas: Canvas, arms: Sequence[ArmInfo], has_corrected: bool = False) -> None:
    """Name the curves in their colours, in a row above the panels, where no curve can cross the names."""
    looks = {curve.label: (curve.colour, curve.marker) for curve in curves_of(arms)}
    if any(arm.interventions == "none" for arm in arms):
        looks[NO_INTERVENTIONS] = (SAFE_ONLY_COLOUR, "D")
    handles = [
        Line2D([], [], color=colour, marker=marker, ms=6, lw=1.9 if marker != "D" else 0, mec="white", label=label)
        for label, (colour, marker) in looks.items()
    ]
    if has_corrected:
        handles.append(Line2D([], [], color=SAFE_ONLY_COLOUR, marker="x", ms=6, mew=1.6, lw=0, label=CORRECTED))
    canvas.legend(
        handles=handles,
        loc="outside upper center",
        ncols=len(handles),
        frameon=False,
        labelcolor="linecolor",
        prop={"weight": "bold", "size": 9},
        columnspacing=1.6,
    )


def _draw_place(panel: Axes, shown: Shown, place: Place) -> None:
    """Draw the mean of the benchmarks with each benchmark faint behind it, or AUCs with what text length alone achieves."""
    all_points = shown.at(place.stage, place.place, place.measure)
    curves = curves_of(shown.arms)
    for number, curve in enumerate(curves):
        # Shifted sideways, or the wide intervals over seeds would cover each other.
        shift = (number - (len(curves) - 1) / 2) * 0.022 if shown.several else 0.0
        for benchmark in dict.fromkeys(point.benchmark for point in all_points):
            points = curve.along(point for point in all_points if point.benchmark == benchmark)
            if benchmark:
                starts, values = [start for start, _ in points], [point.value for _, point in points]
                panel.plot(starts, values, color=curve.colour, lw=0.9, alpha=0.3, zorder=1)
            else:
                _draw_curve(panel, curve, points, shift)
    length_auc = shown.length_auc(place.stage, place.place)
    if length_auc is not None:
        panel.axhline(length_auc, color="#777777", lw=1, ls=(0, (4, 3)), zorder=1)
        look: Any = {"color": "#666666", "fontsize": 8, "textcoords": "offset points"}
        panel.annotate("text length alone", (0.0, length_auc), (0, 3), **look)


def _draw_curve(panel: Axes, curve: Curve, points: Sequence[tuple[float, Point]], shift: float) -> None:
    points = [(start if start >= 1 else start + shift, point) for start, point in points]
    if not points:
        return
    if banded := [(start, point.value, point.std) for start, point in points if point.std is not None]:
        x, y, std = np.transpose(banded)
        panel.fill_between(x, y - std, y + std, color=curve.colour, alpha=0.2, lw=0, zorder=2)
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


CATEGORY_COLOURS = (
    ("#0072B2", "white"),
    ("#8CC5E8", "black"),
    ("#F5C98B", "black"),
    ("#D55E00", "white"),
    ("#6A4C93", "white"),
)


def draw_answers(shown: Shown, stage: str, decoder: str) -> Canvas:
    """Draw a bar for each arm, divided into categories of answers to benign requests.

    With several training seeds, a whisker shows the interval of the share that is not over-refusal.
    """
    arms = shown.arms
    canvas, panel = pyplot.subplots(figsize=(8.4, 1.35 + 0.36 * len(arms)), layout="constrained")
    points = {(point.arm, point.measure): point for point in shown.at(stage, decoder, *ANSWER_CATEGORIES, COMPLIED)}
    order = sorted(arms, key=lambda arm: (arm.interventions == "none", arm.interventions, arm.start))
    for y, arm in enumerate(order):
        left = 0.0
        if (arm.name, ANSWER_CATEGORIES[0]) not in points:
            panel.text(0.01, y, NOT_EVALUATED, va="center", color="#777777", style="italic")
            continue
        for name, (colour, ink) in zip(ANSWER_CATEGORIES, CATEGORY_COLOURS):
            share = points[arm.name, name].value
            panel.barh(y, share, left=left, color=colour, height=0.74, edgecolor="white", linewidth=0.8)
            if share >= 0.045:
                panel.text(
                    left + share / 2, y, f"{fixed(share, 0, times=100)}%", ha="center", va="center", color=ink, fontsize=8.5
                )
            left += share
        if complied := points.get((arm.name, COMPLIED)):
            _draw_whisker(panel, y, complied)
    panel.set_yticks(range(len(order)), [arm_label(arm) for arm in order])
    panel.invert_yaxis()
    panel.set_xlim(0, 1)
    panel.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    panel.set_xlabel("share of answers")
    panel.grid(False)
    panel.spines[["left", "bottom"]].set_visible(False)
    panel.tick_params(length=0)
    has_shortcircuits = any(entry.shares.get(ANSWER_CATEGORIES[4]) for entry in shown.metrics.overrefusals_by(stage, decoder))
    labels = list(CATEGORIES.values())[: 5 if has_shortcircuits else 4]
    canvas.legend(
        [pyplot.Rectangle((0, 0), 1, 1, color=colour) for _, (colour, _) in zip(labels, CATEGORY_COLOURS)],
        labels,
        loc="outside upper center",
        ncols=len(labels),
        frameon=False,
        handlelength=1,
        handleheight=1,
        columnspacing=1.4,
        fontsize=9,
    )
    return canvas


def _draw_whisker(panel: Axes, y: float, complied: Point) -> None:
    """Draw the interval of the share that is not over-refusal at the bar's lower edge, with the single runs."""
    edge = y + 0.3
    if complied.low is not None and complied.high is not None:
        panel.hlines(edge, complied.low, complied.high, color="black", lw=1.2, ls=":" if complied.one_run else "-")
    panel.plot([value for value, _ in complied.runs], [edge] * len(complied.runs), "o", ms=3, mfc="white", mec="black")
    panel.plot(complied.value, edge, "D", ms=4.5, mfc="black", mec="white")
