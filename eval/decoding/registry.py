"""The decoders: one table with the name, the titles, the version and the implementation of each.

To add a decoder, write its file, its settings (`settings.py`, and a field of `EvalConfig` of the decoder's name), a row
here, and a row in `eval/tasks.py` for each task that uses it. Importing the table imports no torch: implementations load
when they are first called.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from curricula.eval.decoding.answers import Answer
    from curricula.eval.models import LoadedModel

Draws = Sequence[tuple[object, ...]]
"""For each prompt the words that seed its random draws."""

NEUTRAL = ("batch_prompts", "rows", "samples")
"""Settings of what is decoded together. They leave an answer the same in EXACT precisions, and can change it in others."""

NEUTRAL_WHERE_DETERMINISTIC = ("batch_prompts", "samples")
"""Settings that leave an answer the same to the last bit with `evaluation.deterministic`."""

EXACT = ("float32", "float64")
"""Precisions in which an answer does not depend on what is decoded beside it."""


@dataclass(frozen=True)
class Decoder:
    name: str
    """Name in studies, rows and on the command line; the field of `EvalConfig` that holds its settings."""
    title: str
    """Name in headings of the report."""
    short: str
    """Name in the middle of a heading."""
    version: int
    """Version of the algorithm, part of every row's key: raise it when answers change, so that they are generated again."""
    answer: Callable[[LoadedModel, Sequence[Sequence[int]], Draws, Any], list[Answer]]
    """answer(loaded, prompts as token ids, draws, settings) -> all answers, those to one prompt together."""


def _topk(loaded: LoadedModel, prompts: Sequence[Sequence[int]], draws: Draws, settings: Any) -> list[Answer]:
    from curricula.eval.decoding.sampling import sample_topk

    return [answer for answers in sample_topk(loaded, prompts, draws, settings) for answer in answers]


def _safebeam(loaded: LoadedModel, prompts: Sequence[Sequence[int]], draws: Draws, settings: Any) -> list[Answer]:
    from curricula.eval.decoding.safebeam import search_safebeam

    return search_safebeam(loaded, prompts, settings)


def _greedy(loaded: LoadedModel, prompts: Sequence[Sequence[int]], draws: Draws, settings: Any) -> list[Answer]:
    from curricula.eval.decoding.sampling import search_greedy

    return search_greedy(loaded, prompts, settings)


_ROWS = (
    Decoder("topk", "Top-k sampling", "top-k", 2, _topk),
    Decoder("safebeam", "SafeBeam", "SafeBeam", 3, _safebeam),
    Decoder("greedy", "Greedy", "greedy", 1, _greedy),
)
DECODERS = {decoder.name: decoder for decoder in _ROWS}
