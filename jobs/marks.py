"""The files by which an element says what it has come to: done.json and failed.json.

They are written whole, but people and other tools can touch them too: whatever else is found there is said, by file.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import msgspec

from curricula.errors import UserError


class Done(msgspec.Struct, frozen=True):
    """The element is finished."""

    seconds: float
    """How long its last process took."""
    started: float = 0.0
    """Unix time."""


class Failure(msgspec.Struct, frozen=True):
    """The element's last process ended with an error."""

    error: str
    time: float = 0.0
    """Unix time."""


Mark = TypeVar("Mark", Done, Failure)


def read_done(folder: Path) -> Done | None:
    return _read(folder / "done.json", Done)


def read_failure(folder: Path) -> Failure | None:
    return _read(folder / "failed.json", Failure)


def _read(path: Path, kind: type[Mark]) -> Mark | None:
    """The mark in `path`, or None without one; raises UserError when it is something else."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not an element's mark ({error}); delete it and give the same command again") from None
