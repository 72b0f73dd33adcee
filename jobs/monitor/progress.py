"""An element's progress: a small file that the element rewrites, and that `status` and the live display read.

Its `updated` is the element's heartbeat: it stops when the element hangs.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from curricula.settings import convert

REWRITE_EVERY_S = 0.25


class TimeLeft:
    """Estimates the seconds left from the pace since its first call."""

    def __init__(self) -> None:
        self._first: tuple[float, int] | None = None

    def __call__(self, now_s: float, done: int, total: int) -> float | None:
        """None while nothing has been done since the first call."""
        self._first = self._first or (now_s, done)
        first_s, first_done = self._first
        return (now_s - first_s) / (done - first_done) * (total - done) if done > first_done else None


class ProgressFile:
    """A `Progress` that keeps an element's progress.json up to date. Not synced: after a crash it is out of date anyway."""

    def __init__(self, path: Path, seed: int | None = None, environment: Mapping[str, str] = os.environ):
        self.path = path
        self._constant = {"started": time.time(), "host": socket.gethostname(), "seed": seed}
        if environment.get("SLURM_RESTART_COUNT", "").isdecimal():
            self._constant["restarts"] = int(environment["SLURM_RESTART_COUNT"])
        self._time_left = TimeLeft()
        self._next = 0.0

    def __call__(self, done: int, total: int, **figures: Any) -> None:
        now = time.time()
        left_s = self._time_left(now, done, total)
        if now < self._next and done < total:
            return
        self._next = now + REWRITE_EVERY_S
        value = {"done": done, "total": total, "left_s": left_s, "updated": now, **self._constant, **figures}
        with contextlib.suppress(OSError):  # a full disk must not end the work over its progress report
            aside = self.path.with_suffix(".aside")
            aside.write_text(json.dumps(value))
            os.replace(aside, self.path)


@dataclass(frozen=True)
class Reading:
    """The last progress an element wrote."""

    done: int
    total: int
    left_s: float | None
    """Seconds left at the pace so far."""
    updated: float
    """Unix time."""
    host: str
    restarts: int
    """How often Slurm had requeued it."""
    figures: dict[str, Any]
    """What else the element reported, such as loss."""


class _Content(msgspec.Struct):
    done: int
    total: int
    updated: float
    left_s: float | None = None
    started: float = 0.0
    host: str = ""
    restarts: int = 0
    seed: int | None = None


_OWN = frozenset(_Content.__struct_fields__)


def read_progress(path: Path) -> Reading | None:
    """The element's last progress; None if it has written none, or if the file holds something else."""
    try:
        value = json.loads(path.read_bytes())  # not msgspec: a loss may be NaN
        own = convert(value, _Content)
    except (OSError, ValueError, RecursionError):  # msgspec.ValidationError is a ValueError
        return None
    figures = {key: item for key, item in value.items() if key not in _OWN}
    return Reading(own.done, own.total, own.left_s, own.updated, own.host, own.restarts, figures)


def number(figures: Mapping[str, Any], name: str) -> float | None:
    """The figure of that name, if it is a number."""
    value = figures.get(name)
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
