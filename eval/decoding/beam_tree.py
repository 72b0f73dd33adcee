"""The beams of several prompts in one cache, and the probability of the tag after each candidate.

**Trees.** The beams of a prompt share the prompt and, mostly, all but their last few tokens. So each prompt is one row of
the cache, which holds the prompt and then each generated token that some beam still contains, once; `ancestors` says for
each beam which columns make up its text. A step appends all candidates (each attends to its parent's text and itself),
and the survivors move to the front of that space. No beam is ever copied: the usual reordering of every beam's keys and
values at every step becomes a move of one column per beam. Columns that no beam contains any more are cleared when the
space is used up. Memory is that of prompt + live tree + slack. The live tree is about as long as one answer where beams
share their past, and at most beams x answer length where they share nothing but the prompt.

**P(tag | text).** The paper's tag is "ordinary text". Where a tokenizer has it as one entry, P(tag) is one number of the
next-token distribution. Where it does not, the setting `tag` decides:

- `one-token`: SafeBeam refuses such a tokenizer.
- `product`: the probability that the tag's tokens follow one after the other, the product of their conditional
  probabilities. The tokens are appended to each candidate as probes, in the same forward pass; SmolLM2's tokenizer
  splits the tag into 9 (with a space before it too), which turns a pass of 20 candidates into one of 340 tokens.
- `first-token`: the probability of its first token alone. Cheap, and an upper bound: "<" also begins other things.

A split tag has two spellings, with and without a space before it. They begin with different tokens, so their
probabilities add up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from curricula.curriculum.tokens.tokenizer import TAG
from curricula.errors import UserError
from curricula.eval.decoding.batch import Decoding
from curricula.eval.decoding.settings import SafeBeam
from curricula.eval.models import LoadedModel

STEPS_OF_SLACK = 12
"""Steps between two clearings, at least."""


class BeamTrees:
    """`rows` prompts with `beams` beams each, extended by `pool` candidates at a time."""

    def __init__(self, loaded: LoadedModel, rows: int, beams: int, pool: int, lookahead: Lookahead) -> None:
        self.beams, self.pool, self.lookahead, self.device = beams, pool, lookahead, loaded.device
        self.probes = torch.tensor(lookahead.probes, dtype=torch.long, device=self.device)
        self.depths = torch.tensor(lookahead.depths, dtype=torch.long, device=self.device)
        self.sees = lookahead.sees().to(self.device)
        self.step_room = pool * (1 + len(self.probes))
        self.slack = STEPS_OF_SLACK * beams + self.step_room
        self.decoding = Decoding(loaded, rows, self.slack)
        self.used = torch.zeros(rows, dtype=torch.long, device=self.device)  # columns in use
        self.length = torch.zeros(rows, dtype=torch.long, device=self.device)  # tokens of each beam's text
        self.ancestors = torch.zeros(rows, beams, self.slack, dtype=torch.bool, device=self.device)
        self.peak_bytes = 0

    def admit(self, rows: Sequence[int], prompts: Sequence[Sequence[int]]) -> None:
        """Make prompts[i], without its last token, the text of all beams of row rows[i]."""
        longest = max(map(len, prompts))
        where = torch.tensor(list(rows), device=self.device)
        self.retire(where)
        if longest + self.slack > self.capacity:
            self.clear(longest + self.slack)
        self.decoding.admit(rows, prompts)
        self.used[where] = self.length[where] = torch.tensor([len(ids) - 1 for ids in prompts], device=self.device)
        columns = torch.arange(self.capacity, device=self.device)
        self.ancestors[where] = (columns < self.used[where][:, None])[:, None]

    @property
    def capacity(self) -> int:
        return self.ancestors.shape[-1]

    def extend(self, parent: torch.Tensor, token: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Append candidates: beam parent[row, i] followed by token[row, i], both [rows, pool].

        Returns logits [rows, pool, vocabulary] of what follows each, and P(tag) [rows, pool] after each.
        """
        if int(self.used.max()) + self.step_room > self.capacity:
            self.clear()
        rows, count = len(token), self.pool * len(self.probes)
        width = int(self.used.max()) + self.step_room
        columns = self.used[:, None] + torch.arange(self.step_room, device=self.device)
        mask = self.ancestors.gather(1, parent[..., None].expand(-1, -1, self.capacity))[..., :width]
        mask = mask.scatter(2, columns[:, : self.pool, None], True)
        positions = self.length[:, None].expand(-1, self.pool)
        if count:
            probe_mask = mask[:, :, None].expand(-1, -1, len(self.probes), -1).clone()  # [rows, pool, probes, width]
            own = columns[:, self.pool :].view(rows, self.pool, 1, -1).expand(-1, -1, len(self.probes), -1)
            probe_mask.scatter_(3, own, self.sees.expand(rows, self.pool, -1, -1))
            mask = torch.cat([mask, probe_mask.flatten(1, 2)], 1)
            token = torch.cat([token, self.probes.repeat(rows, self.pool)], 1)
            deeper = (positions[..., None] + self.depths).flatten(1)
            positions = torch.cat([positions, deeper], 1)
        logits = self.decoding.forward(token, positions, columns, mask)
        candidates, probed = logits[:, : self.pool], logits[:, self.pool :]
        p_tag = self.lookahead.probability(candidates, probed.unflatten(1, (self.pool, -1)) if count else probed)
        self.peak_bytes = max(self.peak_bytes, self.decoding.cache.bytes)
        return candidates, p_tag

    def keep(self, parent: torch.Tensor, kept: torch.Tensor, live: torch.Tensor) -> None:
        """Make candidates `kept` [rows, beams] the beams; `parent` [rows, pool] as in `extend`.

        Where `live` [rows, beams] is false nothing extends the beam any more, and its text is forgotten.
        """
        places = torch.arange(self.beams, device=self.device)
        target = self.used[:, None] + places
        if not torch.equal(kept, places.expand_as(kept)):
            self.decoding.cache.move(self.used[:, None] + kept, target)
        self.ancestors = self.ancestors.gather(1, parent.gather(1, kept)[..., None].expand(-1, -1, self.capacity))
        self.ancestors.scatter_(2, target[..., None], True)
        self.ancestors &= live[..., None]
        self.used = self.used + self.beams
        self.length = self.length + 1

    def clear(self, at_least: int = 0) -> None:
        """Drop the columns that no beam contains; leaves room for some steps, and `at_least` columns in all."""
        needed = self.ancestors.any(1)
        count = needed.sum(1)
        order = needed.int().sort(dim=1, descending=True, stable=True).indices[:, : int(count.max())]
        capacity = max(order.shape[1] + self.slack, at_least)
        self.decoding.cache.compact(order, capacity)
        ancestors = self.ancestors.gather(2, order[:, None].expand(-1, self.beams, -1))
        self.ancestors = torch.nn.functional.pad(ancestors, (0, capacity - order.shape[1]))
        self.used = count

    def retire(self, rows: torch.Tensor) -> None:
        """Forget the texts of these rows, which are free now."""
        self.ancestors[rows], self.used[rows], self.length[rows] = False, 0, 0

    def select(self, rows: torch.Tensor) -> None:
        """Keep only these rows, in this order."""
        self.decoding.select(rows)
        self.used, self.length, self.ancestors = self.used[rows], self.length[rows], self.ancestors[rows]


@dataclass(frozen=True)
class Lookahead:
    """The tokens appended to each candidate to read P(tag) from: the spellings of the tag, one after the other."""

    spellings: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, loaded: LoadedModel, config: SafeBeam) -> Lookahead:
        """Raises UserError when the tag is not one token and the settings do not say what P(tag) is then."""
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
        """Tokens to append to a candidate; none where every spelling is one token."""
        return [token for spelling in self.spellings for token in spelling[:-1]]

    @property
    def depths(self) -> list[int]:
        """Each probe's distance from its candidate, in tokens."""
        return [depth for spelling in self.spellings for depth in range(1, len(spelling))]

    def sees(self) -> torch.Tensor:
        """Bool [probes, probes]: a probe attends to those of its spelling up to itself."""
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
                logits = probes[..., place, :]
                log_p = log_p + logits[..., token] - logits.logsumexp(-1)
                place += 1
            total = total + log_p.exp()
        return total
