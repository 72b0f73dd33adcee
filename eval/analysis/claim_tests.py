"""Tests of the paper's claims on the rows of a study: reproduced, not reproduced, inconclusive or not measured.

The claims (`eval/analysis/claims.py`) are one family for Holm's correction. A claim that compares several pairs of arms
holds only if every pair does, so its p-value is the largest of theirs (an intersection-union test). The difference shown
is that of the weakest pair, or of the pair that contradicts the claim.

For a pair A, B let d = A - B on shared prompts, with its 95% interval, and p adjusted over all measured claims:
- "lower", "higher": reproduced if d has the claimed sign and p < 0.05; not reproduced if the interval lies on the other
  side of zero or shows d to be negligible; otherwise inconclusive.
- "not higher": reproduced if p < 0.05 for "d is below the minor difference"; not reproduced if the interval is above 0.
- "same": reproduced if p < 0.05 for "d is minor in either direction"; not reproduced if the interval excludes zero.
Each arm is one training run: these p-values cover prompts (for probes, training subsets), not training seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from curricula.eval.analysis.claims import AUC, CLAIMS, Claim, Group
from curricula.eval.analysis.statistics import (
    Difference,
    difference,
    holm,
    p_above,
    p_below,
    pair_models,
    seed_difference,
)
from curricula.eval.analysis.study_rows import ArmInfo, StudyRows

ClaimOutcome = Literal["reproduced", "not reproduced", "inconclusive", "not measured"]

SIGNIFICANT = 0.05
"""Adjusted p-values below this are significant."""


@dataclass(frozen=True)
class ClaimTest:
    """What the rows of a study show about one claim."""

    id: str
    source: str
    sentence: str
    measure: str
    comparison: str
    """Names of the arms of the pair shown, "A - B"; empty if not measured."""
    outcome: ClaimOutcome
    difference: float | None
    """A minus B."""
    low: float | None
    """Lower end of the 95% interval."""
    high: float | None
    p: float | None
    """Of the whole claim, adjusted by Holm over all measured claims."""
    n: int
    """Shared prompts or, for probes, seeds."""


@dataclass(frozen=True)
class Comparison:
    """One pair of a claim, measured."""

    names: str
    difference: Difference
    p: float
    """Of the claim's own null hypothesis, unadjusted."""


def run_claim_tests(study: StudyRows, claims: Sequence[Claim] = CLAIMS) -> list[ClaimTest]:
    """Test every claim, in order, on the first training seed alone."""
    study = study.of_seed(study.seeds[0])
    comparisons = [_compare_all(study, claim) for claim in claims]
    measured = [i for i, pairs in enumerate(comparisons) if pairs]
    adjusted = dict(zip(measured, holm([max(pair.p for pair in comparisons[i]) for i in measured])))
    return [_claim_test(claim, comparisons[i], adjusted.get(i)) for i, claim in enumerate(claims)]


def _claim_test(claim: Claim, pairs: Sequence[Comparison], p: float | None) -> ClaimTest:
    """The test of a claim, from its pairs and its adjusted p-value; "not measured" without them."""
    described = (claim.id, claim.source, claim.sentence, claim.measure.name)
    if p is None:
        return ClaimTest(*described, "", "not measured", None, None, None, None, 0)
    contradicting = [pair for pair in pairs if contradicts(claim, pair.difference)]
    shown = max(pairs, key=lambda pair: (pair.p, -abs(pair.difference.value)))
    outcome: ClaimOutcome = "inconclusive"
    if p < SIGNIFICANT:
        outcome = "reproduced"
    elif contradicting:
        outcome, shown = "not reproduced", contradicting[0]
    gap = shown.difference
    return ClaimTest(*described, shown.names, outcome, gap.value, gap.low, gap.high, p, gap.n)


def contradicts(claim: Claim, gap: Difference) -> bool:
    """Whether the interval rules out the claimed relation."""
    if claim.direction == "same":
        return gap.low > 0 or gap.high < 0
    if claim.direction == "not higher":
        return gap.low > 0
    low, high = (-gap.high, -gap.low) if claim.direction == "higher" else (gap.low, gap.high)
    return low > 0 or (-claim.measure.negligible < low and high < claim.measure.negligible and high >= 0)


def _compare_all(study: StudyRows, claim: Claim) -> list[Comparison]:
    """Every pair of the claim, measured; none at all if one of them lacks arms or rows."""
    compare = _compare_probes if claim.measure.outcome is None else _compare_answers
    comparisons = []
    for a, b in claim.pairs:
        a_arms, b_arms = a.select(study.arms), b.select(study.arms)
        measured = compare(study, claim, (a_arms, a.layer), (b_arms, b.layer)) if a_arms and b_arms else None
        if measured is None:
            return []
        names = f"{_group_label(claim, a, a_arms)} - {_group_label(claim, b, b_arms)}"
        comparisons.append(Comparison(names, *measured))
    return comparisons


Side = tuple[list[ArmInfo], str]
"""One side of a comparison: its arms and, for probes, the layer."""


def _compare_answers(study: StudyRows, claim: Claim, a: Side, b: Side) -> tuple[Difference, float] | None:
    """A against B on the prompts they share, and the p-value of the claim; None if they share none."""
    measure = claim.measure
    assert measure.outcome is not None
    a_rows, b_rows = (
        [study.answers(arm, claim.stage, measure.task, measure.decoder) for arm in arms] for arms, _ in (a, b)
    )
    paired = pair_models(a_rows, b_rows, measure.outcome)
    if paired is None:
        return None
    gap = difference(paired)
    if claim.direction == "not higher":
        return gap, p_below(paired, measure.minor)
    if claim.direction == "same":
        return gap, max(p_below(paired, measure.minor), p_above(paired, -measure.minor))
    return gap, _p_if_directed(claim, gap)


def _compare_probes(study: StudyRows, claim: Claim, a: Side, b: Side) -> tuple[Difference, float] | None:
    """Mean AUC of the arms of A against that of B, paired by probe seed; None if they share no seed."""
    sides = []
    for arms, layer in (a, b):
        aucs = [
            {row.seed: row.auc for row in study.probes.get((arm.key, claim.stage), []) if row.layer == layer}
            for arm in arms
        ]
        seeds = set.intersection(*map(set, aucs))
        sides.append({seed: sum(by_seed[seed] for by_seed in aucs) / len(aucs) for seed in seeds})
    shared = sorted(set(sides[0]) & set(sides[1]))
    if not shared:
        return None
    gap = seed_difference([sides[0][seed] for seed in shared], [sides[1][seed] for seed in shared])
    return gap, _p_if_directed(claim, gap)


def _p_if_directed(claim: Claim, gap: Difference) -> float:
    """The two-sided p-value if the difference has the claimed sign, else 1."""
    return gap.p if (gap.value < 0) == (claim.direction == "lower") and gap.value else 1.0


def _group_label(claim: Claim, group: Group, arms: list[ArmInfo]) -> str:
    names = "all arms" if len(arms) > 4 else "mean(" + ", ".join(arm.name for arm in arms) + ")"
    names = arms[0].name if len(arms) == 1 else names
    return f"{names}, {group.layer} layer" if claim.measure is AUC else names
