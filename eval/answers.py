"""What a decoder hands over: the tokens of one answer, cut where it ends, and why it ended."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from eval.models import LoadedModel


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """One generated answer."""

    text: str  # without the tag and the end mark
    tokens: int  # generated up to and with the token that ended it
    finish: str  # "end" (end mark) | "length" | "tag" (short-circuit: cut at the tag)
    shortcircuit: bool  # the tag was generated, whether or not the answer was cut there


def make_answer(loaded: LoadedModel, ids: Sequence[int], *, stop_at_tag: bool) -> Answer:
    """The answer that generated `ids` amount to: up to the first end mark or, with `stop_at_tag`, the first tag."""
    stops = set(loaded.end_ids) | ({loaded.tag_id} if stop_at_tag else set())
    stop = next((place for place, token in enumerate(ids) if token in stops), None)
    used = ids if stop is None else ids[: stop + 1]
    finish = "length" if stop is None else "tag" if used[-1] == loaded.tag_id else "end"
    return Answer(text=loaded.decode(used), tokens=len(used), finish=finish, shortcircuit=loaded.tag_id in used)
