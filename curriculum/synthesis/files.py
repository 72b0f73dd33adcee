"""The files of one shard: its log of replies, its dead letters, and the tables made from them.

The log is the truth: which documents are left, and what the tables say, follow from it. It has a line for each document that
was answered; a second file has a line for each document that could not be. A document is dead when the dead letters name it
and the replies do not. Documents that are asked about in several pieces have a third file, with a line for each piece that was
answered before the last; it goes when no document needs it any more.

Tables are datasets as the rest of the suite reads them. Scored documents go with their own text to `score_0/` to `score_5/`,
as in locuslab/fineweb_annotated. Everything else goes to one folder: new texts with the id of their source. The tables appear
when the shard is complete, each file whole or not at all. Until all shards are complete, a hidden file in each folder tells
readers so.
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
"""curriculum/sources/tables.py refuses a folder that holds it."""

Row = dict[str, Any]


# The log


@dataclass(frozen=True)
class Lines:
    """A file of rows with a document's `number` each. Memory holds only where they are."""

    path: Path
    places: dict[int, int]
    """Document -> the byte at which its last line begins."""

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
    """Each row of `path` with the byte at which it begins, without one that a kill left torn; none if there is no such file.

    Raises UserError when a line is damaged.
    """
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
    """The replies and dead letters of a shard, as they were when they were read."""

    shard: SynthesisShard
    replies: Lines
    letters: Lines

    @classmethod
    def read(cls, shard: SynthesisShard) -> Log:
        """Raises UserError when a line is damaged."""
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
        """The documents to ask about."""
        return set(self.shard.numbers) - self.done - (set() if retry_dead else self.dead)

    @property
    def _pieces(self) -> Path:
        return self.replies.path.with_suffix(".pieces.jsonl")

    def read_pieces(self, left: set[int]) -> dict[tuple[int, str], list[Row]]:
        """By number and text hash of the documents that are `left`, the verdicts on their first pieces.

        Raises UserError when a line is damaged.
        """

        def is_piece(row: Row) -> bool:
            verdict = row.get("verdict")
            return isinstance(verdict, dict) and verdict.get("score") in SCORES and isinstance(row.get("text_hash"), str)

        found: dict[tuple[int, str], list[Row]] = {}
        for _, row in _valid_rows(self._pieces, is_piece):
            if row.get("number") in left:
                verdicts = found.setdefault((row["number"], row["text_hash"]), [])
                if row.get("piece") == len(verdicts):
                    verdicts.append(row["verdict"])
        return found

    def append(self, replies: list[Row], dead: list[Row], pieces: list[Row]) -> None:
        """Write and sync. These documents and pieces are not asked about again."""
        for path, rows in ((self._pieces, pieces), (self.replies.path, replies), (self.letters.path, dead)):
            if rows:
                append_jsonl(path, rows)

    def compact(self) -> None:
        """Keep the last letter of each document that is still dead. Without any, remove the letters and the pieces."""
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
    """Ties a reply to the text it is about: ids may be mere row numbers."""
    return hashlib.blake2b(document.text.encode(), digest_size=8).hexdigest()


def answered(log: Log) -> Iterator[tuple[Document, Row]]:
    """The documents that have a reply, with it. Raises UserError at one that has changed since."""
    rows = log.replies.rows()
    row = next(rows, None)
    for document in log.shard.read():
        if row is None:
            return
        if row["number"] != document.number:
            continue
        stored, found = row["id"], document_id(document)
        if stored != found or row["text_hash"] != text_hash(document):
            changed = f"{found!r:.60}" if stored != found else "another text"
            raise UserError(
                f"{log.replies.path}: document {document.number} was {stored!r:.60} when it was asked about and is now "
                f"{changed}; bring the old data back, or name another folder with --out"
            )
        yield document, row
        row = next(rows, None)


# The tables


def mark_unfinished(shard: SynthesisShard) -> int:
    """Mark the tables' folders as unfinished, or remove the marks when no shard is missing. Returns how many are complete.

    Every shard calls this before and after its work, so that the last one removes the marks.
    """
    # Without the lock, a shard that begins could mark what another just finished.
    with exclusive_lock(shard.log / "unfinished.lock", wait_s=60):
        settings = shard.settings
        # Of a shard's tables the last is the last to appear.
        complete = sum(1 for _ in shard.tables[-1].parent.glob(f"part-*-of-{settings.parts:05d}.jsonl"))
        for table in shard.tables:
            mark = table.with_name(UNFINISHED)
            if complete == settings.parts:
                mark.unlink(missing_ok=True)
            elif not mark.exists():
                write_json(mark, {"kind": settings.kind, "parts": settings.parts})
    return complete


def write_tables(log: Log) -> list[Path]:
    """Raises UserError when a document has changed since it was asked about."""
    paths, judges = log.shard.tables, log.shard.settings.how.judges
    with ExitStack() as stack:
        # A stack closes in reverse order, and the file that says that the shard is complete must appear last.
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
