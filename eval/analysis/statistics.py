"""Rates over prompts with their intervals, and paired differences between models: the arithmetic of the study.

To this file an evaluation row (`eval/rows.py`) is a prompt with an outcome, which `eval/analysis/metrics.py` defines. Prompts,
not rows, are the unit of sampling: five samples of one prompt form one cluster, and so do near-copies of one behaviour in other
benchmarks. docs/statistics.md ("Intervals over prompts") describes the interval of a rate and the test of a difference.

All this concerns the models at hand; `eval/analysis/seeds.py` covers what another training seed would have given. The same rows
give the same numbers, to the last digit.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
from scipy import optimize, special, stats
from statsmodels.stats.proportion import proportion_confint

from curricula.eval.rows import JudgedRow

Outcome = Callable[[JudgedRow], "float | None"]
Name = TypeVar("Name", str, int, tuple[Any, ...])
Item = TypeVar("Item")
Key = TypeVar("Key")

NORMAL_95 = float(stats.norm.ppf(0.975))
"""Half the width of a normal 95% interval, in standard errors."""

TIE = 1e-12
"""Values closer than this count as equal: summing the same numbers in another order moves a sum by less."""


class Evidence(Protocol):
    """A measured difference, and how surely other values are ruled out."""

    @property
    def value(self) -> float: ...

    def p(self, bound: float) -> float:
        """Two-sided p-value of the hypothesis that the true difference is `bound`."""

    def interval(self) -> tuple[float, float]:
        """The smallest and the largest bound with a p-value of at least 0.05."""


@dataclass(frozen=True)
class Tally:
    """Outcomes summed per cluster and benchmark."""

    sums: np.ndarray
    """Sum of the outcomes, float64 [clusters, benchmarks]."""
    counts: np.ndarray
    """Number of outcomes, float64 [clusters, benchmarks]."""

    @property
    def clusters(self) -> int:
        return len(self.sums)

    def mean(self) -> float:
        """The mean of the benchmarks' means."""
        return float(np.mean(self.sums.sum(axis=0) / self.counts.sum(axis=0)))


def cluster_of(row: JudgedRow) -> str:
    """The row's cluster: near-copies share one, as do requests equal up to case, spaces and punctuation."""
    if row.cluster:
        return row.cluster
    return re.sub(r"[\W_]+", " ", (row.behavior or row.prompt).lower()).strip() or f"{row.benchmark}/{row.prompt_id}"


def numbered(names: Iterable[Name]) -> dict[Name, int]:
    """The distinct names in sorted order, numbered from 0."""
    return {name: number for number, name in enumerate(sorted(set(names)))}


def grouped(items: Iterable[Item], key: Callable[[Item], Key]) -> dict[Key, list[Item]]:
    """The items by their key, keys and items in the order in which they occur."""
    groups: dict[Key, list[Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def summed_by(
    names: Sequence[Sequence[Any]], values: Sequence[float], weights: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """The sums of the values times their weights, and of the weights, float64, with an axis for each list of `names`.

    A list has a name for every value. Equal names share a place on the axis, and places are in the order of the names.
    """
    numbers = [numbered(axis) for axis in names]
    cells = tuple([number[name] for name in axis] for number, axis in zip(numbers, names))
    sums = np.zeros([len(number) for number in numbers])
    counts = np.zeros_like(sums)
    np.add.at(sums, cells, np.multiply(values, weights))  # in the given order, so that the last digit is always the same
    np.add.at(counts, cells, weights)
    return sums, counts


def tally(entries: Iterable[tuple[str, str, float]], answers: Sequence[float] = ()) -> Tally | None:
    """Tally entries (cluster, benchmark, value); None if there are none. Each is one answer, or as many as `answers` says."""
    entries = list(entries)
    if not entries:
        return None
    names = [[entry[place] for entry in entries] for place in (0, 1)]
    return Tally(*summed_by(names, [value for _, _, value in entries], answers or [1.0] * len(entries)))


def clustered_error(tallied: Tally) -> float | None:
    """Standard error of a rate over clustered answers: Miller 2024 (arXiv 2411.00640), equation 4, as in inspect_ai.

    sqrt(sum over clusters of (sum of deviations)^2) / n, times sqrt(g / (g - 1)) for g clusters. Over several benchmarks,
    the error of the mean of their means. None for a single cluster.
    """
    g = tallied.clusters
    return float(np.sqrt(np.sum(cluster_parts(tallied.sums, tallied.counts) ** 2) * g / (g - 1))) if g > 1 else None


def cluster_parts(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """How far each cluster moves the mean: float64 [clusters] or, if `sums` and `counts` have seeds as a third axis,
    [clusters, seeds], for the mean of each seed."""
    totals = counts.sum(axis=0)
    return np.mean((sums - counts * (sums.sum(axis=0) / totals)) / totals, axis=1)


def equal_clusters(counts: np.ndarray) -> float:
    """How many clusters of equal weight would give the mean the same error, if each cluster were one observation.

    If `counts` has seeds as a third axis, for the average seed.
    """
    return 1 / float(np.mean(np.sum(np.mean(counts / counts.sum(axis=0), axis=1) ** 2, axis=0)))


def freedom_of(squares: np.ndarray) -> float:
    """Degrees of freedom of a variance that is the sum of these squares: few if a few of them make it up."""
    return float(squares.sum() ** 2 / (squares**2).sum())


def effective_size(tallied: Tally, variance: float, most: float) -> float:
    """How many independent observations of this `variance` would give the mean its clustered error.

    At least as many as if each cluster were one observation, and at most `most`. As in Korn and Graubard, the number is then
    reduced for the degrees of freedom of the error: those of the clusters, or fewer if a few clusters make up the error.
    """
    least, error = equal_clusters(tallied.counts), clustered_error(tallied)
    floor = least * freedom_factor(tallied.clusters - 1)
    if not error or error**2 < TIE:
        return floor
    freedom = min(freedom_of(cluster_parts(tallied.sums, tallied.counts) ** 2), tallied.clusters - 1)
    return max(floor, min(max(variance / error**2, least), most) * freedom_factor(freedom))


def freedom_factor(freedom: float) -> float:
    """The factor that reduces an effective size for the degrees of freedom of the variance behind it."""
    return (NORMAL_95 / float(special.stdtrit(max(freedom, 1), 0.975))) ** 2


def effective_answers(tallied: Tally) -> float:
    """How many independent answers would give a rate its clustered error, as in `effective_size`."""
    rate, totals = min(max(tallied.mean(), 0.0), 1.0), tallied.counts.sum(axis=0)
    answers = float(len(totals) ** 2 / np.sum(1 / totals))  # of equal weight
    return effective_size(tallied, rate * (1 - rate), answers)


def rate_interval(tallied: Tally) -> tuple[float, float]:
    """95% interval of a rate: Agresti and Coull's for the effective number of answers."""
    rate, size = min(max(tallied.mean(), 0.0), 1.0), effective_answers(tallied)
    low, high = proportion_confint(rate * size, size, method="agresti_coull")
    return float(low), float(high)


class PromptMean(NamedTuple):
    """The answers to one prompt."""

    cluster: str
    mean: float
    """Mean outcome of the parsed samples."""
    answers: int
    """Number of parsed samples."""

    @property
    def noise(self) -> float:
        """Variance of the mean that is due to sampling; NaN for one sample, which cannot show it."""
        return self.mean * (1 - self.mean) / (self.answers - 1) if self.answers > 1 else math.nan


Prompt = tuple[str, str]
"""Benchmark and prompt id."""


def prompt_of(row: JudgedRow) -> Prompt:
    return row.benchmark, row.prompt_id


def prompt_means(
    rows: Iterable[JudgedRow], outcome: Outcome, key: Callable[[JudgedRow], Prompt] = prompt_of
) -> dict[Prompt, PromptMean]:
    """The mean outcome of each prompt, over the rows that have one."""
    values: dict[Prompt, list[float]] = defaultdict(list)
    clusters = {}
    for row in rows:
        value = outcome(row)
        if value is not None:
            prompt = key(row)
            values[prompt].append(value)
            clusters[prompt] = cluster_of(row)
    return {prompt: PromptMean(clusters[prompt], float(np.mean(own)), len(own)) for prompt, own in values.items()}


def any_of(means: Mapping[Prompt, PromptMean], expected: Mapping[Prompt, int]) -> dict[Prompt, PromptMean]:
    """Whether any answer to a prompt has the outcome, as a mean of 1 or 0.

    Prompts that lack an outcome of one of their `expected` answers are left out, whatever the others are: whether a prompt
    counts must not depend on its answers.
    """
    return {
        prompt: PromptMean(own.cluster, float(own.mean > 0), 1)
        for prompt, own in means.items()
        if own.answers >= expected[prompt]
    }


def most_answers(runs: Iterable[Iterable[JudgedRow]], key: Callable[[JudgedRow], Prompt] = prompt_of) -> Counter[Prompt]:
    """The number of answers to each prompt in the run that has most. An answer that an unfinished run lacks may be harmful."""
    most: Counter[Prompt] = Counter()
    for rows in runs:
        most |= Counter(map(key, rows))
    return most


@dataclass(frozen=True)
class Pairs:
    """Two sides on the prompts they share, as a number of independent pairs of answers."""

    value: float
    """The mean over A minus the mean over B; for several benchmarks, the mean of their differences."""
    discordance: float
    """How often an answer of A and one of B differ, in 0..1."""
    size: float
    """The effective number of pairs."""

    def score(self, bound: float) -> float:
        """Tango's statistic, standard normal if the true difference is `bound`. It is positive if `value` is larger."""
        n = self.size
        won, lost = n * (self.discordance + self.value) / 2, n * (self.discordance - self.value) / 2
        b, c = (2 * n - won + lost) * bound - won - lost, -lost * bound * (1 - bound)
        lost_share = (math.sqrt(max(b * b - 8 * n * c, 0.0)) - b) / (4 * n)
        error = math.sqrt(max(n * (2 * lost_share + bound * (1 - bound)), 0.0))
        gap = won - lost - n * bound
        if error > TIE:
            return gap / error
        return 0.0 if abs(gap) < TIE else math.copysign(math.inf, gap)

    def p(self, bound: float) -> float:
        return min(1.0, 2 * float(stats.norm.sf(abs(self.score(bound)))))

    def interval(self) -> tuple[float, float]:
        edge = 1 - 1e-9

        def limit(side: float) -> float:
            """The bound on one side whose score is 1.96 in size; the end of the scale if there is none."""
            if self.score(side * edge) * side >= -NORMAL_95:
                return side
            return float(optimize.brentq(lambda bound: self.score(bound) + side * NORMAL_95, self.value, side * edge))

        return limit(-1.0), limit(1.0)


def pair(entries: Iterable[tuple[str, str, float, float, float]]) -> Pairs | None:
    """Compare A and B by one entry per prompt: (cluster, benchmark, A's rate, B's rate, answers of each). None without any."""
    entries = list(entries)
    tallied = tally((cluster, benchmark, a - b) for cluster, benchmark, a, b, _ in entries)
    differing = tally((cluster, benchmark, a * (1 - b) + b * (1 - a)) for cluster, benchmark, a, b, _ in entries)
    if tallied is None or differing is None:
        return None
    value, discordance = tallied.mean(), differing.mean()
    prompts = Counter(benchmark for _, benchmark, *_ in entries)
    answers = 1 / sum((prompts[benchmark] * len(prompts)) ** -2 / count for _, benchmark, _, _, count in entries)
    size = effective_size(tallied, discordance - value**2, answers)
    return Pairs(value, discordance, size)


class PairedMean(NamedTuple):
    """Two sides on one prompt."""

    cluster: str
    benchmark: str
    a: float
    b: float
    answers: float
    """Number of answers on the side that has fewer."""
    noise: float
    """Variance of `mean` that is due to sampling; NaN if it cannot be known."""

    @property
    def mean(self) -> float:
        """The difference of the two sides."""
        return self.a - self.b


def pair_prompts(
    plus: Sequence[Mapping[Prompt, PromptMean]], minus: Sequence[Mapping[Prompt, PromptMean]]
) -> dict[Prompt, PairedMean]:
    """The models of A (`plus`) and of B (`minus`), each given by its prompts' means, paired on the prompts that all share."""
    sides = (plus, minus)
    shared = set.intersection(*(set(means) for side in sides for means in side))
    pairs = {}
    for prompt in sorted(shared):
        a, b = (sum(means[prompt].mean for means in side) / len(side) for side in sides)
        answers = min(sum(means[prompt].answers for means in side) for side in sides)
        noise = sum(means[prompt].noise / len(side) ** 2 for side in sides for means in side)
        pairs[prompt] = PairedMean(plus[0][prompt].cluster, prompt[0], a, b, answers, noise)
    return pairs


def p_below(evidence: Evidence, bound: float) -> float:
    """One-sided p-value of the claim that the difference is below `bound`."""
    half = evidence.p(bound) / 2
    return half if evidence.value < bound else 1 - half


def p_above(evidence: Evidence, bound: float) -> float:
    """One-sided p-value of the claim that the difference is above `bound`."""
    half = evidence.p(bound) / 2
    return half if evidence.value > bound else 1 - half


@dataclass(frozen=True)
class StudentMean:
    """A mean, or a difference of means, whose interval and p-values are by Student's t."""

    value: float
    error: float
    """Standard error, above 0."""
    freedom: float

    def p(self, bound: float) -> float:
        return min(1.0, 2 * float(stats.t.sf(abs(self.value - bound) / self.error, self.freedom)))

    def interval(self) -> tuple[float, float]:
        reach = float(stats.t.ppf(0.975, self.freedom)) * self.error
        return self.value - reach, self.value + reach


def summed(*parts: tuple[float, float]) -> tuple[float, float]:
    """Sum independent pairs (variance, degrees of freedom) into one such pair (Welch, Satterthwaite)."""
    total = sum(variance for variance, _ in parts)
    squares = sum(variance**2 / freedom for variance, freedom in parts)
    return total, total**2 / squares if squares else min(freedom for _, freedom in parts)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the given order. statsmodels has them too, but collects garbage at each call."""
    order = np.argsort(p_values)
    adjusted = np.maximum.accumulate(np.asarray(p_values)[order] * np.arange(len(order), 0, -1))
    return [float(p) for p in np.minimum(adjusted, 1.0)[np.argsort(order)]] if len(order) else []
