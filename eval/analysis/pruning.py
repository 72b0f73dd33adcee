"""What SafeBeam's pruning costs: the log-probability it gives up, and how often it drops the likeliest candidate."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from curricula.eval.rows import GenerationRow


@dataclass(frozen=True)
class PruningMetrics:
    """The answers of one model to one benchmark under one decoder that prunes."""

    arm: str
    seed: int
    """The seed of the arm's training."""
    stage: str
    benchmark: str
    decoder: str
    answers: int
    """Answers that say what pruning cost."""
    unrecorded: int
    """Answers of an earlier version, which do not say it."""
    logp: float
    """Mean summed log-probability of an answer, in nats."""
    logp_lost: float
    """Mean log-probability that an answer's search lost to pruning, in nats (`Pruning.lost` in eval/rows.py)."""
    likeliest_dropped: float
    """Share of all steps at which the likeliest candidate was dropped."""


def pruning_metrics(rows: Sequence[GenerationRow], arm: str, stage: str, seed: int = 0) -> list[PruningMetrics]:
    """The metrics of each decoder that prunes on each benchmark in `rows`."""
    groups = defaultdict(list)
    for row in rows:
        groups[row.decoder, row.benchmark].append(row.pruning)
    found = []
    for (decoder, benchmark), costs in sorted(groups.items()):
        if known := [cost for cost in costs if cost]:
            found.append(
                PruningMetrics(
                    arm=arm,
                    seed=seed,
                    stage=stage,
                    benchmark=benchmark,
                    decoder=decoder,
                    answers=len(known),
                    unrecorded=len(costs) - len(known),
                    logp=sum(cost.logp for cost in known) / len(known),
                    logp_lost=sum(cost.lost for cost in known) / len(known),
                    likeliest_dropped=sum(cost.dropped for cost in known) / max(1, sum(cost.steps for cost in known)),
                )
            )
    return found
