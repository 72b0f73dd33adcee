"""Builds SmolLM2 out of Megatron-core: the network, its data-parallel wrapper and its optimizer.

One of three backends (`backends.py`) computes the network. Initial weights are drawn by parameter name, so they depend on
neither the backend nor the number of processes.
"""

from __future__ import annotations

import logging
import math
from typing import Any

import torch
import torch.nn.functional as F

from curricula.errors import UsageError
from curricula.model.config import EngineConfig, ModelConfig, OptimizerConfig
from curricula.model.megatron import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    GPTModel,
    MegatronOptimizerConfig,
    TransformerConfig,
    finalize_model_grads,
    get_megatron_optimizer,
    parallel_state,
)
from curricula.model.memory import GIB, Layout, check_fit
from curricula.model.network.backends import Backend, choose_backend
from curricula.model.network.fused_linear import ColumnLinear, RowLinear, attach_sinks, use_quick_gradient_kernels
from curricula.model.network.transformer import Network
from curricula.model.runtime.distributed import Parallel
from curricula.randomness import key_seed

log = logging.getLogger(__name__)


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
    if (recomputed := backend.engine.recompute_layers) > model.layers:
        raise UsageError(f"engine.recompute_layers is {recomputed}; the model has {model.layers} layers")
    use_quick_gradient_kernels()
    config = transformer_config(model, parallel, backend)
    with parallel.cuda_names():
        network = Network(
            config=config,
            transformer_layer_spec=backend.layers(config),
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
    network.backend = backend
    backend.prepare(network)
    return network


def check_memory(model: ModelConfig, parallel: Parallel, backend: Backend, micro_batch: int, sequence_length: int) -> None:
    """Raise UsageError when training cannot fit into this process's GPU. On a CPU nothing is checked."""
    if parallel.device.type != "cuda":
        return
    layout = Layout(micro_batch, sequence_length, parallel.tensor_parallel, parallel.data_parallel, backend.engine)
    free, total = torch.cuda.mem_get_info(parallel.device)
    needed = check_fit(model, layout, free + torch.cuda.memory_reserved(parallel.device), total)
    if parallel.is_main:
        log.info("memory: about %s of %.1f GiB on each GPU", needed, free / GIB)


def transformer_config(model: ModelConfig, parallel: Parallel, backend: Backend) -> TransformerConfig:
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
        **backend.transformer_settings(parallel.tensor_parallel),
    )


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

    def scale_gradients(self, scaling_factor: float | torch.Tensor) -> None:
        """Scale the part that this rank's optimizer reads.

        Megatron-core would scale the whole buffer, 8 bytes of traffic a parameter on every rank, though the reduce-scatter
        left sums only in this part: it is the same part of each bucket.
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
    # Norms are in a group whose `wd_mult` is 0, which Megatron-core's own scheduler would apply. Nothing does so here.
    with parallel.cuda_names():
        built = get_megatron_optimizer(config, [wrapped], use_gloo_process_groups=False)
    for part in getattr(built, "chained_optimizers", [built]):
        _prepare(part.optimizer)
    return built


def _prepare(adamw: torch.optim.AdamW) -> None:
    """Use AdamW's fused kernel, which reads each tensor once instead of ten times, and allocate its state now, so that
    checkpoints can be loaded into it."""
    for group in adamw.param_groups:
        group.update(fused=True, foreach=False)
        for parameter in group["params"]:
            adamw.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
