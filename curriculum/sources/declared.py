"""Tables that a study declares: a known dataset, the user's own files, or a dataset on the Hugging Face hub.

    sources:
      mine: { path: "data/mine/*.parquet", text: body, id: doc_id }

Each use, such as a source or a tuning set, subclasses `DeclaredTable`: it adds the keys that name its columns, and returns
those columns from `reads`. Paths, downloads, checks and messages then work for it, because `declared_in` finds every table of
a study together with its key.
"""

from __future__ import annotations

import math
import os
import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from curricula.curriculum.sources.registry import KNOWN
from curricula.curriculum.sources.tables import (
    Place,
    Row,
    Table,
    column_names,
    columns_of,
    files_matching,
    head,
    require_flat,
    stem_files,
    table_exists,
)
from curricula.errors import UsageError, UserError
from curricula.settings import Settings, convert, require_distinct

FIRST_ROWS = 100
"""Rows of a table that are checked before any work begins."""
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
_PLAIN = re.compile(r"\w[\w.+-]*", re.ASCII)

Kind = Literal["text", "number", "messages", "value"]
"""What a column must hold; "value": anything, even if it is empty in all rows."""


class Reads(NamedTuple):
    """The columns that a key of a declaration names, and what they must hold."""

    columns: tuple[str, ...]
    kind: Kind = "text"


class DeclaredTable(Settings, frozen=True):
    """The place of a table: exactly one of `dataset`, `path` and `hub`."""

    dataset: str | None = None
    """A short name from curriculum/sources/datasets.yaml."""
    parts: tuple[str, ...] = ()
    """Parts of the dataset to read, such as [score_4, score_5]; all by default."""
    path: str | None = None
    """Files of your own (Parquet, JSON Lines, JSON, CSV): one file, a folder, or a pattern such as data/mine/*.parquet,
    relative to the study file's folder. Every node must be able to read them."""
    hub: str | None = None
    """A dataset on the Hugging Face hub, such as org/name. `curricula data fetch` and the fetch jobs get all its columns."""
    config: str | None = None
    """Its configuration on the hub, if it has several."""
    split: str = "train"
    """Its split on the hub."""
    revision: str | None = None
    """Its commit, branch or tag; by default the newest commit, which the fetch records."""
    licence: str = ""
    """Its licence, for the records."""
    gated: bool = False
    """Whether the hub requires that its licence be accepted; the plan then warns if there is no token."""

    def check(self) -> None:
        self.require_one("dataset", "path", "hub")
        self.allow_only_with("hub", "config", "split", "revision", "licence", "gated")
        if self.path == "":
            raise ValueError("path is empty; name a file, a folder or a pattern")
        if self.hub is not None and not _HUB_NAME.fullmatch(self.hub):
            raise ValueError(f"hub {self.hub!r} is not a name on the hub; write it as org/name")
        for name in ("config", "split"):
            if (value := getattr(self, name)) is not None and not _PLAIN.fullmatch(value):
                raise ValueError(f"{name} {value!r} must be a plain name on the hub")
        if self.dataset is not None and self.dataset not in DATASETS:
            raise ValueError(f"dataset {self.dataset!r} is not known; choose one of {', '.join(DATASETS)}")
        known = DATASETS[self.dataset].parts if self.dataset else ()
        for part in self.parts:
            if part not in known:
                raise ValueError(f"part {part!r} is not in {self.place}; it has {', '.join(known) or 'no parts'}")
        require_distinct("parts", self.parts)

    def reads(self) -> dict[str, Reads]:
        """The columns to read, by the key of this declaration that names them."""
        return {}

    @property
    def place(self) -> str:
        """The table's place, for messages."""
        if self.hub is None:
            return str(self.path) if self.dataset is None else f"dataset {self.dataset}"
        return "/".join([self.hub, *self._config_and_split])

    @property
    def _config_and_split(self) -> list[str]:
        return [self.config, self.split] if self.config else [self.split]

    @property
    def on_the_hub(self) -> set[tuple[str, str | None, str]]:
        """The tables on the hub that it reads, as (dataset, configuration, split). Several short names can share a table."""
        if self.dataset is not None:
            known = dataset(self.dataset)
            return {(known.hub, part, known.split) for part in self.parts or known.parts or (None,)}
        return set() if self.hub is None else {(self.hub, self.config, self.split)}

    def stems(self, root: Path) -> list[Path]:
        """Its tables in the data folder `root`; none for the user's own files."""
        if self.dataset is not None:
            return dataset(self.dataset).stems(root, self.parts)
        if self.hub is None:
            return []
        return [root / self.hub.replace("/", "--") / "-".join(self._config_and_split)]

    def is_here(self, root: Path | None) -> bool:
        """Whether the data folder `root` holds all its tables. The user's own files count as present."""
        return self.path is not None or (root is not None and all(map(table_exists, self.stems(root))))

    def files(self, root: Path, where: str) -> list[Path]:
        """Its files. Raises UserError, beginning with `where`, its key in the study, if there are none."""
        try:
            if self.path is not None:
                return files_matching(self.path)
            return [file for stem in self.stems(root) for file in stem_files(stem)]
        except UserError as error:
            raise UserError(f"{where}: {error}") from None

    def open(self, root: Path, where: str) -> Table:
        """The whole table. JSON Lines files are read once to count their rows."""
        return Table.of(self.files(root, where))

    def require_flat(self, root: Path, where: str) -> None:
        """Raise UserError, beginning with `where`, if tables in subfolders of its folders would be left out."""
        try:
            for place in self.stems(root) if self.path is None else [Path(self.path)]:
                require_flat(place)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None

    def look(self, root: Path, where: str) -> list[Row]:
        """The first rows, once their columns have been checked.

        Raises UserError if there is no row, or if a column is missing, is empty in all of these rows or holds something else.
        Its message names the key under `where`, the file and the column. A folder with tables in subfolders is refused, too.
        """
        self.require_flat(root, where)
        for file in self.files(root, where):
            if rows := head(file, FIRST_ROWS):
                break
        else:
            raise UserError(f"{where}: {self.place} contains no rows; name another file or split")
        present = column_names(file, rows)
        for key, wanted in self.reads().items():
            _require_columns(f"{where}.{key}", file, rows, present, wanted)
        return rows


class TextTable(DeclaredTable, frozen=True):
    text: str = "text"
    """The column of texts, or a template with columns in braces, such as "Question: {question}\\nAnswer: {answer}"."""
    id: str | None = None
    """The column of unique ids; by default `id` if there is one, otherwise the row's number."""
    score: str | None = None
    """A column of numbers by which `min_score` and `max_score` choose rows."""
    min_score: float | None = None
    """Read only rows with at least this score; rows without a score are left out."""
    max_score: float | None = None
    """Read only rows with at most this score; rows without a score are left out."""

    def check(self) -> None:
        super().check()
        if self.dataset is not None:
            self.require_default(("text", "id", "score"), "in a table of your own")
        if not columns_of(self.text) or not self.text:
            raise ValueError(f"text {self.text!r} names no column; name one, or write columns in braces")
        for name in ("min_score", "max_score"):
            if (bound := getattr(self, name)) is not None and not (self.score and math.isfinite(bound)):
                raise ValueError(f"{name} is {bound}, which needs a finite number and a column of scores in `score`")
        if self.bounds[0] > self.bounds[1]:
            raise ValueError(f"min_score {self.min_score} is above max_score {self.max_score}; swap them")

    @property
    def template(self) -> str:
        """The column of texts or the template, also for a known dataset."""
        return dataset(self.dataset).text if self.dataset is not None else self.text

    def reads(self) -> dict[str, Reads]:
        is_column = columns_of(self.template) == (self.template,)
        reads = {"text": Reads(columns_of(self.template), "text" if is_column else "value")}
        if self.id:
            reads["id"] = Reads((self.id,), "value")
        if self.score:
            reads["score"] = Reads((self.score,), "number")
        return reads

    @property
    def bounds(self) -> tuple[float, float]:
        """The lowest and the highest score of the rows to read."""
        low, high = self.min_score, self.max_score
        return -math.inf if low is None else low, math.inf if high is None else high

    def chosen_rows(self, table: Table, where: str) -> Sequence[int] | None:
        """The numbers of the rows whose scores are within bounds, or None if all rows are to be read."""
        if not self.score or self.bounds == (-math.inf, math.inf):
            return None
        low, high = self.bounds
        chosen = array("q")
        for number, row in enumerate(table.rows((self.score,))):
            if (value := row.get(self.score)) in (None, ""):
                continue
            score = as_number(value)
            if score is None:
                raise UserError(
                    f"{where}.score: {table.place(number)}: column {self.score!r} holds {value!r:.60}, but a number is "
                    "needed; correct the row"
                )
            if low <= score <= high:
                chosen.append(number)
        return chosen

    def overlaps(self, other: TextTable) -> bool:
        """Whether both can read the same row of the same table."""
        (low, high), (other_low, other_high) = self.bounds, other.bounds
        if self.score == other.score and max(low, other_low) > min(high, other_high):
            return False
        if self.path is not None and other.path is not None:
            mine, others = ({file.resolve() for file in files_matching(path)} for path in (self.path, other.path))
            return bool(mine & others)
        return bool(self.on_the_hub & other.on_the_hub)


class Dataset(TextTable, frozen=True, kw_only=True):
    """A public dataset by its short name: a table on the hub whose parts are its configurations there.

    In a data folder it is `FOLDER/SPLIT.*`, or `FOLDER/PART.*` for each of its parts, in any format of
    `curriculum/sources/tables.py` with the hub's columns.
    """

    hub: str
    """Its name on the hub."""
    folder: str
    """Its folder within a data folder."""
    licence: str = "ODC-BY"
    """Its licence, for the records."""
    columns: tuple[str, ...] = ()
    """Columns to fetch; by default those of `id` and `text`."""
    tokens: int | None = None
    """Published number of tokens, used by the plan until the source is tokenised."""
    documents: int | None = None
    """Published number of rows, used by the plan for sources that read only some of them."""
    dialogue: bool = False
    """Whether it consists of User/Assistant turns. Tokenisation gives the speakers names."""
    subset: bool = False
    """Whether the hub has more parts than `parts`."""
    stem: str | None = None
    """The table's path in a data folder, if not FOLDER/SPLIT."""

    def check(self) -> None:
        """Check nothing: for other tables, `parts` must be parts of a known dataset, but here they define them."""

    def whole(self, root: Path) -> Path:
        """The path of a single table under `root` that holds all parts."""
        return root / (self.stem or f"{self.folder}/{self.split}")

    def stems(self, root: Path, parts: tuple[str, ...] = ()) -> list[Path]:
        """The tables under `root` that hold these `parts` (all of them by default)."""
        whole = self.whole(root)
        wanted = parts or self.parts
        if not wanted:
            return [whole]
        pieces = [root / self.folder / part for part in wanted]
        if not table_exists(whole) or self.split in wanted:
            return pieces
        if parts or self.subset or any(table_exists(piece) for piece in pieces):
            raise UserError(
                f"{whole}: holds all parts of {self.hub}, but {', '.join(wanted)} are asked for; keep either this table or "
                "one for each part"
            )
        return [whole]


DATASETS: dict[str, Dataset] = convert(KNOWN["datasets"], dict[str, Dataset])


def dataset(name: str) -> Dataset:
    try:
        return DATASETS[name]
    except KeyError:
        raise UsageError(f"dataset {name!r} is not known; choose one of {', '.join(DATASETS)}") from None


def declared_in(settings: Any, key: str = "") -> Iterator[tuple[str, DeclaredTable]]:
    """Every table that is declared anywhere in `settings`, with its dotted key."""
    if isinstance(settings, DeclaredTable):
        yield key, settings
    elif isinstance(settings, msgspec.Struct):
        yield from declared_in(msgspec.structs.asdict(settings), key)
    elif isinstance(settings, (tuple, list)):
        yield from declared_in(dict(enumerate(settings)), key)
    elif isinstance(settings, dict):
        for name, value in settings.items():
            yield from declared_in(value, f"{key}.{name}" if key else str(name))


def anchor(settings: Any, folder: Path) -> None:
    """Make the paths of all declared tables absolute; relative ones start at `folder`."""
    for _, table in declared_in(settings):
        if table.path is not None:
            path = os.path.join(folder.absolute(), os.path.expanduser(table.path))
            msgspec.structs.force_setattr(table, "path", path)


def anchor_keys(settings: Any, keys: Iterable[str], folder: Path) -> None:
    """Make the paths under these keys absolute; relative ones start at `folder`. Other values, such as names, stay."""
    for key in keys:
        if value := getattr(settings, key):
            path = os.path.join(folder.absolute(), os.path.expanduser(value))
            if os.path.exists(path):
                msgspec.structs.force_setattr(settings, key, path)


def _require_columns(where: str, file: Path, rows: list[Row], present: list[str], wanted: Reads) -> None:
    needed, fits = _KINDS[wanted.kind]
    for column in wanted.columns:
        if column not in present:
            raise UserError(f"{where}: {file} has no column {column!r}, only {', '.join(present)}; name one of these")
        for number, row in enumerate(rows):
            if row.get(column) not in (None, "") and not fits(row[column]):
                raise UserError(
                    f"{where}: {Place(file, number)}: column {column!r} holds {row[column]!r:.60}, but "
                    f"{needed} is needed; name another column or correct the rows"
                )
    values = (row.get(column) for row in rows for column in wanted.columns)
    if wanted.kind != "value" and all(value in (None, "", []) for value in values):
        raise UserError(
            f"{where}: column {' and '.join(map(repr, wanted.columns))} is empty in the first {len(rows)} rows of {file}; "
            "name another column"
        )


def as_number(value: Any) -> float | None:
    """`value` as a number, even if it is text, as in CSV files; None for anything else."""
    if isinstance(value, bool):
        return None
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None


_KINDS: dict[Kind, tuple[str, Callable[[Any], bool]]] = {
    "text": ("text", lambda value: isinstance(value, str)),
    "number": ("a number", lambda value: as_number(value) is not None),
    "messages": ("a list of messages", lambda value: isinstance(value, list)),
    "value": ("anything", lambda value: True),
}
"""For each kind, what a column must hold, in words and as a test of a value."""
