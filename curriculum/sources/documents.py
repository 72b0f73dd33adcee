"""The documents of a source by number, independent of who reads them and of how the work is divided.

A document that cannot be tokenised (empty, or not valid UTF-8) is returned without text and with a reason, so that it can be
counted. A row of the wrong shape is an error, because then the file is not the expected dataset.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from curricula.curriculum.sources.registry import dataset, open_dataset
from curricula.curriculum.sources.tables import Row, Table
from curricula.errors import UserError


@dataclass(frozen=True)
class Document:
    """One document. `id` is unique within its source and does not depend on how the work is divided."""

    number: int
    id: str
    text: str
    odd: str = ""
    """Why it has no text: "empty" or "not_utf8"."""


@dataclass(frozen=True)
class Documents:
    """The documents of a dataset in a data folder: the first `limit`, if given, of the chosen parts."""

    name: str
    table: Table
    limit: int | None = None

    @classmethod
    def open(cls, name: str, root: Path, parts: tuple[str, ...] = (), limit: int | None = None) -> Documents:
        """Raises UserError naming the file that is missing or damaged."""
        return cls(name, open_dataset(name, root, parts), limit)

    def __len__(self) -> int:
        return len(self.table) if self.limit is None else min(self.limit, len(self.table))

    @property
    def _columns(self) -> tuple[str, ...]:
        """The id is read wherever there is one, so that a document's tokens do not depend on the file format."""
        return ("id", *dataset(self.name).columns)

    def read(self, start: int = 0, stop: int | None = None) -> Iterator[Document]:
        """Documents [start, stop), in order."""
        stop = len(self) if stop is None else min(stop, len(self))
        for number, row in enumerate(self.table.rows(start, stop, self._columns), start=start):
            yield self._document(number, row)

    def select(self, numbers: list[int]) -> Iterator[Document]:
        """The documents of `numbers`, which must be in rising order."""
        for number, row in zip(numbers, self.table.select(numbers, self._columns)):
            yield self._document(number, row)

    def _document(self, number: int, row: Row) -> Document:
        try:
            text = dataset(self.name).text(row)
        except KeyError as missing:
            raise UserError(
                f"{self.table.place(number)} of dataset {self.name} has no column {missing}, only "
                f"{self.table.columns(number, row)}; name its text {missing}"
            ) from None
        name = str(row.get("id") or f"{self.name}/{number}")
        if text is None or text == "":
            return Document(number, name, "", "empty")
        if not isinstance(text, str):
            raise UserError(
                f"{self.table.place(number)} of dataset {self.name} has {text!r:.60} for its text; fix the row"
            )
        return Document(number, name, text) if _is_unicode(text) else Document(number, name, "", "not_utf8")


def _is_unicode(text: str) -> bool:
    """Whether the text can be encoded as UTF-8. Lone surrogates, from JSON escapes or broken bytes, cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
