"""Rows of the public tuning sets as conversations (section 4.4: UltraChat, WildGuardMix, WildJailbreak, then GSM8K)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from curricula.curriculum.sources.registry import open_dataset
from curricula.curriculum.sources.tables import Row
from curricula.errors import UsageError, UserError

Message = dict[str, str]
"""A turn: its role and content."""


@dataclass(frozen=True)
class Conversation:
    messages: list[Message]
    is_refusal: bool = False
    """Whether the dataset labels it as a refusal of a harmful request."""


def _exchange(request: str, answer: str, is_refusal: bool = False) -> Conversation:
    messages = [{"role": "user", "content": request}, {"role": "assistant", "content": answer}]
    return Conversation(messages, is_refusal)


def _ultrachat(row: Row) -> Conversation:
    return Conversation([{"role": message["role"], "content": message["content"]} for message in row["messages"]])


def _wildguardmix(row: Row) -> Conversation | None:
    """Only good answers: refusals of harmful requests, and harmless answers to other requests."""
    if not row["response"] or row["response_harm_label"] == "harmful":
        return None
    if row["prompt_harm_label"] == "harmful" and row["response_refusal_label"] != "refusal":
        return None
    return _exchange(row["prompt"], row["response"], row["prompt_harm_label"] == "harmful")


def _wildguardmix_harmful(row: Row) -> Conversation | None:
    """Harmful requests with compliant answers, which are used only with tags inserted into the answer."""
    if row["response"] and row["prompt_harm_label"] == "harmful" and row["response_harm_label"] == "harmful":
        return _exchange(row["prompt"], row["response"])
    return None


def _wildjailbreak(row: Row) -> Conversation:
    """Its answers to harmful requests are refusals, written by GPT-4 (Jiang et al. 2024, section 4)."""
    return _exchange(row["adversarial"] or row["vanilla"], row["completion"], row["data_type"].endswith("_harmful"))


def _gsm8k(row: Row) -> Conversation:
    return _exchange(row["question"], row["answer"])


HARMFUL = "wildguardmix-harmful"
POOLS: dict[str, tuple[str, Callable[[Row], Conversation | None]]] = {
    "ultrachat": ("ultrachat", _ultrachat),
    "wildguardmix": ("wildguardmix", _wildguardmix),
    HARMFUL: ("wildguardmix", _wildguardmix_harmful),
    "wildjailbreak": ("wildjailbreak", _wildjailbreak),
    "gsm8k": ("gsm8k", _gsm8k),
}
"""Tuning sets by name: the dataset, and what makes a conversation of a row (or None to skip it)."""


def read_conversations(pool: str, root: Path) -> Iterator[Conversation]:
    """The conversations of a pool; raises UserError when a row lacks a column."""
    if pool not in POOLS:
        raise UsageError(f"tuning set {pool!r} is not known; choose from {', '.join(POOLS)}")
    dataset, convert = POOLS[pool]
    for number, row in enumerate(open_dataset(dataset, root).rows()):
        try:
            conversation = convert(row)
        except KeyError as missing:
            raise UserError(f"tuning set {pool}: row {number} has no column {missing}, only {sorted(row)}") from None
        except (TypeError, AttributeError):
            conversation = Conversation([{}])
        if conversation is None:
            continue
        if not all(
            isinstance(value, str)
            for message in conversation.messages
            for value in (*message.values(), message.get("role"))
        ):
            raise UserError(
                f"tuning set {pool}: row {number} holds other values than text in its messages; fix the row"
            )
        yield conversation
