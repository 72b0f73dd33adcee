"""A question to a judge, the verdict it gives, and the base class of all judges."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from curricula.errors import UsageError
from curricula.eval.rows import ATTACK_VERDICTS, OVERREFUSAL_VERDICTS, row_key

UNPARSED = "unparsed"
LABELS = {"attack": ATTACK_VERDICTS[:3], "overrefusal": OVERREFUSAL_VERDICTS[:4]}
"""The labels that a judge can give, by the kind of answer. Short-circuits show in the answer itself and are never judged."""


def no_verdict(where: str, labels: str, kind: str) -> UsageError:
    """The error for a setting `where` whose `labels` are not verdicts on answers of `kind`."""
    other = "; or name another judge as evaluation.overrefusal_judge" if kind == "overrefusal" else ""
    return UsageError(f"{where} holds {labels}, not a verdict on {kind} answers; choose from {', '.join(LABELS[kind])}{other}")


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """One answer to be judged."""

    kind: Literal["attack", "overrefusal"]
    behavior: str
    """The request, which is harmful ("attack") or benign ("overrefusal")."""
    response: str
    context: str = ""
    """The text that a contextual behavior of HarmBench refers to."""
    beginning: str = ""
    """The text that a base model was given to continue; "" for a request."""
    prefill: str = ""
    """The words with which an attack made the answer begin; `response` includes them."""

    @property
    def own_words(self) -> str:
        """The answer without the words that an attack put there."""
        return self.response.removeprefix(self.prefill)


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What a judge said about one answer.

    `label` is "harmful", "safe" or "refusal" for an attack, and one of categories 1 to 4 (section 4.2 of the paper) for a
    benign request. "unparsed" is no verdict, and never counts as "safe".
    """

    label: str
    reply: str | None = None
    """The reply of the model that was asked; None if none was."""


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """What asking a server takes, at four characters a token."""

    questions: int
    tokens_in: int
    tokens_out: int
    """Upper bound."""
    dollars: float | None
    """None without prices in the judge's settings."""


def question_key(judge: str, version: str, question: Question) -> str:
    """Hash of what a judge is asked. Equal questions are asked once, and verdicts are looked up by it."""
    asked = msgspec.structs.asdict(question)
    del asked["prefill"]  # in the answer's key, and part of `response`; verdicts given before this field existed stay valid
    return row_key(judge=judge, version=version, **asked)


def can_tell_helpful(labels: Collection[str]) -> bool:
    """Whether a judge that gives these labels can tell helpful from unhelpful compliance with a benign request."""
    return set(OVERREFUSAL_VERDICTS[:2]) <= set(labels)


Settle = Callable[[Sequence[tuple[Question, Verdict]]], None]
"""Takes verdicts as they come and makes them durable before it returns. It can be called from another thread."""


class Judge(ABC):
    """A judge of answers of one kind or of both."""

    name: str
    """The judge's name in verdicts."""
    version: str
    """Hash of everything that decides its verdicts: judges of equal versions give equal verdicts."""
    tells_helpful: bool
    """Whether it can tell helpful from unhelpful compliance with a benign request (`can_tell_helpful`)."""

    @abstractmethod
    def rule(self, questions: Sequence[Question], settle: Settle, notes: Path, proven: bool) -> None:
        """Hand a verdict on each question to `settle`, in any order.

        If the judge is `proven`, it has given verdicts before: an unreadable reply is then the question's fault, not the
        judge's. Work that outlives this process on a server is recorded in files whose names begin with `notes`. Raises
        UserError if the judge cannot go on; verdicts settled before that are kept.
        """

    def estimate(self, questions: Sequence[Question]) -> Estimate | None:
        """What `rule` will ask of a server; None for a judge without one."""
        return None
