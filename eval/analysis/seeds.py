"""Rates and differences over training seeds: what another pretraining run would have given, not only another prompt.

Three things vary: training seeds, prompts (the same for all runs: crossed with the seeds, not nested in them), and the
samples of an answer. docs/statistics.md defines the intervals and tests ("Intervals and tests") and shows the simulations
behind the choices.

- Half the width of the interval is sqrt(t²(seeds - 1) V_seed + t²(clusters - 1) V_prompt), Cochran's combination (1950).
- An interval is never narrower, and p never smaller, than over the prompts alone with all runs pooled: a few runs can agree by
  chance. This also covers rates near 0, where runs cannot be seen to differ.
- Benchmarks that some run has not answered do not count. Runs that share no benchmark are no evidence on seeds.
- For the AUC of probes, test texts and training subsets take the part of prompts.
- A difference is paired by prompt, and by seed too: only the seeds that the arms share count.
- One run has no V_seed. Its numbers are over prompts alone, and no claim is tested.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, TypeVar

import numpy as np
from scipy import optimize, special
from statsmodels.stats.proportion import proportion_confint

from curricula.eval.analysis.statistics import (
    NORMAL_95,
    TIE,
    Evidence,
    PairedMean,
    Prompt,
    PromptMean,
    StudentMean,
    Tally,
    cluster_parts,
    equal_clusters,
    freedom_factor,
    freedom_of,
    grouped,
    pair,
    pair_prompts,
    rate_interval,
    summed,
    summed_by,
    tally,
)
from curricula.eval.probes.auc import Placements, standard_error

LEAST_P = 1e-12
"""Smallest p-value reported."""

T = TypeVar("T")
BySeed = Mapping[int, Mapping[Prompt, PromptMean]]
"""The means of one arm's prompts, by training seed."""


@dataclass(frozen=True)
class Components:
    """Variances of a rate, or of a difference of two rates, in squared rates."""

    seed: float
    """Variance between training seeds, on infinitely many prompts."""
    prompt: float
    """Variance between prompts, on infinitely many runs."""
    interaction: float
    """Variance of a prompt in one run, beyond seed and prompt. With one sample, it includes that between samples."""
    sample: float
    """Variance between samples of one prompt in one run; 0 with one sample, where it is part of the interaction."""

    def of_mean(self, seeds: float, prompts: float, samples: float) -> tuple[float, float]:
        """(V_seed, V_prompt) of the mean over these numbers of seeds, prompts and samples."""
        return (self.seed + (self.interaction + self.sample / samples) / prompts) / seeds, self.prompt / prompts


@dataclass(frozen=True)
class Crossed:
    """A mean over at least two seeds and over prompts, with its variance."""

    value: float
    seeds: int
    seed_variance: float
    """V_seed: the variance of the mean from what differs between runs."""
    prompt_variance: float
    """V_prompt: the variance of the mean from what the runs share."""
    freedom: float
    """Degrees of freedom of V_prompt."""
    prompts: float
    """Effective number of prompts: the number of clusters of equal weight that would have this variance."""
    within: float
    """Variance of one prompt's mean in one run."""
    noise: float
    """The part of `within` that is due to sampling; NaN if it cannot be known."""
    samples: float
    """Average number of answers to a prompt in one run."""

    def reach_squared(self, alpha: float) -> float:
        """The square of half the width of the two-sided interval of level 1 - `alpha`."""
        parts = (self.seed_variance, self.seeds - 1), (self.prompt_variance, self.freedom)
        return sum(float(special.stdtrit(freedom, alpha / 2)) ** 2 * variance for variance, freedom in parts)

    def p(self, bound: float) -> float:
        gap = (self.value - bound) ** 2
        if gap < TIE**2:
            return 1.0
        if self.reach_squared(LEAST_P) <= gap:
            return LEAST_P
        return float(optimize.brentq(lambda alpha: self.reach_squared(alpha) - gap, LEAST_P, 1.0, xtol=1e-13))

    @property
    def reach(self) -> float:
        """Half the width of the 95% interval."""
        return math.sqrt(self.reach_squared(0.05))

    def interval(self) -> tuple[float, float]:
        return max(-1.0, self.value - self.reach), min(1.0, self.value + self.reach)

    @property
    def components(self) -> Components:
        """Estimates by the method of moments: each mean square is set equal to its expectation, and none goes below 0.

        If every run has every prompt and no estimate is 0, these are REML's estimates.
        """
        prompt = self.prompt_variance * self.prompts
        noise = 0.0 if math.isnan(self.noise) else min(self.noise, self.within)
        interaction = max(0.0, self.within - prompt - noise)
        seed = max(0.0, self.seed_variance * self.seeds - (interaction + noise) / self.prompts)
        return Components(seed, prompt, interaction, noise * self.samples)


def cross(runs: Mapping[int, Mapping[Prompt, PromptMean | PairedMean]], by_answers: bool = False) -> Crossed | None:
    """The mean of the runs, given by seed, over seeds and prompts (for several benchmarks, the mean of their means).

    None for fewer than two seeds, or if one of them lacks a benchmark. All prompts of a benchmark have the same weight or,
    `by_answers`, that of their answers, as in the rate of one run.
    """
    entries = [(seed, benchmark, own) for seed, of_run in runs.items() for (benchmark, _), own in of_run.items()]
    if not entries:
        return None
    seeds, benchmarks, means = zip(*entries)
    weights = [own.answers if by_answers else 1.0 for own in means]
    sums, counts = summed_by(([own.cluster for own in means], benchmarks, seeds), [own.mean for own in means], weights)
    known = [own.noise for own in means if not math.isnan(own.noise)]
    return crossed_of(sums, counts, _mean(known) if known else math.nan, _mean(own.answers for own in means))


def crossed_of(sums: np.ndarray, counts: np.ndarray, noise: float, samples: float) -> Crossed | None:
    """`cross` from the sums and counts of values, both float64 [clusters, benchmarks, seeds]; the rest as in `Crossed`."""
    (clusters, _, seeds), totals = sums.shape, counts.sum(axis=0)
    if seeds < 2 or not totals.all():
        return None
    runs = np.mean(sums.sum(axis=0) / totals, axis=0)
    parts = cluster_parts(sums, counts) / seeds
    factor = clusters / (clusters - 1) if clusters > 1 else 1.0
    pooled = parts.sum(axis=1) ** 2
    # The variance of the mean if a cluster varies together in all runs, and if it varies apart in each.
    together, apart = factor * float(pooled.sum()), factor * float((parts**2).sum())
    freedom = freedom_of(pooled) if together > TIE**2 else clusters - 1
    prompts = equal_clusters(counts)
    return Crossed(
        value=float(runs.mean()),
        seeds=seeds,
        seed_variance=float(runs.var(ddof=1)) / seeds,
        prompt_variance=max(0.0, (together - apart) * seeds / (seeds - 1)),
        freedom=max(1.0, min(freedom, clusters - 1)),
        prompts=prompts,
        within=apart * seeds * prompts,
        noise=noise,
        samples=samples,
    )


@dataclass(frozen=True)
class CrossedAndPooled:
    """The evidence over seeds, but never surer than that of the pooled runs over prompts."""

    crossed: Crossed
    pooled: Evidence

    @property
    def value(self) -> float:
        return self.crossed.value

    def p(self, bound: float) -> float:
        if (self.crossed.value - bound) * (self.pooled.value - bound) < 0:  # possible if runs differ in their prompts
            return 1.0
        return max(self.crossed.p(bound), self.pooled.p(bound))

    def interval(self) -> tuple[float, float]:
        (low, high), (pooled_low, pooled_high) = self.crossed.interval(), self.pooled.interval()
        return min(low, pooled_low), max(high, pooled_high)


@dataclass(frozen=True)
class Compared:
    """Two sides on the seeds and prompts that they share."""

    evidence: Evidence
    seeds: int
    n: int
    """Shared prompts; for probes, training subsets."""
    crossed: Crossed | None
    """None if nothing can be said about seeds: for one seed, and if the runs share no benchmark."""
    runs: Mapping[int, float] = field(default_factory=dict)
    """Each seed's own difference of rates, on the same benchmarks. The value of `crossed`, if there is one, is their mean."""


def compare(plus: Sequence[BySeed], minus: Sequence[BySeed]) -> Compared | None:
    """Compare the arms of A (`plus`) with those of B (`minus`), paired by seed and prompt; None if nothing pairs."""
    runs = {seed: pair_prompts([arm[seed] for arm in plus], [arm[seed] for arm in minus]) for seed in _shared([*plus, *minus])}
    runs = _on_shared_benchmarks({seed: paired for seed, paired in runs.items() if paired})
    prompts = sorted(set().union(*runs.values()))
    pooled = pair(_pooled([paired[prompt] for paired in runs.values() if prompt in paired]) for prompt in prompts)
    if pooled is None:
        return None
    crossed = cross(runs)
    evidence = CrossedAndPooled(crossed, pooled) if crossed else pooled
    differences = {seed: _difference_of_means(paired.values()) for seed, paired in runs.items()}
    return Compared(evidence, len(runs), len(prompts), crossed, differences)


def _pooled(runs: Sequence[PairedMean]) -> tuple[str, str, float, float, float]:
    """An entry for `pair`: the means of all runs on one prompt, with the sum of their answers."""
    a, b = _mean(means.a for means in runs), _mean(means.b for means in runs)
    return runs[0].cluster, runs[0].benchmark, a, b, sum(means.answers for means in runs)


def _difference_of_means(paired: Iterable[PairedMean]) -> float:
    """The mean of the benchmarks' mean differences."""
    by_benchmark = grouped(paired, lambda means: means.benchmark)
    return _mean(_mean(means.mean for means in own) for own in by_benchmark.values())


def _on_shared_benchmarks(runs: Mapping[int, Mapping[Prompt, T]]) -> dict[int, dict[Prompt, T]]:
    """What the runs have on the benchmarks that all of them have answered; everything if there is no such benchmark."""
    shared = set.intersection(*({name for name, _ in of_run} for of_run in runs.values())) if runs else set()
    return {
        seed: {key: mean for key, mean in of_run.items() if key[0] in shared or not shared} for seed, of_run in runs.items()
    }


class ProbeAuc(NamedTuple):
    """The AUC of one probe, or a mean or difference of several."""

    auc: float
    placements: Placements | None
    """As in `ProbeRow`; None if the probes were tested on different texts."""
    texts: float = 0.0
    """How well the texts' length alone separates them. It tells one set of test texts from another, as far as rows can."""


ProbesBySeed = Mapping[int, Mapping[int, ProbeAuc]]
"""The probes of one arm, by training seed and training subset."""


def compare_probes(plus: Sequence[ProbesBySeed], minus: Sequence[ProbesBySeed]) -> Compared | None:
    """Compare the mean AUC of the arms of A with that of B, paired by training seed, training subset and test text.

    None if nothing pairs.
    """
    gaps: dict[int, dict[int, ProbeAuc]] = {}
    for seed in _shared([*plus, *minus]):
        weighted = [(1 / len(plus), arm[seed]) for arm in plus] + [(-1 / len(minus), arm[seed]) for arm in minus]
        for subset in _shared([probes for _, probes in weighted]):
            gaps.setdefault(seed, {})[subset] = _combined([(weight, probes[subset]) for weight, probes in weighted])
    over_texts = _over_texts(gaps)
    if over_texts is None:
        return None
    crossed, pooled, subsets = over_texts
    return Compared(CrossedAndPooled(crossed, pooled) if crossed else pooled, len(gaps), subsets, crossed)


def _combined(weighted: Sequence[tuple[float, ProbeAuc]]) -> ProbeAuc:
    """The weighted sum of the AUCs and, if all probes were tested on the same texts, of the placements."""
    auc = sum(weight * probe.auc for weight, probe in weighted)
    placements = [(weight, probe.placements) for weight, probe in weighted if probe.placements is not None]
    texts = {(len(probe.placements[0]), len(probe.placements[1]), probe.texts) for _, probe in weighted if probe.placements}
    if len(placements) < len(weighted) or len(texts) > 1:
        return ProbeAuc(auc, None)
    unsafe = sum(weight * np.asarray(of_unsafe) for weight, (of_unsafe, _) in placements)
    safe = sum(weight * np.asarray(of_safe) for weight, (_, of_safe) in placements)
    return ProbeAuc(auc, (np.asarray(unsafe), np.asarray(safe)), weighted[0][1].texts)


def _over_texts(probes: ProbesBySeed) -> tuple[Crossed | None, StudentMean, int] | None:
    """The mean AUC over seeds, that of the pooled runs over test texts and training subsets, and the number of shared subsets.

    All runs share the test texts and the subsets, so neither variance falls with more seeds. None without shared subsets, or if
    the placements of the texts are not known.
    """
    subsets = _shared(list(probes.values())) if probes else []
    if not subsets:
        return None
    shared = [of_run[subset] for of_run in probes.values() for subset in subsets]
    mean = _combined([(1 / len(shared), probe) for probe in shared])
    if mean.placements is None:
        return None
    by_subset = [_mean(of_run[subset].auc for of_run in probes.values()) for subset in subsets]
    between_subsets = float(np.var(by_subset, ddof=1)) / len(subsets) if len(subsets) > 1 else 0.0
    texts = standard_error(mean.placements) ** 2, max(1, min(map(len, mean.placements)) - 1)
    variance, freedom = summed(texts, (between_subsets, max(1, len(subsets) - 1)))
    pooled = StudentMean(mean.auc, math.sqrt(variance), freedom)
    crossed = cross(
        {
            seed: {("", str(subset)): PromptMean(str(subset), of_run[subset].auc, 1) for subset in subsets}
            for seed, of_run in probes.items()
        }
    )
    if crossed:
        variance, freedom = summed(texts, (crossed.prompt_variance, crossed.freedom))
        crossed = replace(crossed, prompt_variance=variance, freedom=freedom)
    return crossed, pooled, len(subsets)


@dataclass(frozen=True)
class OverSeeds:
    """A rate or an AUC over the training seeds of an arm. Tables split it into several columns (`eval/report/tables.py`)."""

    value: float
    low: float | None
    """Lower end of the 95% interval, over training seeds and prompts; for probes, over seeds, training subsets and test texts.
    For a single run, over prompts alone; for its probes, None."""
    high: float | None
    spread: float | None
    """Standard deviation of the runs' values; None for a single run."""
    runs: Mapping[int, float]
    crossed: Crossed | None = None
    """The mean with its variance; None as in `Compared`."""


def rate_over_seeds(arm: BySeed) -> OverSeeds | None:
    """An arm's rate over its training seeds, on the benchmarks that all its runs have answered; None without answers."""
    means = {seed: dict(sorted(own.items())) for seed, own in sorted(_on_shared_benchmarks(arm).items())}
    if not any(means.values()):
        return None
    pooled = _pooled_tally(means.values())
    runs = {seed: _pooled_tally([means[seed]]).mean() for seed in arm}
    crossed = cross(means, by_answers=True)
    rate = pooled.mean() if crossed is None else min(max(crossed.value, 0.0), 1.0)
    spread = math.sqrt(crossed.seed_variance * crossed.seeds) if crossed else None
    return OverSeeds(rate, *interval_over_seeds(pooled, crossed), spread, runs, crossed)


def auc_over_seeds(arm: ProbesBySeed) -> OverSeeds | None:
    """The mean AUC of an arm's probes, over training seeds, training subsets and test texts; None without probes.

    It has no interval for a single run, or if the placements of the texts are not known.
    """
    runs = {seed: _mean(probe.auc for probe in probes.values()) for seed, probes in sorted(arm.items()) if probes}
    if not runs:
        return None
    spread = float(np.std(list(runs.values()), ddof=1)) if len(runs) > 1 else None
    crossed, pooled, _ = _over_texts(arm) or (None, None, 0)
    if crossed is None or pooled is None:
        return OverSeeds(_mean(runs.values()), None, None, spread, runs)
    low, high = CrossedAndPooled(crossed, pooled).interval()
    return OverSeeds(crossed.value, max(low, 0.0), min(high, 1.0), spread, runs, crossed)


def interval_over_seeds(pooled: Tally, crossed: Crossed | None) -> tuple[float, float]:
    """95% interval of a rate over seeds and prompts, never narrower than that of the pooled runs over prompts."""
    low, high = rate_interval(pooled)
    variance = crossed.value * (1 - crossed.value) if crossed else 0.0
    if crossed is None or variance < TIE or crossed.reach < TIE:
        return low, high
    least = crossed.seeds * freedom_factor(crossed.seeds - 1)
    size = min(max(variance * (NORMAL_95 / crossed.reach) ** 2, least), float(pooled.counts.sum()))
    over_seeds = proportion_confint(crossed.value * size, size, method="agresti_coull")
    return min(low, float(over_seeds[0])), max(high, float(over_seeds[1]))


def _pooled_tally(runs: Iterable[Mapping[Prompt, PromptMean]]) -> Tally:
    """The tally of all runs' answers as if one model had given them. A prompt has the weight of its answers."""
    means = [(benchmark, own) for of_run in runs for (benchmark, _), own in of_run.items()]
    tallied = tally(((own.cluster, benchmark, own.mean) for benchmark, own in means), [own.answers for _, own in means])
    assert tallied is not None  # every caller has answers
    return tallied


def _shared(sets: Sequence[Mapping[int, object]]) -> list[int]:
    """The keys that all mappings have, sorted."""
    return sorted(set.intersection(*map(set, sets)))


def _mean(values: Iterable[float]) -> float:
    """The mean, summed in order. `fmean` differs in the last digit, which decides how a value halfway is rounded."""
    values = list(values)
    return sum(values) / len(values)
