"""The paper's claims put to the rows of a study: reproduced, not reproduced, inconclusive or not measured.

The claims (`eval/analysis/claims.py`) are one family for Holm's correction. A claim that compares several pairs of arms holds
only if every pair does, so its p is the largest of theirs (an intersection-union test); the difference shown is that
of the weakest pair, or of the pair that contradicts the claim.

How a pair A, B is decided, by d = A - B on shared prompts, its 95% interval, and p adjusted over all measured claims:
- "lower", "higher": reproduced if d has the claimed sign and p < 0.05; not reproduced if the interval lies on the other
  side of zero or shows d to be negligible; else inconclusive.
- "not higher": reproduced if p < 0.05 for "d is below what counts as minor"; not reproduced if the interval is above 0.
- "same": reproduced if p < 0.05 for "d is minor in either direction"; not reproduced if the interval excludes zero.
Each arm is one training run: these p speak of prompts (of training subsets, for probes), not of training seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from curricula.eval.analysis.claims import AUC, CLAIMS, ArmInfo, Claim, Direction, Group
from curricula.eval.analysis.statistics import (
    Difference,
    difference,
    holm,
    p_above,
    p_below,
    paired_tally,
    seed_difference,
)
from curricula.eval.rows import JudgedRow, ProbeRow

Result = Literal["reproduced", "not reproduced", "inconclusive", "not measured"]
SIGNIFICANT = 0.05


@dataclass(frozen=True)
class StudyRows:
    """All rows of a study: generations by (arm, stage, task), probes by (arm, stage); no key, not yet evaluated."""

    arms: tuple[ArmInfo, ...]
    generations: dict[tuple[str, str, str], list[JudgedRow]]
    probes: dict[tuple[str, str], list[ProbeRow]]


@dataclass(frozen=True)
class Trend:
    """What the rows say about one claim; `p` is that of the claim, adjusted by Holm over all measured claims."""

    id: str
    source: str
    sentence: str
    measure: str
    comparison: str  # names of the arms of the weakest pair, "A - B"
    outcome: Result
    difference: float | None
    low: float | None
    high: float | None
    p: float | None
    n: int  # shared prompts, or probe seeds


@dataclass(frozen=True)
class Comparison:
    names: str
    found: Difference
    p: float  # of the claim's own null hypothesis, unadjusted


def judge_claims(study: StudyRows, claims: Sequence[Claim] = CLAIMS) -> list[Trend]:
    """Every claim put to the rows, in order."""
    compared = [[compare(study, claim, a, b) for a, b in claim.pairs] for claim in claims]
    complete = [[pair for pair in pairs if pair] if all(pairs) else [] for pairs in compared]
    measured = [i for i, pairs in enumerate(complete) if pairs]
    adjusted = dict(zip(measured, holm([max(pair.p for pair in complete[i]) for i in measured])))
    return [
        trend_of(claim, pairs, adjusted[i]) if pairs else absent(claim)
        for i, (claim, pairs) in enumerate(zip(claims, complete))
    ]


def absent(claim: Claim) -> Trend:
    return Trend(
        claim.id, claim.source, claim.sentence, claim.measure.name, "", "not measured", None, None, None, None, 0
    )


def trend_of(claim: Claim, pairs: list[Comparison], p: float) -> Trend:
    weakest = max(pairs, key=lambda pair: (pair.p, -abs(pair.found.value)))
    outcome: Result = "inconclusive"
    if p < SIGNIFICANT:
        outcome = "reproduced"
    elif any(contradicts(claim, pair.found) for pair in pairs):
        outcome = "not reproduced"
        weakest = next(pair for pair in pairs if contradicts(claim, pair.found))
    found = weakest.found
    return Trend(
        claim.id,
        claim.source,
        claim.sentence,
        claim.measure.name,
        weakest.names,
        outcome,
        found.value,
        found.low,
        found.high,
        p,
        found.n,
    )


def contradicts(claim: Claim, found: Difference) -> bool:
    """Whether the interval rules the claimed relation out."""
    if claim.direction == "same":
        return found.low > 0 or found.high < 0
    if claim.direction == "not higher":
        return found.low > 0
    low, high = (-found.high, -found.low) if claim.direction == "higher" else (found.low, found.high)
    return low > 0 or (-claim.measure.negligible < low and high < claim.measure.negligible and high >= 0)


def compare(study: StudyRows, claim: Claim, a: Group, b: Group) -> Comparison | None:
    """A against B on what both have; None when arms or rows are missing."""
    ours, theirs = a.of(study.arms), b.of(study.arms)
    if not ours or not theirs:
        return None
    names = " - ".join(name_of(arms, group, claim) for arms, group in ((ours, a), (theirs, b)))
    if claim.measure.outcome is None:
        return compare_probes(study, claim, names, (ours, a.layer), (theirs, b.layer))
    task, decoder = claim.measure.task, claim.measure.decoder
    sides = [
        [
            [row for row in study.generations.get((arm.name, claim.stage, task), []) if row.decoder == decoder]
            for arm in arms
        ]
        for arms in (ours, theirs)
    ]
    paired = paired_tally(sides[0], sides[1], claim.measure.outcome)
    if paired is None:
        return None
    found, minor = difference(paired), claim.measure.minor
    one_sided: dict[Direction, Callable[[], float]] = {
        "not higher": lambda: p_below(paired, minor),
        "same": lambda: max(p_below(paired, minor), p_above(paired, -minor)),
    }
    return Comparison(names, found, one_sided.get(claim.direction, lambda: signed_p(claim, found))())


def signed_p(claim: Claim, found: Difference) -> float:
    """The two-sided p where the difference has the claimed sign, else 1."""
    return found.p if (found.value < 0) == (claim.direction == "lower") and found.value else 1.0


def compare_probes(
    study: StudyRows, claim: Claim, names: str, a: tuple[list[ArmInfo], str], b: tuple[list[ArmInfo], str]
) -> Comparison | None:
    """Mean AUC of the arms of A against those of B, paired by probe seed."""
    sides = []
    for arms, layer in (a, b):
        by_arm = [
            {row.seed: row.auc for row in study.probes.get((arm.name, claim.stage), []) if row.layer == layer}
            for arm in arms
        ]
        seeds = set.intersection(*map(set, by_arm))
        sides.append({seed: sum(aucs[seed] for aucs in by_arm) / len(by_arm) for seed in seeds})
    shared = sorted(set(sides[0]) & set(sides[1]))
    if not shared:
        return None
    found = seed_difference([sides[0][seed] for seed in shared], [sides[1][seed] for seed in shared])
    return Comparison(names, found, signed_p(claim, found))


def name_of(arms: list[ArmInfo], group: Group, claim: Claim) -> str:
    names = "all arms" if len(arms) > 4 else "mean(" + ", ".join(arm.name for arm in arms) + ")"
    names = arms[0].name if len(arms) == 1 else names
    return f"{names}, {group.layer} layer" if claim.measure is AUC else names
