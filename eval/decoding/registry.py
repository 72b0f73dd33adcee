"""The decoders by name: what each is asked with, how many answers it gives, and which version of it made a row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from curricula.eval.decoding import greedy, safebeam, sampling
from curricula.eval.decoding.answers import Answer
from curricula.eval.models import LoadedModel

Draws = Sequence[tuple[object, ...]]


@dataclass(frozen=True)
class Decoder:
    """`answer(loaded, prompts, draws, settings)` gives all answers, those to one prompt together.

    `settings` are the field of `curricula.eval.config.EvalConfig` that has the decoder's name.
    """

    version: int  # changes when an algorithm does, so that its answers are made anew
    answer: Callable[[LoadedModel, Sequence[Sequence[int]], Draws, Any], list[Answer]]


def _topk(loaded: LoadedModel, prompts: Sequence[Sequence[int]], draws: Draws, settings: Any) -> list[Answer]:
    return [answer for answers in sampling.sample_topk(loaded, prompts, draws, settings) for answer in answers]


DECODERS = {
    "topk": Decoder(sampling.VERSION, _topk),
    "greedy": Decoder(greedy.VERSION, lambda loaded, prompts, _, config: greedy.search_greedy(loaded, prompts, config)),
    "safebeam": Decoder(
        safebeam.VERSION, lambda loaded, prompts, _, config: safebeam.search_safebeam(loaded, prompts, config)
    ),
}
NEUTRAL = ("batch_prompts", "rows", "samples")
"""Settings that do not make an answer another one: what is decoded together, and how many samples there are."""
