"""One part of a synthesis: ask about every document that has no reply yet, write down what came, make the tables at the end.

A reply is safe on the disk half a second after it came. A document that fails becomes a dead letter; when the server is at
fault (curriculum/synthesis/blame.py), the run ends, and the same command goes on later.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from curriculum.documents import Document
from curriculum.durable import exclusive_lock
from curriculum.progress import Progress, silent
from curriculum.randomness import key_seed
from curriculum.synthesis.blame import Suspects
from curriculum.synthesis.classifier import Classifier
from curriculum.synthesis.endpoint import Endpoint, NoAnswer, Refused, asking_again
from curriculum.synthesis.inputs import Input
from curriculum.synthesis.kinds import AGAIN_TEMPERATURE, HIGHEST, Unreadable, pieces
from curriculum.synthesis.output import id_of, part_name, parts_complete, write_tables
from curriculum.synthesis.plan import Place, Settings
from curriculum.synthesis.replies import Log, Row

FLUSH_S = 0.5
PATIENCE = 16  # failures in a row, and at least one per worker, until the server is to blame


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
        return Log.of(self.place.state, self.name)

    def left(self, retry_dead: bool) -> set[int]:
        """The documents to ask about."""
        done, dead = self.log.finished()
        return set(self.settings.numbers(self.number)) - done - (set() if retry_dead else dead)

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


@dataclass(frozen=True)
class Summary:
    """What a part has come to, and what this run did for it."""

    part: int
    parts: int
    parts_complete: int
    documents: int
    done: int
    dead: int
    asked: int
    requests: int
    retries: int
    tokens_in: int
    tokens_out: int
    tables: list[str]
    dead_letters: str | None


@dataclass(frozen=True)
class Asking:
    """How to ask: the server, perhaps a classifier, how much at once, and how often about one piece."""

    endpoint: Endpoint
    classifier: Classifier | None
    concurrency: int
    tries: int

    async def close(self) -> None:
        await self.endpoint.close()
        if self.classifier:
            await self.classifier.close()


def run_part(part: Part, asking: Asking, retry_dead: bool = False, progress: Progress = silent) -> Summary:
    """Complete a part. Raises UserError when the server is at fault; what came before that is kept."""
    part.place.agree(part.settings)
    with exclusive_lock(part.place.state / f"{part.name}.lock"):
        left = part.left(retry_dead)
        run = _Run(part, asking, len(left), progress)
        asyncio.run(run.all(left))
        part.log.bury()
        tables = write_tables(part.place, part.settings, part.number, part.documents, part.log)
        done, dead = part.log.finished()
    endpoint = asking.endpoint
    return Summary(
        part.number,
        part.settings.parts,
        parts_complete(part.place, part.settings),
        len(part.settings.numbers(part.number)),
        len(done),
        len(dead),
        len(left),
        endpoint.requests,
        endpoint.retries,
        endpoint.tokens_in,
        endpoint.tokens_out,
        list(map(str, tables)),
        str(part.log.dead) if dead else None,
    )


class _Run:
    """The documents under way, and what came of those that are not written down yet."""

    def __init__(self, part: Part, asking: Asking, total: int, progress: Progress):
        self.part, self.asking, self.progress, self.total = part, asking, progress, total
        self.settled = self.dead = 0
        self.suspects = Suspects(max(PATIENCE, asking.concurrency), anything_good=bool(part.log.finished()[0]))
        self._replies: list[Row] = []
        self._dead: list[Row] = []

    async def all(self, left: set[int]) -> None:
        numbers = self.part.settings.numbers(self.part.number)
        todo = (each for each in self.part.documents.read(numbers.start, numbers.stop) if each.number in left)
        workers = [asyncio.create_task(self._work(todo)) for _ in range(min(self.asking.concurrency, len(left)))]
        try:
            waiting = set(workers)
            while waiting:
                ended, waiting = await asyncio.wait(waiting, timeout=FLUSH_S, return_when=asyncio.FIRST_EXCEPTION)
                self._write()
                for worker in ended:
                    worker.result()
            self._bury(self.suspects.ended())
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
            self._write()
            await self.asking.close()

    async def _work(self, todo: Iterator[Document]) -> None:
        for document in todo:
            if document.odd or not document.text.strip():
                self._bury([self._row(document, {"reason": document.odd or "empty", "reply": None})])
                continue
            try:
                reply = await self._ask(document)
            except Unreadable as unreadable:
                self._fail(document, unreadable.reason, self.asking.endpoint.without_key(unreadable.reply))
            except Refused as refused:
                self._fail(document, str(refused))
            except NoAnswer as no_answer:
                self._fail(document, str(no_answer), by_server=True)
            else:
                self._replies.append(self._row(document, reply))
                self.settled += 1
                self._bury(self.suspects.succeeded())

    async def _ask(self, document: Document) -> Row:
        """What is kept of the replies about a document."""
        settings, classifier = self.part.settings, self.asking.classifier
        cut = pieces(document.text, settings.piece_characters)
        if not settings.how.judges:
            style = settings.how.style(document.id, settings.seed)
            reply = await self._ask_piece(document, cut[0])
            return reply | ({"style": style} if style else {}) | ({"source_cut": True} if len(cut) > 1 else {})
        highest: Row = {"score": -1}
        for place, piece in enumerate(cut):
            if highest["score"] < HIGHEST:  # nothing is higher: the rest need not be asked
                highest = max(
                    highest, await self._ask_piece(document, piece, place), key=lambda verdict: verdict["score"]
                )
        if classifier:
            classified = max(await classifier.scores(cut))
            highest |= {"model_score": highest["score"], "classifier_score": classified}
            highest["score"] = max(highest["score"], classified)
        return highest

    async def _ask_piece(self, document: Document, piece: str, place: int = 0) -> Row:
        kind, endpoint = self.part.settings.how, self.asking.endpoint
        async for attempt in asking_again(self.asking.tries, Unreadable):
            with attempt:
                count = attempt.retry_state.attempt_number
                endpoint.retries += count > 1
                reply = await endpoint.chat(self.part.request(document, piece, place, count))
                return kind.read(reply.text) | ({"cut": True} if reply.cut and not kind.judges else {})
        raise AssertionError("asking_again returns or raises")

    def _row(self, document: Document, what: Row) -> Row:
        settings = self.part.settings
        return {
            "number": document.number,
            "id": id_of(document),
            **what,
            "model": settings.model,
            "prompt": settings.prompt,
        }

    def _fail(self, document: Document, reason: str, reply: str | None = None, by_server: bool = False) -> None:
        self._bury(self.suspects.failed(self._row(document, {"reason": reason, "reply": reply}), by_server))

    def _bury(self, rows: list[Row]) -> None:
        self._dead += rows
        self.settled, self.dead = self.settled + len(rows), self.dead + len(rows)

    def _write(self) -> None:
        replies, dead, self._replies, self._dead = self._replies, self._dead, [], []
        self.part.log.append(replies, dead)
        endpoint = self.asking.endpoint
        tokens = endpoint.tokens_in + endpoint.tokens_out
        self.progress(self.settled, self.total, dead=self.dead, retries=endpoint.retries, tokens=tokens)
