"""Linear layers that add their weight gradients to Megatron-core's gradient buffer in the product that computes them.

Megatron-core keeps one gradient buffer in float32. Autograd would first write each weight's gradient in the weight's
precision, then add it there: twice the traffic (31.5 ms of a 1,354 ms step of the 1.7B model on an H100, with the prototype of
`build.py`), and a rounding to bfloat16 in between. Here the product itself accumulates (`torch.addmm` with a float32 result),
as Megatron-core does where APEX is installed.

`attach_sinks` gives every weight a sink, its part of the buffer, once the network is wrapped. A weight without a sink (in an
unwrapped network) gets its gradient from autograd as usual. Each forward pass must be followed by its backward pass before the
next forward pass. Pipeline parallelism, which is not used here, would break that.

`use_quick_gradient_kernels` replaces the gradient kernels that Megatron-core otherwise takes from APEX or Transformer Engine.
Without those packages it measures and scales gradients tensor by tensor, waiting for the GPU each time, and refuses to
accumulate weight gradients in its products.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F

from curricula.model.megatron import ColumnParallelLinear, RowParallelLinear, megatron_clip_grads, megatron_layers


class AccumulatingLinear(torch.autograd.Function):
    """x @ weight.T; backward adds the weight's gradient to `sink`.

    Autograd then sees no gradient of the weight. If Megatron-core waits for one to start its reduction (`announced`), autograd
    sees an unfilled one.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, sink: torch.Tensor, announced: bool) -> torch.Tensor:
        ctx.save_for_backward(x, weight, sink)
        ctx.announced = announced
        return F.linear(x, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None, None, None]:
        x, weight, sink = ctx.saved_tensors
        d_output = gradients[0]
        accumulate(sink, d_output.flatten(0, -2), x.flatten(0, -2))
        return d_output @ weight, torch.empty_like(weight) if ctx.announced else None, None, None


def accumulate(sink: torch.Tensor, d_output: torch.Tensor, x: torch.Tensor) -> None:
    """sink [out, in] += d_output [n, out].T @ x [n, in], in the sink's precision."""
    if torch.compiler.is_compiling():
        torch.ops.curricula.accumulate_(sink, d_output, x)
    else:
        _accumulate(sink, d_output, x)


def _accumulate(sink: torch.Tensor, d_output: torch.Tensor, x: torch.Tensor) -> None:
    if sink.dtype == x.dtype:
        sink.addmm_(d_output.t(), x)
    elif x.is_cuda and _adds_in_float32():
        torch.addmm(sink, d_output.t(), x, out_dtype=torch.float32, out=sink)
    else:
        sink.add_(d_output.t() @ x)


@torch.library.custom_op("curricula::accumulate_", mutates_args=("sink",))
def _accumulate_opaquely(sink: torch.Tensor, d_output: torch.Tensor, x: torch.Tensor) -> None:
    _accumulate(sink, d_output, x)


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
    """x [..., in] @ weight [out, in].T. The weight's gradient goes to its sink if it has one."""
    sink = getattr(weight, "sink", None)
    if sink is None:
        return F.linear(x, weight)
    return AccumulatingLinear.apply(x, weight, sink, weight.sink_announced)  # type: ignore[attr-defined]


class ColumnLinear(ColumnParallelLinear):
    """Megatron-core's column-parallel linear without tensor parallelism: the plain product."""

    def forward(self, input_: torch.Tensor, weight: Any = None, runtime_gather_output: Any = None) -> Any:
        return linear(input_, self.weight), None


class RowLinear(RowParallelLinear):
    """Megatron-core's row-parallel linear without tensor parallelism: the plain product."""

    def forward(self, input_: torch.Tensor) -> Any:
        return linear(input_, self.weight), None


def attach_sinks(weights: Iterable[torch.nn.Parameter], announced: bool) -> None:
    """Give each weight its part of the gradient buffer as a sink.

    `announced` says whether Megatron-core waits for a gradient from autograd (`overlap_grad_reduce`).
    """
    for weight in weights:
        # `.data` has a version counter of its own. The parts of the buffer share one, which autograd checks.
        weight.sink = weight.main_grad.data  # type: ignore[attr-defined]
        weight.sink_announced = announced  # type: ignore[attr-defined]


def use_quick_gradient_kernels() -> None:
    """Install torch's kernels if Megatron-core found none. It is harmless to call this again."""
    if megatron_clip_grads.l2_norm_impl.__name__ == "local_multi_tensor_l2_norm":
        megatron_clip_grads.l2_norm_impl = joint_norm
        megatron_clip_grads.multi_tensor_scale_impl = scale_all
    if not megatron_layers._grad_accum_fusion_available:
        # Transformer Engine's layers have their own. Megatron-core's need this one under tensor parallelism and with TE.
        megatron_layers.fused_weight_gradient_mlp_cuda = types.SimpleNamespace(
            wgrad_gemm_accum_fp32=add_weight_gradient, wgrad_gemm_accum_fp16=add_weight_gradient
        )
        megatron_layers._grad_accum_fusion_available = True


def joint_norm(chunk: int, flag: Any, lists: list[list[torch.Tensor]], per_tensor: bool) -> tuple[torch.Tensor, None]:
    """The joint norm of all tensors in the only list of `lists`, float32 [1]."""
    return torch.stack(torch._foreach_norm(lists[0])).norm().to(torch.float32)[None], None


def scale_all(chunk: int, flag: Any, lists: list[list[torch.Tensor]], factor: float) -> None:
    """Multiply all tensors by `factor`; Megatron-core passes the same list as source and target."""
    torch._foreach_mul_(lists[1], factor)


def add_weight_gradient(x: torch.Tensor, d_output: torch.Tensor, main_grad: torch.Tensor) -> None:
    """main_grad [out, in] += d_output [..., out].T @ x [..., in]."""
    accumulate(main_grad, d_output.flatten(0, -2), x.flatten(0, -2))
