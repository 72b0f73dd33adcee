"""Every arm against the one that starts last."""

from __future__ import annotations

import pytest
from study_rows import ARMS, attack_rows, overrefusal_rows, trained

from curricula.eval.analysis import StudyRows
from curricula.eval.analysis.differences import arm_differences
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
