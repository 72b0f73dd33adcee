"""Tuning sets: tables whose rows become conversations. Public ones are in datasets.yaml; a study can declare its own."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from curricula.curriculum.sources.declared import DeclaredTable, Reads
from curricula.curriculum.sources.registry import KNOWN
from curricula.curriculum.sources.tables import Row, columns_of, is_utf8, text_of
from curricula.errors import UserError
from curricula.settings import convert
from curricula.terminal import plural

log = logging.getLogger(__name__)

Message = dict[str, str]
"""A turn: its role and content."""
ASSISTANT = "assistant"
"""The role whose turns carry loss."""
TEXT = ""
"""The role of a plain text. All of it carries loss, and so does the end token after it."""
Label = str | int | bool
Labels = dict[str, Label | tuple[Label, ...]]
"""For some columns, the values that mean yes."""


@dataclass(frozen=True)
class Conversation:
    messages: list[Message]
    is_refusal: bool = False
    """Whether the dataset labels it as a refusal of a harmful request."""

    @property
    def is_utf8(self) -> bool:
        """Whether its text is valid Unicode. No tokenizer accepts other text."""
        return all(is_utf8(value) for message in self.messages for value in message.values())


class TuningSet(DeclaredTable, frozen=True):
    """A table of conversations: a column of messages, or columns of prompts and responses.

    Labels map a column to the values that mean yes. The good answer to a harmful prompt is a refusal; without refusal
    labels, every answer to a harmful prompt counts as one.
    """

    messages: str | None = None
    """The column of messages, each with a role and a content."""
    prompt: str | tuple[str, ...] = ()
    """The column of prompts. Of several columns, the first that is not empty is read."""
    response: str | None = None
    """The column of responses. A row without one is skipped."""
    text: str | None = None
    """Instead of conversations: a column of plain texts, or a template as in `sources`. All of a text carries loss."""
    harmful_prompt: Labels = {}
    """Labels of a harmful prompt, such as `{ prompt_harm_label: harmful }`."""
    harmful_response: Labels = {}
    """Labels of a harmful response."""
    refusal: Labels = {}
    """Labels of a refusal."""
    answers: Literal["good", "harmful"] = "good"
    """Which rows are read. "good": all but harmful responses and compliant answers to harmful prompts. "harmful": only harmful
    responses to harmful prompts."""

    def check(self) -> None:
        super().check()
        ways = sum(map(bool, (self.messages, self.prompt, self.text)))
        if ways != 1 or bool(self.prompt) != bool(self.response):
            raise ValueError("name either the column `messages`, or the columns `prompt` and `response`, or `text`")
        if self.answers == "harmful" and not (self.harmful_prompt and self.harmful_response):
            raise ValueError("answers is 'harmful', which needs the labels harmful_prompt and harmful_response")

    @property
    def may_refuse(self) -> bool:
        """Whether its labels allow some of its conversations to be refusals."""
        return self.answers == "good" and bool(self.harmful_prompt or self.refusal)

    @property
    def prompts(self) -> tuple[str, ...]:
        return (self.prompt,) if isinstance(self.prompt, str) else self.prompt

    def reads(self) -> dict[str, Reads]:
        if self.messages:
            reads = {"messages": Reads((self.messages,), "messages")}
        elif self.text:
            reads = {"text": Reads(columns_of(self.text), "text" if self.text in columns_of(self.text) else "value")}
        else:
            reads = {"prompt": Reads(self.prompts), "response": Reads((str(self.response),))}
        for key in ("harmful_prompt", "harmful_response", "refusal"):
            if labels := getattr(self, key):
                reads[key] = Reads(tuple(labels), "value")
        return reads

    def conversation(self, row: Row) -> Conversation | None:
        """The conversation of a row, or None if the row is not to be read.

        Raises KeyError for a missing column, ValueError for a message without a role or a content.
        """
        is_harmful, is_bad = _labelled(row, self.harmful_prompt), _labelled(row, self.harmful_response)
        is_refusal = _labelled(row, self.refusal) if self.refusal else is_harmful
        if self.response and not row[self.response]:
            return None
        if (self.answers == "harmful") != is_bad or (is_bad and not is_harmful):
            return None
        if self.answers == "good" and is_harmful and not is_refusal:
            return None
        refuses = (is_harmful if self.harmful_prompt else is_refusal) and not is_bad
        if self.messages:
            if not row[self.messages]:
                return None
            return Conversation([_turn(turn) for turn in row[self.messages]], refuses)
        if self.text:
            content = text_of(row, self.text)
            return Conversation([{"role": TEXT, "content": content}], refuses) if content else None
        prompt = next((row[name] for name in self.prompts if row[name]), row[self.prompts[-1]])
        turns = [{"role": "user", "content": prompt}, {"role": ASSISTANT, "content": row[str(self.response)]}]
        return Conversation(turns, refuses)

    def conversations(self, root: Path, where: str) -> Iterator[Conversation]:
        """The set's conversations that are valid UTF-8. The number of the others is logged.

        Raises UserError, whose message begins with `where`, for a row that is not a conversation.
        """
        left_out = 0
        for conversation in self.read(root, where):
            if conversation.is_utf8:
                yield conversation
            else:
                left_out += 1
        if left_out:
            log.info("%s: %s left out, not UTF-8", where, plural(left_out, "conversation"))

    def read(self, root: Path, where: str) -> Iterator[Conversation]:
        """All conversations of the set, including those that are not valid UTF-8."""
        table = self.open(root, where)
        for number, row in enumerate(table.rows()):
            try:
                conversation = self.conversation(row)
                messages = conversation.messages if conversation else []
                if not all(isinstance(value, str) for message in messages for value in message.values()):
                    raise TypeError
            except KeyError as missing:
                raise UserError(f"{table.place(number, where)} has no column {missing}, only {sorted(row)}") from None
            except ValueError as error:
                raise UserError(f"{table.place(number, where)}: {error}") from None
            except (TypeError, AttributeError):
                raise UserError(f"{table.place(number, where)} has a message that is not text; fix the row") from None
            if conversation:
                yield conversation


def _turn(message: dict[str, str]) -> dict[str, str]:
    if isinstance(message, dict) and ("content" not in message or message.get("role", "") == ""):
        raise ValueError(f"a message has no role or no content: {message!r:.60}; rename its keys, or add the speaker")
    return {"role": message["role"], "content": message["content"]}


def _labelled(row: Row, labels: Labels) -> bool:
    return any(
        _as_label(row[column]) in map(_as_label, values if isinstance(values, tuple) else [values])
        for column, values in labels.items()
    )


def _as_label(value: Any) -> str:
    """A label as text. True, "True", 1 and 1.0 are the same: a file's format and its empty rows decide which one it holds."""
    text = str(value).lower().removesuffix(".0")
    return {"true": "1", "false": "0"}.get(text, text)


HARMFUL = "wildguardmix-harmful"
"""The public set of compliant answers to harmful requests."""
POOLS: dict[str, TuningSet] = convert(KNOWN["tuning_sets"], dict[str, TuningSet])
"""The public tuning sets by name."""


def require_learnable(pool: str, conversations: Iterable[Conversation], loss_on_all: bool) -> None:
    """Raise UserError if a tuning set holds no conversation, or if none of its turns carries loss."""
    roles: set[str] = set()
    for conversation in conversations:
        roles |= {message["role"] for message in conversation.messages}
        if loss_on_all or roles & {TEXT, ASSISTANT}:
            return
    if not roles:
        raise UserError(f"tuning set {pool}: holds no conversation; give it rows or a weight of 0")
    raise UserError(
        f"tuning set {pool}: no turn has the role {ASSISTANT!r}, only {', '.join(sorted(roles))}, so nothing would be learnt; "
        f"rename the roles, or set the stage's loss.{pool} to 'all'"
    )


def require_examples(pool: str, wanted: int, held: int) -> None:
    """Raise UserError if a stage asks for more conversations of a tuning set than it holds."""
    if wanted > held:
        raise UserError(f"tuning set {pool}: examples asks for {wanted:,} of its {held:,} conversations; ask for fewer")


def require_a_batch(where: str, rows: int, global_batch: int) -> None:
    """Raise UserError if a stage's conversations do not fill one batch."""
    if rows < global_batch:
        raise UserError(
            f"{where}: a batch has {global_batch} rows, but the conversations fill only {rows}; add conversations, or lower "
            "global_batch"
        )


def read_conversations(pool: str, root: Path, declared: Mapping[str, TuningSet]) -> Iterator[Conversation]:
    """The conversations of a set that the study declares, or of a public one. Raises UserError for a row that is not a
    conversation."""
    return (declared.get(pool) or POOLS[pool]).conversations(root, f"tuning set {pool}")
