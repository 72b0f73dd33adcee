"""How a long task reports its progress: it calls a function that its caller chose."""

from __future__ import annotations

from typing import Any, Protocol


class Progress(Protocol):
    def __call__(self, done: int, total: int, **figures: Any) -> None:
        """`done` of `total` units are finished. `figures` are values worth showing, such as loss=2.31."""


def silent(done: int, total: int, **figures: Any) -> None:
    """Reports nothing."""
