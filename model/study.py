"""The parts of a study file about its model, its training and the machines."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import msgspec

from curricula.curriculum.config import LARGEST_VOCABULARY, MOST_TOKENS, Along, AnyStage, Tuning
from curricula.model.checkpoints.folder import NOT_IN_WEIGHTS
from curricula.model.config import PRESETS, ExecutionConfig, ModelConfig, ScheduleConfig, Size, TrainConfig
from curricula.settings import Positive, PositiveNumber, Settings

Hours = Annotated[float, msgspec.Meta(gt=0, le=1e6)]
SIZES = ("layers", "hidden", "heads", "kv_heads", "ffn")
"""Sizes that every model needs."""
LARGEST_HEAD = 256
"""Largest head size of FlashAttention and cuDNN, which accept multiples of 8."""


class Model(Settings, frozen=True):
    """A Llama: a preset of model/config.py with the study's changes to it, or a model of the study's own sizes."""

    preset: str | None = None
    """tiny, smollm2-135m, smollm2-360m, smollm2-1.7b or llama-7b; model/config.py has their sizes. It can be left out if
    `layers`, `hidden`, `heads`, `kv_heads` and `ffn` are all given, here or in the config.json of `weights`."""
    layers: Size | None = None
    """Number of blocks of attention and MLP; by default the preset's."""
    hidden: Size | None = None
    """Size of the residual stream; by default the preset's."""
    heads: Size | None = None
    """Query heads of a layer; by default the preset's. Each has the size `hidden` / `heads`, a multiple of 8 up to 256."""
    kv_heads: Size | None = None
    """Key-value heads of a layer, a divisor of `heads`: the same number for multi-head attention, a smaller one for grouped
    queries; by default the preset's."""
    ffn: Size | None = None
    """Size of the MLP's inner layer; by default the preset's."""
    tied: bool | None = None
    """Whether the output projection is the embedding matrix; by default the preset's, else true."""
    vocabulary: Size | None = None
    """Entries of the embedding; by default the preset's, else 49,152."""
    sequence_length: Size | None = None
    """Tokens in a training sequence; by default the preset's, else 2,048."""
    rope_base: PositiveNumber | None = None
    """Base of the rotary positions; by default 10,000."""
    rms_norm_eps: PositiveNumber | None = None
    """Added to the mean square in norms; by default 1e-5."""
    init_std: PositiveNumber | None = None
    """Standard deviation of the initial weights; divided by sqrt(2 `layers`) for projections into the residual stream. By
    default the preset's, even if `hidden` differs from it, else 0.02."""
    weights: str | None = None
    """Pretrained weights of a plain Llama to continue from: a Hugging Face folder or a GGUF file (a relative path starts at the
    study file's folder), or a package that holds one. The sizes here must match theirs. Without a preset, keys that are left
    out, except `sequence_length` and `init_std`, are read from the folder's config.json when the study is read."""

    def check(self) -> None:
        if self.preset is not None and self.preset not in PRESETS:
            raise ValueError(f"preset {self.preset!r} is not one of {', '.join(PRESETS)}")
        missing = [name for name in SIZES if getattr(self, name) is None]
        if self.preset is None and missing:
            unread = f", and none was read from a config.json in weights {self.weights!r}" if self.weights else ""
            raise ValueError(
                f"without a preset, {', '.join(missing)} must be given{unread}; add them, or one of the presets "
                f"{', '.join(PRESETS)}"
            )
        if self.preset is not None and not missing:
            raise ValueError(f"{', '.join(SIZES)} replace all sizes of preset {self.preset}; remove it or one of them")
        try:
            model = self.resolve()
        except ValueError as error:
            raise ValueError(f"{error}; change one of them") from None
        if (size := model.head_size) % 8 or size > LARGEST_HEAD:
            raise ValueError(
                f"hidden / heads is {size}, but attention on GPUs takes multiples of 8 up to {LARGEST_HEAD}; change one of them"
            )
        if model.vocabulary > LARGEST_VOCABULARY:
            raise ValueError(
                f"vocabulary is {model.vocabulary}, but shards hold 16-bit tokens, which allow {LARGEST_VOCABULARY:,} entries; "
                "use a smaller one"
            )
        for name in model.__struct_fields__ if self.preset is None else ():  # so that `sized` finds nothing missing later
            msgspec.structs.force_setattr(self, name, getattr(model, name))

    def resolve(self) -> ModelConfig:
        given = {name: value for name in ModelConfig.__struct_fields__ if (value := getattr(self, name)) is not None}
        return msgspec.structs.replace(PRESETS[self.preset], **given) if self.preset else ModelConfig(**given)

    @property
    def name(self) -> str:
        """The preset and the sizes that replace its own, to show to people."""
        sizes = [f"{name} {value}" for name in SIZES if (value := getattr(self, name)) is not None]
        return ", ".join([self.preset, *sizes] if self.preset else sizes)


def sized(raw: Any, folder: Path) -> Any:
    """The plain value of a study file. A model without a preset gets its missing keys from the config.json of its weights.

    They are then frozen with the study, so whatever reads it later does not need the weights.
    """
    model = raw.get("model") if isinstance(raw, dict) else None
    if not isinstance(model, dict) or not isinstance(weights := model.get("weights"), str):
        return raw
    wanted = [name for name in ModelConfig.__struct_fields__ if name not in NOT_IN_WEIGHTS]
    if model.get("preset") or all(model.get(name) is not None for name in wanted):
        return raw
    place = Path(os.path.join(folder.absolute(), os.path.expanduser(weights)))
    if not os.path.isfile(place / "config.json"):  # a GGUF file, a package, or not here: `Model` says what is missing
        return raw
    from curricula.model.hugging_face import read_config

    theirs, given = read_config(place), {name: value for name, value in model.items() if value is not None}
    return {**raw, "model": {**{name: getattr(theirs, name) for name in wanted}, **given}}


class Pretraining(TrainConfig, frozen=True, kw_only=True):
    """How each arm is pretrained."""

    budget_tokens: Annotated[int, msgspec.Meta(ge=1, le=MOST_TOKENS)] | None = None
    """Tokens that each arm reads, rounded to whole steps. Give this or `tokens_per_parameter`."""
    tokens_per_parameter: PositiveNumber | None = None
    """Tokens that each arm reads, as a multiple of the model's parameters including embeddings. About 20 is compute-optimal
    (Hoffmann et al. 2022)."""
    global_batch: Positive
    """Sequences in one optimizer step."""
    micro_batch: Positive
    """Sequences in one forward and backward pass of a device; it divides the global batch."""
    save_interval_steps: Positive = 1000
    """Optimizer steps between checkpoints."""
    along: Along | None = None
    """What is measured during pretraining, on checkpoints of the trunk once for all arms; null measures only the end."""

    def check(self) -> None:
        self.require_one("budget_tokens", "tokens_per_parameter")


TUNING_SAVE_STEPS = 5000
"""Default steps between saves in finetuning. More than in pretraining, because these steps are short: the paper's would write
24 GB every minute."""


class Finetuning(Settings, frozen=True):
    """Shorthand for the paper's two stages after pretraining: safety instruction tuning, then benign finetuning."""

    instruct: Tuning
    """Safety instruction tuning of the base model (section 4.4 of the paper)."""
    benign: Tuning | None
    """Benign finetuning of the instruction-tuned model; null leaves the stage out."""
    save_interval_steps: Positive = TUNING_SAVE_STEPS
    """Optimizer steps between saves; also of the finetuning stages in `stages`."""
    save_interval_minutes: PositiveNumber | None = 30.0
    """Save also when this many minutes have passed since the last save; also in `stages`."""

    def check(self) -> None:
        for name, stage in (("instruct", self.instruct), ("benign", self.benign)):
            if stage and stage.parent:
                raise ValueError(f"{name}.from is {stage.parent!r}, which is fixed in tuning; write the stage under stages")

    @property
    def stages(self) -> dict[str, Tuning]:
        """The stages in order, by the name of the model that each makes."""
        after = msgspec.structs.replace(self.benign, parent="instruct") if self.benign else None
        return {"instruct": self.instruct, **({"benign": after} if after else {})}


class Allocation(Settings, frozen=True):
    """What one element of a stage asks of the cluster."""

    nodes: Positive = 1
    """Number of nodes."""
    gpus_per_node: Positive = 1
    """GPUs on each node, with one process for each."""
    hours: Hours = 1.0
    """Time limit of each start: a job that reaches it saves and is requeued. A profile can set a shorter one."""

    @property
    def gpus(self) -> int:
        return self.nodes * self.gpus_per_node


class Resources(ExecutionConfig, frozen=True, kw_only=True):
    """What the jobs ask of a cluster, and how many elements run at a time on one machine."""

    pretraining: Allocation = Allocation(nodes=4, gpus_per_node=8, hours=168)
    """What each segment of the training tree asks for."""
    tuning: Allocation = Allocation(gpus_per_node=4, hours=4)
    """What the tuning of each model asks for."""
    evaluation: Allocation = Allocation(hours=1)
    """What each task on one benchmark asks for; it uses one GPU at most."""
    data_hours: Hours = 24
    """Time limit of each element that fetches, prepares, tokenises, exports, merges or reports."""
    data_cpus: Positive = 8
    """CPUs of each element that fetches, prepares or tokenises; tokenising uses all of them."""
    expected_mfu: PositiveNumber = 0.40
    """Share of the GPUs' peak that the estimate of pretraining's GPU-hours assumes."""
    gpu_memory_gib: PositiveNumber = 79.0
    """Memory of one GPU (H100 80GB), for the estimate of memory."""
    workers: Positive = 2
    """Number of elements that run at a time with `--cluster local`."""


def train_config_of(stage: AnyStage, pretraining: Pretraining, tuning: Finetuning | None) -> TrainConfig:
    """How a stage after pretraining trains. Midtraining takes what the stage does not set from `pretraining`; finetuning takes
    its save intervals from `tuning`."""
    assert stage.micro_batch
    like: TrainConfig = pretraining
    if isinstance(stage, Tuning):
        like = TrainConfig(save_interval_steps=TUNING_SAVE_STEPS)
        if tuning:
            like = TrainConfig(
                save_interval_steps=tuning.save_interval_steps, save_interval_minutes=tuning.save_interval_minutes
            )
    weight_decay = like.optimizer.weight_decay if stage.weight_decay is None else stage.weight_decay
    optimizer = msgspec.structs.replace(like.optimizer, lr=stage.lr, weight_decay=weight_decay)
    schedule = ScheduleConfig(kind="cosine", warmup_fraction=stage.warmup_fraction)
    if stage.decay_fraction is not None:
        schedule = msgspec.structs.replace(schedule, kind="warmup-stable-decay", decay_fraction=stage.decay_fraction)
    settings = {key: getattr(like, key) for key in TrainConfig.__struct_fields__}
    return TrainConfig(**{**settings, "micro_batch": stage.micro_batch, "optimizer": optimizer, "schedule": schedule})
