"""SwiGLU, silu(gate) * up, with a backward pass that goes over memory once.

The compiler would compute the two halves of the gradient separately and join them, which reads everything twice. In a step of
the 1.7B model on an H100 (the prototype of `build.py`) that took 88 ms, and 69 ms with the Triton kernel below.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

try:
    import triton
    import triton.language as tl
except ImportError:  # only GPUs need it; there, the compiler has asked for it before
    triton = None

COLUMNS = 2048
"""Columns that one program of the kernel processes."""


class SwiGLU(torch.autograd.Function):
    """silu(gate) * up; keeps nothing but its input for the backward pass."""

    @staticmethod
    def forward(ctx: Any, gate_up: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate_up)
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate) * up

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        (gate_up,) = ctx.saved_tensors
        if torch.compiler.is_compiling():  # one opaque operation to the compiler; uncompiled it would only add overhead
            return torch.ops.curricula.swiglu_gradient(gradients[0], gate_up)
        return swiglu_gradient(gradients[0], gate_up)


def swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up of [..., 2 F], gate before up -> [..., F]."""
    return SwiGLU.apply(gate_up)


class TransformerEngineSwiGLU(torch.nn.Module):
    """Transformer Engine's kernel in Megatron-core's MLP, without a state.

    If the kernel's operation were a submodule, it would bring an empty state into checkpoints, which Megatron-core 0.16 cannot
    save.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        from transformer_engine.pytorch import ops

        self._operation = (ops.SwiGLU(),)  # in a tuple, torch does not register it as a submodule

    def forward(self, gate_up: torch.Tensor) -> torch.Tensor:
        return self._operation[0](gate_up)

    def sharded_state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return {}


def swiglu_gradient(gradient: torch.Tensor, gate_up: torch.Tensor) -> torch.Tensor:
    """d loss / d gate_up [..., 2 F] from the output's gradient [..., F]; computed in float32 or wider."""
    if gate_up.is_cuda:
        return launch(gradient, gate_up)
    gate, up = gate_up.to(torch.promote_types(gate_up.dtype, torch.float32)).chunk(2, dim=-1)
    share = torch.sigmoid(gate)
    d_gate, d_up = gradient * up * share * (1 + gate * (1 - share)), gradient * gate * share
    return torch.cat([d_gate, d_up], dim=-1).to(gate_up.dtype)


@torch.library.custom_op("curricula::swiglu_gradient", mutates_args=())
def _opaque_gradient(gradient: torch.Tensor, gate_up: torch.Tensor) -> torch.Tensor:
    return swiglu_gradient(gradient, gate_up)


@_opaque_gradient.register_fake
def _(gradient: torch.Tensor, gate_up: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(gate_up)


if triton:

    @triton.jit
    def swiglu_gradient_kernel(gradient, gate_up, result, width, COLUMNS: tl.constexpr):
        """One row and `COLUMNS` columns of it: two reads of gate_up, one of the gradient, two writes."""
        row = tl.program_id(0).to(tl.int64)
        column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
        inside = column < width
        gate = tl.load(gate_up + row * 2 * width + column, inside).to(tl.float32)
        up = tl.load(gate_up + row * 2 * width + width + column, inside).to(tl.float32)
        d_output = tl.load(gradient + row * width + column, inside).to(tl.float32)
        share = tl.sigmoid(gate)
        d_gate = d_output * up * share * (1 + gate * (1 - share))
        d_up = d_output * gate * share
        tl.store(result + row * 2 * width + column, d_gate.to(result.dtype.element_ty), inside)
        tl.store(result + row * 2 * width + width + column, d_up.to(result.dtype.element_ty), inside)


def launch(gradient: torch.Tensor, gate_up: torch.Tensor) -> torch.Tensor:
    """`swiglu_gradient` as one kernel: gradient [..., F], gate_up [..., 2 F] -> [..., 2 F]."""
    gradient, gate_up = gradient.contiguous(), gate_up.contiguous()
    result = torch.empty_like(gate_up)
    width = gate_up.shape[-1] // 2
    rows = gate_up.numel() // (2 * width)
    swiglu_gradient_kernel[(rows, triton.cdiv(width, COLUMNS))](gradient, gate_up, result, width, COLUMNS=COLUMNS, num_warps=8)
    return result
