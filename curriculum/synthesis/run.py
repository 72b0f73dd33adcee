"""Complete one shard of a synthesis: ask about every document without a reply, log the outcomes, write the tables at the end.

Every reply, even about one piece of a document, is on the disk half a second after it came. A document that fails becomes a
dead letter. When the server is at fault, the run ends, and the same command continues later.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Set
from typing import Any

from curricula.asking import Answered, Asking, Decision, Failed, Outcomes, Refused, Unaskable, Unreadable
from curricula.curriculum.sources.documents import Document
from curricula.curriculum.synthesis.files import Log, Row, answered, document_id, mark_unfinished, text_hash, write_tables
from curricula.curriculum.synthesis.kinds import HIGHEST, SCORES, pieces
from curricula.curriculum.synthesis.shard import SynthesisShard
from curricula.durable import exclusive_lock
from curricula.endpoint import Endpoint, retrying
from curricula.errors import UserError
from curricula.progress import Progress, silent
from curricula.terminal import plural

PAUSE_S = 0.5
"""Seconds between two writes to the log."""
PATIENCE = 16
"""Failures in a row after which the server is to blame; at least the number of requests under way."""
REFUSED_IN_A_ROW = 200
"""Refusals in a row that end the run even after good replies. The account can be used up: some servers answer 400 then."""


def run_shard(
    shard: SynthesisShard,
    endpoint: Endpoint,
    classifier: Endpoint | None,
    retry_dead: bool = False,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Complete a shard. Returns its state and what this run did for it.

    `classifier` is the server of the second judge of scores, if the settings name one. Raises UserError when a server is at
    fault. The replies until then are kept.
    """
    shard.agree()
    with exclusive_lock(shard.log / f"{shard.name}.lock"):
        mark_unfinished(shard)
        log = Log.read(shard)
        left = log.left(retry_dead)
        if left:  # refuse changed documents before replies about others are paid for and mixed in
            for _ in answered(log):
                pass
        asyncio.run(_Run(log, endpoint, classifier, len(left), progress).ask_about(left))
        if left:
            log = Log.read(shard)
        log.compact()
        tables = write_tables(log)
        complete = mark_unfinished(shard)
    return {
        "part": shard.number,
        "parts": shard.settings.parts,
        "parts_complete": complete,
        "documents": len(shard.numbers),
        "done": len(log.done),
        "dead": len(log.dead),
        "asked": len(left),
        "requests": endpoint.requests,
        "retries": endpoint.retries,
        "tokens_in": endpoint.tokens_in,
        "tokens_out": endpoint.tokens_out,
        "tables": list(map(str, tables)),
        "dead_letters": str(log.letters.path) if log.dead else None,
    }


class DocumentBlame:
    """Decides whether a document or the server is at fault.

    A document that alone fails becomes a dead letter, because it would only fail again. But a server that is down, or a model
    that never answers as it should, fails all documents. A good reply about another document shows which is the case. Even
    then, a failure without any reply can be due to a short outage, so such a document is asked about once more. If it is one of
    the last and fails again, no good reply can follow; then it is at fault only if the server is up and not busy.
    """

    def __init__(self, patience: int, proven: bool, dead: Set[int]):
        self._patience = patience
        """Failures in a row after which the server is at fault."""
        self._dead = dead
        """Numbers of documents that were refused or failed before. That they are refused again says nothing of the account."""
        self._proven = proven
        """Whether this server and model gave a good reply in this run or an earlier one."""
        self._good_now = False
        self._refused = 0
        """Refusals in a row."""
        self._failures: list[Failed[Document]] = []
        self._asked_again: set[int] = set()

    def succeeded(self) -> Decision[Document]:
        self._proven = self._good_now = True
        self._refused = 0
        return self._clear_server()

    def failed(self, failure: Failed[Document]) -> Decision[Document]:
        self._failures.append(failure)
        if not isinstance(failure.error, Refused):
            self._refused = 0
        elif failure.question.number not in self._dead:
            self._refused += 1
        if self._refused >= REFUSED_IN_A_ROW:
            raise UserError(
                f"{self._refused} documents in a row were refused, the last with: {failure.error}; check the server and the "
                "account, then run the same command again, with --retry-dead if the documents are fine"
            )
        if self._proven and not any(failure.by_server for failure in self._failures):
            return self._clear_server()
        if len(self._failures) >= self._patience:
            raise self._accusation()
        return Decision()

    def exhausted(self) -> Decision[Document]:
        for failure in self._failures:
            is_first = failure.question.number not in self._asked_again
            if failure.by_server and not (self._good_now and (is_first or failure.by_crash)):
                raise self._accusation()
        return self._clear_server()

    def _clear_server(self) -> Decision[Document]:
        """The failures are the documents' own. If there was no reply, the server may have been away: ask once more."""
        decision: Decision[Document] = Decision()
        for failure in self._failures:
            number = failure.question.number
            if failure.by_server and number not in self._asked_again:
                self._asked_again.add(number)
                decision.again.append(failure.question)
            else:
                decision.final.append(failure)
        self._failures = []
        return decision

    def _accusation(self) -> UserError:
        return UserError(
            f"the last {plural(len(self._failures), 'document')} failed, most recently with: {self._failures[-1].error}; "
            "check the server, the model and the options, then run the same command again"
        )


class _Run:
    """One run over a shard: what is asked about each document, and what is logged of the outcome."""

    def __init__(self, log: Log, endpoint: Endpoint, classifier: Endpoint | None, total: int, progress: Progress):
        self._shard, self._log, self._progress = log.shard, log, progress
        self._endpoint, self._classifier = endpoint, classifier
        self._total, self._settled, self._dead = total, 0, 0
        self._verdicts: dict[tuple[int, str], list[Row]] = {}
        """Verdicts on the first pieces of documents that have pieces left, by number and text hash."""
        self._new_pieces: deque[Row] = deque()
        """Verdicts on pieces that are not on the disk yet."""

    async def ask_about(self, left: set[int]) -> None:
        concurrency = self._endpoint.window.most
        self._verdicts = self._log.read_pieces(left)
        blame = DocumentBlame(max(PATIENCE, concurrency), bool(self._log.done), self._log.dead)
        asking: Asking[Document, Row] = Asking(self._ask, blame, self._write, concurrency, self._endpoint.stop, PAUSE_S)
        try:
            await asking.run(document for document in self._shard.read() if document.number in left)
        finally:
            await self._endpoint.close()
            if self._classifier:
                await self._classifier.close()

    async def _ask(self, document: Document) -> Row:
        """The row to keep of the replies about a document."""
        if document.odd or not document.text.strip():
            raise Unaskable(document.odd or "empty")
        settings = self._shard.settings
        cut = pieces(document.text, settings.piece_characters)
        if settings.how.judges:
            return await self._scored(document, cut)
        style = settings.how.style(document.id, settings.seed)
        reply = await self._ask_piece(document, cut[0])
        return reply | ({"style": style} if style else {}) | ({"source_cut": True} if len(cut) > 1 else {})

    async def _scored(self, document: Document, cut: list[str]) -> Row:
        """The highest verdict on the pieces of a document, and the classifier's score if that is higher."""
        # The classifier is cheap, so it goes first: if it fails, no reply that was paid for is lost.
        classified = await self._classified(self._classifier, cut) if self._classifier else None
        key = document.number, text_hash(document)
        verdicts = self._verdicts.setdefault(key, [])

        def is_decided() -> bool:
            return len(verdicts) >= len(cut) or (bool(verdicts) and verdicts[-1]["score"] == HIGHEST)

        while not is_decided():
            place = len(verdicts)
            verdicts.append(await self._ask_piece(document, cut[place], place))
            if not is_decided():
                piece = {"number": document.number, "text_hash": key[1], "piece": place, "verdict": dict(verdicts[-1])}
                self._new_pieces.append(piece)
        highest = max(self._verdicts.pop(key), key=lambda verdict: verdict["score"])
        if classified is not None:
            highest |= {"model_score": highest["score"], "classifier_score": classified}
            highest["score"] = max(highest["score"], classified)
        return highest

    async def _classified(self, classifier: Endpoint, cut: list[str]) -> int:
        """The highest of the classifier's scores of the pieces: each the most probable of its classes, which are 0 to 5.

        The published one, locuslab/safety-classifier_gte-large-en-v1.5, brings code of its own, which transformers would have
        to execute; vLLM has its architecture built in.
        """
        rows = await classifier.classify(self._shard.settings.classifier, cut)
        if counts := {len(row) for row in rows} - {len(SCORES)}:
            raise UserError(
                f"classifier at {classifier.host}: has {counts.pop()} classes instead of the {len(SCORES)} scores 0 to 5; name "
                "another classifier"
            )
        return max(max(SCORES, key=row.__getitem__) for row in rows)

    async def _ask_piece(self, document: Document, piece: str, place: int = 0) -> Row:
        kind, endpoint = self._shard.settings.how, self._endpoint
        async for attempt in retrying(endpoint.tries, Unreadable):
            with attempt:
                count = attempt.retry_state.attempt_number
                endpoint.retries += count > 1
                reply = await endpoint.chat(self._shard.request(document, piece, place, count))
                try:
                    return kind.read(reply.text) | ({"cut": True} if reply.cut and not kind.judges else {})
                except Unreadable as error:
                    why = f"{error}, and was cut short (--max-tokens)" if reply.cut else str(error)
                    raise Unreadable(why, error.reply) from None
        raise AssertionError("retrying returns or raises")

    def _write(self, outcomes: Outcomes[Document, Row]) -> None:
        replies = [self._row(each.question, each.answer) for each in outcomes if isinstance(each, Answered)]
        dead = [self._row(each.question, self._reason(each)) for each in outcomes if isinstance(each, Failed)]
        pieces = [self._new_pieces.popleft() for _ in range(len(self._new_pieces))]
        self._log.append(replies, dead, pieces)
        self._settled, self._dead = self._settled + len(outcomes), self._dead + len(dead)
        self._progress(self._settled, self._total, dead=self._dead, retries=self._endpoint.retries)

    def _row(self, document: Document, content: Row) -> Row:
        settings = self._shard.settings
        return {
            "number": document.number,
            "id": document_id(document),
            "text_hash": text_hash(document),
            **content,
            "model": settings.model,
            "prompt": settings.prompt,
        }

    def _reason(self, failure: Failed[Document]) -> Row:
        reply = failure.error.reply if isinstance(failure.error, Unreadable) else None
        shown = None if reply is None else self._endpoint.without_key(reply)
        return {"reason": str(failure.error), "reply": shown}
