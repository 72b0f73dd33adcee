"""The texts of the probes: where they come from, and how equal numbers of safe and unsafe texts are drawn by key."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from curricula.curriculum.sources.declared import TextTable
from curricula.curriculum.sources.documents import Documents
from curricula.curriculum.sources.tables import Table, is_utf8, require_flat
from curricula.errors import UserError
from curricula.eval.config import Probes, ProbeTexts
from curricula.randomness import key_seed, keyed_rng

NOT_FETCHED = (
    "the probe texts are not on the Hugging Face hub; write probes/train.jsonl and probes/test.jsonl with columns text and "
    "score (0 safe to 5 unsafe) into a folder and name it in CURRICULA_DATA, or name texts of your own in "
    "evaluation.probes.texts"
)
MATCHED_WITHIN = 0.05
"""Largest difference in length within a matched pair, as a share of the longer text; short texts may differ by one token."""


class LabelledTexts(msgspec.Struct, frozen=True):
    texts: list[str]
    unsafe: np.ndarray
    """Bool, one per text."""


def load_texts(root: Path | None, split: str, config: Probes) -> LabelledTexts:
    """The texts of "train" or "test": those of `config.texts`, or the table probes/<split> under the root folder, which has
    columns text and score."""
    if config.texts is not None:
        return _own_texts(root, split, config.texts)
    if root is None:
        raise UserError(NOT_FETCHED)
    path = root / "probes" / split
    table = Table.open(path)
    require_flat(path)
    used = []
    for number, row in enumerate(table.rows()):
        text, score = row.get("text"), str(row.get("score")).strip().removesuffix(".0")
        if not isinstance(text, str) or not is_utf8(text) or score not in ("0", "1", "2", "3", "4", "5"):
            raise UserError(
                f"{table.place(number)} has text {text!r:.40} and score {score!r:.40}; a row has a text in UTF-8 and a score "
                "from 0 (safe) to 5 (unsafe)"
            )
        # Texts with scores between 0 and the threshold are neither safe nor unsafe.
        if score == "0" or int(score) >= config.unsafe_score:
            used.append((text, score != "0"))
    return _labelled(used)


def check_texts(root: Path | None, config: Probes) -> None:
    """Raise UserError if texts are missing, too few (with `match_length` only a tokenizer can tell), or in both splits."""
    train, test = (load_texts(root, split, config) for split in ("train", "test"))
    balanced(train.unsafe, config.train_per_class)
    balanced(test.unsafe, None)
    if both := set(train.texts) & set(test.texts):
        raise UserError(
            f"{root}/probes: {len(both)} texts are in train and in test, such as {min(both)[:60]!r}; remove them from "
            "one of the two, since a probe is tested on texts that it has not seen"
        )


def _own_texts(root: Path | None, split: str, declared: ProbeTexts) -> LabelledTexts:
    classes: dict[str, list[str]] = {}
    for name in ("safe", "unsafe"):
        key = f"evaluation.probes.texts.{name}"
        table: TextTable = getattr(declared, name)
        table.require_flat(root or Path(), key)
        documents = Documents.of(key, table, root or Path())
        classes[name] = []
        for document in documents.read():
            if document.odd == "not_utf8":
                raise UserError(f"{key}: {documents.place(document.number)} is not UTF-8; correct the row")
            classes[name] += [document.text] if document.text else []
    if both := set(classes["safe"]) & set(classes["unsafe"]):
        raise UserError(
            f"evaluation.probes.texts: {len(both)} texts are both safe and unsafe, such as {min(both)[:60]!r}; narrow one of "
            "the tables, by min_score and max_score if they are the same file"
        )
    taken = [
        (text, name == "unsafe")
        for name, texts in classes.items()
        for text in texts
        if (key_seed("probe texts", text) / 2**63 < declared.test_share) == (split == "test")
    ]
    return _labelled(taken)


def _labelled(texts: Sequence[tuple[str, bool]]) -> LabelledTexts:
    """Texts, each with whether it is unsafe, as two columns."""
    return LabelledTexts([text for text, _ in texts], np.array([unsafe for _, unsafe in texts], dtype=bool))


def balanced(unsafe: np.ndarray, per_class: int | None, *key: object, lengths: np.ndarray | None = None) -> np.ndarray:
    """Places of equally many safe and unsafe texts, drawn by key: `per_class` of each, or as many as there are.

    With `lengths`, texts are drawn in pairs of a safe and an unsafe text of about equal length.
    """
    classes = [np.flatnonzero(~unsafe), np.flatnonzero(unsafe)]
    paired = lengths is not None
    if lengths is not None:
        classes = matched(classes[0], classes[1], lengths)
    have = min(map(len, classes))
    count = have if per_class is None else per_class
    if count > have or have == 0:
        found = f"{have} pairs of similar length" if paired else f"{len(classes[0])} safe and {len(classes[1])} unsafe ones"
        raise UserError(
            f"the probe texts hold {found}, fewer than {max(count, 1)} of each; lower probes.train_per_class or add texts"
        )
    rng = keyed_rng("probes", *key)
    if paired:  # the same pairs of both classes
        chosen = rng.permutation(have)[:count]
        return np.sort(np.concatenate([members[chosen] for members in classes]))
    return np.sort(np.concatenate([rng.permutation(members)[:count] for members in classes]))


def matched(safe: np.ndarray, unsafe: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
    """As many pairs as possible of a safe and an unsafe text of similar length, shortest first. No text is in two pairs.

    Going up both classes by length and pairing texts that are near enough gives the most pairs: a text that is too short for
    the next text of the other class is too short for all later ones.
    """
    orders = [members[np.argsort(lengths[members], kind="stable")] for members in (safe, unsafe)]
    pairs: tuple[list[int], list[int]] = ([], [])
    places = [0, 0]
    while all(place < len(order) for place, order in zip(places, orders)):
        pair = [int(order[place]) for place, order in zip(places, orders)]
        short, long = sorted(float(lengths[text]) for text in pair)
        if long - short <= max(1.0, MATCHED_WITHIN * long):
            for own, text in zip(pairs, pair):
                own.append(text)
            places = [place + 1 for place in places]
        else:
            places[int(lengths[pair[0]] > lengths[pair[1]])] += 1
    return [np.array(own, dtype=np.int64) for own in pairs]
