"""How many requests to keep under way at a server that says 429, or falls over: fewer at once, then slowly more again.

Additive increase, multiplicative decrease, as TCP does (Chiu and Jain 1989). Without it every request that is turned away comes
again as soon as the server names, beside the others: the server lets through what it would anyway, turns away many
times that, and most providers count what they turn away.
"""

from __future__ import annotations

import asyncio
import math

DECREASE = 0.8  # of the width, once for all requests that were under way together


class CongestionWindow:
    """At most `width` requests at once; `width` moves between 1 and `most`."""

    def __init__(self, most: int) -> None:
        self.most = self.width = most
        self.under_way = 0
        self._room = asyncio.Event()
        self._untroubled = 0  # replies since the width last changed
        self._narrowed_at = -math.inf

    async def enter(self) -> float:
        """Wait for a place; returns when it was had, which `leave` wants to know."""
        while self.under_way >= self.width:
            self._room.clear()
            await self._room.wait()
        self.under_way += 1
        return asyncio.get_running_loop().time()

    def leave(self, entered: float, troubled: bool) -> None:
        """Give the place back; `troubled` says that the server turned the request away at least once."""
        self.under_way -= 1
        if troubled and entered > self._narrowed_at:
            self._resize(max(1, math.floor(self.width * DECREASE)))
            self._narrowed_at = asyncio.get_running_loop().time()
        elif not troubled:
            self._untroubled += 1
            if self._untroubled >= self.width:
                self._resize(min(self.most, self.width + 1))
        if self.under_way < self.width:
            self._room.set()

    def _resize(self, width: int) -> None:
        self.width, self._untroubled = width, 0
