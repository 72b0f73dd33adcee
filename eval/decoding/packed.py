"""Linear layers for decoding on a CPU, their weights laid out once for oneDNN's kernels.

In float32 torch gives a linear layer to MKL, which on an AMD processor multiplies the few rows of a decoding step at
under half the speed of oneDNN, and lays the weights out anew at every call. Here they are laid out when the model is
loaded, with the two operators that torch.compile emits for frozen weights. The laid-out weights replace the plain
ones, so memory stays (but for a head that is tied to the embeddings, which keeps a copy of its own). Gradients with
respect to inputs exist, which GCG needs, at the price of a plain copy of the layer's weights in each backward pass. A
packed model can be neither trained, saved, copied nor moved. docs/benchmarks.md has the gain.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch

SMALLEST = 1 << 16  # weights; below, the call itself costs more than the product
OPERATORS: Any = torch.ops.mkldnn


def pack_linears(model: torch.nn.Module) -> None:
    """Replace the larger float32 linear layers of a model on a CPU; does nothing where torch comes without oneDNN."""
    if not (torch.backends.mkldnn.is_available() and hasattr(OPERATORS, "_linear_pointwise")):
        return
    for name in [name for name, module in model.named_modules() if _is_worth_it(module)]:
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, PackedLinear(model.get_submodule(name)))
        _return_freed_memory()


def _is_worth_it(module: torch.nn.Module) -> bool:
    if type(module) is not torch.nn.Linear:
        return False
    return module.weight.dtype == torch.float32 and module.weight.numel() >= SMALLEST


def _return_freed_memory() -> None:
    """Give a plain layer's memory back to the system: glibc would keep it, and the model be there twice."""
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
        """A plain copy, [out, in]; some models look at a layer's weights besides calling it."""
        return self.packed.to_dense()

    def _save_to_state_dict(self, *_: Any) -> None:
        raise RuntimeError(
            "a packed model cannot be saved: its weights are not in the state; load the model again instead"
        )

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
