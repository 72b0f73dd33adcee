"""Panels of the figures: lines of arms over the start of their interventions, and stacked bars of answers.

Knows cells (`eval/analysis/metrics.py`) and looks. Colours are Okabe and Ito's, told apart by readers with any colour vision;
lines differ in marker too.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from curricula.eval.analysis.claims import ArmInfo
from curricula.eval.analysis.metrics import ALL, HELPFULNESS, AttackCell, Cells, OverrefusalCell

KNOWN = {"data": "data interventions only", "full": "full: data and tags"}  # names of the paper's two intervention sets
LOOKS = (("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "v"), ("#E69F00", "P"), ("#56B4E9", "X"))
NOT_YET = "not evaluated yet"
NEVER_COLOUR = "#222222"
CATEGORIES = (
    ("compliant, helpful", "#0072B2", "white"),
    ("compliant, unhelpful", "#8CC5E8", "black"),
    ("partial refusal", "#F5C98B", "black"),
    ("full refusal", "#D55E00", "white"),
    ("shortcircuit", "#6A4C93", "white"),
)


@dataclass(frozen=True)
class Point:
    """One arm on a line: position and value, the std band and the 95% whisker where there are any. All in 0..1."""

    start: float
    value: float
    std: float | None
    low: float | None = None
    high: float | None = None


def main_cells(cells: Sequence[AttackCell]) -> tuple[dict[str, AttackCell], dict[str, dict[str, AttackCell]]]:
    """Per arm the cell to draw, averaged over benchmarks if there are several; and those of each benchmark."""
    names = sorted({cell.benchmark for cell in cells} - {ALL})
    head = ALL if len(names) > 1 else (names[0] if names else ALL)
    parts = {name: {cell.arm: cell for cell in cells if cell.benchmark == name} for name in names if head == ALL}
    return {cell.arm: cell for cell in cells if cell.benchmark == head}, parts


def draw_attacks(panel: Axes, cells: Sequence[AttackCell], arms: Sequence[ArmInfo]) -> bool:
    """Attack success over the start; benchmarks faint behind their average. False: nothing to draw."""
    main, parts = main_cells(cells)
    drawn = False
    for line in curves_of(arms):
        for part in parts.values():
            faint = [point for arm in line.arms if (point := attack_point(arm, part.get(arm.name)))]
            starts, values = [point.start for point in faint], [point.value for point in faint]
            panel.plot(starts, values, color=line.colour, lw=0.9, alpha=0.3, zorder=1)
        points = [point for arm in line.arms if (point := attack_point(arm, main.get(arm.name)))]
        draw_curve(panel, line, points)
        drawn |= bool(points)
    return drawn


def attack_point(arm: ArmInfo, cell: AttackCell | None) -> Point | None:
    if cell is None or cell.rate is None:
        return None
    return Point(arm.start, cell.rate, cell.std, cell.low, cell.high)


def draw_probes(panel: Axes, cells: Cells, arms: Sequence[ArmInfo], stage: str, layer: str) -> bool:
    """Probe AUC over the start, and what text length alone achieves. False: nothing to draw."""
    of = {cell.arm: cell for cell in cells.probes if (cell.stage, cell.layer) == (stage, layer)}
    drawn = False
    for line in curves_of(arms):
        points = [Point(arm.start, of[arm.name].auc, of[arm.name].std) for arm in line.arms if arm.name in of]
        draw_curve(panel, line, points)
        drawn |= bool(points)
    lengths = [cell.length_auc for cell in of.values() if cell.length_auc is not None]
    if lengths:
        level = sum(lengths) / len(lengths)
        panel.axhline(level, color="#777777", lw=1, ls=(0, (4, 3)), zorder=1)
        look: Any = {"color": "#666666", "fontsize": 8, "textcoords": "offset points"}
        panel.annotate("text length alone", (0.0, level), (0, 3), **look)
    return drawn


@dataclass(frozen=True)
class Curve:
    """The arms of one intervention set by start, ended by the safe-only arm, and how they look."""

    label: str
    colour: str
    marker: str
    arms: list[ArmInfo]


def curves_of(arms: Sequence[ArmInfo]) -> list[Curve]:
    """One line per intervention set: the paper's two first, then any others by name; written arms are points alone."""
    kinds = sorted({arm.interventions for arm in arms} - {"none"}, key=lambda kind: (kind not in KNOWN, kind))
    by_start = sorted(arms, key=lambda arm: arm.start)
    lines = []
    for kind, (colour, marker) in zip(kinds, itertools.cycle(LOOKS)):
        own = [arm for arm in by_start if arm.interventions == kind]
        end = [arm for arm in by_start if arm.interventions == "none" and not own[0].written]
        lines.append(Curve(KNOWN.get(kind, kind), colour, marker, own + end))
    return lines


def draw_curve(panel: Axes, line: Curve, points: Sequence[Point]) -> None:
    if not points:
        return
    colour = line.colour
    starts = [point.start for point in points]
    banded = [point for point in points if point.std is not None]
    if banded:
        panel.fill_between(
            [point.start for point in banded],
            [point.value - (point.std or 0) for point in banded],
            [point.value + (point.std or 0) for point in banded],
            color=colour,
            alpha=0.2,
            lw=0,
            zorder=2,
        )
    panel.plot(starts, [point.value for point in points], color=colour, lw=1.9, zorder=3)
    for point in points:
        end = point.start >= 1
        look: dict[str, Any] = {"color": NEVER_COLOUR if end else colour, "zorder": 5 if end else 4}
        if point.low is not None and point.high is not None:
            panel.vlines(point.start, point.low, point.high, lw=1, alpha=0.75, **look)
        panel.plot(
            point.start,
            point.value,
            marker="D" if end else line.marker,
            ms=5.5,
            mec="white",
            mew=0.8,
            ls="none",
            **look,
        )


def finish_panel(panel: Axes, arms: Sequence[ArmInfo], drawn: bool) -> None:
    starts = sorted({arm.start for arm in arms})
    panel.set_xticks(starts, [f"{start:.0%}" for start in starts])
    panel.set_xlim(-0.06, 1.06)
    panel.set_xlabel("interventions start after … of pretraining")
    if not drawn:
        panel.text(
            0.5, 0.5, "not evaluated yet", transform=panel.transAxes, ha="center", color="#777777", style="italic"
        )


def name_lines(canvas: Canvas, arms: Sequence[ArmInfo]) -> None:
    """The lines' names in their colours, in a row above the panels, where no line can run into them."""
    looks = [(line.label, line.colour, line.marker) for line in curves_of(arms)]
    if any(arm.interventions == "none" for arm in arms):
        looks.append(("safe data only", NEVER_COLOUR, "D"))
    handles = [
        Line2D([], [], color=colour, marker=marker, ms=6, lw=1.9 if marker != "D" else 0, mec="white", label=label)
        for label, colour, marker in looks
    ]
    if handles:
        canvas.legend(
            handles=handles,
            loc="outside upper center",
            ncols=len(handles),
            frameon=False,
            labelcolor="linecolor",
            prop={"weight": "bold", "size": 9.5},
            columnspacing=2.2,
        )


def arm_label(arm: ArmInfo) -> str:
    if arm.interventions == "none":
        return "safe data only"
    return f"{'data only' if arm.interventions == 'data' else arm.interventions}, from {arm.start:.0%}"


def draw_overrefusal(cells: Sequence[OverrefusalCell], arms: Sequence[ArmInfo]) -> Canvas:
    canvas, panel = pyplot.subplots(figsize=(8.4, 1.35 + 0.36 * len(arms)), layout="constrained")
    of = {cell.arm: cell for cell in cells}
    order = sorted(arms, key=lambda arm: (arm.interventions == "none", arm.interventions, arm.start))
    categories = CATEGORIES if any(cell.shares.get(HELPFULNESS[4]) for cell in cells) else CATEGORIES[:4]
    for y, arm in enumerate(order):
        cell, left = of.get(arm.name), 0.0
        if cell is None or not cell.shares:
            panel.text(0.01, y, NOT_YET, va="center", color="#777777", style="italic")
            continue
        for name, (_, colour, ink) in zip(HELPFULNESS, CATEGORIES):
            share = cell.shares[name]
            panel.barh(y, share, left=left, color=colour, height=0.74, edgecolor="white", linewidth=0.8)
            if share >= 0.045:
                panel.text(left + share / 2, y, f"{share:.0%}", ha="center", va="center", color=ink, fontsize=8.5)
            left += share
    panel.set_yticks(range(len(order)), [arm_label(arm) for arm in order])
    panel.invert_yaxis()
    panel.set_xlim(0, 1)
    panel.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    panel.set_xlabel("share of answers")
    panel.grid(False)
    panel.spines[["left", "bottom"]].set_visible(False)
    panel.tick_params(length=0)
    handles = [pyplot.Rectangle((0, 0), 1, 1, color=colour) for _, colour, _ in categories]
    canvas.legend(
        handles,
        [label for label, _, _ in categories],
        loc="outside upper center",
        ncols=len(categories),
        frameon=False,
        handlelength=1,
        handleheight=1,
        columnspacing=1.4,
        fontsize=9,
    )
    return canvas
