"""Rates over prompts with honest intervals, and paired differences between models: the arithmetic of the study.

Knows evaluation rows (`eval/rows.py`) only as prompts with outcomes; what an outcome is (`eval/analysis/metrics.py`), the
paper's claims (`eval/analysis/claim_tests.py`) and figures are elsewhere.

- Prompts are the unit of sampling, not rows: five samples of one prompt are one cluster, and so are near-copies of one
  behaviour in several benchmarks. Intervals resample clusters (95%, percentile, widened for few clusters as in
  Hesterberg 2015); one answer per prompt gets the Wilson interval.
- Models are compared on the prompts they share, prompt by prompt: cluster-bootstrap interval, McNemar's exact test where
  every cluster is one yes or no (SafeBeam, greedy), else the sign-flip test over clusters, Holm over the planned family.
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
FLIPS = 4999
TIE = 1e-12  # sums of the same numbers in another order differ by less


@dataclass(frozen=True)
class Difference:
    """A minus B on shared prompts (or probe seeds), its 95% interval and two-sided p, unadjusted."""

    value: float
    low: float
    high: float
    p: float
    n: int


@dataclass(frozen=True)
class Tally:
    """Sums and counts per cluster and benchmark, float64 [clusters, benchmarks]; resampled within strata."""

    sums: np.ndarray
    counts: np.ndarray
    strata: tuple[int, ...]

    @property
    def clusters(self) -> int:
        return len(self.strata)

    def mean(self, weights: np.ndarray | None = None) -> np.ndarray:
        """The mean of benchmark means: a scalar, or [resamples] for weights [resamples, clusters]."""
        weights = np.ones(self.clusters) if weights is None else weights
        return np.mean((weights @ self.sums) / (weights @ self.counts), axis=-1)


def cluster_of(row: JudgedRow) -> str:
    """Rows with the same cluster are not independent: near-copies, or the same up to case, spaces and punctuation."""
    if row.cluster:
        return row.cluster
    return re.sub(r"[\W_]+", " ", (row.behavior or row.prompt).lower()).strip() or f"{row.benchmark}/{row.prompt_id}"


def tally(entries: Iterable[tuple[str, str, float]]) -> Tally | None:
    """Tally (cluster, benchmark, value) entries; None when there are none."""
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
    patterns = [tuple(present) for present in counts > 0]  # strata: no resample leaves a benchmark empty
    numbers = {pattern: i for i, pattern in enumerate(sorted(set(patterns)))}
    return Tally(sums, counts, tuple(numbers[pattern] for pattern in patterns))


@functools.lru_cache(maxsize=4)
def resample_weights(strata: tuple[int, ...]) -> np.ndarray:
    """How often each cluster is drawn, float64 [RESAMPLES, clusters]; the same for all arms with the same clusters."""
    weights = np.zeros((RESAMPLES, len(strata)))
    for stratum in sorted(set(strata)):
        members = [i for i, of in enumerate(strata) if of == stratum]
        draws = keyed_rng("bootstrap", stratum, len(members)).multinomial(
            len(members), [1 / len(members)] * len(members), size=RESAMPLES
        )
        weights[:, members] = draws
    return weights


def bootstrap_interval(of: Tally) -> tuple[float, float]:
    """95% cluster-bootstrap interval of `of.mean()`; infinite when a single cluster says nothing about the others."""
    if of.clusters < 2:
        return -np.inf, np.inf
    n = of.clusters
    tail = stats.norm.cdf(-np.sqrt(n / (n - 1)) * stats.t.ppf(0.975, n - 1))
    low, high = np.quantile(of.mean(resample_weights(of.strata)), [tail, 1 - tail])
    return float(low), float(high)


def clustered_error(of: Tally) -> float | None:
    """Standard error of a rate over clustered answers: Miller 2024 (arXiv 2411.00640), equation 4, as inspect_ai has it.

    sqrt(sum over clusters of (sum of deviations)^2) / n, times sqrt(g / (g - 1)) for g clusters. Of several benchmarks it
    is that of the mean of their means. None for a single cluster.
    """
    g = of.clusters
    if g < 2:
        return None
    totals = of.counts.sum(axis=0)
    deviations = of.sums - of.counts * (of.sums.sum(axis=0) / totals)
    parts = np.mean(deviations / totals, axis=1)  # what each cluster moves the mean by
    return float(np.sqrt(np.sum(parts**2) * g / (g - 1)))


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """95% Wilson score interval of a proportion."""
    interval = stats.binomtest(successes, trials).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def rate_interval(of: Tally) -> tuple[float, float, str]:
    """95% interval of a rate and its method: Wilson for one answer per cluster of one benchmark, else the bootstrap.

    When no cluster differs from another the bootstrap would claim certainty: Wilson over clusters then.
    """
    if of.counts.shape[1] == 1 and of.counts.max() == 1:
        return *wilson_interval(int(of.sums.sum()), of.clusters), "wilson"
    low, high = bootstrap_interval(of)
    if of.clusters < 2 or high - low < TIE:
        return *wilson_interval(round(float(of.mean()) * of.clusters), of.clusters), "wilson"
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
    return {prompt: (clusters[prompt], float(np.mean(of))) for prompt, of in values.items()}


def paired_tally(
    plus: Sequence[Sequence[JudgedRow]], minus: Sequence[Sequence[JudgedRow]], outcome: Outcome
) -> Tally | None:
    """Per-prompt differences, mean over models `plus` minus mean over models `minus`, on the prompts all share."""
    ahead, behind = ([prompt_means(rows, outcome) for rows in side] for side in (plus, minus))
    shared = set.intersection(*(set(means) for means in ahead + behind))

    def side_mean(side: list[dict[tuple[str, str], tuple[str, float]]], prompt: tuple[str, str]) -> float:
        return sum(means[prompt][1] for means in side) / len(side)

    return tally(
        (ahead[0][prompt][0], prompt[0], side_mean(ahead, prompt) - side_mean(behind, prompt))
        for prompt in sorted(shared)
    )


def sign_flips(of: Tally, shift: float = 0.0) -> tuple[float, np.ndarray]:
    """`of.mean() - shift`, and the same with each cluster's sign drawn at random [FLIPS]: the null distribution."""
    totals = of.counts.sum(axis=0)
    parts = np.mean((of.sums - shift * of.counts) / totals, axis=1)
    rng = keyed_rng("sign flips", len(parts))
    flips = [rng.choice((-1.0, 1.0), (count, len(parts))) @ parts for count in (1000, 1000, 1000, 1000, FLIPS - 4000)]
    return float(parts.sum()), np.concatenate(flips)


def p_below(of: Tally, bound: float) -> float:
    """One-sided p of "the difference is below `bound`"."""
    observed, null = sign_flips(of, bound)
    return float((1 + np.sum(null <= observed + TIE)) / (len(null) + 1))


def p_above(of: Tally, bound: float) -> float:
    """One-sided p of "the difference is above `bound`"."""
    return p_below(Tally(-of.sums, of.counts, of.strata), -bound)


def difference(of: Tally) -> Difference:
    """The paired difference, its cluster-bootstrap 95% interval and its two-sided p."""
    low, high = bootstrap_interval(of)
    if high - low < TIE:  # no cluster differs from another: what n equal observations rule out at 95% (0/100: up to 3%)
        unseen = 1 - 0.05 ** (1 / of.clusters)
        low, high = low - unseen, high + unseen
    value, p = float(of.mean()), mcnemar_p(of)
    if p is None:
        observed, null = sign_flips(of)
        p = float((1 + np.sum(np.abs(null) >= abs(observed) - TIE)) / (len(null) + 1))
    return Difference(value, max(low, -1.0), min(high, 1.0), p, int(of.counts.sum()))


def mcnemar_p(of: Tally) -> float | None:
    """McNemar's exact two-sided p where every cluster is one prompt of one benchmark that is won, lost or tied."""
    if of.counts.shape[1] > 1 or of.counts.max() > 1 or not np.isin(of.sums, (-1.0, 0.0, 1.0)).all():
        return None
    won, lost = int((of.sums > 0).sum()), int((of.sums < 0).sum())
    return float(mcnemar([[0, won], [lost, 0]], exact=True).pvalue)


def seed_difference(plus: Sequence[float], minus: Sequence[float]) -> Difference:
    """Mean of paired differences over probe seeds, with Student's t interval and p (training-sample noise only)."""
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
    """Holm's step-down adjusted p-values, in the order given."""
    return [float(p) for p in multipletests(p_values, method="holm")[1]] if len(p_values) else []
