"""Whose rows a file holds: what keeps one model's rows from being read as those of another.

Every row names its model by a hash of the model's contents. Where a file lies says which arm, stage and task its rows
should be of; `ModelRows` compares the two for all files of one model, and `require_different` compares models. No model is
read: an exported model carries its hash (`eval/contents.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from curricula.errors import UserError
from curricula.eval.rows import CapabilityRow, GenerationRow, ModelKind, ProbeRow
from curricula.eval.tasks import Task


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

    def add_answers(self, path: Path, rows: Sequence[GenerationRow], task: Task) -> None:
        """Check the rows of `path`: of this model and task, each sample of a prompt once."""
        decoders = [label for label, _ in task.labelled_decoders()]
        self._add(path, rows)
        for number, row in enumerate(rows, start=1):
            if row.task != task.name or row.decoder not in decoders:
                raise UserError(
                    f"{path}: line {number} is of task {row.task!r} and decoder {row.decoder!r}, and the file is for "
                    f"{task.name} ({', '.join(decoders)}); remove the file and evaluate again"
                )
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
            raise UserError(
                f"{path}: holds a question twice, or one of another task; remove the file and evaluate again"
            )

    def _add(self, path: Path, rows: Sequence[GenerationRow | ProbeRow | CapabilityRow]) -> None:
        for number, row in enumerate(rows, start=1):
            if row.model_kind != self.kind:
                raise UserError(
                    f"{path}: line {number} is of a {row.model_kind} model, and the folder is for the {self.kind} model; "
                    "remove the file and evaluate again"
                )
            if self.recorded and row.model != self.recorded:
                raise UserError(
                    f"{path}: line {number} is of model {row.model:.12}, and the exported model is {self.recorded:.12}; "
                    "remove the file and evaluate again"
                )
            if not self.model:
                self.model, self.file = row.model, path
            if row.model != self.model:
                raise UserError(
                    f"{path}: line {number} is of model {row.model:.12}, and {self.file} begins with model "
                    f"{self.model:.12}; remove the file of the wrong model and evaluate again"
                )


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
