"""Every arm against the arm that starts last: paired differences on shared prompts, with Holm's correction in each family.

A family is what a reader looks at together: all arms under one decoder after one stage, averaged over benchmarks. The
paper's claims are a family of their own (`eval/analysis/claim_tests.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from curricula.eval.analysis.metrics import harmful, overrefused
from curricula.eval.analysis.statistics import Outcome, difference, holm, pair_models
from curricula.eval.analysis.study_rows import ArmInfo, StudyRows
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
    seed: int
    """The training seed of both arms."""
    reference: str
    value: float
    """Negative if the arm is safer (or over-refuses less) than the reference."""
    low: float
    """Lower end of the 95% interval, over prompts."""
    high: float
    p: float
    """Two-sided."""
    p_holm: float
    """Adjusted over the arms of this stage and decoder."""
    test: str
    """The test behind `p` and the interval: "score" (Tango)."""
    prompts: int
    """Shared prompts."""


def arm_differences(study: StudyRows) -> Iterator[ArmDifference]:
    """The differences of all arms from the reference, the arm that starts last; none with fewer than two arms.

    Arms are compared within each training seed.
    """
    for seed in study.seeds:
        yield from _of_one_seed(study.of_seed(seed))


def _of_one_seed(study: StudyRows) -> Iterator[ArmDifference]:
    if len(study.arms) < 2:
        return
    reference = max(study.arms, key=lambda arm: arm.start)
    for stage, task in dict.fromkeys((stage, task) for _, stage, task in study.generations):
        for decoder in sorted({row.decoder for row in study.answers(reference, stage, task)}):
            yield from _family(study, reference, stage, task, decoder)


def _family(study: StudyRows, reference: ArmInfo, stage: str, task: str, decoder: str) -> Iterator[ArmDifference]:
    measure, outcome = MEASURES[kind_of(task)]
    baseline = study.answers(reference, stage, task, decoder)
    arms = [arm for arm in study.arms if arm != reference]
    paired = [pair_models([study.answers(arm, stage, task, decoder)], [baseline], outcome) for arm in arms]
    compared = [(arm, difference(pairs)) for arm, pairs in zip(arms, paired) if pairs is not None]
    adjusted = holm([gap.p for _, gap in compared])
    for (arm, gap), p_holm in zip(compared, adjusted, strict=True):
        yield ArmDifference(
            stage=stage,
            task=task,
            decoder=decoder,
            measure=measure,
            arm=arm.name,
            seed=arm.seed,
            reference=reference.name,
            value=gap.value,
            low=gap.low,
            high=gap.high,
            p=gap.p,
            p_holm=p_holm,
            test="score",
            prompts=gap.n,
        )
