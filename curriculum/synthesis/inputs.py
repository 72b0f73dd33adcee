"""The documents to score or rewrite: a dataset by its short name, or any table with the columns `id` and `text`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from curricula.curriculum.sources.documents import Document, Documents
from curricula.curriculum.sources.registry import dataset
from curricula.curriculum.sources.tables import SUFFIXES, Table
from curricula.errors import UsageError, UserError


class Input(Protocol):
    """Documents by number."""

    @property
    def name(self) -> str:
        """Tells in the output where a document is from."""

    def __len__(self) -> int: ...

    def read(self, start: int = 0, stop: int | None = None) -> Iterator[Document]: ...


@dataclass(frozen=True)
class TableInput:
    """The rows of a table as documents."""

    name: str
    table: Table
    limit: int | None = None
    """Read no more than the first `limit` rows."""

    @classmethod
    def open(cls, stem: Path, limit: int | None = None) -> TableInput:
        """`stem` may be a folder, or a file with or without its suffix."""
        suffix = next((suffix for suffix in SUFFIXES if stem.is_file() and stem.name.endswith(suffix)), "")
        stem = stem.with_name(stem.name.removesuffix(suffix))
        return cls(str(stem.resolve()), Table.open(stem), limit)

    def __len__(self) -> int:
        return len(self.table) if self.limit is None else min(self.limit, len(self.table))

    def read(self, start: int = 0, stop: int | None = None) -> Iterator[Document]:
        stop = len(self) if stop is None else min(stop, len(self))
        for number, row in enumerate(self.table.rows(start, stop, ("id", "text")), start=start):
            text = row.get("text")
            if "text" not in row or not isinstance(text, str | None):
                raise UserError(
                    f"{self.name}: row {number} has no column 'text' with a text; rename the column of texts"
                )
            name = str(row.get("id") or f"{number}")
            if not text:
                yield Document(number, name, "", "empty")
            elif text.encode(errors="replace").decode() != text:
                yield Document(number, name, "", "not_utf8")
            else:
                yield Document(number, name, text)


def open_dataset_input(name: str, root: Path, scores: tuple[int, ...], limit: int | None) -> Input:
    """The documents of a dataset; with `scores`, only of its parts with these scores."""
    known = dataset(name).parts
    parts: list[str] = []
    for score in scores:
        named = [part for part in known if part == f"score_{score}" or part.startswith(f"score_{score}_")]
        if not named:
            raise UsageError(
                f"--scores {score}: dataset {name} has {', '.join(known) or 'no parts'}; choose among these"
            )
        parts += named
    return Documents.open(name, root, tuple(parts), limit)
