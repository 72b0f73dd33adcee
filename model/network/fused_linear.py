"""Linear layers whose weight gradients are added to Megatron-core's gradient buffer by the product that makes them.

Megatron-core keeps one gradient buffer in float32. Autograd would first write each weight's gradient in the weight's
precision, then add it there: twice the traffic, and a rounding to bfloat16 in between (30 ms of a 1.7B step on an H100).
Here the product itself accumulates (`torch.addmm` with a float32 result), as Megatron-core does where APEX is installed.

`attach_sinks` gives every weight its part of the buffer, and is called once the network is wrapped. A weight without
a sink (an unwrapped network) gets its gradient from autograd as usual. One pass forward must be followed by its pass
backward before the next: what pipeline parallelism would break, and is not used here.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F

from curricula.model.megatron import ColumnParallelLinear, RowParallelLinear


class AccumulatingLinear(torch.autograd.Function):
    """x @ weight.T; backward adds the weight's gradient to `sink`.

    To autograd the weight then has no gradient, or, where Megatron-core waits for one to start its reduction
    (`announced`), one that is not filled.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, sink: torch.Tensor, announced: bool) -> torch.Tensor:
        ctx.save_for_backward(x, weight, sink)
        ctx.announced = announced
        return F.linear(x, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None, None, None]:
        x, weight, sink = ctx.saved_tensors
        above = gradients[0]
        accumulate(sink, above.flatten(0, -2), x.flatten(0, -2))
        return above @ weight, torch.empty_like(weight) if ctx.announced else None, None, None


def accumulate(sink: torch.Tensor, above: torch.Tensor, x: torch.Tensor) -> None:
    """sink [out, in] += above [n, out].T @ x [n, in], in the sink's precision."""
    if torch.compiler.is_compiling():
        torch.ops.curricula.accumulate_(sink, above, x)
    else:
        _accumulate(sink, above, x)


def _accumulate(sink: torch.Tensor, above: torch.Tensor, x: torch.Tensor) -> None:
    if sink.dtype == x.dtype:
        sink.addmm_(above.t(), x)
    elif x.is_cuda and _adds_in_float32():
        torch.addmm(sink, above.t(), x, out_dtype=torch.float32, out=sink)
    else:
        sink.add_(above.t() @ x)


@torch.library.custom_op("curricula::accumulate_", mutates_args=("sink",))
def _one_step(sink: torch.Tensor, above: torch.Tensor, x: torch.Tensor) -> None:
    _accumulate(sink, above, x)


@functools.cache
def _adds_in_float32() -> bool:
    """Whether this torch can add a product of bfloat16 matrices to a float32 matrix (2.8 and later, on CUDA)."""
    one = torch.ones(16, 16, dtype=torch.bfloat16, device="cuda")
    total = torch.zeros(16, 16, dtype=torch.float32, device="cuda")
    try:
        torch.addmm(total, one, one, out_dtype=torch.float32, out=total)
    except (TypeError, RuntimeError):
        return False
    return True


def linear(x: torch.Tensor, weight: torch.nn.Parameter) -> torch.Tensor:
    """x [..., in] @ weight [out, in].T, the weight's gradient going to its sink if it has one."""
    sink = getattr(weight, "sink", None)
    if sink is None:
        return F.linear(x, weight)
    return AccumulatingLinear.apply(x, weight, sink, weight.sink_announced)  # type: ignore[attr-defined]


class ColumnLinear(ColumnParallelLinear):
    """Megatron-core's column-parallel linear where tensor parallelism is 1: the plain product."""

    def forward(self, input_: torch.Tensor, weight: Any = None, runtime_gather_output: Any = None) -> Any:
        return linear(input_, self.weight), None


class RowLinear(RowParallelLinear):
    """Megatron-core's row-parallel linear where tensor parallelism is 1: the plain product."""

    def forward(self, input_: torch.Tensor) -> Any:
        return linear(input_, self.weight), None


def attach_sinks(weights: Iterable[torch.nn.Parameter], announced: bool) -> None:
    """Give each weight its part of the gradient buffer as a sink.

    `announced` says whether Megatron-core waits for a gradient from autograd (`overlap_grad_reduce`).
    """
    for weight in weights:
        # A tensor of its own with a version of its own: all parts of the buffer share one, and autograd watches it.
        weight.sink = weight.main_grad.data  # type: ignore[attr-defined]
        weight.sink_announced = announced  # type: ignore[attr-defined]
