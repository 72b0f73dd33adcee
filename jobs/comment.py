"""Tells in a job's comment how far it is, so that `squeue --format=...%k` shows it to who only knows squeue."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Mapping
from typing import Any

from curriculum.progress import Progress
from jobs.progress import number
from jobs.slurm_commands import own_task
from jobs.terminal import clock, count

EVERY_S = 60.0
"""The controller serves everyone: no comment is worth more than one call a minute."""
FIRST_AFTER_S = 10.0
PATIENCE_S = 20.0


class JobComment:
    """A `Progress` that keeps the comment of this process's Slurm job. Whatever goes wrong, the job goes on."""

    def __init__(self, task: str):
        self.task = task
        self._next = time.monotonic() + FIRST_AFTER_S  # what is over sooner needs none
        self._began: tuple[float, int] | None = None
        self._call: threading.Thread | None = None

    def __call__(self, done: int, total: int, **figures: Any) -> None:
        now = time.monotonic()
        self._began = self._began or (now, done)
        if now < self._next or (self._call and self._call.is_alive()):
            return
        self._next = now + EVERY_S
        since, before = self._began
        left_s = (now - since) / (done - before) * (total - done) if done > before else None
        self._call = threading.Thread(
            target=_update, args=(self.task, comment(done, total, left_s, figures)), daemon=True
        )
        self._call.start()


def comment(done: int, total: int, left_s: float | None, figures: Mapping[str, Any]) -> str:
    """One short line, such as `1200/5000 24% loss 2.345 1.2M tok/s 3:20:00 left`."""
    parts = [f"{done}/{total}", f"{100 * done // max(1, total)}%"]
    loss, speed = number(figures, "loss"), number(figures, "tokens_per_second")
    parts += [f"loss {loss:.3f}"] if loss is not None else []
    parts += [f"{count(speed)} tok/s"] if speed is not None else []
    parts += [f"{clock(left_s)} left"] if left_s is not None else []
    return " ".join(parts)


def with_comment(progress: Progress, environment: Mapping[str, str] = os.environ) -> Progress:
    """`progress`, and the comment too where this process belongs to a Slurm job."""
    task = own_task(environment)
    if task is None:
        return progress
    job_comment = JobComment(task)

    def both(done: int, total: int, **figures: Any) -> None:
        progress(done, total, **figures)
        job_comment(done, total, **figures)

    return both


def _update(task: str, text: str) -> None:
    try:
        subprocess.run(
            ["scontrol", "update", f"JobId={task}", f"Comment={text}"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=PATIENCE_S, check=False,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):  # in a container there may be no scontrol: then there is no comment
        return
