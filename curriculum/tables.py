"""Files of rows as datasets are published: Parquet, JSON Lines (also gzipped), JSON lists and CSV, read by row number.

A table is a file `STEM.parquet`, `STEM.jsonl`, ... or a folder `STEM/` of such files, read in the order of their names.
"""

from __future__ import annotations

import csv
import gzip
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from curriculum.errors import UserError

Row = dict[str, Any]
SUFFIXES = (".parquet", ".jsonl", ".jsonl.gz", ".json", ".csv")
_BATCH_ROWS = 1024


@dataclass(frozen=True)
class Table:
    """Files whose rows are numbered on from one to the next; `counts` has the rows of each file."""

    files: tuple[Path, ...]
    counts: tuple[int, ...]

    @classmethod
    def open(cls, *stems: Path) -> Table:
        """The files of all `stems` as one table; raises UserError when one is missing or cannot be read."""
        files = tuple(file for stem in stems for file in _files(stem))
        return cls(files, tuple(count_rows(file) for file in files))

    def __len__(self) -> int:
        return sum(self.counts)

    def rows(self, start: int = 0, stop: int | None = None, columns: tuple[str, ...] = ()) -> Iterator[Row]:
        """Rows [start, stop); of Parquet files only `columns`, where some are given and there.

        Raises UserError that names file and row where a row is no object.
        """
        first, end = 0, len(self) if stop is None else min(stop, len(self))
        for file, count in zip(self.files, self.counts):
            begin, until = max(start, first), min(end, first + count)
            if begin < until:
                for number, row in enumerate(_read(file, begin - first, until - first, columns), start=begin - first):
                    if not isinstance(row, dict):
                        raise UserError(f"{file}: row {number} is {row!r:.60}, where an object is needed; mend the row")
                    yield row
            first += count

    def select(self, numbers: list[int], columns: tuple[str, ...] = ()) -> Iterator[Row]:
        """The rows of these `numbers`, which must rise, without reading all that lies between in Parquet files."""
        first = 0
        for file, count in zip(self.files, self.counts):
            here = [number for number in numbers if first <= number < first + count]
            apart = file.suffix == ".parquet"
            for start, stop in [(n, n + 1) for n in here] if apart else [(here[0], here[-1] + 1)] if here else []:
                wanted = set(here)
                for number, row in enumerate(self.rows(start, stop, columns), start=start):
                    if number in wanted:
                        yield row
            first += count


def table_exists(stem: Path) -> bool:
    return stem.is_dir() or any(_with_suffix(stem, suffix).is_file() for suffix in SUFFIXES)


def _with_suffix(stem: Path, suffix: str) -> Path:
    return stem.with_name(stem.name + suffix)


def _files(stem: Path) -> list[Path]:
    """The files of one stem: a folder's, else the one file of that name."""
    if stem.is_dir():
        if unfinished := sorted(stem.glob(".*fetching.json")):
            raise UserError(
                f"{unfinished[0]}: this dataset is not all there; give the same `curricula data fetch` again"
            )
        found = sorted(path for path in stem.iterdir() if path.name.endswith(SUFFIXES) and path.name[0] != ".")
        if not found:
            raise UserError(f"{stem}: no Parquet, JSON Lines, JSON or CSV file in this folder; put the dataset there")
        return found
    paths = [path for suffix in SUFFIXES if (path := _with_suffix(stem, suffix)).is_file()]
    if not paths:
        raise UserError(
            f"{stem}: no such table: neither a folder of this name nor a file with {', '.join(SUFFIXES)}; put it there, "
            "or bring it with `curricula data fetch`"
        )
    if len(paths) > 1:
        raise UserError(f"{paths[0]}: there is {paths[1].name} as well; keep the one that holds the dataset")
    return paths


def count_rows(file: Path) -> int:
    """Rows of one file; instant for Parquet, a pass over the lines for JSON Lines."""
    if file.suffix == ".parquet":
        return _parquet(file).metadata.num_rows
    if file.suffix in (".json", ".csv"):
        return len(_whole(file))
    with _lines(file) as lines:
        return sum(1 for line in lines if not line.isspace())


def _read(file: Path, start: int, stop: int, columns: tuple[str, ...]) -> Iterator[Any]:
    if file.suffix == ".parquet":
        yield from _parquet_rows(file, start, stop, columns)
    elif file.suffix in (".json", ".csv"):
        yield from _whole(file)[start:stop]
    else:
        yield from _json_rows(file, start, stop)


def _lines(file: Path) -> IO[bytes]:
    try:
        return cast(IO[bytes], gzip.open(file) if file.suffix == ".gz" else open(file, "rb"))
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}); mend its rights or fetch it again") from None


def _json_rows(file: Path, start: int, stop: int) -> Iterator[Any]:
    with _lines(file) as lines:
        number = 0
        try:
            for line in lines:
                if line.isspace():
                    continue
                if number >= stop:
                    return
                if number >= start:
                    # A byte that is no UTF-8 becomes a lone surrogate: that document is skipped, not the file refused.
                    yield json.loads(line.decode(errors="surrogateescape"))
                number += 1
        except (ValueError, RecursionError) as error:
            raise UserError(f"{file}: row {number} is not JSON ({error}); fetch the file again") from None
        except (EOFError, OSError) as error:
            raise UserError(f"{file}: breaks off after row {number} ({error}); fetch the file again") from None


def _whole(file: Path) -> list[Any]:
    """A JSON list or a CSV file, which have no rows one could skip to."""
    try:
        if file.suffix == ".json":
            rows = json.loads(file.read_text(encoding="utf-8"))
        else:
            csv.field_size_limit(sys.maxsize)
            with open(file, newline="", encoding="utf-8") as lines:
                rows = list(csv.DictReader(lines))
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8 ({error.reason} at byte {error.start}); fetch the file again") from None
    except (ValueError, csv.Error, RecursionError) as error:
        raise UserError(f"{file}: not valid {file.suffix[1:].upper()} ({error}); fetch the file again") from None
    if not isinstance(rows, list):
        raise UserError(f"{file}: holds a {type(rows).__name__}, where a list of rows is needed; fetch the file again")
    return [{"text": row} if isinstance(row, str) else row for row in rows]  # a bare list of texts has one column


def _parquet(file: Path) -> Any:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(file)
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"{file}: not a readable Parquet file ({_first_line(error)}); fetch it again") from None


def _parquet_rows(file: Path, start: int, stop: int, columns: tuple[str, ...]) -> Iterator[Row]:
    """Rows of a Parquet file, reading only the row groups that hold them."""
    import pyarrow

    table = _parquet(file)
    wanted = [name for name in columns if name in table.schema_arrow.names] or None
    first = 0
    for group in range(table.num_row_groups):
        size = table.metadata.row_group(group).num_rows
        if first < stop and start < first + size:
            place = first
            try:
                for batch in table.iter_batches(_BATCH_ROWS, row_groups=[group], columns=wanted):
                    low, high = max(0, start - place), min(batch.num_rows, stop - place)
                    if low < high:
                        yield from _as_rows(batch.slice(low, high - low))
                    place += batch.num_rows
            except (OSError, pyarrow.ArrowException) as error:
                raise UserError(
                    f"{file}: row group {group} is damaged ({_first_line(error)}); fetch it again"
                ) from None
        first += size


def _as_rows(batch: Any) -> list[Row]:
    import pyarrow

    try:
        return batch.to_pylist()
    except UnicodeDecodeError:  # some text is no UTF-8: its bytes become lone surrogates, as in JSON Lines
        named = {}
        for name, column in zip(batch.schema.names, batch.columns):
            if pyarrow.types.is_string(column.type) or pyarrow.types.is_large_string(column.type):
                raw = column.cast(pyarrow.large_binary()).to_pylist()
                named[name] = [None if value is None else value.decode(errors="surrogateescape") for value in raw]
            else:
                named[name] = column.to_pylist()
        return [dict(zip(named, values)) for values in zip(*named.values())]


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
