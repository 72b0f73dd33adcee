"""Measures a training step, ours or the peer's: its time, memory, losses and kernels.

A step takes one global batch, int64 [sequences, S + 1] on its device, and a learning rate, does one optimizer step, and
returns the mean loss as a tensor. Imports only torch and numpy, since the peer's environment need not have this suite.
"""

from __future__ import annotations

import collections
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

Step = Callable[[torch.Tensor, float], torch.Tensor]

PEAK_LR, WARMUP_STEPS = 5e-4, 30
UNTIMED_STEPS = 2
"""For compilation and allocation."""

CLASSES = {
    "attention": ("flash", "fmha", "sdpa", "cudnn_generated"),
    "matrix products": ("nvjet", "gemm", "cutlass", "xmma", "splitk"),
    "optimizer, clipping": ("multi_tensor", "adam", "foreach", "lpnorm"),
    "SwiGLU": ("silu", "swiglu", "gated_act"),
    "loss": ("log_softmax", "cross_entropy", "logsumexp", "nll", "online_softmax", "_statistics", "_to_gradient"),
    "norm": ("norm", "rsqrt"),
    "rotary positions": ("rope", "cos", "neg_"),
    "fp8 casts": ("cast_transpose", "quantize", "amax", "transpose_kernel"),
    "communication": ("nccl",),
    "other fused elementwise": ("triton",),
    "copies, fills": ("memcpy", "memset", "copy", "fill", "cat"),
    "embedding": ("embedding", "indexing", "radix", "sort"),
}
"""Classes of GPU kernels by parts of their names; the first match counts."""


def learning_rate(step: int) -> float:
    return PEAK_LR * min(1.0, (step + 1) / WARMUP_STEPS)


def batches(tokens: Path, device: str) -> Iterator[torch.Tensor]:
    """The global batches of a file int32 [steps, sequences, S + 1], repeated without end."""
    table = np.load(tokens, mmap_mode="r")
    while True:
        for rows in table:
            yield torch.from_numpy(rows.astype(np.int64)).to(device)


def measure(step: Step, tokens: str, timed_steps: int, loss_steps: int, profiled: bool) -> dict[str, Any]:
    """Run `step` over the file `tokens` until it has been timed, profiled and has given `loss_steps` losses."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    wait = torch.cuda.synchronize if device == "cuda" else (lambda: None)
    feed, losses, seconds = batches(Path(tokens), device), [], []

    def once() -> float:
        rows = next(feed)
        wait()
        began = time.perf_counter()
        losses.append(step(rows, learning_rate(len(losses))))
        wait()
        return time.perf_counter() - began

    until_ready = sum(once() for _ in range(UNTIMED_STEPS))
    seconds = [once() for _ in range(timed_steps)]
    kernels = profile(once) if profiled and device == "cuda" else None
    while len(losses) < loss_steps:
        once()
    return record(seconds, until_ready, torch.stack(losses).float().tolist(), kernels)


def record(
    seconds: list[float], until_ready: float, losses: list[float], kernels: dict[str, float] | None = None
) -> dict[str, Any]:
    """What is kept of the timed steps, of the seconds before them and of the losses."""
    on_gpu = torch.cuda.is_available()
    return {
        "seconds": seconds,
        "median_seconds": statistics.median(seconds),
        "seconds_until_ready": until_ready,
        "peak_bytes": torch.cuda.max_memory_allocated() if on_gpu else None,
        "losses": losses,
        "kernel_milliseconds": kernels,
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "torch": torch.__version__,
    }


def profile(once: Callable[[], float]) -> dict[str, float]:
    """Milliseconds of GPU time of one step by class of kernel, the largest first."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    with profiler(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        once()
    by_class: collections.Counter[str] = collections.Counter()
    for event in found.events():
        if event.device_type == torch.autograd.DeviceType.CUDA and not event.is_user_annotation:
            by_class[kernel_class(event.name)] += event.self_device_time_total / 1000
    return dict(by_class.most_common())


def kernel_class(name: str) -> str:
    return next((each for each, parts in CLASSES.items() if any(part in name.lower() for part in parts)), "rest")
