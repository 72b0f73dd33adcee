"""Quick stand-ins for the gradient kernels that Megatron-core takes from APEX or Transformer Engine.

Without those packages it measures and scales gradients tensor by tensor, waiting for the GPU each time, and refuses to
accumulate weight gradients in its products. Torch has all three as single calls.
"""

from __future__ import annotations

import types
from typing import Any

import torch

from curricula.model.megatron import megatron_clip_grads, megatron_layers
from curricula.model.network.fused_linear import accumulate


def use_quick_gradient_kernels() -> None:
    """Put the stand-ins where Megatron-core found nothing better. Harmless to repeat."""
    if megatron_clip_grads.l2_norm_impl.__name__ == "local_multi_tensor_l2_norm":
        megatron_clip_grads.l2_norm_impl = joint_norm
        megatron_clip_grads.multi_tensor_scale_impl = scale_all
    if not megatron_layers._grad_accum_fusion_available:
        # Transformer Engine's layers bring their own; Megatron-core's output layer asks for this one.
        megatron_layers.fused_weight_gradient_mlp_cuda = types.SimpleNamespace(
            wgrad_gemm_accum_fp32=add_weight_gradient, wgrad_gemm_accum_fp16=add_weight_gradient
        )
        megatron_layers._grad_accum_fusion_available = True


def joint_norm(chunk: int, flag: Any, lists: list[list[torch.Tensor]], per_tensor: bool) -> tuple[torch.Tensor, None]:
    """The norm of all tensors of the one list together, float32 [1]."""
    return torch.stack(torch._foreach_norm(lists[0])).norm().to(torch.float32)[None], None


def scale_all(chunk: int, flag: Any, lists: list[list[torch.Tensor]], factor: float) -> None:
    """Multiply all tensors by `factor`; Megatron-core names the same list as source and as target."""
    torch._foreach_mul_(lists[1], factor)


def add_weight_gradient(x: torch.Tensor, above: torch.Tensor, main_grad: torch.Tensor) -> None:
    """main_grad [out, in] += above [..., out].T @ x [..., in]."""
    accumulate(main_grad, above.flatten(0, -2), x.flatten(0, -2))
