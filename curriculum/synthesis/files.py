"""The files of one shard: its log of replies, its dead letters, and the tables made from them.

The log is the truth: it decides which documents are left and what the tables say. It has a line for each document that was
answered; a second file, the dead letters, has a line for each document that failed. A document is dead when the dead letters
name it and the replies do not. A third file is for documents that are asked about in several pieces: it has a line for each
answered piece but the last, and is deleted when no document needs it any more.

The tables are datasets that the rest of the suite can read. Scored documents keep their text and go to `score_0/` to
`score_5/`, as in locuslab/fineweb_annotated. The other kinds write new texts, with the ids of their sources, to one folder. The
tables appear when the shard is complete, each file whole or not at all. Until all shards are complete, a hidden file marks each
folder as unfinished.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curricula.curriculum.sources.documents import Document
from curricula.curriculum.synthesis.kinds import SCORES
from curricula.curriculum.synthesis.shard import SynthesisShard
from curricula.durable import append_jsonl, exclusive_lock, open_atomically, write_json
from curricula.errors import UserError

UNFINISHED = ".unfinished.json"
"""Name of that hidden file. `curriculum/sources/tables.py` refuses a folder that holds it."""

Row = dict[str, Any]


# The log


@dataclass(frozen=True)
class Lines:
    """A file of rows, each with the `number` of its document. Memory holds only their positions."""

    path: Path
    places: dict[int, int]
    """For each document, the byte at which its last line begins."""

    @classmethod
    def scan(cls, path: Path, is_valid: Callable[[Row], bool]) -> Lines:
        return cls(path, {row["number"]: start for start, row in _valid_rows(path, is_valid)})

    def rows(self) -> Iterator[Row]:
        """The last row of each document, in the order of the documents."""
        if self.places:
            with open(self.path, "rb") as file:
                for number in sorted(self.places):
                    file.seek(self.places[number])
                    yield json.loads(file.readline())


def _valid_rows(path: Path, is_valid: Callable[[Row], bool]) -> Iterator[tuple[int, Row]]:
    """Each row of `path` with the byte at which it begins, except a last row torn by a kill; none if there is no such file."""
    if not path.exists():
        return
    start = 0
    with open(path, "rb") as file:
        for count, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            if not (isinstance(row, dict) and is_valid(row)):
                raise UserError(f"{path}: line {count} is not a row of this log; remove that line and run the command again")
            yield start, row
            start += len(line)


@dataclass(frozen=True)
class Log:
    """The replies and dead letters of a shard at the time they were read."""

    shard: SynthesisShard
    replies: Lines
    letters: Lines

    @classmethod
    def read(cls, shard: SynthesisShard) -> Log:
        """Read both files of a shard. Raises UserError when a line is damaged."""
        numbers, judges = shard.numbers, shard.settings.how.judges

        def is_in_shard(row: Row) -> bool:
            return type(row.get("number")) is int and row["number"] in numbers

        def is_reply(row: Row) -> bool:
            value = row.get("score" if judges else "text")
            readable = type(value) is int and value in SCORES if judges else isinstance(value, str)
            identified = isinstance(row.get("id"), str) and isinstance(row.get("text_hash"), str)
            return is_in_shard(row) and identified and readable

        path = shard.log / f"{shard.name}.jsonl"
        return cls(shard, Lines.scan(path, is_reply), Lines.scan(path.with_suffix(".dead.jsonl"), is_in_shard))

    @property
    def done(self) -> set[int]:
        return set(self.replies.places)

    @property
    def dead(self) -> set[int]:
        return set(self.letters.places) - set(self.replies.places)

    def left(self, retry_dead: bool) -> set[int]:
        """Numbers of the documents still to be asked about."""
        return set(self.shard.numbers) - self.done - (set() if retry_dead else self.dead)

    @property
    def _pieces(self) -> Path:
        return self.replies.path.with_suffix(".pieces.jsonl")

    def read_pieces(self, left: set[int]) -> dict[tuple[int, str], list[Row]]:
        """The verdicts on the first pieces of the documents that are `left`, by number and text hash.

        Raises UserError when a line is damaged.
        """

        def is_piece(row: Row) -> bool:
            verdict = row.get("verdict")
            return isinstance(verdict, dict) and verdict.get("score") in SCORES and isinstance(row.get("text_hash"), str)

        verdicts_of: dict[tuple[int, str], list[Row]] = {}
        for _, row in _valid_rows(self._pieces, is_piece):
            if row.get("number") in left:
                verdicts = verdicts_of.setdefault((row["number"], row["text_hash"]), [])
                if row.get("piece") == len(verdicts):
                    verdicts.append(row["verdict"])
        return verdicts_of

    def append(self, replies: list[Row], dead: list[Row], pieces: list[Row]) -> None:
        """Write and sync these rows. Their documents and pieces will not be asked about again."""
        for path, rows in ((self._pieces, pieces), (self.replies.path, replies), (self.letters.path, dead)):
            if rows:
                append_jsonl(path, rows)

    def compact(self) -> None:
        """Keep only the last dead letter of each dead document. If there is none, remove the files of letters and pieces."""
        dead = self.dead
        if not dead:
            self._pieces.unlink(missing_ok=True)
            self.letters.path.unlink(missing_ok=True)
            return
        with open_atomically(self.letters.path, "w") as file:
            for row in self.letters.rows():
                if row["number"] in dead:
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")


def document_id(document: Document) -> str:
    """A document's id as valid Unicode."""
    return document.id.encode(errors="replace").decode()


def text_hash(document: Document) -> str:
    """A hash that ties a reply to the text it is about, since ids can be mere row numbers."""
    return hashlib.blake2b(document.text.encode(), digest_size=8).hexdigest()


def answered(log: Log) -> Iterator[tuple[Document, Row]]:
    """The documents that have a reply, each with its reply. Raises UserError at one that has changed since."""
    rows = log.replies.rows()
    row = next(rows, None)
    for document in log.shard.read():
        if row is None:
            return
        if row["number"] != document.number:
            continue
        stored, current = row["id"], document_id(document)
        if stored != current or row["text_hash"] != text_hash(document):
            changed = f"{current!r:.60}" if stored != current else "another text"
            raise UserError(
                f"{log.replies.path}: document {document.number} was {stored!r:.60} when it was asked about and is now "
                f"{changed}; restore the old data, or name another folder with --out"
            )
        yield document, row
        row = next(rows, None)


# The tables


def mark_unfinished(shard: SynthesisShard) -> int:
    """Mark the tables' folders as unfinished, or remove the marks when no shard is missing. Returns how many are complete.

    Every shard calls this before and after its work, so that the last one removes the marks.
    """
    # Without the lock, a shard that begins could mark a folder that another has just finished.
    with exclusive_lock(shard.log / "unfinished.lock", wait_s=60):
        settings = shard.settings
        # A shard is complete when the last of its tables has appeared.
        complete = sum(1 for _ in shard.tables[-1].parent.glob(f"part-*-of-{settings.parts:05d}.jsonl"))
        for table in shard.tables:
            mark = table.with_name(UNFINISHED)
            if complete == settings.parts:
                mark.unlink(missing_ok=True)
            elif not mark.exists():
                write_json(mark, {"kind": settings.kind, "parts": settings.parts})
    return complete


def write_tables(log: Log) -> list[Path]:
    """Write the shard's tables. Raises UserError when a document has changed since it was asked about."""
    paths, judges = log.shard.tables, log.shard.settings.how.judges
    with ExitStack() as stack:
        # A stack closes in reverse order, and the last table, which marks the shard as complete, must appear last.
        files = [stack.enter_context(open_atomically(path, "w")) for path in reversed(paths)][::-1]
        for document, reply in answered(log):
            row = _table_row(log.shard, document, reply)
            files[reply["score"] if judges else 0].write(json.dumps(row, ensure_ascii=False) + "\n")
    return paths


def _table_row(shard: SynthesisShard, document: Document, reply: Row) -> Row:
    kind = shard.settings.how
    metadata = {key: value for key, value in reply.items() if key not in ("number", "id", "text", "text_hash")}
    metadata |= {"source": shard.documents.name, "source_id": reply["id"], "kind": kind.name}
    if kind.judges:
        return {"id": reply["id"], "text": document.text, "metadata": metadata}
    return {"id": f"{reply['id']}/{kind.name}", "text": reply["text"], "metadata": metadata}
