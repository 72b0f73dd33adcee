"""Tells how far an element is to who does not know of its progress file: by lines in its log, and by the comment of its Slurm
job, which `squeue --format=...%k` shows.
"""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from curricula.jobs.monitor.logs import note
from curricula.jobs.monitor.progress import number
from curricula.jobs.slurm.commands import own_task
from curricula.progress import Progress
from curricula.terminal import clock, count

LOG_EVERY_S = 30.0
COMMENT_EVERY_S = 60.0
"""The controller serves everyone: no comment is worth more than one call a minute."""
FIRST_AFTER_S = 10.0
"""What is over sooner needs no word."""
PATIENCE_S = 20.0


class _NowAndThen:
    """A `Progress` that hands on a line about it, at most every so often."""

    def __init__(self, every_s: float, tell: Callable[[str], None]):
        self.every_s, self.tell = every_s, tell
        self._next = time.monotonic() + FIRST_AFTER_S
        self._began: tuple[float, int] | None = None

    def __call__(self, done: int, total: int, **figures: Any) -> None:
        now = time.monotonic()
        self._began = self._began or (now, done)
        if now < self._next:
            return
        self._next = now + self.every_s
        since, before = self._began
        left_s = (now - since) / (done - before) * (total - done) if done > before else None
        self.tell(line(done, total, left_s, figures))


class JobComment:
    """Keeps the comment of a Slurm job. Whatever goes wrong, the job goes on; while one call hangs there is no other."""

    def __init__(self, task: str):
        self.task = task
        self._call: threading.Thread | None = None

    def __call__(self, text: str) -> None:
        if self._call is None or not self._call.is_alive():
            self._call = threading.Thread(target=_update, args=(self.task, text), daemon=True)
            self._call.start()


def line(done: int, total: int, left_s: float | None, figures: Mapping[str, Any]) -> str:
    """One short line, such as `1200/5000 24% loss 2.345 1.2M tok/s 3:20:00 left`."""
    parts = [f"{done}/{total}", f"{100 * done // max(1, total)}%"]
    loss, speed = number(figures, "loss"), number(figures, "tokens_per_second")
    parts += [f"loss {loss:.3f}"] if loss is not None else []
    parts += [f"{count(speed)} tok/s"] if speed is not None else []
    parts += [f"{clock(left_s)} left"] if left_s is not None else []
    return " ".join(parts)


def announced(progress: Progress, environment: Mapping[str, str] = os.environ) -> Progress:
    """`progress`, told in the log too, and in the job's comment where this process belongs to a Slurm job."""
    task = own_task(environment)
    told = [progress, _NowAndThen(LOG_EVERY_S, note)]
    if task is not None:
        told.append(_NowAndThen(COMMENT_EVERY_S, JobComment(task)))

    def tell_all(done: int, total: int, **figures: Any) -> None:
        for each in told:
            each(done, total, **figures)

    return tell_all


def _update(task: str, text: str) -> None:
    try:
        subprocess.run(
            ["scontrol", "update", f"JobId={task}", f"Comment={text}"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=PATIENCE_S, check=False,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):  # in a container there may be no scontrol: then there is no comment
        return
