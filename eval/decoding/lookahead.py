"""P(tag | text), for a tag that is one token and for one that the tokenizer splits.

The paper's tag is "ordinary text". Where a tokenizer has it as one entry, P(tag) is one number of the next-token
distribution. Where it does not, the setting `tag` says what it is:

- `one-token`: nothing; SafeBeam refuses such a tokenizer.
- `product`: the probability that the tag's tokens follow one after the other, the product of their conditional
  probabilities. The tokens are put behind each candidate as probes, in the same forward pass; SmolLM2's tokenizer
  splits the tag into 9 (with a space before it too), which makes a pass of 20 candidates one of 340 tokens.
- `first-token`: the probability of its first token alone. Cheap, and an upper bound: "<" also begins other things.

A split tag has two spellings, with and without a space before it. They begin with different tokens, so their
probabilities add up.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from curricula.curriculum.tokens.tokenizer import TAG
from curricula.errors import UserError
from curricula.eval.config import SafeBeam
from curricula.eval.models import LoadedModel


@dataclass(frozen=True)
class Lookahead:
    """Which tokens stand behind each candidate to read P(tag) from, in order, the spellings one after the other."""

    spellings: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, loaded: LoadedModel, config: SafeBeam) -> Lookahead:
        """Raises UserError when the tag is not one token and the settings do not say what to do then."""
        spellings = loaded.tag_spellings
        if config.tag == "one-token" and loaded.tag_id is None:
            raise UserError(
                f"{loaded.name}: the tokenizer splits {TAG} into {len(spellings[0])} tokens, and SafeBeam needs its "
                "probability as one; make it one entry of the tokenizer, or set safebeam.tag to 'product' or "
                "'first-token', or leave SafeBeam out"
            )
        if config.tag == "first-token":
            spellings = tuple(dict.fromkeys(spelling[:1] for spelling in spellings))
        return cls(spellings)

    @property
    def probes(self) -> list[int]:
        """Tokens to put behind a candidate; none where every spelling is one token."""
        return [token for spelling in self.spellings for token in spelling[:-1]]

    @property
    def depths(self) -> list[int]:
        """How many tokens after its candidate each probe stands."""
        return [depth for spelling in self.spellings for depth in range(1, len(spelling))]

    def sees(self) -> torch.Tensor:
        """Bool [probes, probes]: a probe looks at those of its spelling up to itself."""
        spelling = torch.tensor([number for number, ids in enumerate(self.spellings) for _ in ids[:-1]])
        return (spelling[:, None] == spelling) & torch.ones(len(spelling), len(spelling), dtype=torch.bool).tril()

    def probability(self, candidates: torch.Tensor, probes: torch.Tensor) -> torch.Tensor:
        """P(tag) [rows, n] from logits after the candidates [rows, n, vocabulary] and the probes [rows, n, p, vocabulary].

        `candidates` may be any number of dimensions before the vocabulary, and `probes` has one more.
        """
        total = torch.zeros(candidates.shape[:-1], dtype=candidates.dtype, device=candidates.device)
        place = 0
        for ids in self.spellings:
            log_p = candidates[..., ids[0]] - candidates.logsumexp(-1)
            for token in ids[1:]:
                after = probes[..., place, :]
                log_p = log_p + after[..., token] - after.logsumexp(-1)
                place += 1
            total = total + log_p.exp()
        return total
