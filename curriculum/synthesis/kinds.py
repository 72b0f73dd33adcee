"""The four kinds of synthesis: what is asked about a document, and how a reply to it is read."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from curricula.asking import Unreadable, after_thoughts
from curricula.curriculum.synthesis.prompts import MORALIZE, REFUSE, REPHRASE, SCORE, Prompt
from curricula.randomness import key_seed

HIGHEST = 5
SCORES = tuple(range(HIGHEST + 1))
AGAIN_TEMPERATURE = 0.5
"""Minimum temperature of a repeated attempt: at 0 the model would give the same reply again."""


@dataclass(frozen=True)
class Kind:
    """One kind of synthesis with its default sampling."""

    name: str
    prompt: Prompt
    read: Callable[[str], dict[str, Any]]
    """Returns the fields to keep of a reply. Raises Unreadable."""
    temperature: float
    max_tokens: int
    expected_tokens: int
    """Tokens of a reply, for estimates: the mean per row of the published sets (SafeWeb, RefuseWeb, Moral Education)."""

    @property
    def judges(self) -> bool:
        """Whether it judges the whole document. Other kinds write a new one from the first piece."""
        return self.name == "score"

    def style(self, document_id: str, seed: int) -> str:
        """The style for a document, drawn by its id; "" if the kind has no styles."""
        styles = self.prompt.styles
        return styles[key_seed("style", seed, document_id) % len(styles)][0] if styles else ""


def pieces(text: str, size: int) -> list[str]:
    """`text` in pieces of at most `size` characters, cut at line ends or else between words. Blank pieces are left out."""
    cut = []
    start = 0
    while len(text) - start > size:
        window = text[start : start + size]
        end = max(window.rfind("\n", size // 2), 0) or max(window.rfind(" ", size // 2), 0) or size - 1
        cut.append(window[: end + 1])
        start += end + 1
    return [piece for piece in [*cut, text[start:]] if piece.strip()]


def _plain(reply: str) -> str:
    """A reply without thoughts. Raises Unreadable when nothing is left or it is not valid Unicode."""
    text = after_thoughts(reply)
    if not text:
        raise Unreadable("the reply is empty", reply)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Unreadable("the reply is not valid Unicode", reply) from None
    return text


_BROKEN_VERDICT = re.compile(r'\{\s*"score"\s*:\s*"?([0-9]+)"?\s*,\s*"reason"')
"""The score in a verdict that is not valid JSON, mostly because its reason has unescaped quotation marks."""
_MOST_BRACES = 100
"""Most braces tried in one reply. A model that repeats itself can write thousands."""


def read_verdict(reply: str) -> dict[str, Any]:
    """Score and reason from a reply: a JSON object, bare, fenced or in prose. Of several, the last counts: the conclusion.

    If a verdict is not valid JSON, its end is unknown and another can be a quotation in its reason, so all must agree.
    """
    text = _plain(reply)
    objects, around = _json_objects(text)
    valid = [value for value in objects if "score" in value]
    broken = [{"score": score} for score in _BROKEN_VERDICT.findall(around if valid else text)]
    if not (valid or broken):
        raise Unreadable("the reply holds no verdict", reply)
    last = (valid or broken)[-1]
    score, reason = _score(last, reply), last.get("reason", "")
    if broken and any(_score(other, reply) != score for other in (*valid, *broken)):
        raise Unreadable("the reply holds different scores, one of them in a verdict that is not valid JSON", reply)
    reason = reason if isinstance(reason, str) else ""
    return {"score": score, "reason": reason.encode(errors="replace").decode()}


def _score(verdict: dict[str, Any], reply: str) -> int:
    score = verdict["score"]
    if isinstance(score, str) and score.strip() in map(str, SCORES):
        score = int(score)
    if isinstance(score, bool) or not isinstance(score, int | float) or score not in SCORES:
        raise Unreadable(f"the score is {score!r:.20}, not 0 to {HIGHEST}", reply)
    return int(score)


def _json_objects(text: str) -> tuple[list[dict[str, Any]], str]:
    """The JSON objects in a text, and the text around them."""
    decoder = json.JSONDecoder()
    objects: list[dict[str, Any]] = []
    around, end = "", 0  # the text outside the objects so far, and the end of the last one
    start = text.find("{")
    for _ in range(_MOST_BRACES):
        if start < 0:
            break
        try:
            value, after = decoder.raw_decode(text, start)
            objects.append(value)
            around, end = around + text[end:start], after
        except (ValueError, RecursionError):
            after = start + 1
        start = text.find("{", after)
    return objects, around + text[end:]


def read_prose(reply: str) -> dict[str, Any]:
    return {"text": _plain(reply)}


_TURN = re.compile(r"^[ \t]*\**(User|Assistant)\**[ \t]*:\**[ \t]*", re.MULTILINE)


def read_dialogue(reply: str) -> dict[str, Any]:
    """A conversation from the user's first turn on, with its speakers in the form that tokenisation recognises."""
    text = _TURN.sub(lambda turn: f"{turn[1]}: ", _plain(reply))
    turns = list(_TURN.finditer(text))
    first = next((place for place, turn in enumerate(turns) if turn[1] == "User"), None)
    if first is None or not any(turn[1] == "Assistant" for turn in turns[first:]):
        raise Unreadable("the reply is not a conversation of User and Assistant", reply)
    return {"text": text[turns[first].start() :]}


KINDS = {
    kind.name: kind
    for kind in (
        Kind("score", SCORE, read_verdict, temperature=0.0, max_tokens=256, expected_tokens=50),
        Kind("rephrase", REPHRASE, read_prose, temperature=0.7, max_tokens=2048, expected_tokens=1100),
        Kind("refuse", REFUSE, read_dialogue, temperature=0.7, max_tokens=4096, expected_tokens=2500),
        Kind("moralize", MORALIZE, read_prose, temperature=0.7, max_tokens=4096, expected_tokens=2200),
    )
}
