"""Every arm against the arm that starts last, of those that are to have the stage: paired differences on shared prompts, with
Holm's correction in each family. There is none until that arm has answers.

A family is what a reader looks at together: all arms under one decoder after one stage, averaged over benchmarks. The
paper's claims are a family of their own (`eval/analysis/claim_tests.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from curricula.eval.analysis.metrics import harmful, overrefused
from curricula.eval.analysis.runs import Runs
from curricula.eval.analysis.seeds import BySeed, by_seed, compare
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
    """Adjusted over the arms of this stage and decoder."""
    test: str
    """The test behind `p` and the interval: "seeds" (`eval/analysis/seeds.py`) or "score" (Tango): of a single run, and of runs
    without a benchmark that all have answered."""
    prompts: int
    """Shared prompts."""
    seeds: int
    """Shared training seeds."""
    runs: str = ""
    """Each training seed's difference, such as "42: -0.147, 43: +0.020"."""
    note: str = ""
    """Whether the two arms' verdicts are of different judges, or of different versions of one."""


def arm_differences(runs: Runs) -> Iterator[ArmDifference]:
    """The differences of all arms from each stage's reference; none without its answers, or with fewer than two arms."""
    for stage, task, decoder in runs.places():
        yield from _family(runs, runs.reference(stage), stage, task, decoder)


def _family(runs: Runs, reference: ArmInfo, stage: str, task: str, decoder: str) -> Iterator[ArmDifference]:
    measure, outcome = MEASURES[kind_of(task)]
    baseline = runs.rates(reference, stage, task, decoder, outcome)
    arms = [arm for arm in runs.arms if arm != reference]
    found = [compare([runs.rates(arm, stage, task, decoder, outcome)], [baseline]) for arm in arms]
    compared = [(arm, one, one.difference) for arm, one in zip(arms, found) if one is not None]
    adjusted = holm([gap.p for _, _, gap in compared])
    for (arm, one, gap), p_holm in zip(compared, adjusted, strict=True):
        yield ArmDifference(
            stage=stage,
            task=task,
            decoder=decoder,
            measure=measure,
            arm=arm.name,
            reference=reference.name,
            value=gap.value,
            low=gap.low,
            high=gap.high,
            p=gap.p,
            p_holm=p_holm,
            test="seeds" if one.crossed else "score",
            prompts=gap.n,
            seeds=one.seeds,
            runs=_by_seed(runs.rates(arm, stage, task, decoder, outcome), baseline),
            note=runs.different_judges((arm, reference), stage, task, decoder),
        )


def _by_seed(arm: BySeed, reference: BySeed) -> str:
    """The difference within each training seed, on the prompts that both arms have answered there."""
    alone = {seed: compare([{seed: arm[seed]}], [{seed: reference[seed]}]) for seed in sorted(set(arm) & set(reference))}
    return by_seed({seed: one.evidence.value for seed, one in alone.items() if one}, "+.3f")
