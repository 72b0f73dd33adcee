"""How far an element is: a small file that the element rewrites and that status, display and people read.

Its `updated` is the element's heartbeat: it stands still when the element hangs.
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

FRESH_S = 0.25  # rewrite no more often than this


class ProgressFile:
    """A `Progress` that keeps progress.json of an element up to date. Not synced: after a crash it is history anyway."""

    def __init__(self, path: Path, environment: Mapping[str, str] = os.environ):
        self.path = path
        self._constant = {"started": time.time(), "host": socket.gethostname()}
        if environment.get("SLURM_RESTART_COUNT", "").isdecimal():
            self._constant["restarts"] = int(environment["SLURM_RESTART_COUNT"])
        self._first: tuple[float, int] | None = None  # when this process reported first, and how much was done then
        self._next = 0.0

    def __call__(self, done: int, total: int, **figures: Any) -> None:
        now = time.time()
        if self._first is None:
            self._first = (now, done)
        if now < self._next and done < total:
            return
        self._next = now + FRESH_S
        since, before = self._first
        left_s = (now - since) / (done - before) * (total - done) if done > before else None
        value = {"done": done, "total": total, "left_s": left_s, "updated": now, **self._constant, **figures}
        with contextlib.suppress(OSError):  # a full disk must not end the work that only says how far it is
            aside = self.path.with_suffix(".aside")
            aside.write_text(json.dumps(value))
            os.replace(aside, self.path)


@dataclass(frozen=True)
class Reading:
    """The last progress an element wrote."""

    done: int
    total: int
    left_s: float | None
    updated: float
    host: str
    restarts: int
    figures: dict[str, Any]


class _Content(msgspec.Struct):
    done: int
    total: int
    updated: float
    left_s: float | None = None
    started: float = 0.0
    host: str = ""
    restarts: int = 0


_OWN = frozenset(_Content.__struct_fields__)


def read_progress(path: Path) -> Reading | None:
    """The element's last progress, or None when it has written none, or something has been written over it."""
    try:
        value = json.loads(path.read_bytes())  # not msgspec: a loss may be NaN
        own = msgspec.convert(value, _Content)
    except (OSError, ValueError, RecursionError):  # msgspec.ValidationError is a ValueError
        return None
    figures = {key: item for key, item in value.items() if key not in _OWN}
    return Reading(own.done, own.total, own.left_s, own.updated, own.host, own.restarts, figures)


def number(figures: Mapping[str, Any], name: str) -> float | None:
    """A figure of that name, if it is a number."""
    value = figures.get(name)
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
