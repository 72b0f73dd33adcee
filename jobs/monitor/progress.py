"""What an element tells while it works, and what people read of it.

Nothing that goes wrong here disturbs the work.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from curricula.errors import UserError
from curricula.jobs.monitor.logs import note
from curricula.jobs.slurm.commands import own_task, restart_count, set_comment
from curricula.progress import Progress
from curricula.secrets import is_secret
from curricula.settings import convert
from curricula.terminal import clock, count, one_line

REWRITE_EVERY_S = 0.25
LOG_EVERY_S = 30.0
COMMENT_EVERY_S = 60.0
"""Slurm's controller serves everyone: a comment is worth at most one call a minute, and those of a long array two a second."""
FIRST_AFTER_S = 10.0
"""An element that ends sooner announces nothing."""
COMMENT_PATIENCE_S = 20.0
NOTIFY_PATIENCE_S = 30.0
Event = Literal["failed", "done"]


class TimeLeft:
    """Estimates the seconds left from the pace since its first call."""

    def __init__(self) -> None:
        self._first: tuple[float, int] | None = None

    def __call__(self, now_s: float, done: int, total: int) -> float | None:
        """None while nothing has been done since the first call, or where the total is not known: it is less than is done."""
        self._first = self._first or (now_s, done)
        first_s, first_done = self._first
        return (now_s - first_s) / (done - first_done) * (total - done) if first_done < done <= total else None


class Reading(msgspec.Struct, frozen=True):
    """The last progress an element wrote, as its progress.json holds it."""

    done: int
    total: int
    """Not known where it is less than `done`."""
    updated: float
    """Unix time: the element's heartbeat."""
    left_s: float | None = None
    """Seconds left at the pace so far."""
    host: str = ""
    seed: int | None = None
    restarts: int = 0
    """How often Slurm had requeued it."""
    figures: dict[str, Any] = {}
    """What else the element reported, such as loss."""


class ProgressFile:
    """A `Progress` that keeps an element's progress.json up to date. Not synced: after a crash it is out of date anyway."""

    def __init__(self, path: Path, seed: int | None = None):
        self.path, self.seed, self._restarts = path, seed, restart_count(os.environ)
        self._time_left = TimeLeft()
        self._next = 0.0

    def __call__(self, done: int, total: int, **figures: Any) -> None:
        now = time.monotonic()  # the clock may be set back
        left_s = self._time_left(now, done, total)
        if now < self._next and done != total:
            return
        self._next = now + REWRITE_EVERY_S
        reading = Reading(done, total, time.time(), left_s, socket.gethostname(), self.seed, self._restarts, figures)
        with contextlib.suppress(OSError):  # a full disk must not end the work over its progress report
            aside = self.path.with_suffix(".aside")
            aside.write_text(json.dumps(msgspec.structs.asdict(reading)))
            os.replace(aside, self.path)


def read_progress(path: Path) -> Reading | None:
    """The element's last progress; None if it has written none, or if the file holds something else."""
    try:
        value = json.loads(path.read_bytes())  # not msgspec: a loss may be NaN
        return convert({"figures": value, **value}, Reading)  # earlier versions wrote the figures beside the rest
    except (OSError, ValueError, TypeError, RecursionError):  # msgspec.ValidationError is a ValueError
        return None


def number(figures: Mapping[str, Any], name: str) -> float | None:
    """The figure of that name, if it is a number."""
    value = figures.get(name)
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def announced(progress: Progress, environment: Mapping[str, str] = os.environ) -> Progress:
    """`progress`, published in the log too, and in the comment of its Slurm job, which `squeue --format=%k` shows."""
    task = own_task(environment)
    receivers = [progress, _Throttled(LOG_EVERY_S, note)]
    if task is not None:
        every_s = max(COMMENT_EVERY_S, int(environment.get("SLURM_ARRAY_TASK_COUNT", "1")) / 2)
        receivers.append(_Throttled(every_s, JobComment(task)))

    def publish(done: int, total: int, **figures: Any) -> None:
        for receiver in receivers:
            receiver(done, total, **figures)

    return publish


class _Throttled:
    """A `Progress` that publishes a line at most every `every_s` seconds."""

    def __init__(self, every_s: float, publish: Callable[[str], None]):
        self.every_s, self.publish = every_s, publish
        self._next = time.monotonic() + FIRST_AFTER_S
        self._time_left = TimeLeft()

    def __call__(self, done: int, total: int, **figures: Any) -> None:
        now = time.monotonic()
        left_s = self._time_left(now, done, total)
        if now < self._next:
            return
        self._next = now + self.every_s
        self.publish(progress_line(done, total, left_s, figures))


class JobComment:
    """Keeps the comment of a Slurm job, from a thread of its own; while one call hangs there is no other."""

    def __init__(self, task: str):
        self.task = task
        self._call: threading.Thread | None = None

    def __call__(self, text: str) -> None:
        if self._call is None or not self._call.is_alive():
            self._call = threading.Thread(target=self._set, args=(text,), daemon=True)
            self._call.start()

    def _set(self, text: str) -> None:
        with contextlib.suppress(UserError, OSError):  # a container may lack scontrol: then there is no comment
            set_comment(self.task, text, COMMENT_PATIENCE_S)


def progress_line(done: int, total: int, left_s: float | None, figures: Mapping[str, Any]) -> str:
    """One short line, such as `1200/5000 24% loss 2.345 1.2M tok/s 3:20:00 left`."""
    parts = [f"{done}/{total}", f"{100 * done // max(1, total)}%"] if done <= total else [f"{done}"]
    loss, speed = number(figures, "loss"), number(figures, "tokens_per_second")
    parts += [f"loss {loss:.3f}"] if loss is not None else []
    parts += [f"{count(speed)} tok/s"] if speed is not None else []
    parts += [f"{clock(left_s)} left"] if left_s is not None else []
    return " ".join(parts)


def words_of(command: str) -> list[str]:
    """The words of a `notify` command, as a shell would split them; of its expansions there is only that of ~."""
    return [os.path.expanduser(word) for word in shlex.split(command)]


def notify(command: str | None, event: Event, run: Path, element: str, message: str) -> None:
    """Report an event of an element by `command`, if there is one; a failure is noted in the log.

    The command finds no variable that looks like a secret in its environment. docs/monitoring.md describes the others.
    """
    if not command:
        return
    plain = {name: value for name, value in os.environ.items() if not is_secret(name, value)}
    facts = {"CURRICULA_EVENT": event, "CURRICULA_RUN": str(run), "CURRICULA_ELEMENT": element}
    text = one_line(f"{run.name}: {element} {event}{': ' if message else ''}{message}")
    try:
        done = subprocess.run(
            words_of(command), input=text + "\n", env={**plain, **facts}, stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE, text=True, timeout=NOTIFY_PATIENCE_S, check=False,
        )  # fmt: skip
        problem = one_line(done.stderr)[-200:] or f"exit code {done.returncode}" if done.returncode else ""
    except (OSError, ValueError, subprocess.SubprocessError) as error:  # ValueError: an unclosed quotation
        problem = one_line(str(error))
    if problem:
        note(f"the notification failed: {problem}")
