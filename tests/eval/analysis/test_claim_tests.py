"""The paper's claims, tested on rows whose truth is known."""

from __future__ import annotations

import dataclasses
import json

import pytest
from study_rows import ARMS, attack_rows, generation, overrefusal_rows, probe_rows

from curricula.eval.analysis import ArmInfo, StudyRows
from curricula.eval.analysis.claim_tests import ClaimTest, run_claim_tests
from curricula.eval.analysis.claims import CLAIMS, Claim

PROMPTS = {"harmbench": 150, "tdc": 50}


def claim(name: str) -> Claim:
    return next(each for each in CLAIMS if each.id == name)


def attacks(task: str, stage: str, decoder: str, samples: int, rate) -> StudyRows:
    rows = {(arm.name, stage, task): attack_rows(arm, stage, decoder, rate(arm), samples, PROMPTS) for arm in ARMS}
    return StudyRows(tuple(ARMS), rows, {})


def only(tests: list[ClaimTest]) -> ClaimTest:
    (test,) = tests
    return test


def earlier_is_safer(arm: ArmInfo) -> float:
    return 0.15 if arm.start < 0.5 else 0.35 if arm.start < 1 else 0.6


def test_a_true_claim_is_reproduced():
    study = attacks("attacks-topk", "benign", "topk", 5, earlier_is_safer)
    test = only(run_claim_tests(study, [claim("benign-early-beats-safe-only")]))
    assert test.outcome == "reproduced" and test.high < 0 and test.p < 0.05 and test.n == 200


def test_the_opposite_of_a_claim_is_not_reproduced():
    study = attacks("attacks-topk", "benign", "topk", 5, lambda arm: 0.75 - earlier_is_safer(arm))
    test = only(run_claim_tests(study, [claim("benign-early-beats-safe-only")]))
    assert test.outcome == "not reproduced" and test.low > 0 and test.p == 1


def test_no_visible_difference_is_inconclusive():
    study = attacks("attacks-topk", "benign", "topk", 1, lambda arm: 0.4)
    assert only(run_claim_tests(study, [claim("benign-twenty-beats-sixty")])).outcome == "inconclusive"


def test_models_that_never_differ_on_many_prompts_are_not_reproduced_and_on_few_inconclusive():
    outcomes = []
    for prompts in (20, 400):
        rows = [
            generation(prompt_id=str(i), prompt=f"p {i}", behavior=f"b {i}", model_kind="benign")
            for i in range(prompts)
        ]
        study = StudyRows(tuple(ARMS), {(arm.name, "benign", "attacks-topk"): rows for arm in ARMS}, {})
        outcomes.append(only(run_claim_tests(study, [claim("benign-early-beats-safe-only")])).outcome)
    assert outcomes == ["inconclusive", "not reproduced"]


def test_every_comparison_of_a_claim_must_hold():
    def all_but_one(arm: ArmInfo) -> float:
        return 0.65 if arm.name == "data-60" else 0.6 if arm.start == 1 else 0.2

    study = attacks("attacks-topk", "base", "topk", 5, all_but_one)
    test = only(run_claim_tests(study, [claim("base-safe-only-worst")]))
    assert test.outcome != "reproduced" and test.comparison == "safe-100 - data-60"


def test_gcg_middle_starts_are_compared_with_both_ends():
    rates = {0.0: 0.6, 0.2: 0.15, 0.6: 0.2, 1.0: 0.7}
    study = attacks("gcg", "instruct", "gcg+safebeam", 1, lambda arm: rates[arm.start])
    assert only(run_claim_tests(study, [claim("gcg-safebeam-middle")])).outcome == "reproduced"


@pytest.mark.parametrize(("gap", "outcome"), [(0.0, "reproduced"), (0.3, "not reproduced")])
def test_a_claim_of_no_difference_needs_evidence_of_equality(gap, outcome):
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
    assert only(run_claim_tests(study, [claim("gcg-topk-flat")])).outcome == outcome


def test_no_rise_in_overrefusal_is_a_claim_that_can_fail():
    def study(early: float) -> StudyRows:
        def shares(arm: ArmInfo) -> tuple[float, ...]:
            refusals = early if arm.start < 1 else 0.1
            return (0.9 - refusals, 0.1, 0.0, refusals)

        rows = {
            (arm.name, "instruct", "overrefusal-topk"): overrefusal_rows(arm, "topk", shares(arm), 400) for arm in ARMS
        }
        return StudyRows(tuple(ARMS), rows, {})

    outcomes = [
        only(run_claim_tests(study(early), [claim("overrefusal-topk-no-rise")])).outcome for early in (0.02, 0.4)
    ]
    assert outcomes == ["reproduced", "not reproduced"]


@pytest.mark.parametrize(("lift", "outcome"), [(0.1, "reproduced"), (-0.1, "not reproduced")])
def test_probe_claims_compare_aucs_over_seeds(lift, outcome):
    probes = {(arm.name, "base"): probe_rows(arm, "base", "last", 0.8 + lift * (arm.name == "full-0")) for arm in ARMS}
    study = StudyRows(tuple(ARMS), {}, probes)
    assert only(run_claim_tests(study, [claim("probe-tags-beat-data")])).outcome == outcome


def test_layers_are_compared_within_the_same_models():
    probes = {
        (arm.name, "base"): [
            row
            for layer, auc in (("first", 0.6), ("middle", 0.7), ("last", 0.8))
            for row in probe_rows(arm, "base", layer, auc)
        ]
        for arm in ARMS
    }
    test = only(run_claim_tests(StudyRows(tuple(ARMS), {}, probes), [claim("probe-last-layer-best")]))
    assert test.outcome == "reproduced" and test.difference == pytest.approx(0.1, abs=0.02)


def test_claims_without_rows_are_not_measured_and_do_not_count_in_holms_family():
    nothing = run_claim_tests(StudyRows(tuple(ARMS), {}, {}))
    assert {test.outcome for test in nothing} == {"not measured"}
    study = attacks("attacks-topk", "benign", "topk", 5, earlier_is_safer)
    family = run_claim_tests(study)
    assert sum(test.outcome != "not measured" for test in family) == 2
    alone = only(run_claim_tests(study, [claim("benign-early-beats-safe-only")]))
    together = next(test for test in family if test.id == alone.id)
    assert together.p == pytest.approx(2 * alone.p)


def test_one_arm_without_rows_leaves_its_claims_unmeasured():
    study = attacks("attacks-topk", "benign", "topk", 5, earlier_is_safer)
    del study.generations["data-20", "benign", "attacks-topk"]
    assert only(run_claim_tests(study, [claim("benign-twenty-beats-sixty")])).outcome == "not measured"


def test_claims_have_unique_ids():
    assert len({each.id for each in CLAIMS}) == len(CLAIMS)


@pytest.mark.parametrize("figure", range(1, 10))
def test_every_figure_of_the_paper_has_a_claim(figure):
    assert any(figure in each.figures for each in CLAIMS)


def test_a_claim_names_its_source_in_the_paper():
    assert claim("benign-early-beats-safe-only").source == "Fig. 2, §6"
    assert claim("probe-last-layer-best").source == "Figs. 8 and 9, App. A"


def test_claim_tests_hold_plain_values_that_survive_json():
    for test in run_claim_tests(attacks("attacks-topk", "benign", "topk", 2, earlier_is_safer)):
        fields = dataclasses.asdict(test)
        assert {type(value) for value in fields.values()} <= {str, int, float, type(None)}  # no numpy scalars
        assert ClaimTest(**json.loads(json.dumps(fields))) == test
