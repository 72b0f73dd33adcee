"""The public datasets of the study by short names, and how their documents are read: from a local folder, else the hub.

A local folder (the run's fictional world, or the one that the environment variable CURRICULA_DATA names) holds the files
under the relative path of each entry, as JSONL, JSON or CSV with the hub's columns. Names, revisions and sizes are those
the datasets were published under; token counts are the publishers' or later users' and only inform the plan.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curriculum.errors import UsageError, UserError

Row = dict[str, Any]


@dataclass(frozen=True)
class Dataset:
    """One public dataset: where it is, what it costs to use, and which text its rows hold."""

    files: tuple[str, ...]  # relative paths in a local folder
    hub: str
    configs: tuple[str | None, ...] = (None,)
    split: str = "train"
    revision: str | None = None
    licence: str = "ODC-BY"
    gated: bool = False
    tokens: int | None = None  # as published, for the plan before anything is tokenised
    text: Callable[[Row], str] = lambda row: row["text"]


def _gsm8k_text(row: Row) -> str:
    return f"Question: {row['question']}\nAnswer: {row['answer']}"


_FINEWEB = "locuslab/fineweb_annotated"
_SMOLLM = "HuggingFaceTB/smollm-corpus"

DATASETS: dict[str, Dataset] = {
    # Safe-only pretraining text (paper section 4.4: FineWeb-Edu, StackOverflow, FineMath and Cosmopedia).
    "fineweb-edu": Dataset(("fineweb_annotated/score_0.jsonl",), _FINEWEB, ("score_0",), revision="d96861c"),
    "cosmopedia": Dataset(("cosmopedia/train.jsonl",), _SMOLLM, ("cosmopedia-v2",), tokens=28_000_000_000),
    "finemath": Dataset(
        ("finemath/train.jsonl",), "HuggingFaceTB/finemath", ("finemath-3plus",), tokens=34_000_000_000
    ),
    "stackoverflow": Dataset(("stackoverflow/train.jsonl",), "bigcode/stackoverflow-clean", licence="CC-BY-SA-4.0"),
    # Safety interventions (section 3.1) made from the unsafe part of FineWeb.
    "safeweb": Dataset(
        ("safeweb/train.jsonl",),
        "locuslab/safeweb",
        ("score_1_rephrased", "score_3_rephrased", "score_4_rephrased", "score_5_rephrased"),
        revision="f73f213",
        tokens=16_740_000_000,
    ),
    "refuseweb": Dataset(
        ("refuseweb/train.jsonl",),
        "locuslab/refuseweb",
        ("score_4_refusal", "score_5_refusal"),
        revision="a2cb2e1",
        tokens=4_150_000_000,
    ),
    "moral-education": Dataset(
        ("moral_education/train.jsonl",),
        "locuslab/moral_education",
        ("score_4_morals", "score_5_morals"),
        revision="579300f",
        tokens=6_210_000_000,
    ),
    # Raw unsafe text for metadata tagging. The authors' score threshold is not published: 3 is "moderately unsafe".
    "fineweb-unsafe": Dataset(
        tuple(f"fineweb_annotated/score_{score}.jsonl" for score in (3, 4, 5)),
        _FINEWEB,
        ("score_3", "score_4", "score_5"),
        revision="d96861c",
    ),
    # Tuning sets; their rows become conversations in curriculum/tuning.py.
    "ultrachat": Dataset(("ultrachat_200k/train_sft.jsonl",), "HuggingFaceH4/ultrachat_200k", split="train_sft"),
    "wildguardmix": Dataset(("wildguardmix/train.jsonl",), "allenai/wildguardmix", ("wildguardtrain",), gated=True),
    "wildjailbreak": Dataset(("wildjailbreak/train.jsonl",), "allenai/wildjailbreak", ("train",), gated=True),
    "gsm8k": Dataset(("gsm8k/train.jsonl",), "openai/gsm8k", ("main",), licence="MIT", text=_gsm8k_text),
    "alpaca-instructions": Dataset(
        ("stanford_alpaca/alpaca_instructions_noinput.json",),
        "tatsu-lab/alpaca",
        licence="CC-BY-NC-4.0",
        text=lambda row: row["instruction"],
    ),
}


def dataset(name: str) -> Dataset:
    try:
        return DATASETS[name]
    except KeyError:
        raise UsageError(f"dataset {name!r} is not known; choose one of {', '.join(DATASETS)}") from None


def local_root() -> Path | None:
    """The folder that CURRICULA_DATA names, or None when datasets are to come from the Hugging Face hub."""
    folder = os.environ.get("CURRICULA_DATA")
    if not folder:
        return None
    if not Path(folder).is_dir():
        raise UserError(f"CURRICULA_DATA={folder}: no such folder; unset it to use the Hugging Face hub")
    return Path(folder)


def read_rows(name: str, root: Path | None, limit: int | None = None) -> Iterator[Row]:
    """Rows of a dataset, from the files under `root` when it is given, else from the Hugging Face hub."""
    rows = _local_rows(dataset(name), root) if root is not None else _hub_rows(name)
    for number, row in enumerate(rows):
        if number == limit:
            return
        if not isinstance(row, dict):
            raise UserError(f"dataset {name}: row {number} is {row!r:.60}, where an object is needed; mend the row")
        yield row


def read_documents(name: str, root: Path | None, limit: int | None = None) -> Iterator[tuple[str, str]]:
    """(id, text) of each document; a row without an id is named by its place."""
    entry = dataset(name)
    for number, row in enumerate(read_rows(name, root, limit)):
        try:
            text = entry.text(row)
        except KeyError as missing:
            raise UserError(f"dataset {name}: row {number} has no column {missing}, only {sorted(row)}") from None
        if not isinstance(text, str) or not _is_unicode(text):
            raise UserError(f"dataset {name}: the text of row {number} is {text!r:.60}, which is no text; mend the row")
        yield str(row.get("id", f"{name}/{number}")), text


def _is_unicode(text: str) -> bool:
    """Whether the text has a UTF-8 form: JSON can spell lone surrogates, which have none."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def read_table(path: Path) -> list[Row]:
    """All rows of a JSONL, JSON (a list) or CSV file."""
    if not path.exists():
        raise UserError(f"{path}: no such file; put the dataset there, or unset CURRICULA_DATA to use the hub")
    if path.suffix == ".csv":
        with open(path, newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    if path.suffix == ".json":
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{path}: not valid JSON ({error}); fetch the file again") from None
    with open(path, encoding="utf-8") as file:
        try:
            return [json.loads(line) for line in file if line.strip()]
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: not UTF-8 ({error.reason} at byte {error.start}); fetch the file again") from None
        except ValueError as error:
            raise UserError(f"{path}: a line is not JSON ({error}); fetch the file again") from None


def _local_rows(entry: Dataset, root: Path) -> Iterator[Row]:
    for file in entry.files:
        yield from read_table(root / file)


def _hub_rows(name: str) -> Iterator[Row]:
    import datasets

    entry = dataset(name)
    for config in entry.configs:
        try:
            yield from datasets.load_dataset(
                entry.hub, config, split=entry.split, revision=entry.revision, streaming=True
            )
        except (OSError, ValueError, ConnectionError) as error:
            licence = f" (gated: accept its licence at https://huggingface.co/datasets/{entry.hub}, set HF_TOKEN)"
            raise UserError(
                f"dataset {name}: {entry.hub} cannot be read from the Hugging Face hub{licence if entry.gated else ''}: "
                f"{type(error).__name__}: {str(error).splitlines()[0]}; or point CURRICULA_DATA at a folder with it"
            ) from error
