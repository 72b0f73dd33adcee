"""The tables over training seeds: each arm's rate, and where its variance comes from."""

from __future__ import annotations

import numpy as np
import pytest
from study_rows import ARMS, attack_rows, probe_rows, trained

from curricula.eval.analysis import StudyRows
from curricula.eval.analysis.runs import Competence, Runs, arm_estimates, probe_estimates, variance_parts

RATES = {1: 0.2, 2: 0.3, 3: 0.7}


def runs(seeds=tuple(RATES), samples: int = 3) -> Runs:
    arms = [trained(arm, seed) for seed in seeds for arm in ARMS[-2:]]
    rows = {
        (arm.key, "base", "attacks-topk"): attack_rows(arm, "base", "topk", RATES[arm.seed], samples, {"jb_completions": 80})
        for arm in arms
    }
    lost = {(f"{arms[0].name}-s2", "base", "overrefusal-topk"): Competence(0.0, 0.0)}
    return Runs(StudyRows(tuple(arms), rows, {}), lost)


def test_an_arm_is_shown_with_its_runs_and_their_spread():
    one, other = arm_estimates(runs())
    assert [one.arm, other.arm] == [arm.name for arm in ARMS[-2:]] and one.rate.runs.keys() == RATES.keys()
    each = list(one.rate.runs.values())
    assert one.rate.value == pytest.approx(np.mean(each)) and one.rate.spread == pytest.approx(np.std(each, ddof=1))
    assert one.rate.low < 0.1 and one.rate.high > 0.8  # three runs as far apart as these
    assert one.incoherent == "2" and other.incoherent == ""


def test_of_a_single_run_only_prompts_are_known():
    (one, _), parts = arm_estimates(runs(seeds=(1,))), list(variance_parts(runs(seeds=(1,))))
    assert one.rate.spread is None and one.rate.high - one.rate.low < 0.25 and parts == []


def test_the_variance_of_a_rate_is_the_seeds_and_that_of_a_paired_difference_is_not():
    alone, against, reference = variance_parts(runs())
    assert (alone.reference, against.reference, reference.reference) == ("", "safe-100", "")
    assert alone.seed == pytest.approx(np.std(list(RATES.values()), ddof=1), abs=0.05) and alone.seed_share > 0.9
    assert against.seed < 0.05 and against.prompts == pytest.approx(80) and against.samples == 3
    assert alone.sample == pytest.approx(0.43, abs=0.05)


def test_one_sample_cannot_be_told_from_the_prompts_own_variance_in_a_run():
    assert {row.sample for row in variance_parts(runs(samples=1))} == {None}


def test_probe_auc_over_seeds_knows_how_far_runs_lie_apart():
    def estimate(aucs: dict[int, float]):
        arms = [trained(ARMS[0], seed) for seed in aucs]
        probes = {(arm.key, "base"): probe_rows(arm, "base", "last", aucs[arm.seed]) for arm in arms}
        (found,) = probe_estimates(Runs(StudyRows(tuple(arms), {}, probes)))
        return found.auc

    near, far, one = (estimate(aucs) for aucs in ({1: 0.8, 2: 0.8, 3: 0.8}, {1: 0.7, 2: 0.8, 3: 0.9}, {1: 0.8}))
    assert far.value == pytest.approx(0.8, abs=0.01) and far.spread == pytest.approx(0.1, abs=0.01)
    assert far.low < 0.6 and far.high == 1.0  # no AUC is above 1
    assert far.runs == pytest.approx({1: 0.7, 2: 0.8, 3: 0.9}, abs=0.01)
    assert near.low < near.value < near.high < near.low + 0.06
    assert (one.low, one.high, one.spread, len(one.runs)) == (None, None, None, 1)
