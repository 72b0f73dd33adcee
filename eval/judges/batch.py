"""Questions to a judge by the server's Batch API: files of requests up, files of replies down, at half the price.

Replies come in any order and are joined by `custom_id`, the hash of the question. Which batches are open is noted in
`<beside>.batches.json` before and after each is made, so that a kill neither loses nor doubles one: a batch that was made
but not noted is found again on the server by its mark. One that brought no verdict is noted as spent, so that a new one
is made.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curricula.durable import read_json, write_json
from curricula.endpoint import Endpoint
from curricula.errors import UserError
from curricula.eval.judges.question import UNPARSED, Question, Settle, Verdict, question_key

if TYPE_CHECKING:
    from curricula.eval.judges.served import ServedJudge

MOST_REQUESTS = 50_000  # of OpenAI's Batch API, a file
MOST_BYTES = 200_000_000
MARK = "curricula"  # the key in a batch's metadata
OVER = ("completed", "failed", "expired", "cancelled")


async def rule_by_batch(
    judge: ServedJudge, endpoint: Endpoint, questions: Sequence[Question], settle: Settle, beside: Path, proven: bool
) -> None:
    """Collect what open batches have, make new ones of what is left, and wait for them; `settle` gets every ruling.

    `proven` says that this judge has ruled before: else a batch without any verdict is the judge's fault, and is not settled.
    """
    work = _Batches(judge, endpoint, settle, beside.with_name(f"{beside.name}.batches.json"), proven)
    left = {question_key(judge.name, judge.version, question): question for question in questions}
    while left:
        before = len(left)
        if not work.open:
            work.note([mark for mark, _ in work.files(left)])
        by_mark = dict(work.files(left))
        for mark in list(work.open):
            await work.make(mark, by_mark.get(mark))
        of_today = any(mark in by_mark for mark in work.open)  # else only batches of other questions are over
        for mark in list(work.open):
            await work.collect(mark, left)
        if of_today and len(left) == before:
            raise UserError(
                f"{endpoint.host}: the batches of judge {judge.settings.model_name} came back without a reply; "
                "see to them there, or set judge.batch_api to false"
            )


class _Batches:
    """The open batches by their marks, each with its id on the server once it is known."""

    def __init__(self, judge: ServedJudge, endpoint: Endpoint, settle: Settle, path: Path, proven: bool) -> None:
        self.judge, self.endpoint, self.settle, self.path, self.proven = judge, endpoint, settle, path, proven
        self.model = judge.settings.model_name
        self.url = "/v1/completions" if judge.completes else "/v1/chat/completions"
        noted = read_json(path) if path.exists() else {}
        if noted.get("version") != judge.version:
            noted = {}
        self.open: dict[str, str | None] = noted.get("open", {})
        self.spent: list[str] = noted.get("spent", [])  # ids of batches that are over and brought no verdict

    def note(self, marks: Sequence[str]) -> None:
        self.open |= dict.fromkeys(marks)
        self._save()

    def _close(self, mark: str, spent: bool) -> None:
        id = self.open.pop(mark)
        self.spent += [id] if spent and id else []
        self._save()

    def _save(self) -> None:
        if self.open or self.spent:
            write_json(self.path, {"version": self.judge.version, "open": self.open, "spent": self.spent})
        else:
            self.path.unlink(missing_ok=True)

    def files(self, left: dict[str, Question]) -> Iterator[tuple[str, bytes]]:
        """Each file of requests with its mark: a hash of what it holds."""
        lines: list[bytes] = []
        size = 0
        for key, question in sorted(left.items()):
            asked = {"custom_id": key, "method": "POST", "url": self.url, "body": self.judge.request(question)}
            line = json.dumps(asked).encode() + b"\n"
            if lines and (len(lines) == MOST_REQUESTS or size + len(line) > MOST_BYTES):
                yield _marked(lines)
                lines, size = [], 0
            lines.append(line)
            size += len(line)
        if lines:
            yield _marked(lines)

    async def make(self, mark: str, data: bytes | None) -> None:
        """Make the batch `mark` unless it is there; forget it when it is not and its questions have changed."""
        if self.open[mark]:
            return
        self.open[mark] = await self._found(mark)
        if not self.open[mark] and data:
            file = await self.endpoint.call(
                lambda client: client.files.create(file=(f"{mark}.jsonl", data), purpose="batch"), self.model
            )
            url: Any = self.url
            batch = await self.endpoint.call(
                lambda client: client.batches.create(
                    input_file_id=file.id, endpoint=url, completion_window="24h", metadata={MARK: mark}
                ),
                self.model,
            )
            self.open[mark] = batch.id
        if not self.open[mark]:
            del self.open[mark]
        self._save()

    async def _found(self, mark: str) -> str | None:
        """The id of a batch that was made before a kill, by the mark it was given; not of one that is spent."""

        async def search(client: Any) -> str | None:
            async for batch in client.batches.list(limit=100):
                if (batch.metadata or {}).get(MARK) == mark and batch.id not in self.spent:
                    return batch.id
            return None

        return await self.endpoint.call(search, self.model)

    async def collect(self, mark: str, left: dict[str, Question]) -> None:
        """Wait until the batch is over, settle what it brought, and take those questions out of `left`."""
        id = self.open[mark]
        assert id is not None
        while True:
            batch = await self.endpoint.call(lambda client: client.batches.retrieve(id), self.model)
            if batch.status in OVER:
                break
            await asyncio.sleep(self.judge.settings.batch_poll_s)
        if batch.status == "failed":
            said = "; ".join(str(error.message) for error in (batch.errors.data or [])) if batch.errors else ""
            self._close(mark, spent=True)
            raise UserError(
                f"{self.endpoint.host} refuses the batch {id} ({self.endpoint.shown(said)}); mend the judge"
            )
        rulings = []
        for file in (batch.output_file_id, batch.error_file_id):
            if file:
                for key, ruling in self._read(await self._content(file)):
                    if key in left:
                        rulings.append((left.pop(key), ruling))
        self.proven = self.proven or any(ruling.label != UNPARSED for _, ruling in rulings)
        none_good = all(ruling.label == UNPARSED for _, ruling in rulings)
        if rulings and none_good and (not self.proven or len(rulings) >= self.judge.settings.patience):
            self._close(mark, spent=True)
            said = self.endpoint.shown(rulings[-1][1].reply or "")
            raise UserError(
                f"judge {self.model} at {self.endpoint.host} gives no verdicts: to all {len(rulings)} questions of batch {id} "
                f"{said!r} or the like; see to the judge's settings (patience, if so many are to be expected)"
            )
        self.settle(rulings)
        self._close(mark, spent=none_good)

    async def _content(self, file: str) -> bytes:
        return (await self.endpoint.call(lambda client: client.files.content(file), self.model)).content

    def _read(self, content: bytes) -> Iterator[tuple[str, Verdict]]:
        """The rulings in a file of replies; requests that expired or met an error of the server are left out."""
        for line in content.splitlines():
            try:
                row = json.loads(line)
                key, response = row["custom_id"], row.get("response") or {}
                status, body = response.get("status_code"), response.get("body") or {}
                if status == 200:
                    choice = body["choices"][0]
                    text = choice["text"] if self.judge.completes else choice["message"].get("content") or ""
                    yield key, self.judge.read(self.endpoint.without_key(text))
                elif status in (400, 413, 422):
                    said = self.endpoint.shown(json.dumps(body))
                    yield key, Verdict(label=UNPARSED, reply=f"refused: status {status}: {said}")
            except (ValueError, LookupError, TypeError, AttributeError):
                continue  # asked again, as what is missing is


def _marked(lines: list[bytes]) -> tuple[str, bytes]:
    data = b"".join(lines)
    return hashlib.sha256(data).hexdigest()[:32], data
