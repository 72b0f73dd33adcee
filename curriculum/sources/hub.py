"""Fetches public datasets from the Hugging Face hub into a data folder, as Parquet for `curriculum/sources/tables.py`.

    curricula data fetch gsm8k --out /data

A download writes one file for each file upstream and renames it when it is complete, so a restart fetches only what is
missing or damaged, and the elements of an array job can divide the files among them. The commit is resolved once and then
requested by its full hash. `.fetching.json` records it from the first file on, so that all elements and later starts fetch
that commit even if the hub has a newer one by then; `.fetched.json` replaces that record when every file is there (tables
ignore names that begin with a dot). The hub's own library retries failed connections. The error that it finally raises
becomes one sentence that says what to do and never contains the token.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from curricula.curriculum.sources.declared import DeclaredTable, dataset
from curricula.curriculum.sources.tables import columns_of, count_rows
from curricula.durable import NO_SPACE, disk_full_explained, exclusive_lock, names_in, open_atomically, write_json
from curricula.errors import StorageError, UserError
from curricula.progress import Progress, silent

_GROUP_ROWS = 1000
"""Rows of a Parquet row group, and the most that are in memory at a time."""
_ANSWER_S = 30.0
"""Time limit of the first request to the hub."""
_BEGIN_S = 60.0
"""How long the elements of a job wait for one another when they begin or finish."""
_FILE_S = 600.0
"""How long a fetch waits for a file that another fetch is writing."""

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
    """One split of one configuration of a hub dataset, and where its files go."""

    hub: str
    config: str | None
    split: str
    revision: str | None
    """A commit (at least its first 7 digits), branch or tag; by default the newest commit when the first file is fetched."""
    columns: tuple[str, ...]
    """Columns to keep; all when empty."""
    out: Path
    """The folder of its files."""
    licence: str
    gated: bool = False
    constants: Mapping[str, str] = field(default_factory=dict)
    """Columns to add, with the same value in every row."""
    prefix: str = ""
    """Prefix of the file names, for downloads that share a folder."""
    whole: Path | None = None
    """Where the user can keep a table of their own with all parts of the dataset; None if one table cannot replace them."""

    @property
    def begun(self) -> Path:
        return self.out / f".{self.prefix}fetching.json"

    @property
    def finished(self) -> Path:
        return self.out / f".{self.prefix}fetched.json"

    def file(self, index: int, count: int) -> Path:
        return self.out / f"{self.prefix}{index:05d}-of-{count:05d}.parquet"


def downloads_of(name: str, root: Path, parts: tuple[str, ...] = ()) -> list[Download]:
    """The downloads of a registered dataset into the data folder `root`: one for each of its `parts`."""
    entry = dataset(name)
    columns = entry.columns or (*([entry.id] if entry.id else []), *columns_of(entry.text))
    # A single table can replace all parts together. Reading only some of them from it is refused.
    whole = None if parts or entry.subset or entry.split in entry.parts else entry.whole(root)
    return [
        Download(
            entry.hub,
            part,
            entry.split,
            entry.revision,
            columns,
            root / entry.folder / part if part else entry.whole(root),
            entry.licence,
            entry.gated,
            whole=whole if part else None,
        )
        for part in parts or entry.parts or (None,)
    ]


def declared_download(table: DeclaredTable, root: Path) -> Download:
    """The download of a declared table on the hub: all its columns, since several uses can read different ones."""
    (out,), licence = table.stems(root), table.licence or "not stated"
    return Download(str(table.hub), table.config, table.split, table.revision, (), out, licence, table.gated)


def fetch(
    download: Download, progress: Progress = silent, limit: int | None = None, element: tuple[int, int] | None = None
) -> dict[str, Any]:
    """Fetch the files that are missing or damaged; return the download's record, which is `complete` when no file is missing.

    `limit` fetches only the first rows, into one file. `element` (i, n) fetches only every n-th file, from the i-th on: the
    share of one of a job's n elements. A finished download does not use the network. Raises UserError when the hub does not
    have what is asked for, or when the folder holds something else.
    """
    index, elements = element or (0, 1)
    if record := _finished_record(download, limit):
        if download.begun.exists():  # a kill between the two records left it behind, and readers refuse such a folder
            download.begun.unlink(missing_ok=True)
        progress(record["rows"], record["rows"])
        return record
    started = time.monotonic()
    with disk_full_explained(download.out):
        with _explained_of(download):
            commit, stream, known = _open(download)  # before anything is written, so that a refusal leaves no folder
        count = 1 if limit is not None else stream.num_shards
        record = _identity(download, limit) | {
            "revision": commit,
            "licence": download.licence,
            "files": count,
            "upstream_rows": known,
        }
        _begin(download, record)
        files = {number: download.file(number, count) for number in range(count) if number % elements == index}
        present = {number: rows for number, file in files.items() if (rows := _rows_in(file)) is not None}
        done = sum(present.values())
        total = 0 if known is None or elements > 1 else min(known, limit or known)
        for number in sorted(files.keys() - present.keys()):
            file = files[number]
            # Each file has its own lock, for fetches that divide the files differently.
            lock = file.with_name(f".{file.name}.lock")
            with exclusive_lock(lock, wait_s=_FILE_S, shared=True):
                rows = _rows_in(file)  # another fetch can have written it meanwhile
                if rows is None:
                    with _explained_of(download, file.name):
                        shard = stream.take(limit) if limit else stream.shard(count, number, contiguous=True)
                        rows = _write(file, shard, download, progress, done, total)
                lock.unlink(missing_ok=True)  # whoever waits for it, or creates it again, finds the file
            done += rows
        if done != total:  # the total was not known
            progress(done, done)
        return _finish(download, record, time.monotonic() - started)


def is_fetched(download: Download) -> bool:
    """Whether a download is finished and all its files are still there. Raises StorageError if they cannot be listed."""
    try:
        return download.finished.exists() and not lost_files(download.finished)
    except StorageError:
        raise
    except UserError:  # a damaged record
        return False


def require_whole(stem: Path, rows: int | None) -> None:
    """Raise UserError when the table folder `stem` holds only the first rows of a dataset and more are needed, or has lost
    files since it was fetched, so that a part would pass for the whole.

    `rows` are needed, or all of them when it is None. A folder that does not exist, or was not fetched, passes.
    """
    for path in sorted(stem.glob(".*fetched.json")):
        record = read_record(path)
        if lost := lost_files(path):
            raise UserError(
                f"{lost[0]}: was fetched and is gone; fetch the dataset again, which transfers only missing files, or remove "
                f"{path} if the folder's files are your own"
            )
        limit = record["limit"]
        if limit is None or record["rows"] < limit:  # the dataset has no more
            continue
        if rows is None or rows > limit:
            raise UserError(
                f"{stem}: only the first {limit} rows were fetched, but {'all' if rows is None else rows} are needed; remove "
                "this folder, or name another data folder with --out, and fetch without --rows"
            )


def lost_files(record: Path) -> list[Path]:
    """The files of a finished fetch that are gone, as after a purge of the disk. Raises UserError if its record is damaged."""
    fetched, present = read_record(record)["rows_of"], {*names_in(record.parent)}
    return [record.parent / name for name in fetched if name not in present]


def upstream_rows(stem: Path) -> int | None:
    """Rows that the table in folder `stem` has on the hub; None if it was not fetched or the hub does not say."""
    path = stem / ".fetched.json"
    return read_record(path).get("upstream_rows") if path.exists() else None


def read_record(path: Path) -> dict[str, Any]:
    """The record of a fetch in `path`; raises UserError when it is damaged."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        record = None
    keys = _FINISHED_RECORD if path.name.endswith("fetched.json") else _RECORD
    if not isinstance(record, dict) or not all(isinstance(record.get(key, ...), kind) for key, kind in keys.items()):
        raise UserError(f"{path}: damaged record of a fetch; remove the folder {path.parent} and fetch it again")
    return record


def _rows_in(file: Path) -> int | None:
    """Rows of a Parquet file; None when it must be fetched because it is missing or damaged."""
    if not file.exists():
        return None
    try:
        return count_rows(file)
    except UserError as error:
        if isinstance(error, StorageError) or not os.access(file, os.R_OK):  # its disk fails, or it is another user's
            raise
        return None


def _open(download: Download) -> tuple[str, Any, int | None]:
    """The commit's full hash, the stream of its rows with the wanted columns, and the number of rows if the hub knows it."""
    import datasets
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RevisionNotFoundError

    datasets.disable_progress_bars()
    api, begun = HfApi(), _commit_so_far(download)
    try:
        info = api.dataset_info(download.hub, revision=begun or download.revision, timeout=_ANSWER_S)
    except RevisionNotFoundError:
        if not begun:
            raise
        raise UserError(
            f"dataset {download.hub}: the hub no longer has commit {begun}, which {download.out} was begun with; remove the "
            "folder and fetch it again"
        ) from None
    if info.gated:  # everyone can read the card of a gated dataset, but not its files
        api.auth_check(download.hub, repo_type="dataset")
    builder = datasets.load_dataset_builder(download.hub, download.config, revision=info.sha)
    if str(info.sha) not in str(builder.base_path):  # the library prefers a folder of that name, or its own cache
        raise UserError(
            f"dataset {download.hub}: `datasets` reads {builder.base_path or 'its cache'}, not commit {info.sha} "
            "on the hub; run this in another folder, with another HF_HOME"
        )
    stream = builder.as_streaming_dataset(split=download.split)
    if stream.features is not None:
        _require_columns(download, list(stream.features))
    reader: Any = builder.config
    if hasattr(reader, "columns"):  # Parquet: the other columns are not even transferred
        reader.columns, reader.batch_size = list(download.columns) or None, _GROUP_ROWS
    if hasattr(reader, "keep_default_na"):  # CSV and TSV: the texts "null" and "" are texts
        reader.keep_default_na = False
    split = (builder.info.splits or {}).get(download.split)
    return str(info.sha), builder.as_streaming_dataset(split=download.split), split.num_examples if split else None


def _commit_so_far(download: Download) -> str | None:
    """The commit that earlier files of this download come from; None if there are none, or if another dataset or revision is
    asked for."""
    records = [read_record(path) for path in (download.finished, download.begun) if path.exists()]
    for record in records:
        if record["hub"] == download.hub and download.revision in (None, record["asked"]):
            return str(record["revision"])
    return None


def _require_columns(download: Download, present: list[str]) -> None:
    for name in download.columns:
        if name not in present:
            raise UserError(
                f"dataset {download.hub}: no column {name!r} upstream, only {', '.join(present)}; name one of these, or a "
                "revision that has it"
            )


def _write(file: Path, stream: Any, download: Download, progress: Progress, done: int, total: int) -> int:
    """Write the stream's rows as one Parquet file and return their number. Other files hold `done` rows of the `total`."""
    import pyarrow
    import pyarrow.parquet

    rows = 0
    schema = None
    with open_atomically(file, shared=True) as aside, contextlib.ExitStack() as stack:
        for batch in stream.with_format("arrow").iter(batch_size=_GROUP_ROWS):
            table = _shaped(batch, download, schema)
            if schema is None:
                schema = table.schema
                writer = stack.enter_context(pyarrow.parquet.ParquetWriter(aside, schema, compression="zstd"))
            writer.write_table(table, row_group_size=_GROUP_ROWS)
            rows += table.num_rows
            progress(done + rows, total)
        if schema is None:
            pyarrow.parquet.write_table(pyarrow.table({}), aside)
    return rows


def _shaped(batch: Any, download: Download, schema: Any) -> Any:
    """The wanted and the constant columns of a batch, with the types of the file's first batch (`schema`), if any.

    Formats without a schema, such as JSON Lines, can omit a column while it is empty.
    """
    import pyarrow

    columns = {name: batch[name] for name in download.columns or batch.column_names if name in batch.column_names}
    columns |= {name: pyarrow.array([value] * batch.num_rows) for name, value in download.constants.items()}
    if schema is None:
        _require_columns(download, batch.column_names)
        types = [(name, "string" if pyarrow.types.is_null(column.type) else column.type) for name, column in columns.items()]
        schema = pyarrow.schema(types)
    if surplus := set(columns) - set(schema.names):
        raise UserError(
            f"dataset {download.hub}: column {min(surplus)!r} is missing from its first rows; name the columns to fetch"
        )
    empty = pyarrow.nulls(batch.num_rows)
    return pyarrow.table([columns.get(name, empty).cast(schema.field(name).type) for name in schema.names], schema=schema)


def _identity(download: Download, limit: int | None) -> dict[str, Any]:
    """The part of the record that all files of one download share."""
    return {
        "hub": download.hub,
        "config": download.config,
        "split": download.split,
        "asked": download.revision,
        "columns": list(download.columns),
        "constants": dict(download.constants),
        "limit": limit,
    }


def _finished_record(download: Download, limit: int | None) -> dict[str, Any] | None:
    """The record of a finished download; None when there is none, or when one of its files is missing or damaged."""
    if not download.finished.exists():
        return None
    record = read_record(download.finished)
    asked = download.revision
    same = asked in (None, record["asked"]) or str(record["revision"]).startswith(str(asked))
    if record["limit"] is None or (limit is not None and limit <= record["limit"]):
        limit = record["limit"]  # there are enough rows
    _refuse_difference(download.finished, record, _identity(download, limit), () if same else ("asked",))
    return record if all(_rows_in(download.out / name) is not None for name in record["rows_of"]) else None


def _refuse_difference(path: Path, recorded: dict[str, Any], wanted: dict[str, Any], more_keys: tuple[str, ...]) -> None:
    for key in ("hub", "config", "split", "columns", "constants", "limit", *more_keys):
        if recorded[key] != wanted[key]:
            then, now = _in_words(key, recorded[key]), _in_words(key, wanted[key])
            raise UserError(
                f"{path}: {recorded['hub']} was fetched with {then}, not {now}; ask for {then} again, remove the folder, or "
                "name another with --out"
            )


def _in_words(key: str, value: Any) -> str:
    if key != "limit":
        return f"{key} {value!r}"
    return "all rows" if value is None else f"the first {value:,} rows"


def _begin(download: Download, record: dict[str, Any]) -> None:
    """Record which commit the folder's files come from. Raises UserError when those already there come from another commit or
    divide it differently, which another version of `datasets` can do."""
    with exclusive_lock(download.out / f".{download.prefix}fetch.lock", wait_s=_BEGIN_S, shared=True):
        for path in (download.finished, download.begun):
            if path.exists():
                _refuse_difference(path, read_record(path), record, ("revision", "files"))
        if not (download.finished.exists() or download.begun.exists()):
            if found := sorted(download.out.glob(f"{download.prefix}[0-9]*.parquet")):
                raise UserError(f"{found[0]}: of unknown origin; move it away, or name another data folder with --out")
            write_json(download.begun, record, shared=True)


def _finish(download: Download, record: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Complete the record with the rows of each file, and write it if no file is missing. Returns the record."""
    files = [download.file(number, record["files"]) for number in range(record["files"])]
    rows_of = {file.name: rows for file in files if (rows := _rows_in(file)) is not None}
    record = record | {"rows": sum(rows_of.values()), "rows_of": rows_of, "complete": len(rows_of) == len(files)}
    if record["complete"]:
        record |= {"seconds": round(seconds, 1), "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
        with exclusive_lock(download.out / f".{download.prefix}fetch.lock", wait_s=_BEGIN_S, shared=True):
            write_json(download.finished, record, shared=True)
            download.begun.unlink(missing_ok=True)
    return record


def download_model(what: str, repository: str, revision: str | None, patterns: list[str]) -> Path:
    """Download the files of a model that match; return their folder in the hub's own cache. Errors begin with `what`."""
    from huggingface_hub import constants, snapshot_download

    with disk_full_explained(Path(constants.HF_HUB_CACHE)), hub_explained(what, repository, revision):
        return Path(snapshot_download(repository, revision=revision, allow_patterns=patterns))


def _explained_of(download: Download, file: str = "") -> contextlib.AbstractContextManager[None]:
    return hub_explained(f"dataset {download.hub}", f"datasets/{download.hub}", download.revision, file)


@contextlib.contextmanager
def hub_explained(what: str, place: str, revision: str | None, file: str = "") -> Iterator[None]:
    """Turn an error of the hub's libraries into a UserError that begins with `what` and names the page at `place`, or into a
    HubAway if the failure can pass. `file` is the file being transferred, if any.

    The error of a full disk, even in a transfer that goes on after a broken connection, and errors not foreseen here are raised
    unchanged.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if meaning := _meaning(place, revision, file, error):
            raise type(meaning)(f"{what}: {meaning}") from error
        raise


class HubAway(UserError):
    """The hub does not answer, or the connection broke off. A later start can succeed; it keeps the files that are complete."""

    exit_code = os.EX_UNAVAILABLE
    """EX_UNAVAILABLE is 69."""


def is_hub_away(error: Exception) -> bool:
    """Whether `hub_explained` would turn `error` into a `HubAway`."""
    return isinstance(_meaning("", None, "", error), HubAway)


def _meaning(place: str, revision: str | None, file: str, error: BaseException) -> UserError | None:
    """What went wrong and what to do about it, without its subject; None for a full disk and for errors not foreseen here.

    Network errors are named only by their class, since their text can quote a header.
    """
    import pyarrow
    from huggingface_hub import constants, errors, get_token

    if isinstance(error, OSError) and error.errno in NO_SPACE:
        return None
    chain = list(_causes(error))
    page = f"https://huggingface.co/{place}"
    answered: list[Any] = [link for link in chain if getattr(link, "response", None) is not None]
    status = answered[0].response.status_code if answered else None
    text = " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__

    def caused_by(*kinds: type[BaseException]) -> bool:
        return any(isinstance(link, kinds) for link in chain)

    def named(*names: str) -> bool:  # for classes that moved between versions of the libraries
        return any(base.__name__ in names for link in chain for base in type(link).__mro__)

    if caused_by(UnicodeEncodeError) and not file:
        return UserError("the token holds a character that no header can hold; copy it into HF_TOKEN again")
    if caused_by(errors.GatedRepoError):
        why = "the token's account has not accepted its licence" if get_token() else "there is no token"
        return UserError(f"gated, and {why}; accept its licence at {page} and set HF_TOKEN")
    if status == 401 and get_token():
        return UserError(
            "the hub does not know the token (401); set HF_TOKEN to a valid one, see https://huggingface.co/settings/tokens, "
            "or unset it"
        )
    if status == 403:
        return UserError(f"the token may not read it (403); let it read gated repositories in its settings, and see {page}")
    if caused_by(errors.RevisionNotFoundError):
        return UserError(f"no revision {revision!r} on the hub; choose one from {page}/commits/main")
    if answered and isinstance(answered[0], errors.EntryNotFoundError):  # a file, not the repository
        return UserError(f"{text}; see {page}")
    if status in (401, 404) or named("DatasetNotFoundError"):  # without a token, the hub answers 401 whether it exists or not
        return UserError(f"not on the Hugging Face hub, or private; see {page}, and set HF_TOKEN if it is yours")
    is_offline = constants.HF_HUB_OFFLINE and caused_by(errors.LocalEntryNotFoundError)  # as transformers reports it
    if is_offline or caused_by(errors.OfflineModeIsEnabled):
        return UserError("HF_HUB_OFFLINE forbids the network; fetch it beforehand, or unset the variable")
    if status is not None:
        return HubAway(f"the hub answers {status}; try again later")
    if caused_by(ConnectionError, TimeoutError) or named("TransportError", "RequestException"):
        kind = type(error).__name__
        if file:
            return HubAway(f"the connection broke off in {file} ({kind}); run the same command again, finished files are kept")
        return HubAway(
            f"the hub at {constants.ENDPOINT} cannot be reached ({kind}); run this where there is a network, or set "
            "HF_ENDPOINT to a mirror"
        )
    # `datasets` takes the types of JSON Lines from the beginning of the first file, where a column can be empty.
    if caused_by(pyarrow.ArrowException) or text.startswith("Couldn't cast"):
        return UserError(
            f"{file or 'a file'} cannot be read ({text}); see {page} for a repaired revision, or download the files by hand "
            "and name them in `path`"
        )
    # For a dataset: no such configuration or split, or no files. For a model, most ValueErrors mean that its files are bad.
    invalid = (ValueError,) if place.startswith("datasets/") else (errors.HFValidationError, errors.LocalEntryNotFoundError)
    if caused_by(*invalid) or named("DataFilesNotFoundError", "EmptyDatasetError"):
        return UserError(f"{text}; see {page}")
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        yield error
        seen.add(id(error))
        error = error.__cause__ or error.__context__
