"""The points of the figures, which the page and `tables/points.csv` hold too. `eval/report/drawing.py` draws them.

With one training seed, a point is the run itself. With several, it is the arm's estimate over its runs, with the interval over
seeds and prompts (`eval/analysis/runs.py`) and the single runs behind it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from statistics import fmean

from curricula.eval.analysis.along import CurvePoint
from curricula.eval.analysis.capability import CapabilityEstimate
from curricula.eval.analysis.metrics import ALL, ANSWER_CATEGORIES, StudyMetrics, is_own_suffix, without_average
from curricula.eval.analysis.runs import ArmDifference, ArmEstimate, ProbeEstimate, Runs, arm_estimates, study_metrics
from curricula.eval.analysis.seeds import OverSeeds
from curricula.eval.analysis.statistics import grouped
from curricula.eval.analysis.study_rows import ArmInfo
from curricula.eval.analysis.worst_case import Met
from curricula.eval.report.training import Training

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
    """A panel of points over the starts of interventions, or of bars by arm. It is named as in `Point`."""

    title: str
    measure: str
    """Also "answers", for bars of all categories."""
    stage: str
    place: str


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
        return [point for point in self.points if (point.stage, point.place) == (stage, place) and point.measure in measures]

    def means(self, stage: str, place: str, measure: str) -> list[Point]:
        """The points of the main curve, which is over all benchmarks together."""
        return [point for point in self.at(stage, place, measure) if not point.benchmark]

    def _attack_points(self) -> Iterator[Point]:
        """Points of attack success. Of several runs, only the mean of the benchmarks has an interval.

        Arms without that mean have no such point (`comparable_estimates`), and the main curve ignores an arm's own suffixes.
        """
        for stage, decoder in dict.fromkeys((entry.stage, entry.decoder) for entry in self.metrics.attacks):
            entries = self.metrics.attacks_by(stage, decoder)
            names = sorted({entry.benchmark for entry in entries} - {ALL})
            main = ALL if len(names) > 1 else names[0]
            for name, arm in itertools.product(dict.fromkeys((main, *names)), self.arms):
                is_main = name == main
                if is_main and is_own_suffix(decoder, name, arm.name):
                    continue
                runs = [entry for entry in entries if (entry.arm, entry.benchmark) == (arm.name, name)]
                rates = [(entry.rate, entry.incoherent) for entry in runs if entry.rate is not None]
                if not rates:
                    continue
                place = (self.judge, "attack success", stage, decoder, "" if is_main else name, arm.name)
                if not self.several:
                    run, rate = runs[0], rates[0][0]
                    yield Point(*place, rate, run.std, run.low, run.high, (), run.incoherent, corrected=run.corrected)
                    continue
                known = [entry.corrected_uncut for entry in runs if entry.corrected_uncut is not None]
                corrected = min(max(fmean(known), 0.0), 1.0) if len(known) == len(rates) else None
                if is_main:
                    yield from (replace(point, corrected=corrected) for point in self._over_seeds(place, rates))
                else:
                    hollow = any(is_incoherent for _, is_incoherent in rates)
                    yield Point(*place, fmean(rate for rate, _ in rates), hollow=hollow, corrected=corrected)

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
        for (stage, layer), probes in grouped(self.metrics.probes, lambda probe: (probe.stage, probe.layer)).items():
            for arm in self.arms:
                own = [probe for probe in probes if probe.arm == arm.name]
                place = (self.judge, "probe AUC", stage, layer, "", arm.name)
                if own and not self.several:
                    yield Point(*place, own[0].auc, own[0].std)
                elif own:
                    yield from self._over_seeds(place, [(probe.auc, False) for probe in own])

    @cached_property
    def _estimates(self) -> dict[tuple[str, str, str, str], OverSeeds]:
        """Estimates by measure, stage, decoder or layer, and arm."""
        rates = {(one.measure, one.stage, one.decoder, one.arm): one.rate for one in self.estimates}
        return rates | {("probe AUC", probe.stage, probe.layer, probe.arm): probe.auc for probe in self.probes}

    def _over_seeds(self, place: tuple[str, str, str, str, str, str], runs: Sequence[tuple[float, bool]]) -> Iterator[Point]:
        """The point of an arm's estimate over several training seeds, if there is one. `place`: the point's first fields."""
        _, measure, stage, decoder_or_layer, _, arm = place
        estimate = self._estimates.get((measure, stage, decoder_or_layer, arm)) if self.several else None
        if estimate:
            value, low, high, one_run = estimate.value, estimate.low, estimate.high, estimate.spread is None
            hollow = any(is_incoherent for _, is_incoherent in runs)
            yield Point(*place, value, None, low, high, tuple(runs), hollow, one_run=one_run)

    def length_auc(self, stage: str, layer: str) -> float | None:
        """The AUC that the length of the probed texts achieves by itself; None without probes."""
        entries = [entry for entry in self.metrics.probes if (entry.stage, entry.layer) == (stage, layer)]
        return fmean(entry.length_auc for entry in entries) if entries else None

    def plans(self, stage: str, tasks: Iterable[str]) -> bool:
        """Whether any of the tasks is planned at a stage."""
        return any(task in self.planned.get(stage, ()) for task in tasks)


def comparable_estimates(runs: Runs, metrics: StudyMetrics) -> Iterator[ArmEstimate]:
    """The estimates of all arms except those `without_average`, whose estimates would cover other benchmarks."""
    for (measure, stage, decoder), estimates in itertools.groupby(
        arm_estimates(runs), key=lambda estimate: (estimate.measure, estimate.stage, estimate.decoder)
    ):
        metrics_by = metrics.attacks_by if measure == "attack success" else metrics.overrefusals_by
        left_out = without_average(metrics_by(stage, decoder))
        yield from (estimate for estimate in estimates if estimate.arm not in left_out)


def judges_points(runs: Runs) -> Iterator[Point]:
    """The points by each other judge."""
    for judge in runs.study.others:
        judged = replace(runs, study=runs.study.of_judge(judge))
        metrics = study_metrics(judged)
        estimates = list(comparable_estimates(judged, metrics))
        yield from Shown(judged.arms, judged.study.seeds, metrics, estimates, judge=judge).points
