"""The log of one part: a file with a line for each document that was answered, and one with a line for each that could not be.

These files are the truth: which documents are left, and what the tables say, follow from them. A document is dead when the
file of dead letters names it and the log of replies does not.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curricula.curriculum.synthesis.kinds import SCORES
from curricula.durable import append_jsonl, open_atomically
from curricula.errors import UserError

Row = dict[str, Any]


@dataclass(frozen=True)
class Lines:
    """A file of rows with a document's `number` each, of which only the places are held in memory."""

    path: Path
    places: dict[int, int]  # document -> the byte where its last line begins

    @classmethod
    def of(cls, path: Path, is_right: Callable[[Row], bool]) -> Lines:
        """The lines of `path`, without one that a kill left torn; none when there is no such file."""
        places: dict[int, int] = {}
        start = 0
        if path.exists():
            with open(path, "rb") as file:
                for count, line in enumerate(file, start=1):
                    if line.endswith(b"\n"):
                        row = _json_or_none(line)
                        if not (isinstance(row, dict) and is_right(row)):
                            raise UserError(f"{path}: line {count} is no row of this log; remove that line and go on")
                        places[row["number"]] = start
                    start += len(line)
        return cls(path, places)

    def rows(self) -> Iterator[Row]:
        """The last row of each document, in the order of the documents."""
        if self.places:
            with open(self.path, "rb") as file:
                for number in sorted(self.places):
                    file.seek(self.places[number])
                    yield json.loads(file.readline())


def _json_or_none(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


@dataclass(frozen=True)
class Known:
    """What a log said when it was read."""

    replies: Lines
    letters: Lines

    @property
    def done(self) -> set[int]:
        return set(self.replies.places)

    @property
    def dead(self) -> set[int]:
        return set(self.letters.places) - set(self.replies.places)


@dataclass(frozen=True)
class Log:
    """The two files of a part."""

    replies: Path
    dead: Path
    numbers: range  # the documents of the part
    judges: bool  # whether the replies are scores, and not texts

    @classmethod
    def of(cls, state: Path, part: str, numbers: range, judges: bool) -> Log:
        return cls(state / f"{part}.jsonl", state / f"{part}.dead.jsonl", numbers, judges)

    def read(self) -> Known:
        """Raises UserError when a line is damaged."""
        return Known(Lines.of(self.replies, self._is_reply), Lines.of(self.dead, self._is_of_the_part))

    def _is_of_the_part(self, row: Row) -> bool:
        return type(row.get("number")) is int and row["number"] in self.numbers

    def _is_reply(self, row: Row) -> bool:
        said = row.get("score" if self.judges else "text")
        readable = type(said) is int and said in SCORES if self.judges else isinstance(said, str)
        about = isinstance(row.get("id"), str) and isinstance(row.get("text_hash"), str)
        return self._is_of_the_part(row) and about and readable

    def append(self, replies: list[Row], dead: list[Row]) -> None:
        """Write and sync; afterwards these documents are not asked about again."""
        if replies:
            append_jsonl(self.replies, replies)
        if dead:
            append_jsonl(self.dead, dead)

    def bury(self, known: Known) -> None:
        """Leave of the dead letters the last of each document that is still dead, and no file when there is none."""
        dead = known.dead
        if not dead:
            self.dead.unlink(missing_ok=True)
            return
        with open_atomically(self.dead, "w") as file:
            for row in known.letters.rows():
                if row["number"] in dead:
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
