"""Every arm over its training runs: its rate and probe AUC, what moves the rate, how far it lies from the arm that starts last
(of those that are to have the stage), and what a stage changes in it.

Differences and changes are paired on shared prompts, with Holm's correction in each family. None is from an arm without
answers. A family is what a reader looks at together: all arms by one measure under one decoder after one stage, over all
benchmarks. The paper's claims are a family of their own (`eval/analysis/claims.py`).

The components of the variance are estimated by the method of moments (`Crossed.components`), those of the seed from at least
two runs, those of the samples from at least two samples. With a few runs they are rough: the variance over three seeds is known
to a factor of about 40 (95%).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from curricula.eval.analysis.metrics import harmful, layers_in, overrefused
from curricula.eval.analysis.runs import Runs
from curricula.eval.analysis.seeds import BySeed, Crossed, OverSeeds, auc_over_seeds, compare, rate_over_seeds
from curricula.eval.analysis.statistics import Outcome, holm
from curricula.eval.analysis.study_rows import ArmInfo
from curricula.eval.judging.verdicts import kind_of

MEASURES: Mapping[str, tuple[str, Outcome]] = {
    "attack": ("attack success", harmful),
    "overrefusal": ("over-refusal", overrefused),
}


@dataclass(frozen=True)
class Measured:
    """A measure of an arm at one stage under one decoder."""

    stage: str
    task: str
    decoder: str
    measure: str
    arm: str


@dataclass(frozen=True)
class ArmEstimate(Measured):
    """The rate of an arm over its training runs. In 0..1."""

    rate: OverSeeds
    """The mean of the benchmarks' rates."""
    incoherent: str
    """The seeds of incoherent runs (`eval/analysis/runs.py`), which count here all the same."""


@dataclass(frozen=True)
class ProbeEstimate:
    """The mean test AUC of an arm's linear probes on one layer, over its training runs."""

    stage: str
    layer: str
    arm: str
    auc: OverSeeds


@dataclass(frozen=True)
class VarianceParts(Measured):
    """Standard deviations behind a rate, or behind a difference of two arms on shared seeds and prompts. In 0..1."""

    reference: str
    """The arm that is subtracted; "" for the rate of the arm alone."""
    seeds: int
    prompts: float
    """Effective number of prompts, in clusters of equal weight."""
    samples: float
    """Answers per prompt and run."""
    seed: float
    """Between training seeds."""
    prompt: float
    """Between prompts, the same for all runs."""
    interaction: float
    """Of a prompt in one run."""
    sample: float | None
    """Between samples of one prompt; None with one sample, where `interaction` includes it."""
    seed_share: float
    """The part of the mean's variance that more seeds alone would lower: seed / number of seeds."""


@dataclass(frozen=True)
class ArmDifference(Measured):
    """How much more often an arm answers harmfully (or over-refuses) than the reference arm, in -1..1."""

    reference: str
    value: float
    """Negative if the arm is safer (or over-refuses less) than the reference."""
    low: float
    """Lower end of the 95% interval, over training seeds and prompts; of a single run, over prompts alone."""
    high: float
    p: float
    """Two-sided."""
    p_holm: float
    """Adjusted over the arms of this stage, decoder and measure."""
    test: str
    """The test behind `p` and the interval: "seeds" (`eval/analysis/seeds.py`) or "score" (Tango): of a single run, and of runs
    without a benchmark that all have answered."""
    prompts: int
    """Shared prompts."""
    seeds: int
    """Shared training seeds."""
    runs: Mapping[int, float] = field(default_factory=dict, metadata={"form": (3, "+")})
    """Each training seed's difference on the benchmarks that all of them have, to three decimals."""
    note: str = ""
    """Whether the verdicts are of different judges, or of different versions of one."""


@dataclass(frozen=True)
class _Before:
    """A base class, so that this is the first column."""

    before: str
    """The stage that `stage` continues from."""


@dataclass(frozen=True)
class ArmChange(ArmDifference, _Before):
    """How much an arm's rate changes from the stage `before` to `stage`, in -1..1, positive if the later stage's is higher.

    With a `reference`, how much more it changes than the reference arm's, in -2..2; "" for the change itself.
    """


Rates = dict[ArmInfo, BySeed]


def _rates(runs: Runs, stage: str, task: str, decoder: str) -> tuple[str, Rates]:
    """The measure of a task, and by it the rates of every arm."""
    measure, outcome = MEASURES[kind_of(task)]
    return measure, {arm: runs.rates(arm, stage, task, decoder, outcome) for arm in runs.arms}


def arm_estimates(runs: Runs) -> Iterator[ArmEstimate]:
    for stage, task, decoder in runs.places():
        measure, rates = _rates(runs, stage, task, decoder)
        for arm, own in rates.items():
            if rate := rate_over_seeds(own):
                lost = ", ".join(map(str, runs.incoherent_seeds(arm, stage, decoder)))
                yield ArmEstimate(stage, task, decoder, measure, arm.name, rate, lost)


def probe_estimates(runs: Runs) -> Iterator[ProbeEstimate]:
    probes = runs.study.probes
    for stage in dict.fromkeys(stage for _, stage in probes):
        rows = [row for (_, kind), of_run in probes.items() if kind == stage for row in of_run]
        for layer, _ in layers_in(rows):
            for arm in runs.arms:
                if auc := auc_over_seeds(runs.aucs(arm, stage, layer)):
                    yield ProbeEstimate(stage, layer, arm.name, auc)


def variance_parts(runs: Runs) -> Iterator[VarianceParts]:
    """The variance of every arm's rate, and of its difference from the stage's reference; nothing for single runs."""
    for stage, task, decoder in runs.places():
        measure, rates = _rates(runs, stage, task, decoder)
        reference = runs.reference(stage)
        for arm, own in rates.items():
            place = (stage, task, decoder, measure, arm.name)
            alone = rate_over_seeds(own)
            if alone and alone.crossed:
                yield _parts(place, "", alone.crossed)
            against = compare([own], [rates[reference]]) if arm != reference else None
            if against and against.crossed:
                yield _parts(place, reference.name, against.crossed)


def _parts(place: tuple[str, str, str, str, str], reference: str, crossed: Crossed) -> VarianceParts:
    found = crossed.components
    whole = crossed.seed_variance + crossed.prompt_variance
    return VarianceParts(
        *place,
        reference,
        crossed.seeds,
        crossed.prompts,
        crossed.samples,
        found.seed**0.5,
        found.prompt**0.5,
        found.interaction**0.5,
        None if math.isnan(crossed.noise) else found.sample**0.5,
        min(1.0, found.seed / crossed.seeds / whole) if whole else 0.0,
    )


def arm_differences(runs: Runs) -> Iterator[ArmDifference]:
    """The differences of all arms from each stage's reference; none without its answers, or with fewer than two arms."""
    for stage, task, decoder in runs.places():
        measure, rates = _rates(runs, stage, task, decoder)
        reference = runs.reference(stage)
        sides = {arm: ([own], [rates[reference]]) for arm, own in rates.items() if arm != reference}
        for arm, found in _family(sides):
            note = runs.different_judges((arm, reference), (stage,), task, decoder)
            yield ArmDifference(stage, task, decoder, measure, arm.name, reference.name, **found, note=note)


def arm_changes(runs: Runs, parents: Mapping[str, str]) -> Iterator[ArmChange]:
    """What each stage changes in every arm on the prompts that it shares with its parent, and against the stage's reference.

    `parents` has the stage that each one continues from. The changes are one family, those against the reference another.
    """
    for stage, task, decoder in runs.places():
        if stage not in parents:
            continue
        (measure, after), (_, before) = (_rates(runs, name, task, decoder) for name in (stage, parents[stage]))
        reference = runs.reference(stage)
        own = {arm: ([after[arm]], [before[arm]]) for arm in runs.arms}
        against = {
            arm: ([after[arm], before[reference]], [before[arm], after[reference]]) for arm in runs.arms if arm != reference
        }
        for name, sides in (("", own), (reference.name, against)):
            for arm, found in _family(sides):
                arms = (arm, reference) if name else (arm,)
                note = runs.different_judges(arms, (stage, parents[stage]), task, decoder)
                yield ArmChange(parents[stage], stage, task, decoder, measure, arm.name, name, **found, note=note)


Sides = tuple[Sequence[BySeed], Sequence[BySeed]]
"""Rates to add up, and as many to subtract."""


def _family(sides: Mapping[ArmInfo, Sides]) -> Iterator[tuple[ArmInfo, dict[str, Any]]]:
    """What the tests of one family found, for the arms that share answers on all their rates."""
    compared = [(arm, one, one.difference) for arm, of in sides.items() if (one := compare(*of)) is not None]
    adjusted = holm([gap.p for _, _, gap in compared])
    for (arm, one, gap), p_holm in zip(compared, adjusted, strict=True):
        times = len(sides[arm][0])  # `compare` is of means over the rates of a side
        found: dict[str, Any] = {name: getattr(gap, name) * times for name in ("value", "low", "high")}
        found |= {"p": gap.p, "p_holm": p_holm, "test": "seeds" if one.crossed else "score", "prompts": gap.n}
        alone = {seed: round(value * times, 3) + 0.0 for seed, value in one.runs.items()}  # no -0.0
        yield arm, {**found, "seeds": one.seeds, "runs": alone}
