"""Sentences from templates: the small language in which the fictional world's texts are written.

In a template `[a|b|c]` draws one of its alternatives, which may be empty or hold further ones, and `{name}` is a slot.
`write` fills a template in and corrects what templates get wrong: capitals after a full stop, "a" before a vowel, spaces.
This module knows nothing about the world; the words come from the caller.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, TypeVar

from curricula.randomness import keyed_rng

T = TypeVar("T")
_BLOCK = 32
_PIECE = re.compile(r"\{[^}]*\}|[^][{}|]+|.")
_SENTENCE = re.compile(r"(?:^|[.!?] |\n|: |\")[a-z]")
_ARTICLE = re.compile(r"\b([Aa]) (?=[aeiou])")
_SPACES = re.compile(r" {2,}")
_SPACE_BEFORE = re.compile(r" +(?=[.,;?!\n])")


class Draw:
    """Choices by key: the same key gives the same choices in the same order."""

    def __init__(self, *key: Any):
        self._rng = keyed_rng(*key)
        self._uniform: list[float] = []

    def below(self, limit: int) -> int:
        """An integer in [0, limit)."""
        if not self._uniform:
            self._uniform = self._rng.random(_BLOCK).tolist()
        return int(self._uniform.pop() * limit)

    def between(self, low: int, high: int) -> int:
        """An integer in [low, high]."""
        return low + self.below(high - low + 1)

    def pick(self, options: Sequence[T]) -> T:
        return options[self.below(len(options))]

    def sample(self, options: Sequence[T], count: int) -> list[T]:
        """`count` different options in drawn order."""
        left = list(options)
        return [left.pop(self.below(len(left))) for _ in range(count)]


@cache
def _parse(template: str) -> list[Any]:
    """The template's nodes in order: a string is text, a tuple of one name a slot, a list of node lists a choice."""
    choices: list[list[Any]] = [[[]]]
    """The choices that are open, each with its alternatives so far; the first stands for the template itself."""
    for piece in _PIECE.findall(template):
        if piece == "[":
            choices.append([[]])
        elif piece == "|" and len(choices) > 1:
            choices[-1].append([])
        elif piece == "]" and len(choices) > 1:
            closed = choices.pop()
            choices[-1][-1].append(closed)
        elif piece in ("]", "|", "{", "}"):
            raise ValueError(f"template {template!r}: a {piece!r} is alone")
        else:
            choices[-1][-1].append((piece[1:-1],) if piece[0] == "{" else piece)
    if len(choices) > 1:
        raise ValueError(f"template {template!r}: a '[' is not closed")
    return choices[0][0]


def expand(template: str, draw: Draw, slots: Mapping[str, str]) -> str:
    """The template with its choices drawn and its slots filled, uncorrected; raises KeyError for an unknown slot."""

    def expanded(node: Any) -> str:
        if isinstance(node, str):
            return node
        if isinstance(node, tuple):
            return slots[node[0]]
        return "".join(map(expanded, draw.pick(node)))

    return "".join(map(expanded, _parse(template)))


def write(template: str, draw: Draw, slots: Mapping[str, str]) -> str:
    """The template as finished text: sentences begin with capitals, articles agree, spaces are single."""
    return finish(expand(template, draw, slots))


def finish(text: str) -> str:
    """The text with its capitals, articles and spaces corrected."""
    text = _SPACE_BEFORE.sub("", _SPACES.sub(" ", text)).strip()
    text = _ARTICLE.sub(r"\1n ", text)
    return _SENTENCE.sub(lambda found: found.group()[:-1] + found.group()[-1].upper(), text)
