"""Judges that are models behind an OpenAI-compatible server: HarmBench's classifier by /completions, any LLM by /chat.

Many requests are under way at once, as many as the settings and the server's limits allow: fewer where it turns some
away (curricula/congestion.py). Rulings are handed on as soon as they are there: while one lot is written to the disk the
next gathers, so a kill costs what was in flight, no more.

Questions that got no reply are asked again at the end, as long as that brings some of them a reply. A question that the
server refuses or always falls over, or a reply that cannot be read, is "unparsed". When nothing but failures comes, the
server or the settings are at fault: then the judge stops, and says so, before it has written anything of that.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from aiolimiter import AsyncLimiter

from curricula.endpoint import LAST_REPLIES_S, Endpoint, NoAnswer, Refused
from curricula.errors import UsageError, UserError
from curricula.eval.judges.batch import rule_by_batch
from curricula.eval.judges.question import UNPARSED, Estimate, Question, Settle, Verdict
from curricula.eval.judges.settings import JudgeConfig
from curricula.eval.judges.templates import Template, version_of
from curricula.eval.judges.text import Clip

CHARACTERS_PER_TOKEN = 4
TRIES = 4  # for a body that is the API's


class ServedJudge:
    """Judges questions of one kind, that of its template."""

    def __init__(self, settings: JudgeConfig, template: Template, clip: Clip) -> None:
        self.settings, self.template, self.clip = settings, template, clip
        self.name = settings.full_name
        self.version = version_of(settings, template)

    def request(self, question: Question) -> dict[str, Any]:
        """The body of the request about a question."""
        prompt = self.template.fill(question, self.clip(question.response))
        settings = self.settings
        asked: dict[str, Any] = {
            "model": settings.model_name,
            "temperature": settings.temperature,
            "max_tokens": settings.max_tokens,
        }
        if self.completes:
            asked["prompt"] = prompt
        else:
            asked["messages"] = [{"role": "user", "content": prompt}]
        return {key: value for key, value in {**asked, **settings.request}.items() if value is not None}

    @property
    def completes(self) -> bool:
        """Whether the template holds the model's own turn marks, so that no chat template may be put around it."""
        return "[INST]" in self.template.text

    def read(self, reply: str) -> Verdict:
        # A server's JSON may hold half of a surrogate pair, which no file of rows can.
        return Verdict(label=self.template.read(reply), reply=reply.encode(errors="replace").decode())

    def estimate(self, questions: Sequence[Question]) -> Estimate:
        sizes = [sum(len(part) for part in msgspec.structs.astuple(question)) for question in questions]
        tokens_in = (sum(sizes) + len(questions) * len(self.template.text)) // CHARACTERS_PER_TOKEN
        tokens_out = len(questions) * self.settings.max_tokens
        prices = (self.settings.price_in, self.settings.price_out)
        dollars = None
        if prices[0] is not None and prices[1] is not None:
            dollars = (tokens_in * prices[0] + tokens_out * prices[1]) / 1e6 * (0.5 if self.settings.batch_api else 1)
        return Estimate(questions=len(questions), tokens_in=tokens_in, tokens_out=tokens_out, dollars=dollars)

    def rule(self, questions: Sequence[Question], settle: Settle, beside: Path, proven: bool) -> None:
        if questions:
            asyncio.run(self._rule(questions, settle, beside, proven))

    async def _rule(self, questions: Sequence[Question], settle: Settle, beside: Path, proven: bool) -> None:
        endpoint = connect(self.settings)
        try:
            if self.settings.batch_api:
                await rule_by_batch(self, endpoint, questions, settle, beside, proven)
            else:
                await _Asking(self, endpoint, settle, proven).all(questions)
        except (NoAnswer, Refused) as error:  # of a batch: single questions have their own ways
            raise UserError(
                f"judge {self.settings.model_name}: {error}; see to the server or the judge's settings, then the same "
                "command goes on"
            ) from None
        finally:
            await endpoint.close()


def connect(settings: JudgeConfig) -> Endpoint:
    """The judge's server. The key comes from OPENAI_API_KEY alone."""
    url = settings.url or os.environ.get("OPENAI_BASE_URL", "")
    if not url:
        raise UsageError("judge.url: name the judge's server, such as http://node7:8000/v1, or set OPENAI_BASE_URL")
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    return Endpoint(url, key, settings.timeout_s, settings.retries, TRIES, settings.concurrency, Pace(settings).wait)


def doubt(settings: JudgeConfig) -> str:
    """Why the judge's server would give no verdict now, "" if nothing speaks against it."""

    async def look() -> str:
        endpoint = connect(settings)
        try:
            return await endpoint.doubt(settings.model_name)
        finally:
            await endpoint.close()

    return asyncio.run(look())


class Pace:
    """As many requests and tokens as a minute allows, spread over the minute: a burst would only be refused."""

    def __init__(self, settings: JudgeConfig) -> None:
        requests, tokens = settings.requests_per_minute, settings.tokens_per_minute
        # Half a second's worth at once makes up for this process being held up; a whole one, which servers mostly
        # allow, would leave no room for what is late on its way.
        most = max(1.0, (requests or 0) / 120)
        self._requests = AsyncLimiter(most, 60 * most / requests) if requests else None
        self._second = max(1.0, (tokens or 0) / 60)
        self._tokens = AsyncLimiter(self._second, 60 * self._second / tokens) if tokens else None
        self._most_out = settings.max_tokens

    async def wait(self, request: dict[str, Any]) -> None:
        if self._requests:
            await self._requests.acquire()
        if self._tokens:
            left = len(json.dumps(request)) / CHARACTERS_PER_TOKEN + self._most_out
            while left > 0:
                await self._tokens.acquire(min(left, self._second))
                left -= self._second


class _Asking:
    """The questions under way, and the rulings that are not written down yet."""

    def __init__(self, judge: ServedJudge, endpoint: Endpoint, settle: Settle, proven: bool) -> None:
        self.judge, self.endpoint, self.settle = judge, endpoint, settle
        self._again: list[tuple[Question, NoAnswer]] = []
        self._proven = proven  # this judge has given verdicts, now or in an earlier run
        self._good_now = self._accused = False
        self._patience = judge.settings.patience
        self._answered = 0
        self._failures = 0  # since the last reply, or the beginning of the round
        self._held: list[tuple[Question, Verdict]] = []  # refused or unreadable, since the last good reply
        self._rulings: list[tuple[Question, Verdict]] = []
        self._some = asyncio.Event()
        self._writing: asyncio.Future[None] | None = None

    async def all(self, questions: Sequence[Question]) -> None:
        writer = asyncio.create_task(self._write_on())
        try:
            await self._ask(deque(questions))
            while self._again:
                again, self._again, before, self._failures = self._again, [], self._answered, 0
                await self._ask(deque(question for question, _ in again))
                if self._answered == before:
                    self._give_up()
            if self._held and not self._proven:
                self._accuse_of_no_verdicts()
            self._release()
        finally:
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)
            if self._writing:
                await self._writing
            if self._rulings:
                self.settle(self._rulings)

    async def _ask(self, left: deque[Question]) -> None:
        count = min(self.judge.settings.concurrency, len(left))
        workers = [asyncio.create_task(self._work(left)) for _ in range(count)]
        try:
            await asyncio.gather(*workers)
        except UserError:
            left.clear()
            self.endpoint.stop()  # replies that are on their way have been paid for
            await asyncio.wait(workers, timeout=LAST_REPLIES_S)
            raise
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)

    async def _work(self, left: deque[Question]) -> None:
        ask = self.endpoint.complete if self.judge.completes else self.endpoint.chat
        while left:
            question = left.popleft()
            request = self.judge.request(question)
            try:
                reply = await ask(request)
            except NoAnswer as no_answer:
                self._failures += 1
                window = self.endpoint.window  # one that turns requests away may only be asked too many at once
                if self._failures >= max(self._patience, window.most if no_answer.status == 429 else window.width):
                    self._accuse(str(no_answer))
                self._again.append((question, no_answer))
            except Refused as refused:
                self._failures = 0
                self._take(question, Verdict(label=UNPARSED, reply=f"refused: {refused}"))
            else:
                self._failures = 0
                self._take(question, self.judge.read(self.endpoint.without_key(reply.text)))

    def _give_up(self) -> None:
        """Questions are left that nobody answered, twice. Those that a server falls over which answers others now are unparsed,
        for they would stand in the way for ever. A server that is away is to blame itself, and one that falls over many."""
        for _, no_answer in self._again:
            fell_over = no_answer.status in (200, 500)  # it was there, and not busy
            if not (fell_over and self._good_now and len(self._again) < self._patience):
                self._accuse(str(no_answer))
        self._release()
        for question, no_answer in self._again:
            said = self.endpoint.shown(str(no_answer))
            self._rulings.append((question, Verdict(label=UNPARSED, reply=f"no answer: {said}")))
        self._again = []

    def _take(self, question: Question, ruling: Verdict) -> None:
        """Hand a ruling on. One that is no verdict waits for the next good one: too many in a row are no accident."""
        self._answered += 1
        if ruling.label != UNPARSED:
            self._proven = self._good_now = True
            self._held.append((question, ruling))
            self._release()
        elif not self._accused:
            self._held.append((question, ruling))
            if len(self._held) >= self._patience:
                self._accuse_of_no_verdicts()

    def _release(self) -> None:
        self._rulings += self._held
        self._held = []
        self._some.set()

    def _accuse_of_no_verdicts(self) -> None:
        count, (_, last) = len(self._held), self._held[-1]
        self._accuse(last.reply or "", f", {count} times in a row", " (patience, if so many are to be expected)")

    def _accuse(self, said: str, how_often: str = "", setting: str = "") -> None:
        """End the work; what is held is not written, whatever is still on its way."""
        self._accused, self._held = True, []
        raise UserError(
            f"judge {self.judge.settings.model_name} at {self.endpoint.host} gives no verdicts{how_often}, at last: "
            f"{self.endpoint.shown(said)}; see to the server or the judge's settings{setting}, then the same command goes on"
        )

    async def _write_on(self) -> None:
        """Write what has come, again and again; what comes meanwhile is written next."""
        while True:
            await self._some.wait()
            self._some.clear()
            rulings, self._rulings = self._rulings, []
            self._writing = asyncio.ensure_future(asyncio.to_thread(self.settle, rulings))
            await asyncio.shield(self._writing)  # when the judge stops, this is still written to its end
