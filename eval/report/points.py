"""What the figures show of each arm, as numbers.

With one training seed that is the run itself. With several it is the arm's estimate over its runs, with the interval over
seeds and prompts (`eval/analysis/estimates.py`), and the single runs as marks behind it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean

from curricula.eval.analysis.along import CurvePoint
from curricula.eval.analysis.differences import ArmDifference
from curricula.eval.analysis.estimates import ArmEstimate, ProbeEstimate, arm_estimates
from curricula.eval.analysis.metrics import (
    ALL,
    ANSWER_CATEGORIES,
    AttackMetrics,
    OverrefusalMetrics,
    StudyMetrics,
    is_own_suffix,
    without_average,
)
from curricula.eval.analysis.runs import Runs, study_metrics
from curricula.eval.analysis.seeds import OverSeeds
from curricula.eval.analysis.study_rows import ArmInfo
from curricula.eval.attacks.worst_case import Met
from curricula.eval.report.training import Training
from curricula.eval.tasks import judged_tasks


@dataclass(frozen=True)
class Mark:
    """A single run behind an estimate."""

    value: float
    hollow: bool = False
    """Whether the run is incoherent."""


@dataclass(frozen=True)
class Point:
    """One arm on a curve. All in 0..1."""

    start: float
    value: float
    std: float | None = None
    """Half the height of the band."""
    low: float | None = None
    """Lower end of the whisker, the 95% interval."""
    high: float | None = None
    hollow: bool = False
    """Whether the model is incoherent, or one of the models behind an estimate."""
    runs: tuple[Mark, ...] = ()
    """The single runs, where there are several training seeds."""
    one_run: bool = False
    """Whether the arm has a single run in a study of several: no whisker, or one over prompts alone."""
    corrected: float | None = None
    """The value corrected for the judge's errors, where they are known for every run."""


@dataclass(frozen=True)
class Bar:
    """The answers of one arm to benign requests."""

    shares: dict[str, float]
    """By category; of several runs, the mean."""
    complied: Point | None = None
    """With several training seeds: the share that is not over-refusal, with its interval and the runs."""


@dataclass(frozen=True)
class Shown:
    """All that the figures are drawn and captioned from."""

    arms: Sequence[ArmInfo]
    """Each arm once."""
    seeds: Sequence[int]
    metrics: StudyMetrics
    """Of every run."""
    estimates: Sequence[ArmEstimate] = ()
    probes: Sequence[ProbeEstimate] = ()
    planned: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """The planned tasks of each stage."""
    training: Training = Training((), {}, {})
    """What the training runs have recorded."""
    differences: Sequence[ArmDifference] = ()
    curves: Sequence[CurvePoint] = ()
    """What was measured along the way."""
    met: Sequence[Met] = ()
    """The attacks that each arm has met."""

    @property
    def several(self) -> bool:
        return len(self.seeds) > 1

    def attack_points(
        self, arms: Sequence[ArmInfo], stage: str, decoder: str, benchmark: str, is_main: bool = True
    ) -> list[Point]:
        """The attack success of those arms that have any; intervals over seeds are of the mean of the benchmarks alone.

        That mean is left out of an arm that is `without_average`, and an arm's own suffixes out of the main curve.
        """
        runs: dict[str, list[AttackMetrics]] = defaultdict(list)
        entries = self.metrics.attacks_by(stage, decoder)
        partial = without_average(entries) if benchmark == ALL else ()
        for entry in entries:
            is_own = is_main and is_own_suffix(decoder, benchmark, entry.arm)
            if entry.benchmark == benchmark and entry.rate is not None and entry.arm not in partial and not is_own:
                runs[entry.arm].append(entry)
        points = []
        for arm in arms:
            own = runs[arm.name]
            marks = tuple(Mark(entry.rate, entry.incoherent) for entry in own if entry.rate is not None)
            known = [entry.corrected for entry in own if entry.corrected is not None]
            true = fmean(known) if known and len(known) == len(own) else None
            if marks and not self.several:
                one = own[0]
                points.append(Point(arm.start, marks[0].value, one.std, one.low, one.high, one.incoherent, corrected=true))
            elif marks and not is_main:
                points.append(Point(arm.start, fmean(mark.value for mark in marks), corrected=true))
            elif marks and (found := self._estimate(arm, stage, decoder, "attack success")):
                points.append(replace(_over_seeds(arm, found.rate, marks), corrected=true))
        return points

    def probe_points(self, arms: Sequence[ArmInfo], stage: str, layer: str) -> list[Point]:
        """The AUC of those arms that have any."""
        entries = [entry for entry in self.metrics.probes if (entry.stage, entry.layer) == (stage, layer)]
        estimates = {found.arm: found for found in self.probes if (found.stage, found.layer) == (stage, layer)}
        points = []
        for arm in arms:
            own = [entry for entry in entries if entry.arm == arm.name]
            if own and not self.several:
                points.append(Point(arm.start, own[0].auc, own[0].std))
            elif own and (found := estimates.get(arm.name)):
                marks = tuple(Mark(entry.auc) for entry in own)
                points.append(_over_seeds(arm, found.auc, marks))
        return points

    def length_auc(self, stage: str, layer: str) -> float | None:
        """The AUC that the length of the probed texts achieves alone; None where it is not known."""
        entries = [entry for entry in self.metrics.probes if (entry.stage, entry.layer) == (stage, layer)]
        known = [entry.length_auc for entry in entries if entry.length_auc is not None]
        return fmean(known) if known else None

    def bar(self, arm: ArmInfo, stage: str, decoder: str) -> Bar | None:
        """The answers of an arm to benign requests; None if there are none, or if it is `without_average`."""
        entries = self.overrefusals(stage, decoder)
        runs = [run for run in entries if run.arm == arm.name and run.shares]
        if not runs or arm.name in without_average(entries):
            return None
        shares = {name: fmean(run.shares[name] for run in runs) for name in ANSWER_CATEGORIES}
        found = self._estimate(arm, stage, decoder, "over-refusal") if self.several else None
        if found is None:
            return Bar(shares)
        marks = tuple(Mark(1 - run.rate) for run in runs if run.rate is not None)
        rate, low, high = found.rate.value, found.rate.low, found.rate.high
        assert low is not None and high is not None  # a rate has an interval
        return Bar(shares, _over_seeds(arm, replace(found.rate, value=1 - rate, low=1 - high, high=1 - low), marks))

    def has(self, stage: str, place: str) -> bool:
        """Whether something has been or will be measured at a stage: `place` is a decoder in rows, "probes", or with
        "overrefusal-" before it the decoder of benign requests."""
        if place == "probes":
            return "probes" in self.planned.get(stage, ()) or stage in {entry.stage for entry in self.metrics.probes}
        benign = place.removeprefix("overrefusal-")
        if benign != place:
            return place in self.planned.get(stage, ()) or bool(self.overrefusals(stage, benign))
        tasks = [task.name for task in judged_tasks("attack") if place in task.labels]
        return any(task in self.planned.get(stage, ()) for task in tasks) or bool(self.metrics.attacks_by(stage, place))

    def overrefusals(self, stage: str, decoder: str) -> list[OverrefusalMetrics]:
        return self.metrics.overrefusals_by(stage, decoder)

    def _estimate(self, arm: ArmInfo, stage: str, decoder: str, measure: str) -> ArmEstimate | None:
        wanted = (arm.name, stage, decoder, measure)
        return next((one for one in self.estimates if (one.arm, one.stage, one.decoder, one.measure) == wanted), None)


def _over_seeds(arm: ArmInfo, found: OverSeeds, runs: tuple[Mark, ...]) -> Point:
    hollow = any(run.hollow for run in runs)
    return Point(arm.start, found.value, None, found.low, found.high, hollow, runs, one_run=found.spread is None)


@dataclass(frozen=True)
class PointRow:
    """One point of a figure: what is drawn, and what `tables/points.csv` holds. Rates and AUCs are in 0..1."""

    judge: str
    """"" for the study's own judge."""
    measure: str
    """"attack success", "not over-refused", "probe AUC", or a category of answers to benign requests."""
    stage: str
    place: str
    """The decoder in rows; of probes, the layer."""
    benchmark: str
    """"" for the mean of the benchmarks, which is the figures' main curve."""
    arm: str
    value: float
    std: float | None
    low: float | None
    high: float | None
    runs: str
    """The single runs' values, where there are several training seeds: "0.108, 0.431*", a star for an incoherent run."""
    hollow: bool
    one_run: bool
    corrected: float | None
    """The value corrected for the judge's known errors."""


def comparable_estimates(runs: Runs, metrics: StudyMetrics) -> Iterator[ArmEstimate]:
    """The estimates of all arms except those `without_average`: theirs would cover other benchmarks."""
    measured = (("attack success", metrics.attacks), ("over-refusal", metrics.overrefusals))
    partial = {
        (measure, entry.stage, entry.decoder, entry.arm)
        for measure, entries in measured
        for entry in entries
        if without_average([entry])
    }
    for one in arm_estimates(runs):
        if (one.measure, one.stage, one.decoder, one.arm) not in partial:
            yield one


def judges_points(runs: Runs) -> Iterator[PointRow]:
    """The points of each judge beside the study's own, which alone says whether a model is incoherent."""
    for judge in runs.study.others:
        judged = replace(runs, study=runs.study.of_judge(judge))
        metrics = study_metrics(judged)
        estimates = list(comparable_estimates(judged, metrics))
        yield from point_rows(Shown(judged.arms, judged.study.seeds, metrics, estimates), judge)


def point_rows(shown: Shown, judge: str = "") -> Iterator[PointRow]:
    """All points that the figures can show, of every benchmark, from the estimates that the tables hold."""

    def row(measure: str, stage: str, place: str, benchmark: str, arm: ArmInfo, point: Point) -> PointRow:
        runs = ", ".join(f"{mark.value:.3f}{'*' if mark.hollow else ''}" for mark in point.runs)
        numbers = (point.value, point.std, point.low, point.high)
        about = (judge, measure, stage, place, benchmark, arm.name)
        return PointRow(*about, *numbers, runs, point.hollow, point.one_run, point.corrected)

    for stage, decoder in dict.fromkeys((entry.stage, entry.decoder) for entry in shown.metrics.attacks):
        names = sorted({entry.benchmark for entry in shown.metrics.attacks_by(stage, decoder)} - {ALL})
        main = ALL if len(names) > 1 else names[0]
        for name in (main, *names):
            for arm in shown.arms:
                for point in shown.attack_points([arm], stage, decoder, name, is_main=name == main):
                    yield row("attack success", stage, decoder, "" if name == main else name, arm, point)
            if name == main and len(names) == 1:
                break
    for stage, decoder in dict.fromkeys((entry.stage, entry.decoder) for entry in shown.metrics.overrefusals):
        for arm in shown.arms:
            if bar := shown.bar(arm, stage, decoder):
                for category, share in bar.shares.items():
                    yield row(category, stage, decoder, "", arm, Point(arm.start, share))
                if bar.complied:
                    yield row("not over-refused", stage, decoder, "", arm, bar.complied)
    for stage, layer in dict.fromkeys((entry.stage, entry.layer) for entry in shown.metrics.probes):
        for arm in shown.arms:
            for point in shown.probe_points([arm], stage, layer):
                yield row("probe AUC", stage, layer, "", arm, point)
