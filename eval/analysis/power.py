"""Power before money: which difference in attack success can a study detect, and what does one more seed buy?

The difference is that of two arms on shared seeds and prompts, tested as in `eval/analysis/seeds.py`. The variance between
runs is estimated from a few runs, so the test's reach is itself random. Power is the mean, over the distribution of that
estimate, of the probability that the difference exceeds the reach. This is pure arithmetic, for rates away from 0 and 1.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import astuple, dataclass

import numpy as np
from scipy import optimize, special, stats

from curricula.eval.analysis.seeds import Components

ASSUMED = Components(seed=0.077**2, prompt=0.25**2, interaction=0.354**2, sample=0.5**2)
"""Components of a difference of two arms, used if none have been measured: standard deviations of 7.7, 25, 35 and 50 points.
docs/statistics.md says how they follow from the demo's base models. They are of one small model: measure your own with two
seeds."""

POWER = 0.8
"""The probability with which a detectable difference is found."""


@dataclass(frozen=True)
class Design:
    """What a study spends on one comparison."""

    seeds: int
    prompts: float
    samples: int


def equal_prompts(benchmarks: Collection[int]) -> float:
    """The number of prompts in a single benchmark that is worth these numbers of prompts in several.

    The mean over several benchmarks gives each the same weight.
    """
    return len(benchmarks) ** 2 / sum(1 / max(1, number) for number in benchmarks)


def power(effect: float, design: Design, components: Components = ASSUMED, alpha: float = 0.05) -> float:
    """The probability that a true difference of `effect` is found, two-sided; 0 for one seed, which tests nothing."""
    if design.seeds < 2:
        return 0.0
    freedom = design.seeds - 1
    seed, prompt = components.of_mean(design.seeds, design.prompts, design.samples)
    estimates = stats.chi2.ppf((np.arange(2000) + 0.5) / 2000, freedom) / freedom * seed
    # The test's freedom over prompts is reduced as in `Crossed`: by about three for normal deviations.
    t_seed = special.stdtrit(freedom, 1 - alpha / 2)
    t_prompt = special.stdtrit(max(design.prompts / 3, 1), 1 - alpha / 2)
    reach = np.sqrt(t_seed**2 * estimates + t_prompt**2 * prompt)
    error = math.sqrt(seed + prompt)
    beyond = stats.norm.sf((reach - effect) / error) + stats.norm.cdf((-reach - effect) / error)
    return float(np.mean(beyond))


def detectable(design: Design, components: Components = ASSUMED, alpha: float = 0.05) -> float | None:
    """The smallest difference, in 0..1, that is found with probability `POWER`; None if even 1 is not."""
    if power(1.0, design, components, alpha) < POWER:
        return None
    return float(optimize.brentq(lambda effect: power(effect, design, components, alpha) - POWER, 0.0, 1.0, xtol=1e-4))


@dataclass(frozen=True)
class Row:
    """One line of the table: what a number of seeds buys."""

    seeds: int
    gpu_hours: float
    """Upper bound on the GPU hours of the whole study."""
    unadjusted: float | None
    """Smallest difference that a single test at 0.05 can detect; None if it detects none."""
    holm: float | None
    """Smallest difference that the first of all claims' tests by Holm can detect; None if it detects none."""


def table(design: Design, hours_per_seed: float, claims: int, components: Components = ASSUMED) -> list[Row]:
    """A row for the design's own seeds, one for one seed more, and one for two."""
    rows = []
    for seeds in range(design.seeds, design.seeds + 3):
        own = Design(seeds, design.prompts, design.samples)
        holm = detectable(own, components, 0.05 / claims)  # the level of Holm's first test
        rows.append(Row(seeds, seeds * hours_per_seed, detectable(own, components, 0.05), holm))
    return rows


def averaged(measured: Iterable[Components]) -> Components | None:
    """The mean of measured components, as each comparison alone has too few runs; None without any."""
    rows = [astuple(parts) for parts in measured]
    return Components(*(float(value) for value in np.mean(rows, axis=0))) if rows else None
