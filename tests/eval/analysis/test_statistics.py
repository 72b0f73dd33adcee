"""Intervals, paired differences and tests: the arithmetic of the study, against formulas, scipy and known truths."""

from __future__ import annotations

import numpy as np
import pytest
import statsmodels.api
from scipy import optimize, stats
from seed_studies import gap_of
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint
from study_rows import generation, verdict_rows

from curricula.eval.analysis.metrics import harmful
from curricula.eval.analysis.statistics import (
    Pairs,
    PromptMean,
    StudentMean,
    Tally,
    cluster_of,
    clustered_error,
    effective_size,
    holm,
    p_above,
    p_below,
    pair,
    pair_prompts,
    prompt_means,
    rate_interval,
    summed,
    tally,
)
from curricula.randomness import keyed_rng


def pair_rows(ours, theirs) -> Pairs | None:
    shared = pair_prompts([prompt_means(ours, harmful)], [prompt_means(theirs, harmful)])
    return pair(tuple(means)[:5] for means in shared.values())


def paired(ours, theirs) -> Pairs:
    found = pair_rows(verdict_rows(ours), verdict_rows(theirs))
    assert found is not None
    return found


def rates_of(counts, samples) -> Tally:
    """A prompt for each count of harmful answers among `samples`."""
    sums = np.asarray(counts, dtype=float)[:, None]
    return Tally(sums, np.full_like(sums, samples))


def test_one_answer_per_prompt_gets_agresti_and_coulls_interval_but_for_the_degrees_of_freedom():
    low, high = rate_interval(rates_of([1] * 3 + [0] * 37, 1))
    n = 40 * (stats.norm.ppf(0.975) / stats.t.ppf(0.975, 39)) ** 2
    z = stats.norm.ppf(0.975)
    centre = (n * 3 / 40 + z * z / 2) / (n + z * z)
    reach = z * np.sqrt(centre * (1 - centre) / (n + z * z))
    assert (low, high) == pytest.approx((max(centre - reach, 0), centre + reach))


def test_the_effective_size_lies_between_the_prompts_and_the_answers():
    alike, apart = rates_of([5, 0] * 50, 5), rates_of([2, 3] * 50, 5)
    freedom = (stats.norm.ppf(0.975) / stats.t.ppf(0.975, 99)) ** 2
    assert effective_size(alike, 0.25, 500) == pytest.approx(100 * freedom)
    assert effective_size(apart, 0.25, 500) == pytest.approx(500 * freedom)
    answers = ((str(i), "b", float(j < 2 + i % 2)) for i in range(100) for j in range(5))
    assert rate_interval(tally(answers)) == rate_interval(apart)


def test_on_many_prompts_the_interval_is_the_clustered_errors():
    counts = keyed_rng("many").binomial(5, keyed_rng("ease").beta(0.6, 1.2, size=3000))
    tallied = rates_of(counts, 5)
    low, high = rate_interval(tallied)
    assert (high - low) / 2 == pytest.approx(1.96 * clustered_error(tallied), rel=0.01)


def test_a_copy_of_a_request_in_another_benchmark_is_the_same_cluster():
    same = verdict_rows({"Pick the lock!": ["harmful"]}, "tdc") + verdict_rows({"pick the  lock": ["harmful"]}, "advbench")
    attacked = generation(behavior="Pick the lock.", prompt="P1ck teh lokc")
    assert len({cluster_of(row) for row in (*same, attacked)}) == 1
    assert len(prompt_means(same, harmful)) == 2
    wordless = [generation(prompt=prompt, prompt_id=prompt) for prompt in ("?!", "?!?")]
    assert len({cluster_of(row) for row in wordless}) == 2
    assert cluster_of(generation(cluster="lock-7")) == "lock-7"


@pytest.mark.parametrize("correlation", [0.0, 0.2, 0.5, 0.8])
@pytest.mark.parametrize("rate", [0.005, 0.02, 0.1, 0.5])
def test_intervals_of_rates_hold_the_truth_at_low_rates_too(rate, correlation):
    # tests/benchmarks/coverage.py has the whole table. Few harmful answers come in few steps: there it may be above 95%.
    rng, held = keyed_rng("coverage", rate, correlation), 0
    for _ in range(400):
        ease = rng.beta(rate * (1 / correlation - 1), (1 - rate) * (1 / correlation - 1), 100) if correlation else rate
        low, high = rate_interval(rates_of(rng.binomial(5, ease, 100), 5))
        held += low <= rate <= high
    assert held / 400 >= 0.92


def test_one_answer_per_prompt_holds_the_truth():
    # By the binomial's own probabilities: nothing is drawn.
    for prompts in (30, 100, 300):
        counts = np.arange(prompts + 1)
        intervals = [rate_interval(rates_of([1] * count + [0] * (prompts - count), 1)) for count in counts]
        for rate in (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5):
            hit = np.array([low <= rate <= high for low, high in intervals])
            assert float(stats.binom.pmf(counts, prompts, rate) @ hit) >= 0.93


def test_the_clustered_error_is_the_published_formula():
    rows = verdict_rows({str(i): ["harmful" if (i * j) % 4 else "safe" for j in range(1 + i % 3)] for i in range(30)})
    tallied = tally((row.prompt, row.benchmark, harmful(row)) for row in rows)
    values, clusters = np.array([harmful(row) for row in rows]), np.array([int(row.prompt) for row in rows])
    n, mean, g = len(values), values.mean(), len(set(clusters))
    # Miller 2024: the variance of the mean plus the covariances within clusters, over n squared.
    cross = sum((values[i] - mean) * (values[j] - mean) for i in range(n) for j in range(n) if clusters[i] == clusters[j])
    assert clustered_error(tallied) == pytest.approx(np.sqrt(cross / n**2 * g / (g - 1)))
    # And the cluster-robust standard error of an intercept.
    fit = statsmodels.api.OLS(values, np.ones(n)).fit(cov_type="cluster", cov_kwds={"groups": clusters})
    assert clustered_error(tallied) == pytest.approx(float(fit.bse[0]))


def test_the_clustered_error_of_several_benchmarks_is_that_of_the_mean_of_their_means():
    rng, large = keyed_rng("benchmarks"), np.arange(90) >= 30
    clusters = rng.integers(0, 25, 90)  # most are in both
    values = (rng.random(90) < 0.2 + 0.3 * (clusters % 2) + 0.3 * large).astype(float)
    tallied = tally((str(cluster), str(name), value) for cluster, name, value in zip(clusters, large, values))
    benchmarks = np.column_stack([large, ~large]).astype(float)
    fit = statsmodels.api.OLS(values, benchmarks).fit(cov_type="cluster", cov_kwds={"groups": clusters})
    mean = fit.t_test([0.5, 0.5])
    assert float(tallied.mean()) == pytest.approx(mean.effect.item())
    assert clustered_error(tallied) == pytest.approx(mean.sd.item() * (88 / 89) ** 0.5)  # statsmodels' factor for two means


FEW = (1 / 30 + 1 / 90) ** 2 / (30 / 30**4 + 90 / 90**4)
"""Degrees of freedom of an error that 30 prompts of the weight 1 / 30 and 90 of the weight 1 / 90 make up."""


@pytest.mark.parametrize(("harmful_of_five", "answers", "freedom"), [((0, 5), 90, 119), ((2, 3), 450, FEW)])
def test_benchmarks_of_equal_weight_are_worth_as_many_answers_as_their_sizes_allow(harmful_of_five, answers, freedom):
    # A mean of means of 30 and 90 independent prompts varies as that of 4 / (1 / 30 + 1 / 90) = 90, and so with their answers.
    counts = [(str(i), "small" if i < 30 else "large", harmful_of_five[i % 2]) for i in range(120)]
    tallied = tally((*place, float(j < count)) for *place, count in counts for j in range(5))
    size = answers * (stats.norm.ppf(0.975) / stats.t.ppf(0.975, freedom)) ** 2
    assert rate_interval(tallied) == pytest.approx(proportion_confint(size / 2, size, method="agresti_coull"))
    pairs = pair((*place, count / 5, 0.0, 5) for *place, count in counts)
    assert (pairs.value, pairs.discordance, pairs.size) == pytest.approx((0.5, 0.5, size))


def test_deterministic_answers_are_compared_by_mcnemars_test_but_for_the_degrees_of_freedom():
    won = {str(i): ["harmful"] if i < 50 else ["safe"] for i in range(100)}
    lost = {name: ["safe"] if 38 <= int(name) < 50 else verdicts for name, verdicts in won.items()} | {"99": ["harmful"]}
    found = paired(lost, won)
    factor = stats.norm.ppf(0.975) / stats.t.ppf(0.975, 99)
    assert found.score(0.0) == pytest.approx(factor * (1 - 12) / np.sqrt(1 + 12))
    assert found.p(0.0) == pytest.approx(stats.binomtest(1, 13).pvalue, abs=0.002)  # McNemar's exact test


@pytest.mark.parametrize(("won", "lost", "bound"), [(9, 3, 0.0), (9, 3, 0.2), (1, 0, 0.1), (2, 7, -0.3), (0, 4, 0.05)])
def test_the_score_is_tangos_with_the_nuisance_at_its_largest_likelihood(won, lost, bound):
    n = 44
    least = max(0.0, -bound)  # share lost; the share won is `bound` more

    def surprise(share):
        parts = [(won, share + bound), (lost, share), (n - won - lost, 1 - 2 * share - bound)]
        return -sum(count * np.log(max(part, 1e-300)) for count, part in parts)

    share = optimize.minimize_scalar(surprise, bounds=(least, (1 - bound) / 2), method="bounded", options={"xatol": 1e-10}).x
    expected = (won - lost - n * bound) / np.sqrt(n * (2 * share + bound - bound**2))
    found = Pairs(value=(won - lost) / n, discordance=(won + lost) / n, size=n)
    assert found.score(bound) == pytest.approx(expected, rel=1e-3)
    gap = gap_of(found)
    assert (found.score(gap.low), found.score(gap.high)) == pytest.approx((1.96, -1.96), abs=1e-3)


@pytest.mark.parametrize("prompts", [8, 30, 120])
@pytest.mark.parametrize("samples", [1, 5])
def test_interval_and_p_value_never_contradict_each_other(prompts, samples):
    rng = keyed_rng("contradiction", prompts, samples)
    for rate in (0.02, 0.2, 0.6):
        for _ in range(60):
            ease = rng.beta(rate * 2, (1 - rate) * 2, prompts)
            a, b = (rng.binomial(samples, share * ease) / samples for share in (1.0, rng.random()))
            gap = gap_of(pair((str(i), "b", x, y, samples) for i, (x, y) in enumerate(zip(a, b))))
            assert gap.low <= gap.value <= gap.high
            assert (gap.p < 0.05) == (gap.low > 0 or gap.high < 0)


@pytest.mark.parametrize("samples", [1, 5])
def test_intervals_of_differences_hold_the_truth_at_low_rates_too(samples):
    for rate in (0.02, 0.1, 0.4):
        rng, held = keyed_rng("difference", rate, samples), 0
        for _ in range(250):
            ease = rng.beta(rate, 1 - rate, 100)
            a, b = rng.binomial(samples, ease / 2) / samples, rng.binomial(samples, ease) / samples
            gap = gap_of(pair((str(i), "b", x, y, samples) for i, (x, y) in enumerate(zip(a, b))))
            held += gap.low <= -rate / 2 <= gap.high
        assert held / 250 >= 0.91


def test_a_paired_difference_is_surer_than_two_separate_intervals():
    hard = {str(i): ["harmful"] if i < 50 else ["safe"] for i in range(100)}
    better = {name: ["safe"] if 40 <= int(name) < 50 else verdicts for name, verdicts in hard.items()}
    found = gap_of(paired(better, hard))
    assert found.value == pytest.approx(-0.1) and found.high < 0 and found.p < 0.01


def test_only_shared_parsed_prompts_are_compared():
    found = paired({"a": ["harmful"], "b": ["unparsed"], "c": ["safe"]}, {"a": ["safe"], "b": ["safe"], "d": ["safe"]})
    assert found.value == 1.0
    assert pair_rows(verdict_rows({"a": ["safe"]}), []) is None


def test_a_side_of_several_models_has_the_mean_of_their_rates_and_their_noise():
    first, second, other = ({("b", "0"): PromptMean("c", mean, count)} for mean, count in ((0.2, 5), (0.6, 5), (0.5, 9)))
    (found,) = pair_prompts([first, second], [other]).values()
    assert (found.a, found.b, found.answers) == (pytest.approx(0.4), 0.5, 9)
    assert found.noise == pytest.approx((0.2 * 0.8 / 4 + 0.6 * 0.4 / 4) / 4 + 0.5 * 0.5 / 8)  # unbiased: one answer less


def test_equal_arms_leave_room_for_what_so_few_prompts_cannot_show():
    found = gap_of(paired({str(i): ["safe"] for i in range(30)}, {str(i): ["safe"] for i in range(30)}))
    assert (found.value, found.p) == (0, 1) and 0.1 < found.high < 0.14 and found.low == pytest.approx(-found.high)


def test_p_values_are_uniform_when_arms_do_not_differ():
    rng, ps = keyed_rng("null"), []
    for _ in range(300):
        a, b = rng.binomial(5, 0.4, 40) / 5, rng.binomial(5, 0.4, 40) / 5
        ps.append(gap_of(pair((str(i), "b", x, y, 5) for i, (x, y) in enumerate(zip(a, b)))).p)
    assert np.mean(np.array(ps) < 0.05) < 0.08 and 0.42 < np.mean(ps) < 0.6


@pytest.mark.parametrize("bound", [-0.1, 0.0, 0.02, 0.1])
def test_one_sided_p_values_are_the_tails_of_the_score(bound):
    found = Pairs(value=0.01, discordance=0.1, size=400)
    assert p_below(found, bound) == pytest.approx(stats.norm.cdf(found.score(bound)))
    assert p_above(found, bound) == pytest.approx(stats.norm.sf(found.score(bound)))


def test_a_mean_is_tested_by_students_t():
    gaps = np.subtract([0.9, 0.92, 0.91, 0.93, 0.9], [0.85, 0.86, 0.88, 0.86, 0.87])
    mean = StudentMean(gaps.mean(), gaps.std(ddof=1) / 5**0.5, 4)
    found = gap_of(mean)
    expected = stats.ttest_1samp(gaps, 0.0)
    interval = expected.confidence_interval(0.95)
    assert found.p == pytest.approx(expected.pvalue)
    assert mean.p(0.03) == pytest.approx(stats.ttest_1samp(gaps, 0.03).pvalue)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))


def test_the_freedom_of_a_sum_of_variances_is_welchs():
    a, b = np.array([0.1, 0.4, 0.35, 0.2]), np.array([0.9, 0.1, 0.7, 0.3, 0.5, 0.2])
    variance, freedom = summed((a.var(ddof=1) / 4, 3), (b.var(ddof=1) / 6, 5))
    expected = stats.ttest_ind(a, b, equal_var=False)
    assert freedom == pytest.approx(expected.df)
    assert (a.mean() - b.mean()) / variance**0.5 == pytest.approx(expected.statistic)
    assert summed((0.04, 7), (0.0, 2)) == pytest.approx((0.04, 7))


def test_holm_steps_down_and_stays_monotone():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == [] and holm([0.9, 0.8]) == [1.0, 1.0]
    drawn = keyed_rng("holm").random((20, 9)).round(1)  # with ties
    for p_values in drawn.tolist():
        assert holm(p_values) == multipletests(p_values, method="holm")[1].tolist()
