"""The study file: one YAML document that describes a whole study, read into immutable structs.

Nothing here imports torch, so that a login node can read and plan a study.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import msgspec

from curricula.core_yaml import dump_yaml
from curricula.curriculum.config import Curriculum, ReplicateDraws, Source, Tokenizer, Tuning
from curricula.curriculum.plan import (
    DEFAULT_SEED,
    TRUNK,
    Arm,
    Budget,
    Replicate,
    Segment,
    arms_of,
    percent,
    replicates_of,
    segments_of,
)
from curricula.curriculum.world.fiction import WorldConfig
from curricula.eval.benchmarks import BENCHMARKS
from curricula.eval.config import EvalConfig
from curricula.model import (
    PRESETS,
    ExecutionConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrackingConfig,
    TrainConfig,
)
from curricula.provenance import PACKAGE
from curricula.settings import NonNegative, Positive, PositiveNumber, Settings, parse, read_yaml

STUDIES = PACKAGE / "jobs" / "studies"
EXAMPLES = ("demo", "demo-full", "paper", "smollm2-135m")
"""Studies that come with the suite."""
PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
"""A name that can be part of a path, a job's name and an option."""


class Model(Settings, frozen=True):
    """A preset of model/config.py, with the study's changes to it."""

    preset: str
    """A name in `PRESETS`."""
    tied: bool | None = None
    """Whether the output projection is the embedding matrix; by default the preset's."""
    vocabulary: Positive | None = None
    """Entries of the embedding; by default the preset's."""
    sequence_length: Positive | None = None
    """Tokens in a row of training; by default the preset's."""
    rope_base: float | None = None
    """Base of the rotary positions; by default the preset's, 10,000."""
    weights: str | None = None
    """Pretrained weights to continue from: a Hugging Face folder, a GGUF file, or a package that holds one."""

    def check(self) -> None:
        if self.preset not in PRESETS:
            raise ValueError(f"preset {self.preset!r} is not one of {', '.join(PRESETS)}")

    def resolve(self) -> ModelConfig:
        given = {name: getattr(self, name) for name in ("tied", "vocabulary", "sequence_length", "rope_base")}
        changes = {name: value for name, value in given.items() if value is not None}
        return msgspec.structs.replace(PRESETS[self.preset], **changes)


class Pretraining(TrainConfig, frozen=True, kw_only=True):
    """How each arm is pretrained."""

    budget_tokens: Annotated[int, msgspec.Meta(ge=1, le=10**17)]
    """Tokens that each arm reads, rounded to whole steps."""
    global_batch: Positive
    """Sequences in one optimizer step."""
    micro_batch: Positive
    """Sequences in one forward and backward pass of a device; it divides the global batch."""
    save_interval_steps: Positive = 1000
    """Optimizer steps between checkpoints."""


class Finetuning(Settings, frozen=True):
    """The two stages after pretraining: safety instruction tuning, then benign finetuning of its result."""

    instruct: Tuning
    """Safety instruction tuning of the base model (section 4.4 of the paper)."""
    benign: Tuning | None
    """null leaves the stage out."""
    save_interval_steps: Positive = 500
    """Optimizer steps between checkpoints."""
    save_interval_minutes: PositiveNumber | None = 30.0
    """Save also when this much time has passed since the last save; null leaves that out."""

    @property
    def stages(self) -> dict[str, Tuning]:
        """The stages by the kind of model that each makes, in their order."""
        return {"instruct": self.instruct, **({"benign": self.benign} if self.benign else {})}

    @property
    def pools(self) -> list[str]:
        """The tuning sets of all stages, each once."""
        return list(dict.fromkeys(pool for tuning in self.stages.values() for pool in tuning.mix))

    def train_config(self, tuning: Tuning) -> TrainConfig:
        """How one of the two stages trains."""
        return TrainConfig(
            micro_batch=tuning.micro_batch,
            optimizer=OptimizerConfig(lr=tuning.lr, weight_decay=tuning.weight_decay),
            schedule=ScheduleConfig(kind="cosine", warmup_fraction=tuning.warmup_fraction),
            save_interval_steps=self.save_interval_steps,
            save_interval_minutes=self.save_interval_minutes,
        )


class Allocation(Settings, frozen=True):
    """What one element of a stage asks of the cluster."""

    nodes: Positive = 1
    """Machines."""
    gpus_per_node: Positive = 1
    """GPUs on each of them, with a process each."""
    hours: PositiveNumber = 1.0
    """The time limit, over all restarts."""

    @property
    def gpus(self) -> int:
        return self.nodes * self.gpus_per_node


class Resources(ExecutionConfig, frozen=True, kw_only=True):
    """What the jobs ask of a cluster, and how many elements run at a time on one machine."""

    pretraining: Allocation = Allocation(nodes=4, gpus_per_node=8, hours=168)
    """Of each segment of the training tree."""
    tuning: Allocation = Allocation(gpus_per_node=4, hours=4)
    """Of each model that is tuned."""
    evaluation: Allocation = Allocation(hours=1)
    """Of each task on one benchmark; it takes one GPU at most."""
    data_hours: PositiveNumber = 24
    """The time limit of each element that fetches, prepares, tokenises, exports or reports."""
    data_cpus: Positive = 8
    """CPUs of each element that fetches, prepares or tokenises; tokenising uses them all."""
    expected_mfu: PositiveNumber = 0.40
    """Share of the GPUs' peak that the estimate of pretraining's GPU-hours assumes."""
    gpu_memory_gib: PositiveNumber = 79.0
    """Memory of one GPU (H100 80GB), for the estimate of memory."""
    workers: Positive = 2
    """Elements that run at a time with `--cluster local`."""


class Study(Settings, frozen=True, dict=True):
    """A whole study: what is read, trained and measured, and with which resources."""

    name: str
    """A plain word: the name of the run folder, and of jobs in the queue."""
    tokenizer: Tokenizer
    """Where the tokenizer comes from."""
    sources: dict[str, Source]
    """Streams of pretraining text, by names that mixes use."""
    curriculum: Curriculum
    """Which sources arms read, and when."""
    model: Model
    """What is trained."""
    pretraining: Pretraining
    """How each arm is pretrained."""
    tuning: Finetuning
    """The finetuning stages."""
    evaluation: EvalConfig = EvalConfig()
    """What is measured, how it is decoded and who judges it."""
    resources: Resources = Resources()
    """What jobs ask of a cluster or of this machine."""
    world: WorldConfig | None = None
    """Make a fictional world of data first, and read every dataset from it."""
    tracking: TrackingConfig = TrackingConfig()
    """Where the curves of training go."""
    seed: int | None = None
    """Short for `seeds` with this one; 42 if neither is given."""
    seeds: Annotated[tuple[int, ...], msgspec.Meta(min_length=1)] | None = None
    """Train every arm once with each. The first is also that of all that the replicates share."""
    replicate: ReplicateDraws = ReplicateDraws()
    """What each further seed draws anew."""
    validation_documents: NonNegative = 64
    """Documents of each source that are held out of training."""

    def check(self) -> None:
        self._check_seeds()
        self._check_names()
        self._check_sources()
        self._check_vocabulary()
        self._check_batches()
        self._check_tuning()
        self._check_arms()
        self._check_evaluation()
        _ = self.segments  # raises where a start leaves an arm no step

    def _check_seeds(self) -> None:
        """Also writes one seed as `seed` and several as `seeds`, so that equal studies compare equal."""
        if self.seed is not None and self.seeds is not None:
            raise ValueError(f"seed {self.seed} and seeds {list(self.seeds)} are both given; keep one of them")
        seeds = self.seeds or (DEFAULT_SEED if self.seed is None else self.seed,)
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"seeds {list(seeds)} repeat one; name each once")
        is_one = len(seeds) == 1
        msgspec.structs.force_setattr(self, "seed", seeds[0] if is_one else None)
        msgspec.structs.force_setattr(self, "seeds", None if is_one else seeds)
        draws_weights = self.replicate.init and not self.model.weights
        if not (is_one or draws_weights or self.replicate.data):
            why = "model.weights is given" if self.replicate.init else "replicate.init is false"
            raise ValueError(
                f"replicate.data is false and {why}, so all seeds would pretrain the same model; set replicate.data to true"
            )

    def _check_names(self) -> None:
        for what, name in [("name", self.name), *(("source", name) for name in self.sources)]:
            if not PLAIN_NAME.fullmatch(name):
                raise ValueError(
                    f"{what} {name!r} must be at most 100 letters, digits, '.', '_' and '-', beginning with a letter or digit"
                )
        for name in self.curriculum.interventions:
            if not PLAIN_NAME.fullmatch(name) or name in ("safe", "none"):
                raise ValueError(f"intervention set {name!r} must be a plain word other than 'safe' and 'none'")
        for name in self.curriculum.arms:
            if not PLAIN_NAME.fullmatch(name) or name in (TRUNK, "none"):
                raise ValueError(f"arm {name!r} must be a plain word other than 'trunk' and 'none'")

    def _check_sources(self) -> None:
        mixes = [(f"mix {where!r}", mix) for where, mix in self.curriculum.mixes().items()]
        for arm, phases in self.curriculum.arms.items():
            mixes += [(f"arm {arm!r}", self.curriculum.mix(phase)) for phase in phases]
        for where, mix in mixes:
            for source in mix:
                if source not in self.sources:
                    raise ValueError(f"the {where} names source {source!r}, which sources does not define")

    def _check_vocabulary(self) -> None:
        trained, expected = self.tokenizer.train, self.model.resolve().vocabulary
        if trained is not None and trained != expected:
            raise ValueError(
                f"tokenizer.train makes {trained} entries, where the model has a vocabulary of {expected}; set tokenizer.train "
                f"to {expected}, or model.vocabulary to {trained}"
            )

    def _check_batches(self) -> None:
        pretraining = self.pretraining
        if self.budget.steps < 1:
            raise ValueError(
                f"budget_tokens {pretraining.budget_tokens} is less than one step of {self.budget.step_tokens} tokens"
            )
        if pretraining.global_batch % pretraining.micro_batch:
            raise ValueError(
                f"global_batch {pretraining.global_batch} is not a multiple of micro_batch {pretraining.micro_batch}"
            )

    def _check_tuning(self) -> None:
        sets = [*self.curriculum.interventions, *self.curriculum.arms]
        for stage, tuning in self.tuning.stages.items():
            for name in tuning.tagged_harmful:
                if name not in sets:
                    raise ValueError(
                        f"tuning.{stage}.tagged_harmful names set {name!r}, where interventions has {', '.join(sets)}"
                    )

    def _check_arms(self) -> None:
        names = [*(arm.key for arm in self.trainings), *(one.named(TRUNK) for one in self.replicates)]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(
                    f"two of curriculum's starts and arms give the arm name {name}; write fewer digits or rename"
                )
        steps: dict[str, int] = {}
        for arm in self.arms:
            arm.blend_phases(self.budget)  # raises where a phase is too short for a step
            step = self.budget.step_at(arm.start)
            if steps.setdefault(percent(arm.start), step) != step:
                raise ValueError(
                    f"arm {arm.name} starts too near to another for jobs named by percent; move it or join them"
                )

    def _check_evaluation(self) -> None:
        evaluation = self.evaluation
        if evaluation.tasks.benign and self.tuning.benign is None:
            raise ValueError("evaluation.tasks.benign names tasks, but tuning.benign is null; set the tasks to []")
        for name in [*evaluation.benchmark_names, *evaluation.accept_changed]:
            if name not in BENCHMARKS:
                raise ValueError(f"evaluation names benchmark {name!r}; choose from {', '.join(BENCHMARKS)}")
        if "world" in (evaluation.judge_of("attack").name, evaluation.judge_of("overrefusal").name) and not self.world:
            raise ValueError("evaluation.judge is 'world', but the study has no world; use refusal-phrases")

    @property
    def budget(self) -> Budget:
        length = self.model.resolve().sequence_length
        return Budget(self.pretraining.budget_tokens, length, self.pretraining.global_batch)

    @cached_property
    def replicates(self) -> tuple[Replicate, ...]:
        seeds = self.seeds or (DEFAULT_SEED if self.seed is None else self.seed,)
        return replicates_of(seeds, self.replicate)

    @property
    def first_seed(self) -> int:
        """The seed of all that replicates share."""
        return self.replicates[0].seed

    @cached_property
    def arms(self) -> tuple[Arm, ...]:
        """Every arm once, as the first replicate trains it."""
        return self.trainings[: len(self.trainings) // len(self.replicates)]

    @cached_property
    def trainings(self) -> tuple[Arm, ...]:
        """Every arm of every replicate, one replicate after another."""
        arms = arms_of(self.curriculum, self.budget)
        return tuple(replace(arm, replicate=one) for one in self.replicates for arm in arms)

    def training(self, arm: str, seed: int | None) -> Arm:
        return next(one for one in self.trainings if (one.name, one.replicate.seed) == (arm, seed))

    @cached_property
    def groups(self) -> dict[str, list[Arm]]:
        """The trainings that leave the trunk at the same step, earliest first, by the name that their jobs share."""
        by_step: dict[int, list[Arm]] = defaultdict(list)
        for arm in self.trainings:
            by_step[self.budget.step_at(arm.start)].append(arm)
        return {percent(arms[0].start): arms for _, arms in sorted(by_step.items())}

    @cached_property
    def segments(self) -> tuple[Segment, ...]:
        return tuple(segments_of(self.trainings, self.curriculum, self.budget))


def load_study(path: Path) -> Study:
    """Read and check a study file. A study that comes with the suite can be named without a path, such as `paper`.

    Raises UsageError that names the file, the key, its value and what to write instead.
    """
    if not path.exists() and str(path) in EXAMPLES:
        path = STUDIES / f"{path}.yaml"
    missing = f"no such study file; name a file, or one of those that come with the suite: {', '.join(EXAMPLES)}"
    return parse_study(read_yaml(path, missing), str(path))


def parse_study(raw: Any, where: str) -> Study:
    return parse(raw, Study, where)


def study_yaml(study: Study) -> str:
    """The study with all defaults written out, as YAML that `load_study` reads back to an equal study."""
    return dump_yaml(msgspec.to_builtins(study), width=120)
