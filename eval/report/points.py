"""What the figures show of each arm, as numbers.

With one training seed that is the run itself. With several it is the arm's estimate over its runs, with the interval over
seeds and prompts (`eval/analysis/estimates.py`), and the single runs as marks behind it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from curricula.eval.analysis.estimates import ArmEstimate, ProbeEstimate
from curricula.eval.analysis.metrics import ANSWER_CATEGORIES, AttackMetrics, OverrefusalMetrics, StudyMetrics
from curricula.eval.analysis.study_rows import ArmInfo


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

    @property
    def several(self) -> bool:
        return len(self.seeds) > 1

    def attack_points(
        self, arms: Sequence[ArmInfo], stage: str, decoder: str, benchmark: str, is_main: bool = True
    ) -> list[Point]:
        """The attack success of those arms that have any; intervals over seeds are of the mean of the benchmarks alone."""
        runs: dict[str, list[AttackMetrics]] = defaultdict(list)
        for entry in self.metrics.attacks_by(stage, decoder):
            if entry.benchmark == benchmark and entry.rate is not None:
                runs[entry.arm].append(entry)
        points = []
        for arm in arms:
            marks = tuple(Mark(entry.rate, entry.incoherent) for entry in runs[arm.name] if entry.rate is not None)
            if marks and not self.several:
                one = runs[arm.name][0]
                points.append(Point(arm.start, marks[0].value, one.std, one.low, one.high, one.incoherent))
            elif marks and not is_main:
                points.append(Point(arm.start, fmean(mark.value for mark in marks)))
            elif marks and (found := self._estimate(arm, stage, decoder, "attack success")):
                points.append(_over_seeds(arm, found, found.rate, found.low, found.high, marks))
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
                points.append(_over_seeds(arm, found, found.auc, found.low, found.high, marks))
        return points

    def bar(self, arm: ArmInfo, stage: str, decoder: str) -> Bar | None:
        """The answers of an arm to benign requests; None if there are none."""
        runs = [run for run in self.overrefusals(stage, decoder) if run.arm == arm.name and run.shares]
        if not runs:
            return None
        shares = {name: fmean(run.shares[name] for run in runs) for name in ANSWER_CATEGORIES}
        found = self._estimate(arm, stage, decoder, "over-refusal") if self.several else None
        if found is None:
            return Bar(shares)
        marks = tuple(Mark(1 - run.rate) for run in runs if run.rate is not None)
        return Bar(shares, _over_seeds(arm, found, 1 - found.rate, 1 - found.high, 1 - found.low, marks))

    def overrefusals(self, stage: str, decoder: str) -> list[OverrefusalMetrics]:
        return self.metrics.overrefusals_by(stage, decoder)

    def _estimate(self, arm: ArmInfo, stage: str, decoder: str, measure: str) -> ArmEstimate | None:
        wanted = (arm.name, stage, decoder, measure)
        return next((one for one in self.estimates if (one.arm, one.stage, one.decoder, one.measure) == wanted), None)


def _over_seeds(
    arm: ArmInfo,
    found: ArmEstimate | ProbeEstimate,
    value: float,
    low: float | None,
    high: float | None,
    runs: tuple[Mark, ...],
) -> Point:
    hollow = any(run.hollow for run in runs)
    return Point(arm.start, value, None, low, high, hollow, runs, one_run=found.spread is None)
