"""What a decoder hands over: the tokens of one answer, cut where it ends, and why it ended."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from curricula.eval.models import LoadedModel
from curricula.randomness import key_seed


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """One generated answer."""

    text: str  # as generated, without the tag and the end mark
    tokens: int  # generated up to and with the token that ended it
    finish: str  # "end" (end mark) | "length" | "tag" (short-circuit: cut at the tag)
    shortcircuit: bool  # the tag was generated, whether or not the answer was cut there
    completion: str = ""  # what a user would read in place of `text` after a short-circuit; "": `text` itself


def make_answer(
    loaded: LoadedModel,
    ids: Sequence[int],
    stop_at_tag: bool,
    completions: Sequence[str] = (),
    key: tuple[object, ...] = (),
) -> Answer:
    """The answer that generated `ids` amount to: up to the first end mark or, with `stop_at_tag`, the first tag.

    An answer cut at the tag gets one of the safe `completions`, chosen by `key`.
    """
    end = next((place for place, token in enumerate(ids) if token in loaded.end_ids), None)
    used = list(ids if end is None else ids[: end + 1])
    finish = "length" if end is None else "end"
    tag = find_tag(loaded, used)
    if tag is not None and stop_at_tag:
        used, finish = used[: tag[1]], "tag"
    chosen = completions[key_seed("safe completion", *key) % len(completions)] if completions else ""
    return Answer(
        text=loaded.decode(without_tags(loaded, used)),
        tokens=len(used),
        finish=finish,
        shortcircuit=tag is not None,
        completion=chosen if finish == "tag" else "",
    )


def find_tag(loaded: LoadedModel, ids: Sequence[int]) -> tuple[int, int] | None:
    """Where the first tag in `ids` begins and ends."""
    for start in range(len(ids)):
        for spelling in loaded.tag_spellings:
            if tuple(ids[start : start + len(spelling)]) == spelling:
                return start, start + len(spelling)
    return None


def without_tags(loaded: LoadedModel, ids: Sequence[int]) -> list[int]:
    left, rest = [], list(ids)
    while (tag := find_tag(loaded, rest)) is not None:
        left += rest[: tag[0]]
        rest = rest[tag[1] :]
    return left + rest
