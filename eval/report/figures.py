"""The figures: the paper's nine and those of the study itself, drawn and captioned, as PNG, SVG and PDF.

Each figure knows which metrics it shows, how to caption them and what the paper found. With several training seeds it shows
each arm's estimate over its runs (`eval/report/points.py`). What has not been evaluated yet is marked as such and never drawn
as zero; what the study does not measure is left out. The same metrics give the same bytes.
"""

from __future__ import annotations

import abc
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import PercentFormatter

from curricula import durable
from curricula.eval.analysis.along import CurvePoint, mean_over_seeds
from curricula.eval.analysis.capability import pareto_front
from curricula.eval.analysis.metrics import ALL, without_average
from curricula.eval.analysis.seeds import OverSeeds
from curricula.eval.analysis.statistics import grouped
from curricula.eval.analysis.study_rows import ArmInfo
from curricula.eval.judges.caveats import COARSE
from curricula.eval.report.drawing import SAFE_ONLY_COLOUR, add_legend, curves_of, draw_answers, draw_starts
from curricula.eval.report.panels import INK, Panel, Series, draw_panels
from curricula.eval.report.points import Place, Point, Shown
from curricula.eval.report.training import Training, curriculum_panels, loss_panels, tree_panels, validation_panels
from curricula.eval.report.wording import (
    DECODERS,
    STAGES,
    arm_label,
    left_out,
    over_seeds,
    prompts_and_judge,
    span,
    stage_title,
    start_label,
)
from curricula.eval.tasks import judged_tasks
from curricula.terminal import plural

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

ALONG = ("attack success", "refusals", "over-refusal", "probe AUC", "validation loss")
"""What is measured along a training, in the order of the panels; the first three are rates."""
OTHER_LAYERS = ("first", "middle")
"""Probed layers whose curves along a training are in the table only."""
MOST_PANELS = 6
"""Panels of a figure of curves along a training, at most; the table has all curves."""
DPI = 300
# At compression level 3, writing a PNG takes half the time of level 6, and the file is a third larger.
FORMATS: Any = {
    ".svg": {"metadata": {"Date": None, "Creator": None}},
    ".png": {"metadata": {"Software": None}, "pil_kwargs": {"compress_level": 3}},
    ".pdf": {"metadata": {"CreationDate": None, "Creator": None, "Producer": None}},
}
"""Formats of each figure's files. They store no dates and versions, so that the same figure gives the same bytes."""


@dataclass(frozen=True)
class Figure(abc.ABC):
    """One figure. To add one, subclass this and enter it in `FIGURES`."""

    number: int
    """Number of the figure in the paper; 0 if the paper does not have it."""
    name: str
    """Name of its files, and its id on the page."""
    title: str
    paper: str
    """What the paper found; "" if the paper does not have the figure."""
    section: ClassVar[str] = "figures"
    """Its section of the page: "figures", "training", "along" or "capability"."""

    @abc.abstractmethod
    def caption(self, shown: Shown) -> str:
        """Explain bands and whiskers, and name the judge and the numbers of seeds and prompts."""

    def draw(self, shown: Shown) -> Canvas:
        return draw_panels(self.panels(shown))

    def panels(self, shown: Shown) -> list[Panel]:
        """The panels that the page redraws as they are; empty if it redraws points (`places`) or shows matplotlib's picture."""
        return []

    def places(self, shown: Shown) -> list[Place]:
        """A place for each panel of points, which the page redraws for the chosen judge, benchmark and decoder."""
        return []

    def has(self, shown: Shown) -> bool:
        """Whether the study measures, or will measure, what the figure shows; other figures are left out."""
        return bool(self.places(shown) or self.panels(shown))

    @property
    def heading(self) -> str:
        return f"Figure {self.number}. {self.title}." if self.number else f"{self.title}."


@dataclass(frozen=True)
class AttackFigure(Figure):
    """Attack success over the start of interventions, under top-k and under SafeBeam."""

    stage: str
    decoders: tuple[str, str] = ("topk", "safebeam")

    def places(self, shown: Shown) -> list[Place]:
        places = []
        for title, name in zip(("Top-k sampling", "SafeBeam"), self.decoders):
            tasks = (task.name for task in judged_tasks("attack") if name in task.labels)
            if shown.metrics.attacks_by(self.stage, name) or shown.plans(self.stage, tasks):
                places.append(Place(title, "attack success", self.stage, name))
        return places

    def draw(self, shown: Shown) -> Canvas:
        canvas, extents = draw_starts(shown, self.places(shown))
        top = min(1.0, max([0.05, *(extent.y1 for extent in extents)])) if extents else 1.0
        canvas.axes[0].set(ylabel="attack success rate", ylim=(0, top * 1.06))
        canvas.axes[0].yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0 if top > 0.1 else None))
        return canvas

    def caption(self, shown: Shown) -> str:
        entries = shown.metrics.attacks_by(self.stage, *self.decoders)
        means = [point for place in self.places(shown) for point in shown.means(place.stage, place.place, place.measure)]
        sentences = []
        if shown.several:
            sentences = over_seeds("Points: mean", "over seeds and prompts", entries, "intervals over prompts alone")
        elif means:
            sentences.append("Whiskers: 95% interval over prompts.")
        if any(point.std is not None for point in means):
            sentences.append("Bands: standard deviation over sampling seeds, not training seeds, as in the paper.")
        if any(point.hollow for point in means):
            sentences.append("Hollow: incoherent runs, and means that include one; the verdicts leave such runs out.")
        if any(point.corrected is not None for point in means):
            sentences.append(
                f"Crosses: the same {'means' if shown.several else 'rates'} after correction for the judge’s known errors, "
                "without an interval (the whisker belongs to the point). Rates below the judge’s false-alarm rate are shown as "
                "0. An arm has no cross if one of its runs cannot be corrected, for example because its rate is too far below "
                "the false-alarm rate to be chance."
            )
        if any(entry.benchmark == ALL for entry in entries):
            sentences.append("Bold curves: mean of the benchmarks; faint curves: single benchmarks.")
            entries = [entry for entry in entries if entry.benchmark == ALL]
            for decoder in self.decoders:
                own = [entry for entry in entries if entry.decoder == decoder]
                where = f"under {DECODERS[decoder]}"
                sentences += left_out(shown.arms, without_average(own), "verdicts on a benchmark", where)
        return " ".join(sentences + ([prompts_and_judge(entries)] if entries else []))


@dataclass(frozen=True)
class OverrefusalFigure(Figure):
    """The answers of instruction-tuned models to benign requests, by category, under one decoder."""

    decoder: str
    stage: ClassVar[str] = "instruct"

    def places(self, shown: Shown) -> list[Place]:
        measured = shown.metrics.overrefusals_by(self.stage, self.decoder)
        if measured or shown.plans(self.stage, [f"overrefusal-{self.decoder}"]):
            return [Place("", "answers", self.stage, self.decoder)]
        return []

    def draw(self, shown: Shown) -> Canvas:
        return draw_answers(shown, self.stage, self.decoder)

    def caption(self, shown: Shown) -> str:
        entries = shown.metrics.overrefusals_by(self.stage, self.decoder)
        shares = "Bars: shares of parsed answers, mean of the runs." if shown.several else "Shares of parsed answers."
        sentences = [f"{shares} Partial refusals, full refusals and short-circuits are over-refusal."]
        if shown.several:
            points = "Black diamonds: all that is not over-refusal, mean"
            sentences += over_seeds(points, "over seeds and prompts", entries, "intervals over prompts alone")
        sentences += left_out(shown.arms, without_average(entries), "verdicts on a set of requests", "here")
        if not all(entry.tells_helpful for entry in entries):
            sentences.append(COARSE)
        return " ".join(sentences + ([prompts_and_judge(entries)] if entries else []))


@dataclass(frozen=True)
class ProbeFigure(Figure):
    """AUC of linear probes on one layer over the start of interventions, for base and instruction-tuned models."""

    layer: str

    def places(self, shown: Shown) -> list[Place]:
        titles = (("Base models", "base"), ("Instruction-tuned models", "instruct"))
        probed = {(entry.stage, entry.layer) for entry in shown.metrics.probes}
        if probed and self.layer not in {layer for _, layer in probed}:
            return []
        stages = {stage for stage, _ in probed}
        return [
            Place(title, "probe AUC", stage, self.layer)
            for title, stage in titles
            if stage in stages or shown.plans(stage, ["probes"])
        ]

    def draw(self, shown: Shown) -> Canvas:
        canvas, extents = draw_starts(shown, self.places(shown))
        canvas.axes[0].set(ylabel="test AUC", ylim=(min([0.5, *(extent.y0 for extent in extents)]) - 0.02, 1.02))
        return canvas

    def caption(self, shown: Shown) -> str:
        entries = [entry for entry in shown.metrics.probes if entry.layer == self.layer]
        sentences = ["Curve: mean test AUC. Band: standard deviation over training subsets, not over pretraining runs."]
        subsets = "seeds"
        if shown.several:
            over = "over seeds, test texts and training subsets"
            sentences = over_seeds("Points: mean test AUC", over, entries, "no intervals")
            subsets = "training subsets per model"
        for entry in entries[:1]:
            sentences.append("Dashed: what text length alone achieves.")
            sentences.append(f"{entry.n_train:,} training and {entry.n_test:,} test texts, {entry.seeds} {subsets}.")
        return " ".join(sentences)


@dataclass(frozen=True)
class LayersFigure(Figure):
    """Every arm's AUC by layer, shown if more than the paper's three layers are probed."""

    def panels(self, shown: Shown) -> list[Panel]:
        colours = {arm.name: colour for colour, curve in enumerate(curves_of(shown.arms)) for arm in curve.arms}
        colours |= {arm.name: INK for arm in shown.arms if arm.interventions == "none"}
        panels = []
        for stage, probes in grouped(shown.metrics.probes, lambda probe: probe.stage).items():
            lines = []
            for arm in shown.arms:
                by_layer = grouped((one for one in probes if one.arm == arm.name), lambda probe: probe.layer_index)
                layers, colour = sorted(by_layer), colours[arm.name]
                means = [fmean(probe.auc for probe in by_layer[layer]) for layer in layers]
                strength = 1.0 if colour == INK else 1 - 0.6 * min(arm.start, 1.0)
                lines.append(Series(arm_label(arm), "line", layers, means, colour=colour, strength=strength))
            if max(len(line.x) for line in lines) > 3:
                panels.append(Panel(stage_title(stage).capitalize(), "layer", "test AUC", lines, x_format=""))
        drawn = [auc for panel in panels for line in panel.series for auc in line.y]
        low, high = min(drawn, default=0.0), max(drawn, default=1.0)
        margin = 0.05 * (high - low) or 0.01
        return [replace(panel, y_range=(low - margin, high + margin)) for panel in panels]

    def caption(self, shown: Shown) -> str:
        seeds = ", mean over training seeds" if shown.several else ""
        return (
            f"Test AUC of the probes from layer to layer{seeds}. Colours are those of the intervention sets; the earlier an "
            "arm’s interventions start, the stronger its line."
        )


@dataclass(frozen=True)
class AlongFigure(Figure):
    """What was measured along the training of one stage: a panel for each measure and a curve for each arm."""

    stage: str
    axis: str
    """"tokens" or "steps"."""
    section = "along"

    def panels(self, shown: Shown) -> list[Panel]:
        points = self._points(shown)
        arms = list(dict.fromkeys(point.arm for point in points))
        panels = []
        for measure, name in self._places(points)[:MOST_PANELS]:
            series: list[Series] = []
            for colour, arm in enumerate(arms):
                own = [point for point in points if (point.measure, point.series, point.arm) == (measure, name, arm)]
                series += self._curves(own, colour)
            title = f"{measure}, {f'{name} layer' if measure == 'probe AUC' else DECODERS.get(name, name)}"
            panels.append(Panel(title, self.axis, "", series, y_format="percent" if measure in ALONG[:3] else ""))
        return panels

    @staticmethod
    def _places(points: Sequence[CurvePoint]) -> list[tuple[str, str]]:
        places = dict.fromkeys((one.measure, one.series) for one in points if one.series not in OTHER_LAYERS)
        return sorted(places, key=lambda place: ALONG.index(place[0]))

    def _points(self, shown: Shown) -> list[CurvePoint]:
        """The points of this stage, in order of steps."""
        stage = self.stage
        return sorted((point for point in shown.curves if stage == point.stage), key=lambda point: point.step)

    def _curves(self, points: Sequence[CurvePoint], colour: int) -> Iterator[Series]:
        """The mean over an arm's runs, with a faint curve for each of several runs, or with the intervals of a single run."""
        runs = [[point for point in points if point.seed == seed] for seed in sorted({point.seed for point in points})]
        for run in runs if len(runs) > 1 else []:
            yield Series("", "line", self._x(run), [point.value for point in run], colour=colour, faint=True)
        means = mean_over_seeds(points)
        x, y = self._x(means), [mean.value for mean in means]
        yield Series(means[0].arm if means else "", "line", x, y, colour=colour)
        yield Series("", "dots", x, y, colour=colour)
        intervals = [(mean, mean.low, mean.high) for mean in means if mean.low is not None and mean.high is not None]
        low, high = [low for _, low, _ in intervals], [high for _, _, high in intervals]
        yield Series("", "whisker", self._x([mean for mean, _, _ in intervals]), (), low, high, colour=colour, faint=True)

    def _x(self, points: Sequence[CurvePoint]) -> list[float]:
        return [point.tokens if self.axis == "tokens" else point.step for point in points]

    def caption(self, shown: Shown) -> str:
        points = self._points(shown)
        seeds = len({point.seed for point in points})
        how = (
            "mean over the runs, at points that all runs have; faint: single runs"
            if seeds > 1
            else "bars: 95% interval over prompts"
        )
        decay = " Under warmup-stable-decay, undecayed checkpoints are compared with a decayed end." * (self.axis == "tokens")
        left_out = len(self._places(points)) - MOST_PANELS
        more = f" The numbers of {plural(left_out, 'more panel')} are in the table only." if left_out > 0 else ""
        judges_of = ({point.judges for point in points if point.judges and point.measure == measure} for measure in ALONG)
        for judges in dict.fromkeys(", ".join(sorted(names)) for names in judges_of if len(names) > 1):
            more += f" Not all points were judged by one version: {judges}."
        return (
            f"Each point is a checkpoint, judged on the same prompts as all others of its curve.{decay} "
            f"{plural(seeds, 'training seed')}; {how}. Numbers: tables/along.csv.{more}"
        )


@dataclass(frozen=True)
class TrainingFigure(Figure):
    """What the training runs recorded, or what the study plans for them."""

    text: str
    """The caption."""
    training_panels: Callable[[Training], list[Panel]]
    section = "training"

    def panels(self, shown: Shown) -> list[Panel]:
        return self.training_panels(shown.training)

    def caption(self, shown: Shown) -> str:
        return self.text


@dataclass(frozen=True)
class DifferenceFigure(Figure):
    """Each arm's difference from the one that starts last: over seeds, and within each seed."""

    def panels(self, shown: Shown) -> list[Panel]:
        labels = {arm.name: arm_label(arm) for arm in shown.arms}
        panels = []
        gaps = grouped(shown.differences, lambda gap: (gap.stage, gap.decoder, gap.measure))
        for (stage, decoder, measure), own in gaps.items():
            runs = [(value, y + 0.25) for y, gap in enumerate(own) if gap.seeds > 1 for value in gap.runs.values()]
            lanes = [labels[gap.arm] for gap in own]
            at = [float(y) for y in range(len(own))]
            series = [
                Series("no difference", "rule", [0.0], colour=INK, faint=True),
                Series("95% interval", "span", (), at, [gap.low for gap in own], [gap.high for gap in own]),
                Series("difference", "dots", [gap.value for gap in own], at),
            ]
            if runs:
                series.append(Series("single seeds", "dots", [x for x, _ in runs], [y for _, y in runs], faint=True))
            title = f"{measure.capitalize()}, {stage}, {DECODERS.get(decoder, decoder)}"
            panels.append(Panel(title, "percentage points", "", series, x_format="points", lanes=lanes))
        return panels

    def caption(self, shown: Shown) -> str:
        references = {gap.stage: gap.reference for gap in shown.differences}
        arm = f"arm {next(iter(references.values()), '')}"
        if len(set(references.values())) > 1:
            each = ", ".join(f"{stage}: {name}" for stage, name in references.items())
            arm = f"arm that starts last of those that have the stage ({each})"
        gaps = shown.differences
        over = {"seeds": "over seeds and prompts", "score": "over prompts alone"}
        covers = " or ".join(words for test, words in over.items() if test in {gap.test for gap in gaps})
        sentences = [
            f"Differences from the {arm}, paired by training seed and prompt. To the left of zero the arm is safer, "
            f"or over-refuses less. Lines: 95% intervals {covers}. Unlike p (Holm) in the table, they are not corrected for "
            "the number of arms."
        ]
        if any(gap.seeds > 1 for gap in gaps):
            sentences.append("Small marks: the difference within one training seed.")
        if any(gap.note for gap in gaps):
            sentences.append("In the table, a note marks arms that were judged by different versions.")
        if gaps:
            prompts, seeds = span([gap.prompts for gap in gaps]), span([gap.seeds for gap in gaps])
            sentences.append(f"{prompts} prompts, {seeds} training seed{'' if seeds == '1' else 's'}.")
        return " ".join(sentences)


@dataclass(frozen=True)
class CapabilityFigure(Figure):
    """Attack success against capability, with the Pareto front: a panel for each stage that has both."""

    section = "capability"

    def has(self, shown: Shown) -> bool:
        return bool(self._drawn(shown))

    @staticmethod
    def _decoder(shown: Shown) -> str:
        stages = {one.stage for one in shown.capability}
        return next((name for name in DECODERS if any(shown.metrics.attacks_by(stage, name) for stage in stages)), "")

    def _drawn(self, shown: Shown) -> dict[tuple[str, str], list[tuple[ArmInfo, OverSeeds, Point]]]:
        """The arms with both numbers, by stage and by capability task: the only task, or `ALL` for the mean of several."""
        drawn = {}
        for stage, estimates in grouped(shown.capability, lambda estimate: estimate.stage).items():
            task = ALL if len({estimate.benchmark for estimate in estimates}) > 1 else estimates[0].benchmark
            capability = {estimate.arm: estimate.value for estimate in estimates if estimate.benchmark == task}
            attacks = {point.arm: point for point in shown.means(stage, self._decoder(shown), "attack success")}
            arms = [arm for arm in shown.arms if arm.name in capability and arm.name in attacks]
            if arms:
                drawn[stage, task] = [(arm, capability[arm.name], attacks[arm.name]) for arm in arms]
        return drawn

    def draw(self, shown: Shown) -> Canvas:
        drawn = self._drawn(shown)
        size = (4.2 * len(drawn), 3.9)
        canvas, panels = pyplot.subplots(1, len(drawn), figsize=size, sharey=True, layout="constrained", squeeze=False)
        looks = {arm.name: (curve.colour, curve.marker) for curve in curves_of(shown.arms) for arm in curve.arms}
        looks |= {arm.name: (SAFE_ONLY_COLOUR, "D") for arm in shown.arms if arm.interventions == "none"}
        for panel, ((stage, task), points) in zip(panels[0], drawn.items()):
            panel.set_title(stage_title(stage).capitalize())
            panel.set_xlabel(f"capability, {'mean of the tasks' if task == ALL else task}")
            for arm, capability, attack in points:
                at, (colour, marker) = (capability.value, attack.value), looks[arm.name]
                if capability.low is not None and capability.high is not None:
                    panel.hlines(attack.value, capability.low, capability.high, color=colour, lw=1, alpha=0.6)
                if attack.low is not None and attack.high is not None:
                    panel.vlines(capability.value, attack.low, attack.high, color=colour, lw=1, alpha=0.6)
                face: Any = {"mfc": "white", "mew": 1.4} if attack.hollow else {"mec": "white"}
                panel.plot(*at, marker=marker, color=colour, ms=6, ls="none", zorder=4, **face)
                panel.annotate(start_label(arm.start), at, (4, 4), textcoords="offset points", fontsize=8)
            places = [(capability.value, attack.value) for _, capability, attack in points if not attack.hollow]
            front = [places[place] for place in pareto_front(places)]
            panel.plot([x for x, _ in front], [y for _, y in front], color="#777777", lw=1.2, ls=(0, (4, 3)), zorder=3)
            for axis in (panel.xaxis, panel.yaxis):
                axis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        panels[0][0].set_ylim(bottom=0)  # last: it ends the autoscaling of the axis, which all panels share
        panels[0][0].set_ylabel(f"attack success rate, {DECODERS[self._decoder(shown)]}")
        add_legend(canvas, shown.arms)
        return canvas

    def caption(self, shown: Shown) -> str:
        drawn, decoder = self._drawn(shown), self._decoder(shown)
        over = "training seeds and questions or prompts" if shown.several else "questions or prompts"
        sentences = [
            f"Attack success under {DECODERS[decoder]}. Labels: the starts of interventions. Further right and lower is "
            "better. The line joins the arms on the Pareto front: no other arm is better in one respect and no worse in the "
            f"other. Whiskers: 95% intervals over {over}."
        ]
        if any(attack.hollow for points in drawn.values() for *_, attack in points):
            sentences.append("Hollow: incoherent models, or means that include one, which are never on the front.")
        for (stage, _), points in drawn.items():
            measured = {one.arm for one in shown.capability if stage == one.stage}
            measured &= {entry.arm for entry in shown.metrics.attacks_by(stage, decoder) if entry.rate is not None}
            lost = measured - {arm.name for arm, _, _ in points}
            sentences += left_out(shown.arms, lost, "a task or a benchmark", f"among the {stage_title(stage)}")
        return " ".join(sentences)


# fmt: off
FIGURES: tuple[Figure, ...] = (
    AttackFigure(1, "fig1-base-asr", "Attack success on base models",
                 "Interventions from 20% or 60% gave the safest base models under top-k, none at all the least safe; with"
                 " SafeBeam, the start of training was best.", stage="base"),
    AttackFigure(2, "fig2-benign-asr", "Attack success after benign finetuning on GSM8K",
                 "The clearest effect of all: early interventions (0% or 20%) survived the finetuning best under top-k; with"
                 " SafeBeam, the start of training was best.", stage="benign"),
    AttackFigure(3, "fig3-instruct-asr", "Attack success on instruction-tuned models",
                 "The middle of training (20% or 60%) was safest under top-k, the start of training with SafeBeam.",
                 stage="instruct"),
    OverrefusalFigure(4, "fig4-overrefusal-topk", "Answers to benign requests under top-k, instruction-tuned models",
                      "Models with earlier interventions complied slightly more often: they paid no price in over-refusal.",
                      decoder="topk"),
    OverrefusalFigure(5, "fig5-overrefusal-safebeam", "Answers to benign requests under SafeBeam, instruction-tuned models",
                      "Models with earlier interventions over-refused slightly more, but their compliant answers were more"
                      " helpful.", decoder="safebeam"),
    AttackFigure(6, "fig6-gcg", "Attack success of adversarial suffixes (GCG), instruction-tuned models",
                 "With SafeBeam, starting at 20% or 60% was much more robust than at 0% or never; under top-k the start made"
                 " no noticeable difference.", stage="instruct", decoders=("gcg+topk", "gcg+safebeam")),
    ProbeFigure(7, "fig7-probe-last", "Probe AUC, safe against unsafe text, last layer",
                "Earlier interventions separated safe from unsafe text better, above all with tags from the start.",
                layer="last"),
    ProbeFigure(8, "fig8-probe-first", "Probe AUC, safe against unsafe text, first layer",
                "Similar trends, with less separation than in the last layer.", layer="first"),
    ProbeFigure(9, "fig9-probe-middle", "Probe AUC, safe against unsafe text, middle layer",
                "Similar trends, with less separation than in the last layer.", layer="middle"),
    LayersFigure(0, "layers", "Probe AUC, safe against unsafe text, from layer to layer", ""),
    DifferenceFigure(0, "differences", "Each arm against the one that starts last", ""),
    TrainingFigure(0, "curriculum", "What each arm reads, and when", "",
                   "The share of every source in the tokens, from the start of pretraining to its end, as planned.",
                   curriculum_panels),
    TrainingFigure(0, "training-loss", "Training loss", "",
                   "Each point is the mean of several steps. Branches continue the trunk of their seed; further seeds are"
                   " faint.", loss_panels),
    TrainingFigure(0, "validation-loss", "Validation loss by source", "",
                   "On held-out documents of each source, in nats per token; further seeds are faint.", validation_panels),
    TrainingFigure(0, "tree", "The tree of pretraining runs", "",
                   "Each branch starts from a checkpoint of another run and shares its training up to there.", tree_panels),
    CapabilityFigure(0, "capability", "Attack success against capability", ""),
)
# fmt: on


def further_figures(shown: Shown) -> list[Figure]:
    """A figure for each measured stage that the paper does not have, and for each training measured along the way."""
    stages = dict.fromkeys(entry.stage for entry in shown.metrics.attacks)
    attacks = [
        AttackFigure(0, f"stage-{stage}-asr", f"Attack success on {stage_title(stage)}", "", stage)
        for stage in stages
        if stage not in STAGES
    ]
    along = [
        AlongFigure(0, f"along-{stage}", f"Measured during {training}", "", stage, axis)
        for stage in dict.fromkeys(point.stage for point in shown.curves)
        for training, axis in [("pretraining", "tokens") if stage == "base" else (stage, "steps")]
    ]
    return [*attacks, *along]


def figures_of(shown: Shown) -> list[Figure]:
    """The figures that a study has, in their order on the page."""
    return [figure for figure in (*FIGURES, *further_figures(shown)) if figure.has(shown)]


def draw_figures(shown: Shown, folder: Path) -> dict[str, Path]:
    """Write the study's figures to `folder`; returns the path of each SVG by the figure's name."""
    return {figure.name: save_figure(figure.name, partial(figure.draw, shown), folder) for figure in figures_of(shown)}


def remove_stale(folder: Path, drawn: Collection[Any]) -> None:
    """Remove an earlier report's figures that are not among the SVGs in `drawn`.

    Files count as a figure if they are named like one and exist in all formats.
    """
    named = re.compile("|".join([*(figure.name for figure in FIGURES), "stage-.+-asr", "along-.+"]))
    for path in folder.glob("*.svg"):
        files = [path.with_suffix(suffix) for suffix in FORMATS]
        if path not in drawn and named.fullmatch(path.stem) and all(file.exists() for file in files):
            for file in files:
                file.unlink()


def save_figure(name: str, draw: Callable[[], Canvas], folder: Path) -> Path:
    """Draw a figure in the report's style and write it as PNG, SVG and PDF; returns the SVG's path."""
    with matplotlib.rc_context(STYLE):
        canvas = draw()
        if engine := canvas.get_layout_engine():
            canvas.set_dpi(DPI)  # laid out at matplotlib's 100 dpi, text would be cut off in the files, where it is wider
            engine.execute(canvas)
            canvas.set_layout_engine(None)  # already applied; with an engine, each format would be drawn twice
        for suffix, options in FORMATS.items():
            with durable.open_atomically(folder / (name + suffix)) as file:
                canvas.savefig(file, format=suffix[1:], dpi=DPI, **options)
        pyplot.close(canvas)
    return folder / f"{name}.svg"
