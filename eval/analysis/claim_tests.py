"""Tests of the paper's claims over training seeds: reproduced, not reproduced, inconclusive, single run or not measured.

The claims (`eval/analysis/claims.py`) are one family for Holm's correction. A claim that compares several pairs of arms
holds only if every pair does, so its p-value is the largest of theirs (an intersection-union test); a single pair refutes it,
so the p-value of its refutation is the smallest times their number. Both lists of p-values are adjusted over the family. The
difference shown is that of the weakest pair, or of the pair that contradicts the claim.

For a pair A, B let d = A - B over shared training seeds and prompts (`eval/analysis/seeds.py`):
- "lower", "higher": reproduced if d has the claimed sign and p < 0.05; not reproduced if it has the other sign and p < 0.05,
  or if p < 0.05 for "d is negligible".
- "not higher": reproduced if p < 0.05 for "d is below the minor difference"; not reproduced if d > 0 and p < 0.05.
- "same": reproduced if p < 0.05 for "d is minor in either direction"; not reproduced if p < 0.05 for d other than 0.
Everything else is inconclusive. **One training run of an arm decides nothing**: its difference and interval are shown,
without a p-value. Incoherent cells (`eval/analysis/runs.py`) are left out where they could pass for safe ones. A claim
is not measured where the study lacks one of its arms, or where its arms were judged by different versions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from curricula.eval.analysis.claims import AUC, CLAIMS, Claim, Group
from curricula.eval.analysis.metrics import helpful_if_compliant
from curricula.eval.analysis.runs import Runs
from curricula.eval.analysis.seeds import BySeed, Compared, compare, compare_probes
from curricula.eval.analysis.statistics import holm, p_above, p_below
from curricula.eval.analysis.study_rows import ArmInfo

ClaimOutcome = Literal["reproduced", "not reproduced", "inconclusive", "single run", "not measured"]

SINGLE_RUN = "single run: differences may be due to the seed"
NOTHING_SHARED = "the runs share no benchmark, so nothing is known about seeds"

LEFT_OUT = "left out as incoherent"

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
    """Of the whole claim, adjusted by Holm over all tested claims; None for a single run."""
    n: int
    """Shared prompts or, for probes, training subsets."""
    seeds: int
    """Training seeds that the arms of the pair shown share."""
    note: str
    """Why it is not measured, or what else decides the outcome: a single run, or cells left out as incoherent."""


@dataclass(frozen=True)
class Comparison:
    """One pair of a claim, measured."""

    names: str
    compared: Compared
    p: float
    """Of the claim's own null hypothesis, unadjusted."""
    p_against: float
    """Of the hypothesis that the claim holds, unadjusted."""


def run_claim_tests(runs: Runs, claims: Sequence[Claim] = CLAIMS) -> list[ClaimTest]:
    """Test every claim, in order."""
    barred = [_barred(runs, claim) for claim in claims]
    comparisons = [[] if why else _compare_all(runs, claim) for claim, why in zip(claims, barred)]
    tested = [i for i, pairs in enumerate(comparisons) if pairs and all(pair.compared.crossed for pair in pairs)]
    holds = holm([max(pair.p for pair in comparisons[i]) for i in tested])
    fails = holm([len(comparisons[i]) * min(pair.p_against for pair in comparisons[i]) for i in tested])
    adjusted = dict(zip(tested, zip(holds, fails)))
    notes = [
        _left_out(runs, claim) if pairs else why or _unmeasured(runs, claim)
        for claim, why, pairs in zip(claims, barred, comparisons)
    ]
    return [_claim_test(claim, comparisons[i], adjusted.get(i), notes[i]) for i, claim in enumerate(claims)]


def _claim_test(claim: Claim, pairs: Sequence[Comparison], adjusted: tuple[float, float] | None, note: str) -> ClaimTest:
    """The test of a claim, from its pairs and its adjusted p-values: for it, against it."""
    described = (claim.id, claim.source, claim.sentence, claim.measure.name)
    if not pairs:
        return ClaimTest(*described, "", "not measured", None, None, None, None, 0, 0, note)
    shown = max(pairs, key=lambda pair: (pair.p, -abs(pair.compared.difference.value)))
    notes = [note] if note else []
    outcome: ClaimOutcome = "inconclusive"
    p: float | None = None
    if adjusted is None:
        untested = [pair for pair in pairs if not pair.compared.crossed]
        outcome, shown = "single run", min(untested, key=lambda pair: (pair.compared.seeds, -pair.p))
        notes.insert(0, SINGLE_RUN if shown.compared.seeds == 1 else NOTHING_SHARED)
    else:
        p, p_against = adjusted
        if p < SIGNIFICANT:
            outcome = "reproduced"
        elif p_against < SIGNIFICANT:
            outcome, shown = "not reproduced", min(pairs, key=lambda pair: pair.p_against)
    gap = shown.compared.difference
    return ClaimTest(
        *described, shown.names, outcome, gap.value, gap.low, gap.high, p, gap.n, shown.compared.seeds, "; ".join(notes)
    )


def _barred(runs: Runs, claim: Claim) -> str:
    """Why the claim is not tested whatever the rows say; empty if nothing speaks against it."""
    groups, measure = [group for pair in claim.pairs for group in pair], claim.measure
    if absent := dict.fromkeys(name for group in groups for name in group.absent(runs.arms)):
        return f"the study lacks {', '.join(absent)}"
    return runs.different_judges(_arms_of(runs, claim), (claim.stage,), measure.task, measure.decoder)


def _arms_of(runs: Runs, claim: Claim) -> list[ArmInfo]:
    return list(dict.fromkeys(arm for pair in claim.pairs for group in pair for arm in group.select(runs.arms)))


def _compare_all(runs: Runs, claim: Claim) -> list[Comparison]:
    """Every pair of the claim, measured; none at all if one of them lacks rows."""
    comparisons = []
    for a, b in claim.pairs:
        sides = [(group.select(runs.arms), group) for group in (a, b)]
        if claim.measure.outcome is None:
            probed = [[runs.aucs(arm, claim.stage, group.layer) for arm in arms] for arms, group in sides]
            compared = compare_probes(*probed)
        else:
            compared = compare(*[[_rates(runs, claim, arm) for arm in arms] for arms, _ in sides])
        if compared is None:
            return []
        names = " - ".join(_group_label(claim, group, arms) for arms, group in sides)
        comparisons.append(Comparison(names, compared, *_p_values(claim, compared)))
    return comparisons


def _rates(runs: Runs, claim: Claim, arm: ArmInfo) -> BySeed:
    measure = claim.measure
    assert measure.outcome is not None
    left_out = _incoherent(runs, claim, arm)
    rates = runs.rates(arm, claim.stage, measure.task, measure.decoder, measure.outcome)
    return {seed: means for seed, means in rates.items() if seed not in left_out}


def _incoherent(runs: Runs, claim: Claim, arm: ArmInfo) -> list[int]:
    """The seeds of the arm whose cells are measured and left out; a claim about helpfulness itself keeps all."""
    measure = claim.measure
    if measure.outcome in (None, helpful_if_compliant):
        return []
    measured = runs.rates(arm, claim.stage, measure.task, measure.decoder, measure.outcome)
    return [seed for seed in runs.incoherent_seeds(arm, claim.stage, measure.decoder) if seed in measured]


def _unmeasured(runs: Runs, claim: Claim) -> str:
    """Why a claim about arms that the study has cannot be measured, in a sentence."""
    measure, lacking = claim.measure, []
    for group in (group for pair in claim.pairs for group in pair):
        for arm in group.select(runs.arms):
            if measure.outcome is None:
                found = bool(runs.aucs(arm, claim.stage, group.layer))
            else:
                found = bool(runs.rates(arm, claim.stage, measure.task, measure.decoder, measure.outcome))
            lacking += [] if found else [arm.name]
    if lacking:
        return f"not measured at stage {claim.stage}: {', '.join(dict.fromkeys(lacking))}"
    return _left_out(runs, claim) or "the arms' runs have nothing in common that could be compared"


def _left_out(runs: Runs, claim: Claim) -> str:
    """What a claim cannot count, in a sentence; empty if there is nothing."""
    cells = [f"{arm.name} (seed {seed})" for arm in _arms_of(runs, claim) for seed in _incoherent(runs, claim, arm)]
    return f"{LEFT_OUT}: {', '.join(cells)}" if cells else ""


def _p_values(claim: Claim, compared: Compared) -> tuple[float, float]:
    """The p-values for the claim and against it."""
    found, measure = compared.evidence, claim.measure
    two_sided = found.p(0.0)
    if claim.direction == "same":
        return max(p_below(found, measure.minor), p_above(found, -measure.minor)), two_sided
    if claim.direction == "not higher":
        return p_below(found, measure.minor), two_sided if found.value > 0 else 1.0
    if (found.value < 0) == (claim.direction == "lower"):  # without a difference both are 1
        opposite, held = 1.0, two_sided
    else:
        opposite, held = two_sided, 1.0
    # Twice, as a two-sided p; and no refutation of a difference that is small but there.
    negligible = 2 * max(p_below(found, measure.negligible), p_above(found, -measure.negligible))
    return held, min(opposite, negligible if held >= SIGNIFICANT else 1.0)


def _group_label(claim: Claim, group: Group, arms: list[ArmInfo]) -> str:
    names = "all arms" if len(arms) > 4 else "mean(" + ", ".join(arm.name for arm in arms) + ")"
    names = arms[0].name if len(arms) == 1 else names
    return f"{names}, {group.layer} layer" if claim.measure is AUC else names
