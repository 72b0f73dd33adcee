"""A batch in mid-decoding: prompts read into their rows of the cache, and one forward pass over the next tokens.

Knows nothing of how tokens are chosen, nor what a row is: to sampling and greedy search it is one text, to SafeBeam
all beams of a prompt. Prompts are read but for their last token, which the first pass of the decoder adds: so rows
that have just begun and rows in mid-answer share one pass.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers.cache_utils import DynamicCache

from curricula.errors import UserError
from curricula.eval.decoding.cache import SlabCache
from curricula.eval.models import LoadedModel


class Decoding:
    """`rows` rows with room for `capacity` tokens each."""

    def __init__(self, loaded: LoadedModel, rows: int, capacity: int) -> None:
        self.loaded = loaded
        self.cache = SlabCache(loaded.layers, rows, capacity)

    @torch.inference_mode()
    def admit(self, rows: Sequence[int], prompts: Sequence[Sequence[int]]) -> None:
        """Read prompts[i] but for its last token into row rows[i]; one that comes repeatedly is read once."""
        beginnings = list(dict.fromkeys(tuple(prompt[:-1]) for prompt in prompts))
        width = max(map(len, beginnings))
        if not width:
            return
        # Padding on the right, where the causal mask keeps it out of every real token's sight.
        tokens = torch.tensor([[*ids, *[0] * (width - len(ids))] for ids in beginnings], device=self.loaded.device)
        read = DynamicCache()
        self.loaded.read(read, input_ids=tokens, logits_to_keep=1)
        place = {ids: number for number, ids in enumerate(beginnings)}
        which = [place[tuple(prompt[:-1])] for prompt in prompts]
        device = self.loaded.device
        self.cache.put(torch.tensor(list(rows), device=device), read, torch.tensor(which, device=device))

    @torch.inference_mode()
    def forward(
        self, tokens: torch.Tensor, positions: torch.Tensor, columns: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        """Logits [rows, n, vocabulary], in float32 or better, after each of the `tokens` [rows, n].

        `positions` [rows, n] are their places in their texts, `columns` [rows, n] their places in the cache; `mask`
        bool [rows, n, width] says which columns each looks at, its own among them. Raises UserError for a model that
        gives no distribution; single tokens may have a logit of -inf.
        """
        self.cache.expect(columns, mask.shape[-1])
        output = self.loaded.read(self.cache, input_ids=tokens, attention_mask=mask[:, None], position_ids=positions)
        logits = output.logits.to(self.loaded.logit_dtype)
        self.loaded.require_distribution(logits)
        return logits


def room_after(loaded: LoadedModel, prompt: Sequence[int], wanted: int) -> int:
    """How many tokens can follow the prompt: `wanted`, or what the model's context leaves; UserError if that is none."""
    if not prompt:
        raise UserError("a prompt has no tokens, so nothing can follow it; take the empty prompt out of the benchmark")
    room = loaded.context_length - len(prompt)
    if room < 1:
        raise UserError(
            f"a prompt has {len(prompt)} tokens, and the context of {loaded.name} holds {loaded.context_length}; "
            f"shorten it or leave it out (it begins {loaded.decode(prompt[:24])!r})"
        )
    return min(wanted, room)
