"""One part of a synthesis: ask about every document that has no reply yet, write down what came, make the tables at the end.

A reply is safe on the disk half a second after it came. A document that fails becomes a dead letter, but one that got no reply
at all only when that happens twice. When the server is at fault (curriculum/synthesis/blame.py), the run ends, and the same
command goes on later.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from curricula.curriculum.sources.documents import Document
from curricula.curriculum.synthesis.blame import Failure, Suspects
from curricula.curriculum.synthesis.classifier import Classifier
from curricula.curriculum.synthesis.kinds import HIGHEST, Unreadable, pieces
from curricula.curriculum.synthesis.output import answered, id_of, mark_unfinished, text_hash, write_tables
from curricula.curriculum.synthesis.part import Part
from curricula.curriculum.synthesis.replies import Row
from curricula.durable import exclusive_lock
from curricula.endpoint import LAST_REPLIES_S, Endpoint, NoAnswer, Refused, asking_again
from curricula.errors import UserError
from curricula.progress import Progress, silent

FLUSH_S = 0.5
PATIENCE = 16  # failures in a row, and at least one per worker, until the server is to blame


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
        mark_unfinished(part.place, part.settings)
        known = part.log.read()
        left = part.left(known, retry_dead)
        if left:  # documents that changed are refused before others are paid for and mixed with them
            for _ in answered(part.documents, part.numbers, known.replies):
                pass
        run = _Run(part, asking, len(left), bool(known.done), progress)
        asyncio.run(run.all(left))
        if left:
            known = part.log.read()
        part.log.bury(known)
        tables = write_tables(part.place, part.settings, part.number, part.documents, known.replies)
        complete = mark_unfinished(part.place, part.settings)
    endpoint = asking.endpoint
    return Summary(
        part.number,
        part.settings.parts,
        complete,
        len(part.numbers),
        len(known.done),
        len(known.dead),
        len(left),
        endpoint.requests,
        endpoint.retries,
        endpoint.tokens_in,
        endpoint.tokens_out,
        list(map(str, tables)),
        str(part.log.dead) if known.dead else None,
    )


class _Run:
    """The documents under way, and what came of those that are not written down yet."""

    def __init__(self, part: Part, asking: Asking, total: int, anything_good: bool, progress: Progress):
        self.part, self.asking, self.progress, self.total = part, asking, progress, total
        self.settled = self.dead = 0
        self.suspects = Suspects(max(PATIENCE, asking.concurrency), anything_good)
        self._again: deque[Document] = deque()  # those that the server failed
        self._asked_again: set[int] = set()
        self._verdicts: dict[int, list[Row]] = {}  # of the first pieces of documents whose other pieces are to come
        self._replies: list[Row] = []
        self._dead: list[Row] = []
        self._stopping = False

    async def all(self, left: set[int]) -> None:
        numbers = self.part.numbers
        todo = (each for each in self.part.documents.read(numbers.start, numbers.stop) if each.number in left)
        workers: list[asyncio.Task[None]] = []
        waiting: set[asyncio.Task[None]] = set()
        missing = min(self.asking.concurrency, len(left))
        try:
            while missing or waiting:
                new = [asyncio.create_task(self._work(todo)) for _ in range(missing)]
                workers += new
                ended, waiting = await asyncio.wait(
                    waiting.union(new), timeout=FLUSH_S, return_when=asyncio.FIRST_EXCEPTION
                )
                self._write()
                for worker in ended:
                    worker.result()
                if not waiting:
                    self._settle(self.suspects.ended())
                # Workers that found nothing to do are gone when documents come back.
                missing = min(self.asking.concurrency - len(waiting), len(self._again))
        except UserError:
            self._stopping = True
            self.asking.endpoint.stop()  # replies that are on their way have been paid for
            await asyncio.wait(workers, timeout=LAST_REPLIES_S)
            raise
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
            self._write()
            await self.asking.close()

    async def _work(self, todo: Iterator[Document]) -> None:
        while document := self._next(todo):
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
                self._settle(self.suspects.succeeded())

    def _next(self, todo: Iterator[Document]) -> Document | None:
        if self._stopping:
            return None
        return self._again.popleft() if self._again else next(todo, None)

    async def _ask(self, document: Document) -> Row:
        """What is kept of the replies about a document."""
        settings, classifier = self.part.settings, self.asking.classifier
        cut = pieces(document.text, settings.piece_characters)
        if not settings.how.judges:
            style = settings.how.style(document.id, settings.seed)
            reply = await self._ask_piece(document, cut[0])
            return reply | ({"style": style} if style else {}) | ({"source_cut": True} if len(cut) > 1 else {})
        # The classifier first, for its answer is cheap: when it fails, no reply that was paid for is lost.
        classified = max(await classifier.scores(cut)) if classifier else None
        verdicts = self._verdicts.setdefault(document.number, [])
        for place in range(len(verdicts), len(cut)):
            if not verdicts or verdicts[-1]["score"] < HIGHEST:  # nothing is higher: the rest need not be asked
                verdicts.append(await self._ask_piece(document, cut[place], place))
        highest = max(self._verdicts.pop(document.number), key=lambda verdict: verdict["score"])
        if classified is not None:
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
            "text_hash": text_hash(document),
            **what,
            "model": settings.model,
            "prompt": settings.prompt,
        }

    def _fail(self, document: Document, reason: str, reply: str | None = None, by_server: bool = False) -> None:
        letter = self._row(document, {"reason": reason, "reply": reply})
        self._settle(self.suspects.failed(Failure(document, letter, by_server)))

    def _settle(self, failures: list[Failure]) -> None:
        """The server is well now, but may have been away when it gave no reply: then the document is asked about once more."""
        for failure in failures:
            number = failure.document.number
            if failure.by_server and number not in self._asked_again:
                self._asked_again.add(number)
                self._again.append(failure.document)
            else:
                self._bury([failure.letter])

    def _bury(self, rows: list[Row]) -> None:
        self._dead += rows
        self.settled, self.dead = self.settled + len(rows), self.dead + len(rows)

    def _write(self) -> None:
        replies, dead, self._replies, self._dead = self._replies, self._dead, [], []
        self.part.log.append(replies, dead)
        endpoint = self.asking.endpoint
        tokens = endpoint.tokens_in + endpoint.tokens_out
        self.progress(self.settled, self.total, dead=self.dead, retries=endpoint.retries, tokens=tokens)
