"""Simulated studies over training seeds: arrays of rates whose truth is known, and runs for the claim tests.

An outcome's log-odds are a mean, plus an effect of the seed, of the prompt, and of the prompt in that run. Half of the seeds'
variance is shared by the arms that share a seed, 0.7 of the prompts'; 0.6 of what is the prompt's stays with it over seeds. A
seed's standard deviation is stated as it is at a rate of 0.5; at other rates it is smaller, in proportion to rate (1 - rate).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import optimize, special

from curricula.eval.analysis import ArmInfo
from curricula.eval.analysis.claims import AUC
from curricula.eval.analysis.runs import Runs
from curricula.eval.analysis.seeds import BySeed, Crossed, ProbeAuc, ProbesBySeed, crossed_of
from curricula.eval.analysis.statistics import NORMAL_95, Evidence, Outcome, Pairs, Prompt, PromptMean, Tally, effective_size

PAIRED, SHARED, LASTING = 0.5, 0.7, 0.6
_NODES = np.linspace(-8, 8, 4001)
_WEIGHTS = np.exp(-(_NODES**2) / 2) / np.exp(-(_NODES**2) / 2).sum()


@dataclass(frozen=True)
class Cell:
    """One setting of the simulation."""

    seeds: int
    prompts: int
    rates: tuple[float, ...]
    """The true rate of each arm."""
    seed_sd: float = 0.1
    """Standard deviation of an arm over seeds, where its rate is 0.5."""
    correlation: float = 0.4
    """Between two answers of one run to one prompt."""
    samples: int = 5


@functools.cache
def _centre(rate: float, spread: float) -> float:
    """The mean of log-odds with this spread that gives the rate."""
    return float(optimize.brentq(lambda mean: _WEIGHTS @ special.expit(mean + spread * _NODES) - rate, -400, 400))


@functools.cache
def _prompt_spread(rate: float, correlation: float) -> float:
    """The spread of log-odds between prompts that correlates two answers to one of them."""

    def excess(spread: float) -> float:
        eases = special.expit(_centre(rate, round(spread, 6)) + spread * _NODES)
        return float(_WEIGHTS @ eases**2 - rate**2 - correlation * rate * (1 - rate))

    return float(optimize.brentq(excess, 0.0, 60.0, xtol=1e-3)) if correlation else 0.0


def draw_rates(rng: np.random.Generator, cell: Cell, studies: int) -> list[np.ndarray]:
    """The rate of each arm in each study, run and prompt: float64 [studies, seeds, prompts]."""
    shape, by_seed, by_prompt = ((studies, cell.seeds, cell.prompts), (studies, cell.seeds, 1), (studies, 1, cell.prompts))
    seed, prompt, found = rng.standard_normal(by_seed), rng.standard_normal(by_prompt), []
    for rate in cell.rates:
        between, tau = _prompt_spread(rate, cell.correlation), 4 * cell.seed_sd
        odds = _centre(rate, round(float(np.hypot(between, tau)), 6)) + tau * (
            np.sqrt(PAIRED) * seed + np.sqrt(1 - PAIRED) * rng.standard_normal(by_seed)
        )
        if between:
            lasting = np.sqrt(SHARED) * prompt + np.sqrt(1 - SHARED) * rng.standard_normal(by_prompt)
            odds = odds + between * (np.sqrt(LASTING) * lasting + np.sqrt(1 - LASTING) * rng.standard_normal(shape))
        eases = np.broadcast_to(special.expit(odds), shape)
        found.append(rng.binomial(cell.samples, eases) / cell.samples)
    return found


def by_seed(rates: np.ndarray, samples: int = 5) -> dict[int, dict[Prompt, PromptMean]]:
    """The means of one arm's prompts from its rates [seeds, prompts], each prompt a cluster of its own."""
    return {
        seed: {("b", str(i)): PromptMean(str(i), float(rate), samples) for i, rate in enumerate(run)}
        for seed, run in enumerate(rates)
    }


def crossed(values: np.ndarray, noise: np.ndarray | None = None, samples: int = 1) -> Crossed:
    """One study's values [seeds, prompts], each prompt a cluster of its own, as `eval/analysis/seeds.py` crosses them."""
    sums = values.T[:, None, :]
    found = crossed_of(sums, np.ones_like(sums), float("nan") if noise is None else float(noise.mean()), samples)
    assert found is not None
    return found


def pooled_pairs(a: np.ndarray, b: np.ndarray, samples: int) -> Pairs:
    """One study's two arms [seeds, prompts] with all runs pooled."""
    seeds, prompts = a.shape
    one, other = a.mean(axis=0), b.mean(axis=0)
    value, discordance = float((one - other).mean()), float((one * (1 - other) + other * (1 - one)).mean())
    tallied = Tally((one - other)[:, None], np.ones((prompts, 1)))
    return Pairs(value, discordance, effective_size(tallied, discordance - value**2, float(seeds * prompts * samples)))


def holds(a: np.ndarray, b: np.ndarray, truth: float, samples: int) -> bool:
    """Whether the interval of a - b holds the truth, without looking for its ends."""
    over_seeds, pooled = crossed(a - b), pooled_pairs(a, b, samples)
    return abs(over_seeds.value - truth) <= over_seeds.reach or abs(pooled.score(truth)) <= NORMAL_95


class Gap(NamedTuple):
    value: float
    low: float
    high: float
    p: float


def gap_of(evidence: Evidence) -> Gap:
    """A difference with its interval and its p-value."""
    return Gap(evidence.value, *evidence.interval(), evidence.p(0.0))


def pooled_tally(a: np.ndarray, samples: int) -> Tally:
    """One study's arm [seeds, prompts] with all runs pooled."""
    sums = a.sum(axis=0)[:, None] * samples
    return Tally(sums, np.full_like(sums, a.shape[0] * samples))


@dataclass(frozen=True)
class SimulatedRuns(Runs):
    """Runs of arms that differ in nothing but their names: every measure of every arm has one rate."""

    cell: Cell = Cell(5, 60, (0.4,))
    number: int = 0
    """Of the study: another draws other rates."""

    def rates(self, arm: ArmInfo, stage: str, task: str, decoder: str, outcome: Outcome) -> BySeed:
        return self._all(stage, decoder, outcome.__name__)[arm.name]

    def _all(self, stage: str, decoder: str, outcome: str) -> dict[str, BySeed]:
        return _null_rates(tuple(arm.name for arm in self.arms), self.cell, self.number, (stage, decoder, outcome))

    def aucs(self, arm: ArmInfo, stage: str, layer: str) -> ProbesBySeed:
        """Each prompt stands for a text: half of them are the unsafe ones. An AUC varies with the means of both classes."""
        rates = self._all(stage, AUC.name, layer)[arm.name]
        return {seed: dict.fromkeys(range(5), _probe(means)) for seed, means in rates.items()}


def _probe(means: Mapping[Prompt, PromptMean]) -> ProbeAuc:
    unsafe, safe = (0.1 * half for half in np.array_split([one.mean for one in means.values()], 2))
    auc = 0.75 + unsafe.mean() + safe.mean()
    return ProbeAuc(float(auc), (auc + unsafe - unsafe.mean(), auc + safe - safe.mean()))


@functools.lru_cache(maxsize=64)
def _null_rates(arms: Sequence[str], cell: Cell, study: int, measure: tuple[str, ...]) -> dict[str, BySeed]:
    from curricula.randomness import keyed_rng

    alike = Cell(cell.seeds, cell.prompts, cell.rates * len(arms), cell.seed_sd, cell.correlation, cell.samples)
    drawn = draw_rates(keyed_rng("null", study, *measure), alike, 1)
    return {name: by_seed(rates[0], cell.samples) for name, rates in zip(arms, drawn)}
