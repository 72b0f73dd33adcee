"""A polite request to stop: Slurm's warning before a time limit or a pre-emption. Imports no torch.

The handler only raises a flag. The training loop looks at it between steps, agrees on it with all processes, saves and
raises `Interrupted`; whoever started the loop then puts the job back into the queue.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from curricula.errors import UserError


class Interrupted(Exception):
    """Training was asked to stop before its end; everything up to `step` is saved and the same call will go on."""

    exit_code = os.EX_TEMPFAIL
    """75: put the job back into the queue."""

    def __init__(self, step: int, stop_step: int, signal_name: str) -> None:
        super().__init__(
            f"stopped by {signal_name} at step {step} of {stop_step}, which is saved; start it again to go on"
        )
        self.step = step
        self.stop_step = stop_step


class PeerLost(UserError):
    """Another process of this job ended or stopped answering; the job goes on from its last checkpoint when started again."""

    exit_code = os.EX_OSERR
    """71: nothing is wrong with this process; what ended the other is in its own log."""


class StopRequest:
    """Whether a stop signal came, and which."""

    signal_name: str | None = None

    def __bool__(self) -> bool:
        return self.signal_name is not None


@contextlib.contextmanager
def listening(signals: tuple[signal.Signals, ...] = (signal.SIGTERM, signal.SIGUSR2)) -> Iterator[StopRequest]:
    """Collect stop signals for the block's duration, then restore the old handlers.

    Python delivers signals to the main thread only; elsewhere nothing is listened to.
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
