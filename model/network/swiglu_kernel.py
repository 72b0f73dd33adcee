"""The gradient of SwiGLU as one Triton kernel. Imported at its first use: machines without a GPU need no Triton."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

COLUMNS = 2048
"""Columns that one program processes."""


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
    """`curricula.model.network.swiglu.swiglu_gradient`: gradient [..., F], gate_up [..., 2 F] -> [..., 2 F]."""
    gradient, gate_up = gradient.contiguous(), gate_up.contiguous()
    result = torch.empty_like(gate_up)
    width = gate_up.shape[-1] // 2
    rows = gate_up.numel() // (2 * width)
    swiglu_gradient_kernel[(rows, triton.cdiv(width, COLUMNS))](
        gradient, gate_up, result, width, COLUMNS=COLUMNS, num_warps=8
    )
    return result
