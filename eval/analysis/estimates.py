"""Each arm's rate and probe AUC over its training seeds, and how much of the variance is seed, prompt and sample.

The components are estimated by the method of moments (`Crossed.components`), those of the seed from at least two runs, those of
the samples from at least two samples. With a few runs they are rough: the variance over three seeds is known to a factor of
about 40 (95%).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from curricula.eval.analysis.differences import MEASURES
from curricula.eval.analysis.metrics import layers_in
from curricula.eval.analysis.runs import Runs
from curricula.eval.analysis.seeds import Crossed, OverSeeds, auc_over_seeds, compare, rate_over_seeds
from curricula.eval.judging.verdicts import kind_of


@dataclass(frozen=True)
class ArmEstimate:
    """The rate of an arm over its training runs. In 0..1."""

    stage: str
    task: str
    decoder: str
    measure: str
    arm: str
    rate: OverSeeds
    """The mean of the benchmarks' rates."""
    incoherent: str
    """The seeds of incoherent runs (`eval/analysis/competence.py`), which count here all the same."""


@dataclass(frozen=True)
class ProbeEstimate:
    """The mean test AUC of an arm's linear probes on one layer, over its training runs."""

    stage: str
    layer: str
    arm: str
    auc: OverSeeds


@dataclass(frozen=True)
class VarianceParts:
    """Standard deviations behind a rate, or behind a difference of two arms on shared seeds and prompts. In 0..1."""

    stage: str
    task: str
    decoder: str
    measure: str
    arm: str
    reference: str
    """The arm that is subtracted; "" for the rate of the arm alone."""
    seeds: int
    prompts: float
    """Effective number of prompts, in clusters of equal weight."""
    samples: float
    """Answers per prompt and run."""
    seed: float
    """Between training seeds."""
    prompt: float
    """Between prompts, the same for all runs."""
    interaction: float
    """Of a prompt in one run."""
    sample: float | None
    """Between samples of one prompt; None with one sample, where `interaction` includes it."""
    seed_share: float
    """The part of the mean's variance that more seeds alone would lower: seed / number of seeds."""


def arm_estimates(runs: Runs) -> Iterator[ArmEstimate]:
    """The rate of every arm, by stage, task and decoder."""
    for stage, task, decoder in runs.places():
        measure, outcome = MEASURES[kind_of(task)]
        for arm in runs.arms:
            rate = rate_over_seeds(runs.rates(arm, stage, task, decoder, outcome))
            if rate is not None:
                lost = ", ".join(map(str, runs.incoherent_seeds(arm, stage, decoder)))
                yield ArmEstimate(stage, task, decoder, measure, arm.name, rate, lost)


def probe_estimates(runs: Runs) -> Iterator[ProbeEstimate]:
    """The probe AUC of every arm, by stage and layer."""
    probes = runs.study.probes
    for stage in dict.fromkeys(stage for _, stage in probes):
        rows = [row for (_, kind), of_run in probes.items() if kind == stage for row in of_run]
        for layer, _ in layers_in(rows):
            for arm in runs.arms:
                if auc := auc_over_seeds(runs.aucs(arm, stage, layer)):
                    yield ProbeEstimate(stage, layer, arm.name, auc)


def variance_parts(runs: Runs) -> Iterator[VarianceParts]:
    """The variance of every arm's rate, and of its difference from the stage's reference; nothing for single runs."""
    for stage, task, decoder in runs.places():
        measure, outcome = MEASURES[kind_of(task)]
        reference = runs.reference(stage)
        rates = {arm.name: runs.rates(arm, stage, task, decoder, outcome) for arm in runs.arms}
        for name, own in rates.items():
            place = (stage, task, decoder, measure, name)
            alone = rate_over_seeds(own)
            if alone and alone.crossed:
                yield _parts(place, "", alone.crossed)
            against = compare([own], [rates[reference.name]]) if name != reference.name else None
            if against and against.crossed:
                yield _parts(place, reference.name, against.crossed)


def _parts(place: tuple[str, str, str, str, str], reference: str, crossed: Crossed) -> VarianceParts:
    found = crossed.components
    whole = crossed.seed_variance + crossed.prompt_variance
    return VarianceParts(
        *place,
        reference,
        crossed.seeds,
        crossed.prompts,
        crossed.samples,
        found.seed**0.5,
        found.prompt**0.5,
        found.interaction**0.5,
        None if math.isnan(crossed.noise) else found.sample**0.5,
        min(1.0, found.seed / crossed.seeds / whole) if whole else 0.0,
    )
