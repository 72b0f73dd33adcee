"""Every arm against the arm that never saw interventions: paired differences on shared prompts, Holm over each family.

A family is what one reader looks at together: all arms under one decoder after one stage, on the average over benchmarks.
The claims of the paper are a family of their own (`eval/analysis/claim_tests.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from curricula.eval.analysis.claims import ArmInfo
from curricula.eval.analysis.metrics import harmful, overrefused
from curricula.eval.analysis.statistics import Outcome, difference, holm, mcnemar_p, paired_tally
from curricula.eval.judging.verdicts import kind_of
from curricula.eval.rows import JudgedRow

MEASURES: Mapping[str, tuple[str, Outcome]] = {
    "attack": ("attack success", harmful),
    "overrefusal": ("over-refusal", overrefused),
}


@dataclass(frozen=True)
class ArmDifference:
    """How much more often an arm does harm (or over-refuses) than the reference. In -1..1; negative is safer."""

    stage: str
    task: str
    decoder: str
    measure: str
    arm: str
    reference: str
    value: float
    low: float  # 95%, prompts resampled
    high: float
    p: float  # two-sided
    p_holm: float  # adjusted over the arms of this stage and decoder
    test: str  # "mcnemar" | "sign flips"
    prompts: int  # shared


def arm_differences(
    arms: Sequence[ArmInfo], generations: Mapping[tuple[str, str, str], Sequence[JudgedRow]]
) -> Iterator[ArmDifference]:
    """All differences from the reference arm, the one that starts last; none without two arms. Rows by (arm, stage, task)."""
    if len(arms) < 2:
        return
    reference = max(arms, key=lambda arm: arm.start)
    for stage, task in dict.fromkeys((stage, task) for _, stage, task in generations):
        base = generations.get((reference.name, stage, task), [])
        for decoder in sorted({row.decoder for row in base}):
            yield from _family(arms, reference, generations, stage, task, decoder)


def _family(
    arms: Sequence[ArmInfo],
    reference: ArmInfo,
    generations: Mapping[tuple[str, str, str], Sequence[JudgedRow]],
    stage: str,
    task: str,
    decoder: str,
) -> Iterator[ArmDifference]:
    measure, outcome = MEASURES[kind_of(task)]

    def rows_of(arm: ArmInfo) -> list[JudgedRow]:
        return [row for row in generations.get((arm.name, stage, task), []) if row.decoder == decoder]

    compared = [(arm, paired_tally([rows_of(arm)], [rows_of(reference)], outcome)) for arm in arms if arm != reference]
    found = [(arm, of, difference(of)) for arm, of in compared if of is not None]
    for (arm, of, gap), adjusted in zip(found, holm([gap.p for _, _, gap in found]), strict=True):
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
            p_holm=adjusted,
            test="sign flips" if mcnemar_p(of) is None else "mcnemar",
            prompts=gap.n,
        )
