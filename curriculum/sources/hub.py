"""Public datasets from the Hugging Face hub into a data folder, as Parquet that `curriculum/sources/tables.py` reads.

A download becomes one file for each file upstream, written aside and renamed, so that a restart redoes only what is missing
or damaged and the elements of an array job can share the files out. The commit is resolved once and asked for by its full hash:
`.fetching.json` holds it from the first file on, `.fetched.json` takes its place when every file is there (names that begin
with a dot are no table files). Connections that fail are tried again by the hub's own library.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from curricula.curriculum.sources.hub_errors import explained
from curricula.curriculum.sources.registry import dataset
from curricula.curriculum.sources.tables import count_rows
from curricula.durable import disk_full_explained, exclusive_lock, open_atomically
from curricula.errors import UsageError, UserError
from curricula.progress import Progress, silent

_GROUP_ROWS = 1000  # rows of a Parquet row group, and as many are in memory at a time
_ANSWER_S = 30.0  # how long the hub may take to answer the first question
_BEGIN_S = 60.0  # how long the elements of an array job wait for one another when they begin or finish
_FILE_S = 600.0  # how long one fetch waits for a file that another is bringing

_RECORD = {
    "hub": str,
    "config": str | None,
    "split": str,
    "asked": str | None,
    "columns": list,
    "constants": dict,
    "limit": int | None,
    "revision": str,
    "licence": str,
    "files": int,
}
_FINISHED_RECORD = {**_RECORD, "rows": int, "rows_of": dict, "complete": bool}


@dataclass(frozen=True)
class Download:
    """One split of one configuration of a hub dataset, and the folder that its files go to."""

    hub: str
    config: str | None
    split: str
    revision: str | None  # a commit (at least its first 7 digits), branch or tag; None: the newest
    columns: tuple[str, ...]  # none: all
    out: Path
    licence: str
    gated: bool = False
    constants: Mapping[str, str] = field(default_factory=dict)  # columns to add, the same in every row
    prefix: str = ""  # of the file names, where several downloads share a folder
    whole: Path | None = None  # the table that holds this and all other parts, where the user put one

    @property
    def begun(self) -> Path:
        return self.out / f".{self.prefix}fetching.json"

    @property
    def finished(self) -> Path:
        return self.out / f".{self.prefix}fetched.json"

    def file(self, index: int, count: int) -> Path:
        return self.out / f"{self.prefix}{index:05d}-of-{count:05d}.parquet"


def downloads_of(name: str, root: Path, parts: tuple[str, ...] = ()) -> list[Download]:
    """What a dataset of the registry takes under the data folder `root`: a download for each of its `parts`."""
    entry = dataset(name)
    for part in parts:
        if part not in entry.parts:
            raise UsageError(f"dataset {name} has no part {part!r}; it has {', '.join(entry.parts) or 'no parts'}")
    places: list[tuple[str | None, Path]] = [(part, root / entry.folder / part) for part in parts or entry.parts]
    # Stands in for all parts alone: for some of them it is refused when it is read.
    whole = None if parts or entry.subset or entry.split in entry.parts else entry.whole(root)
    return [
        Download(
            entry.hub,
            config,
            entry.split,
            entry.revision,
            entry.columns,
            out,
            entry.licence,
            entry.gated,
            whole=whole if config else None,
        )
        for config, out in places or [(None, entry.whole(root))]
    ]


def fetch(
    download: Download, progress: Progress = silent, limit: int | None = None, part: tuple[int, int] | None = None
) -> dict[str, Any]:
    """Write the files that are missing or damaged and return what is known of the download, `complete` when it has all.

    `limit` takes the first rows alone, into one file; `part` (i, n) takes only every n-th file, from the i-th on. A finished
    download asks nothing of the network. Raises UserError when the hub cannot give what is asked, or the folder holds
    something else.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"a limit of {limit} rows leaves nothing to fetch; give at least 1")
    index, parts = part or (0, 1)
    if not 0 <= index < parts:
        raise UsageError(f"part {index}/{parts} is not one of 0/{parts} to {parts - 1}/{parts}")
    if record := _already(download, limit):
        progress(record["rows"], record["rows"])
        return record
    started = time.monotonic()
    with disk_full_explained(download.out), explained(download.hub, download.revision):
        commit, stream, known = _open(download)  # before anything is written: what the hub refuses leaves no folder
    with disk_full_explained(download.out):
        count = 1 if limit is not None else stream.num_shards
        record = _identity(download, limit) | {"revision": commit, "licence": download.licence, "files": count}
        _begin(download, record)
        mine = [number for number in range(count) if number % parts == index]
        there = {number: rows for number in mine if (rows := _rows_in(download.file(number, count))) is not None}
        done = sum(there.values())
        total = 0 if known is None or parts > 1 else min(known, limit or known)
        for number in mine:
            if number in there:
                continue
            file = download.file(number, count)

            def tell(rows: int, before: int = done) -> None:
                progress(before + rows, max(total, before + rows))

            # Each file has its own lock: fetches that divide the files differently meet at single files.
            lock = file.with_name(f".{file.name}.lock")
            with exclusive_lock(lock, wait_s=_FILE_S):
                rows = _rows_in(file)  # another fetch may have brought it meanwhile
                if rows is None:
                    with explained(download.hub, download.revision, file.name):
                        whole = limit is None
                        shard = stream.shard(count, number, contiguous=True) if whole else stream.take(limit)
                        rows = _write(file, shard, download, tell)
                lock.unlink(missing_ok=True)  # whoever waits for it, or makes it anew, finds the file
            done += rows
        return _finish(download, record, time.monotonic() - started)


def require_whole(stem: Path, rows: int | None) -> None:
    """Raise UserError when the table folder `stem` holds only the first rows of a dataset and `rows` (None: all) are more.

    A folder that is not there, or that was not fetched, passes.
    """
    for path in sorted(stem.glob(".*fetched.json")):
        record = read_record(path)
        limit = record["limit"]
        if limit is None or record["rows"] < limit:  # fewer than asked for are all there are
            continue
        if rows is None or rows > limit:
            raise UserError(
                f"{stem}: only the first {limit} rows were fetched, where {'all' if rows is None else rows} are needed; remove "
                "this folder, or name another data folder with --out, and fetch without --rows"
            )


def read_record(path: Path) -> dict[str, Any]:
    """What a fetch wrote down in `path`; raises UserError when it is damaged."""
    try:
        record = json.loads(path.read_text())
    except ValueError:
        record = None
    keys = _FINISHED_RECORD if path.name.endswith("fetched.json") else _RECORD
    if not isinstance(record, dict) or not all(isinstance(record.get(key, ...), kind) for key, kind in keys.items()):
        raise UserError(f"{path}: damaged, no record of a fetch; remove the folder {path.parent} and fetch it again")
    return record


def _write_record(path: Path, record: dict[str, Any]) -> None:
    with _open_shared(path, "w") as file:
        file.write(json.dumps(record, indent=1, sort_keys=True) + "\n")


@contextlib.contextmanager
def _open_shared(path: Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """`open_atomically` for a file with the usual rights: a data folder is often a group's, unlike a run folder."""
    with open_atomically(path, mode) as file:
        os.fchmod(file.fileno(), _usual_rights())
        yield file


@functools.cache
def _usual_rights() -> int:
    umask = os.umask(0o077)  # it can be read only by setting it; for that instant other threads' files are the stricter
    os.umask(umask)
    return 0o666 & ~umask


def _rows_in(file: Path) -> int | None:
    """Rows of a Parquet file; None when it is to be fetched: not there, or not readable as Parquet."""
    if not file.exists():
        return None
    try:
        return count_rows(file)
    except UserError:
        if not os.access(file, os.R_OK):  # another user's, not damaged
            raise
        return None


def _open(download: Download) -> tuple[str, Any, int | None]:
    """The commit's full hash, the stream of its rows with the wanted columns, and how many rows there are, if that is said."""
    import datasets
    from huggingface_hub import HfApi

    datasets.disable_progress_bars()
    api = HfApi()
    info = api.dataset_info(download.hub, revision=download.revision, timeout=_ANSWER_S)
    if info.gated:  # the card of a gated dataset is open to all; its files are not
        api.auth_check(download.hub, repo_type="dataset")
    builder = datasets.load_dataset_builder(download.hub, download.config, revision=info.sha)
    if str(info.sha) not in str(builder.base_path):  # the library prefers a folder of that name, or its own cache
        raise UserError(
            f"dataset {download.hub}: `datasets` answers from {builder.base_path or 'its cache'}, not from commit {info.sha} "
            "on the hub; run this in another folder, with another HF_HOME"
        )
    stream = builder.as_streaming_dataset(split=download.split)
    if stream.features is not None:
        _require_columns(download, list(stream.features))
    reader: Any = builder.config
    if hasattr(reader, "columns"):  # Parquet: the other columns need not even be transferred
        reader.columns, reader.batch_size = list(download.columns) or None, _GROUP_ROWS
    if hasattr(reader, "keep_default_na"):  # CSV and TSV: the texts "null" and "" are texts
        reader.keep_default_na = False
    split = (builder.info.splits or {}).get(download.split)
    return str(info.sha), builder.as_streaming_dataset(split=download.split), split.num_examples if split else None


def _require_columns(download: Download, present: list[str]) -> None:
    for name in download.columns:
        if name not in present:
            raise UserError(
                f"dataset {download.hub}: no column {name!r} upstream, only {', '.join(present)}; name one of these, or the "
                "revision that had it"
            )


def _write(file: Path, stream: Any, download: Download, tell: Callable[[int], None]) -> int:
    """The stream's rows as one Parquet file; how many they were."""
    import pyarrow
    import pyarrow.parquet

    rows = 0
    schema = None
    with _open_shared(file) as aside, contextlib.ExitStack() as stack:
        for batch in stream.with_format("arrow").iter(batch_size=_GROUP_ROWS):
            table = _shaped(batch, download, schema)
            if schema is None:
                schema = table.schema
                writer = stack.enter_context(pyarrow.parquet.ParquetWriter(aside, schema, compression="zstd"))
            writer.write_table(table, row_group_size=_GROUP_ROWS)
            rows += table.num_rows
            tell(rows)
        if schema is None:
            pyarrow.parquet.write_table(pyarrow.table({}), aside)
    return rows


def _shaped(batch: Any, download: Download, schema: Any) -> Any:
    """The wanted columns of a batch and the constant ones, with the types of the file's first batch if there was one.

    Formats without a schema of their own, such as JSON Lines, may leave a column out where it is empty.
    """
    import pyarrow

    columns = {name: batch[name] for name in download.columns or batch.column_names if name in batch.column_names}
    columns |= {name: pyarrow.array([value] * batch.num_rows) for name, value in download.constants.items()}
    if schema is None:
        _require_columns(download, batch.column_names)
        types = [
            (name, "string" if pyarrow.types.is_null(column.type) else column.type) for name, column in columns.items()
        ]
        schema = pyarrow.schema(types)
    if surplus := set(columns) - set(schema.names):
        raise UserError(
            f"dataset {download.hub}: column {min(surplus)!r} is not in its first rows; name the columns to take"
        )
    empty = pyarrow.nulls(batch.num_rows)
    return pyarrow.table(
        [columns.get(name, empty).cast(schema.field(name).type) for name in schema.names], schema=schema
    )


def _identity(download: Download, limit: int | None) -> dict[str, Any]:
    """What must be the same for files to belong together."""
    return {
        "hub": download.hub,
        "config": download.config,
        "split": download.split,
        "asked": download.revision,
        "columns": list(download.columns),
        "constants": dict(download.constants),
        "limit": limit,
    }


def _already(download: Download, limit: int | None) -> dict[str, Any] | None:
    """The record of a finished download; None when there is none or one of its files is gone or damaged."""
    if not download.finished.exists():
        return None
    record = read_record(download.finished)
    asked = download.revision
    same = asked in (None, record["asked"]) or str(record["revision"]).startswith(str(asked))
    if record["limit"] is None or (limit is not None and limit <= record["limit"]):
        limit = record["limit"]  # more than enough is there
    _refuse_difference(download.finished, record, _identity(download, limit), () if same else ("asked",))
    return record if all(_rows_in(download.out / name) is not None for name in record["rows_of"]) else None


def _refuse_difference(path: Path, before: dict[str, Any], now: dict[str, Any], also: tuple[str, ...]) -> None:
    for key in ("hub", "config", "split", "columns", "constants", "limit", *also):
        if before[key] != now[key]:
            mend = f"ask for {key} {before[key]!r} as well, or remove the folder, or name another with --out"
            raise UserError(f"{path}: {before['hub']} is here with {key} {before[key]!r}, not {now[key]!r}; {mend}")


def _begin(download: Download, record: dict[str, Any]) -> None:
    """Write down which commit the folder's files come from, or refuse when they come from another."""
    with exclusive_lock(download.out / f".{download.prefix}fetch.lock", wait_s=_BEGIN_S):
        for path in (download.finished, download.begun):
            if path.exists():
                _refuse_difference(path, read_record(path), record, ("revision",))
        if not (download.finished.exists() or download.begun.exists()):
            if found := sorted(download.out.glob(f"{download.prefix}[0-9]*.parquet")):
                raise UserError(f"{found[0]}: of unknown origin; move it away, or name another folder with --out")
            _write_record(download.begun, record)


def _finish(download: Download, record: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Write the final record if every file is there: the last element of an array job to come here does it."""
    files = [download.file(number, record["files"]) for number in range(record["files"])]
    rows_of = {file.name: rows for file in files if (rows := _rows_in(file)) is not None}
    record = record | {"rows": sum(rows_of.values()), "rows_of": rows_of, "complete": len(rows_of) == len(files)}
    if record["complete"]:
        record |= {"seconds": round(seconds, 1), "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
        with exclusive_lock(download.out / f".{download.prefix}fetch.lock", wait_s=_BEGIN_S):
            _write_record(download.finished, record)
            download.begun.unlink(missing_ok=True)
    return record
