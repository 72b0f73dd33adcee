"""The tasks of an evaluation: one table of what can be measured on a model, and the piece of a task that one job does.

A task's name appears in studies (`evaluation.tasks`), in job labels and in the model's folder. To add a task, add a row to
the table; a new kind of measurement also needs its settings in `eval/config.py` and its work in a file of its own, which
`eval/runner.py` calls. Names are looked up here and never taken apart.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from curricula.errors import UsageError
from curricula.eval.decoding.registry import DECODERS, OWN, Decoder
from curricula.eval.rows import CapabilityRow, GenerationRow, ProbeRow

Kind = Literal[
    "attack",
    "overrefusal",
    "gcg",
    "prefill",
    "template-removal",
    "best-of-n",
    "ablation",
    "artifacts",
    "transfer",
    "probes",
    "capability",
]
Judged = Literal["attack", "overrefusal"]
JUDGED: tuple[Judged, ...] = ("attack", "overrefusal")


@dataclass(frozen=True)
class Task:
    """One row of the table."""

    name: str
    """As studies, job labels and folders have it."""
    kind: Kind
    """What is measured. It decides on the benchmarks and how many prompts of each (`EvalConfig.prompts_of`)."""
    decoders: tuple[str, ...] = ()
    """The decoders that answer, of `eval/decoding/registry.py`."""
    judged: Judged | None = None
    """What judges look for in the answers; None where the rows are no answers."""
    rows: type[GenerationRow] | type[ProbeRow] | type[CapabilityRow] = GenerationRow
    """What the task writes."""
    prefix: str = ""
    """Precedes the decoder's name in rows."""
    title: str = ""
    """Precedes the decoder's title in the report."""

    def labelled_decoders(self) -> list[tuple[str, Decoder]]:
        """Each decoder with its name in rows, such as "topk" or "gcg+topk"."""
        return [(self.prefix + name, DECODERS[name]) for name in self.decoders]


def _cheap_attacks(kind: Kind, title: str, *decoders: str) -> list[Task]:
    """The tasks of an attack that needs no search, one for each decoder."""
    return [Task(f"{kind}-{name}", kind, (name,), "attack", prefix=f"{kind}+", title=title) for name in decoders]


_ROWS = (
    Task("attacks-topk", "attack", ("topk",), "attack"),
    Task("attacks-safebeam", "attack", ("safebeam",), "attack"),
    Task("attacks-greedy", "attack", ("greedy",), "attack"),
    Task("overrefusal-topk", "overrefusal", ("topk",), "overrefusal"),
    Task("overrefusal-safebeam", "overrefusal", ("safebeam",), "overrefusal"),
    Task("gcg", "gcg", ("topk", "safebeam"), "attack", prefix="gcg+", title="GCG suffix, "),
    *_cheap_attacks("prefill", "Prefilled answer, ", *DECODERS),
    *_cheap_attacks("template-removal", "No chat template, ", *DECODERS),
    Task("best-of-n", "best-of-n", ("topk",), "attack", prefix="best-of-n+", title="Best of N, "),
    *_cheap_attacks("ablation", "Refusal direction ablated, ", *DECODERS),
    *_cheap_attacks("artifacts", "Replayed jailbreaks, ", *DECODERS),
    *_cheap_attacks("transfer", "GCG suffix of another arm, ", *DECODERS),
    Task("probes", "probes", rows=ProbeRow),
    Task("capability", "capability", rows=CapabilityRow),
)
_KINDS: tuple[tuple[str, Judged], ...] = (("attacks", "attack"), ("overrefusal", "overrefusal"))
_PLUGINS = tuple(
    Task(f"{prefix}-{name}", kind, (name,), kind) for name in DECODERS if name not in OWN for prefix, kind in _KINDS
)
TASKS = {task.name: task for task in (*_ROWS, *_PLUGINS)}

if TYPE_CHECKING:
    TaskName = str
else:
    TaskName = Literal[tuple(TASKS)]
    """The name of a task; in a study any other is refused."""


def find_task(name: str) -> Task:
    if name not in TASKS:
        raise UsageError(f"evaluation task {name!r} is not known; choose one of {', '.join(TASKS)}")
    return TASKS[name]


def tasks_with(kind: Kind, decoders: Sequence[str]) -> list[Task]:
    """The tasks of a kind under `decoders`, in their order; a decoder without such a task is left out."""
    return [task for name in decoders for task in TASKS.values() if task.kind == kind and task.decoders == (name,)]


def judged_tasks(judged: Judged | None = None) -> list[Task]:
    """The tasks whose answers are judged, for `judged` or for anything."""
    return [task for task in TASKS.values() if task.judged and judged in (None, task.judged)]


def decoder_titles() -> dict[str, str]:
    """The titles of all decoders by their names in rows, in the order of the report."""
    titles = {name: decoder.title for name, decoder in DECODERS.items()}
    for task in TASKS.values():
        titles |= {label: task.title + decoder.short for label, decoder in task.labelled_decoders() if task.prefix}
    return titles


@dataclass(frozen=True)
class EvalTask:
    """What one element of an evaluation does: a task on one benchmark, or on one shard of it."""

    task: Task
    benchmark: str = ""
    """What `EvalConfig.prompts_of` names: a benchmark, a set of artifacts, the arm that suffixes come from, or lm_eval's task.
    "" for probes, which have texts of their own."""
    limit: int | None = None
    """At most this many prompts of the benchmark, over all its shards; None takes all."""
    shard: int = 0
    shards: int = 1

    @property
    def name(self) -> str:
        """`attacks-topk/harmbench`, or `gcg/jailbreakbench.0-of-4`."""
        if not self.benchmark:
            return self.task.name
        return f"{self.task.name}/{self.benchmark}" + (f".{self.shard}-of-{self.shards}" if self.shards > 1 else "")

    @property
    def has_prompts(self) -> bool:
        """Whether it asks the prompts of a benchmark."""
        return bool(self.benchmark) and bool(self.task.decoders)

    def path(self, out: Path) -> Path:
        """The file of its rows in the folder of a model."""
        return out / f"{self.name}.jsonl"


def row_files(out: Path, task: Task) -> list[Path]:
    """The files of rows of a task in the folder of a model, by name, whichever command wrote them.

    Shards of a benchmark that is also there whole are left out.
    """
    found = {path: match for path in (out / task.name).glob("*.jsonl") if (match := ROW_FILE.fullmatch(path.name))}
    whole = {match["benchmark"] for match in found.values() if not match["shard"]}
    return sorted(path for path, match in found.items() if not match["shard"] or match["benchmark"] not in whole)


ROW_FILE = re.compile(r"(?P<benchmark>[^.]+)(?P<shard>\.\d+-of-\d+)?\.jsonl")
"""Names that `EvalTask.path` gives; suffixes and rows set aside have others."""
