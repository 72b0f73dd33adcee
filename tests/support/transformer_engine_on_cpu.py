"""Stands for Transformer Engine on a CPU: its modules in plain torch, as far as Megatron-core's layers need them.

`install()` must come before Megatron-core is imported. Like the real ones, modules keep an extra state, empty unless they
computed in fp8, where they note the largest value of each forward pass; operations have no `sharded_state_dict`.
"""

from __future__ import annotations

import contextlib
import importlib.abc
import importlib.machinery
import os
import pickle
import sys
import types

import torch
import torch.nn.functional as F

NOT_THERE = {"_SplitAlongDim", "get_workspace", "GroupedTensor", "grouped_tensor", "ep", "quantize_master_weights"}
in_fp8 = False


class Anything(types.ModuleType):
    """A module in which every name exists: capitalised ones are classes, others functions that cannot be called."""

    __path__: list[str] = []

    def __getattr__(self, name):
        if name.startswith("__") or name in NOT_THERE:
            raise AttributeError(name)
        if name[0].isupper():
            value = type(name, (torch.nn.Module,), {})
        else:

            def value(*args, **kwargs):
                raise AssertionError(f"{self.__name__}.{name} was called, and nothing on a CPU should")

        setattr(self, name, value)
        return value


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path, target=None):
        package, *_, leaf = name.split(".") if "." in name else (name, name)
        if package == "transformer_engine" and leaf not in NOT_THERE:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        return Anything(spec.name)

    def exec_module(self, module):
        for name, value in CONTENTS.get(module.__name__.removeprefix("transformer_engine").lstrip("."), {}).items():
            setattr(module, name, value)


class Stateful(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.history = []

    def note(self, x):
        if in_fp8:
            self.history = [*self.history, float(x.detach().abs().max())][-16:]

    def get_extra_state(self):
        content = pickle.dumps({"history": self.history}) if self.history else b""
        return torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else torch.empty(0, dtype=torch.uint8)

    def set_extra_state(self, state):
        if state is not None and state.numel():
            if os.environ.get("NVTE_ALLOW_UNSAFE_PICKLE_EXTRA_STATE") != "1":  # as 2.17 does
                raise RuntimeError("Refusing to load pickled Transformer Engine extra state")
            self.history = pickle.loads(state.numpy().tobytes())["history"]  # noqa: S301


class Accumulating(torch.autograd.Function):
    """x @ weight.T, the weight's gradient added to its main_grad."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x)
        ctx.weight = weight
        return x @ weight.t()

    @staticmethod
    def backward(ctx, gradient):
        weight = ctx.weight
        weight.main_grad.add_(gradient.flatten(0, -2).t() @ ctx.saved_tensors[0].flatten(0, -2))
        weight.grad_added_to_main_grad = True
        return gradient @ weight, torch.full_like(weight, float("nan"))


class Linear(Stateful):
    sequence_parallel, bias = False, torch.empty(0)

    def __init__(
        self, in_features, out_features, *, parallel_mode=None, params_dtype=None, fuse_wgrad_accumulation=False, **unused
    ):
        super().__init__()
        self.parallel_mode, self.fuse_wgrad_accumulation = parallel_mode, fuse_wgrad_accumulation
        self.weight = torch.nn.Parameter(torch.empty(out_features, in_features, dtype=params_dtype))

    def forward(self, x, is_first_microbatch=None):
        self.note(x)
        return product(x, self.weight, self.fuse_wgrad_accumulation)


def product(x, weight, accumulates):
    return Accumulating.apply(x, weight) if accumulates and x.requires_grad else F.linear(x, weight)


class LayerNormLinear(Linear):
    zero_centered_gamma = False

    def __init__(self, in_features, out_features, *, eps=1e-5, normalization="", params_dtype=None, **others):
        super().__init__(in_features, out_features, params_dtype=params_dtype, **others)
        assert normalization == "RMSNorm"
        self.eps, self.normalization = eps, normalization
        self.layer_norm_weight = torch.nn.Parameter(torch.ones(in_features, dtype=params_dtype))

    def forward(self, x, is_first_microbatch=None):
        normed = F.rms_norm(x, self.layer_norm_weight.shape, self.layer_norm_weight, self.eps)
        return super().forward(normed, is_first_microbatch)


class RMSNorm(Stateful):
    def __init__(self, normalized_shape=None, eps=1e-5, hidden_size=None, params_dtype=None, **unused):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(normalized_shape or hidden_size, dtype=params_dtype))
        self.eps = eps

    def forward(self, x):
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class DotProductAttention(Stateful):
    def __init__(self, *args, qkv_format="sbhd", **unused):
        super().__init__()
        self.qkv_format = qkv_format

    def forward(self, query, key, value, mask=None, attn_mask_type="causal", qkv_format="sbhd", cu_seqlens_q=None, **more):
        assert mask is None
        if qkv_format == "thd":  # [tokens, heads, size], each document by itself
            assert attn_mask_type == "padding_causal"
            lengths = cu_seqlens_q.diff().tolist()
            documents = zip(query.split(lengths), key.split(lengths), value.split(lengths))
            return torch.cat([self.attend(*(part[:, None] for part in document)) for document in documents]).squeeze(1)
        assert attn_mask_type == "causal"
        return self.attend(query, key, value)

    def attend(self, *heads):
        query, key, value = (part.permute(1, 2, 0, 3) for part in heads)
        found = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=query.shape[1] != key.shape[1])
        return found.permute(2, 0, 1, 3).flatten(2)


class SwiGLU(Stateful):
    def __init__(self, *, cache_quantized_input=False):
        super().__init__()
        assert not cache_quantized_input

    def forward(self, x):
        gate, up = x.chunk(2, -1)
        return F.silu(gate) * up


class NormOperation(Stateful):
    def __init__(self, normalized_shape, *, eps, device, dtype, zero_centered_gamma):
        super().__init__()
        assert device == "meta" and not zero_centered_gamma  # the weight is put in later
        self.eps = eps

    def forward(self, x):
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class BasicLinear(Stateful):
    def __init__(self, in_features, out_features, *, device, dtype, accumulate_into_main_grad, **parallel):
        super().__init__()
        assert device == "meta"
        self.accumulates = accumulate_into_main_grad

    def forward(self, x):
        return product(x, self.weight, self.accumulates)


class NotForUs(torch.optim.Optimizer):
    def __init__(self, *args, **kwargs):
        raise AssertionError("all backends take torch's AdamW")


def rotated(heads, angles):
    first, second = heads.chunk(2, -1)
    return heads * torch.cos(angles) + torch.cat([-second, first], -1) * torch.sin(angles)


def fused_qkv_rotary(mixed, q_angles, k_angles, split, **unused):
    query, key, value = torch.split(mixed, split, dim=3)
    query = query.reshape(*query.shape[:2], -1, k_angles.shape[-1])
    return rotated(query, q_angles), rotated(key, k_angles), value


def rotary(heads, angles, tensor_format="sbhd", cu_seqlens=None, **unused):
    if tensor_format != "thd":
        return rotated(heads, angles)
    return torch.cat([rotated(part, angles[: len(part), 0]) for part in heads.split(cu_seqlens.diff().tolist())])


class FP8GlobalStateManager:
    @staticmethod
    def is_fp8_enabled():
        return in_fp8


@contextlib.contextmanager
def fp8_autocast(enabled=True, **unused):
    global in_fp8
    before, in_fp8 = in_fp8, enabled
    try:
        yield
    finally:
        in_fp8 = before


class Recipe:
    def __init__(self, **unused):
        pass


def joint_norm(chunk, flag, lists, per_tensor):
    return torch.stack([part.norm() for part in lists[0]]).norm()[None], None


def scale(chunk, flag, lists, factor):
    for source, target in zip(*lists):
        target.copy_(source * factor)


MODULES = (Linear, LayerNormLinear, RMSNorm, DotProductAttention)
RECIPES = ("DelayedScaling", "Float8CurrentScaling", "Float8BlockScaling", "MXFP8BlockScaling", "NVFP4BlockScaling")
CONTENTS = {
    "": {"__version__": "2.17.1" if sys.version_info >= (3, 12) else "2.11.0"},  # as setup.cfg pairs them
    "pytorch": {module.__name__: module for module in MODULES} | {"fp8_autocast": fp8_autocast},
    "pytorch.ops": {"Sequential": torch.nn.Sequential, "RMSNorm": NormOperation, "BasicLinear": BasicLinear, "SwiGLU": SwiGLU},
    "pytorch.fp8": {"FP8GlobalStateManager": FP8GlobalStateManager, "fp8_autocast": fp8_autocast},
    "pytorch.attention.rope": {"apply_fused_qkv_rotary_pos_emb": fused_qkv_rotary, "apply_rotary_pos_emb": rotary},
    "pytorch.optimizers": {
        "FusedAdam": NotForUs,
        "FusedSGD": NotForUs,
        "multi_tensor_applier": lambda operation, flag, lists, *more: operation(65536, flag, lists, *more),
        "multi_tensor_l2norm": joint_norm,
        "multi_tensor_scale": scale,
        "multi_tensor_scale_tensor": scale,
    },
    "pytorch.cpu_offload": {"get_cpu_offload_context": lambda *args, **kwargs: (contextlib.nullcontext(), None)},
    "common.recipe": {name: type(name, (Recipe,), {}) for name in RECIPES}
    | {"Format": types.SimpleNamespace(E4M3="e4m3", HYBRID="hybrid")},
}


def install() -> None:
    """Make `import transformer_engine` give the modules of this file."""
    sys.meta_path.insert(0, Finder())
    for name in CONTENTS:
        full = f"transformer_engine.{name}".rstrip(".")
        module = importlib.import_module(full)
        if name:
            parent, _, leaf = full.rpartition(".")
            setattr(importlib.import_module(parent), leaf, module)
