"""Probe sampling (Zhao et al. 2024): a small draft model saves the attacked one most of GCG's candidates.

The draft computes the losses of all candidates, and both models those of a random few. The more the two agree on these (by
Spearman's rank correlation), the fewer of the draft's best candidates the attacked model computes. The step takes the
candidate of lowest loss among all that the attacked model computed. This is nanoGCG's version. The draft reads the same
text, in its own tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import spearmanr
from transformers.cache_utils import DynamicCache

from curricula.eval.attacks.losses import Attack, losses_after
from curricula.eval.decoding.answers import room_after
from curricula.eval.models import LoadedModel, load_model
from curricula.eval.rows import Precision


@dataclass(frozen=True)
class Draft:
    """A model that ranks candidates for another."""

    loaded: LoadedModel

    @classmethod
    def load(cls, name: str, attacked: LoadedModel) -> Draft:
        precision: Precision | None = "float64" if attacked.precision == "float64" else None
        return cls(load_model(name, "base", str(attacked.device), precision))

    def losses(self, attack: Attack, suffixes: Sequence[Sequence[int]]) -> list[float]:
        """The draft's loss of the target after the whole prompt with each suffix."""
        start = list(self.loaded.beginning)
        texts = [
            start + self.loaded.encode(f"{attack.opening}{text}{attack.closing}") for text in attack.texts(suffixes)
        ]
        target = self.loaded.encode(attack.target)
        room_after(self.loaded, [*max(texts, key=len), *target[1:]], 1)
        width = attack.config.batch_candidates
        return losses_after(self.loaded, DynamicCache(), texts, texts[0], target, width)[0]


def sampled_losses(
    attack: Attack, candidates: list[list[int]], current: list[int], draft: Draft, rng: np.random.Generator
) -> tuple[list[float], list[bool]]:
    """As `Attack.losses`; infinite, and no hit, for candidates that were not computed."""
    sampling = attack.config.probe_sampling
    assert sampling is not None
    count = len(candidates)
    by_draft = np.array(draft.losses(attack, [current, *candidates])[1:])
    found = Found(attack, candidates, current)
    probes = rng.permutation(count)[: max(2, count // sampling.sampling_factor)]
    found.compute(probes)
    agreement = spearmanr(found.losses[probes], by_draft[probes]).statistic if len(probes) > 1 else np.nan
    share = (1 - (1 + agreement) / 2) / sampling.r if np.isfinite(agreement) else 0.5 / sampling.r
    found.compute(by_draft.argsort(kind="stable")[: max(1, int(share * count))])
    return found.losses.tolist(), found.hits.tolist()


class Found:
    """What the attacked model has computed of the candidates so far."""

    def __init__(self, attack: Attack, candidates: list[list[int]], current: list[int]) -> None:
        self.attack, self.candidates, self.current = attack, candidates, current
        self.losses = np.full(len(candidates), np.inf)
        self.hits = np.zeros(len(candidates), dtype=bool)

    def compute(self, places: np.ndarray) -> None:
        places = places[np.isinf(self.losses[places])]
        if len(places):
            self.losses[places], self.hits[places] = self.attack.losses(
                [self.candidates[place] for place in places], self.current
            )
