"""The log of one part: a file with a line for each document that was answered, and one with a line for each that could not be.

These files are the truth: which documents are left, and what the tables say, follow from them. A document is dead when the
file of dead letters names it and the log of replies does not.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curriculum.durable import append_jsonl, open_atomically
from curriculum.errors import UserError

Row = dict[str, Any]


@dataclass(frozen=True)
class Lines:
    """A file of rows with a document's `number` each, of which only the places are held in memory."""

    path: Path
    places: dict[int, int]  # document -> the byte where its last line begins

    @classmethod
    def of(cls, path: Path) -> Lines:
        """The lines of `path`, without one that a kill left torn; none when there is no such file."""
        places: dict[int, int] = {}
        start = 0
        if path.exists():
            with open(path, "rb") as file:
                for line in file:
                    if line.endswith(b"\n"):
                        places[_number(path, start, line)] = start
                    start += len(line)
        return cls(path, places)

    def rows(self) -> Iterator[Row]:
        """The last row of each document, in the order of the documents."""
        if self.places:
            with open(self.path, "rb") as file:
                for number in sorted(self.places):
                    file.seek(self.places[number])
                    yield json.loads(file.readline())


def _number(path: Path, start: int, line: bytes) -> int:
    try:
        return int(json.loads(line)["number"])
    except (ValueError, TypeError, KeyError):
        raise UserError(f"{path}: the line at byte {start} is no row of this log; remove that line and go on") from None


@dataclass(frozen=True)
class Log:
    """The two files of a part."""

    replies: Path
    dead: Path

    @classmethod
    def of(cls, state: Path, part: str) -> Log:
        return cls(state / f"{part}.jsonl", state / f"{part}.dead.jsonl")

    def finished(self) -> tuple[set[int], set[int]]:
        """The documents that are done, and those that are dead."""
        done = set(Lines.of(self.replies).places)
        return done, set(Lines.of(self.dead).places) - done

    def append(self, replies: list[Row], dead: list[Row]) -> None:
        """Write and sync; afterwards these documents are not asked about again."""
        if replies:
            append_jsonl(self.replies, replies)
        if dead:
            append_jsonl(self.dead, dead)

    def bury(self) -> None:
        """Leave of the dead letters the last of each document that is still dead, and no file when there is none."""
        _, dead = self.finished()
        if not dead:
            self.dead.unlink(missing_ok=True)
            return
        with open_atomically(self.dead, "w") as file:
            for row in Lines.of(self.dead).rows():
                if row["number"] in dead:
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
