"""The documents to score or rewrite: a dataset by its short name, or any table with the columns `id` and `text`."""

from __future__ import annotations

from pathlib import Path

from curricula.curriculum.sources.documents import Documents
from curricula.curriculum.sources.registry import dataset
from curricula.curriculum.sources.tables import SUFFIXES, Table
from curricula.errors import UsageError


def open_table_input(stem: Path, limit: int | None) -> Documents:
    """The rows of a table, or the first ones; `stem` may be a folder, or a file with or without its suffix."""
    suffix = next((suffix for suffix in SUFFIXES if stem.is_file() and stem.name.endswith(suffix)), "")
    stem = stem.with_name(stem.name.removesuffix(suffix))
    table = Table.open(stem)
    return Documents(str(stem.resolve()), table, (range(len(table))[:limit],), "text", "")


def open_dataset_input(name: str, root: Path, scores: tuple[int, ...], limit: int | None) -> Documents:
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
