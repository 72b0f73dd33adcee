"""Linear layers for evaluation on a CPU: weights are laid out once for oneDNN's kernels, with the operators of torch.compile.

docs/benchmarks-appendix.md has the speed-up. Gradients with respect to inputs, which GCG needs, work; each backward pass makes
a plain copy of the layer's weights. A packed model cannot be trained, saved, copied or moved.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch

SMALLEST = 1 << 16
"""Fewest weights of a packed layer. In smaller layers the call itself costs more than the product."""
OPERATORS: Any = torch.ops.mkldnn


def pack_linears(model: torch.nn.Module) -> None:
    """Pack the large float32 linear layers of a model on a CPU, in place. Does nothing if torch is built without oneDNN."""
    if not (torch.backends.mkldnn.is_available() and hasattr(OPERATORS, "_linear_pointwise")):
        return
    layers = [  # their names alone, so that a replaced layer is freed at once
        name
        for name, module in model.named_modules()
        if type(module) is torch.nn.Linear and module.weight.dtype == torch.float32 and module.weight.numel() >= SMALLEST
    ]
    for name in layers:
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, PackedLinear(model.get_submodule(name)))
        _return_freed_memory()


def _return_freed_memory() -> None:
    """Return the memory of replaced layers to the system. glibc would keep it, and the model would take up twice its size."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)


class PackedLinear(torch.nn.Module):
    """A linear layer [..., in] -> [..., out] with fixed weights."""

    def __init__(self, linear: Any) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.packed = OPERATORS._reorder_linear_weight(linear.weight.detach())
        self.bias = linear.bias

    @property
    def weight(self) -> torch.Tensor:
        """A plain copy of the weights, [out, in], for models that read a layer's weights besides calling it."""
        return self.packed.to_dense()

    def _save_to_state_dict(self, *_: Any) -> None:
        raise RuntimeError("a packed model cannot be saved: its weights are not in the state; load the model again instead")

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled() and inputs.requires_grad:
            return _Differentiable.apply(inputs, self.packed, self.bias)
        return product(inputs, self.packed, self.bias)


def product(inputs: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return OPERATORS._linear_pointwise(inputs, packed, bias, "none", [], "")


class _Differentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.packed = packed
        return product(inputs, packed, bias)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return gradient @ ctx.packed.to_dense(), None, None
