"""Rates and differences over training seeds, against mixed models, Student's t and simulated truths."""

from __future__ import annotations

import math

import numpy as np
import pandas
import pytest
import statsmodels.api
from scipy import stats
from seed_studies import Cell, by_seed, crossed, draw_rates, gap_of, holds, pooled_pairs, pooled_tally
from study_rows import ARMS, attack_rows

from curricula.eval.analysis.metrics import harmful
from curricula.eval.analysis.seeds import (
    Components,
    CrossedAndPooled,
    ProbeAuc,
    auc_over_seeds,
    compare,
    compare_probes,
    cross,
    interval_over_seeds,
    rate_over_seeds,
)
from curricula.eval.analysis.statistics import PromptMean, StudentMean, pair, prompt_means, rate_interval
from curricula.eval.probes.auc import placements
from curricula.randomness import keyed_rng


def gaussian(key: str, seeds: int, prompts: int, scales: tuple[float, float, float]) -> np.ndarray:
    rng = keyed_rng(key)
    parts = (rng.normal(size=shape) for shape in ((seeds, 1), (1, prompts), (seeds, prompts)))
    return 0.5 + sum(scale * part for scale, part in zip(scales, parts))


def test_the_components_are_those_of_a_mixed_model_with_crossed_effects():
    values = gaussian("mixed", 4, 12, (0.12, 0.2, 0.1))
    found = crossed(values).components
    rows = pandas.DataFrame({"y": values.ravel(), "seed": np.repeat(range(4), 12), "prompt": np.tile(range(12), 4), "all": 1})
    model = statsmodels.api.MixedLM.from_formula(
        "y ~ 1", vc_formula={"seed": "0 + C(seed)", "prompt": "0 + C(prompt)"}, groups="all", data=rows
    )
    fit = model.fit(reml=True)
    prompt, seed = fit.vcomp  # by name
    assert found.seed == pytest.approx(seed, rel=0.01) and found.prompt == pytest.approx(prompt, rel=0.01)
    assert found.interaction == pytest.approx(fit.scale, rel=0.01)
    assert sum(found.of_mean(4, 12, 1)) == pytest.approx(float(fit.bse_fe.iloc[0]) ** 2, rel=0.01)


def test_components_of_rates_are_found_again_on_average():
    cell, found = Cell(4, 80, (0.5,), seed_sd=0.1, correlation=0.4), []
    for values in draw_rates(keyed_rng("components"), cell, 300)[0]:
        noise = values * (1 - values) / (cell.samples - 1)
        found.append(crossed(values, noise, cell.samples).components)
    mean = [float(np.mean([getattr(one, name) for one in found])) for name in Components.__dataclass_fields__]
    seed, prompt, interaction, sample = mean
    assert math.sqrt(seed) == pytest.approx(0.075, abs=0.02)  # smaller than 0.1: prompts spread the odds
    assert seed + prompt + interaction + sample == pytest.approx(0.25, abs=0.01)
    assert prompt == pytest.approx(0.06, abs=0.015) and interaction == pytest.approx(0.04, abs=0.015)


def test_without_shared_prompt_effects_it_is_students_t_over_seeds():
    gaps = np.array([0.2, 0.05, 0.12])
    found = crossed(np.repeat(gaps[:, None], 50, axis=1))
    expected = stats.ttest_1samp(gaps, 0.0)
    interval = expected.confidence_interval(0.95)
    assert found.p(0.0) == pytest.approx(expected.pvalue)
    assert found.p(0.05) == pytest.approx(stats.ttest_1samp(gaps, 0.05).pvalue)
    assert found.interval() == pytest.approx((interval.low, interval.high))


def test_prompts_have_as_many_degrees_of_freedom_as_make_up_their_variance():
    values = gaussian("freedom", 3, 10, (0.1, 0.2, 0.1))
    u = (values - values.mean(axis=1, keepdims=True)).mean(axis=0)
    assert crossed(values).freedom == pytest.approx((u**2).sum() ** 2 / (u**4).sum()) and crossed(values).freedom < 9
    assert crossed(np.tile([1.0, 0.0], (3, 5))).freedom == 9  # all alike: one less than the prompts


def test_runs_and_their_prompts_that_point_apart_are_no_evidence():
    values = np.full((3, 20), 0.1)
    p = [CrossedAndPooled(crossed(values), StudentMean(value, 0.01, 50)).p(0.0) for value in (0.1, -0.1)]
    assert p[0] < 0.001 and p[1] == 1.0


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_interval_and_p_value_never_contradict_each_other(seeds):
    for rate in (0.02, 0.3):
        a, b = draw_rates(keyed_rng("contradiction", seeds, rate), Cell(seeds, 30, (rate, rate / 3), 0.05), 60)
        for one, other in zip(a, b):
            gap = gap_of(CrossedAndPooled(crossed(one - other), pooled_pairs(one, other, 5)))
            assert gap.low <= gap.value <= gap.high
            assert (gap.p < 0.05) == (gap.low > 0 or gap.high < 0)
            low, high = CrossedAndPooled(crossed(other - one), pooled_pairs(other, one, 5)).interval()
            assert (-high, -low) == pytest.approx((gap.low, gap.high))


@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
@pytest.mark.parametrize("seed_sd", [0.0, 0.16])
def test_intervals_hold_the_truth_for_few_seeds(seeds, seed_sd):
    # tests/benchmarks/seed_coverage.py has the whole table. 120 studies: three standard errors are 0.06.
    for rate in (0.02, 0.1, 0.5):
        cell = Cell(seeds, 60, (rate, 0.6 * rate), seed_sd)
        held, shown = 0, 0
        for a, b in zip(*draw_rates(keyed_rng("holds", seeds, seed_sd, rate), cell, 120)):
            held += holds(a, b, 0.4 * rate, 5)
            low, high = interval_over_seeds(pooled_tally(a, 5), crossed(a))
            shown += low <= rate <= high
        assert held / 120 >= 0.89 and shown / 120 >= 0.89


def test_prompts_alone_take_a_difference_of_two_seeds_for_one_of_the_arms():
    cell, alarms, over_seeds = Cell(3, 100, (0.4, 0.4), seed_sd=0.16), 0, 0
    for a, b in zip(*draw_rates(keyed_rng("alarms"), cell, 100)):
        pooled = pooled_pairs(a, b, 5)
        alarms += pooled.p(0.0) < 0.05
        over_seeds += CrossedAndPooled(crossed(a - b), pooled).p(0.0) < 0.05
    assert alarms > 30 and over_seeds <= 10


def test_runs_that_agree_by_chance_are_no_surer_than_their_prompts():
    rates = np.tile([1.0, 0.0, 0.4, 0.2], 10)[None, :].repeat(2, axis=0)
    found = rate_over_seeds(by_seed(rates))
    assert (found.low, found.high) == pytest.approx(rate_interval(pooled_tally(rates, 5)))
    none = rate_over_seeds(by_seed(np.zeros((3, 40))))
    assert none.value == 0 and none.low == 0 and 0.05 < none.high < 0.15 and none.spread == 0


def test_two_seeds_that_disagree_decide_nothing():
    rates = np.array([[0.2] * 50, [0.6] * 50])
    found = rate_over_seeds(by_seed(rates))
    assert found.low < 0.01 and found.high > 0.98 and found.spread == pytest.approx(0.2828, abs=1e-3)
    against = compare([by_seed(rates)], [by_seed(rates * 0)])
    assert against.evidence.p(0.0) > 0.25 and against.seeds == 2


def test_one_run_is_compared_over_prompts_as_before():
    a, b = (prompt_means(attack_rows(arm, "benign", "topk", rate, 5, {"tdc": 40}), harmful)
            for arm, rate in ((ARMS[0], 0.2), (ARMS[-1], 0.6)))  # fmt: skip
    found = compare([{0: a}], [{0: b}])
    pairs = pair((mean.cluster, key[0], mean.mean, b[key].mean, 5) for key, mean in sorted(a.items()))
    assert found.crossed is None and found.seeds == 1 and (found.n, gap_of(found.evidence)) == (40, gap_of(pairs))


def test_only_seeds_and_prompts_that_both_sides_have_are_compared():
    rates = np.full((3, 20), 0.4)
    a, b = by_seed(rates), by_seed(rates)
    del a[0], b[1]["b", "7"]
    found = compare([a], [b])
    assert found.seeds == 2 and found.n == 20 and found.evidence.value == 0
    assert compare([{1: a[1]}], [{2: b[2]}]) is None


def probes(rng: np.random.Generator, texts: int, own: float, seeds: int = 3, shift: float = 0.0) -> tuple:
    """Two arms' probes on the same texts of each class. An arm's view of a text is its own by `own`, the same for all seeds."""
    unsafe = np.arange(2 * texts) >= texts
    shared, arms = rng.normal(size=2 * texts), []
    for bonus in (shift, 0.0):
        view = (1.5 + bonus) * unsafe + 0.8 * shared + own * rng.normal(size=2 * texts)
        arms.append({})
        for seed in range(seeds):
            run = view + 0.3 * rng.normal(size=2 * texts)
            scores = [run + 0.05 * rng.normal(size=2 * texts) for _ in range(4)]
            found = [placements(one, unsafe) for one in scores]
            arms[-1][seed] = {subset: ProbeAuc(of[0].mean(), of) for subset, of in enumerate(found)}
    return tuple(arms)


def test_probes_are_paired_by_training_seed_subset_and_text():
    arm, base = probes(keyed_rng("paired probes"), 200, own=0.1, shift=0.5)
    found = compare_probes([arm], [base])
    gaps = [np.mean([arm[seed][k].auc - base[seed][k].auc for k in range(4)]) for seed in range(3)]
    assert found.seeds == 3 and found.n == 4 and found.evidence.value == pytest.approx(np.mean(gaps))
    assert found.crossed.seed_variance == pytest.approx(np.var(gaps, ddof=1) / 3)
    alone = [rate.crossed.prompt_variance for rate in (auc_over_seeds(arm), auc_over_seeds(base))]
    assert 0 < found.crossed.prompt_variance < 0.3 * sum(alone)  # what is hard for one is hard for the other
    assert compare_probes([{0: arm[0]}], [{1: base[1]}]) is None


def test_probes_of_one_run_are_as_sure_as_their_test_texts_and_their_subsets():
    arm, base = (
        {subset: ProbeAuc(of[0][:40].mean(), (of[0][:40], of[1])) for subset, (_, of, _) in run[0].items()}
        for run in probes(keyed_rng("one run"), 90, own=0.3, shift=0.2)
    )
    gaps = [arm[subset].auc - base[subset].auc for subset in arm]
    by_text = [np.mean([arm[k].placements[part] - base[k].placements[part] for k in arm], axis=0) for part in (0, 1)]
    texts, drawn = sum(np.var(one, ddof=1) / len(one) for one in by_text), np.var(gaps, ddof=1) / 4
    freedom = (texts + drawn) ** 2 / (texts**2 / 39 + drawn**2 / 3)
    found = gap_of(compare_probes([{0: arm}], [{0: base}]).evidence)
    reach = stats.t.ppf(0.975, freedom) * (texts + drawn) ** 0.5
    assert (found.low, found.high) == pytest.approx((np.mean(gaps) - reach, np.mean(gaps) + reach))


def test_arms_that_differ_only_in_how_they_see_the_test_texts_are_rarely_told_apart():
    for texts in (20, 100):
        ps = []
        for study in range(75):
            arm, base = probes(keyed_rng("equal probes", texts, study), texts, own=0.5)
            ps.append(compare_probes([arm], [base]).evidence.p(0.0))
        assert np.mean(np.array(ps) < 0.05) <= 0.06


def test_an_auc_over_seeds_is_no_surer_than_its_test_texts():
    truth, held = 0.8534, 0  # of normal scores 1.5 apart with deviations of (0.8² + 0.5² + 0.3² + 0.05²)^0.5
    for study in range(75):
        for arm in probes(keyed_rng("covered probes", study), 30, own=0.5):
            found = auc_over_seeds(arm)
            held += found.low <= truth <= found.high
            assert found.crossed.seeds == 3
    assert auc_over_seeds({0: arm[0]}).crossed is None
    assert held >= 0.93 * 150


@pytest.mark.parametrize("texts", [37, 100, 500])
def test_perfect_probes_are_not_certain_and_a_little_worse_ones_no_surer(texts):
    def runs(scores: np.ndarray) -> dict[int, dict[int, ProbeAuc]]:
        of = placements(scores, np.arange(2 * texts) >= texts)
        return {seed: dict.fromkeys(range(5), ProbeAuc(of[0].mean(), of)) for seed in range(3)}

    perfect, swapped = np.arange(2.0 * texts), np.arange(2.0 * texts)
    swapped[[texts - 1, texts]] = swapped[[texts, texts - 1]]
    for scores in (perfect, swapped):
        found = auc_over_seeds(runs(scores))
        assert found.low < 1 - 0.5 / texts < found.high == 1.0
        assert found.crossed.freedom == pytest.approx(texts - 1)  # all subsets agree
    gap = gap_of(compare_probes([runs(perfect)] * 5, [runs(perfect)] * 3).evidence)
    assert gap.low < -0.5 / texts and gap.high > 0.5 / texts and gap.p == 1.0


def test_probes_on_different_texts_have_no_verdict_and_no_interval():
    arm, base = probes(keyed_rng("other texts"), 20, own=0.1)
    apart = {seed: {k: probe._replace(placements=None) for k, probe in of.items()} for seed, of in arm.items()}
    assert compare_probes([apart], [base]) is None
    found = auc_over_seeds(apart)
    known = auc_over_seeds(arm)
    assert found.crossed is None and (found.value, found.spread) == pytest.approx((known.value, known.spread))
    assert (found.low, found.high) == (None, None)


def answered(rates: dict[int, dict[str, float]], answers: int = 5) -> dict[int, dict[tuple[str, str], PromptMean]]:
    """An arm's prompts, 40 of each benchmark with one rate."""
    return {
        seed: {(name, str(i)): PromptMean(f"{name} {i}", rate, answers) for name, rate in of.items() for i in range(40)}
        for seed, of in rates.items()
    }


def test_runs_that_share_no_benchmark_say_nothing_about_seeds():
    low, high = answered({1: {"tdc": 0.2}, 2: {"harmbench": 0.2}}), answered({1: {"tdc": 0.6}, 2: {"harmbench": 0.6}})
    found = compare([low], [high])
    assert found.evidence.p(0.0) < 1e-4 and (found.seeds, found.crossed) == (2, None)
    assert rate_over_seeds(low).crossed is None


def test_an_arms_rate_its_runs_and_its_interval_are_of_the_same_answers():
    found = rate_over_seeds(answered({1: {"tdc": 0.1, "harmbench": 0.9}, 2: {"tdc": 0.2}}))
    assert found.runs == pytest.approx({1: 0.1, 2: 0.2}) and found.value == pytest.approx(0.15)
    assert found.low < 0.15 < found.high < 0.9
    gap = compare(
        [answered({1: {"tdc": 0.1, "x": 0.5}, 2: {"tdc": 0.2}})], [answered({s: {"tdc": 0.4, "x": 0.1} for s in (1, 2)})]
    )
    assert gap.evidence.value == pytest.approx(-0.25) and gap.n == 40
    unequal = {("b", "0"): PromptMean("0", 0.0, 1), ("b", "1"): PromptMean("1", 1.0, 5)}
    assert rate_over_seeds({1: unequal, 2: unequal}).value == pytest.approx(5 / 6) == rate_over_seeds({1: unequal}).value
    assert rate_over_seeds({1: unequal, 2: dict(list(unequal.items())[1:])}).value == pytest.approx((5 / 6 + 1) / 2)
    never = {prompt: mean._replace(mean=0.0) for prompt, mean in unequal.items()}
    assert compare([{1: unequal, 2: unequal}], [{1: never, 2: never}]).evidence.value == 0.5  # pairs weigh the same


def test_a_prompt_with_one_parsed_answer_does_not_hide_how_much_samples_vary():
    (rates,) = draw_rates(keyed_rng("parsed"), Cell(seeds=3, prompts=40, rates=(0.4,)), 1)
    means = by_seed(rates[0])
    whole = rate_over_seeds(means).crossed
    means[0]["b", "0"] = PromptMean("0", 1.0, 1)
    found = rate_over_seeds(means).crossed
    assert whole.components.sample > 0 and found.components.sample == pytest.approx(whole.components.sample, rel=0.1)


def test_a_benchmark_that_a_run_lacks_leaves_nothing_to_cross():
    runs = {seed: {(name, str(i)): PromptMean(str(i), 0.1 * seed, 1) for i in range(4) for name in "ab"} for seed in range(2)}
    assert cross(runs).value == pytest.approx(0.05) and cross({0: runs[0]}) is None
    assert cross({0: runs[0], 1: {prompt: mean for prompt, mean in runs[1].items() if prompt[0] == "a"}}) is None
