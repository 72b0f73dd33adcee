"""Answers: how long they can get, which tokens end them, and the text that their token ids give."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from curricula.errors import UserError
from curricula.eval.models import LoadedModel
from curricula.eval.rows import Pruning
from curricula.randomness import key_seed


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    text: str
    """Generated text without the tag and the end mark."""
    tokens: int
    """Generated tokens, up to and including the one that ended the answer."""
    finish: str
    """"end" (end mark), "length", or "tag" (short-circuit: cut at the tag)."""
    shortcircuit: bool
    """Whether the model wrote the tag, even if the answer was not cut there."""
    pruning: Pruning | None = None
    """Cost of SafeBeam's pruning; None for other decoders."""
    blank: str = ""
    """Blank before `text` that the tokenizer drops at the beginning of a text. It counts if an attack began the answer."""
    completion: str = ""
    """Text that a user would read instead of `text` after a short-circuit; "" if they would read `text`."""


def room_after(loaded: LoadedModel, prompt: Sequence[int], wanted: int) -> int:
    """How many tokens can follow the prompt: `wanted`, or fewer if the context has less room. Raises UserError if none can."""
    if not prompt:
        raise UserError("a prompt has no tokens, so nothing can follow it; take the empty prompt out of the benchmark")
    room = loaded.context_length - len(prompt)
    if room < 1:
        raise UserError(
            f"a prompt has {len(prompt)} tokens, but the context of {loaded.name} holds {loaded.context_length}; "
            f"shorten it or leave it out (it begins {loaded.decode(prompt[:24])!r})"
        )
    return min(wanted, room)


def is_finished(loaded: LoadedModel, ids: Sequence[int], stop_at_tag: bool) -> bool:
    """Whether an answer ends with an end mark or, with `stop_at_tag`, with the tag."""
    at_tag = stop_at_tag and any(tuple(ids[-len(tag) :]) == tag for tag in loaded.tag_spellings)
    return at_tag or ids[-1] in loaded.end_ids


def make_answer(
    loaded: LoadedModel,
    ids: Sequence[int],
    stop_at_tag: bool,
    completions: Sequence[str] = (),
    key: tuple[object, ...] = (),
    pruning: Pruning | None = None,
) -> Answer:
    """The answer that generated `ids` hold, up to the first end mark or, with `stop_at_tag`, the first tag.

    An answer cut at the tag gets one of the safe `completions`, chosen by `key`.
    """
    end = next((place for place, token in enumerate(ids) if token in loaded.end_ids), None)
    used = list(ids if end is None else ids[: end + 1])
    finish = "length" if end is None else "end"
    tag = find_tag(loaded, used)
    if tag is not None and stop_at_tag:
        used, finish = used[: tag[1]], "tag"
    chosen = completions[key_seed("safe completion", *key) % len(completions)] if completions else ""
    shown = without_tags(loaded, used)
    return Answer(
        text=loaded.decode(shown),
        blank=" " if loaded.before_part and loaded.decode_parts([shown])[0].startswith(" ") else "",
        tokens=len(used),
        finish=finish,
        shortcircuit=tag is not None,
        pruning=pruning,
        completion=chosen if finish == "tag" else "",
    )


def find_tag(loaded: LoadedModel, ids: Sequence[int]) -> tuple[int, int] | None:
    """Start and end of the first tag in `ids`; None if there is no tag."""
    for start in range(len(ids)):
        for spelling in loaded.tag_spellings:
            if tuple(ids[start : start + len(spelling)]) == spelling:
                return start, start + len(spelling)
    return None


def without_tags(loaded: LoadedModel, ids: Sequence[int]) -> list[int]:
    kept, rest = [], list(ids)
    while (tag := find_tag(loaded, rest)) is not None:
        kept += rest[: tag[0]]
        rest = rest[tag[1] :]
    return kept + rest
