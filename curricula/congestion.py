"""How many requests to keep under way at a server that says 429, or falls over: fewer at once, then slowly more again.

Additive increase, multiplicative decrease, as TCP does (Chiu and Jain 1989). Without it every request that is turned away comes
again as soon as the server names, beside the others: the server lets through what it would anyway, turns away many
times that, and most providers count what they turn away.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

DECREASE = 0.8  # of the width, once for all requests that were under way together


@dataclass
class Place:
    """A request's place among those under way."""

    sent_at: float  # of the event loop's clock
    turned_away: bool | None = None  # whether the server did, at least once; None: nothing can be said


class CongestionWindow:
    """At most `width` requests at once; `width` moves between 1 and `most`. For one event loop."""

    def __init__(self, most: int) -> None:
        self.most = self.width = most
        self.under_way = 0
        self._room = asyncio.Event()
        self._untroubled = 0  # replies since the width last changed
        self._narrowed_at = -math.inf

    @asynccontextmanager
    async def place(self) -> AsyncIterator[Place]:
        """Wait for a place and hold it; whoever holds it says how the request went."""
        while self.under_way >= self.width:
            self._room.clear()
            await self._room.wait()
        self.under_way += 1
        place = Place(_now())
        try:
            yield place
        finally:
            self.under_way -= 1
            self._learn(place)
            if self.under_way < self.width:
                self._room.set()

    def _learn(self, place: Place) -> None:
        if place.turned_away and place.sent_at > self._narrowed_at:
            self._resize(max(1, math.floor(self.width * DECREASE)))
            self._narrowed_at = _now()
        elif place.turned_away is False:
            self._untroubled += 1
            if self._untroubled >= self.width:
                self._resize(min(self.most, self.width + 1))

    def _resize(self, width: int) -> None:
        self.width, self._untroubled = width, 0


def _now() -> float:
    return asyncio.get_running_loop().time()
