"""A batch in mid-decoding: prompts padded on the left, their cache, and one forward step at a time.

Knows nothing of how tokens are chosen; sampling and SafeBeam choose them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from eval.cache import SlabCache
from eval.models import LoadedModel


@dataclasses.dataclass
class Decoding:
    """A batch in mid-decoding: left-padded prompts, their cache, and one forward step at a time.

    Rows are sequences. `mask` bool [rows, capacity] says which columns a row may attend to; `positions` [rows] is the
    position of the next token of each row, so padding shifts nothing.
    """

    loaded: LoadedModel
    cache: SlabCache
    mask: torch.Tensor
    positions: torch.Tensor

    @classmethod
    @torch.inference_mode()
    def start(
        cls, loaded: LoadedModel, prompts: Sequence[Sequence[int]], new_tokens: int
    ) -> tuple[Decoding, torch.Tensor]:
        """Read the prompts; returns the batch, one row a prompt, and float32 logits of the next token [rows,
        vocabulary].
        """
        width = max(map(len, prompts))
        if width == 0:
            raise ValueError("a prompt without tokens has no next token")
        tokens = torch.zeros(len(prompts), width, dtype=torch.long)
        mask = torch.zeros(len(prompts), width + new_tokens, dtype=torch.bool)
        for row, ids in enumerate(prompts):
            tokens[row, width - len(ids) :] = torch.tensor(list(ids))
            mask[row, width - len(ids) :] = True  # open up to the end: a step looks at no column after its own
        tokens, mask = tokens.to(loaded.device), mask.to(loaded.device)
        real = mask[:, :width]
        causal = torch.ones(width, width, dtype=torch.bool, device=loaded.device).tril()
        # Padding attends to itself: a query that may look nowhere would be NaN.
        itself = torch.eye(width, dtype=torch.bool, device=loaded.device)
        cache = SlabCache(loaded.layers, width + new_tokens)
        output = loaded.model(
            input_ids=tokens,
            attention_mask=((causal & real[:, None, :]) | itself)[:, None],
            position_ids=(real.cumsum(1) - 1).clamp(min=0),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return cls(loaded, cache, mask, real.sum(1)), output.logits[:, -1].float()

    @torch.inference_mode()
    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Append one token [rows] to each row; returns float32 logits of the next [rows, vocabulary]."""
        output = self.loaded.model(
            input_ids=tokens[:, None],
            attention_mask=self.mask[:, None, None, : self.cache.length + 1],
            position_ids=self.positions[:, None],
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self.positions = self.positions + 1
        return output.logits[:, -1].float()

    @torch.inference_mode()
    def select(self, rows: torch.Tensor) -> None:
        """Row i becomes what row rows[i] was; rows may repeat or be left out."""
        self.cache.select(rows)
        self.mask, self.positions = self.mask[rows], self.positions[rows]

    @torch.inference_mode()
    def reorder(self, rows: torch.Tensor, start: int) -> None:
        """The same, in place and from column `start` on, for rows that agree before it."""
        self.cache.reorder(rows, start)
