"""The study file: one YAML document that says everything a study is, read into immutable structs.

Nothing here imports torch: reading and planning a study works on a login node.
"""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import msgspec
import yaml

from curricula.curriculum.config import Curriculum, Source, Tokenizer, Tuning
from curricula.curriculum.plan import TRUNK, Arm, Budget, Segment, arms_of, percent, segments_of
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
from curricula.settings import Positive, PositiveNumber, Settings, parse, read_yaml

STUDIES = PACKAGE / "jobs" / "studies"
EXAMPLES = ("demo", "paper", "smollm2-135m")
"""Studies that come with the suite."""
PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class Model(Settings, frozen=True):
    """A preset of model/config.py, with what the study changes in it."""

    preset: str
    tied: bool | None = None
    vocabulary: Positive | None = None
    sequence_length: Positive | None = None
    rope_base: float | None = None
    weights: str | None = None  # pretrained weights to continue from: a Hugging Face folder, or a package with a GGUF

    def check(self) -> None:
        if self.preset not in PRESETS:
            raise ValueError(f"preset {self.preset!r} is not one of {', '.join(PRESETS)}")

    def resolve(self) -> ModelConfig:
        given = {name: getattr(self, name) for name in ("tied", "vocabulary", "sequence_length", "rope_base")}
        changes = {name: value for name, value in given.items() if value is not None}
        return msgspec.structs.replace(PRESETS[self.preset], **changes)


class Pretraining(TrainConfig, frozen=True, kw_only=True):
    """How much is pretrained on, and how."""

    budget_tokens: Annotated[int, msgspec.Meta(ge=1, le=10**17)]
    global_batch: Positive
    """Sequences in one optimizer step."""
    micro_batch: Positive
    """Sequences in one forward and backward pass of a device; it divides the global batch."""
    save_interval_steps: Positive = 1000


class Finetuning(Settings, frozen=True):
    """The two stages after pretraining: safety instruction tuning, then benign finetuning of its result."""

    instruct: Tuning
    benign: Tuning
    save_interval_steps: Positive = 500
    save_interval_minutes: PositiveNumber | None = 30.0

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
    """What one element of a stage asks of the cluster, and for how long at most."""

    nodes: Positive = 1
    gpus_per_node: Positive = 1
    hours: PositiveNumber = 1.0

    @property
    def gpus(self) -> int:
        return self.nodes * self.gpus_per_node


class Resources(ExecutionConfig, frozen=True, kw_only=True):
    """Sizes of the jobs on a cluster. On one machine (`--cluster local`) `workers` elements run at a time."""

    pretraining: Allocation = Allocation(nodes=4, gpus_per_node=8, hours=168)
    tuning: Allocation = Allocation(gpus_per_node=4, hours=4)
    evaluation: Allocation = Allocation(hours=1)
    data_hours: PositiveNumber = 24  # for each element that fetches, prepares, tokenises, exports or reports
    data_cpus: Positive = 8  # for each of those that fetch, prepare or tokenise: tokenising uses them all
    expected_mfu: PositiveNumber = 0.40  # share of the peak that the estimate counts on
    gpu_memory_gib: PositiveNumber = 79.0  # of one GPU (H100 80GB), for the estimate of memory
    workers: Positive = 2


class Study(Settings, frozen=True, dict=True):
    name: str
    tokenizer: Tokenizer
    sources: dict[str, Source]
    curriculum: Curriculum
    model: Model
    pretraining: Pretraining
    tuning: Finetuning
    evaluation: EvalConfig = EvalConfig()
    resources: Resources = Resources()
    world: WorldConfig | None = None  # make a fictional world of data first, and read every dataset from it
    tracking: TrackingConfig = TrackingConfig()
    seed: int = 42
    validation_documents: Annotated[int, msgspec.Meta(ge=0)] = 64  # of each source, held out of training

    def check(self) -> None:
        for what, name in [("name", self.name), *(("source", name) for name in self.sources)]:
            if not PLAIN_NAME.fullmatch(name):
                raise ValueError(
                    f"{what} {name!r} must be at most 100 letters, digits, '.', '_' and '-', beginning with one of the former"
                )
        for name in self.curriculum.interventions:
            if not PLAIN_NAME.fullmatch(name) or name in ("safe", "none"):
                raise ValueError(f"intervention set {name!r} must be a plain word other than 'safe' and 'none'")
        for name in self.curriculum.arms:
            if not PLAIN_NAME.fullmatch(name) or name in (TRUNK, "none"):
                raise ValueError(f"arm {name!r} must be a plain word other than 'trunk' and 'none'")
        mixes = [(f"mix {where!r}", mix) for where, mix in self.curriculum.mixes().items()]
        for arm, phases in self.curriculum.arms.items():
            mixes += [(f"arm {arm!r}", self.curriculum.mix(phase)) for phase in phases]
        for where, mix in mixes:
            for source in mix:
                if source not in self.sources:
                    raise ValueError(f"the {where} names source {source!r}, which sources does not define")
        if self.budget.steps < 1:
            raise ValueError(
                f"budget_tokens {self.pretraining.budget_tokens} is less than one step of {self.budget.step_tokens} tokens"
            )
        if self.pretraining.global_batch % self.pretraining.micro_batch:
            raise ValueError(
                f"global_batch {self.pretraining.global_batch} is not a multiple of micro_batch {self.pretraining.micro_batch}"
            )
        for stage, tuning in (("instruct", self.tuning.instruct), ("benign", self.tuning.benign)):
            engine = self.resources.engine
            if tuning.packing and (engine.backend == "te" or engine.fp8):
                raise ValueError(
                    f"tuning.{stage}.packing is on, and resources.engine asks for Transformer Engine, whose attention does not "
                    "keep packed conversations apart; leave one of them out"
                )
            for name in tuning.tagged_harmful:
                if name not in {**self.curriculum.interventions, **self.curriculum.arms}:
                    known = ", ".join([*self.curriculum.interventions, *self.curriculum.arms])
                    raise ValueError(
                        f"tuning.{stage}.tagged_harmful names set {name!r}, where interventions has {known}"
                    )
        names = [arm.name for arm in self.arms]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(
                    f"two of curriculum's starts and arms give the arm name {name}; write fewer digits or rename"
                )
        steps: dict[str, int] = {}
        for one in self.arms:
            one.blend_phases(self.budget)
            step = self.budget.step_at(one.start)
            if steps.setdefault(percent(one.start), step) != step:
                raise ValueError(
                    f"arm {one.name} starts too near to another for jobs named by percent; move it or join them"
                )
        self._check_evaluation()
        _ = self.segments  # raises where a start leaves an arm no step

    def _check_evaluation(self) -> None:
        asked = self.evaluation
        names = [*asked.benchmarks, asked.base_benchmark, asked.overrefusal_benchmark]
        for name in [*names, *([asked.gcg.benchmark] if asked.gcg else [])]:
            if name not in BENCHMARKS:
                raise ValueError(f"evaluation names benchmark {name!r}; choose from {', '.join(BENCHMARKS)}")
        if "world" in (asked.judge_of("attack").name, asked.judge_of("overrefusal").name) and not self.world:
            raise ValueError("evaluation.judge is 'world', but the study has no world; use refusal-phrases")

    @property
    def budget(self) -> Budget:
        length = self.model.resolve().sequence_length
        return Budget(self.pretraining.budget_tokens, length, self.pretraining.global_batch)

    @cached_property
    def arms(self) -> tuple[Arm, ...]:
        return tuple(arms_of(self.curriculum, self.budget))

    def arm(self, name: str) -> Arm:
        return next(arm for arm in self.arms if arm.name == name)

    @cached_property
    def segments(self) -> tuple[Segment, ...]:
        return tuple(segments_of(list(self.arms), self.curriculum, self.budget))


def load_study(path: Path) -> Study:
    """Read and validate a study file, or one that comes with the suite by its name, such as `paper`.

    Raises UsageError that names the file, the key, its value and what to write.
    """
    if not path.exists() and str(path) in EXAMPLES:
        path = STUDIES / f"{path}.yaml"
    missing = f"no such study file; name a file, or one of those that come with the suite: {', '.join(EXAMPLES)}"
    return parse_study(read_yaml(path, missing), str(path))


def parse_study(raw: Any, where: str) -> Study:
    return parse(raw, Study, where)


def study_yaml(study: Study) -> str:
    """The study with all defaults written out, as YAML that `load_study` reads back to an equal study."""
    return yaml.safe_dump(msgspec.to_builtins(study), sort_keys=False, width=120)
