"""The study's public datasets by short names: where they are on the hub, on what terms, and how their rows read.

A data folder is a fictional world, the folder that the environment variable CURRICULA_DATA names, or one that `curricula
data fetch` filled. There a dataset is `FOLDER/SPLIT.*`, or `FOLDER/PART.*` for each of its parts, in any format of
`curriculum/sources/tables.py` with the hub's columns. Names, revisions and sizes are those under which the datasets were
published. Token counts come from the publishers or later users and only inform the plan.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from curricula.curriculum.sources.tables import Row, Table, table_exists
from curricula.errors import UsageError, UserError


@dataclass(frozen=True)
class Dataset:
    """One public dataset: where it is, on what terms, and which text its rows hold."""

    folder: str
    """Its folder within a data folder."""
    hub: str
    """Its name on the hub."""
    parts: tuple[str, ...] = ()
    """Configurations on the hub; empty where there is only one."""
    split: str = "train"
    revision: str | None = None
    """A commit; the newest by default, which `curricula data fetch` then records."""
    licence: str = "ODC-BY"
    gated: bool = False
    tokens: int | None = None
    """Published count, for the plan before anything is tokenised."""
    documents: int | None = None
    """Published count of rows, for the plan of a source that reads only some of them."""
    columns: tuple[str, ...] = ("id", "text")
    text: Callable[[Row], str] = lambda row: row["text"]
    """The text of a row."""
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
        if parts or self.subset:
            raise UserError(
                f"{whole}: holds all parts of {self.hub}, but the study asks only for {', '.join(wanted)}; split it"
            )
        if any(table_exists(piece) for piece in pieces):
            raise UserError(
                f"{whole}: {self.folder}/{wanted[0]} or other parts exist as well; keep either this table or the parts"
            )
        return [whole]


def _gsm8k_text(row: Row) -> str:
    return f"Question: {row['question']}\nAnswer: {row['answer']}"


_SCORES = tuple(f"score_{score}" for score in range(6))
_FINEWEB = Dataset("fineweb_annotated", "locuslab/fineweb_annotated", _SCORES, revision="d96861c")

DATASETS: dict[str, Dataset] = {
    # Safe-only pretraining text (paper section 4.4: FineWeb-Edu, StackOverflow, FineMath and Cosmopedia).
    "fineweb-edu": replace(_FINEWEB, parts=_SCORES[:1], subset=True),
    "cosmopedia": Dataset(
        "cosmopedia",
        "HuggingFaceTB/smollm-corpus",
        ("cosmopedia-v2",),
        revision="3ba9d605774198c5868892d7a8deda78031a781f",
        tokens=28_000_000_000,
        documents=39_100_000,
        columns=("text",),
    ),
    "finemath": Dataset(
        "finemath",
        "HuggingFaceTB/finemath",
        ("finemath-3plus",),
        revision="e92b25a616738fe95dc186b64dfb19f9c8525594",
        tokens=34_000_000_000,
        documents=21_400_000,
        columns=("text",),
    ),
    "stackoverflow": Dataset(
        "stackoverflow",
        "bigcode/stackoverflow-clean",
        revision="26b73eba12b03e382e305003c7dd176c25adc8b7",
        licence="not stated",
        columns=("content",),
        text=lambda row: row["content"],
    ),
    # Safety interventions (section 3.1) made from the unsafe part of FineWeb.
    "safeweb": Dataset(
        "safeweb",
        "locuslab/safeweb",
        ("score_1_rephrased", "score_3_rephrased", "score_4_rephrased", "score_5_rephrased"),
        revision="f73f213",
        tokens=16_740_000_000,
        documents=14_800_000,
    ),
    "refuseweb": Dataset(
        "refuseweb",
        "locuslab/refuseweb",
        ("score_4_refusal", "score_5_refusal"),
        revision="a2cb2e1",
        tokens=4_150_000_000,
        documents=1_650_000,
        dialogue=True,
    ),
    "moral-education": Dataset(
        "moral_education",
        "locuslab/moral_education",
        ("score_4_morals", "score_5_morals"),
        revision="579300f",
        tokens=6_210_000_000,
        documents=2_800_000,
    ),
    # Raw unsafe text for metadata tagging. The authors' score threshold is not published: 3 is "moderately unsafe". Choose
    # others with a source's `parts`.
    "fineweb-unsafe": replace(_FINEWEB, parts=_SCORES[3:], subset=True),
    "fineweb-annotated": _FINEWEB,  # all scores: what rephrasing and refusals are made from
    # Tuning sets; their rows become conversations in curriculum/sources/conversations.py.
    "ultrachat": Dataset(
        "ultrachat_200k",
        "HuggingFaceH4/ultrachat_200k",
        split="train_sft",
        revision="8049631c405ae6576f93f445c6b8166f76f5505a",
        licence="MIT",
        columns=("messages",),
    ),
    "wildguardmix": Dataset(
        "wildguardmix",
        "allenai/wildguardmix",
        ("wildguardtrain",),
        revision="d29c47f41c8b51348b5c8e8c81c039b3132b66d1",
        gated=True,
        columns=(
            "prompt",
            "adversarial",
            "response",
            "prompt_harm_label",
            "response_harm_label",
            "response_refusal_label",
        ),
    ),
    "wildjailbreak": Dataset(
        "wildjailbreak",
        "allenai/wildjailbreak",
        ("train",),
        revision="5ddc12a7894f842b0619b8e1c7ee496b198af009",
        gated=True,
        columns=("vanilla", "adversarial", "completion", "data_type"),
    ),
    "gsm8k": Dataset(
        "gsm8k",
        "openai/gsm8k",
        ("main",),
        revision="cc7b047b6e5bb11b4f1af84efc572db110a51b3c",
        licence="MIT",
        columns=("question", "answer"),
        text=_gsm8k_text,
    ),
    "alpaca-instructions": Dataset(
        "stanford_alpaca",
        "tatsu-lab/alpaca",
        revision="dce01c9b08f87459cf36a430d809084718273017",
        licence="CC-BY-NC-4.0",
        columns=("instruction", "input", "output"),
        text=lambda row: row["instruction"],
        stem="stanford_alpaca/alpaca_instructions_noinput",
    ),
}


def dataset(name: str) -> Dataset:
    try:
        return DATASETS[name]
    except KeyError:
        raise UsageError(f"dataset {name!r} is not known; choose one of {', '.join(DATASETS)}") from None


def open_dataset(name: str, root: Path, parts: tuple[str, ...] = ()) -> Table:
    """The rows of a dataset under `root`; raises UserError naming the file that is missing or damaged."""
    return Table.open(*dataset(name).stems(root, parts))


def local_root() -> Path | None:
    """The folder that CURRICULA_DATA names, or None when datasets come from the Hugging Face hub."""
    folder = os.environ.get("CURRICULA_DATA")
    if not folder:
        return None
    if not Path(folder).is_dir():
        raise UserError(f"CURRICULA_DATA={folder}: no such folder; unset it to use the Hugging Face hub")
    return Path(folder).resolve()
