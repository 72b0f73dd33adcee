"""Builds SmolLM2 out of Megatron-core: the network, its data-parallel wrapper and its optimizer.

One of three backends computes the network:

- te: Transformer Engine's layers, with fused attention, norms and rotary positions, and 8-bit products as an option.
- torch: our own layer (`transformer.py`), compiled. It needs no package besides torch, and is as fast in bfloat16 (measured on
  an H100 with a hand-written prototype of the step, not with this package).
- cpu: the same layer, not compiled, in float32. Laptops and the tests use it.

Weights and checkpoints do not depend on the backend. Initial weights are drawn by parameter name, so they depend on neither
the backend nor the number of processes.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import logging
import math
from typing import Any

import torch
import torch._dynamo.config
import torch.nn.functional as F

from curricula.errors import UsageError
from curricula.model.config import EngineConfig, ModelConfig, OptimizerConfig
from curricula.model.megatron import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    GPTModel,
    MegatronOptimizerConfig,
    TransformerBlockSubmodules,
    TransformerConfig,
    finalize_model_grads,
    get_gpt_layer_local_spec,
    get_gpt_layer_with_transformer_engine_spec,
    get_megatron_optimizer,
    parallel_state,
)
from curricula.model.memory import GIB, Layout, check_fit
from curricula.model.network.fused_linear import ColumnLinear, RowLinear, attach_sinks, use_quick_gradient_kernels
from curricula.model.network.transformer import Block, Network, NoAttention, RMSNorm
from curricula.model.runtime.distributed import Parallel
from curricula.randomness import key_seed

log = logging.getLogger(__name__)


ATTENTION_MODULES = {"FA3": "flash_attn_interface", "FA4": "flash_attn.cute"}
"""The modules from which torch loads the kernels of `EngineConfig.attention`."""


@dataclasses.dataclass(frozen=True)
class Backend:
    """What computes a network, chosen for this machine."""

    name: str
    """"te", "torch" or "cpu"."""
    reason: str
    fp8: str | None = None
    attention: str = "torch"
    sequence_parallel: bool = False
    recompute_layers: int = 0


def choose_backend(engine: EngineConfig, parallel: Parallel, packed: bool = False) -> Backend:
    """Choose the backend for `engine` on this machine.

    `packed` rows need attention that takes masks, which Transformer Engine's does not. Raises UsageError when the backend
    asked for cannot run here.
    """
    on_gpu = parallel.device.type == "cuda"
    has_te = _is_installed("transformer_engine")
    wanted = "te" if engine.fp8 and engine.backend == "auto" else engine.backend
    if wanted == "te" and not (on_gpu and has_te):
        lacking = "transformer_engine is not installed" if on_gpu else "there is no CUDA device"
        setting = f'engine.fp8 is "{engine.fp8}"' if engine.fp8 else 'engine.backend is "te"'
        raise UsageError(f"{setting}, but {lacking}; install curricula[gpu] on a GPU machine, or leave the setting out")
    if engine.attention != "torch":
        module = ATTENTION_MODULES[engine.attention]
        if not on_gpu or not _is_installed(module):
            lacking = f"the package {module} is not installed" if on_gpu else "there is no CUDA device"
            raise UsageError(f'engine.attention is "{engine.attention}", but {lacking}; leave the setting out')
    if wanted == "cpu" and on_gpu:
        raise UsageError('engine.backend is "cpu", but this is a GPU machine; use "auto", or hide the GPUs')
    if wanted == "te" and packed:
        setting = f'engine.fp8 is "{engine.fp8}"' if engine.fp8 else 'engine.backend is "te"'
        raise UsageError(f"{setting}, whose attention does not keep packed conversations apart; set packing to false")
    if wanted == "auto":
        if not on_gpu:
            name, reason = "cpu", "there is no CUDA device"
        elif packed:
            name, reason = "torch", "packed rows need its attention"
        elif has_te:
            name, reason = "te", "transformer_engine is installed"
        else:
            name, reason = "torch", "transformer_engine is not installed"
    else:
        name, reason = wanted, "engine.fp8 needs it" if engine.backend == "auto" else "engine.backend asks for it"
    return Backend(
        name=name,
        reason=reason,
        fp8=engine.fp8,
        attention=engine.attention,
        sequence_parallel=engine.sequence_parallel and parallel.tensor_parallel > 1,
        recompute_layers=engine.recompute_layers,
    )


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the enclosing package is missing
        return False


def describe(backend: Backend, parallel: Parallel) -> str:
    """One line for the log: the backend, its reason, and the layout of processes."""
    precision = f"fp8 ({backend.fp8} scaling)" if backend.fp8 else str(parallel.precision).removeprefix("torch.")
    layout = f"data parallel {parallel.data_parallel}, tensor parallel {parallel.tensor_parallel}"
    layout += " with sequence parallel" if backend.sequence_parallel else ""
    layout += f", {backend.recompute_layers} layers recomputed" if backend.recompute_layers else ""
    attention = f", attention by {backend.attention}" if backend.attention != "torch" else ""
    return f"backend: {backend.name} ({backend.reason}); {precision}{attention}; {layout}"


def build_network(model: ModelConfig, parallel: Parallel, backend: Backend | None = None) -> GPTModel:
    """The bare network on this process's device, weights not yet set. The one place that makes a `GPTModel`.

    `backend` defaults to the best one on this machine. Raises UsageError when tensor parallelism does not divide the model.
    """
    for name in ("kv_heads", "ffn", "vocabulary", "sequence_length"):
        if getattr(model, name) % parallel.tensor_parallel:
            raise UsageError(
                f"tensor_parallel is {parallel.tensor_parallel}, which does not divide model.{name} "
                f"{getattr(model, name)}; choose a divisor"
            )
    backend = backend or choose_backend(EngineConfig(), parallel)
    if backend.recompute_layers > model.layers:
        raise UsageError(f"engine.recompute_layers is {backend.recompute_layers}; the model has {model.layers} layers")
    use_quick_gradient_kernels()
    config = transformer_config(model, parallel, backend)
    with parallel.cuda_names():
        network = Network(
            config=config,
            transformer_layer_spec=_te_layers() if backend.name == "te" else _own_layers(config),
            vocab_size=model.vocabulary,
            max_sequence_length=model.sequence_length,
            position_embedding_type="rope",
            rotary_base=model.rope_base,
            share_embeddings_and_output_weights=model.tied,
        ).to(parallel.device)
    for name, parameter in network.named_parameters():
        if parameter.dim() == 2:  # Megatron-core marks matrices only where it also draws their weights
            parameter.tensor_model_parallel = True
            parameter.partition_dim = _split_dimension(name)
            parameter.partition_stride = 1
    network.backend = backend.name
    if backend.attention != "torch":
        _use_attention(backend.attention)
    if backend.name == "torch":
        _compile_layers(network)
    return network


def check_memory(
    model: ModelConfig, parallel: Parallel, backend: Backend, micro_batch: int, sequence_length: int
) -> None:
    """Raise UsageError when training cannot fit into this process's GPU. On a CPU nothing is checked."""
    if parallel.device.type != "cuda":
        return
    layout = Layout(
        micro_batch=micro_batch,
        sequence_length=sequence_length,
        tensor_parallel=parallel.tensor_parallel,
        data_parallel=parallel.data_parallel,
        backend=backend.name,
        fp8=backend.fp8 is not None,
        sequence_parallel=backend.sequence_parallel,
        recompute_layers=backend.recompute_layers,
    )
    free, _ = torch.cuda.mem_get_info(parallel.device)
    needed = check_fit(model, layout, free)
    if parallel.is_main:
        log.info("memory: about %s of %.1f GiB on each GPU", needed, free / GIB)


def transformer_config(model: ModelConfig, parallel: Parallel, backend: Backend) -> TransformerConfig:
    te = backend.name == "te"
    more: dict[str, Any] = {}
    if backend.fp8:
        more.update(fp8="hybrid", fp8_recipe=backend.fp8, fp8_amax_history_len=16, fp8_amax_compute_algo="max")
    if backend.recompute_layers:
        more.update(
            recompute_granularity="full", recompute_method="block", recompute_num_layers=backend.recompute_layers
        )
    return TransformerConfig(
        num_layers=model.layers,
        hidden_size=model.hidden,
        ffn_hidden_size=model.ffn,
        num_attention_heads=model.heads,
        num_query_groups=model.kv_heads,
        normalization="RMSNorm",
        layernorm_epsilon=model.rms_norm_eps,
        add_bias_linear=False,
        gated_linear_unit=True,
        activation_func=F.silu,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        bf16=parallel.precision is torch.bfloat16,
        params_dtype=parallel.precision,
        pipeline_dtype=parallel.precision,
        tensor_model_parallel_size=parallel.tensor_parallel,
        sequence_parallel=backend.sequence_parallel,
        calculate_per_token_loss=True,  # losses are summed over the global batch, then divided by its counted tokens
        perform_initialization=False,  # `initialize` draws the weights by name
        bias_activation_fusion=False,  # Transformer Engine's SwiGLU and ours are faster
        bias_dropout_fusion=te,
        masked_softmax_fusion=False,
        apply_rope_fusion=te,
        fused_single_qkv_rope=te,
        use_te_activation_func=te,
        gradient_accumulation_fusion=te,  # ours does the same, in `curricula.model.network.fused_linear`
        persist_layer_norm=False,
        **more,
    )


def _te_layers() -> Any:
    return get_gpt_layer_with_transformer_engine_spec(use_te_activation_func=True)


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


def _use_attention(name: str) -> None:
    """Have torch's attention function call the kernels of FlashAttention 3 or 4."""
    try:
        from torch.nn.attention import activate_flash_attention_impl
    except ImportError:
        raise UsageError(f'engine.attention is "{name}", for which torch {torch.__version__} is too old') from None
    activate_flash_attention_impl(name)


def _compile_layers(network: GPTModel) -> None:
    """Compile each layer by itself: they are alike, so the code of the first serves them all.

    With tensor parallelism the compiled code breaks around the linears, which communicate with other processes.
    """
    # Shapes, masks and gradient modes are compiled separately: training, tuning, validation, recomputation make more than 8.
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
    whole = network.config.tensor_model_parallel_size == 1
    for layer in network.decoder.layers:
        if not whole:
            for linear in (
                layer.self_attention.linear_qkv,
                layer.self_attention.linear_proj,
                layer.mlp.linear_fc1,
                layer.mlp.linear_fc2,
            ):
                linear.forward = torch.compiler.disable(linear.forward)
        layer.forward = torch.compile(layer.forward, fullgraph=whole, dynamic=False)
    network.decoder.final_layernorm.compile(dynamic=False)


@torch.no_grad()
def initialize(network: GPTModel, model: ModelConfig, seed: int) -> None:
    """Set all weights: norms to one, others normal, keyed by (seed, parameter name) whatever the layout of processes.

    Projections into the residual stream get `init_std / sqrt(2 layers)`, so that its variance does not grow with depth.
    """
    rank, size = parallel_state.get_tensor_model_parallel_rank(), parallel_state.get_tensor_model_parallel_world_size()
    for name, parameter in network.named_parameters():
        if parameter.dim() == 1:
            parameter.fill_(1.0)
            continue
        split = _split_dimension(name)
        shape = list(parameter.shape)
        shape[split] *= size
        generator = torch.Generator().manual_seed(key_seed(seed, "initial weights", name))
        whole = torch.empty(shape).normal_(generator=generator)
        whole *= model.init_std / (math.sqrt(2 * model.layers) if split == 1 else 1.0)
        if name.endswith("linear_fc1.weight"):  # gate over up: each rank holds a part of both
            part = torch.cat([half.chunk(size)[rank] for half in whole.chunk(2)])
        else:
            part = whole.chunk(size, dim=split)[rank]
        parameter.copy_(part)


def _split_dimension(name: str) -> int:
    """The dimension of a matrix that tensor parallelism splits: for projections into the residual stream, the inputs."""
    return 1 if name.endswith(("linear_proj.weight", "linear_fc2.weight")) else 0


class AccumulatingDDP(DistributedDataParallel):
    """Megatron-core's wrapper, which also knows the weights that add their gradients to its buffer themselves."""

    accumulating: tuple[torch.nn.Parameter, ...] = ()

    def zero_grad_buffer(self) -> None:
        super().zero_grad_buffer()
        for weight in self.accumulating:
            weight.grad_added_to_main_grad = True  # type: ignore[attr-defined]


def wrap(network: GPTModel, parallel: Parallel) -> DistributedDataParallel:
    """The network with its gradient buffers; from here on parameters live in one flat buffer.

    Gradients are reduced during the backward pass. Gathering new weights does not overlap with the next forward pass: at 32
    GPUs it takes under 1% of a step (docs/scaling.md), and between a step and that pass, when we save and validate,
    weights would be stale.
    """
    ddp = DistributedDataParallelConfig(
        use_distributed_optimizer=True,
        grad_reduce_in_fp32=True,
        overlap_grad_reduce=parallel.data_parallel > 1,
        overlap_param_gather=False,
    )
    with parallel.cuda_names():
        wrapped = AccumulatingDDP(network.config, ddp, network)
    wrapped.config.finalize_model_grads_func = finalize_model_grads
    if ddp.overlap_grad_reduce:
        wrapped.config.no_sync_func = wrapped.no_sync
    # An embedding that is also the output matrix gets a second gradient, from the look-up, through autograd. Megatron-core
    # waits for that one and adds it.
    attach_sinks(_looked_up_too(network), announced=False)
    wrapped.accumulating = tuple(_accumulating(network))
    attach_sinks(wrapped.accumulating, announced=ddp.overlap_grad_reduce)
    return wrapped


def _accumulating(network: GPTModel) -> list[torch.nn.Parameter]:
    """Weights whose only gradient is added to the buffer by our linears or our loss."""
    weights = [module.weight for module in network.modules() if isinstance(module, (ColumnLinear, RowLinear))]
    return weights if network.share_embeddings_and_output_weights else [*weights, network.output_layer.weight]


def _looked_up_too(network: GPTModel) -> list[torch.nn.Parameter]:
    return [network.shared_embedding_or_output_weight()] if network.share_embeddings_and_output_weights else []


def build_optimizer(wrapped: DistributedDataParallel, optimizer: OptimizerConfig, parallel: Parallel) -> Any:
    """AdamW with its state split over the data-parallel ranks; bfloat16 weights get float32 masters."""
    config = MegatronOptimizerConfig(
        optimizer="adam",
        lr=optimizer.lr,
        weight_decay=optimizer.weight_decay,
        adam_beta1=optimizer.beta1,
        adam_beta2=optimizer.beta2,
        adam_eps=optimizer.eps,
        clip_grad=optimizer.clip_grad,
        bf16=parallel.precision is torch.bfloat16,
        params_dtype=parallel.precision,
        use_distributed_optimizer=True,
    )
    with parallel.cuda_names():
        built = get_megatron_optimizer(config, [wrapped])
    for part in getattr(built, "chained_optimizers", [built]):
        if isinstance(part.optimizer, torch.optim.AdamW):
            _prepare(part.optimizer)
    return built


def _prepare(adamw: torch.optim.AdamW) -> None:
    """Make torch's AdamW read each tensor once instead of ten times, and give it its zero state now.

    Megatron-core loads checkpoints only into an optimizer that has a state.
    """
    for group in adamw.param_groups:
        group.update(fused=True, foreach=False)
        for parameter in group["params"]:
            adamw.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
