"""Judges that are a function of the question, and ask nobody."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

from curricula.eval.judges.question import Question, Settle, Verdict


class RuleJudge(ABC):
    """Subclasses have a name, a version, and a label for each question."""

    name: str

    @property
    @abstractmethod
    def version(self) -> str: ...

    @abstractmethod
    def label(self, question: Question) -> str: ...

    def rule(self, questions: Sequence[Question], settle: Settle, beside: Path, proven: bool) -> None:
        settle([(question, Verdict(label=self.label(question))) for question in questions])

    def estimate(self, questions: Sequence[Question]) -> None:
        return None
