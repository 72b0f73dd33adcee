"""Ask a judge through the server's Batch API: upload files of requests and download files of replies, at half the price.

Replies come in any order and are matched by `custom_id`, the hash of the question. `<notes>.batches.json` records the open
batches and the files sent for them, so that a kill neither loses nor duplicates one: a batch that was made but not recorded is
found on the server by its file.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import tenacity
from openai import NotFoundError

from curricula.asking import NoAnswer, Refused, Reply
from curricula.durable import read_json, write_json
from curricula.endpoint import BadBody, Endpoint
from curricula.errors import UserError
from curricula.eval.judges.model_judge import ModelJudge
from curricula.eval.judges.question import UNPARSED, Question, Settle, Verdict, question_key

log = logging.getLogger(__name__)

MOST_REQUESTS, MOST_BYTES = 50_000, 200_000_000
"""Limits of OpenAI's Batch API for one file."""
POLL_S = 60.0
"""Seconds between two looks at a batch."""
OUTAGE_S = 3600.0
"""Longest outage of the server that a wait survives. The batch goes on meanwhile, or has ended."""
OVER = ("completed", "failed", "expired", "cancelled")
"""Final states of a batch."""


async def rule_by_batch(
    judge: ModelJudge, endpoint: Endpoint, questions: Sequence[Question], settle: Settle, notes: Path, proven: bool
) -> None:
    """Collect the results of open batches, make new ones for the questions left, and wait for these. Verdicts go to `settle`.

    If the judge is not `proven` (it has given no verdict before), a batch without any verdict is its fault and is not settled.
    """
    work = _Batches(judge, endpoint, settle, notes.with_name(f"{notes.name}.batches.json"), proven)
    left = {question_key(judge.name, judge.version, question): question for question in questions}
    while left:
        files, count = work.files(left), len(left)
        if not work.open:
            work.open = dict.fromkeys(files)
            work.save()
        for mark in list(work.open):
            await work.make(mark, files.get(mark))
        asks_these = not files.keys().isdisjoint(work.open)  # otherwise the open batches hold other questions
        for mark in list(work.open):
            await work.collect(mark, left)
        if asks_these and len(left) == count:
            raise UserError(
                f"{endpoint.host}: the batches of judge {judge.settings.model_name} came back without a reply; "
                "look at them there, or set judge.batch_api to false"
            )


def verdict_of(judge: ModelJudge, endpoint: Endpoint, reply: Reply) -> Verdict:
    """The verdict in a reply. The server's key is removed only from the stored text, because it can be any word, even "no"."""
    return msgspec.structs.replace(judge.read(reply), reply=endpoint.without_key(reply.text))


class _Batches:
    """The open batches of one file of verdicts, and the record of them."""

    def __init__(self, judge: ModelJudge, endpoint: Endpoint, settle: Settle, path: Path, proven: bool) -> None:
        self.judge, self.endpoint, self.settle, self.path, self.proven = judge, endpoint, settle, path, proven
        self.model = judge.settings.model_name
        self.url: Any = "/v1/completions" if judge.template.completes else "/v1/chat/completions"
        recorded = read_json(path) if path.exists() else {}
        if recorded.get("version") != judge.version:
            recorded = {}
        self.open: dict[str, str | None] = recorded.get("open", {})
        """The open batches' ids on the server, by mark; None until one is made, or found there."""
        self.uploads: dict[str, list[str]] = recorded.get("uploads", {})
        """Ids of the files sent for open batches, by mark."""

    def _close(self, mark: str) -> None:
        self.open.pop(mark)
        self.uploads.pop(mark, None)
        self.save()

    def save(self) -> None:
        if self.open:
            write_json(self.path, {"version": self.judge.version, "open": self.open, "uploads": self.uploads})
        else:
            self.path.unlink(missing_ok=True)

    def files(self, left: dict[str, Question]) -> dict[str, bytes]:
        """The files of requests for the questions left, by mark: the hash of the file."""
        files: list[list[bytes]] = [[]]
        size = 0
        for key, question in sorted(left.items()):
            request = {"custom_id": key, "method": "POST", "url": self.url, "body": self.judge.request(question)}
            line = json.dumps(request).encode() + b"\n"
            if files[-1] and (len(files[-1]) == MOST_REQUESTS or size + len(line) > MOST_BYTES):
                files.append([])
                size = 0
            files[-1].append(line)
            size += len(line)
        return {hashlib.sha256(data).hexdigest()[:32]: data for data in map(b"".join, files)}

    async def make(self, mark: str, data: bytes | None) -> None:
        """Make the batch `mark` from `data`, unless the server has one that a killed process made.

        Without `data`, its questions have changed: it is forgotten if the server does not have it.
        """
        if self.open[mark]:
            return
        uploaded = ""

        async def find_or_make(client: Any) -> str:
            nonlocal uploaded
            if sent := self.uploads.get(mark):
                async for batch in client.batches.list(limit=100):
                    if batch.input_file_id in sent:
                        return batch.id
            if data is None:
                return ""
            if not uploaded:
                file = await client.files.create(file=(f"{mark}.jsonl", data), purpose="batch")
                uploaded = str(file.id)
                self.uploads.setdefault(mark, []).append(uploaded)
                self.save()
            # The client would send this again if the server made the batch and failed to say so, and both would be paid for.
            batch = await client.with_options(max_retries=0).batches.create(
                input_file_id=uploaded, endpoint=self.url, completion_window="24h"
            )
            return batch.id

        id = await self._get(find_or_make, tenacity.stop_after_attempt(self.endpoint.tries))
        if id is None:
            raise UserError(
                f"{self.endpoint.host} has no Batch API at this address (status 404); set judge.batch_api to false, or "
                "correct the address"
            )
        self.open[mark] = id
        if id:
            self.save()
        else:
            self._close(mark)

    async def collect(self, mark: str, left: dict[str, Question]) -> None:
        """Wait for the batch to end, settle its verdicts, and take their questions out of `left`."""
        batch = await self._ended(mark)
        verdicts = [(left.pop(key), verdict) for key, verdict in await self._download(mark, batch) if key in left]
        none_good = all(verdict.label == UNPARSED for _, verdict in verdicts)
        self.proven = self.proven or not none_good
        if verdicts and none_good and (not self.proven or len(verdicts) >= self.judge.settings.patience):
            self._close(mark)
            last = self.endpoint.shown(verdicts[-1][1].reply or "")
            raise UserError(
                f"judge {self.model} at {self.endpoint.host} gave no verdict: its replies to all {len(verdicts)} questions of "
                f"batch {batch.id} were like {last!r}; check the judge's settings (patience, if such replies are expected)"
            )
        self.settle(verdicts)
        self._close(mark)

    async def _ended(self, mark: str) -> Any:
        """The batch `mark`, once it has ended. Raises UserError if it failed, or if the server does not have it."""
        id = self.open[mark]

        async def look(client: Any) -> tuple[Any, bool]:
            batch = await client.batches.retrieve(id)
            return batch, batch.status in OVER

        while (found := await self._get(look)) and not found[1]:
            await asyncio.sleep(POLL_S)
        if not found:
            raise UserError(
                f"{self.endpoint.host} has no batch {id}, which {self.path} names; give the address and the key that it "
                "was made with, or remove that file to ask and pay again"
            )
        batch, _ = found
        if batch.status == "failed":
            reason = "; ".join(str(error.message) for error in (batch.errors.data or [])) if batch.errors else ""
            self._close(mark)
            raise UserError(
                f"{self.endpoint.host} refuses the batch {id} ({self.endpoint.shown(reason)}); correct the judge's settings, "
                "wait until other batches there have ended, or set judge.batch_api to false"
            )
        return batch

    async def _download(self, mark: str, batch: Any) -> list[tuple[str, Verdict]]:
        """The verdicts on the questions of a batch, by the keys of the questions. Raises UserError if its replies are gone."""
        verdicts: list[tuple[str, Verdict]] = []
        for file_id in filter(None, (batch.output_file_id, batch.error_file_id)):

            async def read(client: Any, file_id: str = file_id) -> list[tuple[str, Verdict]]:
                file = await client.files.content(file_id)
                return self._read(file.content)

            found = await self._get(read)
            if found is not None:
                verdicts += found
            elif file_id == batch.output_file_id:
                self._close(mark)
                raise UserError(
                    f"{self.endpoint.host} no longer has the replies of batch {batch.id}; run the same command again to ask "
                    "its questions, and pay for them, a second time"
                )
        return verdicts

    async def _get(self, ask: Callable[..., Awaitable[Any]], stop: tenacity.stop.stop_base | None = None) -> Any:
        """The result of a client method, asked for again every minute while the server is out, until `stop`.

        None if the server does not have what is asked for, or has deleted it.
        """

        async def found(client: Any) -> Any:
            try:
                return await ask(client)
            except NotFoundError:
                return None

        asking = tenacity.AsyncRetrying(
            stop=stop or tenacity.stop_after_delay(OUTAGE_S),
            wait=tenacity.wait_fixed(POLL_S),
            retry=tenacity.retry_if_exception_type(NoAnswer),
            before_sleep=tenacity.before_sleep_log(log, logging.WARNING),
            reraise=True,
        )
        return await asking(self.endpoint.call, found, self.model)

    def _read(self, content: bytes) -> list[tuple[str, Verdict]]:
        """The verdicts in a file of replies. Requests that expired, met a server error or were cut off are left out.

        Raises ValueError for something else than such a file, such as a proxy's page: its questions would be paid for again.
        """
        verdicts: list[tuple[str, Verdict]] = []
        are_replies = not content.strip()
        for line in content.splitlines():
            try:
                row = json.loads(line)
                key, response = row["custom_id"], row.get("response") or {}
                are_replies = True
                status, body = response.get("status_code"), response.get("body") or {}
                if status == 200:
                    verdict = verdict_of(self.judge, self.endpoint, self.endpoint.read_choice(body["choices"][0]))
                    verdicts.append((key, verdict))
                elif status in (400, 413, 422):
                    reason = self.endpoint.shown(json.dumps(body))
                    verdicts.append((key, Verdict(label=UNPARSED, reply=f"refused: status {status}: {reason}")))
            except Refused as error:
                verdicts.append((key, Verdict(label=UNPARSED, reply=f"refused: {error}")))
            except (BadBody, ValueError, LookupError, TypeError, AttributeError, RecursionError):
                continue  # asked again, like missing ones
        if not are_replies:
            raise ValueError
        return verdicts
