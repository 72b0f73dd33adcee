"""What ends a training run before its last step: a request to stop, a lost process, a hang.

- A request: Slurm sends a signal before a time limit or a preemption. The handler only raises a flag. The training loop looks
  at it between steps and between the batches of a validation, agrees on it with all processes, saves and raises `Interrupted`.
- A lost process: every rank that still lives raises `PeerLost`.
- A hang: ranks whose peer hangs wait in a collective for ever, so the watchdogs of all end their processes within the same
  limit. The stacks in their logs distinguish the rank that hung from those that waited for it.

Imports no torch.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from types import FrameType

from curricula.errors import UserError
from curricula.terminal import one_line

HANG_EXIT_CODE = os.EX_SOFTWARE
"""Exit code 70 of a hung process: it is worth starting again, unlike one that ends with 1 and would do so again."""
HANG_FACTOR = 20.0
"""A step counts as hung when it takes longer than this many times the median step, and longer than the configured limit."""
UNKNOWN_FACTOR, UNKNOWN_LEAST_S = 6.0, 120.0
"""Limits for what has no median (loading, compiling, the first steps, waiting for a save): a multiple of the configured limit,
and the smallest number of seconds."""
TICK_S = 1.0
BACKSTOP = 1.5
"""Multiple of the limit after which a timer in C writes the stacks, in case the interpreter itself is stuck."""
LOG_S = 30
"""How long a hung process may take to write its stacks to the log."""


class Interrupted(Exception):
    """Training stopped early on request. Everything up to `step` is saved; the same call continues from there."""

    exit_code = os.EX_TEMPFAIL
    """Exit code 75: requeue the job."""

    def __init__(self, step: int, stop_step: int, signal_name: str) -> None:
        super().__init__(f"stopped by {signal_name} at step {step} of {stop_step}, which is saved; start it again to continue")


class PeerLost(UserError):
    """Another process of this job ended or stopped answering. If started again, the job continues from its last checkpoint."""

    exit_code = os.EX_OSERR
    """Exit code 71: nothing is wrong with this process; the other's log says what ended it."""


@contextlib.contextmanager
def lost_peers_named(rank: int, processes: int) -> Iterator[None]:
    """Turn the errors that torch raises when another process is gone into a `PeerLost`."""
    try:
        yield
    except RuntimeError as error:  # the base class of torch.distributed's errors
        text = str(error)
        is_lost = any(sign in text.lower() for sign in ("peer", "connect", "nccl", "timed out", "timeout"))
        if processes == 1 or not is_lost or any(sign in text for sign in ("invalid usage", "Duplicate GPU")):
            raise
        raise PeerLost(
            f"rank {rank}: another process of this job ended or stopped answering ({one_line(text, 400)}); "
            "see its log, then start the job again to continue from its last checkpoint"
        ) from error


@contextlib.contextmanager
def listening() -> Iterator[list[str]]:
    """Collect the names of stop signals that arrive during the block, then restore the old handlers.

    Python delivers signals only to the main thread; in any other thread this does nothing.
    """
    received: list[str] = []

    def remember(number: int, frame: FrameType | None) -> None:
        received.append(signal.Signals(number).name)

    signals = (signal.SIGTERM, signal.SIGUSR2) if threading.current_thread() is threading.main_thread() else ()
    previous = {number: signal.signal(number, remember) for number in signals}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def signals_blocked() -> Iterator[None]:
    """Block stop signals while this process forks.

    The child keeps them blocked, so that a signal to the whole job does not end a process that training needs for its save.
    """
    signals = {signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2}
    unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)


class Watchdog:
    """Ends this process, after writing its stacks, when what the training loop expects takes too long.

    It counts monotonic time. Time in which this process itself was stopped (Ctrl-Z, a closed laptop) does not count.
    """

    def __init__(self, hang_minutes: float) -> None:
        """`hang_minutes` is the shortest time after which a step counts as hung."""
        self._floor_s = 60 * hang_minutes
        self._unknown_limit_s = max(UNKNOWN_LEAST_S, UNKNOWN_FACTOR * self._floor_s)
        self._steps: deque[float] = deque(maxlen=50)
        self.expect("the start")
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
        limit_s = self._unknown_limit_s
        if len(self._steps) >= 3:
            limit_s = max(self._floor_s, HANG_FACTOR * statistics.median(self._steps))
        self._expected = f"step {step}", limit_s

    def expect(self, what: str) -> None:
        """Watch something other than a whole step from now on, such as a wait for a save or a validation batch."""
        self._expected = what, self._unknown_limit_s  # replaced as a whole: the watching thread reads it at any time

    def _watch(self) -> None:
        tick = min(TICK_S, self._floor_s / 4)
        last_tick = time.monotonic()
        expected, waited_s = self._expected, 0.0
        while not self._ended.wait(tick):
            now = time.monotonic()
            if expected is not self._expected:
                expected, waited_s = self._expected, 0.0
            else:
                waited_s += min(now - last_tick, 2 * tick)
            last_tick = now
            what, limit_s = expected
            if waited_s > limit_s:
                self._end_process(what, limit_s)
            # Without `exit`: after a long SIGSTOP this timer would fire before the next tick.
            faulthandler.dump_traceback_later(BACKSTOP * limit_s, exit=False)
        faulthandler.cancel_dump_traceback_later()

    def _end_process(self, what: str, limit_s: float) -> None:
        hang = f"{what} has taken more than {limit_s:.0f} s"
        signal.alarm(LOG_S)  # ends this process, wherever it is, if the log hangs as well
        try:
            print(f"watchdog: {hang}; what each thread of process {os.getpid()} is doing:", file=sys.stderr, flush=True)
            faulthandler.dump_traceback()
            end = "watchdog: ending this process; start it again to continue from the last checkpoint"
            print(end, file=sys.stderr, flush=True)
        finally:  # even if the log cannot be written
            os._exit(HANG_EXIT_CODE)
