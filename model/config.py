"""The configuration of a model and of its training: sizes, presets, the learning rate of each step.

Imports no torch.

Sizes are those of SmolLM2's published pretraining configurations. The released Hugging Face models differ in two ways:
after pretraining, the RoPE base was raised for longer contexts, and the maximum length with it.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from curricula.errors import UsageError
from curricula.settings import NonNegative, NonNegativeNumber, Positive, PositiveNumber, Settings, Share

Beta = Annotated[float, msgspec.Meta(ge=0, lt=1)]
LARGEST_SIZE = 2**31 - 1
"""Upper bound of sizes: torch's kernels count in 32 bits."""
Size = Annotated[int, msgspec.Meta(ge=1, le=LARGEST_SIZE)]
FP8_MULTIPLE = 16
"""Transformer Engine multiplies matrices in 8 bits only if their sides are multiples of this."""


class ModelConfig(Settings, frozen=True):
    """A decoder-only transformer of the Llama family: RMSNorm, SwiGLU, rotary positions, no biases."""

    layers: Size
    hidden: Size
    heads: Size
    kv_heads: Size
    ffn: Size
    vocabulary: Size = 49152
    sequence_length: Size = 2048
    rope_base: PositiveNumber = 10000.0
    rms_norm_eps: PositiveNumber = 1e-5
    tied: bool = True
    """Whether the output projection is the embedding matrix."""
    init_std: NonNegativeNumber = 0.02
    """Standard deviation of the initial weights; divided by sqrt(2 layers) for projections into the residual stream."""

    def check(self) -> None:
        if self.hidden % self.heads:
            raise ValueError(f"hidden {self.hidden} is not a multiple of heads {self.heads}")
        if self.heads % self.kv_heads:
            raise ValueError(f"heads {self.heads} is not a multiple of kv_heads {self.kv_heads}")
        if self.head_size % 2:
            raise ValueError(f"hidden / heads is {self.head_size}; rotary positions need an even head size")

    @property
    def head_size(self) -> int:
        return self.hidden // self.heads

    @property
    def parameters(self) -> int:
        attention = self.hidden * self.head_size * (2 * self.heads + 2 * self.kv_heads)
        mlp = 3 * self.hidden * self.ffn
        norms = 2 * self.hidden
        embeddings = self.vocabulary * self.hidden * (1 if self.tied else 2)
        return self.layers * (attention + mlp + norms) + self.hidden + embeddings

    def flops_per_token(self, sequence_length: int) -> float:
        """Model FLOPs of one training token, forward and backward, at a sequence length S (recomputation not counted).

        6 N + 6 L hidden S: every parameter takes part in one multiply-add forward (2 FLOPs) and two backward (4), the tied
        embedding as the output projection. Causal attention looks at S/2 positions on average, in two products (scores and
        values) of 2 hidden FLOPs each, once forward and twice backward: 2 * 2 * 3 * L * hidden * S / 2. An untied input
        embedding is a look-up and does not count.
        """
        lookup = 0 if self.tied else self.vocabulary * self.hidden
        return 6.0 * (self.parameters - lookup) + 6.0 * self.layers * self.hidden * sequence_length


class EngineConfig(Settings, frozen=True):
    """How a network is computed, not what it computes. A run can change all of this later except `fp8`."""

    backend: Literal["auto", "te", "torch", "cpu"] = "auto"
    """"te" (Transformer Engine), "torch" (compiled) or "cpu" (neither); "auto" takes the fastest: "torch", or "te" for fp8."""
    fp8: Literal["delayed", "tensorwise", "blockwise"] | None = None
    """Scaling recipe for matrix products in 8 bits, with "te" only; null computes them in bfloat16."""
    attention: Literal["torch", "FA3", "FA4"] = "torch"
    """Attention kernels of the "torch" backend: torch's own, or those of an installed FlashAttention 3 or 4 and no others."""
    sequence_parallel: bool = True
    """Whether tensor parallelism also splits norms and residuals, along the sequence."""
    recompute_layers: NonNegative = 0
    """This many layers keep only their input and recompute the rest in the backward pass: slower, but less memory."""

    def check(self) -> None:
        if self.fp8 and self.attention != "torch":  # before what each of them needs, which the other forbids
            raise ValueError(
                f'engine.fp8 is "{self.fp8}", which needs the backend "te", and engine.attention is "{self.attention}", which '
                'needs "torch"; leave one of them out'
            )
        if self.fp8 and self.backend not in ("auto", "te"):
            raise ValueError(f'engine.fp8 is "{self.fp8}", which needs engine.backend "te", not "{self.backend}"')
        if self.attention != "torch" and self.backend != "torch":
            raise ValueError(
                f'engine.attention is "{self.attention}", which needs engine.backend "torch", not "{self.backend}"'
            )


class OptimizerConfig(Settings, frozen=True):
    """AdamW's settings, by default those of SmolLM2."""

    lr: PositiveNumber = 5e-4
    """Peak learning rate."""
    beta1: Beta = 0.9
    """Decay of the first moment."""
    beta2: Beta = 0.95
    """Decay of the second moment; SmolLM2's is 0.95."""
    eps: PositiveNumber = 1e-8
    """Added to the root of the second moment."""
    weight_decay: NonNegativeNumber = 0.01
    """Weight decay of all weights, including those of norms; SmolLM2's and the paper's is 0.01."""
    clip_grad: NonNegativeNumber = 1.0
    """Largest global norm of the gradient; 0 leaves it as it is."""


class ScheduleConfig(Settings, frozen=True):
    """How the learning rate changes over a run; `curricula.model.config.learning_rate` has the formulas."""

    kind: Literal["warmup-stable-decay", "cosine"] = "warmup-stable-decay"
    """"warmup-stable-decay" for pretraining, "cosine" for tuning."""
    warmup_steps: NonNegative = 2000
    """Optimizer steps over which the learning rate rises; SmolLM2 has 2,000."""
    warmup_fraction: Share | None = None
    """Warm-up as a share of all steps; overrides `warmup_steps` when given."""
    decay_fraction: Share = 0.1
    """Share of all steps, at the end, over which "warmup-stable-decay" falls linearly."""
    final_fraction: Share = 0.0
    """Learning rate at the end, as a share of the peak."""

    def check(self) -> None:
        if self.kind == "cosine":
            self.require_default(["decay_fraction"], "with kind warmup-stable-decay")


def learning_rate(step: int, total_steps: int, optimizer: OptimizerConfig, schedule: ScheduleConfig) -> float:
    """The rate of optimizer step `step`, counted from 0, in a run of `total_steps`.

    Both kinds warm up linearly and reach the peak at the last step of the warm-up. Then "warmup-stable-decay" stays at
    the peak and falls linearly over the last `decay_fraction` of the steps; "cosine" falls along half a cosine. Until it
    falls, "warmup-stable-decay" depends on neither the arm nor the length of the run, so arms can branch from a shared trunk.
    """
    warmup = warmup_steps(total_steps, schedule)
    if step < warmup:
        return optimizer.lr * (step + 1) / warmup
    if schedule.kind == "cosine":
        done = min(1.0, (step - warmup) / max(1, total_steps - warmup))
        share = 0.5 * (1.0 + math.cos(math.pi * done))
    else:
        decay_steps = total_steps - decay_start(total_steps, schedule)
        share = 1.0 if decay_steps == 0 else min(1.0, max(0, total_steps - step) / decay_steps)
    return optimizer.lr * (schedule.final_fraction + (1.0 - schedule.final_fraction) * share)


def warmup_steps(total_steps: int, schedule: ScheduleConfig) -> int:
    if schedule.warmup_fraction is not None:
        return math.ceil(schedule.warmup_fraction * total_steps)
    return schedule.warmup_steps


def decay_start(total_steps: int, schedule: ScheduleConfig) -> int:
    """The step from which the rate falls, which is the last one at the peak."""
    if schedule.kind == "cosine":
        return min(warmup_steps(total_steps, schedule), total_steps)
    return total_steps - round(schedule.decay_fraction * total_steps)


def check_layout(model: ModelConfig, tensor_parallel: int, engine: EngineConfig) -> None:
    """Raise ValueError if `tensor_parallel` GPUs cannot divide the model among them, or if the engine cannot compute it."""
    for name in ("kv_heads", "ffn", "vocabulary", "sequence_length"):
        if (size := getattr(model, name)) % tensor_parallel:
            raise ValueError(
                f"tensor_parallel is {tensor_parallel}, which does not divide model.{name} {size}; choose a divisor"
            )
    for name in ("hidden", "ffn", "sequence_length") if engine.fp8 else ():
        if (size := getattr(model, name)) % (unit := FP8_MULTIPLE * tensor_parallel):
            raise ValueError(
                f'engine.fp8 is "{engine.fp8}", which needs model.{name} to be a multiple of {unit}, not {size}; '
                "change one of them"
            )
    if engine.recompute_layers > model.layers:
        raise ValueError(f"engine.recompute_layers is {engine.recompute_layers}; the model has {model.layers} layers")


class Rewind(Settings, frozen=True):
    """Goes back to an earlier checkpoint if spikes do not end. Training continues from it with the data that come next."""

    after: Positive = 5
    """Number of consecutive skipped steps after which the weights, not the batches, count as the cause."""
    interval_steps: Positive = 500
    """Optimizer steps between the checkpoints that the run can go back to; at least the guard's window."""


class SpikeGuard(Settings, frozen=True):
    """Skips the update of a step whose loss or gradient norm is far above those of the steps before it."""

    window: Annotated[int, msgspec.Meta(ge=2)] = 128
    """Number of latest steps to compare with, all of the same phase. With fewer than half of them, nothing is skipped."""
    sigmas: PositiveNumber = 6.0
    """Standard deviations above the mean of these steps at which a spike begins."""
    rewind: Rewind | None = None
    """When to undo the steps that led to a series of spikes; by default only the spikes' own updates are skipped."""

    def check(self) -> None:
        if self.rewind and self.rewind.interval_steps < self.window:
            raise ValueError(
                f"spike_guard.rewind.interval_steps is {self.rewind.interval_steps}, less than the window of {self.window}; "
                "raise it"
            )


class TrainConfig(Settings, frozen=True, kw_only=True):
    """How a run trains and when it saves: what a study's `pretraining` says besides the amount of data."""

    micro_batch: Positive = 16
    """Sequences in one forward and backward pass of a device; a global batch takes several passes."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """AdamW's settings."""
    schedule: ScheduleConfig = ScheduleConfig()
    """The learning rate over the run."""
    save_interval_steps: Positive = 500
    """Optimizer steps between checkpoints."""
    save_interval_minutes: PositiveNumber | None = 30.0
    """Save also when this much time has passed since the last save: the most that a kill without warning can cost."""
    keep_last: Positive = 2
    """Number of newest checkpoints to keep, besides branch points and those that a spike guard can go back to. With 1, a
    damaged checkpoint may leave none to fall back to."""
    validation_interval_steps: Positive | None = None
    """Optimizer steps between validation losses; by default they are measured only at the end."""
    spike_guard: SpikeGuard | None = None
    """When to skip the update of a step after the warm-up; by default every update is made."""


class ExecutionConfig(Settings, frozen=True, kw_only=True):
    """How the processes of a run divide and do the work. A run can change all of this later except `engine.fp8`."""

    tensor_parallel: Positive = 1
    """Number of GPUs that split each matrix among them."""
    data_workers: NonNegative = 0
    """Number of processes that read batches ahead for each GPU; with 0 the training process reads them itself."""
    peak_tflops: PositiveNumber = 989.0
    """Peak TFLOP/s of one GPU in bfloat16 (989: H100 SXM), for the model FLOP utilisation (MFU)."""
    engine: EngineConfig = EngineConfig()
    """How the network is computed."""
    hang_minutes: PositiveNumber = 10.0
    """A step that takes longer than this and longer than 20 times the median step counts as hung, and the process is ended.
    Loading, the first steps, validation and saves may take six times as long."""


class TrackingConfig(Settings, frozen=True):
    """Where the curves of training go besides metrics.jsonl."""

    tensorboard: bool = True
    """Write event files to the folder tensorboard/ of each run: `tensorboard --logdir RUN`."""
    wandb_project: str | None = None
    """Weights & Biases project to send the curves to; needs the package wandb and `wandb login`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainJob:
    """One call of `curricula.model.train.train`: what to train, from where to where."""

    out: Path
    """Folder of the run: gets checkpoints/, metrics.jsonl and tensorboard/."""
    model: ModelConfig
    config: TrainConfig = TrainConfig()
    execution: ExecutionConfig = ExecutionConfig()
    tracking: TrackingConfig = TrackingConfig(tensorboard=False)
    seed: int = 0
    """Seed of the initial weights."""
    stop_step: int | None = None
    """Train until this many steps are done; by default all steps of the batch source. The schedule always spans all of them."""
    keep_steps: tuple[int, ...] = ()
    """Steps to save at and never delete: where arms and stages branch off, and where models are measured."""
    validate_steps: tuple[int, ...] = ()
    """Steps to validate at, besides the end."""
    init_from: Path | None = None
    """Checkpoint of another run to branch from, with its whole state: optimizer, step, position in the data."""
    earlier_branch_points: tuple[Path, ...] = ()
    """Checkpoints from which that run and those before it branched, nearest first: a rewind can go back beyond them."""
    init_weights: Path | None = None
    """Checkpoint whose weights are step 0 of this run, or were step 0 of the trunk it branches from."""
    compiled: Path | None = None
    """Folder for compiled code, so that a restart does not compile again; by default a temporary one."""
    packed: bool = False
    """Whether rows hold several documents that must not see each other."""

    def __post_init__(self) -> None:
        try:
            check_layout(self.model, self.execution.tensor_parallel, self.execution.engine)
        except ValueError as error:
            raise UsageError(str(error)) from None


PRESETS: dict[str, ModelConfig] = {
    "smollm2-1.7b": ModelConfig(layers=24, hidden=2048, heads=32, kv_heads=32, ffn=8192, init_std=0.02),
    "smollm2-360m": ModelConfig(layers=32, hidden=960, heads=15, kv_heads=5, ffn=2560, init_std=0.03227),
    "smollm2-135m": ModelConfig(layers=30, hidden=576, heads=9, kv_heads=3, ffn=1536, init_std=0.041667),
    # Llama's 7B with SmolLM's vocabulary.
    "llama-7b": ModelConfig(layers=32, hidden=4096, heads=32, kv_heads=32, ffn=11008, tied=False),
    # Under a million parameters. With three layers the first, a middle one and the last are different layers.
    "tiny": ModelConfig(
        layers=3, hidden=128, heads=4, kv_heads=2, ffn=384, vocabulary=2048, sequence_length=128, init_std=0.05
    ),
}
