"""Rates over prompts with their intervals, and paired differences between models: the arithmetic of the study.

To this file an evaluation row (`eval/rows.py`) is a prompt with an outcome. Outcomes are defined in
`eval/analysis/metrics.py`, the paper's claims are tested in `eval/analysis/claim_tests.py`.

- Prompts are the unit of sampling, not rows: five samples of one prompt form one cluster, and so do near-copies of one
  behaviour in several benchmarks. Intervals resample clusters (95%, percentile, widened for few clusters as in
  Hesterberg 2015); one answer per prompt gets the Wilson interval.
- Models are compared prompt by prompt on the prompts they share: cluster-bootstrap interval, McNemar's exact test if
  every cluster is a single yes or no (SafeBeam, greedy), otherwise the sign-flip test over clusters, and Holm's
  correction over the planned family.
- All draws are keyed: the same rows give the same numbers, to the last digit.
"""

from __future__ import annotations

import functools
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from curricula.eval.rows import JudgedRow
from curricula.randomness import keyed_rng

Outcome = Callable[[JudgedRow], "float | None"]

RESAMPLES = 2000
"""Bootstrap resamples of an interval."""

FLIPS = 4999
"""Random sign assignments of a sign-flip test."""

TIE = 1e-12
"""Values closer than this are equal: summing the same numbers in another order moves a sum by less."""


@dataclass(frozen=True)
class Difference:
    """A minus B on shared prompts, or on shared probe seeds."""

    value: float
    low: float
    """Lower end of the 95% interval."""
    high: float
    p: float
    """Two-sided, unadjusted."""
    n: int
    """Shared prompts or seeds."""


@dataclass(frozen=True)
class Tally:
    """Outcomes summed per cluster and benchmark."""

    sums: np.ndarray
    """Sum of the outcomes, float64 [clusters, benchmarks]."""
    counts: np.ndarray
    """Number of outcomes, float64 [clusters, benchmarks]."""
    strata: tuple[int, ...]
    """Each cluster's stratum. Clusters are resampled within strata, so that no resample leaves a benchmark empty."""

    @property
    def clusters(self) -> int:
        """Number of clusters."""
        return len(self.strata)

    def mean(self, weights: np.ndarray | None = None) -> np.ndarray:
        """The mean of the benchmarks' means: a scalar, or [resamples] for weights [resamples, clusters]."""
        weights = np.ones(self.clusters) if weights is None else weights
        return np.mean((weights @ self.sums) / (weights @ self.counts), axis=-1)


def cluster_of(row: JudgedRow) -> str:
    """The row's cluster: near-copies share one, as do requests equal up to case, spaces and punctuation."""
    if row.cluster:
        return row.cluster
    return re.sub(r"[\W_]+", " ", (row.behavior or row.prompt).lower()).strip() or f"{row.benchmark}/{row.prompt_id}"


def tally(entries: Iterable[tuple[str, str, float]]) -> Tally | None:
    """Tally (cluster, benchmark, value) entries; None if there are none."""
    entries = list(entries)
    if not entries:
        return None
    clusters = {name: i for i, name in enumerate(sorted({entry[0] for entry in entries}))}
    benchmarks = {name: i for i, name in enumerate(sorted({entry[1] for entry in entries}))}
    sums = np.zeros((len(clusters), len(benchmarks)))
    counts = np.zeros_like(sums)
    for cluster, benchmark, value in entries:
        sums[clusters[cluster], benchmarks[benchmark]] += value
        counts[clusters[cluster], benchmarks[benchmark]] += 1
    patterns = [tuple(present) for present in counts > 0]  # the benchmarks in which a cluster occurs
    numbers = {pattern: i for i, pattern in enumerate(sorted(set(patterns)))}
    return Tally(sums, counts, tuple(numbers[pattern] for pattern in patterns))


@functools.lru_cache(maxsize=4)
def resample_weights(strata: tuple[int, ...]) -> np.ndarray:
    """How often each resample draws each cluster, float64 [RESAMPLES, clusters]; equal for arms with equal strata."""
    weights = np.zeros((RESAMPLES, len(strata)))
    for stratum in sorted(set(strata)):
        members = [i for i, own in enumerate(strata) if own == stratum]
        draws = keyed_rng("bootstrap", stratum, len(members)).multinomial(
            len(members), [1 / len(members)] * len(members), size=RESAMPLES
        )
        weights[:, members] = draws
    return weights


def bootstrap_interval(tallied: Tally) -> tuple[float, float]:
    """95% cluster-bootstrap interval of the mean; infinite for a single cluster, which says nothing about others."""
    if tallied.clusters < 2:
        return -np.inf, np.inf
    n = tallied.clusters
    tail = stats.norm.cdf(-np.sqrt(n / (n - 1)) * stats.t.ppf(0.975, n - 1))
    low, high = np.quantile(tallied.mean(resample_weights(tallied.strata)), [tail, 1 - tail])
    return float(low), float(high)


def clustered_error(tallied: Tally) -> float | None:
    """Standard error of a rate over clustered answers: Miller 2024 (arXiv 2411.00640), equation 4, as in inspect_ai.

    sqrt(sum over clusters of (sum of deviations)^2) / n, times sqrt(g / (g - 1)) for g clusters. Over several benchmarks,
    the error of the mean of their means. None for a single cluster.
    """
    g = tallied.clusters
    if g < 2:
        return None
    totals = tallied.counts.sum(axis=0)
    deviations = tallied.sums - tallied.counts * (tallied.sums.sum(axis=0) / totals)
    parts = np.mean(deviations / totals, axis=1)  # how far each cluster moves the mean
    return float(np.sqrt(np.sum(parts**2) * g / (g - 1)))


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """95% Wilson score interval of a proportion."""
    interval = stats.binomtest(successes, trials).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def rate_interval(tallied: Tally) -> tuple[float, float, str]:
    """95% interval of a rate and its method: Wilson for one answer per cluster of one benchmark, else the bootstrap.

    If all clusters are equal, the bootstrap would claim certainty; the interval is then Wilson's over clusters.
    """
    if tallied.counts.shape[1] == 1 and tallied.counts.max() == 1:
        return *wilson_interval(int(tallied.sums.sum()), tallied.clusters), "wilson"
    low, high = bootstrap_interval(tallied)
    if tallied.clusters < 2 or high - low < TIE:
        return *wilson_interval(round(float(tallied.mean()) * tallied.clusters), tallied.clusters), "wilson"
    return low, high, "cluster bootstrap"


def prompt_means(rows: Iterable[JudgedRow], outcome: Outcome) -> dict[tuple[str, str], tuple[str, float]]:
    """Per (benchmark, prompt_id): the cluster and the mean outcome of the parsed samples."""
    values: dict[tuple[str, str], list[float]] = defaultdict(list)
    clusters = {}
    for row in rows:
        value = outcome(row)
        if value is not None:
            prompt = (row.benchmark, row.prompt_id)
            values[prompt].append(value)
            clusters[prompt] = cluster_of(row)
    return {prompt: (clusters[prompt], float(np.mean(outcomes))) for prompt, outcomes in values.items()}


def paired_tally(
    plus: Sequence[Sequence[JudgedRow]], minus: Sequence[Sequence[JudgedRow]], outcome: Outcome
) -> Tally | None:
    """Per-prompt differences on the prompts that all models share: the mean over `plus` minus the mean over `minus`.

    Both hold the rows of each model. None if no prompt is shared.
    """
    plus_means, minus_means = ([prompt_means(rows, outcome) for rows in side] for side in (plus, minus))
    shared = set.intersection(*(set(means) for means in plus_means + minus_means))

    def side_mean(side: list[dict[tuple[str, str], tuple[str, float]]], prompt: tuple[str, str]) -> float:
        return sum(means[prompt][1] for means in side) / len(side)

    return tally(
        (plus_means[0][prompt][0], prompt[0], side_mean(plus_means, prompt) - side_mean(minus_means, prompt))
        for prompt in sorted(shared)
    )


def sign_flips(tallied: Tally, shift: float = 0.0) -> tuple[float, np.ndarray]:
    """The mean minus `shift`, and its null distribution [FLIPS]: the same with each cluster's sign drawn at random."""
    totals = tallied.counts.sum(axis=0)
    parts = np.mean((tallied.sums - shift * tallied.counts) / totals, axis=1)
    rng = keyed_rng("sign flips", len(parts))
    flips = [rng.choice((-1.0, 1.0), (count, len(parts))) @ parts for count in (1000, 1000, 1000, 1000, FLIPS - 4000)]
    return float(parts.sum()), np.concatenate(flips)


def p_below(tallied: Tally, bound: float) -> float:
    """One-sided p-value of the claim that the difference is below `bound`."""
    observed, null = sign_flips(tallied, bound)
    return float((1 + np.sum(null <= observed + TIE)) / (len(null) + 1))


def p_above(tallied: Tally, bound: float) -> float:
    """One-sided p-value of the claim that the difference is above `bound`."""
    return p_below(Tally(-tallied.sums, tallied.counts, tallied.strata), -bound)


def difference(tallied: Tally) -> Difference:
    """The paired difference with its cluster-bootstrap interval and two-sided p-value."""
    low, high = bootstrap_interval(tallied)
    if high - low < TIE:  # all clusters are equal: n of them cannot rule out a small share at 95% (100: up to 3%)
        unseen = 1 - 0.05 ** (1 / tallied.clusters)
        low, high = low - unseen, high + unseen
    value, p = float(tallied.mean()), mcnemar_p(tallied)
    if p is None:
        observed, null = sign_flips(tallied)
        p = float((1 + np.sum(np.abs(null) >= abs(observed) - TIE)) / (len(null) + 1))
    return Difference(value, max(low, -1.0), min(high, 1.0), p, int(tallied.counts.sum()))


def mcnemar_p(tallied: Tally) -> float | None:
    """McNemar's exact two-sided p-value; None unless every cluster is one prompt of one benchmark, won, lost or tied."""
    if tallied.counts.shape[1] > 1 or tallied.counts.max() > 1 or not np.isin(tallied.sums, (-1.0, 0.0, 1.0)).all():
        return None
    won, lost = int((tallied.sums > 0).sum()), int((tallied.sums < 0).sum())
    return float(mcnemar([[0, won], [lost, 0]], exact=True).pvalue)


def seed_difference(plus: Sequence[float], minus: Sequence[float]) -> Difference:
    """Mean of paired differences over probe seeds, with Student's t interval and p-value (training-sample noise only)."""
    gaps = np.asarray(plus) - np.asarray(minus)
    value = float(gaps.mean())
    if len(gaps) < 2:
        return Difference(value, -1.0, 1.0, 1.0, len(gaps))
    error = float(gaps.std(ddof=1)) / np.sqrt(len(gaps))
    if error == 0:
        return Difference(value, value, value, 0.5 ** (len(gaps) - 1) if value else 1.0, len(gaps))
    reach = float(stats.t.ppf(0.975, len(gaps) - 1)) * error
    return Difference(value, value - reach, value + reach, float(stats.ttest_1samp(gaps, 0.0).pvalue), len(gaps))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the given order."""
    return [float(p) for p in multipletests(p_values, method="holm")[1]] if len(p_values) else []
