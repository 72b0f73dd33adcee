"""The documents of a source by number, whoever reads them and however the work is divided.

A document that cannot be tokenised (empty, or not valid UTF-8) is returned without text and with a reason, so that it can be
counted. A row of the wrong shape is an error, because then the file is not the expected dataset.

A limit on a dataset of several parts takes the first documents of each part, in proportion to the parts' sizes, so that a
smaller study keeps the mixture of the parts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

from curricula.curriculum.sources.declared import TextTable, dataset
from curricula.curriculum.sources.hub import upstream_rows
from curricula.curriculum.sources.tables import Place, Row, Table, columns_of, is_utf8, spans, text_of, within
from curricula.errors import UserError


@dataclass(frozen=True)
class Document:
    """One document. `id` is unique within its source and does not depend on how the work is divided."""

    number: int
    id: str
    text: str
    odd: str = ""
    """Why it has no text: "empty" or "not_utf8"; otherwise ""."""


@dataclass(frozen=True)
class Documents:
    """The documents of a declared table, or of chosen parts of a dataset in a data folder: all, or the first of each part."""

    name: str
    table: Table
    spans: tuple[Sequence[int], ...]
    """For each part, the rows of the table to read: a range, or numbers in rising order."""
    text: str
    """The column of texts, or a template."""
    prefix: str
    """A row without an id gets this prefix and the row's number as its id."""
    id: str = "id"
    """The column of ids. It is read whenever it exists, so that a document's tokens do not depend on the file format."""

    @classmethod
    def open(cls, name: str, root: Path, parts: tuple[str, ...] = (), limit: int | None = None) -> Documents:
        """At most `limit` documents of the dataset `name`. Raises UserError, naming the file, if one is missing or damaged."""
        stems = dataset(name).stems(root, parts)
        tables = [Table.open(stem) for stem in stems]
        sizes = [len(table) for table in tables]
        # A part of which only the first rows were fetched counts with its full size on the hub.
        known = [upstream_rows(stem) or size for stem, size in zip(stems, sizes)]
        taken = sizes if limit is None else map(min, in_proportion(limit, known), sizes)
        files = tuple(file for table in tables for file in table.files)
        counts = tuple(count for table in tables for count in table.counts)
        chosen = tuple(range(start, start + size) for (start, _), size in zip(spans(sizes), taken))
        return cls(name, Table(files, counts), chosen, dataset(name).text, f"{name}/")

    @classmethod
    def of(cls, key: str, declared: TextTable, root: Path, limit: int | None = None) -> Documents:
        """At most `limit` documents of the table that the study declares under `key`, such as sources.mine."""
        if declared.dataset is not None:
            return cls.open(declared.dataset, root, declared.parts, limit)
        table, name = declared.open(root, key), key.partition(".")[2]
        chosen = declared.chosen_rows(table, key)
        rows = range(len(table)) if chosen is None else chosen
        return cls(name, table, (rows[:limit],), declared.text, f"{name}/", declared.id or "id")

    def __len__(self) -> int:
        return sum(map(len, self.spans))

    @property
    def counts(self) -> list[int]:
        """Documents of each part."""
        return [len(span) for span in self.spans]

    def place(self, number: int) -> Place:
        return self.table.place(next(islice(chain.from_iterable(self.spans), number, None)))

    def read(self, start: int = 0, stop: int | None = None) -> Iterator[Document]:
        """Documents [start, stop), in order."""
        return self.select(range(start, len(self) if stop is None else min(stop, len(self))))

    def select(self, numbers: Sequence[int]) -> Iterator[Document]:
        """The documents with these numbers: a range, or a list in rising order."""
        columns = (self.id, *columns_of(self.text))
        for span, (start, stop) in zip(self.spans, spans(map(len, self.spans))):
            local = within(numbers, start, stop)
            rows = span[local.start : local.stop] if isinstance(local, range) else [span[number] for number in local]
            for number, row, values in zip(local, rows, self.table.select(rows, columns)):
                yield self._document(start + number, row, values)

    def _document(self, number: int, place: int, row: Row) -> Document:
        """The document of `row`, which is number `place` of the table."""
        try:
            text = text_of(row, self.text)
        except KeyError as missing:
            raise UserError(
                f"{self.table.place(place)} of dataset {self.name} has no column {missing}; add it to the row, or name in "
                "`text` a column that every row has"
            ) from None
        own_id = row.get(self.id)
        document_id = f"{self.prefix}{place}" if own_id in (None, "") else str(own_id)
        if text is None or text == "":
            return Document(number, document_id, "", "empty")
        if not isinstance(text, str):
            raise UserError(f"{self.table.place(place)} of dataset {self.name} has {text!r:.60} as its text; fix the row")
        if not is_utf8(text):
            return Document(number, document_id, "", "not_utf8")
        return Document(number, document_id, text)


def in_proportion(total: int, sizes: Sequence[int]) -> list[int]:
    """`total` divided among parts of these sizes in proportion, in whole numbers; the sizes if they sum to no more.

    Each share is the exact one rounded down; the rest goes to the largest remainders, the earlier part first.
    """
    whole = sum(sizes)
    if total >= whole:
        return list(sizes)
    shares = [total * size // whole for size in sizes]
    by_remainder = sorted(range(len(sizes)), key=lambda part: -(total * sizes[part] % whole))
    for part in by_remainder[: total - sum(shares)]:
        shares[part] += 1
    return shares
