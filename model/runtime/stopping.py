"""What ends a training run before its last step: a request to stop, a lost process, a hang, a loss that is not a number.

- A request: Slurm's signal before a time limit or a pre-emption. The handler only raises a flag. The training loop looks at
  it between steps, agrees on it with all processes, saves and raises `Interrupted`; whoever started the loop requeues the job.
- A lost process: `PeerLost`, for every rank that still lives.
- A hang: a dead disk or a lost peer must not burn GPU-hours until the time limit. A rank whose peer hangs waits in a
  collective for ever, so the watchdogs of all ranks end their processes within the same limit. The stacks in their logs
  distinguish the rank that hung from those that waited for it.
- A loss or gradient that is not a number: the error names the samples, and nonfinite.json lists them all.

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
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from curricula.durable import write_json
from curricula.errors import UserError
from curricula.terminal import one_line

if TYPE_CHECKING:
    from curricula.curriculum.stream.pretraining import BatchSource

HANG_EXIT_CODE = os.EX_SOFTWARE
"""A hung process ends with 70: worth starting again, unlike 1, which would only end in 1 again."""
HANG_FACTOR = 20.0
"""A step counts as hung when it takes longer than this many times the median step, and longer than the configured limit."""
UNKNOWN_FACTOR, UNKNOWN_LEAST_S = 6.0, 120.0
"""Limits for what has no median (loading, compiling, the first steps, waiting for a save): this multiple of the configured
limit, and at least so many seconds."""
TICK_S = 1.0
BACKSTOP = 1.5
"""Times the limit: when a timer in C writes the stacks, in case the interpreter itself is stuck."""
NAMED_SAMPLES = 8
"""Samples that a message about a batch names before it counts the others."""

Sample = tuple[str, int, int]
"""Source, epoch, number in the source."""


class Interrupted(Exception):
    """Training stopped early on request. Everything up to `step` is saved; the same call continues from there."""

    exit_code = os.EX_TEMPFAIL
    """75: requeue the job."""

    def __init__(self, step: int, stop_step: int, signal_name: str) -> None:
        super().__init__(f"stopped by {signal_name} at step {step} of {stop_step}, which is saved; start it again to continue")
        self.step = step
        self.stop_step = stop_step


class PeerLost(UserError):
    """Another process of this job ended or stopped answering. Started again, the job continues from its last checkpoint."""

    exit_code = os.EX_OSERR
    """71: nothing is wrong with this process; the other's log says what ended it."""


@contextlib.contextmanager
def lost_peers_named(rank: int, processes: int) -> Iterator[None]:
    """Turn what torch raises when another process is gone into a `PeerLost`."""
    try:
        yield
    except RuntimeError as error:  # the base class of torch.distributed's errors
        text = str(error)
        is_lost = any(sign in text for sign in ("peer", "Connection", "NCCL", "Timed out"))
        if processes == 1 or not is_lost or any(sign in text for sign in ("invalid usage", "Duplicate GPU")):
            raise
        raise PeerLost(
            f"rank {rank}: another process of this job ended or stopped answering ({one_line(text, 400)}); "
            "see its log, then start the job again to continue from its last checkpoint"
        ) from error


class StopRequest:
    """Whether a stop signal has arrived, and which."""

    signal_name: str | None = None

    def __bool__(self) -> bool:
        return self.signal_name is not None


@contextlib.contextmanager
def listening(signals: tuple[signal.Signals, ...] = (signal.SIGTERM, signal.SIGUSR2)) -> Iterator[StopRequest]:
    """Collect stop signals for the block's duration, then restore the old handlers.

    Python delivers signals to the main thread only; in any other thread this does nothing.
    """
    request = StopRequest()

    def remember(number: int, frame: FrameType | None) -> None:
        request.signal_name = signal.Signals(number).name

    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    previous = {number: signal.signal(number, remember) for number in signals}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def signals_blocked() -> Iterator[None]:
    """To fork in: the child keeps stop signals blocked for good, so that one to the whole job does not end a process that the
    training process needs to save. A signal that arrives meanwhile reaches this process afterwards."""
    signals = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2}
    unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)


@dataclass(frozen=True, eq=False)
class _Expected:
    """What the watchdog waits for; replaced as a whole, since the watching thread reads it at any time."""

    what: str
    limit_s: float


class Watchdog:
    """Ends this process, after writing its stacks, when what the training loop expects takes too long.

    It counts monotonic time. Time in which this process itself was stopped (Ctrl-Z, a closed laptop) does not count.
    """

    def __init__(self, hang_minutes: float) -> None:
        """`hang_minutes` is the shortest time after which a step counts as hung."""
        self._floor_s = 60 * hang_minutes
        self._unknown_limit_s = max(UNKNOWN_LEAST_S, UNKNOWN_FACTOR * self._floor_s)
        self._steps: deque[float] = deque(maxlen=50)
        self._expected = _Expected("the start", self._unknown_limit_s)
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
        self._expected = _Expected(f"step {step}", self._step_limit_s())

    def expect(self, what: str) -> None:
        """Something other than a step begins, such as a wait for a save, or one of its parts, such as a validation batch."""
        self._expected = _Expected(what, self._unknown_limit_s)

    def _step_limit_s(self) -> float:
        if len(self._steps) < 3:
            return self._unknown_limit_s
        return max(self._floor_s, HANG_FACTOR * statistics.median(self._steps))

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
            if waited_s > expected.limit_s:
                self._end_process(expected)
            # Without `exit`: after a long SIGSTOP this timer would fire before the next tick.
            faulthandler.dump_traceback_later(BACKSTOP * expected.limit_s, exit=False)
        faulthandler.cancel_dump_traceback_later()

    def _end_process(self, expected: _Expected) -> None:
        sys.stderr.write(
            f"watchdog: {expected.what} has taken more than {expected.limit_s:.0f} s; what each thread of process "
            f"{os.getpid()} is doing:\n"
        )
        sys.stderr.flush()
        faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
        sys.stderr.write("watchdog: ending this process; start it again to continue from the last checkpoint\n")
        sys.stderr.flush()
        os._exit(HANG_EXIT_CODE)


def nonfinite_error(out: Path, what: str, batches: BatchSource, step: int, bad_rows: Sequence[int], is_main: bool) -> UserError:
    """The error to raise when global batch `step` gave `what`; the losses of its `bad_rows` are not finite.

    The main process writes `out`/nonfinite.json.
    """
    first = step * batches.global_batch
    batch = batches.sample_ids(first, first + batches.global_batch)
    bad = [batch[row] for row in bad_rows if row < len(batch)]
    if is_main:
        noted = {"step": step + 1, "what": what, "samples": _records(bad), "whole_batch": _records(batch)}
        write_json(out / "nonfinite.json", noted)
    culprits = f"; caused by {named_samples(bad)}" if bad else ""
    return UserError(
        f"{out}: {what} at step {step + 1}, on batch {step} {batches.describe(step)}{culprits}; all samples of the batch are "
        "in nonfinite.json, and the last checkpoint precedes it: look at them or lower optimizer.lr, then start again"
    )


def _records(samples: list[Sample]) -> list[dict[str, Any]]:
    return [{"source": source, "epoch": epoch, "sample": number} for source, epoch, number in samples]


def named_samples(samples: list[Sample]) -> str:
    """The first few by name, the others counted: "web 12, web 90 and 3 more (2 web, 1 stories)"."""
    text = ", ".join(f"{source} {number}" for source, _, number in samples[:NAMED_SAMPLES])
    rest = Counter(source for source, _, _ in samples[NAMED_SAMPLES:])
    if rest:
        text += f" and {rest.total()} more ({', '.join(f'{count} {source}' for source, count in rest.items())})"
    return text
