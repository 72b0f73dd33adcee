"""The congestion window: never more at once than it says, narrower once for each lot that is turned away, wide again after."""

from __future__ import annotations

import asyncio
import math

from hypothesis import given, settings
from hypothesis import strategies as st

from curriculum.congestion import DECREASE, CongestionWindow


async def lot(window: CongestionWindow, troubled: bool) -> None:
    """As many requests as the window lets in together, all with the same end."""
    entered = [await window.enter() for _ in range(window.width)]
    await asyncio.sleep(0.001)  # the loop's clock moves on
    for each in entered:
        window.leave(each, troubled)
    await asyncio.sleep(0.001)


async def places(window: CongestionWindow) -> int:
    """How many can enter now; they stay."""
    count = 0
    while True:
        try:
            await asyncio.wait_for(window.enter(), 0.005)
        except asyncio.TimeoutError:
            return count
        count += 1


def test_requests_that_were_under_way_together_narrow_it_once() -> None:
    async def run() -> None:
        window = CongestionWindow(50)
        await lot(window, troubled=True)
        assert window.width == math.floor(50 * DECREASE)
        await lot(window, troubled=True)
        assert window.width == math.floor(math.floor(50 * DECREASE) * DECREASE)
        assert await places(window) == window.width

    asyncio.run(run())


def test_it_never_closes_and_opens_again_by_one_a_lot() -> None:
    async def run() -> None:
        window = CongestionWindow(6)
        for _ in range(20):
            await lot(window, troubled=True)
        assert window.width == 1
        for width in (2, 3, 4, 5, 6, 6):
            await lot(window, troubled=False)
            assert window.width == width
        assert await places(window) == 6

    asyncio.run(run())


@settings(deadline=None, max_examples=60)
@given(most=st.integers(1, 12), script=st.lists(st.sampled_from(["enter", "good", "troubled", "wait"]), max_size=60))
def test_places_are_neither_lost_nor_invented(most: int, script: list[str]) -> None:
    async def run() -> None:
        window, under_way = CongestionWindow(most), []
        for what in script:
            if what == "enter" and len(under_way) < window.width:
                under_way.append(await asyncio.wait_for(window.enter(), 1))
            elif what == "wait":
                await asyncio.sleep(0.0001)
            elif what in ("good", "troubled") and under_way:
                window.leave(under_way.pop(0), what == "troubled")
            assert 1 <= window.width <= most
        for entered in under_way:
            window.leave(entered, troubled=False)
        assert await places(window) == window.width

    asyncio.run(run())
