"""The paper's claims, put to rows in which we know what is true."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from study_rows import ARMS, attack_rows, generation, overrefusal_rows, probe_rows

from curricula.eval.analysis.claim_tests import StudyRows, Trend, judge_claims
from curricula.eval.analysis.claims import CLAIMS, ArmInfo, Claim

PROMPTS = {"harmbench": 150, "tdc": 50}


def claim(name: str) -> Claim:
    return next(of for of in CLAIMS if of.id == name)


def attacks(task: str, stage: str, decoder: str, samples: int, rate) -> StudyRows:
    rows = {(arm.name, stage, task): attack_rows(arm, stage, decoder, rate(arm), samples, PROMPTS) for arm in ARMS}
    return StudyRows(tuple(ARMS), rows, {})


def only(trends: list[Trend]) -> Trend:
    (trend,) = trends
    return trend


def earlier_is_safer(arm: ArmInfo) -> float:
    return 0.15 if arm.start < 0.5 else 0.35 if arm.start < 1 else 0.6


def test_a_true_claim_is_reproduced():
    study = attacks("attacks-topk", "benign", "topk", 5, earlier_is_safer)
    trend = only(judge_claims(study, [claim("benign-early-beats-safe-only")]))
    assert trend.outcome == "reproduced" and trend.high < 0 and trend.p < 0.05 and trend.n == 200


def test_the_opposite_of_a_claim_is_not_reproduced():
    study = attacks("attacks-topk", "benign", "topk", 5, lambda arm: 0.75 - earlier_is_safer(arm))
    trend = only(judge_claims(study, [claim("benign-early-beats-safe-only")]))
    assert trend.outcome == "not reproduced" and trend.low > 0 and trend.p == 1


def test_no_visible_difference_is_inconclusive():
    study = attacks("attacks-topk", "benign", "topk", 1, lambda arm: 0.4)
    assert only(judge_claims(study, [claim("benign-twenty-beats-sixty")])).outcome == "inconclusive"


def test_models_that_never_differ_on_many_prompts_are_not_reproduced_and_on_few_inconclusive():
    outcomes = []
    for prompts in (20, 400):
        rows = [
            generation(prompt_id=str(i), prompt=f"p {i}", behavior=f"b {i}", model_kind="benign")
            for i in range(prompts)
        ]
        study = StudyRows(tuple(ARMS), {(arm.name, "benign", "attacks-topk"): rows for arm in ARMS}, {})
        outcomes.append(only(judge_claims(study, [claim("benign-early-beats-safe-only")])).outcome)
    assert outcomes == ["inconclusive", "not reproduced"]


def test_every_comparison_of_a_claim_must_hold():
    def all_but_one(arm: ArmInfo) -> float:
        return 0.65 if arm.name == "data-60" else 0.6 if arm.start == 1 else 0.2

    study = attacks("attacks-topk", "base", "topk", 5, all_but_one)
    trend = only(judge_claims(study, [claim("base-safe-only-worst")]))
    assert trend.outcome != "reproduced" and trend.comparison == "safe-100 - data-60"


def test_gcg_middle_starts_are_compared_with_both_ends():
    rates = {0.0: 0.6, 0.2: 0.15, 0.6: 0.2, 1.0: 0.7}
    study = attacks("gcg", "instruct", "gcg+safebeam", 1, lambda arm: rates[arm.start])
    assert only(judge_claims(study, [claim("gcg-safebeam-middle")])).outcome == "reproduced"


@pytest.mark.parametrize(("gap", "outcome"), [(0.0, "reproduced"), (0.3, "not reproduced")])
def test_no_noticeable_change_needs_evidence_of_equality(gap, outcome):
    def rows(arm: ArmInfo):
        changed = {str(i) for i in range(int(300 * gap))} if arm.start < 1 else set()
        return [
            generation(
                prompt_id=str(i),
                behavior=f"b {i}",
                decoder="gcg+topk",
                verdict="harmful" if str(i) in changed or (i % 2 and i % 97) else "safe",
            )
            for i in range(300)
        ]

    study = StudyRows(tuple(ARMS), {(arm.name, "instruct", "gcg"): rows(arm) for arm in ARMS}, {})
    assert only(judge_claims(study, [claim("gcg-topk-flat")])).outcome == outcome


def test_no_rise_in_overrefusal_is_a_claim_that_can_fail():
    def study(early: float) -> StudyRows:
        def shares(arm: ArmInfo) -> tuple[float, ...]:
            refusals = early if arm.start < 1 else 0.1
            return (0.9 - refusals, 0.1, 0.0, refusals)

        rows = {
            (arm.name, "instruct", "overrefusal-topk"): overrefusal_rows(arm, "topk", shares(arm), 400) for arm in ARMS
        }
        return StudyRows(tuple(ARMS), rows, {})

    outcomes = [only(judge_claims(study(early), [claim("overrefusal-topk-no-rise")])).outcome for early in (0.02, 0.4)]
    assert outcomes == ["reproduced", "not reproduced"]


@pytest.mark.parametrize(("lift", "outcome"), [(0.1, "reproduced"), (-0.1, "not reproduced")])
def test_probe_claims_compare_aucs_over_seeds(lift, outcome):
    probes = {(arm.name, "base"): probe_rows(arm, "base", "last", 0.8 + lift * (arm.name == "full-0")) for arm in ARMS}
    study = StudyRows(tuple(ARMS), {}, probes)
    assert only(judge_claims(study, [claim("probe-tags-beat-data")])).outcome == outcome


def test_layers_are_compared_within_the_same_models():
    probes = {
        (arm.name, "base"): [
            row
            for layer, auc in (("first", 0.6), ("middle", 0.7), ("last", 0.8))
            for row in probe_rows(arm, "base", layer, auc)
        ]
        for arm in ARMS
    }
    trend = only(judge_claims(StudyRows(tuple(ARMS), {}, probes), [claim("probe-last-layer-best")]))
    assert trend.outcome == "reproduced" and trend.difference == pytest.approx(0.1, abs=0.02)


def test_claims_without_rows_are_not_measured_and_do_not_count_in_holms_family():
    nothing = judge_claims(StudyRows(tuple(ARMS), {}, {}))
    assert {trend.outcome for trend in nothing} == {"not measured"}
    study = attacks("attacks-topk", "benign", "topk", 5, earlier_is_safer)
    family = judge_claims(study)
    assert sum(trend.outcome != "not measured" for trend in family) == 2
    alone = only(judge_claims(study, [claim("benign-early-beats-safe-only")]))
    together = next(trend for trend in family if trend.id == alone.id)
    assert together.p == pytest.approx(2 * alone.p)


def test_one_arm_without_rows_leaves_its_claims_unmeasured():
    study = attacks("attacks-topk", "benign", "topk", 5, earlier_is_safer)
    del study.generations["data-20", "benign", "attacks-topk"]
    assert only(judge_claims(study, [claim("benign-twenty-beats-sixty")])).outcome == "not measured"


def test_claims_have_unique_names_and_cover_all_nine_figures():
    assert len({of.id for of in CLAIMS}) == len(CLAIMS)
    text = " ".join(of.source for of in CLAIMS)
    assert all(f"{number}" in text for number in range(1, 10))


def test_trends_are_plain_data(tmp_path: Path):
    study = attacks("attacks-topk", "benign", "topk", 2, earlier_is_safer)
    assert judge_claims(study) == judge_claims(dataclasses.replace(study))
