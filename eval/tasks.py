"""The evaluation tasks: the table of what can be measured on a model, and the share of a task that one element does.

docs/architecture.md says how to add a task. Names of tasks are looked up in the table and never parsed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import msgspec

from curricula.errors import UsageError
from curricula.eval.decoding.registry import DECODERS, OWN, Decoder
from curricula.eval.decoding.settings import Pool, SafeBeam

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
class Variant:
    """A number and a pool of SafeBeam's candidates that replace the study's."""

    candidates_per_beam: int
    pool: Pool

    @property
    def label(self) -> str:
        """Text after the decoder's name in rows, such as "-5x-beam"."""
        return f"-{self.candidates_per_beam}x-{self.pool}"

    @property
    def title(self) -> str:
        return f", {self.candidates_per_beam} candidates a beam, pool {self.pool}"

    def applied_to(self, settings: SafeBeam) -> SafeBeam:
        return msgspec.structs.replace(settings, candidates=self.candidates_per_beam * settings.beams, pool=self.pool)


@dataclass(frozen=True)
class Task:
    """One evaluation task: a row of the table `TASKS`."""

    name: str
    kind: Kind
    """What the task measures. It decides the benchmarks and the number of prompts of each (`EvalConfig.prompts_of`)."""
    decoders: tuple[str, ...] = ()
    """Names of the decoders that answer (`eval/decoding/registry.py`)."""
    judged: Judged | None = None
    """What judges look for in the answers; None if the rows are not answers."""
    prefix: str = ""
    """Text before the decoder's name in rows, such as "gcg+"."""
    title: str = ""
    """Text before the decoder's title in the report."""
    variants: tuple[Variant, ...] = ()
    """For each of `decoders`, how its settings differ from the study's; empty if none differ."""

    def labelled_decoders(self) -> list[tuple[str, Decoder]]:
        """Each decoder with its name in rows, such as "topk", "gcg+topk" or "safebeam-5x-beam"."""
        labels = [variant.label for variant in self.variants] or [""] * len(self.decoders)
        return [(self.prefix + name + label, DECODERS[name]) for name, label in zip(self.decoders, labels)]

    @property
    def labels(self) -> list[str]:
        return [label for label, _ in self.labelled_decoders()]


def _cheap_attacks(kind: Kind, title: str) -> list[Task]:
    return [Task(f"{kind}-{name}", kind, (name,), "attack", prefix=f"{kind}+", title=title) for name in DECODERS]


_VARIANTS = tuple(Variant(times, pool) for pool in get_args(Pool) for times in (2, 5, 10))
"""20, 50 and 100 candidates for the paper's 10 beams."""
_ROWS = (
    Task("attacks-topk", "attack", ("topk",), "attack"),
    Task("attacks-safebeam", "attack", ("safebeam",), "attack"),
    Task("attacks-greedy", "attack", ("greedy",), "attack"),
    Task("safebeam-candidates", "attack", ("safebeam",) * 6, "attack", variants=_VARIANTS),
    Task("overrefusal-topk", "overrefusal", ("topk",), "overrefusal"),
    Task("overrefusal-safebeam", "overrefusal", ("safebeam",), "overrefusal"),
    Task("gcg", "gcg", ("topk", "safebeam"), "attack", prefix="gcg+", title="GCG suffix, "),
    *_cheap_attacks("prefill", "Prefilled answer, "),
    *_cheap_attacks("template-removal", "No chat template, "),
    Task("best-of-n", "best-of-n", ("topk",), "attack", prefix="best-of-n+", title="Best of N, "),
    *_cheap_attacks("ablation", "Refusal direction ablated, "),
    *_cheap_attacks("artifacts", "Replayed jailbreaks, "),
    *_cheap_attacks("transfer", "GCG suffix of another arm, "),
    Task("probes", "probes"),
    Task("capability", "capability"),
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
    """Name of a task. A study with any other name is refused."""


def find_task(name: str) -> Task:
    if name not in TASKS:
        raise UsageError(f"evaluation task {name!r} is not known; choose one of {', '.join(TASKS)}")
    return TASKS[name]


def tasks_with(kind: Kind, decoders: Sequence[str]) -> list[Task]:
    """The tasks of `kind` with a single one of `decoders`, in the decoders' order. Decoders without such a task are skipped."""
    return [task for name in decoders for task in TASKS.values() if task.kind == kind and task.decoders == (name,)]


def judged_tasks(judged: Judged | None = None) -> list[Task]:
    """The tasks whose answers are judged for `judged`; without it, all tasks whose answers are judged."""
    return [task for task in TASKS.values() if task.judged and judged in (None, task.judged)]


def decoder_titles() -> dict[str, str]:
    """The title of each decoder by its name in rows, in the order of the report."""
    titles = {name: decoder.title for name, decoder in DECODERS.items()}
    for task in TASKS.values():
        changes = [variant.title for variant in task.variants] or [""] * len(task.decoders)
        if task.prefix or task.variants:
            for (label, decoder), change in zip(task.labelled_decoders(), changes):
                titles[label] = task.title + decoder.short + change
    return titles


@dataclass(frozen=True)
class EvalTask:
    """What one element of an evaluation does: a task on one benchmark, or on one shard of it."""

    task: Task
    benchmark: str = ""
    """A name from `EvalConfig.prompts_of`: a benchmark, a set of artifacts, the arm that suffixes come from, or a task of
    lm_eval. "" for probes, which have their own texts."""
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
        """Whether the model answers prompts of a benchmark."""
        return bool(self.benchmark) and bool(self.task.decoders)

    def path(self, out: Path) -> Path:
        return out / f"{self.name}.jsonl"


def row_files(out: Path, task: Task, asked: Sequence[EvalTask] = ()) -> list[Path]:
    """The row files of a task in a model's folder, sorted by name, whichever command wrote them.

    For a benchmark in `asked`, these are the files of its elements. For any other benchmark, files of shards are used only if
    there is no file of the whole benchmark.
    """
    matches = {path: match for path in (out / task.name).glob("*.jsonl") if (match := ROW_FILE.fullmatch(path.name))}
    asked_benchmarks, asked_paths = {each.benchmark for each in asked}, {each.path(out) for each in asked}
    whole_benchmarks = {match["benchmark"] for match in matches.values() if not match["shard"]}

    def is_used(path: Path, benchmark: str, shard: str | None) -> bool:
        if benchmark in asked_benchmarks:
            return path in asked_paths
        return not shard or benchmark not in whole_benchmarks

    return sorted(path for path, match in matches.items() if is_used(path, match["benchmark"], match["shard"]))


ROW_FILE = re.compile(r"(?P<benchmark>[^.]+(?:\.\d+)?)(?P<shard>\.\d+-of-\d+)?\.jsonl")
"""Names of row files, as `EvalTask.path` gives them. Files of suffixes and of unused rows do not match."""
