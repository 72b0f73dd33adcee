"""The settings of an evaluation; the defaults are the paper's (sections 4 and 5, appendix B).

Imports no torch: the planner reads studies on login nodes. A docstring notes what the paper leaves open. The decoders'
settings are in `eval/decoding/settings.py`, the tasks in `eval/tasks.py`.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from curricula.errors import UsageError
from curricula.eval.decoding.settings import Greedy, SafeBeam, TopK
from curricula.eval.judges.settings import JudgeConfig, judge_config
from curricula.eval.judges.templates import find_template
from curricula.eval.rows import MODEL_KINDS, ModelKind, Precision
from curricula.eval.tasks import JUDGED, TASKS, EvalTask, Judged, Task, TaskName
from curricula.settings import Positive, Settings

Layer = Literal["first", "middle", "last"]
Shards = Annotated[int, msgspec.Meta(ge=1, le=1000)]


class Gcg(Settings, frozen=True):
    """Greedy coordinate gradient: an adversarial suffix per prompt, optimised on the attacked model."""

    steps: Positive = 500
    """Steps of the search for each prompt; the paper's is 500."""
    search_width: Positive = 512
    """Candidates per step; not given, so nanoGCG's default."""
    topk: Positive = 256
    """Likeliest replacements per position, by the gradient."""
    suffix: str = " ".join(["x"] * 20)
    """Initial suffix; its length is not given, so nanoGCG's default."""
    target: str = "Sure"
    """How the answer should begin; after a base model's raw prompt it follows a space."""
    benchmark: str = "jailbreakbench"
    """Whose requests get a suffix; the paper's is JailbreakBench."""
    prompts: Positive | None = None
    """At most this many prompts; null takes all (100 for JailbreakBench)."""
    batch_candidates: Positive = 512
    """Candidates in one forward pass; lower it when memory runs out."""

    def check(self) -> None:
        if not self.suffix.strip() or not self.target:
            raise ValueError("gcg.suffix and gcg.target must not be empty")


class Probes(Settings, frozen=True):
    """Linear probes for safe against unsafe text on the hidden state of the last token (section 4.3).

    Layers are block outputs counted from 1: "first" is 1, "middle" is layers // 2 + 1, the 13th of the paper's 24,
    "last" is the last block's.
    """

    train_per_class: Positive = 500
    """Training texts of each class, safe and unsafe; the paper's is 500."""
    seeds: Positive = 5
    """Draws of the training texts; the paper's is 5."""
    layers: Annotated[tuple[Layer, ...], msgspec.Meta(min_length=1)] = ("first", "middle", "last")
    """Blocks whose outputs are probed; the paper's are the first, the 13th and the last."""
    unsafe_score: Positive = 1
    """Texts with at least this safety score are unsafe, those with score 0 safe; the threshold is not given."""
    max_tokens: Positive = 512
    """Longer texts keep their first tokens; not given."""


class Tasks(Settings, frozen=True):
    """The tasks of the models of each kind, in the order in which they run."""

    base: tuple[TaskName, ...] = ("attacks-topk", "attacks-safebeam", "probes")
    """Of pretrained models. Harmful beginnings to continue, and probes."""
    instruct: tuple[TaskName, ...] = (
        "attacks-topk",
        "attacks-safebeam",
        "overrefusal-topk",
        "overrefusal-safebeam",
        "gcg",
        "probes",
    )
    """Of instruction-tuned models."""
    benign: tuple[TaskName, ...] = ("attacks-topk", "attacks-safebeam", "overrefusal-topk", "overrefusal-safebeam")
    """Of models finetuned on benign data after that."""


class EvalConfig(Settings, frozen=True):
    """All that is measured on each model of a study."""

    benchmarks: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)] = (
        "harmbench",
        "advbench",
        "jailbreakbench",
        "tdc",
    )
    """Attack benchmarks for instruct and benign models."""
    base_benchmark: str = "jb_completions"
    """For base models: harmful beginnings to continue."""
    overrefusal_benchmark: str = "alpaca"
    """Benign requests, on which refusing is the error."""
    prompts_per_benchmark: Positive | None = None
    """At most this many prompts of each attack benchmark; null takes all."""
    overrefusal_prompts: Positive | None = 300
    """Not given in the paper; Maini et al. use 300."""
    harmbench_copyright: bool = False
    """Whether to include HarmBench's copyright rows, which need a hash judge, not a classifier."""
    accept_changed: tuple[str, ...] = ()
    """Benchmarks whose prompts may differ from the published set; any other difference is an error."""
    judge: str | JudgeConfig = "refusal-phrases"
    """Judge of attacks: a name, or a judge with its settings."""
    overrefusal_judge: str | JudgeConfig | None = None
    """Judge of answers to benign requests; null takes the same judge."""
    precision: Precision | None = None
    """Precision of the models' weights; null is bfloat16 on a GPU and float32 on a CPU."""
    shards: dict[TaskName, Shards] = {}
    """Elements that share a task's prompts of one benchmark, such as {gcg: 4}; 1 for tasks not named."""
    topk: TopK = TopK()
    """Standard inference."""
    safebeam: SafeBeam = SafeBeam()
    """Safety-aware inference."""
    greedy: Greedy = Greedy()
    """Likeliest tokens."""
    gcg: Gcg | None = Gcg()
    """null leaves the attack out."""
    probes: Probes | None = Probes()
    """null leaves the probes out."""
    tasks: Tasks = Tasks()
    """What is measured on each kind of model."""

    def check(self) -> None:
        for name in self.shards:
            if not TASKS[name].decoders:
                raise ValueError(f"shards names {name}, which has no prompts to share; leave it out")
        if self.precision == "float64" and self.topk.backend == "vllm":
            raise ValueError("precision is float64, which vLLM does not have; choose bfloat16 or float32")
        judged = {TASKS[name].judged for name in {*self.tasks.base, *self.tasks.instruct, *self.tasks.benign}}
        for kind in JUDGED:
            if kind == "attack" or kind in judged:
                _require_template(self.judge_of(kind), kind)

    def judge_of(self, judged: Judged) -> JudgeConfig:
        """The judge of "attack" or "overrefusal" answers."""
        own = self.overrefusal_judge if judged == "overrefusal" else None
        return judge_config(self.judge if own is None else own)

    @property
    def benchmark_names(self) -> list[str]:
        """Every benchmark that a task may read."""
        gcg = [self.gcg.benchmark] if self.gcg else []
        return [*self.benchmarks, self.base_benchmark, self.overrefusal_benchmark, *gcg]

    @property
    def used_benchmarks(self) -> list[str]:
        """Every benchmark that a task does read."""
        tasks = [task for kind in MODEL_KINDS for task in self.eval_tasks(kind)]
        return list(dict.fromkeys(task.benchmark for task in tasks if task.benchmark))

    @property
    def judged_on_gpu(self) -> bool:
        """Whether a judge is a model that the merging job loads itself."""
        return any(self.judge_of(kind).on_this_machine for kind in JUDGED)

    def tasks_of(self, model_kind: ModelKind) -> list[Task]:
        """The tasks of a model of this kind, in the order in which they run."""
        return [TASKS[name] for name in getattr(self.tasks, model_kind) if not self.leaves_out(TASKS[name])]

    def leaves_out(self, task: Task) -> bool:
        """Whether the settings of what the task measures are null."""
        return (task.kind == "gcg" and self.gcg is None) or (task.kind == "probes" and self.probes is None)

    def eval_tasks(self, model_kind: ModelKind) -> list[EvalTask]:
        """The whole evaluation of a model, in the order in which it runs and in which merged rows stand."""
        found: list[EvalTask] = []
        for task in self.tasks_of(model_kind):
            count = self.shards.get(task.name, 1)
            benchmarks, limit = self.prompts_of(task, model_kind)
            found += [
                EvalTask(task, name, limit, shard, count) for name in benchmarks or ("",) for shard in range(count)
            ]
        return found

    def prompts_of(self, task: Task, model_kind: ModelKind) -> tuple[tuple[str, ...], int | None]:
        """The benchmarks of a task, and at most how many prompts of each (None: all). Probes have texts of their own."""
        if task.kind == "probes":
            return (), None
        if task.kind == "gcg":
            return ((self.gcg.benchmark,), self.gcg.prompts) if self.gcg else ((), None)
        if task.kind == "overrefusal":
            return (self.overrefusal_benchmark,), self.overrefusal_prompts
        return ((self.base_benchmark,) if model_kind == "base" else self.benchmarks), self.prompts_per_benchmark


def _require_template(judge: JudgeConfig, judged: Judged) -> None:
    """Raise ValueError where a model judge has no template to ask about such answers."""
    if judge.name in ("harmbench", "llm"):
        try:
            find_template(judge.template, judge.name, judge.model_name, judged)
        except UsageError as error:
            raise ValueError(str(error)) from None
