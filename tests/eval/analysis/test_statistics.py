"""Intervals, paired differences and tests: the arithmetic of the study, against formulas, scipy and known truths."""

from __future__ import annotations

import numpy as np
import pytest
import statsmodels.api
from scipy import stats
from study_rows import verdict_rows

from curricula.eval.analysis.metrics import harmful
from curricula.eval.analysis.statistics import (
    Tally,
    bootstrap_interval,
    clustered_error,
    difference,
    holm,
    mcnemar_p,
    p_above,
    p_below,
    paired_tally,
    rate_interval,
    seed_difference,
    tally,
    wilson_interval,
)
from curricula.randomness import keyed_rng


def tally_of(ours, theirs):
    paired = paired_tally([verdict_rows(ours)], [verdict_rows(theirs)], harmful)
    assert paired is not None
    return paired


def test_wilson_agrees_with_its_formula():
    z, n, p = stats.norm.ppf(0.975), 40, 3 / 40
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    reach = z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    assert wilson_interval(3, 40) == pytest.approx((centre - reach, centre + reach))


def test_the_cluster_bootstrap_agrees_with_scipy_over_prompt_means():
    means = keyed_rng("prompt means").beta(0.6, 1.2, size=200)
    ours = bootstrap_interval(tally((f"{i}", "b", mean) for i, mean in enumerate(means)))
    theirs = stats.bootstrap((means,), np.mean, n_resamples=4000, method="percentile", rng=keyed_rng("scipy"))
    assert ours == pytest.approx(tuple(theirs.confidence_interval), abs=0.004)


def test_a_copy_of_a_request_in_another_benchmark_is_the_same_cluster():
    same = verdict_rows({"Pick the lock!": ["harmful"]}, "tdc") + verdict_rows(
        {"pick the  lock": ["harmful"]}, "advbench"
    )
    assert tally((row.behavior or row.prompt.lower(), row.benchmark, 1.0) for row in same).clusters == 2
    assert paired_tally([same], [same], harmful).clusters == 1


def test_bootstrap_intervals_cover_the_truth_about_95_times_in_100():
    rng, truth, covered = keyed_rng("coverage"), 0.3, 0
    for _ in range(400):
        ease = rng.beta(0.9, 2.1, size=40)  # mean 0.3, prompts differ much
        means = rng.binomial(5, ease) / 5
        low, high, _ = rate_interval(Tally(5 * means[:, None], np.full((40, 1), 5.0), (0,) * 40))
        covered += low <= truth <= high
    assert 0.92 <= covered / 400 <= 0.98


def test_wilson_intervals_cover_the_truth_about_95_times_in_100():
    # By the binomial's own probabilities: nothing is drawn.
    counts = np.arange(101)
    intervals = [wilson_interval(int(count), 100) for count in counts]
    for truth in (0.02, 0.1, 0.5):
        hit = np.array([low <= truth <= high for low, high in intervals])
        assert 0.92 <= float(stats.binom.pmf(counts, 100, truth) @ hit) <= 0.98


def test_the_clustered_error_is_the_published_formula():
    rows = verdict_rows({str(i): ["harmful" if (i * j) % 4 else "safe" for j in range(1 + i % 3)] for i in range(30)})
    tallied = tally((row.prompt, row.benchmark, harmful(row)) for row in rows)
    values, clusters = np.array([harmful(row) for row in rows]), np.array([int(row.prompt) for row in rows])
    n, mean, g = len(values), values.mean(), len(set(clusters))
    # Miller 2024: the variance of the mean plus the covariances within clusters, over n squared.
    cross = sum(
        (values[i] - mean) * (values[j] - mean) for i in range(n) for j in range(n) if clusters[i] == clusters[j]
    )
    assert clustered_error(tallied) == pytest.approx(np.sqrt(cross / n**2 * g / (g - 1)))
    # And the cluster-robust standard error of an intercept.
    fit = statsmodels.api.OLS(values, np.ones(n)).fit(cov_type="cluster", cov_kwds={"groups": clusters})
    assert clustered_error(tallied) == pytest.approx(float(fit.bse[0]))


def test_deterministic_answers_are_compared_by_mcnemars_exact_test():
    won = {str(i): ["harmful"] if i < 50 else ["safe"] for i in range(100)}
    lost = {name: ["safe"] if 38 <= int(name) < 50 else verdicts for name, verdicts in won.items()} | {
        "99": ["harmful"]
    }
    found = difference(tally_of(lost, won))
    assert found.p == pytest.approx(stats.binomtest(1, 13).pvalue) == mcnemar_p(tally_of(lost, won))
    assert (
        mcnemar_p(tally_of({"a": ["harmful", "safe"]}, {"a": ["safe", "safe"]})) is None
    )  # half is neither yes nor no


def test_a_paired_difference_is_surer_than_two_separate_intervals():
    hard = {str(i): ["harmful"] if i < 50 else ["safe"] for i in range(100)}
    better = {name: ["safe"] if 40 <= int(name) < 50 else verdicts for name, verdicts in hard.items()}
    paired = tally_of(better, hard)
    found = difference(paired)
    assert found.value == pytest.approx(-0.1) and found.high < 0 and found.p < 0.01 and found.n == 100
    assert found.p == pytest.approx(stats.binomtest(0, 10).pvalue)  # McNemar's exact test


def test_only_shared_parsed_prompts_are_compared():
    paired = tally_of(
        {"a": ["harmful"], "b": ["unparsed"], "c": ["safe"]}, {"a": ["safe"], "b": ["safe"], "d": ["safe"]}
    )
    assert difference(paired).n == 1 and difference(paired).value == 1.0
    assert paired_tally([verdict_rows({"a": ["safe"]})], [[]], harmful) is None


def test_equal_arms_leave_room_for_what_so_few_prompts_cannot_show():
    found = difference(tally_of({str(i): ["safe"] for i in range(30)}, {str(i): ["safe"] for i in range(30)}))
    assert (
        (found.value, found.p) == (0, 1) and found.low == pytest.approx(-0.095, abs=0.001) and found.high == -found.low
    )


def test_p_values_are_uniform_when_arms_do_not_differ():
    rng = keyed_rng("null")
    ps = []
    for _ in range(150):
        gaps = rng.binomial(5, 0.4, 40) / 5 - rng.binomial(5, 0.4, 40) / 5
        ps.append(difference(Tally(gaps[:, None], np.ones((40, 1)), (0,) * 40)).p)
    assert np.mean(np.array(ps) < 0.05) < 0.1 and 0.4 < np.mean(ps) < 0.65


def test_one_sided_p_values_test_against_a_bound():
    level = Tally(keyed_rng("level").normal(0.0, 0.05, (80, 1)), np.ones((80, 1)), (0,) * 80)
    assert p_below(level, 0.05) < 0.001 and p_above(level, -0.05) < 0.001
    assert p_below(level, -0.05) > 0.99 and p_above(level, 0.05) > 0.99


def test_probe_differences_use_students_t_over_seeds():
    found = seed_difference([0.9, 0.92, 0.91, 0.93, 0.9], [0.85, 0.86, 0.88, 0.86, 0.87])
    expected = stats.ttest_rel([0.9, 0.92, 0.91, 0.93, 0.9], [0.85, 0.86, 0.88, 0.86, 0.87])
    interval = expected.confidence_interval(0.95)
    assert found.p == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))


def test_holm_steps_down_and_stays_monotone():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == [] and holm([0.9, 0.8]) == [1.0, 1.0]
