"""The public datasets by short names (datasets.yaml): where they are on the hub, on what terms, and how their rows read.

A data folder is a fictional world, the folder that the environment variable CURRICULA_DATA names, or one that `curricula
data fetch` filled. There a dataset is `FOLDER/SPLIT.*`, or `FOLDER/PART.*` for each of its parts, in any format of
`curriculum/sources/tables.py` with the hub's columns.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from curricula.core_yaml import load_yaml
from curricula.curriculum.sources.tables import table_exists
from curricula.errors import UsageError, UserError
from curricula.settings import Settings, convert


class Dataset(Settings, frozen=True):
    """One public dataset: where it is, on what terms, and which text its rows hold."""

    hub: str
    """Its name on the hub."""
    folder: str
    """Its folder within a data folder."""
    parts: tuple[str, ...] = ()
    """Configurations on the hub; empty where there is only one."""
    split: str = "train"
    """Its split on the hub."""
    revision: str | None = None
    """A commit; the newest by default, which `curricula data fetch` then records."""
    licence: str = "ODC-BY"
    """Its licence, for the records."""
    gated: bool = False
    """Whether the hub asks for the acceptance of its licence."""
    text: str = "text"
    """The text of a row: a column, or a template with columns in braces."""
    id: str | None = None
    """The column of ids, if there is one."""
    columns: tuple[str, ...] = ()
    """Columns that are fetched; by default those of `id` and `text`."""
    tokens: int | None = None
    """Published count, for the plan before anything is tokenised."""
    documents: int | None = None
    """Published count of rows, for the plan of a source that reads only some of them."""
    dialogue: bool = False
    """Whether it consists of User/Assistant turns, whose speakers get names when tokenised."""
    subset: bool = False
    """Whether the hub has more parts than `parts`."""
    stem: str | None = None
    """The table in a data folder, where it is not FOLDER/SPLIT."""

    def whole(self, root: Path) -> Path:
        """The single table under `root` that holds all parts."""
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
                f"{whole}: holds all parts of {self.hub}, where {', '.join(wanted)} are asked for; keep either this table or "
                "one for each part"
            )
        return [whole]


KNOWN: dict[str, Any] = load_yaml(Path(__file__).with_name("datasets.yaml").read_text(encoding="utf-8"))
"""The file of known datasets and tuning sets, as plain values."""
DATASETS: dict[str, Dataset] = convert(KNOWN["datasets"], dict[str, Dataset])


def dataset(name: str) -> Dataset:
    try:
        return DATASETS[name]
    except KeyError:
        raise UsageError(f"dataset {name!r} is not known; choose one of {', '.join(DATASETS)}") from None


def local_root() -> Path | None:
    """The folder that CURRICULA_DATA names, or None when datasets come from the Hugging Face hub."""
    folder = os.environ.get("CURRICULA_DATA")
    if not folder:
        return None
    if not Path(folder).is_dir():
        raise UserError(f"CURRICULA_DATA={folder}: no such folder; unset it to use the Hugging Face hub")
    return Path(folder).resolve()
