"""Ends a process that hangs, after writing down where: a dead disk or a lost peer must not burn GPU-hours until the time limit.

A rank whose peer hangs waits in a collective for ever, so the watchdogs of all ranks bite within the same limit, and the
stacks in their logs tell the one that hung from those that waited. Imports no torch.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from curricula.settings import Settings

EXIT_CODE = os.EX_SOFTWARE
"""What a hung process ends with (70): worth starting again, unlike 1, which would only end so again."""
TICK_S = 1.0
BACKSTOP = 1.5  # of the limit: after which a timer in C writes the stacks, should the interpreter itself be stuck


class HangLimits(Settings, frozen=True):
    """How long a step may take: `factor` times the median of the last steps, and never less than `floor_s`."""

    factor: float = 20.0
    floor_s: float = 600.0
    unknown_s: float = 3600.0
    """The limit where no median is known: loading, compiling, the first steps, waiting for a save."""

    def check(self) -> None:
        for name in ("factor", "floor_s", "unknown_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be positive")


@dataclass(frozen=True, eq=False)
class _Expected:
    """What is waited for; replaced as a whole, since the watching thread reads it at any time."""

    what: str
    limit_s: float


class Watchdog:
    """Told of every step that ends; bites when none does for too long. It counts time by the monotonic clock.

    Time in which this process itself was stopped (Ctrl-Z, a closed laptop) does not count.
    """

    def __init__(self, limits: HangLimits) -> None:
        self._limits = limits
        self._steps: deque[float] = deque(maxlen=50)
        self._expected = _Expected("the start", limits.unknown_s)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    @contextlib.contextmanager
    def on_duty(self) -> Iterator[None]:
        self._thread.start()
        try:
            yield
        finally:
            self._ended.set()
            self._thread.join()

    def step_ended(self, step: int, seconds: float) -> None:
        self._steps.append(seconds)
        self.step_begins(step + 1)

    def step_begins(self, step: int) -> None:
        self._expect(self._step_limit_s(), f"step {step}")

    def expect(self, what: str) -> None:
        """Something other than a step begins (or a part of it has ended): a save to wait for, a validation batch."""
        self._expect(self._limits.unknown_s, what)

    def _expect(self, limit_s: float, what: str) -> None:
        self._expected = _Expected(what, limit_s)

    def _step_limit_s(self) -> float:
        if len(self._steps) < 3:
            return self._limits.unknown_s
        return max(self._limits.floor_s, self._limits.factor * statistics.median(self._steps))

    def _watch(self) -> None:
        tick = min(TICK_S, self._limits.floor_s / 4)
        before = time.monotonic()
        expected, waited_s = self._expected, 0.0
        while not self._ended.wait(tick):
            now = time.monotonic()
            if expected is not self._expected:
                expected, waited_s = self._expected, 0.0
            else:
                waited_s += min(now - before, 2 * tick)
            before = now
            if waited_s > expected.limit_s:
                self._bite(expected)
            # It must not end the process: after a long SIGSTOP it would fire before the next tick.
            faulthandler.dump_traceback_later(BACKSTOP * expected.limit_s, exit=False)
        faulthandler.cancel_dump_traceback_later()

    def _bite(self, expected: _Expected) -> None:
        sys.stderr.write(
            f"watchdog: {expected.what} has taken more than {expected.limit_s:.0f} s; what each thread of process "
            f"{os.getpid()} is doing:\n"
        )
        sys.stderr.flush()
        faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
        sys.stderr.write("watchdog: ending this process; start it again to go on from the last checkpoint\n")
        sys.stderr.flush()
        os._exit(EXIT_CODE)
