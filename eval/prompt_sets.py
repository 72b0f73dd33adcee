"""Benchmarks of the user's own: tables that a study declares, with the columns that hold each part of a prompt.

evaluation:
  prompts:
    ours: { path: prompts.csv, column: request, kind: attack, category: topic }
  benchmarks: [ours, advbench]
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from curricula.curriculum.sources.declared import DeclaredTable, Reads
from curricula.errors import UserError
from curricula.eval.benchmarks import BENCHMARKS, Prompt, load_prompts, text_of, unique_prompts
from curricula.eval.capability.settings import PLAIN_TASK
from curricula.eval.duplicates import cluster_of

Kind = Literal["attack", "completion", "overrefusal", "capability"]
KEY = "evaluation.prompts"


class PromptSet(DeclaredTable, frozen=True):
    """A table of prompts. Its name may then stand where benchmarks or capability tasks are named."""

    column: str = "prompt"
    """The column of prompts."""
    kind: Kind = "attack"
    """Harmful requests, harmful beginnings for base models, harmless requests, or questions with a right answer."""
    behavior: str | None = None
    """The column of what the judge is asked about; by default the prompt itself."""
    context: str | None = None
    """The column of a text that the prompt refers to: the model reads it before the prompt, and the judge is shown it."""
    target: str | None = None
    """The column of right answers, which sets of kind capability need."""
    category: str | None = None
    """The column of the prompt's class, for the rows."""
    id: str | None = None
    """The column of unique ids; by default the row's number."""
    cluster: str | None = None
    """The column whose equal values mark prompts that are no independent draws; by default equal prompts are one cluster."""

    def check(self) -> None:
        super().check()
        if self.dataset is not None:
            raise ValueError(
                f"dataset {self.dataset!r} is a set of training data; name a path or a hub dataset of prompts"
            )
        if (self.kind == "capability") != (self.target is not None):
            raise ValueError(
                f"kind is {self.kind!r} and target {self.target!r}; a set of kind capability, and no other, names its column "
                "of right answers as target"
            )

    def reads(self) -> dict[str, Reads]:
        needed = {"column": self.column, "behavior": self.behavior, "target": self.target}
        others = {name: getattr(self, name) for name in ("context", "category", "id", "cluster")}
        found = {key: Reads((name,), "value" if key == "target" else "text") for key, name in needed.items() if name}
        return found | {key: Reads((name,), "value") for key, name in others.items() if name}


PromptSets = Mapping[str, PromptSet]


def own_prompts(name: str, declared: PromptSet, root: Path | None) -> list[Prompt]:
    """The prompts of an own set in the order of its rows; raises UserError that names the key, the file and the row."""
    where = f"{KEY}.{name}"
    if root is None and declared.hub is not None:
        raise UserError(f"{where}: {declared.place} is fetched into a data folder first; name one in CURRICULA_DATA")
    table = declared.open(root or Path(), where)
    declared.look(root or Path(), where)
    prompts = []
    for number, row in enumerate(table.rows()):
        place = f"{where}: {table.place(number)}"

        def cell(column: str | None, row: dict = row, place: str = place) -> str:
            return "" if column is None or row.get(column) is None else text_of(row[column], column, place)

        if not (text := cell(declared.column).strip()):
            raise UserError(f"{place} has nothing in column {declared.column!r}; correct or remove the row")
        behavior, context, cluster = cell(declared.behavior) or text, cell(declared.context), cell(declared.cluster)
        prompts.append(
            Prompt(
                id=cell(declared.id) or str(number),
                benchmark=name,
                text=f"{context}\n\n---\n\n{text}" if context else text,  # as HarmBench's pipeline joins them
                behavior=behavior,
                context=context,
                category=cell(declared.category),
                cluster=f"{name}: {cluster}" if cluster else cluster_of(behavior),
                target=cell(declared.target),
            )
        )
    return unique_prompts(prompts, f"{where}: {declared.place}", "correct column id")


def prompts_of_set(
    name: str,
    root: Path | None,
    own: PromptSets,
    *,
    limit: int | None,
    with_copyright: bool,
    accept_changed: tuple[str, ...],
) -> list[Prompt]:
    """The prompts of an own set or of a benchmark; see `load_prompts`."""
    read = own_prompts(name, own[name], root) if name in own else None
    return load_prompts(
        name, root, limit=limit, with_copyright=with_copyright, accept_changed=accept_changed, already_read=read
    )


def check_names(own: PromptSets) -> None:
    for name in own:
        if name in BENCHMARKS or not PLAIN_TASK.fullmatch(name):
            why = "is a published benchmark" if name in BENCHMARKS else "must have letters, digits, '_' and '-' alone"
            raise ValueError(f"prompts names a set {name!r}, which {why}; rename it")


def check_use(name: str, wanted: Kind, own: PromptSets) -> None:
    """Raise ValueError where an own set is used for what it is not."""
    if name in own and own[name].kind != wanted:
        raise ValueError(f"prompts.{name} is of kind {own[name].kind}, and is named where kind {wanted} is needed")
