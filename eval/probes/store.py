"""Hidden states on disk, so that they are computed once: a memory-mapped file of numbers, and the ids of its texts.

The folder `probes.states` of a model's rows holds, for each model, precision and choice of layers (`KEY`):

- `KEY.f32`: float32 [texts, layers, hidden], appended one batch at a time
- `KEY.jsonl`: for each batch the ids of its texts, in order; an id is a hash of the text's tokens
- `fitted.npz`: the probes that were fitted last and the texts that tested them (`Fitted`)

A batch counts once its line is whole, so a killed computation continues after the last whole batch. Imports no torch.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from curricula import durable
from curricula.errors import UserError
from curricula.fencing import check_fences

FOLDER = "probes.states"


@dataclasses.dataclass(frozen=True)
class Store:
    """The states of one model's texts."""

    folder: Path
    key: str
    layers: int
    hidden: int

    @property
    def path(self) -> Path:
        return self.folder / f"{self.key}.f32"

    def ids(self) -> list[str]:
        """The ids of the texts, in the order of their states. Batches that a kill cut short do not count."""
        ids: list[str] = []
        have = self.path.stat().st_size // (4 * self.layers * self.hidden) if self.path.exists() else 0
        for line in durable.read_jsonl(self.path.with_suffix(".jsonl")):
            batch = line.get("ids") if isinstance(line, dict) else None
            if not isinstance(batch, list) or len(ids) + len(batch) > have:
                raise UserError(f"{self.path}: does not hold the states that {self.key}.jsonl lists; remove both files")
            ids += map(str, batch)
        return ids

    def append(self, ids: list[str], states: np.ndarray) -> None:
        """Add a batch, float32 [texts, layers, hidden]."""
        whole = len(self.ids()) * 4 * self.layers * self.hidden
        if not self.path.exists():
            durable.write_text(self.path, "")
        check_fences()
        with durable.disk_full_explained(self.path), open(self.path, "r+b") as file:
            file.truncate(whole)
            file.seek(whole)
            file.write(states.astype("<f4").tobytes())
            file.flush()
            os.fsync(file.fileno())
        durable.append_jsonl(self.path.with_suffix(".jsonl"), [{"ids": ids}])

    def read(self, ids: Iterable[str], layer: int) -> np.ndarray:
        """States of these texts on the layer at place `layer`, float32 [texts, hidden]. Nothing else is read from the disk."""
        known = self.ids()
        place = {name: number for number, name in enumerate(known)}
        try:
            places = [place[name] for name in ids]
        except KeyError:
            raise UserError(f"{self.path}: lacks states of texts that were probed; remove it and {self.key}.jsonl") from None
        if not places:
            return np.empty((0, self.hidden), dtype=np.float32)
        return np.memmap(self.path, dtype="<f4", mode="r", shape=(len(known), self.layers, self.hidden))[places, layer]


@dataclasses.dataclass(frozen=True)
class Fitted:
    """The probes of one model, and the test texts, as `fitted.npz` holds them."""

    key: str
    """Hash of the keys of the model's probes. It changes with their settings."""
    store: str
    """Key of the store with the states."""
    layers: list[str]
    """Names of the layers, in the order of the store."""
    weights: np.ndarray
    """Weights of the probes, float64 [training subsets, layers, hidden]."""
    bias: np.ndarray
    """Biases of the probes, float64 [training subsets, layers]."""
    directions: np.ndarray
    """Mean state of the unsafe training texts minus that of the safe ones, float64 [layers, hidden]."""
    test_ids: list[str]
    test_unsafe: np.ndarray
    """Bool, one per test text."""

    def write(self, folder: Path) -> None:
        arrays: dict[str, Any] = vars(self)
        with durable.open_atomically(folder / "fitted.npz") as file:
            np.savez(file, **arrays)

    def test_states(self, folder: Path, layer: int) -> np.ndarray:
        """States of the test texts on the layer at place `layer`, float32 [texts, hidden]."""
        return Store(folder, self.store, *self.directions.shape).read(self.test_ids, layer)


def read_fitted(folder: Path) -> Fitted | None:
    """The probes fitted last, from the folder `probes.states`; None if there are none. Raises UserError if they are damaged."""
    path = folder / "fitted.npz"
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as data:
            found: dict[str, Any] = {field.name: data[field.name] for field in dataclasses.fields(Fitted)}
        plain = {name: found[name].tolist() for name in ("key", "store", "layers", "test_ids")}
        numbers = {name: found[name].astype(np.float64) for name in ("weights", "bias", "directions")}
        fitted = Fitted(**plain, **numbers, test_unsafe=found["test_unsafe"].astype(bool))
        shape = (len(fitted.weights), *fitted.directions.shape)
        fits = fitted.weights.shape == shape and fitted.bias.shape == shape[:2] and len(fitted.layers) == shape[1]
        if not (fits and fitted.test_unsafe.shape == (len(fitted.test_ids),) and fitted.store.isalnum()):
            raise ValueError("its parts do not fit together")
    except Exception as error:  # numpy has an error of its own for each kind of damage
        raise UserError(f"{path}: is damaged ({error}); remove it and evaluate again") from None
    return fitted
