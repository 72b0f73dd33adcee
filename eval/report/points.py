"""The points of the figures, which the page and `tables/points.csv` hold too, and how they are drawn: as curves over the start
of interventions or, for answers to benign requests, as bars.

With one training seed, a point is the run itself. With several, it is the arm's estimate over its runs, with the interval over
seeds and prompts (`eval/analysis/runs.py`) and the single runs behind it.

Colours are Okabe and Ito's, which readers with any colour vision can tell apart; curves also differ in marker.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from statistics import fmean
from typing import Any, Literal

from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter
from matplotlib.transforms import Bbox

from curricula.eval.analysis.along import CurvePoint
from curricula.eval.analysis.capability import CapabilityEstimate
from curricula.eval.analysis.metrics import ALL, ANSWER_CATEGORIES, StudyMetrics, is_own_suffix, without_average
from curricula.eval.analysis.runs import ArmDifference, ArmEstimate, ProbeEstimate, Runs, arm_estimates, study_metrics
from curricula.eval.analysis.seeds import OverSeeds
from curricula.eval.analysis.study_rows import ArmInfo
from curricula.eval.attacks.worst_case import Met
from curricula.eval.report.panels import PALETTE
from curricula.eval.report.training import Training
from curricula.eval.report.wording import (
    CATEGORIES,
    CORRECTED,
    NO_INTERVENTIONS,
    NOT_EVALUATED,
    PAPER_SETS,
    START_AXIS,
    arm_label,
    start_label,
)
from curricula.terminal import fixed

COMPLIED = "not over-refused"


@dataclass(frozen=True)
class Point:
    """One arm in one place of a figure, as it is drawn and as `tables/points.csv` and the page hold it. Values are in 0..1.

    `low` and `high` are the ends of the whisker, a 95% interval.
    """

    judge: str
    """Name and version of the judge; "" for the study's own."""
    measure: str
    """"attack success", "probe AUC", a category of answers to benign requests, or `COMPLIED` for all but over-refusal."""
    stage: str
    place: str
    """The decoder as rows name it; for probes, the layer."""
    benchmark: str
    """The benchmark; "" for the mean of all, which is the main curve."""
    arm: str
    value: float
    std: float | None = None
    """Half the height of the band."""
    low: float | None = None
    high: float | None = None
    runs: tuple[tuple[float, bool], ...] = field(default=(), metadata={"form": (3, "")})
    """With several training seeds, each run's value and whether the run is incoherent."""
    hollow: bool = False
    """Whether the model, or a model behind the estimate, is incoherent."""
    one_run: bool = False
    """Whether the arm has a single run in a study with several seeds: it has no whisker, or one over prompts alone."""
    corrected: float | None = None
    """The value corrected for the judge's errors; None unless they are known for every run."""


@dataclass(frozen=True)
class Place:
    """A panel of points over the starts of interventions, or of bars by arm."""

    title: str
    measure: str
    """As in `Point`; "answers" for bars of all categories."""
    stage: str
    place: str
    """The decoder as rows name it; for probes, the layer."""


@dataclass(frozen=True)
class Shown:
    """All that the figures are drawn and captioned from."""

    arms: Sequence[ArmInfo]
    """The arms, each once however many seeds it has."""
    seeds: Sequence[int]
    metrics: StudyMetrics
    """Metrics of every run."""
    estimates: Sequence[ArmEstimate] = ()
    """The estimates that `comparable_estimates` returns."""
    probes: Sequence[ProbeEstimate] = ()
    planned: Mapping[str, Sequence[str]] = field(default_factory=dict)
    training: Training = Training((), {}, {})
    differences: Sequence[ArmDifference] = ()
    curves: Sequence[CurvePoint] = ()
    capability: Sequence[CapabilityEstimate] = ()
    met: Sequence[Met] = ()
    judge: str = ""
    """Name and version of the judge whose verdicts these are; "" for the study's own."""

    @property
    def several(self) -> bool:
        return len(self.seeds) > 1

    @cached_property
    def points(self) -> list[Point]:
        """All points that the figures can show, of every benchmark."""
        return [*self._attack_points(), *self._answer_points(), *self._probe_points()]

    def at(self, stage: str, place: str, *measures: str) -> list[Point]:
        """The points of one panel."""
        return [one for one in self.points if (one.stage, one.place) == (stage, place) and one.measure in measures]

    def means(self, stage: str, place: str, measure: str) -> list[Point]:
        """The points of the main curve, which is over all benchmarks together."""
        return [one for one in self.at(stage, place, measure) if not one.benchmark]

    def _attack_points(self) -> Iterator[Point]:
        """Points of attack success. Of several runs, only the mean of the benchmarks has an interval.

        Arms without that mean have no such point (`comparable_estimates`), and the main curve ignores an arm's own suffixes.
        """
        for stage, decoder in dict.fromkeys((entry.stage, entry.decoder) for entry in self.metrics.attacks):
            entries = self.metrics.attacks_by(stage, decoder)
            names = sorted({entry.benchmark for entry in entries} - {ALL})
            main = ALL if len(names) > 1 else names[0]
            for name, arm in itertools.product(dict.fromkeys((main, *names)), self.arms):
                if name == main and is_own_suffix(decoder, name, arm.name):
                    continue
                runs = [entry for entry in entries if (entry.arm, entry.benchmark) == (arm.name, name)]
                rates = [(entry.rate, entry.incoherent) for entry in runs if entry.rate is not None]
                if not rates:
                    continue
                known = [entry.corrected_uncut for entry in runs if entry.corrected_uncut is not None]
                corrected = min(max(fmean(known), 0.0), 1.0) if len(known) == len(rates) else None
                place = (self.judge, "attack success", stage, decoder, "" if name == main else name, arm.name)
                if not self.several:
                    one = runs[0]
                    yield Point(*place, rates[0][0], one.std, one.low, one.high, (), one.incoherent, corrected=one.corrected)
                elif name != main:
                    hollow = any(is_incoherent for _, is_incoherent in rates)
                    yield Point(*place, fmean(rate for rate, _ in rates), hollow=hollow, corrected=corrected)
                else:
                    yield from (replace(point, corrected=corrected) for point in self._over_seeds(place, rates))

    def _answer_points(self) -> Iterator[Point]:
        """Points of the categories of answers to benign requests and, with several training seeds, of `COMPLIED`.

        Arms that are `without_average` have none.
        """
        for stage, decoder in dict.fromkeys((entry.stage, entry.decoder) for entry in self.metrics.overrefusals):
            entries = self.metrics.overrefusals_by(stage, decoder)
            for arm in self.arms:
                runs = [run for run in entries if run.arm == arm.name and run.shares]
                if not runs or arm.name in without_average(entries):
                    continue
                for name in ANSWER_CATEGORIES:
                    yield Point(self.judge, name, stage, decoder, "", arm.name, fmean(run.shares[name] for run in runs))
                complied = [(1 - run.rate, False) for run in runs if run.rate is not None]
                for point in self._over_seeds((self.judge, "over-refusal", stage, decoder, "", arm.name), complied):
                    assert point.low is not None and point.high is not None  # a rate has an interval
                    low, high = 1 - point.high, 1 - point.low
                    yield replace(point, measure=COMPLIED, value=1 - point.value, low=low, high=high)

    def _probe_points(self) -> Iterator[Point]:
        for stage, layer in dict.fromkeys((entry.stage, entry.layer) for entry in self.metrics.probes):
            for arm in self.arms:
                where = (stage, layer, arm.name)
                own = [entry for entry in self.metrics.probes if (entry.stage, entry.layer, entry.arm) == where]
                place = (self.judge, "probe AUC", stage, layer, "", arm.name)
                if own and not self.several:
                    yield Point(*place, own[0].auc, own[0].std)
                elif own:
                    yield from self._over_seeds(place, [(entry.auc, False) for entry in own])

    @cached_property
    def _estimates(self) -> dict[tuple[str, str, str, str], OverSeeds]:
        """Estimates by measure, stage, decoder or layer, and arm."""
        rates = {(one.measure, one.stage, one.decoder, one.arm): one.rate for one in self.estimates}
        return rates | {("probe AUC", one.stage, one.layer, one.arm): one.auc for one in self.probes}

    def _over_seeds(self, place: tuple[str, str, str, str, str, str], runs: Sequence[tuple[float, bool]]) -> Iterator[Point]:
        """The point of an arm's estimate over several training seeds, if there is one. `place`: the point's first fields."""
        _, measure, stage, where, _, arm = place
        found = self._estimates.get((measure, stage, where, arm)) if self.several else None
        if found:
            hollow = any(is_incoherent for _, is_incoherent in runs)
            yield Point(*place, found.value, None, found.low, found.high, tuple(runs), hollow, one_run=found.spread is None)

    def length_auc(self, stage: str, layer: str) -> float | None:
        """The AUC that the length of the probed texts achieves by itself; None if it is unknown."""
        entries = [entry for entry in self.metrics.probes if (entry.stage, entry.layer) == (stage, layer)]
        known = [entry.length_auc for entry in entries if entry.length_auc is not None]
        return fmean(known) if known else None

    def plans(self, stage: str, tasks: Iterable[str]) -> bool:
        """Whether any of the tasks is planned at a stage."""
        return any(task in self.planned.get(stage, ()) for task in tasks)


def comparable_estimates(runs: Runs, metrics: StudyMetrics) -> Iterator[ArmEstimate]:
    """The estimates of all arms except those `without_average`, whose estimates would cover other benchmarks."""
    for (measure, stage, decoder), estimates in itertools.groupby(
        arm_estimates(runs), key=lambda one: (one.measure, one.stage, one.decoder)
    ):
        by_place = metrics.attacks_by if measure == "attack success" else metrics.overrefusals_by
        left_out = without_average(by_place(stage, decoder))
        yield from (one for one in estimates if one.arm not in left_out)


def judges_points(runs: Runs) -> Iterator[Point]:
    """The points by each other judge. Whether a model is incoherent is decided by the study's own judge alone."""
    for judge in runs.study.others:
        judged = replace(runs, study=runs.study.of_judge(judge))
        metrics = study_metrics(judged)
        estimates = list(comparable_estimates(judged, metrics))
        yield from Shown(judged.arms, judged.study.seeds, metrics, estimates, judge=judge).points


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
    """One curve per intervention set: the paper's two first, then the others by name. A custom arm is a single point."""
    names = sorted({arm.interventions for arm in arms} - {"none"}, key=lambda name: (name not in PAPER_SETS, name))
    by_start = sorted(arms, key=lambda arm: arm.start)
    curves = []
    for name, colour, marker in zip(names, itertools.cycle(PALETTE), itertools.cycle(MARKERS)):
        own = [arm for arm in by_start if arm.interventions == name]
        end = [arm for arm in by_start if arm.interventions == "none" and not own[0].is_custom]
        curves.append(Curve(PAPER_SETS.get(name, name), colour, marker, own + end))
    return curves


def draw_starts(shown: Shown, places: Sequence[Place]) -> tuple[Canvas, list[Bbox]]:
    """Draw a panel of curves, or a note that there are none, for each place; returns also the extents of panels with curves."""
    size, extents = (8.4 if len(places) > 1 else 6.8, 3.7), []
    canvas, grid = pyplot.subplots(1, len(places), figsize=size, sharey=True, layout="constrained", squeeze=False)
    starts = sorted({arm.start for arm in shown.arms})
    for panel, place in zip(grid[0], places):
        panel.set_title(place.title)
        has_curves = _draw_place(panel, shown, place)
        panel.set_xticks(starts, [start_label(start) for start in starts])
        panel.set_xlim(-0.06, 1.06)
        panel.set_xlabel(START_AXIS)
        if has_curves:
            extents.append(panel.dataLim)
        else:
            look: Any = {"ha": "center", "color": "#777777", "style": "italic"}
            panel.text(0.5, 0.5, NOT_EVALUATED, transform=panel.transAxes, **look)
    means = [point for place in places for point in shown.means(place.stage, place.place, place.measure)]
    add_legend(canvas, shown.arms, has_corrected=any(point.corrected is not None for point in means))
    return canvas, extents


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


def _draw_place(panel: Axes, shown: Shown, place: Place) -> bool:
    """Draw the mean of the benchmarks with each benchmark faint behind it, or AUCs with what text length alone achieves.

    Returns whether there are any curves.
    """
    found, drawn = shown.at(place.stage, place.place, place.measure), False
    for curve, shift in _shifted(shown):
        for name in dict.fromkeys(point.benchmark for point in found):
            points = curve.along(point for point in found if point.benchmark == name)
            if name:
                starts, values = [start for start, _ in points], [point.value for _, point in points]
                panel.plot(starts, values, color=curve.colour, lw=0.9, alpha=0.3, zorder=1)
            else:
                draw_curve(panel, curve, points, shift)
            drawn |= bool(points)
    level = shown.length_auc(place.stage, place.place)
    if level is not None:
        panel.axhline(level, color="#777777", lw=1, ls=(0, (4, 3)), zorder=1)
        look: Any = {"color": "#666666", "fontsize": 8, "textcoords": "offset points"}
        panel.annotate("text length alone", (0.0, level), (0, 3), **look)
    return drawn


def _shifted(shown: Shown) -> list[tuple[Curve, float]]:
    """Each curve with its shift to the right, so that the wide intervals over seeds do not cover each other."""
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


def _draw_whisker(panel: Axes, y: float, complied: Point) -> None:
    """Draw the interval of the share that is not over-refusal at the bar's lower edge, with the single runs."""
    edge = y + 0.3
    if complied.low is not None and complied.high is not None:
        panel.hlines(edge, complied.low, complied.high, color="black", lw=1.2, ls=":" if complied.one_run else "-")
    panel.plot([value for value, _ in complied.runs], [edge] * len(complied.runs), "o", ms=3, mfc="white", mec="black")
    panel.plot(complied.value, edge, "D", ms=4.5, mfc="black", mec="white")
