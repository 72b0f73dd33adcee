"""The progress that an element reports while it works: in a file, in its log, in Slurm's job comment and by notifications.

A failure to report never disturbs the work.
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
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from curricula.errors import UserError
from curricula.jobs.monitor.logs import note
from curricula.jobs.slurm.commands import own_task, restart_count, set_comment
from curricula.secrets import is_secret
from curricula.settings import convert
from curricula.terminal import clock, count, one_line

REWRITE_EVERY_S = 0.25
LOG_EVERY_S = 30.0
COMMENT_EVERY_S = 60.0
"""Interval between comments. Slurm's controller serves everyone, so an element makes at most one call a minute, and an array
at most two a second."""
FIRST_AFTER_S = 10.0
"""Elements that end sooner write no log line and no comment."""
COMMENT_PATIENCE_S = 20.0
NOTIFY_PATIENCE_S = 30.0
Event = Literal["failed", "done"]


class Reading(msgspec.Struct, frozen=True):
    """The latest progress of an element, as its progress.json holds it."""

    done: int
    total: int
    """Unknown if it is less than `done`."""
    updated: float
    """Unix time of the report, which serves as the element's heartbeat."""
    left_s: float | None = None
    """Seconds left at the average pace since this start's first report; None if nothing has been done since."""
    host: str = ""
    seed: int | None = None
    restarts: int = 0
    """How often Slurm had requeued the job."""
    figures: dict[str, Any] = {}
    """Other values that the element reported, such as the loss."""


def read_progress(path: Path) -> Reading | None:
    """The element's latest progress; None if there is none, or if the file holds something else."""
    try:
        return convert(json.loads(path.read_bytes()), Reading)  # not msgspec's JSON: a loss may be NaN
    except (OSError, ValueError, RecursionError):  # msgspec.ValidationError is a ValueError
        return None


def number(figures: Mapping[str, Any], name: str) -> float | None:
    """The figure of that name, if it is a number."""
    value = figures.get(name)
    return float(value) if isinstance(value, (int, float)) else None


class Announced:
    """A `Progress` that keeps an element's progress.json up to date and writes lines to its log and to the comment of its Slurm
    job, which `squeue --format=%k` shows."""

    def __init__(self, path: Path, seed: int | None = None):
        self.path, self.seed, self._restarts = path, seed, restart_count()
        self._first: tuple[float, int] | None = None
        self._commenting: threading.Thread | None = None
        self._task = own_task()
        later = time.monotonic() + FIRST_AFTER_S
        every_s = max(COMMENT_EVERY_S, int(os.environ.get("SLURM_ARRAY_TASK_COUNT", "1")) / 2)
        self._next = {self._write: 0.0, self._log: later} | ({self._comment: later} if self._task else {})
        self._every_s = {self._write: REWRITE_EVERY_S, self._log: LOG_EVERY_S, self._comment: every_s}

    def __call__(self, done: int, total: int, **figures: Any) -> None:
        now = time.monotonic()  # the wall clock may be set back
        self._first = self._first or (now, done)
        first_s, first_done = self._first
        left_s = (now - first_s) / (done - first_done) * (total - done) if first_done < done <= total else None
        reading = Reading(done, total, time.time(), left_s, socket.gethostname(), self.seed, self._restarts, figures)
        for publish, due in self._next.items():
            if now >= due or (publish == self._write and done == total):
                self._next[publish] = now + self._every_s[publish]
                publish(reading)

    def _write(self, reading: Reading) -> None:
        """Replace progress.json. It is not synced, since after a crash it is out of date anyway."""
        with contextlib.suppress(OSError):  # a full disk must not end the work because of a progress report
            aside = self.path.with_suffix(".aside")
            aside.write_text(json.dumps(msgspec.structs.asdict(reading)))
            os.replace(aside, self.path)

    def _log(self, reading: Reading) -> None:
        note(progress_line(reading))

    def _comment(self, reading: Reading) -> None:
        """Set the comment from a thread, so that a call that hangs does not hold up the work. There is one call at a time."""

        def work() -> None:
            with contextlib.suppress(UserError, OSError):  # a container may lack scontrol
                set_comment(self._task or "", progress_line(reading), COMMENT_PATIENCE_S)

        if self._commenting is None or not self._commenting.is_alive():
            self._commenting = threading.Thread(target=work, daemon=True)
            self._commenting.start()


def progress_line(reading: Reading) -> str:
    """One short line, such as `1200/5000 24% loss 2.345 1.2M tok/s 3:20:00 left`."""
    done, total, left_s = reading.done, reading.total, reading.left_s
    parts = [f"{done}/{total}", f"{100 * done // max(1, total)}%"] if done <= total else [f"{done}"]
    loss, speed = number(reading.figures, "loss"), number(reading.figures, "tokens_per_second")
    parts += [f"loss {loss:.3f}"] if loss is not None else []
    parts += [f"{count(speed)} tok/s"] if speed is not None else []
    parts += [f"{clock(left_s)} left"] if left_s is not None else []
    return " ".join(parts)


def words_of(command: str) -> list[str]:
    """The words of a `notify` command, split as a shell does. Of a shell's expansions, only that of ~ is made."""
    return [os.path.expanduser(word) for word in shlex.split(command)]


def notify(command: str | None, event: Event, run: Path, element: str, message: str) -> None:
    """Run `command`, if there is one, to report an event of an element. If it fails, the log says so.

    Variables that look like secrets are removed from the command's environment. docs/monitoring.md describes what it gets.
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
