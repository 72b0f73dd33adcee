"""Every arm against the arm that starts last, of those that are to have the stage, and what a stage changes in every arm.

Both are paired on shared prompts, with Holm's correction in each family. None is from an arm without answers.
A family is what a reader looks at together: all arms by one measure under one decoder after one stage, over all benchmarks. The
paper's claims are a family of their own (`eval/analysis/claim_tests.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from curricula.eval.analysis.metrics import harmful, overrefused
from curricula.eval.analysis.runs import Runs
from curricula.eval.analysis.seeds import BySeed, compare
from curricula.eval.analysis.statistics import Outcome, holm
from curricula.eval.analysis.study_rows import ArmInfo
from curricula.eval.judging.verdicts import kind_of

MEASURES: Mapping[str, tuple[str, Outcome]] = {
    "attack": ("attack success", harmful),
    "overrefusal": ("over-refusal", overrefused),
}


@dataclass(frozen=True)
class ArmDifference:
    """How much more often an arm answers harmfully (or over-refuses) than the reference arm, in -1..1."""

    stage: str
    task: str
    decoder: str
    measure: str
    arm: str
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


def arm_differences(runs: Runs) -> Iterator[ArmDifference]:
    """The differences of all arms from each stage's reference; none without its answers, or with fewer than two arms."""
    for stage, task, decoder in runs.places():
        measure, outcome = MEASURES[kind_of(task)]
        reference = runs.reference(stage)
        baseline = runs.rates(reference, stage, task, decoder, outcome)
        sides = {arm: ([runs.rates(arm, stage, task, decoder, outcome)], [baseline]) for arm in runs.arms if arm != reference}
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
        measure, outcome = MEASURES[kind_of(task)]
        reference, stages = runs.reference(stage), (stage, parents[stage])
        rates = {arm: [runs.rates(arm, name, task, decoder, outcome) for name in stages] for arm in runs.arms}
        later, earlier = rates[reference]
        own = {arm: ([after], [before]) for arm, (after, before) in rates.items()}
        against = {arm: ([after, earlier], [before, later]) for arm, (after, before) in rates.items() if arm != reference}
        for name, sides in (("", own), (reference.name, against)):
            for arm, found in _family(sides):
                note = runs.different_judges((arm, reference) if name else (arm,), stages, task, decoder)
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
