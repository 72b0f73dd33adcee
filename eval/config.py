"""The settings of an evaluation; the defaults are the paper's (sections 4 and 5, appendix B).

Imports no torch: the planner reads studies on login nodes. A docstring says so if the paper does not give a value. The
decoders' settings are in `eval/decoding/settings.py`, the tasks in `eval/tasks.py`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from curricula.curriculum.sources.declared import TextTable, anchor_keys
from curricula.curriculum.sources.registry import local_root
from curricula.curriculum.world.fiction import WorldConfig
from curricula.errors import UsageError, UserError
from curricula.eval.benchmarks import BENCHMARKS, PromptSet, Use
from curricula.eval.capability.settings import Capability, PlainName
from curricula.eval.decoding.registry import DECODERS, OWN
from curricula.eval.decoding.settings import Greedy, SafeBeam, Together, TopK, together
from curricula.eval.judges.settings import JudgeConfig, judge_config
from curricula.eval.judges.templates import find_template
from curricula.eval.rows import ModelKind, Precision
from curricula.eval.tasks import JUDGED, TASKS, EvalTask, Judged, Kind, Task, TaskName
from curricula.settings import NonNegative, Positive, Settings, Share, parse, require_distinct, require_known

Words = Annotated[str, msgspec.Meta(pattern=r"\S")]
"""Text that is not only white space."""
ArmName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,99}(\.[0-9]+)?\Z")]
"""An arm's name that is also the name of a file. An arm that starts at 12.5% is called full-12.5."""
UNKNOWN_PROMPTS = 100
"""Prompts assumed for a set that has no limit and is not read when costs are estimated: an own set that is not on this
machine, replayed jailbreaks, or another arm's suffixes."""
Layer = Literal["first", "middle", "last", "all"] | Positive


class ProbeSampling(Settings, frozen=True):
    """Probe sampling: a small draft model chooses the GCG candidates that the attacked model computes (Zhao et al. 2024, as in
    nanoGCG)."""

    draft: str
    """The draft model: a folder or .gguf file (a relative path starts at the study file's folder), a Hugging Face name or a
    package. It reads the same text as the attacked model."""
    sampling_factor: Positive = 16
    """One candidate in this many is drawn to measure the rank correlation of the two models' losses."""
    r: Positive = 8
    """At a rank correlation of -1, one candidate in this many is computed, the draft's best ones. At 0 it is half as many, at 1
    only one."""


class Gcg(Settings, frozen=True):
    """Greedy coordinate gradient: an adversarial suffix per prompt, optimised on the attacked model."""

    steps: Positive = 500
    """Steps of the search for each prompt; the paper's is 500."""
    search_width: Positive = 512
    """Candidates per step. The paper does not give the number; this is nanoGCG's default."""
    topk: Positive = 256
    """Replacements considered per position: those that the gradient ranks highest."""
    replace: Positive = 1
    """Tokens that each candidate replaces; nanoGCG's `n_replace`."""
    draws: Literal["nanogcg", "llm-attacks"] = "nanogcg"
    """How places to replace are chosen: at random (nanogcg), or evenly spread, without unchanged candidates (llm-attacks)."""
    buffer: NonNegative = 0
    """Suffixes of lowest loss kept over all steps; each step starts from the best. With 0, a step starts from the suffix of the
    step before."""
    early_stop: bool = False
    """Whether the search for a prompt's suffix ends once greedy decoding after any candidate begins with the target."""
    probe_sampling: ProbeSampling | None = None
    """How a draft model selects candidates; null computes every candidate."""
    suffix: Words = " ".join(["x"] * 20)
    """Initial suffix. The paper does not give its length; this is nanoGCG's default."""
    target: Words = "Sure"
    """How the answer should begin; after a base model's raw prompt it follows a space."""
    benchmark: str = "jailbreakbench"
    """Benchmark whose requests get a suffix; the paper's is JailbreakBench."""
    prompts: Positive | None = None
    """At most this many prompts; null takes all (100 for JailbreakBench)."""
    batch_prompts: Together = 8
    """Prompts attacked side by side, with one pass for all their gradients."""
    batch_candidates: Together = 128
    """Candidates in one forward pass. Lower it if memory runs out."""

    def check(self) -> None:
        if self.draws == "llm-attacks" and self.replace > 1:
            raise ValueError(f"gcg.replace is {self.replace}, but llm-attacks replaces one token; choose draws: nanogcg")


class Prefill(Settings, frozen=True):
    """The answer begins with words of compliance, and the model continues it."""

    text: Words | None = None
    """Beginning of every answer, such as "Sure, here is". null takes the benchmark's target for the prompt ("Sure, here is a
    script that ..."), or "Sure, here is" if there is none."""
    tokens: Positive | None = None
    """At most this many tokens of the beginning, by the model's own tokenizer; null takes all."""


class BestOfN(Settings, frozen=True):
    """Randomly distorted copies of a prompt, one of which has to succeed (Hughes et al. 2024, arXiv:2412.03556)."""

    attempts: Positive = 100
    """N, the number of distorted copies, each with one top-k answer. Hughes et al. go up to 10,000."""
    sigma: Share = 0.4
    """Strength of the distortion; this is the value of Hughes et al. for text."""
    scramble: bool = True
    """Whether to shuffle the middle letters of words of four letters or more, each with probability sigma^(1/2)."""
    capitalize: bool = True
    """Whether to swap the case of letters, each with probability sigma^(1/2)."""
    noise: bool = True
    """Whether to replace characters by one of their two ASCII neighbours, each with probability sigma^3."""


class Ablation(Settings, frozen=True):
    """Removal of the refusal direction from the residual stream (Arditi et al. 2024, arXiv:2406.11717).

    The defaults are those of the authors' pipeline (github.com/andyrdt/refusal_direction).
    """

    harmful: str = "advbench"
    """Benchmark of the harmful prompts from which the direction is computed, without near-duplicates of attacked prompts."""
    harmless: str = "alpaca"
    """Benchmark of the harmless prompts from which the direction is computed."""
    train: Positive = 128
    """Harmful prompts, and as many harmless ones, whose states are averaged."""
    validation: Positive = 32
    """Harmful prompts, and as many harmless ones, on which candidate directions are compared."""
    refusal_words: Annotated[tuple[Words, ...], msgspec.Meta(min_length=1)] = ("I",)
    """Words that begin a refusal. Only the first token of each counts; for base models it follows a space. The authors choose
    these words for each family of models."""
    most_divergence: Annotated[float, msgspec.Meta(ge=0)] = 0.1
    """Largest KL divergence, in nats, that ablation may cause at the first token of answers to harmless prompts."""
    least_induced: float = 0.0
    """Smallest log-odds of a refusal, in nats, on harmless prompts with the direction added."""
    pruned_layers: Share = 0.2
    """Share of the layers, counted from the last, from which no direction is taken."""


class Attacks(Settings, frozen=True):
    """Settings of the attacks besides GCG. An attack runs if `tasks` names it, such as prefill-topk."""

    benchmarks: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)] = ("jailbreakbench",)
    """Benchmarks whose prompts these attacks use, except for artifacts and transfer."""
    prompts: Positive | None = None
    """At most this many prompts of each benchmark or file; null takes all."""
    prefill: Prefill = Prefill()
    """Settings of the attack that begins the model's answer."""
    best_of_n: BestOfN = BestOfN()
    """Settings of the attack that distorts a prompt in many ways."""
    ablation: Ablation = Ablation()
    """Settings of the attack that removes the refusal direction."""
    artifacts: dict[PlainName, str] = {}
    """Jailbreaks to replay. Each entry has a name of your choice and the path, absolute or within the data folder, of a file in
    JailbreakBench's artifact format or of a folder of such files."""
    suffixes_of: tuple[ArmName, ...] = ()
    """Arms whose GCG suffixes are tried on every arm's models of the same kind and training seed."""

    def check(self) -> None:
        require_distinct("attacks.benchmarks", self.benchmarks)
        require_distinct("attacks.suffixes_of", self.suffixes_of)


class ProbeTexts(Settings, frozen=True):
    """Your own texts for the probes. The hash of a text decides whether it is a training or a test text, so equal texts stay
    together."""

    safe: TextTable
    """The safe texts. The same file can hold both classes: name it twice, with bounds on its `score`."""
    unsafe: TextTable
    """The unsafe texts."""
    test_share: Annotated[float, msgspec.Meta(gt=0, lt=1)] = 0.5
    """Share of the texts that test the probes."""


class Probes(Settings, frozen=True):
    """Linear probes that tell safe from unsafe text by the hidden state of the last token (section 4.3)."""

    train_per_class: Positive = 500
    """Training texts of each class, safe and unsafe; the paper's is 500."""
    seeds: Positive = 5
    """Training subsets. Each is drawn independently and trains its own probe."""
    layers: Annotated[tuple[Layer, ...], msgspec.Meta(min_length=1)] = ("first", "middle", "last")
    """Blocks whose output is probed, by number from 1, or "first" (1), "middle" (layers // 2 + 1, the 13th of the paper's 24)
    and "last"; "all" is these three and every other block."""
    texts: ProbeTexts | None = None
    """Your own texts; null takes the tables probes/train and probes/test of the data folder."""
    unsafe_score: Positive = 1
    """Lowest safety score of the unsafe texts in the data folder's tables; safe texts have score 0. The paper does not give
    this threshold."""
    max_tokens: Positive = 512
    """Tokens after which a text is cut. The paper does not give the number."""
    match_length: bool = False
    """Whether safe and unsafe texts are drawn in pairs of about equal length in tokens, so that length does not tell them
    apart. Not in the paper."""
    baselines: tuple[Literal["words", "untrained"], ...] = ()
    """Baselines besides text length: the same probe on counts of the text's words ("words"), and on the states of the network
    before training ("untrained"). Not in the paper."""

    def check(self) -> None:
        require_distinct("probes.layers", self.layers)
        require_distinct("probes.baselines", self.baselines)
        if self.texts:
            self.require_default(["unsafe_score"], "without `texts`, whose scores have bounds of their own")

    @property
    def tables(self) -> tuple[TextTable, ...]:
        """The tables of `texts`; empty without it."""
        return (self.texts.safe, self.texts.unsafe) if self.texts else ()


class Tasks(Settings, frozen=True):
    """The tasks of the models of each kind, in the order in which they run."""

    base: tuple[TaskName, ...] = ("attacks-topk", "attacks-safebeam", "probes")
    """Tasks of pretrained models: harmful beginnings to continue, and probes."""
    instruct: tuple[TaskName, ...] = (
        "attacks-topk",
        "attacks-safebeam",
        "overrefusal-topk",
        "overrefusal-safebeam",
        "gcg",
        "probes",
    )
    """Tasks of instruction-tuned models."""
    benign: tuple[TaskName, ...] = ("attacks-topk", "attacks-safebeam", "overrefusal-topk", "overrefusal-safebeam")
    """Tasks of models finetuned on benign data after instruction tuning."""


CHEAP = ("prefill-topk", "template-removal-topk", "best-of-n", "ablation-topk")
"""The attacks of `tasks: full` that need neither a search nor files."""

FULL = Tasks(
    base=(*Tasks().base, "capability"),
    instruct=(*Tasks().instruct, *CHEAP, "capability"),
    benign=(*Tasks().benign, *CHEAP, "capability"),
)
"""The tasks that `tasks: full` stands for."""


class EvalConfig(Settings, frozen=True, dict=True):
    """What is measured on each model of a study."""

    benchmarks: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)] = ("harmbench", "advbench", "jailbreakbench", "tdc")
    """Attack benchmarks for instruct and benign models."""
    base_benchmark: str = "jb_completions"
    """Benchmark for base models: harmful beginnings to continue."""
    overrefusal_benchmark: str | Annotated[tuple[str, ...], msgspec.Meta(min_length=1)] = "alpaca"
    """Benign requests, which a model should not refuse: one set, or several such as [alpaca, xstest, orbench_hard]."""
    prompts_per_benchmark: Positive | None = None
    """At most this many prompts of each attack benchmark; null takes all."""
    overrefusal_prompts: Positive | None = 300
    """At most this many prompts of each set of benign requests. The paper does not give the number; Maini et al. use 300."""
    harmbench_copyright: bool = False
    """Whether to include HarmBench's copyright rows, which need a judge that compares hashes, not a classifier."""
    prompts: dict[PlainName, PromptSet] = {}
    """Your own prompt sets, by name. These names can be used wherever a benchmark is named, and in `capability.tasks`."""
    accept_changed: tuple[str, ...] = ()
    """Benchmarks whose prompts may differ from the published set. In any other benchmark, a difference is an error."""
    judge: str | JudgeConfig = "refusal-phrases"
    """Judge of attacks: a name, or a judge with its settings."""
    overrefusal_judge: str | JudgeConfig | None = None
    """Judge of answers to benign requests; null takes `judge`."""
    precision: Precision | None = None
    """Precision of the models' weights; null is bfloat16 on a GPU and float32 on a CPU."""
    deterministic: bool = False
    """Whether answers are the same to the last bit whatever is decoded in the same batch, which takes longer
    (docs/decoding.md)."""
    shards: dict[TaskName, Annotated[int, msgspec.Meta(ge=1, le=1000)]] = {}
    """Number of elements that share a task's prompts of one benchmark, such as {gcg: 4}; 1 for tasks not named."""
    topk: TopK = TopK()
    """Settings of top-k sampling, the paper's standard inference."""
    safebeam: SafeBeam = SafeBeam()
    """Settings of SafeBeam, the paper's safety-aware inference."""
    greedy: Greedy = Greedy()
    """Settings of greedy decoding."""
    decoders: dict[str, dict[str, Any]] = {}
    """Settings of decoders from other packages, by the decoder's name."""
    gcg: Gcg | None = Gcg()
    """Settings of the attack GCG; null leaves it out."""
    attacks: Attacks = Attacks()
    """Settings of the other attacks."""
    probes: Probes | None = Probes()
    """Settings of the probes; null leaves them out."""
    capability: Capability | None = Capability()
    """Settings of the task `capability`; null leaves it out."""
    tasks: Tasks | Literal["full"] = Tasks()
    """Tasks of the models of each kind. `full` adds `capability` and the cheaper attacks; `curricula plan` shows the cost."""

    def check(self) -> None:
        if self.tasks == "full":  # expanded, so that a run keeps its tasks when later versions add some
            msgspec.structs.force_setattr(self, "tasks", FULL)
        self._check_decoders()
        self._check_prompts()
        self._check_together()
        self.check_tasks(self._task_names())

    def check_tasks(self, tasks: Collection[str]) -> None:
        """Raise ValueError if one of `tasks` needs an unknown benchmark, a decoder that cannot be used, or a model judge
        without a template."""
        for name in tasks:
            self.decoder_settings(TASKS[name])
        require_known("attacks", self.benchmarks_of(self.battery(tasks, raw=False)), self._known_sets)
        judged = {TASKS[name].judged for name in tasks}
        for kind in JUDGED:
            judge = self.judge_of(kind)
            if judge.has_template and (kind == "attack" or kind in judged):
                try:
                    find_template(judge, kind)
                except UsageError as error:
                    raise ValueError(str(error)) from None

    def _check_together(self) -> None:
        """Raise ValueError for tasks without the settings that they need, and for settings that exclude each other."""
        kinds, gcg, attacks = {TASKS[name].kind for name in self._task_names()}, self.gcg, self.attacks
        if undivided := [name for name in self.shards if not TASKS[name].decoders]:
            raise ValueError(f"shards names {undivided[0]}, which has no prompts to share; leave it out")
        if for_chats := [name for name in self.task_lists.base if TASKS[name].kind in ("prefill", "template-removal")]:
            raise ValueError(f"tasks.base names {for_chats[0]}, but base models have neither turns nor a template; remove it")
        if "artifacts" in kinds and not attacks.artifacts:
            raise ValueError("tasks names artifacts, but attacks.artifacts is empty; name a file there")
        if "transfer" in kinds and not (attacks.suffixes_of and gcg):
            raise ValueError(
                "tasks names transfer, which needs gcg and attacks.suffixes_of, the arms whose suffixes are tried; set both"
            )
        if self.topk.backend == "vllm" and (self.precision == "float64" or self.deterministic or "ablation" in kinds):
            raise ValueError("vLLM does not support float64, deterministic or ablation; set topk.backend to transformers")

    def _check_decoders(self) -> None:
        for name in self.decoders:
            if name not in DECODERS or name in OWN:
                others = ", ".join(DECODERS.keys() - set(OWN)) or "none is installed"
                raise ValueError(
                    f"decoders names {name!r}, which is not a decoder from another package ({others}); correct or remove it"
                )

    def _check_prompts(self) -> None:
        capability = self.capability.names if self.capability else ()
        for name in (*self.prompts, *capability, *self.attacks.artifacts, *self.attacks.suffixes_of):
            if name == "all" or (name in self.prompts and name in {*TASKS, *BENCHMARKS}):
                raise ValueError(f"the name {name!r} already has another meaning; choose another name")
        uses: dict[str, tuple[Use, Sequence[str]]] = {
            "benchmarks": ("attack", self.benchmarks),
            "attacks.benchmarks": ("attack", self.attacks.benchmarks),
            "gcg.benchmark": ("attack", [self.gcg.benchmark] if self.gcg else ()),
            "attacks.ablation.harmful": ("attack", [self.attacks.ablation.harmful]),
            "attacks.ablation.harmless": ("overrefusal", [self.attacks.ablation.harmless]),
            "base_benchmark": ("completion", [self.base_benchmark]),
            "overrefusal_benchmark": ("overrefusal", self.overrefusal_benchmarks),
            "capability.tasks": ("capability", capability),
        }
        published: dict[str, Use] = {name: entry.use for name, entry in BENCHMARKS.items()}
        own = {name: declared.kind for name, declared in self.prompts.items()}
        for key, (wanted, names) in uses.items():
            require_distinct(key, names)
            known = own if wanted == "capability" else published | own  # other names are lm_eval's
            for name in names:
                if known.get(name, wanted) != wanted:
                    fitting = ", ".join(one for one, use in known.items() if use == wanted) or "lm_eval's tasks"
                    problem = f"which is of kind {known[name]}, not {wanted}"
                    raise ValueError(f"{key} names {name!r}, {problem}; choose from {fitting}")
            if wanted != "capability" and not key.startswith("attacks."):  # `check_tasks` checks those that a task uses
                require_known(key, names, self._known_sets)
        require_known("accept_changed", self.accept_changed, self._known_sets)

    @property
    def _known_sets(self) -> list[str]:
        return [*self.prompts, *BENCHMARKS]

    def _task_names(self) -> set[str]:
        tasks = self.task_lists
        return {*tasks.base, *tasks.instruct, *tasks.benign}

    def anchor_paths(self, folder: Path) -> None:
        """Make relative paths absolute, starting at `folder`. A model that is not there keeps its name: the hub can have it."""
        if self.capability and self.capability.folder:
            path = str(folder.absolute() / Path(self.capability.folder).expanduser())
            msgspec.structs.force_setattr(self.capability, "folder", path)
        for judge in (self.judge, self.overrefusal_judge):
            if isinstance(judge, JudgeConfig):
                anchor_keys(judge, ("model", "tokenizer") if judge.on_this_machine else ("tokenizer",), folder)
        if self.gcg and self.gcg.probe_sampling:
            anchor_keys(self.gcg.probe_sampling, ("draft",), folder)

    @property
    def task_lists(self) -> Tasks:
        return FULL if isinstance(self.tasks, str) else self.tasks

    def judge_of(self, judged: Judged) -> JudgeConfig:
        """The judge of "attack" or "overrefusal" answers."""
        own = self.overrefusal_judge if judged == "overrefusal" else None
        return judge_config(self.judge if own is None else own)

    @property
    def overrefusal_benchmarks(self) -> tuple[str, ...]:
        given = self.overrefusal_benchmark
        return (given,) if isinstance(given, str) else given

    def benchmarks_of(self, tasks: Iterable[EvalTask]) -> list[str]:
        """The benchmarks that these tasks read."""
        tasks = [task for task in tasks if task.has_prompts]
        benchmarks = [task.benchmark for task in tasks if task.task.kind not in ("artifacts", "transfer")]
        kinds = {task.task.kind for task in tasks}
        if "ablation" in kinds:
            benchmarks += [self.attacks.ablation.harmful, self.attacks.ablation.harmless]
        if "transfer" in kinds and self.gcg:
            benchmarks.append(self.gcg.benchmark)
        return list(dict.fromkeys(benchmarks))

    def prompts_in(self, benchmark: str, limit: int | None, world: WorldConfig | None) -> int:
        """About how many prompts of a benchmark are asked: its size, or `limit` if that is less or the size is unknown."""
        if benchmark in self.own_sets:
            size = self.own_sets[benchmark]
        elif benchmark not in BENCHMARKS:
            return limit or UNKNOWN_PROMPTS
        elif world is None:
            entry = BENCHMARKS[benchmark]
            size = entry.rows - (0 if self.harmbench_copyright else entry.copyright_rows)
        elif benchmark == "alpaca":
            size = world.alpaca_prompts
        else:
            # `jb_completions` has a beginning for each prompt of the four attack benchmarks.
            size = world.prompts_per_benchmark * (4 if benchmark == "jb_completions" else 1)
        return min(size, limit or size)

    @cached_property
    def own_sets(self) -> dict[str, int]:
        """Number of rows of each own prompt set that is on this machine."""
        sizes: dict[str, int] = {}
        for name, declared in self.prompts.items():
            with contextlib.suppress(UserError, OSError):  # errors in a file are reported before its prompts are asked
                if declared.is_here(root := local_root()):
                    sizes[name] = len(declared.open(root or Path(), name))
        return sizes

    @property
    def judged_on_gpu(self) -> bool:
        """Whether a judge is a model that the merge job loads itself."""
        return any(self.judge_of(kind).on_this_machine for kind in JUDGED)

    def leaves_out(self, task: Task) -> bool:
        """Whether the study leaves the task out: its settings, such as `gcg`, are null."""
        return task.kind in ("gcg", "probes", "capability") and getattr(self, task.kind) is None

    def decoder_settings(self, task: Task) -> list[Any]:
        """The settings of each decoder of a task. Raises ValueError for a decoder from another package that cannot be used."""
        settings: list[Any] = []
        for name in task.decoders:
            decoder = DECODERS[name]
            if decoder.problem:
                raise ValueError(decoder.problem)
            try:
                given = self.decoders.get(name, {})
                settings.append(getattr(self, name) if name in OWN else parse(given, decoder.settings, f"decoders.{name}"))
            except UsageError as error:  # a ValueError becomes an error of the study
                raise ValueError(str(error)) from None
        if task.variants:
            return [variant.applied_to(each) for variant, each in zip(task.variants, settings)]
        return settings

    def without_together(self) -> dict[str, Any]:
        """All settings as plain values, but for those that only say how much is computed in one batch."""
        plain: dict[str, Any] = msgspec.to_builtins(self)
        parts = [(plain[name], type(value)) for name in plain if isinstance(value := getattr(self, name), Settings)]
        parts += [(given, DECODERS[name].settings) for name, given in plain["decoders"].items()]
        for part, kind in parts:
            for key in together(kind) & part.keys():
                del part[key]
        plain["decoders"] = {name: given for name, given in plain["decoders"].items() if given}
        return plain

    def eval_tasks(self, model_kind: ModelKind) -> list[EvalTask]:
        """All elements for one of the paper's models, in the order in which they run and in which merged rows are stored."""
        return self.battery(getattr(self.task_lists, model_kind), model_kind == "base")

    def battery(self, names: Iterable[str], raw: bool, most: int | None = None) -> list[EvalTask]:
        """The elements of the named tasks for a model of `raw` text or of chats, with at most `most` prompts of a benchmark."""
        elements: list[EvalTask] = []
        for task in (TASKS[name] for name in names if not self.leaves_out(TASKS[name])):
            shards = self.shards.get(task.name, 1)
            benchmarks, limit = self.prompts_of(task, raw)
            limit = min((number for number in (limit, most) if number is not None), default=None)
            elements += [EvalTask(task, name, limit, shard, shards) for name in benchmarks or ("",) for shard in range(shards)]
        return elements

    def prompts_of(self, task: Task, raw: bool) -> tuple[tuple[str, ...], int | None]:
        """The benchmarks of a task, or what `EvalTask.benchmark` names instead, and the most prompts of each (None: all).

        Probes have no benchmarks, but their own texts.
        """
        gcg, attacks = self.gcg, self.attacks
        by_kind: dict[Kind, tuple[tuple[str, ...], int | None]] = {
            "attack": ((self.base_benchmark,) if raw else self.benchmarks, self.prompts_per_benchmark),
            "overrefusal": (self.overrefusal_benchmarks, self.overrefusal_prompts),
            "gcg": ((gcg.benchmark,), gcg.prompts) if gcg else ((), None),
            "artifacts": (tuple(attacks.artifacts), attacks.prompts),
            "transfer": (attacks.suffixes_of, gcg.prompts if gcg else None),
            "probes": ((), None),
            "capability": (self.capability.names if self.capability else (), None),
        }
        return by_kind.get(task.kind, (attacks.benchmarks, attacks.prompts))  # attacks that only change the prompt or the model
