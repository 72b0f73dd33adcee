"""The loop that asks many questions: what is under way, what is written, and how an error ends it."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Callable

import pytest

from curricula.asking import Answered, Asking, Decision, Failed, NoAnswer, Refused, Unaskable
from curricula.errors import UserError


class Lenient:
    """Blames the question for a refusal, and asks again once, at the end, where there was no answer."""

    def __init__(self) -> None:
        self.again: list[int] = []
        self.repeated = False

    def succeeded(self) -> Decision[int]:
        return Decision()

    def failed(self, failure: Failed[int]) -> Decision[int]:
        if not failure.by_server or self.repeated:
            return Decision(final=[failure])
        self.again.append(failure.question)
        return Decision()

    def exhausted(self) -> Decision[int]:
        again, self.again, self.repeated = self.again, [], True
        return Decision(again=again)


class Strict(Lenient):
    """Holds failures until the next good answer, and accuses the server at the third."""

    def __init__(self) -> None:
        super().__init__()
        self.held: list[Failed[int]] = []

    def succeeded(self) -> Decision[int]:
        held, self.held = self.held, []
        return Decision(final=held)

    def failed(self, failure: Failed[int]) -> Decision[int]:
        self.held.append(failure)
        if len(self.held) == 3:
            raise UserError("the server is at fault")
        return Decision()


def outcomes_of(ask: Callable, blame: Lenient, count: int, concurrency: int = 4, **more) -> list:
    """What is written when `count` questions are asked, whether or not the work ends in an error."""
    written: list = []
    stopped: list[None] = []
    asking = Asking(ask, blame, written.extend, concurrency, stop=lambda: stopped.append(None), **more)
    try:
        asyncio.run(asking.run(range(count)))
    except UserError:
        assert stopped
        return [*written, "stopped"]
    return written


def test_every_question_has_one_outcome_and_no_more_are_under_way_than_allowed():
    under_way = most = 0
    asked: list[int] = []

    async def ask(number: int) -> str:
        nonlocal under_way, most
        asked.append(number)
        under_way, most = under_way + 1, max(most, under_way + 1)
        await asyncio.sleep(0.001)
        under_way -= 1
        if number == 3:
            raise Refused("too long")
        if number == 5 or (number == 7 and asked.count(7) == 1):
            raise NoAnswer("away")
        if number == 9:
            raise Unaskable("empty")
        return str(number)

    written = outcomes_of(ask, Lenient(), 50)
    assert sorted(each.question for each in written) == list(range(50)) and most == 4
    assert {each.question for each in written if isinstance(each, Failed)} == {3, 5, 9}
    assert sorted(set(asked)) == list(range(50)) and len(asked) == 52, "those without an answer are asked again once"


class Returning(Lenient):
    """Asks again as soon as another question has a good answer."""

    def succeeded(self) -> Decision[int]:
        return super().exhausted() if self.again else Decision()


def test_a_question_that_comes_back_waits_for_no_slower_answer():
    answered: list[int] = []

    async def ask(number: int) -> str:
        if number == 1 and not blame.repeated:
            raise NoAnswer("away")
        for _ in range(6_000 if number == 0 else 1):
            if 1 in answered:
                break
            await asyncio.sleep(0.01)
        answered.append(number)
        return str(number)

    blame = Returning()
    assert len(outcomes_of(ask, blame, 3)) == 3 and answered == [2, 1, 0]


def test_questions_that_come_back_late_are_asked_at_once_and_not_one_by_one():
    """The good answer that shows that the server is well may be the last one."""
    under_way = most = 0

    async def ask(number: int) -> str:
        nonlocal under_way, most
        if number and not blame.repeated:
            raise NoAnswer("away")
        under_way, most = under_way + 1, max(most, under_way + 1)
        await asyncio.sleep(0.02)
        under_way -= 1
        return str(number)

    blame = Returning()
    assert len(outcomes_of(ask, blame, 9, concurrency=8)) == 9 and most == 8


def test_after_an_accusation_late_answers_are_written_and_no_failure_is(caplog):
    async def ask(number: int) -> str:
        await asyncio.sleep(0.05 if number == 0 else 0.001)
        if number:
            raise Refused("closed")
        return "late"

    gc.collect()  # what earlier tests left is not meant
    caplog.clear()
    assert outcomes_of(ask, Strict(), 50) == [Answered(0, "late"), "stopped"]
    gc.collect()
    assert not caplog.records  # asyncio would print a traceback for an error that nobody looked at


def test_a_disk_that_is_full_ends_the_work_at_once():
    asked = 0

    async def ask(number: int) -> str:
        nonlocal asked
        asked += 1
        await asyncio.sleep(0.05)  # the writing thread may be slow to begin
        return "good"

    def write(outcomes: list) -> None:
        if outcomes:
            raise UserError("no space left on the device")

    with pytest.raises(UserError, match="no space left"):
        asyncio.run(Asking(ask, Lenient(), write, 4, stop=lambda: None).run(range(10_000)))
    assert asked < 500


def test_no_two_writes_are_under_way_at_once():
    lock, written = threading.Lock(), []

    async def ask(number: int) -> str:
        await asyncio.sleep(0.01)
        return "good"

    def write(outcomes: list) -> None:
        assert lock.acquire(blocking=False)
        time.sleep(0.05)
        written.extend(outcomes)
        lock.release()

    for count in (0, 3):
        asyncio.run(Asking(ask, Lenient(), write, 1, stop=lambda: None).run(range(count)))
        assert len(written) == count


def test_with_a_pause_it_writes_that_often_even_nothing():
    sizes: list[int] = []

    async def ask(number: int) -> str:
        for _ in range(6_000):
            if len(sizes) >= 4:
                break
            await asyncio.sleep(0.01)
        return "good"

    began = time.monotonic()
    asking = Asking(ask, Lenient(), lambda outcomes: sizes.append(len(outcomes)), 4, stop=lambda: None, pause_s=0.05)
    asyncio.run(asking.run(range(4)))
    assert sizes[:4] == [0] * 4 and sum(sizes) == 4 and time.monotonic() - began > 4 * 0.05
