"""Every arm against the one that starts last, and what a later stage changes in each."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import msgspec
import numpy as np
import pytest
from seed_studies import Cell, by_seed, draw_rates
from study_rows import ARMS, attack_rows, generation, overrefusal_rows, trained

from curricula.eval.analysis import StudyRows
from curricula.eval.analysis.runs import Runs, arm_changes, arm_differences, arm_estimates, runs_of, variance_parts
from curricula.eval.analysis.statistics import holm
from curricula.randomness import keyed_rng


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
    assert not list(arm_differences(runs_of(StudyRows(tuple(ARMS[:1]), {}, {}))))
    assert not list(arm_differences(runs_of(StudyRows(tuple(ARMS), {}, {}))))


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
    assert [round(one.rate.value, 3) for one in arm_estimates(runs)] == [1.0, 0.1]  # of single attempts, 0.1 and 0.1
    (gap,) = arm_differences(runs)
    assert gap.value == pytest.approx(0.9) and gap.p < 0.01 and gap.test == "seeds"


def test_a_request_with_fewer_attempts_than_others_had_does_not_count():
    def answers(arm):
        attempts = 5 if arm.seed == 1 else 10
        return {("b", str(i)): ["harmful" if i < 5 else "safe"] * attempts for i in range(10)}

    runs = answered(answers, "best-of-n+topk")
    assert next(arm_estimates(runs)).rate.runs == {2: 0.5, 3: 0.5}


def test_seeds_whose_runs_share_no_prompt_are_left_out():
    def answers(arm):
        first = 10 if (arm.name, arm.seed) == ("data-0", 1) else 0
        return {("b", str(first + i)): ["harmful" if i < arm.seed and arm.name == "data-0" else "safe"] for i in range(10)}

    (gap,) = arm_differences(answered(answers, "topk"))
    assert gap.runs == {2: 0.2, 3: 0.3} and gap.seeds == 2 and gap.value == pytest.approx(0.25) and gap.prompts == 10


def test_each_seeds_difference_is_on_the_benchmarks_behind_their_mean():
    def answers(arm):
        names = ("a", "b") if (arm.name, arm.seed) != ("data-0", 1) else ("a",)
        often = {"a": 1, "b": 9} if arm.name == "data-0" else {"a": arm.seed, "b": 0}
        return {(name, str(i)): ["harmful" if i < often[name] else "safe"] for name in names for i in range(10)}

    (gap,) = arm_differences(answered(answers, "topk"))
    assert gap.runs == {1: 0.0, 2: -0.1, 3: -0.2} and gap.value == pytest.approx(-0.1) and gap.prompts == 10


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
    assert [round(one.rate.value, 3) for one in arm_estimates(runs)] == [0.2, 0.2]
    (gap,) = arm_differences(runs)
    assert gap.value == pytest.approx(0) and gap.prompts == 50 and gap.p == 1


def test_the_reference_is_the_last_of_the_arms_that_are_to_have_the_stage():
    runs = study({"data-60": 0.2, "full-60": 0.55, "safe-100": 0.6}, seeds=(1, 2))
    tuned = {
        (key, "instruct", task): rows
        for (key, _, task), rows in runs.study.generations.items()
        if not key.startswith("safe-100")
    }
    runs.study.generations.update(tuned)
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
    rows = runs.study.generations["data-0-s2", "instruct", "attacks-topk"]
    rows[:] = [msgspec.structs.replace(row, judge_version="9z") for row in rows]
    assert [gap.note for gap in arm_differences(runs)] == ["judged by different versions: world 1a2b, world 9z"]


def changed(harmful, seeds=(1, 2, 3), stages=("instruct", "benign"), benchmarks=("b", "b")) -> Runs:
    """Two arms; of 40 requests each answers the first `harmful(arm, stage)` harmfully."""
    arms = [trained(arm, seed) for seed in seeds for arm in (ARMS[0], ARMS[-1])]
    rows = {
        (arm.key, stage, "attacks-topk"): [
            generation(benchmark=name, prompt_id=str(i), prompt=str(i), verdict=("safe", "harmful")[i < harmful(arm, stage)])
            for i in range(40)
        ]
        for arm in arms
        for stage, name in zip(stages, benchmarks)
    }
    return runs_of(StudyRows(tuple(arms), rows, {}))


def survives(arm, stage) -> int:
    """One arm keeps most of its safety, and the other loses it."""
    gain = 0 if stage == "instruct" else 2 + arm.seed if arm.name == "data-0" else 20 + arm.seed
    return 10 + gain


def test_a_later_stage_changes_each_arm_and_one_less_than_the_reference():
    runs = changed(survives)
    own, reference, against = arm_changes(runs, {"benign": "instruct"})
    assert {(one.before, one.stage, one.measure, one.seeds, one.prompts) for one in (own, reference, against)} == {
        ("instruct", "benign", "attack success", 3, 40)
    }
    assert [(one.arm, one.reference) for one in (own, reference, against)] == [
        ("data-0", ""), ("safe-100", ""), ("data-0", "safe-100")
    ]  # fmt: skip
    assert [one.value for one in (own, reference, against)] == pytest.approx([0.1, 0.55, -0.45])
    assert own.runs == {1: 0.075, 2: 0.1, 3: 0.125} and against.runs == {1: -0.45, 2: -0.45, 3: -0.45}
    assert [own.p_holm, reference.p_holm] == pytest.approx(holm([own.p, reference.p]))  # a family of their own
    assert against.p_holm == against.p < 0.01 and against.high < 0 < reference.low < 0.55 < reference.high
    assert not list(arm_changes(runs, {})) and not list(arm_changes(runs, {"instruct": "base"}))


def test_a_change_may_be_larger_in_one_arm_than_any_rate():
    def swapped(arm, stage):
        return 40 if (stage == "instruct") == (arm.name == "data-0") else 0

    *_, against = arm_changes(changed(swapped, seeds=(1,)), {"benign": "instruct"})
    assert against.value == pytest.approx(-2) == against.low and -2 < against.high < -1 and against.test == "score"


def test_stages_without_shared_prompts_and_arms_without_a_reference_yet():
    assert not list(arm_changes(changed(survives, benchmarks=("jb_completions", "b")), {"benign": "instruct"}))
    runs = changed(survives)
    for seed in (1, 2, 3):
        del runs.study.generations[f"safe-100-s{seed}", "benign", "attacks-topk"]
    assert [(one.arm, one.reference) for one in arm_changes(runs, {"benign": "instruct"})] == [("data-0", "")]


def test_stages_that_were_judged_by_different_versions_are_marked():
    runs = changed(survives)
    rows = runs.study.generations["safe-100-s2", "instruct", "attacks-topk"]
    rows[:] = [msgspec.structs.replace(row, judge_version="9z") for row in rows]
    marked = "judged by different versions: world 1a2b, world 9z"
    assert [one.note for one in arm_changes(runs, {"benign": "instruct"})] == ["", marked, marked]


@dataclass(frozen=True)
class Drawn(Runs):
    """Two arms at two stages with simulated rates."""

    drawn: tuple[np.ndarray, ...] = ()
    """[seeds, prompts] of the first arm at the later stage and at the earlier one, and of the reference likewise."""

    def places(self) -> list[tuple[str, str, str]]:
        return [("benign", "attacks-topk", "topk")]

    def rates(self, arm, stage, *_):
        return by_seed(self.drawn[2 * (arm.start == 1) + (stage == "instruct")])


@pytest.mark.parametrize(("seeds", "seed_sd"), [(1, 0.0), (3, 0.16)])
def test_intervals_of_changes_hold_the_truth(seeds, seed_sd):
    studies, held, alarms = 40, Counter(), 0
    for rates in ((0.5, 0.2, 0.7, 0.5), (0.1, 0.02, 0.05, 0.02), (0.4, 0.4, 0.4, 0.4)):
        own, other = rates[0] - rates[1], rates[2] - rates[3]
        truths = {("data-0", ""): own, ("safe-100", ""): other, ("data-0", "safe-100"): own - other}
        cell = Cell(seeds, 30, rates, seed_sd)
        for drawn in zip(*draw_rates(keyed_rng("changes", seeds, seed_sd, *rates), cell, studies)):
            runs = Drawn(StudyRows((ARMS[0], ARMS[-1]), {}, {}), drawn=drawn)
            for one in arm_changes(runs, {"benign": "instruct"}):
                truth = truths[one.arm, one.reference]
                held[one.arm, one.reference] += one.low <= truth <= one.high
                alarms += abs(truth) < 1e-9 and one.p < 0.05
    # Three standard errors are 0.06; in a third of the studies nothing changes, which is tested three times.
    assert min(held.values()) / (3 * studies) >= 0.89 and alarms / (3 * studies) <= 0.11
