"""Builds SmolLM2 out of Megatron-core on this machine: the backend that computes it, the network, its wrapper, its optimizer.

A training calls, in the order of this file: `choose_backend`, `check_memory`, `build_network`, `initialize`, `wrap`,
`build_optimizer`. The backends, and everything in which they differ:

- torch: our own layer (`transformer.py`), compiled. It needs no package besides torch, and was the fastest in bfloat16: 0.988
  to 0.995 of LitGPT's speed, compared with 0.963 to 0.969 for Transformer Engine.
- te: Transformer Engine's layers. It computes matrix products in 8 bits, 1.13 to 1.28 times as fast as LitGPT in bfloat16.
- cpu: our own layer, not compiled, in float32. Laptops and the tests use it.

The speeds were measured on an H100 with a hand-written prototype of the step, not with this package. Initial weights are drawn
by parameter name, so they depend on neither the backend nor the number of processes. The same is true of what checkpoints hold.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import inspect
import logging
import math
from typing import Any

import torch
import torch._dynamo.config
import torch.nn.functional as F
from torch.nn.attention import SDPBackend

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
from curricula.model.network.swiglu import TransformerEngineSwiGLU
from curricula.model.network.transformer import Block, Network, RMSNorm
from curricula.model.runtime.distributed import Parallel
from curricula.randomness import key_seed

ATTENTION_MODULES = {"FA3": "flash_attn_interface", "FA4": "flash_attn.cute"}
"""The modules from which torch loads the kernels of `EngineConfig.attention`."""
RECOMPILE_LIMIT = 64
LAYER_OPTIONS = {"max_complex_pointwise_cat_inputs": 2}
"""Inductor's settings for a layer's code.

The gradient of `mixed` in `attend` is three tensors side by side. By default, one kernel computes all three for each element
and keeps one: 45 instructions, which take about as long as the memory traffic. With this setting there are two kernels, with 11
instructions per element for the same traffic.
"""

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Backend:
    """The way in which a network is computed, chosen for this machine."""

    name: str
    """"te", "torch" or "cpu"."""
    reason: str
    """Why it was chosen, for the log."""
    engine: EngineConfig = EngineConfig()
    """The settings that were asked for."""
    packed: bool = False
    """Whether rows hold several documents that must not see each other."""

    @property
    def own_layers(self) -> bool:
        return self.name != "te"

    @property
    def is_compiled(self) -> bool:
        return self.name != "cpu"


def choose_backend(engine: EngineConfig, parallel: Parallel, packed: bool = False) -> Backend:
    """Choose the backend for `engine` on this machine. Raises UsageError if the backend asked for cannot run here."""
    on_gpu = parallel.device.type == "cuda"
    if engine.backend != "auto":
        name, reason = engine.backend, "engine.backend asks for it"
    elif engine.fp8:
        name, reason = "te", "engine.fp8 needs it"
    elif on_gpu:
        name, reason = "torch", "the fastest in bfloat16"
    else:
        name, reason = "cpu", "there is no CUDA device"
    needed = {}
    if name == "te":
        needed[f'engine.fp8 is "{engine.fp8}"' if engine.fp8 else 'engine.backend is "te"'] = "transformer_engine"
    if engine.attention != "torch":
        needed[f'engine.attention is "{engine.attention}"'] = ATTENTION_MODULES[engine.attention]
    for setting, module in needed.items():
        if not on_gpu or not _is_installed(module):
            lacking = f"the package {module} is not installed; install it, or" if on_gpu else "there is no CUDA device;"
            raise UsageError(f"{setting}, but {lacking} leave the setting out")
    if engine.fp8:
        _check_fp8(engine.fp8)
    if name == "cpu" and on_gpu:
        raise UsageError('engine.backend is "cpu", but this is a GPU machine; use "auto", or hide the GPUs')
    return Backend(name, reason, engine, packed)


def _check_fp8(recipe: str) -> None:
    """Raise UsageError if this GPU or CUDA version lacks such 8-bit products. Transformer Engine would only fail in a step."""
    from transformer_engine.pytorch.quantization import check_fp8_block_scaling_support, check_fp8_support

    is_supported, reason = check_fp8_support()
    if not is_supported:
        raise UsageError(f'engine.fp8 is "{recipe}": {reason.rstrip(".")}; leave the setting out')
    is_supported, reason = check_fp8_block_scaling_support() if recipe == "blockwise" else (True, "")
    if not is_supported:
        raise UsageError(
            f'engine.fp8 is "blockwise": {reason.rstrip(".")}; use "tensorwise", or env/gpu/install with --cuda 13'
        )


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ModuleNotFoundError, ValueError):  # the enclosing package is missing, or the import is blocked
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


def check_memory(model: ModelConfig, parallel: Parallel, backend: Backend, micro_batch: int, sequence_length: int) -> None:
    """Raise UsageError or GpuInUse if training cannot fit into this process's GPU (see `check_fit`). A CPU is not checked."""
    if parallel.device.type != "cuda":
        return
    layout = Layout(micro_batch, sequence_length, parallel.tensor_parallel, parallel.data_parallel, backend.engine)
    free, total = torch.cuda.mem_get_info(parallel.device)
    needed = check_fit(model, layout, free + torch.cuda.memory_reserved(parallel.device), total)
    if parallel.is_main:
        log.info("memory: about %s of %.1f GiB on each GPU", needed, free / GIB)


def build_network(model: ModelConfig, parallel: Parallel, backend: Backend | None = None) -> GPTModel:
    """Build the bare network on this process's device, without setting its weights. Only this function makes a `GPTModel`.

    `backend` defaults to the best one on this machine.
    """
    backend = backend or choose_backend(EngineConfig(), parallel)
    use_quick_gradient_kernels()
    config = transformer_config(model, parallel, backend)
    with parallel.cuda_names():
        network = Network(
            config=config,
            transformer_layer_spec=_own_layers(config) if backend.own_layers else _te_layers(),
            vocab_size=model.vocabulary,
            max_sequence_length=model.sequence_length,
            position_embedding_type="rope",
            rotary_base=model.rope_base,
            share_embeddings_and_output_weights=model.tied,
        ).to(parallel.device)
    for name, parameter in network.named_parameters():
        if parameter.dim() == 2:  # Megatron-core marks matrices only if it also draws their weights
            parameter.tensor_model_parallel = True
            parameter.partition_dim = _split_dimension(name)
            parameter.partition_stride = 1
    network.backend = backend
    if parallel.device.type == "cuda" and backend.own_layers:
        _order_attention_kernels(backend.engine.attention)
    if backend.name == "torch":
        _compile_layers(network)
    return network


def transformer_config(model: ModelConfig, parallel: Parallel, backend: Backend) -> TransformerConfig:
    engine, te, splits = backend.engine, not backend.own_layers, parallel.tensor_parallel > 1
    options: dict[str, Any] = {}
    if engine.fp8:
        options |= dict(fp8="hybrid", fp8_recipe=engine.fp8, fp8_amax_history_len=16, fp8_amax_compute_algo="max")
    if layers := engine.recompute_layers:
        options |= dict(recompute_granularity="full", recompute_method="block", recompute_num_layers=layers)
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
        calculate_per_token_loss=True,  # losses are summed over the global batch, then divided by its counted tokens
        perform_initialization=False,  # `initialize` draws the weights by name
        bias_activation_fusion=False,  # Transformer Engine's SwiGLU and ours are faster
        masked_softmax_fusion=False,
        persist_layer_norm=False,
        sequence_parallel=engine.sequence_parallel and splits,
        bias_dropout_fusion=te,
        apply_rope_fusion=te,
        fused_single_qkv_rope=te and not backend.packed,  # it ignores borders between documents
        use_te_activation_func=te,
        gradient_accumulation_fusion=te or splits,  # our own linears do the same, in `network/fused_linear.py`
        **options,
    )


def _te_layers() -> Any:
    layer = get_gpt_layer_with_transformer_engine_spec(use_te_activation_func=True)
    _submodules(layer.submodules.mlp).activation_func = TransformerEngineSwiGLU
    return layer


def _own_layers(config: TransformerConfig) -> Any:
    """Megatron-core's own layer with our computation. Under tensor parallelism it keeps its linears, which communicate."""
    layer = get_gpt_layer_local_spec(normalization="RMSNorm")
    layer.module = Block
    parts = layer.submodules
    attention, mlp = _submodules(parts.self_attention), _submodules(parts.mlp)
    parts.input_layernorm = parts.pre_mlp_layernorm = RMSNorm
    attention.core_attention = torch.nn.Identity  # `Block` does not call it
    if config.tensor_model_parallel_size == 1:
        attention.linear_qkv = mlp.linear_fc1 = ColumnLinear
        attention.linear_proj = mlp.linear_fc2 = RowLinear
    return TransformerBlockSubmodules(layer_specs=[layer] * config.num_layers, layer_norm=RMSNorm)


def _submodules(spec: Any) -> Any:
    """The submodules that a Megatron-core spec names. Since 0.19 some specs are partial functions."""
    return spec.keywords["submodules"] if isinstance(spec, functools.partial) else spec.submodules


def _order_attention_kernels(name: str) -> None:
    """Make torch's attention use flash kernels: its own, or only those of FlashAttention 3 or 4 if `name` says so.

    By default, torch prefers cuDNN's kernels on some cards. They are as fast as its own, but FlashAttention's would never run.
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
        raise UsageError(f'engine.attention is "{name}", for which torch {torch.__version__} is too old; update it') from None
    activate_flash_attention_impl(name)


def _compile_layers(network: GPTModel) -> None:
    """Compile each layer by itself. All layers are alike, so the code of the first serves them all."""
    is_split = network.config.tensor_model_parallel_size > 1  # then the linears, which communicate, interrupt the code
    # Each combination of shape, mask and gradient mode is compiled separately. Training, tuning, validation and recomputation
    # need more than 8 together, torch's default limit. Since torch 2.13, autograd's threads, which recompute layers, do not see
    # the global setting.
    takes_limit = "recompile_limit" in inspect.signature(torch.compile).parameters
    limit: dict[str, Any] = {"recompile_limit": RECOMPILE_LIMIT} if takes_limit else {}
    torch._dynamo.config.recompile_limit = max(RECOMPILE_LIMIT, torch._dynamo.config.recompile_limit)
    for layer in network.decoder.layers:
        if is_split:
            for linear in (
                layer.self_attention.linear_qkv,
                layer.self_attention.linear_proj,
                layer.mlp.linear_fc1,
                layer.mlp.linear_fc2,
            ):
                linear.forward = torch.compiler.disable(linear.forward)
        layer.compute = torch.compile(layer.compute, fullgraph=not is_split, dynamic=False, options=layer_options(), **limit)
    network.decoder.final_layernorm.compile(dynamic=False)


def layer_options() -> dict[str, Any]:
    """The `LAYER_OPTIONS` that this torch version knows; 2.13 knows all."""
    import torch._inductor

    return {name: value for name, value in LAYER_OPTIONS.items() if name in torch._inductor.list_options()}


@torch.no_grad()
def attention_kernel(network: GPTModel) -> str:
    """The kernel that the network's attention uses, according to torch rather than to what was asked for."""
    backend, config = network.backend, network.config
    if not backend.own_layers:
        return "chosen by Transformer Engine; with NVTE_DEBUG=1 and NVTE_DEBUG_LEVEL=1 it says which"
    size = config.hidden_size // config.num_attention_heads
    weight = network.embedding.word_embeddings.weight
    heads = torch.empty(1, config.num_attention_heads, 128, size, dtype=weight.dtype, device=weight.device)
    chosen = SDPBackend(torch._fused_sdp_choice(heads, heads, heads, None, 0.0, True)).name
    return chosen if backend.engine.attention == "torch" else f"{chosen} of {backend.engine.attention}"


@torch.no_grad()
def initialize(network: GPTModel, model: ModelConfig, seed: int) -> None:
    """Set all weights: norms to one, others to normal draws keyed by (seed, parameter name), in any layout of processes.

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
    """The dimension of a matrix that tensor parallelism splits: the inputs of projections into the residual stream, else the
    outputs."""
    return 1 if name.endswith(("linear_proj.weight", "linear_fc2.weight")) else 0


class AccumulatingDDP(DistributedDataParallel):
    """Megatron-core's wrapper, extended for weights whose gradients our own code adds to its buffer."""

    accumulating: tuple[torch.nn.Parameter, ...] = ()
    """The weights that `_accumulating` lists."""

    def scale_gradients(self, scaling_factor: float | torch.Tensor) -> None:
        """Scale the gradients that this rank's optimizer reads: the reduce-scatter leaves sums only in its part of each bucket.

        Megatron-core would scale the whole buffer, which costs 8 bytes of traffic per parameter on every rank.
        """
        for buffer in (*self.buffers, *self.expert_parallel_buffers):
            ranks = buffer.data_parallel_group
            for bucket in buffer.buckets:
                bucket.grad_data.chunk(ranks.size())[ranks.rank()].mul_(scaling_factor)

    def zero_grad_buffer(self) -> None:
        super().zero_grad_buffer()
        for weight in self.accumulating:
            weight.grad_added_to_main_grad = True  # type: ignore[attr-defined]


def wrap(network: GPTModel, parallel: Parallel) -> DistributedDataParallel:
    """Wrap the network with its gradient buffers. From then on its parameters live in one flat buffer.

    Gathering new weights does not overlap with the next forward pass: it takes under 1% of a step at 32 GPUs (docs/scaling.md),
    and with overlap the weights would be stale between a step and that pass, when we save and validate.
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
    if network.share_embeddings_and_output_weights:
        # The look-up gives the matrix a second gradient, through autograd. Megatron-core waits for it and adds it.
        attach_sinks([network.shared_embedding_or_output_weight()], announced=False)
    wrapped.accumulating = tuple(_accumulating(network))
    attach_sinks(wrapped.accumulating, announced=ddp.overlap_grad_reduce)
    return wrapped


def _accumulating(network: GPTModel) -> list[torch.nn.Parameter]:
    """The weights whose only gradient is added to the buffer by our linears or our loss."""
    weights = [module.weight for module in network.modules() if isinstance(module, (ColumnLinear, RowLinear))]
    return weights if network.share_embeddings_and_output_weights else [*weights, network.output_layer.weight]


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
    # Megatron-core puts norms into a group with `wd_mult` 0. Only its own scheduler applies that, so here norms decay too.
    with parallel.cuda_names():
        built = get_megatron_optimizer(config, [wrapped], use_gloo_process_groups=False)
    for part in getattr(built, "chained_optimizers", [built]):
        adamw = part.optimizer
        for group in adamw.param_groups:
            group.update(fused=True, foreach=False)  # this kernel reads each tensor once instead of ten times
            for parameter in group["params"]:  # checkpoints can be loaded only into a state that exists
                adamw.state[parameter] = {
                    "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }
    return built
