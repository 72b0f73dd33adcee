"""The beams of several prompts in one cache: each prompt a row, in it a tree of tokens, each stored once.

Beams of a prompt share the prompt and, mostly, all but their last few tokens. So a row holds the prompt, then each
generated token that some beam still contains; `ancestors` says for each beam which columns are its text. A step puts
all candidates behind (they attend to their parent's text and themselves), and the survivors move to the front of that
space. No beam is ever copied: the usual reordering of every beam's keys and values at every step becomes a move of one
column per beam. Columns that no beam contains any more are cleared out when the space is used up.

Memory is that of prompt + live tree + slack. The live tree is near the length of one answer where beams share their
past, and at most beams x answer length where they share nothing but the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from curricula.eval.decoding.batch import Decoding
from curricula.eval.decoding.lookahead import Lookahead
from curricula.eval.models import LoadedModel

STEPS_OF_SLACK = 12  # steps between two clearings, at least


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
        """Prompts[i] but for its last token becomes the text of all beams of row rows[i]."""
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
        """Put candidates behind: beam parent[row, i] followed by token[row, i], both [rows, pool].

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
            behind = mask[:, :, None].expand(-1, -1, len(self.probes), -1).clone()  # [rows, pool, probes, width]
            own = columns[:, self.pool :].view(rows, self.pool, 1, -1).expand(-1, -1, len(self.probes), -1)
            behind.scatter_(3, own, self.sees.expand(rows, self.pool, -1, -1))
            mask = torch.cat([mask, behind.flatten(1, 2)], 1)
            token = torch.cat([token, self.probes.repeat(rows, self.pool)], 1)
            deeper = (positions[..., None] + self.depths).flatten(1)
            positions = torch.cat([positions, deeper], 1)
        logits = self.decoding.forward(token, positions, columns, mask)
        after, probed = logits[:, : self.pool], logits[:, self.pool :]
        p_tag = self.lookahead.probability(after, probed.unflatten(1, (self.pool, -1)) if count else probed)
        self.peak_bytes = max(self.peak_bytes, self.decoding.cache.bytes)
        return after, p_tag

    def keep(self, parent: torch.Tensor, kept: torch.Tensor, live: torch.Tensor) -> None:
        """Candidates `kept` [rows, beams] become the beams; `parent` [rows, pool] as in `extend`.

        Where `live` [rows, beams] is false nothing will extend the beam, and its text is forgotten.
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
        """Give up the columns that no beam contains; leaves room for some steps, and `at_least` columns in all."""
        needed = self.ancestors.any(1)
        count = needed.sum(1)
        order = needed.int().sort(dim=1, descending=True, stable=True).indices[:, : int(count.max())]
        capacity = max(order.shape[1] + self.slack, at_least)
        self.decoding.cache.compact(order, capacity)
        ancestors = self.ancestors.gather(2, order[:, None].expand(-1, self.beams, -1))
        self.ancestors = torch.nn.functional.pad(ancestors, (0, capacity - order.shape[1]))
        self.used = count

    def retire(self, rows: torch.Tensor) -> None:
        """Forget the texts of these rows, which wait for other prompts or for nothing."""
        self.ancestors[rows], self.used[rows], self.length[rows] = False, 0, 0

    def select(self, rows: torch.Tensor) -> None:
        """Leave only these rows, in this order."""
        self.decoding.cache.select(rows)
        self.used, self.length, self.ancestors = self.used[rows], self.length[rows], self.ancestors[rows]
