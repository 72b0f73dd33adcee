"""The backends that can compute a network: which one a machine gets, and all in which they differ.

- torch: our own layer (`transformer.py`), compiled. It needs no package besides torch, and was the fastest in bfloat16: 0.988
  to 0.995 of LitGPT's speed, where Transformer Engine had 0.963 to 0.969.
- te: Transformer Engine's layers. It computes matrix products in 8 bits, 1.13 to 1.28 times as fast as LitGPT in bfloat16.
- cpu: our own layer, not compiled, in float32. Laptops and the tests use it.

The speeds were measured on an H100 with a hand-written prototype of the step, not with this package. Weights and checkpoints
do not depend on the backend.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import inspect
from typing import Any

import torch
import torch._dynamo.config
from torch.nn.attention import SDPBackend

from curricula.errors import UsageError
from curricula.model.config import EngineConfig
from curricula.model.megatron import (
    GPTModel,
    TransformerBlockSubmodules,
    TransformerConfig,
    get_gpt_layer_local_spec,
    get_gpt_layer_with_transformer_engine_spec,
)
from curricula.model.network.fused_linear import ColumnLinear, RowLinear
from curricula.model.network.swiglu import TransformerEngineSwiGLU
from curricula.model.network.transformer import Block, NoAttention, RMSNorm
from curricula.model.runtime.distributed import Parallel

ATTENTION_MODULES = {"FA3": "flash_attn_interface", "FA4": "flash_attn.cute"}
"""The modules from which torch loads the kernels of `EngineConfig.attention`."""
RECOMPILE_LIMIT = 64
LAYER_OPTIONS = {"max_complex_pointwise_cat_inputs": 2}
"""Inductor's settings for a layer's code, for `layer_options`.

The gradient of `mixed` in `attend` is three tensors side by side. By default, one kernel computes all three for each element
and keeps one: 45 instructions, which take about as long as the memory traffic. With this, one kernel turns queries and keys and
another copies values: 11 instructions an element, for the same traffic.
"""


@dataclasses.dataclass(frozen=True)
class Backend:
    """What computes a network, chosen for this machine."""

    name: str
    """"te", "torch" or "cpu"."""
    reason: str
    engine: EngineConfig = EngineConfig()
    """What was asked for."""
    packed: bool = False
    """Whether rows hold several documents that must not see each other."""

    @property
    def own_layers(self) -> bool:
        return self.name != "te"

    @property
    def is_compiled(self) -> bool:
        return self.name != "cpu"

    @property
    def keeps_history(self) -> bool:
        """Whether layers keep a history of largest values besides their weights, by which delayed scaling scales."""
        return self.engine.fp8 == "delayed"

    def transformer_settings(self, tensor_parallel: int) -> dict[str, Any]:
        """Fields of Megatron-core's TransformerConfig."""
        te = not self.own_layers
        megatrons_linears = te or tensor_parallel > 1
        settings: dict[str, Any] = dict(
            sequence_parallel=self.engine.sequence_parallel and tensor_parallel > 1,
            bias_dropout_fusion=te,
            apply_rope_fusion=te,
            fused_single_qkv_rope=te and not self.packed,  # it knows no borders between documents
            use_te_activation_func=te,
            gradient_accumulation_fusion=megatrons_linears,  # our own do the same, in `network/fused_linear.py`
        )
        if fp8 := self.engine.fp8:
            settings |= dict(fp8="hybrid", fp8_recipe=fp8, fp8_amax_history_len=16, fp8_amax_compute_algo="max")
        if layers := self.engine.recompute_layers:
            settings |= dict(recompute_granularity="full", recompute_method="block", recompute_num_layers=layers)
        return settings

    def layers(self, config: TransformerConfig) -> Any:
        """Megatron-core's description of the layers."""
        return _own_layers(config) if self.own_layers else _te_layers()

    def prepare(self, network: GPTModel) -> None:
        """What remains to be done with the network once it is built."""
        if network.embedding.word_embeddings.weight.is_cuda and self.own_layers:
            _order_attention_kernels(self.engine.attention)
        if self.name == "torch":
            _compile_layers(network)


def choose_backend(engine: EngineConfig, parallel: Parallel, packed: bool = False) -> Backend:
    """Choose the backend for `engine` on this machine. Raises UsageError when the backend asked for cannot run here."""
    on_gpu = parallel.device.type == "cuda"
    if engine.backend != "auto":
        name, reason = engine.backend, "engine.backend asks for it"
    elif engine.fp8:
        name, reason = "te", "engine.fp8 needs it"
    elif on_gpu:
        name, reason = "torch", "the fastest in bfloat16"
    else:
        name, reason = "cpu", "there is no CUDA device"
    if name == "te" and not (on_gpu and _is_installed("transformer_engine")):
        lacking = "transformer_engine is not installed" if on_gpu else "there is no CUDA device"
        setting = f'engine.fp8 is "{engine.fp8}"' if engine.fp8 else 'engine.backend is "te"'
        mend = "install it with env/gpu/install, or " if on_gpu else ""
        raise UsageError(f"{setting}, but {lacking}; {mend}leave the setting out")
    if name == "te" and engine.fp8 == "blockwise":
        from transformer_engine.pytorch.quantization import check_fp8_block_scaling_support

        is_supported, reason_not = check_fp8_block_scaling_support()
        if not is_supported:
            raise UsageError(f'engine.fp8 is "blockwise": {reason_not}; use "tensorwise", or the CUDA 13 set')
    if engine.attention != "torch":
        module = ATTENTION_MODULES[engine.attention]
        if not on_gpu or not _is_installed(module):
            lacking = f"the package {module} is not installed" if on_gpu else "there is no CUDA device"
            raise UsageError(f'engine.attention is "{engine.attention}", but {lacking}; leave the setting out')
    if name == "cpu" and on_gpu:
        raise UsageError('engine.backend is "cpu", but this is a GPU machine; use "auto", or hide the GPUs')
    return Backend(name, reason, engine, packed)


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ModuleNotFoundError, ValueError):  # the enclosing package is missing, or the module is kept from being imported
        return False


def describe(backend: Backend, parallel: Parallel) -> str:
    """One line for the log: the backend, its reason, and the layout of processes."""
    engine = backend.engine
    precision = f"fp8 ({engine.fp8} scaling)" if engine.fp8 else str(parallel.precision).removeprefix("torch.")
    layout = f"data parallel {parallel.data_parallel}, tensor parallel {parallel.tensor_parallel}"
    layout += " with sequence parallel" if engine.sequence_parallel and parallel.tensor_parallel > 1 else ""
    layout += f", {engine.recompute_layers} layers recomputed" if engine.recompute_layers else ""
    attention = f", attention by {engine.attention}" if engine.attention != "torch" else ""
    return f"backend: {backend.name} ({backend.reason}); {precision}{attention}; {layout}"


def _te_layers() -> Any:
    layer = get_gpt_layer_with_transformer_engine_spec(use_te_activation_func=True)
    _submodules(layer.submodules.mlp).activation_func = TransformerEngineSwiGLU
    return layer


def _own_layers(config: TransformerConfig) -> Any:
    """Megatron-core's own layer with our computation in it. Under tensor parallelism its linears stay: they communicate."""
    layer = get_gpt_layer_local_spec(normalization="RMSNorm")
    layer.module = Block
    parts = layer.submodules
    attention, mlp = _submodules(parts.self_attention), _submodules(parts.mlp)
    parts.input_layernorm = parts.pre_mlp_layernorm = RMSNorm
    attention.core_attention = NoAttention
    if config.tensor_model_parallel_size == 1:
        attention.linear_qkv = mlp.linear_fc1 = ColumnLinear
        attention.linear_proj = mlp.linear_fc2 = RowLinear
    return TransformerBlockSubmodules(layer_specs=[layer] * config.num_layers, layer_norm=RMSNorm)


def _submodules(spec: Any) -> Any:
    """The parts that a Megatron-core spec names; from 0.19 on some specs are partial functions."""
    return spec.keywords["submodules"] if isinstance(spec, functools.partial) else spec.submodules


def _order_attention_kernels(name: str) -> None:
    """Have torch's attention take flash kernels: its own, or those of FlashAttention 3 or 4 if `name` says so.

    Left to itself, torch prefers cuDNN's kernels on some cards. They are as fast as its own, but FlashAttention's never run.
    With those asked for, nothing else is allowed, so that attention fails rather than runs without them.
    """
    torch.backends.cuda.enable_flash_sdp(True)
    torch.backends.cuda.enable_cudnn_sdp(False)
    torch.backends.cuda.enable_mem_efficient_sdp(name == "torch")
    torch.backends.cuda.enable_math_sdp(name == "torch")
    if name == "torch":
        return
    try:
        from torch.nn.attention import activate_flash_attention_impl
    except ImportError:
        raise UsageError(f'engine.attention is "{name}", for which torch {torch.__version__} is too old') from None
    activate_flash_attention_impl(name)


@torch.no_grad()
def attention_kernel(network: GPTModel) -> str:
    """The kernel that the network's attention takes: by asking torch, not by what was wished for."""
    backend, config = network.backend, network.config
    if not backend.own_layers:
        return "chosen by Transformer Engine; with NVTE_DEBUG=1 and NVTE_DEBUG_LEVEL=1 it says which"
    size = config.hidden_size // config.num_attention_heads
    weight = network.embedding.word_embeddings.weight
    heads = torch.empty(1, config.num_attention_heads, 128, size, dtype=weight.dtype, device=weight.device)
    chosen = SDPBackend(torch._fused_sdp_choice(heads, heads, heads, None, 0.0, True)).name
    return chosen if backend.engine.attention == "torch" else f"{chosen} of {backend.engine.attention}"


def _compile_layers(network: GPTModel) -> None:
    """Compile each layer by itself: they are alike, so the code of the first serves them all.

    With tensor parallelism the compiled code breaks around the linears, which communicate with other processes.
    """
    whole = network.config.tensor_model_parallel_size == 1
    # Shapes, masks and gradient modes are compiled separately: training, tuning, validation, recomputation make more than 8.
    # From torch 2.13 on, autograd's threads, which recompute layers, do not see the global setting.
    limit: dict[str, Any] = {}
    if "recompile_limit" in inspect.signature(torch.compile).parameters:
        limit = {"recompile_limit": RECOMPILE_LIMIT}
    torch._dynamo.config.recompile_limit = max(RECOMPILE_LIMIT, torch._dynamo.config.recompile_limit)
    for layer in network.decoder.layers:
        if not whole:
            for linear in (
                layer.self_attention.linear_qkv,
                layer.self_attention.linear_proj,
                layer.mlp.linear_fc1,
                layer.mlp.linear_fc2,
            ):
                linear.forward = torch.compiler.disable(linear.forward)
        layer.compute = torch.compile(layer.compute, fullgraph=whole, dynamic=False, options=layer_options(), **limit)
    network.decoder.final_layernorm.compile(dynamic=False)


def layer_options() -> dict[str, Any]:
    """Those of `LAYER_OPTIONS` that this torch knows: 2.13 knows all."""
    import torch._inductor

    return {name: value for name, value in LAYER_OPTIONS.items() if name in torch._inductor.list_options()}
