"""Builds SmolLM2 out of Megatron-core: the network, its data-parallel wrapper and its optimizer.

Two backends behind one function. Where Transformer Engine is installed and there is CUDA, its layers are used (fused
attention, norms and rotary positions). Everywhere else Megatron-core's own layers are, with quicker pieces in place of
three of them: attention by `scaled_dot_product_attention`, a norm that knows sequence parallelism, and `model.loss`.
Initial weights are drawn by parameter name, so they depend on neither the backend nor the number of processes.
"""

from __future__ import annotations

import importlib.util
import logging
import math
from typing import Any

import torch
import torch.nn.functional as F

from curriculum.errors import UsageError
from curriculum.randomness import key_seed
from model.config import ModelConfig, OptimizerConfig
from model.distributed import Parallel
from model.loss import token_losses
from model.megatron import (
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

log = logging.getLogger(__name__)


class CausalAttention(torch.nn.Module):
    """Softmax attention by torch's fused kernels, with grouped keys and values: over earlier positions, or where a mask
    does not forbid it."""

    def __init__(self, config: TransformerConfig, **unused: Any) -> None:
        super().__init__()

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        **unused: Any,
    ) -> torch.Tensor:
        """query [S, B, heads, size], key and value [S, B, kv_heads, size], bool mask [B, 1, S, S], true where attention
        must not look, or None for causal attention -> [S, B, heads * size]."""
        sequence, batch, heads, _ = query.shape
        query, key, value = (tensor.permute(1, 2, 0, 3) for tensor in (query, key, value))
        if key.shape[1] != heads:
            groups = heads // key.shape[1]
            key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
        allowed = None if attention_mask is None else ~attention_mask
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=allowed, is_causal=allowed is None)
        return mixed.permute(2, 0, 1, 3).reshape(sequence, batch, -1)


class RMSNorm(torch.nn.Module):
    """Root-mean-square norm; under sequence parallelism its weight asks for its gradient to be summed over ranks."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **unused: Any) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype))
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


def transformer_config(model: ModelConfig, parallel: Parallel, engine: bool) -> TransformerConfig:
    on_gpu = parallel.device.type == "cuda"
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
        sequence_parallel=parallel.tensor_parallel > 1,
        calculate_per_token_loss=True,  # losses are summed over the global batch, then divided by its counted tokens
        perform_initialization=False,  # `initialize` draws the weights by name
        # These are torch.compile'd; on a CPU that needs a compiler and seconds for nothing.
        bias_activation_fusion=on_gpu,
        bias_dropout_fusion=on_gpu,
        masked_softmax_fusion=False,
        apply_rope_fusion=engine,
        persist_layer_norm=False,
        gradient_accumulation_fusion=False,
    )


def choose_engine(parallel: Parallel) -> bool:
    """Whether to build on Transformer Engine, and says why."""
    installed = importlib.util.find_spec("transformer_engine") is not None
    engine = installed and parallel.device.type == "cuda"
    if parallel.is_main:
        reason = "there is no CUDA device" if parallel.device.type != "cuda" else "transformer_engine is not installed"
        backend = "Transformer Engine" if engine else f"torch ({reason})"
        log.info("layers: %s; %s, tensor parallel %d", backend, parallel.precision, parallel.tensor_parallel)
    return engine


def build_network(model: ModelConfig, parallel: Parallel, engine: bool | None = None) -> GPTModel:
    """The bare network on this process's device, weights not yet set. The one place that knows `GPTModel`.

    `engine` says whether to build on Transformer Engine, which names some weights differently; None chooses.
    Raises UsageError when tensor parallelism does not divide the model.
    """
    for name in ("kv_heads", "ffn", "vocabulary", "sequence_length"):
        if getattr(model, name) % parallel.tensor_parallel:
            raise UsageError(
                f"tensor_parallel is {parallel.tensor_parallel}, which does not divide model.{name} "
                f"{getattr(model, name)}; choose a divisor"
            )
    if engine is None:
        engine = choose_engine(parallel)
    config = transformer_config(model, parallel, engine)
    with parallel.cuda_names():
        network = GPTModel(
            config=config,
            transformer_layer_spec=_layers(config, engine),
            vocab_size=model.vocabulary,
            max_sequence_length=model.sequence_length,
            position_embedding_type="rope",
            rotary_base=model.rope_base,
            share_embeddings_and_output_weights=model.tied,
        ).to(parallel.device)
    for name, parameter in network.named_parameters():
        if parameter.dim() == 2:  # Megatron-core marks them itself only where it draws the weights too
            parameter.tensor_model_parallel = True
            parameter.partition_dim = _split_dimension(name)
            parameter.partition_stride = 1
    network.takes_masks = not engine
    if parallel.tensor_parallel == 1:
        network.compute_language_model_loss = token_losses
    return network


def _layers(config: TransformerConfig, engine: bool) -> Any:
    if engine:
        return get_gpt_layer_with_transformer_engine_spec()
    layer = get_gpt_layer_local_spec(normalization="RMSNorm")
    layer.submodules.input_layernorm = layer.submodules.pre_mlp_layernorm = RMSNorm
    layer.submodules.self_attention.submodules.core_attention = CausalAttention
    return TransformerBlockSubmodules(layer_specs=[layer] * config.num_layers, layer_norm=RMSNorm)


@torch.no_grad()
def initialize(network: GPTModel, model: ModelConfig, seed: int) -> None:
    """Set all weights: norms to one, others normal, drawn by (seed, parameter name) whatever the layout of processes.

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
        if name.endswith("linear_fc1.weight"):  # gate over up: each rank holds its part of both
            part = torch.cat([half.chunk(size)[rank] for half in whole.chunk(2)])
        else:
            part = whole.chunk(size, dim=split)[rank]
        parameter.copy_(part)


def _split_dimension(name: str) -> int:
    """Which dimension of a matrix tensor parallelism splits: the inputs of projections into the residual stream."""
    return 1 if name.endswith(("linear_proj.weight", "linear_fc2.weight")) else 0


def wrap(network: GPTModel, parallel: Parallel) -> DistributedDataParallel:
    """The network with its gradient buffers; from here on parameters live in one flat buffer."""
    ddp = DistributedDataParallelConfig(
        use_distributed_optimizer=True,
        grad_reduce_in_fp32=True,
        overlap_grad_reduce=parallel.data_parallel > 1 and parallel.device.type == "cuda",
        overlap_param_gather=False,  # else weights are stale between a step and the next forward: when we save
    )
    with parallel.cuda_names():
        wrapped = DistributedDataParallel(network.config, ddp, network)
    wrapped.config.finalize_model_grads_func = finalize_model_grads
    if ddp.overlap_grad_reduce:
        wrapped.config.no_sync_func = wrapped.no_sync
    return wrapped


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
    """Have torch's AdamW go over each tensor once instead of ten times, and give it its zero state at once.

    Megatron-core can load a checkpoint only into an optimizer that has a state.
    """
    for group in adamw.param_groups:
        group.update(fused=True, foreach=False)
        for parameter in group["params"]:
            adamw.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
