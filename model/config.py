"""What a SmolLM2 is and how it is optimised: sizes, presets, exact parameter and FLOP counts. Imports no torch.

Sizes are those of the published pretraining configurations. They differ from the released Hugging Face models in two
ways: the RoPE base there was raised for longer contexts after pretraining, and the maximum length with it.
"""

from __future__ import annotations

from typing import Literal

from curricula.settings import Settings


class ModelConfig(Settings, frozen=True):
    """A decoder-only transformer of the Llama family: RMSNorm, SwiGLU, rotary positions, no biases."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    ffn: int
    vocabulary: int = 49152
    sequence_length: int = 2048
    rope_base: float = 10000.0
    rms_norm_eps: float = 1e-5
    tied: bool = True
    """Whether the output projection is the embedding matrix."""
    init_std: float = 0.02
    """Standard deviation of initial weights; projections back into the residual stream get it over sqrt(2 layers)."""

    def check(self) -> None:
        for name in ("layers", "hidden", "heads", "kv_heads", "ffn", "vocabulary", "sequence_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name} is {getattr(self, name)}; it must be at least 1")
        if self.hidden % self.heads:
            raise ValueError(f"model.hidden {self.hidden} is not a multiple of model.heads {self.heads}")
        if self.heads % self.kv_heads:
            raise ValueError(f"model.heads {self.heads} is not a multiple of model.kv_heads {self.kv_heads}")
        if self.head_size % 2:
            raise ValueError(f"model.hidden / model.heads is {self.head_size}; rotary positions need an even head size")

    @property
    def head_size(self) -> int:
        return self.hidden // self.heads

    def parameters(self) -> int:
        """Exact number of trainable parameters."""
        attention = self.hidden * self.head_size * (2 * self.heads + 2 * self.kv_heads)
        mlp = 3 * self.hidden * self.ffn
        norms = 2 * self.hidden
        embeddings = self.vocabulary * self.hidden * (1 if self.tied else 2)
        return self.layers * (attention + mlp + norms) + self.hidden + embeddings

    def flops_per_token(self, sequence_length: int) -> float:
        """Model FLOPs of one training token, forward and backward, at a sequence length S (recomputation not counted).

        6 N + 6 L hidden S: every parameter takes part in one multiply-add forward (2 FLOPs) and two backward (4), the
        tied embedding as the output projection; causal attention looks at S/2 positions on average, in two products
        (scores and values) of 2 hidden FLOPs each, three times over: 2 * 2 * 3 * L * hidden * S / 2. An untied input
        embedding is a look-up and is not counted.
        """
        lookup = 0 if self.tied else self.vocabulary * self.hidden
        return 6.0 * (self.parameters() - lookup) + 6.0 * self.layers * self.hidden * sequence_length


class EngineConfig(Settings, frozen=True):
    """How a network is computed, not what it computes: a run may change all of it between two checkpoints."""

    backend: Literal["auto", "te", "torch", "cpu"] = "auto"
    """"te" (Transformer Engine), "torch" (compiled) or "cpu" (neither); "auto" takes the best that is there."""
    fp8: Literal["delayed", "tensorwise", "blockwise"] | None = None
    """Scaling recipe for matrix products in 8 bits, with "te" only; None computes them in bfloat16."""
    attention: Literal["torch", "FA3", "FA4"] = "torch"
    """Attention kernels of the "torch" backend: torch's own, or those of an installed FlashAttention 3 or 4."""
    sequence_parallel: bool = True
    """Whether tensor parallelism also splits norms and residuals, along the sequence."""
    recompute_layers: int = 0
    """So many layers keep only their input and compute the rest again in the backward pass: slower, and smaller."""

    def check(self) -> None:
        if self.fp8 and self.backend not in ("auto", "te"):
            raise ValueError(f'engine.fp8 is "{self.fp8}", which needs engine.backend "te", not "{self.backend}"')
        if self.attention != "torch" and self.backend != "torch":
            raise ValueError(
                f'engine.attention is "{self.attention}", which needs engine.backend "torch", not "{self.backend}"'
            )
        if self.recompute_layers < 0:
            raise ValueError(f"engine.recompute_layers is {self.recompute_layers}; it must not be negative")


class OptimizerConfig(Settings, frozen=True):
    """AdamW as SmolLM2 was trained with it. Norm weights are not decayed."""

    lr: float = 5e-4
    """Peak learning rate."""
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.01
    clip_grad: float = 1.0
    """Largest global norm of the gradient."""

    def check(self) -> None:
        if self.lr <= 0:
            raise ValueError(f"optimizer.lr is {self.lr}; it must be positive")
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1):
            raise ValueError(f"optimizer betas are {self.beta1}, {self.beta2}; both must lie in [0, 1)")


class ScheduleConfig(Settings, frozen=True):
    """How the learning rate moves over a run; see `curricula.model.schedule` for the formulas."""

    kind: str = "warmup-stable-decay"
    """"warmup-stable-decay" (pretraining) or "cosine" (tuning)."""
    warmup_steps: int = 2000
    warmup_fraction: float | None = None
    """Warm-up as a share of all steps; takes the place of `warmup_steps` when given."""
    decay_fraction: float = 0.1
    """Share of all steps, at the end, over which "warmup-stable-decay" falls linearly."""
    final_fraction: float = 0.0
    """Learning rate at the end, as a share of the peak."""

    def check(self) -> None:
        if self.kind not in ("warmup-stable-decay", "cosine"):
            raise ValueError(f'schedule.kind is "{self.kind}"; it must be "warmup-stable-decay" or "cosine"')
        for name in ("warmup_fraction", "decay_fraction", "final_fraction"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"schedule.{name} is {value}; it must lie in [0, 1]")
        if self.warmup_steps < 0:
            raise ValueError(f"schedule.warmup_steps is {self.warmup_steps}; it must not be negative")


PRESETS: dict[str, ModelConfig] = {
    "smollm2-1.7b": ModelConfig(layers=24, hidden=2048, heads=32, kv_heads=32, ffn=8192, init_std=0.02),
    "smollm2-360m": ModelConfig(layers=32, hidden=960, heads=15, kv_heads=5, ffn=2560, init_std=0.03227),
    "smollm2-135m": ModelConfig(layers=30, hidden=576, heads=9, kv_heads=3, ffn=1536, init_std=0.041667),
    # Under a million parameters. Three layers are the fewest of which first, middle and last differ.
    "tiny": ModelConfig(
        layers=3, hidden=128, heads=4, kv_heads=2, ffn=384, vocabulary=2048, sequence_length=128, init_std=0.05
    ),
}
