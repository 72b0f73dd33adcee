"""One part of one output: its documents, its log, and what is asked about a document."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from curricula.curriculum.sources.documents import Document
from curricula.curriculum.synthesis.inputs import Input
from curricula.curriculum.synthesis.kinds import AGAIN_TEMPERATURE, pieces
from curricula.curriculum.synthesis.output import part_name
from curricula.curriculum.synthesis.plan import Place, Settings
from curricula.curriculum.synthesis.replies import Known, Log
from curricula.randomness import key_seed


@dataclass(frozen=True)
class Part:
    """One part of one output, and the documents of all parts."""

    settings: Settings
    place: Place
    number: int
    documents: Input
    sends_seed: bool = True  # some servers refuse requests with one

    @property
    def name(self) -> str:
        return part_name(self.number, self.settings.parts)

    @property
    def log(self) -> Log:
        return Log.of(self.place.state, self.name, self.numbers, self.settings.how.judges)

    @property
    def numbers(self) -> range:
        return self.settings.numbers(self.number)

    def left(self, known: Known, retry_dead: bool) -> set[int]:
        """The documents to ask about."""
        return set(self.numbers) - known.done - (set() if retry_dead else known.dead)

    def first_request(self, document: Document) -> dict[str, Any]:
        return self.request(document, pieces(document.text, self.settings.piece_characters)[0])

    def request(self, document: Document, piece: str, place: int = 0, attempt: int = 1) -> dict[str, Any]:
        """The chat request about the piece of a document at `place`; a later attempt draws anew."""
        kind, settings = self.settings.how, self.settings
        warmth = settings.temperature if attempt == 1 else max(settings.temperature, AGAIN_TEMPERATURE)
        return {
            "model": settings.model,
            "messages": kind.prompt.messages(piece, kind.style(document.id, settings.seed)),
            "temperature": warmth,
            "max_tokens": settings.max_tokens,
        } | (
            {"seed": key_seed(settings.seed, settings.kind, document.id, place, attempt) % 2**31}
            if self.sends_seed
            else {}
        )
