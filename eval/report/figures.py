"""The nine figures of the paper, drawn and captioned from the metrics of a study: PNG for the page, SVG for print.

Each figure knows which metrics it shows, how to caption them and what the paper found. What has not been evaluated yet is
marked as such and never drawn as zero. The same metrics give the same bytes. Colours are Okabe and Ito's, which readers
with any colour vision can tell apart; curves also differ in marker.
"""

from __future__ import annotations

import abc
import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter
from matplotlib.transforms import Bbox

from curricula import durable
from curricula.eval.analysis.metrics import (
    ALL,
    ANSWER_CATEGORIES,
    AttackMetrics,
    OverrefusalMetrics,
    ProbeMetrics,
    StudyMetrics,
)
from curricula.eval.analysis.study_rows import ArmInfo
from curricula.eval.report.wording import CATEGORIES, NOT_EVALUATED, arm_label, prompts_and_judge

STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "xtick.color": "#333333",
    "ytick.color": "#333333",
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "svg.fonttype": "none",
    "svg.hashsalt": "curricula",
}
"""Settings of matplotlib."""

DPI = 130
SAFE_ONLY_COLOUR = "#222222"
PAPER_SETS = {"data": "data interventions only", "full": "full: data and tags"}
"""Names of the paper's two intervention sets."""

CURVE_LOOKS = (
    ("#0072B2", "o"),
    ("#D55E00", "s"),
    ("#009E73", "^"),
    ("#CC79A7", "v"),
    ("#E69F00", "P"),
    ("#56B4E9", "X"),
)
"""Colour and marker of each intervention set."""

CATEGORY_COLOURS = (
    ("#0072B2", "white"),
    ("#8CC5E8", "black"),
    ("#F5C98B", "black"),
    ("#D55E00", "white"),
    ("#6A4C93", "white"),
)
"""Colours of each answer category's bar and of the text in it."""


@dataclass(frozen=True)
class Figure(abc.ABC):
    """One figure of the paper."""

    number: int
    """The figure's number in the paper."""
    name: str
    """The name of its files, and its id on the page."""
    title: str
    paper: str
    """What the paper found in it."""

    @abc.abstractmethod
    def draw(self, metrics: StudyMetrics, arms: Sequence[ArmInfo]) -> Canvas: ...

    @abc.abstractmethod
    def caption(self, metrics: StudyMetrics) -> str:
        """What bands and whiskers are, how many prompts there were and which judge."""


@dataclass(frozen=True)
class AttackFigure(Figure):
    """Attack success over the start of interventions, under top-k and under SafeBeam."""

    stage: str
    decoders: tuple[str, str] = ("topk", "safebeam")

    def draw(self, metrics: StudyMetrics, arms: Sequence[ArmInfo]) -> Canvas:
        canvas, panels = two_panels("Top-k sampling", "SafeBeam")
        drawn = [
            draw_attacks(panel, metrics.attacks_by(self.stage, decoder), arms)
            for panel, decoder in zip(panels, self.decoders)
        ]
        extents = finish_panels(canvas, panels, drawn, arms)
        top = min(1.0, max([0.05, *(extent.y1 for extent in extents)])) if extents else 1.0
        panels[0].set(ylabel="attack success rate", ylim=(0, top * 1.06))
        panels[0].yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0 if top > 0.1 else None))
        return canvas

    def caption(self, metrics: StudyMetrics) -> str:
        shown = metrics.attacks_by(self.stage, *self.decoders)
        sentences = [
            "Top-k band: standard deviation over sampling seeds, not training seeds, as in the paper.",
            "Whiskers in both panels: 95% interval over prompts.",
        ]
        if any(entry.incoherent for entry in shown):
            sentences.append("Hollow points: incoherent models, which hardly ever help with benign requests.")
        if any(entry.benchmark == ALL for entry in shown):
            sentences.append("Bold curves: mean of the benchmarks; faint curves: single benchmarks.")
            shown = [entry for entry in shown if entry.benchmark == ALL]
        return " ".join(sentences + ([prompts_and_judge(shown)] if shown else []))


@dataclass(frozen=True)
class OverrefusalFigure(Figure):
    """The answers of instruction-tuned models to benign requests, by category, under one decoder."""

    decoder: str
    stage: str = "instruct"

    def draw(self, metrics: StudyMetrics, arms: Sequence[ArmInfo]) -> Canvas:
        return draw_overrefusal(metrics.overrefusals_by(self.stage, self.decoder), arms)

    def caption(self, metrics: StudyMetrics) -> str:
        shown = metrics.overrefusals_by(self.stage, self.decoder)
        sentences = ["Shares of parsed answers. Partial refusals, full refusals and shortcircuits are over-refusal."]
        if any(entry.judges.startswith("refusal-phrases") for entry in shown):
            sentences.append(
                "The phrase judge cannot tell helpful from unhelpful compliance, nor partial from full refusal."
            )
        return " ".join(sentences + ([prompts_and_judge(shown)] if shown else []))


@dataclass(frozen=True)
class ProbeFigure(Figure):
    """AUC of linear probes on one layer over the start of interventions, for base and instruction-tuned models."""

    layer: str

    def draw(self, metrics: StudyMetrics, arms: Sequence[ArmInfo]) -> Canvas:
        canvas, panels = two_panels("Base models", "Instruction-tuned models")
        shown = self.shown(metrics)
        by_stage: dict[str, list[ProbeMetrics]] = defaultdict(list)
        for entry in shown:
            by_stage[entry.stage].append(entry)
        drawn = [draw_probes(panel, by_stage[stage], arms) for panel, stage in zip(panels, ("base", "instruct"))]
        extents = finish_panels(canvas, panels, drawn, arms)
        panels[0].set(ylabel="test AUC", ylim=(min([0.5, *(extent.y0 for extent in extents)]) - 0.02, 1.02))
        return canvas

    def caption(self, metrics: StudyMetrics) -> str:
        sentences = ["Curve: mean test AUC. Band: standard deviation over training subsets, not over pretraining runs."]
        for entry in self.shown(metrics)[:1]:
            sentences.append(f"{entry.n_train:,} training and {entry.n_test:,} test texts, {entry.seeds} seeds.")
        return " ".join(sentences)

    def shown(self, metrics: StudyMetrics) -> list[ProbeMetrics]:
        return [entry for entry in metrics.probes if entry.layer == self.layer]


FIGURES: tuple[Figure, ...] = (
    AttackFigure(
        1,
        "fig1-base-asr",
        "Attack success on base models",
        "Interventions from 20% or 60% gave the safest base models under top-k, none at all the least safe;"
        " with SafeBeam, the start of training was best.",
        stage="base",
    ),
    AttackFigure(
        2,
        "fig2-benign-asr",
        "Attack success after benign finetuning on GSM8K",
        "The clearest effect of all: early interventions (0% or 20%) survived the finetuning best under top-k;"
        " with SafeBeam, the start of training was best.",
        stage="benign",
    ),
    AttackFigure(
        3,
        "fig3-instruct-asr",
        "Attack success on instruction-tuned models",
        "The middle of training (20% or 60%) was safest under top-k, the start of training with SafeBeam.",
        stage="instruct",
    ),
    OverrefusalFigure(
        4,
        "fig4-overrefusal-topk",
        "Answers to benign requests under top-k, instruction-tuned models",
        "Models with earlier interventions complied slightly more often: they paid no price in over-refusal.",
        decoder="topk",
    ),
    OverrefusalFigure(
        5,
        "fig5-overrefusal-safebeam",
        "Answers to benign requests under SafeBeam, instruction-tuned models",
        "Models with earlier interventions over-refused slightly more, but their compliant answers were more helpful.",
        decoder="safebeam",
    ),
    AttackFigure(
        6,
        "fig6-gcg",
        "Attack success of adversarial suffixes (GCG), instruction-tuned models",
        "With SafeBeam, starting at 20% or 60% was much more robust than at 0% or never; under top-k the start"
        " made no noticeable difference.",
        stage="instruct",
        decoders=("gcg+topk", "gcg+safebeam"),
    ),
    ProbeFigure(
        7,
        "fig7-probe-last",
        "Probe AUC, safe against unsafe text, last layer",
        "Earlier interventions separated safe from unsafe text better, above all with tags from the start.",
        layer="last",
    ),
    ProbeFigure(
        8,
        "fig8-probe-first",
        "Probe AUC, safe against unsafe text, first layer",
        "Similar trends, with less separation than in the last layer.",
        layer="first",
    ),
    ProbeFigure(
        9,
        "fig9-probe-middle",
        "Probe AUC, safe against unsafe text, middle layer",
        "Similar trends, with less separation than in the last layer.",
        layer="middle",
    ),
)


def draw_figures(metrics: StudyMetrics, arms: Sequence[ArmInfo], folder: Path) -> list[Path]:
    """Write all nine figures to `folder` as PNG and SVG; returns the PNG paths in order."""
    paths = []
    for figure in FIGURES:
        with matplotlib.rc_context(STYLE):
            canvas = figure.draw(metrics, arms)
            canvas.draw_without_rendering()
            canvas.set_layout_engine("none")  # the layout is done: do not repeat it for each format
            for suffix, metadata in ((".svg", {"Date": None, "Creator": None}), (".png", {"Software": None})):
                with durable.open_atomically(folder / (figure.name + suffix)) as file:
                    canvas.savefig(file, format=suffix[1:], dpi=DPI, metadata=metadata)
            pyplot.close(canvas)
        paths.append(folder / f"{figure.name}.png")
    return paths


# Curves over the start of interventions -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Curve:
    """The arms of one intervention set by start, ending in the safe-only arm, and their look."""

    label: str
    colour: str
    marker: str
    arms: list[ArmInfo]


@dataclass(frozen=True)
class Point:
    """One arm on a curve. All in 0..1."""

    start: float
    value: float
    std: float | None
    """Half the height of the band."""
    low: float | None = None
    """Lower end of the whisker, the 95% interval."""
    high: float | None = None
    hollow: bool = False
    """Whether the model is incoherent."""


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


def two_panels(*titles: str) -> tuple[Canvas, Sequence[Axes]]:
    canvas, panels = pyplot.subplots(1, 2, figsize=(8.4, 3.7), sharey=True, layout="constrained")
    for panel, title in zip(panels, titles):
        panel.set_title(title)
    return canvas, panels


def finish_panels(canvas: Canvas, panels: Sequence[Axes], drawn: Sequence[bool], arms: Sequence[ArmInfo]) -> list[Bbox]:
    """Add axes, legend and notes of what is missing; returns the extents of the panels with curves."""
    starts = sorted({arm.start for arm in arms})
    for panel, has_curves in zip(panels, drawn):
        panel.set_xticks(starts, [f"{start:.0%}" for start in starts])
        panel.set_xlim(-0.06, 1.06)
        panel.set_xlabel("interventions start after … of pretraining")
        if not has_curves:
            look: Any = {"ha": "center", "color": "#777777", "style": "italic"}
            panel.text(0.5, 0.5, NOT_EVALUATED, transform=panel.transAxes, **look)
    add_legend(canvas, arms)
    return [panel.dataLim for panel, has_curves in zip(panels, drawn) if has_curves]


def add_legend(canvas: Canvas, arms: Sequence[ArmInfo]) -> None:
    """Name the curves in their colours, in a row above the panels, where no curve can cross the names."""
    looks = [(curve.label, curve.colour, curve.marker) for curve in curves_of(arms)]
    if any(arm.interventions == "none" for arm in arms):
        looks.append(("safe data only", SAFE_ONLY_COLOUR, "D"))
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


def draw_attacks(panel: Axes, shown: Sequence[AttackMetrics], arms: Sequence[ArmInfo]) -> bool:
    """Draw the mean of the benchmarks with each benchmark faint behind it. False: nothing to draw."""
    benchmarks = sorted({entry.benchmark for entry in shown} - {ALL})
    behind = benchmarks if len(benchmarks) > 1 else []
    main = ALL if behind or not benchmarks else benchmarks[0]
    by_benchmark: dict[str, dict[str, AttackMetrics]] = {
        name: {entry.arm: entry for entry in shown if entry.benchmark == name} for name in (main, *behind)
    }
    drawn = False
    for curve in curves_of(arms):
        for name in behind:
            points = attack_points(curve, by_benchmark[name])
            starts, values = [point.start for point in points], [point.value for point in points]
            panel.plot(starts, values, color=curve.colour, lw=0.9, alpha=0.3, zorder=1)
        points = attack_points(curve, by_benchmark[main])
        draw_curve(panel, curve, points)
        drawn |= bool(points)
    return drawn


def attack_points(curve: Curve, by_arm: Mapping[str, AttackMetrics]) -> list[Point]:
    return [
        Point(arm.start, entry.rate, entry.std, entry.low, entry.high, entry.incoherent)
        for arm in curve.arms
        if (entry := by_arm.get(arm.name)) is not None and entry.rate is not None
    ]


def draw_probes(panel: Axes, shown: Sequence[ProbeMetrics], arms: Sequence[ArmInfo]) -> bool:
    """Draw probe AUC and, dashed, what text length alone achieves. False: nothing to draw."""
    by_arm = {entry.arm: entry for entry in shown}
    drawn = False
    for curve in curves_of(arms):
        entries = [(arm, by_arm[arm.name]) for arm in curve.arms if arm.name in by_arm]
        draw_curve(panel, curve, [Point(arm.start, entry.auc, entry.std) for arm, entry in entries])
        drawn |= bool(entries)
    lengths = [entry.length_auc for entry in shown if entry.length_auc is not None]
    if lengths:
        level = sum(lengths) / len(lengths)
        panel.axhline(level, color="#777777", lw=1, ls=(0, (4, 3)), zorder=1)
        look: Any = {"color": "#666666", "fontsize": 8, "textcoords": "offset points"}
        panel.annotate("text length alone", (0.0, level), (0, 3), **look)
    return drawn


def draw_curve(panel: Axes, curve: Curve, points: Sequence[Point]) -> None:
    if not points:
        return
    banded = [(point.start, point.value, point.std) for point in points if point.std is not None]
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
    starts, values = [point.start for point in points], [point.value for point in points]
    panel.plot(starts, values, color=curve.colour, lw=1.9, zorder=3)
    for point in points:
        safe_only = point.start >= 1
        look: dict[str, Any] = (
            {"color": SAFE_ONLY_COLOUR, "zorder": 5} if safe_only else {"color": curve.colour, "zorder": 4}
        )
        if point.low is not None and point.high is not None:
            panel.vlines(point.start, point.low, point.high, lw=1, alpha=0.75, **look)
        marker = "D" if safe_only else curve.marker
        face: Any = {"mfc": "white", "mec": look["color"], "mew": 1.4} if point.hollow else {"mec": "white", "mew": 0.8}
        panel.plot(point.start, point.value, marker=marker, ms=5.5, ls="none", **face, **look)


# Stacked bars of answers ----------------------------------------------------------------------------------------------


def draw_overrefusal(shown: Sequence[OverrefusalMetrics], arms: Sequence[ArmInfo]) -> Canvas:
    """One bar per arm, divided into the categories of its answers."""
    canvas, panel = pyplot.subplots(figsize=(8.4, 1.35 + 0.36 * len(arms)), layout="constrained")
    by_arm = {entry.arm: entry for entry in shown}
    order = sorted(arms, key=lambda arm: (arm.interventions == "none", arm.interventions, arm.start))
    for y, arm in enumerate(order):
        entry, left = by_arm.get(arm.name), 0.0
        if entry is None or not entry.shares:
            panel.text(0.01, y, NOT_EVALUATED, va="center", color="#777777", style="italic")
            continue
        for name, (colour, ink) in zip(ANSWER_CATEGORIES, CATEGORY_COLOURS):
            share = entry.shares[name]
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
    has_shortcircuits = any(entry.shares.get(ANSWER_CATEGORIES[4]) for entry in shown)
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
