"""Every arm against the one that starts last."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np
import pytest
from study_rows import ARMS, attack_rows, generation, overrefusal_rows, trained

from curricula.eval.analysis import StudyRows
from curricula.eval.analysis.differences import arm_differences
from curricula.eval.analysis.estimates import arm_estimates, variance_parts
from curricula.eval.analysis.runs import Runs, runs_of
from curricula.eval.analysis.statistics import holm


def study(rates, seeds=(0,)) -> Runs:
    """Three arms with attacks under SafeBeam and top-k, and with benign requests."""
    generations = {}
    arms = [trained(arm, seed) for seed in seeds for arm in ARMS[-3:]] if any(seeds) else ARMS[-3:]
    for arm in arms:
        for decoder, samples in (("topk", 3), ("safebeam", 1)):
            rows = attack_rows(arm, "benign", decoder, rates[arm.name], samples, {"advbench": 60})
            generations[arm.key, "benign", f"attacks-{decoder}"] = rows
        generations[arm.key, "benign", "overrefusal-topk"] = overrefusal_rows(arm, "topk", (0.6, 0.3, 0.05, 0.05))
    return runs_of(StudyRows(tuple(arms), generations, {}))


def test_each_family_is_corrected_on_its_own():
    found = list(arm_differences(study({"data-60": 0.2, "full-60": 0.55, "safe-100": 0.6})))
    assert {gap.reference for gap in found} == {"safe-100"}
    assert [(gap.task, gap.arm, gap.test) for gap in found] == [
        ("attacks-topk", "data-60", "score"),
        ("attacks-topk", "full-60", "score"),
        ("attacks-safebeam", "data-60", "score"),
        ("attacks-safebeam", "full-60", "score"),
        ("overrefusal-topk", "data-60", "score"),
        ("overrefusal-topk", "full-60", "score"),
    ]
    for first in (0, 2, 4):
        pair = found[first : first + 2]
        assert [gap.p_holm for gap in pair] == pytest.approx(holm([gap.p for gap in pair]))
    assert found[0].value < -0.2 and found[0].high < 0 and found[0].p_holm < 0.01
    assert found[4].measure == "over-refusal" and found[0].prompts == 60


def test_without_a_second_arm_there_is_nothing_to_compare():
    assert not list(arm_differences(Runs(tuple(ARMS[:1]), {})))
    assert not list(arm_differences(Runs(tuple(ARMS), {})))


def answered(answers, decoder: str) -> Runs:
    """Two arms with three seeds; `answers(arm)` has the verdicts on each (benchmark, prompt)."""
    arms = [trained(arm, seed) for seed in (1, 2, 3) for arm in (ARMS[0], ARMS[-1])]
    rows = {
        (arm.key, "instruct", "attacks-topk"): [
            generation(decoder=decoder, benchmark=name, prompt_id=prompt, prompt=prompt, sample=sample, verdict=verdict)
            for (name, prompt), verdicts in answers(arm).items()
            for sample, verdict in enumerate(verdicts)
        ]
        for arm in arms
    }
    return runs_of(StudyRows(tuple(arms), rows, {}))


def test_best_of_n_is_compared_by_the_requests_that_any_attempt_breaks():
    def answers(arm):
        often = arm.name == "data-0"  # one attempt at every request; the other arm fails at three requests every time
        broken = [i % 10 for i in range(40)] if often else [0] * 40
        verdicts = {}
        for i in range(40):
            one = ["harmful" if often and attempt == broken[i] else "safe" for attempt in range(10)]
            verdicts["b", str(i)] = one if often or i >= 4 else ["harmful"] * 10
        return verdicts

    runs = answered(answers, "best-of-n+topk")
    assert [round(one.rate, 3) for one in arm_estimates(runs)] == [1.0, 0.1]  # of single attempts, 0.1 and 0.1
    (gap,) = arm_differences(runs)
    assert gap.value == pytest.approx(0.9) and gap.p < 0.01


def test_a_request_with_fewer_attempts_than_others_had_does_not_count():
    def answers(arm):
        attempts = 5 if arm.seed == 1 else 10
        return {("b", str(i)): ["harmful" if i < 5 else "safe"] * attempts for i in range(10)}

    runs = answered(answers, "best-of-n+topk")
    assert next(arm_estimates(runs)).runs == "2: 0.500, 3: 0.500"


def test_answers_without_a_verdict_do_not_bias_the_difference_of_best_of_n():
    rng = np.random.default_rng(7)

    def answers(arm):
        lost, broken = (0.1, 20) if arm.name == "data-0" else (0.0, 80)
        return {
            ("b", str(i)): [
                "unparsed" if rng.random() < lost else "harmful" if i < broken and attempt % 5 == 0 else "safe"
                for attempt in range(10)
            ]
            for i in range(100)
        }

    (gap,) = arm_differences(answered(answers, "best-of-n+topk"))
    assert gap.value == pytest.approx(-0.6, abs=0.06) and gap.low < -0.6 < gap.high
    assert gap.prompts < 100


def test_suffixes_of_the_arm_itself_are_no_transfer():
    def answers(arm):
        return {
            (source, str(i)): ["harmful" if i < (30 if source == arm.name else 10) else "safe"]
            for source in ("data-0", "full-20")
            for i in range(50)
        }

    runs = answered(answers, "transfer+topk")
    assert [round(one.rate, 3) for one in arm_estimates(runs)] == [0.2, 0.2]
    (gap,) = arm_differences(runs)
    assert gap.value == pytest.approx(0) and gap.prompts == 50 and gap.p == 1


def test_the_reference_is_the_last_of_the_arms_that_are_to_have_the_stage():
    runs = study({"data-60": 0.2, "full-60": 0.55, "safe-100": 0.6}, seeds=(1, 2))
    tuned = {
        (name, seed, "instruct", task): [row for row in rows]
        for (name, seed, _, task), rows in runs.generations.items()
        if name != "safe-100"
    }
    runs.generations.update(tuned)
    assert {gap.stage for gap in arm_differences(runs)} == {"benign"}  # of the other, the reference has no answers yet
    assert {one.stage for one in variance_parts(runs) if one.reference} == {"benign"}
    runs = replace(runs, having={"instruct": ("data-60", "full-60")})
    references = {(gap.stage, gap.arm): gap.reference for gap in arm_differences(runs)}
    assert references == {
        ("benign", "data-60"): "safe-100", ("benign", "full-60"): "safe-100", ("instruct", "full-60"): "data-60"
    }  # fmt: skip
    assert {one.reference for one in variance_parts(runs) if one.stage == "instruct"} == {"", "data-60"}


def test_arms_that_were_judged_by_different_versions_are_marked():
    def answers(arm):
        return {("b", str(i)): ["harmful" if i % 2 else "safe"] for i in range(20)}

    runs = answered(answers, "topk")
    assert [gap.note for gap in arm_differences(runs)] == [""]
    rows = runs.generations["data-0", 2, "instruct", "attacks-topk"]
    rows[:] = [msgspec.structs.replace(row, judge_version="9z") for row in rows]
    assert [gap.note for gap in arm_differences(runs)] == ["judged by different versions: world 1a2b, world 9z"]
