"""Ask many questions at once, keep the answers safe, and tell a bad question from a broken server.

The loop knows nothing about HTTP. `ask` is any coroutine function; it returns an answer or raises one of the errors below. A
`Blame` decides what a failure means: the question itself is at fault, or it is asked again, or the server is at fault and the
work ends. Answers are written to disk while other questions are under way, so a kill costs only what was in flight.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from curricula.errors import UserError

LAST_REPLIES_S = 10.0
"""Seconds to wait for the replies under way when an error ends the work: they have been paid for."""
CHARACTERS_PER_TOKEN = 4
"""Assumed when tokens are estimated without a tokenizer."""

Question = TypeVar("Question")
Answer = TypeVar("Answer")


class Refused(Exception):
    """The server will never accept this request, for example because it is too long."""


class NoAnswer(Exception):
    """The server did not answer, however often it was asked."""

    def __init__(self, reason: str, status: int | None = None):
        super().__init__(reason)
        self.status = status
        """The HTTP status of the last attempt, if there was one."""


class Unreadable(Exception):
    """A reply that is not what was asked for."""

    def __init__(self, reason: str, reply: str | None):
        super().__init__(reason)
        self.reply = reply


class Unaskable(Exception):
    """The question cannot be sent, for example because its text is empty. The server is not involved."""


class Stopped(Exception):
    """A request was not sent because the work has ended."""


@dataclass(frozen=True)
class Reply:
    """What a model said."""

    text: str
    cut: bool
    """Whether the text was cut short, at max_tokens or by a filter of the server."""


def after_thoughts(reply: str) -> str:
    """A reply without the thoughts that reasoning models write first and some servers leave in; "" if it ends within them."""
    said = reply.rpartition("</think>")[2].strip()
    return "" if said.startswith("<think>") else said


@dataclass(frozen=True)
class Answered(Generic[Question, Answer]):
    question: Question
    answer: Answer


@dataclass(frozen=True)
class Failed(Generic[Question]):
    """A question without a good answer."""

    question: Question
    error: Refused | NoAnswer | Unreadable | Unaskable

    @property
    def by_server(self) -> bool:
        """Whether there was no reply at all."""
        return isinstance(self.error, NoAnswer)

    @property
    def by_crash(self) -> bool:
        """Whether there was no reply, but a status of a server that fails at this question or keeps its gateway waiting. With
        other statuses, or none, it may be busy or gone."""
        return isinstance(self.error, NoAnswer) and self.error.status in (200, 500, 504, 524)


@dataclass(frozen=True)
class Decision(Generic[Question]):
    """What a `Blame` decides about the failures it knows. Those in neither list are still undecided."""

    final: list[Failed[Question]] = field(default_factory=list)
    """Failures for which the question itself is to blame; they are recorded."""
    again: list[Question] = field(default_factory=list)
    """Questions to ask again."""


class Blame(Protocol[Question]):
    """Decides who is at fault. If it is the server, a method raises UserError, and undecided failures are not recorded."""

    def succeeded(self) -> Decision[Question]:
        """A question was answered well."""

    def failed(self, failure: Failed[Question]) -> Decision[Question]:
        """A question failed."""

    def exhausted(self) -> Decision[Question]:
        """No question is left or under way. The work ends unless the decision lists questions to ask again."""


Outcomes = Sequence[Answered[Question, Answer] | Failed[Question]]


class Asking(Generic[Question, Answer]):
    """Questions under way, and outcomes that are not on disk yet.

    `write` makes outcomes durable. It runs in a thread, one call at a time, as soon as there are outcomes; with `pause_s` it
    runs at this interval instead, even without outcomes. `stop` is called when an error ends the work and must prevent further
    requests.
    """

    def __init__(
        self,
        ask: Callable[[Question], Awaitable[Answer]],
        blame: Blame[Question],
        write: Callable[[Outcomes[Question, Answer]], None],
        concurrency: int,
        stop: Callable[[], None],
        pause_s: float = 0.0,
    ):
        self._ask, self._blame, self._write, self._stop = ask, blame, write, stop
        self._concurrency, self._pause_s = concurrency, pause_s
        self._again: deque[Question] = deque()
        self._outcomes: list[Answered[Question, Answer] | Failed[Question]] = []
        self._some_outcome = asyncio.Event()
        self._writing: asyncio.Future[None] | None = None
        self._ended = False
        """Whether an error has ended the work."""

    async def run(self, questions: Iterable[Question]) -> None:
        """Ask all of `questions`. Raises UserError if the server is at fault; answers received before that are kept."""
        left, writer = iter(questions), asyncio.create_task(self._keep_writing())
        under_way: set[asyncio.Task[None]] = set()
        try:
            while True:
                while len(under_way) < self._concurrency and (question := self._next(left)) is not None:
                    under_way.add(asyncio.create_task(self._ask_about(question)))
                if under_way:
                    done, _ = await asyncio.wait({*under_way, writer}, return_when=asyncio.FIRST_COMPLETED)
                    for task in done:
                        task.result()
                    under_way -= done
                else:
                    self._decide(self._blame.exhausted)
                    if not self._again:
                        break
        except UserError:
            self._ended = True
            self._stop()
            if under_way:
                await asyncio.wait(under_way, timeout=LAST_REPLIES_S)
            raise
        finally:
            for task in (*under_way, writer):
                task.cancel()
            await asyncio.gather(*under_way, writer, return_exceptions=True)
            if self._writing:
                await self._writing
            self._write(self._outcomes)

    def _next(self, left: Iterator[Question]) -> Question | None:
        """A question to ask again if there is one: among other questions, it shows whether the server is at fault."""
        return self._again.popleft() if self._again else next(left, None)

    async def _ask_about(self, question: Question) -> None:
        try:
            answer = await self._ask(question)
        except Unaskable as error:
            self._note_outcome(Failed(question, error))
        except (Refused, NoAnswer, Unreadable) as error:
            self._decide(self._blame.failed, Failed(question, error))
        else:
            self._note_outcome(Answered(question, answer))
            self._decide(self._blame.succeeded)

    def _decide(self, decide: Callable[..., Decision[Question]], *failure: Failed[Question]) -> None:
        """Carry out what the blame decides. It is not asked again after it accuses the server: late replies change nothing."""
        if self._ended:
            return
        try:
            decision = decide(*failure)
        except UserError:
            self._ended = True
            raise
        for final in decision.final:
            self._note_outcome(final)
        self._again += decision.again

    def _note_outcome(self, outcome: Answered[Question, Answer] | Failed[Question]) -> None:
        self._outcomes.append(outcome)
        self._some_outcome.set()

    async def _keep_writing(self) -> None:
        """Write outcomes as they arrive; those that arrive during a write are written next."""
        while True:
            await (asyncio.sleep(self._pause_s) if self._pause_s else self._some_outcome.wait())
            self._some_outcome.clear()
            outcomes, self._outcomes = self._outcomes, []
            self._writing = asyncio.ensure_future(asyncio.to_thread(self._write, outcomes))
            await asyncio.shield(self._writing)  # a write runs to its end even if the work is stopped
