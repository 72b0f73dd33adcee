"""Tables as datasets are published (Parquet, JSON Lines, gzipped JSON Lines, JSON lists, CSV), read by row number.

A table is a file `STEM.parquet`, `STEM.jsonl`, ... or a folder `STEM/` of such files, read in order of their names.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import glob
import gzip
import hashlib
import json
import os
import re
import sys
import zlib
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, islice, pairwise
from pathlib import Path
from typing import Any

from curricula.errors import StorageError, UserError, first_line

Row = dict[str, Any]
SUFFIXES = (".parquet", ".jsonl", ".jsonl.gz", ".json", ".csv")
_ENDINGS = re.compile(r"\.(parquet|arrow|feather|jsonl?|ndjson|[ct]sv)(\.(gz|zst|bz2|xz|lz4|zip))?$", re.IGNORECASE)
"""Endings of table files. A file with such an ending that is not among `SUFFIXES` is an error."""
_BRACES = re.compile(r"\{([^{}]+)\}")
_BATCH_ROWS = 1024
_OF_A_RUN = ("study.yaml", "run.json")
"""Files by which a run folder is recognised."""
_EDGE_BYTES = 1 << 16
"""Bytes at either end of a file that its identity hashes."""


@dataclass(frozen=True)
class Place:
    """Where a row is, for messages: its line in JSON Lines or CSV (its last line), otherwise its number, both from 1."""

    file: Path
    number: int
    """The row's number in the file, from 0."""
    key: str = ""
    """The key in the study that names the file."""

    def __str__(self) -> str:
        name = f"{self.key}: {self.file}" if self.key else str(self.file)
        if self.file.suffix in (".parquet", ".json"):
            return f"{name}: row {self.number + 1}"
        line, _ = next(islice(_entries(self.file), self.number, None))
        return f"{name}: line {line}"


@dataclass(frozen=True)
class Table:
    """Files whose rows are numbered continuously."""

    files: tuple[Path, ...]
    counts: tuple[int, ...]
    """Rows of each file."""

    @classmethod
    def open(cls, stem: Path) -> Table:
        """The files of a stem as one table; raises UserError when there is none or one cannot be read."""
        return cls.of(stem_files(stem))

    @classmethod
    def of(cls, files: Sequence[Path]) -> Table:
        return cls(tuple(files), tuple(count_rows(file) for file in files))

    def __len__(self) -> int:
        return sum(self.counts)

    @property
    def identity(self) -> str:
        """A hash over the files' names, sizes, numbers of rows, and first and last bytes.

        It is cheap at any size. The end of a Parquet file describes the whole file. In a long JSON Lines file, a change in the
        middle that keeps the length goes unnoticed.
        """
        digest = hashlib.sha256(json.dumps(self.counts).encode())
        for file in self.files:
            with open(file, "rb") as content:
                size = content.seek(0, os.SEEK_END)
                digest.update(f"{file.name} {size} ".encode(errors="surrogateescape"))
                for start in (0, max(0, size - _EDGE_BYTES)):
                    content.seek(start)
                    digest.update(content.read(_EDGE_BYTES))
        return digest.hexdigest()

    def place(self, number: int, key: str = "") -> Place:
        file, start = next((file, start) for file, (start, stop) in zip(self.files, spans(self.counts)) if number < stop)
        return Place(file, number - start, key)

    def rows(self, columns: tuple[str, ...] = ()) -> Iterator[Row]:
        """All rows; see `select`."""
        return self.select(range(len(self)), columns)

    def select(self, numbers: Sequence[int], columns: tuple[str, ...] = ()) -> Iterator[Row]:
        """The rows of `numbers`, which must be in rising order. Only the Parquet row groups that hold them are read, and only
        those of `columns` that exist, if any are given.

        Raises UserError naming file and row when a row is not an object.
        """
        for file, (start, stop) in zip(self.files, spans(self.counts)):
            if wanted := within(numbers, start, stop):
                count = 0
                for row in _objects(file, wanted, columns):
                    count += 1
                    yield row
                if count < len(wanted):
                    raise UserError(
                        f"{file}: has lost rows since they were counted; start again when nothing writes to the file"
                    )


def spans(lengths: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Start and stop of each of the consecutive stretches with these lengths."""
    return pairwise(accumulate(lengths, initial=0))


def within(numbers: Sequence[int], start: int, stop: int) -> Sequence[int]:
    """Those of `numbers` (a range, or a list in rising order) that lie in [start, stop), counted from `start`."""
    local = numbers[bisect_left(numbers, start) : bisect_left(numbers, stop)]
    if isinstance(local, range):
        return range(local.start - start, local.stop - start)
    return [number - start for number in local]


def columns_of(text: str) -> tuple[str, ...]:
    """The columns that `text` names: a column itself, or a template with columns in braces, as in "{question} {answer}"."""
    return tuple(dict.fromkeys(_BRACES.findall(text))) if "{" in text else (text,)


def text_of(row: Row, text: str) -> Any:
    """The value of the column `text`, or the template `text` filled in; None if a column of the template is null.

    Raises KeyError with the name of a column that the row lacks.
    """
    if "{" not in text:
        return row[text]
    values = {name: row[name] for name in columns_of(text)}
    if any(value is None for value in values.values()):
        return None
    return _BRACES.sub(lambda found: str(values[found[1]]), text)


def is_utf8(text: str) -> bool:
    """Whether `text` can be encoded. Lone surrogates, from JSON escapes or bytes that were not UTF-8, cannot."""
    return text.encode(errors="ignore").decode() == text


def table_exists(stem: Path) -> bool:
    return bool(_tables_of(stem))


def _tables_of(stem: Path) -> list[Path]:
    """The folder with the name of a stem, and the files with its name and one of `SUFFIXES`."""
    files = [path for suffix in SUFFIXES if (path := stem.parent / (stem.name + suffix)).is_file()]
    return [stem, *files] if stem.is_dir() else files


def files_matching(pattern: str) -> list[Path]:
    """The table files that a glob pattern names, or those in the folder that it names, in order of their names."""
    path = Path(pattern)
    if path.is_dir():
        return stem_files(path)
    files = [path] if path.is_file() else _matching(path)
    if not files:
        where = " outside run folders" if "**" in path.parts else ""
        raise UserError(f"{pattern}: no such file, and no file{where} matches it; correct the path")
    for file in files:
        if not file.name.endswith(SUFFIXES):
            raise UserError(f"{file}: has none of the endings {', '.join(SUFFIXES)}; rename it or narrow the pattern")
    return _once(files)


def _matching(pattern: Path) -> list[Path]:
    """The files that match. The leading folders that exist are taken literally, even if their names contain brackets. `**`
    passes over run folders, as `require_flat` does."""
    base = next(folder for folder in pattern.parents if folder.is_dir())
    names = glob.glob(str(pattern.relative_to(base)), root_dir=base, recursive=True)
    files = sorted(base / name for name in names if not (base / name).is_dir())
    if "**" in pattern.parts:
        named = pattern.parts.index("**")  # folders before it may be in a run: the pattern names them
        below = {folder for file in files for folder in file.parents if len(folder.parts) > named}
        runs = {folder for folder in below if all((folder / name).exists() for name in _OF_A_RUN)}
        files = [file for file in files if runs.isdisjoint(file.parents)]
    for folder in dict.fromkeys(file.parent for file in files):
        _require_finished(folder)
    return files


def head(file: Path, count: int) -> list[Row]:
    """The first `count` rows of a file, or all if it has fewer; raises UserError if one is not an object."""
    return list(_objects(file, range(count), ()))


def column_names(file: Path, rows: Sequence[Row]) -> list[str]:
    """The columns of a file: those of a Parquet file's schema, or those of these first rows."""
    if file.suffix != ".parquet":
        return list(dict.fromkeys(chain(*rows)))
    with _parquet(file) as table:
        return table.schema_arrow.names


def stem_files(stem: Path) -> list[Path]:
    """The files of one stem: those in its folder, or else the one file of that name."""
    tables = _tables_of(stem)
    if not tables:
        raise UserError(
            f"{stem}: no such table: neither a folder of this name nor a file with {', '.join(SUFFIXES)}; put it there, "
            "or fetch it with `curricula data fetch`"
        )
    if len(tables) > 1:
        raise UserError(f"{tables[0]}: {tables[1].name} exists as well; keep the one that holds the dataset")
    if tables != [stem]:
        return tables
    _require_finished(stem)
    paths = sorted(path for path in stem.iterdir() if path.name[0] != ".")
    files = [path for path in paths if path.name.endswith(SUFFIXES)]
    if not files:
        raise UserError(f"{stem}: no Parquet, JSON Lines, JSON or CSV file in this folder; put the dataset there")
    for path in paths:
        if _ENDINGS.search(path.name) and not path.name.endswith(SUFFIXES):
            raise UserError(f"{path}: is not read under this ending, unlike {files[0].name}; convert, rename or move it")
    return _once(files)


def require_flat(folder: Path) -> None:
    """Raise UserError if files in subfolders of a table's folder have the endings of those in it, as they are not read.

    Files with other endings can be a dataset's metadata, such as meta/info.json. This looks through everything below the
    folder, which can take long, so it is not done whenever a table is opened. Run folders are passed over: one of them may be
    that of the study which reads the table.
    """
    above = [path.name for path in stem_files(folder)] if folder.is_dir() else []
    endings = tuple(suffix for suffix in SUFFIXES if any(name.endswith(suffix) for name in above))
    for place, subfolders, names in os.walk(folder):
        if {*_OF_A_RUN} <= {*names}:
            subfolders.clear()
            continue
        subfolders[:] = [name for name in subfolders if name[0] != "."]
        nested = [name for name in names if name[0] != "." and name.endswith(endings)]
        if nested and Path(place) != folder:
            raise UserError(
                f"{place}/{nested[0]}: is not read in a subfolder, unlike {above[0]} above it; move one of them, or give "
                "`path` a pattern"
            )


def _require_finished(folder: Path) -> None:
    if unfinished := sorted([*folder.glob(".*fetching.json"), *folder.glob(".unfinished.json")]):
        raise UserError(f"{unfinished[0]}: this dataset is incomplete; run the command that was writing it again")


def _once(files: list[Path]) -> list[Path]:
    """Return the files. Raises UserError if two are the same file, or if their names differ only in the ending."""
    folders = {folder: folder.resolve() for folder in {file.parent for file in files}}
    seen: dict[Path, Path] = {}
    for file in files:
        suffix, folder = next(suffix for suffix in SUFFIXES if file.name.endswith(suffix)), folders[file.parent]
        real = file.resolve() if file.is_symlink() else folder / file.name  # resolving each of many files takes long
        for path in (real, folder / file.name.removesuffix(suffix)):
            if (other := seen.setdefault(path, file)) != file:
                raise UserError(
                    f"{file}: {other} has the same rows by its name, or is the same file; keep one of them, or rename one that "
                    "has rows of its own"
                )
    return files


def count_rows(file: Path) -> int:
    """Rows of one file: instantly for Parquet, otherwise by reading all of it."""
    if file.suffix == ".parquet":
        with _parquet(file) as table:
            return table.metadata.num_rows
    return sum(1 for _ in _entries(file))


def _objects(file: Path, wanted: Sequence[int], columns: tuple[str, ...]) -> Iterator[Row]:
    """The rows of one file with the `wanted` numbers, which are in rising order and can exceed the last row's. Raises UserError
    for a row that is not an object."""
    rows = _parquet_rows(file, wanted, columns) if file.suffix == ".parquet" else _other_rows(file, wanted)
    for number, row in zip(wanted, rows):
        if not isinstance(row, dict):
            raise UserError(f"{Place(file, number)} is {row!r:.60}, but an object is needed; fix the row")
        yield row


def _other_rows(file: Path, wanted: Sequence[int]) -> Iterator[Any]:
    chosen = wanted if isinstance(wanted, range) else set(wanted)
    for number, (line, entry) in enumerate(islice(_entries(file), wanted[-1] + 1)):
        if number not in chosen:
            continue
        try:
            # A byte that is not UTF-8 becomes a lone surrogate, so that only this document is skipped.
            yield json.loads(entry.decode(errors="surrogateescape")) if isinstance(entry, bytes) else entry
        except (ValueError, RecursionError) as error:
            raise UserError(f"{file}: line {line} is not JSON ({error}); fix the file or fetch it again") from None


def _entries(file: Path) -> Iterator[tuple[int, Any]]:
    """The rows of a file that is not Parquet (of JSON Lines, as bytes), each with the number of its last line, from 1."""
    with _explained(file):
        if file.suffix == ".json":
            yield from enumerate(_listed(file), start=1)
        elif file.suffix == ".csv":
            yield from _csv_rows(file)
        else:
            yield from _lines(file)


def _lines(file: Path) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank."""
    with gzip.open(file) if file.suffix == ".gz" else open(file, "rb") as lines:
        for number, line in enumerate(lines, start=1):
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if line and not line.isspace():
                yield number, line
    if file.suffix == ".gz" and file.stat().st_size == 0:  # gzip itself writes 20 bytes for no rows
        raise EOFError("empty file")


def _csv_rows(file: Path) -> Iterator[tuple[int, Row]]:
    csv.field_size_limit(sys.maxsize)
    with open(file, newline="", encoding="utf-8-sig") as lines:
        reader = csv.DictReader(lines, strict=True)
        names = [name for name in reader.fieldnames or () if name]  # several columns can be unnamed
        if twice := next((name for place, name in enumerate(names) if name in names[:place]), None):
            raise UserError(f"{file}: two columns are named {twice!r}; rename one of them")
        for row in reader:
            if None in row:  # where Python's csv puts fields that the header does not name
                raise UserError(
                    f"{file}: line {reader.line_num} has more fields than the header; put texts with commas in quotation marks"
                )
            yield reader.line_num, row


def _listed(file: Path) -> list[Any]:
    rows = json.loads(file.read_text(encoding="utf-8-sig"))
    if not isinstance(rows, list):
        raise UserError(f"{file}: holds a {type(rows).__name__}, but a list of rows is needed; fetch the file again")
    return [{"text": row} if isinstance(row, str) else row for row in rows]  # a bare list of texts has one column


@contextlib.contextmanager
def _explained(file: Path, *kinds: type[Exception]) -> Iterator[None]:
    """Turn errors while `file` is read, including those of `kinds`, into a UserError that names it. A failure of the system to
    read it becomes a StorageError: the file can be intact, and the next start can succeed."""
    known: tuple[type[Exception], ...] = (OSError, EOFError, ValueError, RecursionError, zlib.error, csv.Error, *kinds)
    try:
        yield
    except known as error:
        if isinstance(error, OSError) and error.errno:  # an OSError without a number is about the contents
            kind = UserError if isinstance(error, (FileNotFoundError, IsADirectoryError, PermissionError)) else StorageError
            raise kind(f"{file}: cannot be read ({os.strerror(error.errno)}); check its permissions and its disk") from None
        raise UserError(
            f"{file}: damaged, or not what its ending says ({first_line(error)}); correct it (text must be UTF-8), or fetch "
            "it again"
        ) from None


@contextlib.contextmanager
def _parquet(file: Path) -> Iterator[Any]:
    import pyarrow
    import pyarrow.parquet

    with _explained(file, pyarrow.ArrowException):
        yield pyarrow.parquet.ParquetFile(file)


def _parquet_rows(file: Path, wanted: Sequence[int], columns: tuple[str, ...]) -> Iterator[Row]:
    """Rows of a Parquet file. Only the row groups that hold them are read."""
    with _parquet(file) as table:
        known = [name for name in columns if name in table.schema_arrow.names] or None
        groups = range(table.num_row_groups)
        for group, bounds in zip(groups, spans(table.metadata.row_group(group).num_rows for group in groups)):
            local, first = within(wanted, *bounds), 0
            for batch in table.iter_batches(_BATCH_ROWS, row_groups=[group], columns=known) if local else ():
                if chosen := within(local, first, first + batch.num_rows):
                    yield from _as_rows(file, batch, chosen)
                first += batch.num_rows
                if first > local[-1]:
                    break


def _as_rows(file: Path, batch: Any, numbers: Sequence[int]) -> list[Row]:
    """The rows of a batch with these numbers. Bytes that are not UTF-8 become lone surrogates, as in JSON Lines."""
    import pyarrow

    columns = {}
    for name, column in zip(batch.schema.names, batch.columns):
        try:
            values = _values(column)  # as a whole, since `take` does not know all types
            columns[name] = [values[number] for number in numbers]
        except (pyarrow.ArrowException, ValueError, OverflowError) as error:
            raise UserError(
                f"{file}: column {name!r} of type {column.type} cannot be read ({first_line(error)}); write it as text"
            ) from None
    return [dict(zip(columns, values)) for values in zip(*columns.values())]


def _values(column: Any) -> list[Any]:
    import pyarrow

    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        if not (pyarrow.types.is_string(column.type) or pyarrow.types.is_large_string(column.type)):
            raise
        raw = column.cast(pyarrow.large_binary()).to_pylist()
        return [None if value is None else value.decode(errors="surrogateescape") for value in raw]
