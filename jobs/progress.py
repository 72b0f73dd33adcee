"""How far an element is: a small file that the element rewrites and that status, display and people read."""

from __future__ import annotations

import contextlib
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FRESH_S = 0.25  # rewrite no more often than this


class ProgressFile:
    """A `Progress` that keeps progress.json of an element up to date. Not synced: after a crash it is history anyway."""

    def __init__(self, path: Path):
        self.path = path
        self.started = time.time()
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
        value = {"done": done, "total": total, "left_s": left_s, "updated": now, "started": self.started, **figures}
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
    figures: dict[str, Any]


def read_progress(path: Path) -> Reading | None:
    """The element's last progress, or None when it has written none."""
    try:
        value = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None
    figures = {key: item for key, item in value.items() if key not in ("done", "total", "left_s", "updated", "started")}
    return Reading(value["done"], value["total"], value["left_s"], value["updated"], figures)
