"""Draws the answers to benign requests as stacked bars: one bar per arm, divided into the categories of its answers."""

from __future__ import annotations

from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import PercentFormatter

from curricula.eval.analysis.metrics import ANSWER_CATEGORIES
from curricula.eval.report.points import COMPLIED, Point, Shown
from curricula.eval.report.wording import CATEGORIES, NOT_EVALUATED, arm_label
from curricula.terminal import fixed

CATEGORY_COLOURS = (
    ("#0072B2", "white"),
    ("#8CC5E8", "black"),
    ("#F5C98B", "black"),
    ("#D55E00", "white"),
    ("#6A4C93", "white"),
)
"""Colours of each answer category's bar and of the text in it."""


def draw_overrefusal(shown: Shown, stage: str, decoder: str) -> Canvas:
    """With several training seeds, a whisker shows how sure the share is that is not over-refusal."""
    arms = shown.arms
    canvas, panel = pyplot.subplots(figsize=(8.4, 1.35 + 0.36 * len(arms)), layout="constrained")
    found = {(point.arm, point.measure): point for point in shown.at(stage, decoder, *ANSWER_CATEGORIES, COMPLIED)}
    order = sorted(arms, key=lambda arm: (arm.interventions == "none", arm.interventions, arm.start))
    for y, arm in enumerate(order):
        left = 0.0
        if (arm.name, ANSWER_CATEGORIES[0]) not in found:
            panel.text(0.01, y, NOT_EVALUATED, va="center", color="#777777", style="italic")
            continue
        for name, (colour, ink) in zip(ANSWER_CATEGORIES, CATEGORY_COLOURS):
            share = found[arm.name, name].value
            panel.barh(y, share, left=left, color=colour, height=0.74, edgecolor="white", linewidth=0.8)
            if share >= 0.045:
                panel.text(
                    left + share / 2, y, f"{fixed(share, 0, times=100)}%", ha="center", va="center", color=ink, fontsize=8.5
                )
            left += share
        if complied := found.get((arm.name, COMPLIED)):
            draw_whisker(panel, y, complied)
    panel.set_yticks(range(len(order)), [arm_label(arm) for arm in order])
    panel.invert_yaxis()
    panel.set_xlim(0, 1)
    panel.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    panel.set_xlabel("share of answers")
    panel.grid(False)
    panel.spines[["left", "bottom"]].set_visible(False)
    panel.tick_params(length=0)
    has_shortcircuits = any(entry.shares.get(ANSWER_CATEGORIES[4]) for entry in shown.metrics.overrefusals_by(stage, decoder))
    labels = CATEGORIES if has_shortcircuits else CATEGORIES[:4]
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


def draw_whisker(panel: Axes, y: float, complied: Point) -> None:
    """The interval of the share that is not over-refusal, across the bar's lower edge, with the single runs."""
    edge = y + 0.3
    if complied.low is not None and complied.high is not None:
        panel.hlines(edge, complied.low, complied.high, color="black", lw=1.2, ls=":" if complied.one_run else "-")
    panel.plot([value for value, _ in complied.runs], [edge] * len(complied.runs), "o", ms=3, mfc="white", mec="black")
    panel.plot(complied.value, edge, "D", ms=4.5, mfc="black", mec="white")
