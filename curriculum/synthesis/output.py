"""The tables of one part, made from its log and its documents: datasets as the rest of the suite reads them.

Scores go to `score_0/` to `score_5/`, documents with their own text, as in locuslab/fineweb_annotated. Everything else goes
to one folder, new texts with the id of their source. They appear when the part is complete, each file whole or not at all.
Until all parts are complete a hidden file in each folder says so, for readers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from curricula.curriculum.sources.documents import Document
from curricula.curriculum.synthesis.inputs import Input
from curricula.curriculum.synthesis.kinds import SCORES
from curricula.curriculum.synthesis.plan import Place, Settings
from curricula.curriculum.synthesis.replies import Lines, Row
from curricula.durable import exclusive_lock, open_atomically, write_json
from curricula.errors import UserError

UNFINISHED = ".unfinished.json"  # curriculum/sources/tables.py reads no folder that holds it


def part_name(part: int, parts: int) -> str:
    return f"part-{part:05d}-of-{parts:05d}"


def id_of(document: Document) -> str:
    """A document's id, fit for a file."""
    return document.id.encode(errors="replace").decode()


def text_hash(document: Document) -> str:
    """By which a reply knows its document again: ids may be mere row numbers."""
    return hashlib.blake2b(document.text.encode(), digest_size=8).hexdigest()


def table_files(place: Place, settings: Settings, part: int) -> list[Path]:
    """Where the rows of a part go: a file for each score, or one file."""
    folders = [f"score_{score}" for score in SCORES] if settings.how.judges else [place.name]
    return [place.out / folder / f"{part_name(part, settings.parts)}.jsonl" for folder in folders]


def parts_complete(place: Place, settings: Settings) -> int:
    """How many parts have their tables, of which the last file is the last to appear."""
    folder = table_files(place, settings, 0)[-1].parent
    return sum(1 for _ in folder.glob(f"part-*-of-{settings.parts:05d}.jsonl"))


def mark_unfinished(place: Place, settings: Settings) -> int:
    """Put the mark of missing parts into the folders of the tables, or take it away when none is missing.

    Returns how many are complete. Every part calls this before and after its work, so that the last one takes the mark away.
    """
    with exclusive_lock(place.state / "unfinished.lock", wait_s=60):  # or a part that begins could mark what just ended
        complete = parts_complete(place, settings)
        for table in table_files(place, settings, 0):
            mark = table.with_name(UNFINISHED)
            if complete == settings.parts:
                mark.unlink(missing_ok=True)
            elif not mark.exists():
                write_json(mark, {"kind": settings.kind, "parts": settings.parts})
    return complete


def answered(documents: Input, numbers: range, replies: Lines) -> Iterator[tuple[Document, Row]]:
    """The documents that have a reply, with it. Raises UserError at one that is no longer what the reply is about."""
    rows = replies.rows()
    row = next(rows, None)
    for document in documents.read(numbers.start, numbers.stop):
        if row is None:
            return
        if row["number"] != document.number:
            continue
        was, now = row["id"], id_of(document)
        if was != now or row["text_hash"] != text_hash(document):
            changed = f"{now!r:.60}" if was != now else "another text"
            raise UserError(
                f"{replies.path}: document {document.number} was {was!r:.60} when it was asked about and is now "
                f"{changed}; bring the old data back, or name another folder with --out"
            )
        yield document, row
        row = next(rows, None)


def write_tables(place: Place, settings: Settings, part: int, documents: Input, replies: Lines) -> list[Path]:
    """Raises UserError when the documents are no longer those that the replies are about."""
    paths = table_files(place, settings, part)
    with ExitStack() as stack:
        # A stack ends with what it began with, and the last file is the one that says that the part is complete.
        files = [stack.enter_context(open_atomically(path, "w")) for path in reversed(paths)][::-1]
        for document, reply in answered(documents, settings.numbers(part), replies):
            row = _row(settings, documents.name, document.text, reply)
            files[reply["score"] if settings.how.judges else 0].write(json.dumps(row, ensure_ascii=False) + "\n")
    return paths


def _row(settings: Settings, source: str, text: str, reply: Row) -> Row:
    facts = {key: value for key, value in reply.items() if key not in ("number", "id", "text", "text_hash")}
    facts |= {"source": source, "source_id": reply["id"], "kind": settings.kind}
    if settings.how.judges:
        return {"id": reply["id"], "text": text, "metadata": facts}
    return {"id": f"{reply['id']}/{settings.kind}", "text": reply["text"], "metadata": facts}
