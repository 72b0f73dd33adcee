"""Whose rows a file holds: what keeps one model's rows from being read as those of another (docs/evaluation.md).

`ModelRows` compares all files of one model with their places, and `require_different` compares models. No model is read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from curricula import durable
from curricula.errors import UserError
from curricula.eval.rows import CapabilityRow, GenerationRow, ModelKind, ProbeRow

RECORD = "curricula.json"
"""The file in an exported model's folder that holds its hash."""


def content_hash(path: Path) -> str:
    """Hash of what decides a model's outputs: weights, config, tokenizer and chat template, wherever they are stored."""
    names = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
    files = [path] if path.is_file() else [*(path / name for name in names), *weight_files(path)]
    digest = hashlib.sha256()
    for file_path in files:
        if file_path.is_file():
            digest.update(f"{file_path.name}\x00{file_path.stat().st_size}\x00".encode())
            with open(file_path, "rb") as file:
                for block in iter(lambda: file.read(1 << 22), b""):
                    digest.update(block)
    return digest.hexdigest()[:32]


def weight_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))


def record_hash(folder: Path) -> None:
    """Record the hash of an exported model in its folder."""
    durable.write_json(folder / RECORD, {"content_hash": content_hash(folder)})


def recorded_hash(folder: Path) -> str:
    """The hash that the export of `folder` recorded; "" if there is none."""
    recorded = durable.read_json(folder / RECORD) if (folder / RECORD).is_file() else {}
    found = recorded.get("content_hash") if isinstance(recorded, dict) else None
    return found if isinstance(found, str) else ""


@dataclass
class ModelRows:
    """The rows of one model, as its files are read one after another. Every method raises UserError for foreign rows."""

    kind: ModelKind
    recorded: str = ""
    """The hash that the model's export recorded; "" if it recorded none."""
    model: str = ""
    """The hash that the rows name; "" before the first row."""
    file: Path = Path()
    """The file with the first row."""
    _answered: dict[tuple[str, str, str, str, int], Path] = field(default_factory=dict)

    def add_answers(self, path: Path, rows: Sequence[GenerationRow], task: str, decoders: Sequence[str]) -> None:
        """Check the rows of `path`: of this model, the task and its `decoders`, each sample of a prompt once."""
        self._add(path, rows)
        for number, row in enumerate(rows, start=1):
            if row.task != task or row.decoder not in decoders:
                found = f"of task {row.task!r} and decoder {row.decoder!r}"
                raise _foreign(path, number, found, f"the file is for {task} ({', '.join(decoders)})")
            answered = (row.task, row.decoder, row.benchmark, row.prompt_id, row.sample)
            if answered in self._answered:
                raise UserError(
                    f"{path}: line {number} repeats sample {row.sample} of prompt {row.prompt_id} of {row.benchmark}, which "
                    f"{self._answered[answered]} holds already; remove the copy and evaluate again"
                )
            self._answered[answered] = path

    def add_probes(self, path: Path, rows: Sequence[ProbeRow]) -> None:
        self._add(path, rows)
        probes = [(row.layer, row.seed) for row in rows]
        if len(set(probes)) < len(probes):
            raise UserError(f"{path}: holds a probe twice; remove the file and evaluate again")

    def add_capability(self, path: Path, rows: Sequence[CapabilityRow]) -> None:
        self._add(path, rows)
        asked = [(row.benchmark, row.task, row.prompt_id) for row in rows]
        if len(set(asked)) < len(asked) or any(row.benchmark != path.stem for row in rows):
            raise UserError(f"{path}: holds a question twice, or one of another task; remove the file and evaluate again")

    def _add(self, path: Path, rows: Sequence[GenerationRow | ProbeRow | CapabilityRow]) -> None:
        for number, row in enumerate(rows, start=1):
            if row.model_kind != self.kind:
                raise _foreign(path, number, f"of a {row.model_kind} model", f"the folder is for the {self.kind} model")
            model = f"of model {row.model:.12}"
            if self.recorded and row.model != self.recorded:
                raise _foreign(path, number, model, f"the exported model is {self.recorded:.12}")
            if not self.model:
                self.model, self.file = row.model, path
            if row.model != self.model:
                instead = f"{self.file} begins with model {self.model:.12}"
                raise _foreign(path, number, model, instead, "the file of the wrong model")


def _foreign(path: Path, number: int, found: str, instead: str, wrong: str = "the file") -> UserError:
    return UserError(f"{path}: line {number} is {found}, and {instead}; remove {wrong} and evaluate again")


def require_different(models: Sequence[ModelRows]) -> None:
    """Raise UserError if two of the models are one: then one's rows are a copy of the other's."""
    files: dict[str, Path] = {}
    for rows in models:
        if files.get(rows.model, rows.file) != rows.file:  # points of a sweep share folders
            raise UserError(
                f"{rows.file}: holds the rows of model {rows.model:.12}, as {files[rows.model]} does; remove the copy and "
                "evaluate again (where two arms trained the same weights, leave one out of the study)"
            )
        if rows.model:
            files[rows.model] = rows.file
