"""The memory that a training step needs on each GPU, estimated before anything is allocated. Imports no torch.

`step_memory` adds up the tensors that exist at the fullest moment, the end of a forward pass. With N the parameters of one
process, T the tokens of its micro-batch, h the hidden size, f the size of the MLP:

    weights      2 N bytes (bfloat16), with fp8 2 more for each weight of a linear layer: its 8-bit copy and its transpose
    gradients    4 N (float32)
    optimizer    12 N / data_parallel (float32 master weights and two moments, split by the distributed optimizer)
    activations  T x layers x what one layer keeps for its backward pass (`layer_bytes`)
    loss         2 T vocabulary (the logits, which become their gradient), or a layer's gradients if those are larger
    other        1.5 GiB for kernels' workspaces and what the allocator cannot use
    nccl         2 GiB for NCCL's buffers where there are several GPUs: an estimate, not measured

The estimate is within 3% of the peaks of SmolLM2-1.7B on an H100 with micro-batch 8 (in tests/model/test_memory.py), measured
with the prototype of `network/build.py`.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from bisect import bisect_left
from typing import Any

from msgspec import structs

from curricula.errors import UsageError, UserError
from curricula.model.config import EngineConfig, ModelConfig

log = logging.getLogger(__name__)

GIB = 2**30
OTHER = int(1.5 * GIB)
NCCL = 2 * GIB
"""Each group that communicates has buffers of some MiB for each channel and peer, several hundred MiB together, outside torch's
allocator. A step uses about four groups."""
OWN_BYTES = 2 * GIB
"""GPU memory that a process needs besides its tensors: for the CUDA context and NCCL's first buffers."""
TIGHT = 0.92
"""Share of the free memory above which an error in the estimate could matter."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """What the memory estimate depends on besides the model."""

    micro_batch: int
    """Sequences in a micro-batch."""
    sequence_length: int
    """Tokens in a sequence."""
    tensor_parallel: int = 1
    data_parallel: int = 1
    engine: EngineConfig = EngineConfig()
    """Engine settings. The backend "auto" counts as the one it chooses on a GPU: "te" for fp8, else "torch"."""


@dataclasses.dataclass(frozen=True)
class MemoryEstimate:
    """Memory needed on one GPU, in bytes."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    loss: int
    other: int = OTHER
    nccl: int = 0

    @property
    def total(self) -> int:
        return sum(dataclasses.astuple(self))

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {size / GIB:.1f}" for name, size in dataclasses.asdict(self).items())
        return f"{self.total / GIB:.1f} GiB ({parts})"


def step_memory(model: ModelConfig, layout: Layout) -> MemoryEstimate:
    """Memory of one GPU at the fullest moment of a training step in bfloat16 or fp8."""
    own = model.parameters // layout.tensor_parallel
    embeddings = model.vocabulary * model.hidden * (1 if model.tied else 2) // layout.tensor_parallel
    tokens = layout.micro_batch * layout.sequence_length
    split = layout.tensor_parallel if layout.engine.sequence_parallel else 1
    layer, layer_input = layer_bytes(model, layout), 2 * model.hidden // split
    recomputed = min(layout.engine.recompute_layers, model.layers)
    per_token = (model.layers - recomputed) * layer + recomputed * layer_input + (layer if recomputed else 0)
    logits = 2 * model.vocabulary // layout.tensor_parallel + 4 * model.hidden
    layer_gradients = 2 * 3 * (model.ffn // layout.tensor_parallel + model.hidden)
    return MemoryEstimate(
        weights=2 * own + (2 * (own - embeddings) if layout.engine.fp8 else 0),
        gradients=4 * own,
        optimizer=12 * own // layout.data_parallel,
        activations=tokens * per_token,
        loss=tokens * max(logits, layer_gradients),
        nccl=NCCL if layout.data_parallel * layout.tensor_parallel > 1 else 0,
    )


def layer_bytes(model: ModelConfig, layout: Layout) -> int:
    """Bytes that a layer keeps for its backward pass, for each token.

    Every backend keeps the layer's input, both norms' outputs and the residual (h each); queries, keys, values; the
    attention's output; gate and up (2 f) and their product (f). Our own layer keeps keys and values once for each query head.
    If there is a value for each query, values stay where the product of all three wrote them, and keep all of it (3 h), beside
    the turned queries and keys. In fp8 the inputs of linear layers are kept in 8 bits.
    """
    hidden, ffn, kv = model.hidden, model.ffn, model.kv_heads * model.head_size
    split = layout.tensor_parallel if layout.engine.sequence_parallel else 1
    if layout.engine.fp8:
        whole, parts = 2 * 2 * hidden + 2 * hidden, 2 * (2 * hidden + 2 * kv) + hidden + 2 * 2 * ffn + ffn
    elif layout.engine.backend == "te":
        whole, parts = 2 * 4 * hidden, 2 * (2 * hidden + 2 * kv + 3 * ffn)
    else:
        whole, parts = 2 * 4 * hidden, 2 * ((6 if model.kv_heads == model.heads else 4) * hidden + 3 * ffn)
    return whole // split + parts // layout.tensor_parallel


def what_would_fit(model: ModelConfig, layout: Layout, available: float) -> list[str]:
    """Single changes, written as settings, that bring the estimate under `available` bytes."""

    def fits(**change: Any) -> bool:
        return step_memory(model, dataclasses.replace(layout, **change)).total <= available

    changes = []
    halved = (layout.micro_batch >> times for times in range(1, layout.micro_batch.bit_length()))  # still divides the batch
    if size := next((size for size in halved if fits(micro_batch=size)), None):
        changes.append(f"micro_batch {size}")
    more = range(layout.engine.recompute_layers + 1, model.layers + 1)
    # A study file can ask for a billion layers; trying one number after another would take hours.
    fewest = bisect_left(more, True, key=lambda layers: fits(engine=structs.replace(layout.engine, recompute_layers=layers)))
    if fewest < len(more):
        changes.append(f"engine.recompute_layers {more[fewest]}")
    return changes or ["more GPUs, so that the optimizer is split further", "a larger tensor_parallel"]


class GpuInUse(UserError):
    """Another process holds memory of this GPU. It may be gone when the job starts again."""

    exit_code = os.EX_UNAVAILABLE
    """Exit code 69."""


def check_fit(model: ModelConfig, layout: Layout, free: int, total: int) -> MemoryEstimate:
    """Estimate the memory of a step, and log a warning if it will be tight. `free` and `total` are the GPU's bytes.

    Raises UsageError if the GPU is too small, and GpuInUse if it is large enough but other processes use too much of it.
    """
    needed, usable = step_memory(model, layout), total - OWN_BYTES
    if needed.total > free:
        what = f"micro_batch {layout.micro_batch} of {layout.sequence_length} tokens needs about {needed} on each GPU"
        if needed.total > usable:
            fitting = " or ".join(what_would_fit(model, layout, usable))
            raise UsageError(f"{what}, which has room for {usable / GIB:.1f} GiB; use {fitting}")
        raise GpuInUse(
            f"{what}, of whose {total / GIB:.1f} GiB only {free / GIB:.1f} are free; `nvidia-smi` on {os.uname().nodename} "
            "shows which processes are using the rest: end them, or start again elsewhere"
        )
    if needed.total > TIGHT * free:
        log.warning("memory will be tight: about %s of %.1f GiB on each GPU", needed, free / GIB)
    return needed
