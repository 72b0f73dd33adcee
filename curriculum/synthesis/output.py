"""The tables of one part, made from its log and its documents: datasets as the rest of the suite reads them.

Scores go to `score_0/` to `score_5/`, documents with their own text, as in locuslab/fineweb_annotated. Everything else goes
to one folder, new texts with the id of their source. They appear when the part is complete, each file whole or not at all.
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path

from curriculum.documents import Document
from curriculum.durable import open_atomically
from curriculum.errors import UserError
from curriculum.synthesis.inputs import Input
from curriculum.synthesis.kinds import SCORES
from curriculum.synthesis.plan import Place, Settings
from curriculum.synthesis.replies import Lines, Log, Row


def part_name(part: int, parts: int) -> str:
    return f"part-{part:05d}-of-{parts:05d}"


def id_of(document: Document) -> str:
    """A document's id, fit for a file."""
    return document.id.encode(errors="replace").decode()


def table_files(place: Place, settings: Settings, part: int) -> list[Path]:
    """Where the rows of a part go: a file for each score, or one file."""
    folders = [f"score_{score}" for score in SCORES] if settings.how.judges else [place.name]
    return [place.out / folder / f"{part_name(part, settings.parts)}.jsonl" for folder in folders]


def parts_complete(place: Place, settings: Settings) -> int:
    """How many parts have their tables, of which the last file is the last to appear."""
    folder = table_files(place, settings, 0)[-1].parent
    return sum(1 for _ in folder.glob(f"part-*-of-{settings.parts:05d}.jsonl"))


def write_tables(place: Place, settings: Settings, part: int, documents: Input, log: Log) -> list[Path]:
    """Raises UserError when the documents are no longer those that the log is about."""
    numbers = settings.numbers(part)
    replies = Lines.of(log.replies).rows()
    reply = next(replies, None)
    paths = table_files(place, settings, part)
    with ExitStack() as stack:
        files = [stack.enter_context(open_atomically(path, "w")) for path in paths]
        for document in documents.read(numbers.start, numbers.stop):
            if reply is None or reply["number"] != document.number:
                continue
            if reply["id"] != id_of(document):
                raise UserError(
                    f"{log.replies}: document {document.number} was {reply['id']!r:.60} when it was asked about and is now "
                    f"{id_of(document)!r:.60}; bring the old data back, or name another folder with --out"
                )
            row = _row(settings, documents.name, document.text, reply)
            files[reply["score"] if settings.how.judges else 0].write(json.dumps(row, ensure_ascii=False) + "\n")
            reply = next(replies, None)
    return paths


def _row(settings: Settings, source: str, text: str, reply: Row) -> Row:
    facts = {key: value for key, value in reply.items() if key not in ("number", "id", "text")}
    facts |= {"source": source, "source_id": reply["id"], "kind": settings.kind}
    if settings.how.judges:
        return {"id": reply["id"], "text": text, "metadata": facts}
    return {"id": f"{reply['id']}/{settings.kind}", "text": reply["text"], "metadata": facts}
