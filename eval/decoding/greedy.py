"""Greedy decoding: the likeliest token at every step; of equally likely ones that of the smallest id."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from curricula.eval.config import Greedy
from curricula.eval.decoding.answers import Answer, make_answer
from curricula.eval.decoding.continuous import generate
from curricula.eval.models import LoadedModel

VERSION = 1  # of the algorithm; part of every row's key


def search_greedy(loaded: LoadedModel, prompts: Sequence[Sequence[int]], config: Greedy) -> list[Answer]:
    """The greedy answer to each prompt (token ids); UserError for one that is empty or fills the model's context."""
    generated = generate(
        loaded,
        prompts,
        likeliest,
        max_new_tokens=config.max_new_tokens,
        rows=config.rows,
        stop_at_tag=config.stop_at_tag,
    )
    return [
        make_answer(loaded, ids, config.stop_at_tag, config.safe_completions, tuple(prompt))
        for ids, prompt in zip(generated, prompts)
    ]


def likeliest(logits: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
    # torch.argmax would leave the choice among equals to the device.
    return (logits == logits.amax(-1, keepdim=True)).int().cumsum(-1).eq(0).sum(-1)
