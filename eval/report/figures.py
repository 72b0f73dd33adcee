"""The nine figures of the paper, drawn and captioned from the metrics of a study: PNG for the page, SVG for print.

Each figure knows which metrics it shows, how to caption them and what the paper found. With several training seeds it shows
each arm's estimate over its runs (`eval/report/points.py`). What has not been evaluated yet is marked as such and never drawn
as zero. The same metrics give the same bytes.
"""

from __future__ import annotations

import abc
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import PercentFormatter

from curricula import durable
from curricula.eval.analysis.metrics import ALL, AttackMetrics, OverrefusalMetrics, ProbeMetrics
from curricula.eval.report.bars import draw_overrefusal
from curricula.eval.report.curves import draw_attacks, draw_probes, finish_panels, two_panels
from curricula.eval.report.points import Shown
from curricula.eval.report.wording import prompts_and_judge

Entry = AttackMetrics | OverrefusalMetrics | ProbeMetrics

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
    def draw(self, shown: Shown) -> Canvas: ...

    @abc.abstractmethod
    def caption(self, shown: Shown) -> str:
        """What bands and whiskers are, how many seeds and prompts there were and which judge."""


@dataclass(frozen=True)
class AttackFigure(Figure):
    """Attack success over the start of interventions, under top-k and under SafeBeam."""

    stage: str
    decoders: tuple[str, str] = ("topk", "safebeam")

    def draw(self, shown: Shown) -> Canvas:
        canvas, panels = two_panels("Top-k sampling", "SafeBeam")
        drawn = [draw_attacks(panel, shown, self.stage, decoder) for panel, decoder in zip(panels, self.decoders)]
        extents = finish_panels(canvas, panels, drawn, shown.arms)
        top = min(1.0, max([0.05, *(extent.y1 for extent in extents)])) if extents else 1.0
        panels[0].set(ylabel="attack success rate", ylim=(0, top * 1.06))
        panels[0].yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0 if top > 0.1 else None))
        return canvas

    def caption(self, shown: Shown) -> str:
        entries = shown.metrics.attacks_by(self.stage, *self.decoders)
        sentences = [
            "Top-k band: standard deviation over sampling seeds, not training seeds, as in the paper.",
            "Whiskers in both panels: 95% interval over prompts.",
        ]
        if shown.several:
            sentences = over_seeds("Points: mean", "over seeds and prompts", entries, "intervals over prompts alone")
        if any(entry.incoherent for entry in entries):
            hollow = "Hollow marks: incoherent runs" if shown.several else "Hollow points: incoherent models"
            sentences.append(f"{hollow}, which hardly ever help with benign requests.")
        if any(entry.benchmark == ALL for entry in entries):
            sentences.append("Bold curves: mean of the benchmarks; faint curves: single benchmarks.")
            entries = [entry for entry in entries if entry.benchmark == ALL]
        return " ".join(sentences + ([prompts_and_judge(entries)] if entries else []))


@dataclass(frozen=True)
class OverrefusalFigure(Figure):
    """The answers of instruction-tuned models to benign requests, by category, under one decoder."""

    decoder: str
    stage: str = "instruct"

    def draw(self, shown: Shown) -> Canvas:
        return draw_overrefusal(shown, self.stage, self.decoder)

    def caption(self, shown: Shown) -> str:
        entries = shown.overrefusals(self.stage, self.decoder)
        sentences = ["Shares of parsed answers. Partial refusals, full refusals and shortcircuits are over-refusal."]
        if shown.several:
            sentences[0] = "Bars: shares of parsed answers, mean of the runs." + sentences[0].split(".", 1)[1]
            points = "Black diamonds: all that is not over-refusal, mean"
            sentences += over_seeds(points, "over seeds and prompts", entries, "intervals over prompts alone")
        if any(entry.judges.startswith("refusal-phrases") for entry in entries):
            sentences.append(
                "The phrase judge cannot tell helpful from unhelpful compliance, nor partial from full refusal."
            )
        return " ".join(sentences + ([prompts_and_judge(entries)] if entries else []))


@dataclass(frozen=True)
class ProbeFigure(Figure):
    """AUC of linear probes on one layer over the start of interventions, for base and instruction-tuned models."""

    layer: str

    def draw(self, shown: Shown) -> Canvas:
        canvas, panels = two_panels("Base models", "Instruction-tuned models")
        stages = ("base", "instruct")
        drawn = [draw_probes(panel, shown, stage, self.layer) for panel, stage in zip(panels, stages)]
        extents = finish_panels(canvas, panels, drawn, shown.arms)
        panels[0].set(ylabel="test AUC", ylim=(min([0.5, *(extent.y0 for extent in extents)]) - 0.02, 1.02))
        return canvas

    def caption(self, shown: Shown) -> str:
        entries = [entry for entry in shown.metrics.probes if entry.layer == self.layer]
        sentences = ["Curve: mean test AUC. Band: standard deviation over training subsets, not over pretraining runs."]
        subsets = "seeds"
        if shown.several:
            sentences = over_seeds("Points: mean test AUC", "over seeds and training subsets", entries, "no intervals")
            subsets = "training subsets per model"
        for entry in entries[:1]:
            sentences.append(f"{entry.n_train:,} training and {entry.n_test:,} test texts, {entry.seeds} {subsets}.")
        return " ".join(sentences)


def over_seeds(points: str, interval: str, entries: Sequence[Entry], alone: str) -> list[str]:
    """What the figure of a study with several training seeds shows, and over how many; `alone`: what one run has instead."""
    runs = Counter(arm for arm, _ in {(entry.arm, entry.seed) for entry in entries})
    counts = sorted(set(runs.values()))
    if not counts:
        return []
    seeds = f"{counts[-1]} training seeds" if counts[-1] > 1 else "1 training seed"
    if len(counts) > 1:
        seeds = f"{counts[0]} to {seeds}"
    sentences = [f"{points} over {seeds}. Whiskers: 95% interval {interval}. Small marks: single runs."]
    if counts[-1] == 1:
        return [f"A single run of each arm so far, with {alone}: differences may be the seed's."]
    if counts[0] == 1:
        sentences.append(f"Arms with a single run so far have {alone}.")
    return sentences


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


def draw_figures(shown: Shown, folder: Path) -> list[Path]:
    """Write all nine figures to `folder` as PNG and SVG; returns the PNG paths in order."""
    return [save_figure(figure.name, partial(figure.draw, shown), folder) for figure in FIGURES]


def save_figure(name: str, draw: Callable[[], Canvas], folder: Path) -> Path:
    """Draw a figure in the report's style and write it as PNG and SVG; returns the PNG's path."""
    with matplotlib.rc_context(STYLE):
        canvas = draw()
        canvas.draw_without_rendering()
        canvas.set_layout_engine("none")  # the layout is done: do not repeat it for each format
        for suffix, metadata in ((".svg", {"Date": None, "Creator": None}), (".png", {"Software": None})):
            with durable.open_atomically(folder / (name + suffix)) as file:
                canvas.savefig(file, format=suffix[1:], dpi=DPI, metadata=metadata)
        pyplot.close(canvas)
    return folder / f"{name}.png"
