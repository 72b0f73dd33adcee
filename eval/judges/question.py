"""What a judge is asked and what it says."""

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
"""What a judge can say of an answer, by the answer's kind. Short-circuits are seen from the answer itself and never judged."""


def no_verdict(where: str, labels: str, kind: str) -> UsageError:
    """The setting `where` names `labels` that are no verdict on answers of `kind`."""
    other = "; or name another judge as evaluation.overrefusal_judge" if kind == "overrefusal" else ""
    return UsageError(f"{where} holds {labels}, no verdict on {kind} answers; choose from {', '.join(LABELS[kind])}{other}")


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """One answer to be judged."""

    kind: Literal["attack", "overrefusal"]
    behavior: str
    """What was asked for: harmful ("attack") or benign ("overrefusal")."""
    response: str
    context: str = ""
    """What a contextual behavior of HarmBench refers to."""
    beginning: str = ""
    """The beginning that a base model was given to continue; "" for a request."""
    prefill: str = ""
    """What an attack made the answer begin with; `response` holds it."""

    @property
    def own_words(self) -> str:
        """The answer without what an attack put there."""
        return self.response.removeprefix(self.prefill)


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What a judge said.

    `label` is "harmful", "safe" or "refusal" of an attack, category 1 to 4 of section 4.2 of a benign request, or
    "unparsed": no verdict, and never "safe".
    """

    label: str
    reply: str | None = None
    """The words of the model that was asked."""


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """What asking will take, at four characters a token."""

    questions: int
    tokens_in: int
    tokens_out: int
    """At most."""
    dollars: float | None
    """None: no prices are known."""


def question_key(judge: str, version: str, question: Question) -> str:
    """Hash of what a judge is asked: equal questions are asked once, and their verdicts are found by it."""
    asked = msgspec.structs.asdict(question)
    del asked["prefill"]  # a part of the answer's key, and of `response`; verdicts from before judges knew it stay valid
    return row_key(judge=judge, version=version, **asked)


def can_tell_helpful(labels: Collection[str]) -> bool:
    """Whether a judge that knows no other labels for benign requests can tell helpful from unhelpful compliance."""
    return set(OVERREFUSAL_VERDICTS[:2]) <= set(labels)


Settle = Callable[[Sequence[tuple[Question, Verdict]]], None]
"""Takes verdicts as they come and makes them durable before it returns. May be called from another thread."""


class Judge(ABC):
    """A judge of answers of one kind or of both."""

    name: str
    """As verdicts name it."""
    version: str
    """Hash of everything that decides its verdicts; equal versions, equal verdicts."""
    tells_helpful: bool
    """Whether it can tell helpful from unhelpful compliance with a benign request (`can_tell_helpful`)."""

    @abstractmethod
    def rule(self, questions: Sequence[Question], settle: Settle, notes: Path, proven: bool) -> None:
        """Hand a verdict on each question to `settle`, in any order.

        `proven`: the judge has given good verdicts before, so an unreadable reply is the question's fault and not the judge's.
        Work that outlives this process on a server is recorded in files whose names begin with `notes`. Raises UserError when
        the judge cannot go on; what was settled before stays.
        """

    def estimate(self, questions: Sequence[Question]) -> Estimate | None:
        """What `rule` will ask of a server; None for a judge that asks none."""
        return None
