"""What SmolLM2 computes on Megatron-core's parameters: a block of the Llama family, and the network around it.

Megatron-core's layers hold the weights, split them over processes and save them. For our own two backends the computation is
written out here: it is short, it compiles as a whole, and one compilation serves all blocks. Transformer Engine computes with
its own layers; only the loss is ours.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from curricula.model.megatron import (
    GPTModel,
    TransformerConfig,
    TransformerLayer,
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
)
from curricula.model.network.linear_cross_entropy import linear_cross_entropy
from curricula.model.network.swiglu import swiglu


class RMSNorm(torch.nn.Module):
    """Root-mean-square norm; under sequence parallelism its weight asks for its gradient to be summed over ranks."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **unused: Any) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype))
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class NoAttention(torch.nn.Module):
    """Takes the place of Megatron-core's attention kernel, which `Block` does not call."""

    def __init__(self, **unused: Any) -> None:
        super().__init__()


class Block(TransformerLayer):
    """One layer: x + attention(norm(x)), then x + mlp(norm(x)).

    Without tensor parallelism sequences come first, [B, S, H]: the order of attention kernels, which saves copies. With it
    positions come first, [S, B, H], since Megatron-core splits and joins the first dimension.
    """

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        rotary_pos_emb: torch.Tensor,
        **unused: Any,
    ) -> Any:
        """Hidden states in either order, with S/TP positions under sequence parallelism; angles [S, 1, 1, size]; mask as in
        `attend`."""
        x, attention, mlp = hidden_states, self.self_attention, self.mlp
        mixed, _ = attention.linear_qkv(self.input_layernorm(x))
        groups = attention.num_query_groups_per_partition
        queries = attention.num_attention_heads_per_partition // groups
        if positions_first(self.config):
            context = attend(mixed.transpose(0, 1), rotary_pos_emb, groups, queries, attention_mask).transpose(0, 1)
        else:
            context = attend(mixed, rotary_pos_emb, groups, queries, attention_mask)
        projected, _ = attention.linear_proj(context)
        x = x + projected
        gate_up, _ = mlp.linear_fc1(self.pre_mlp_layernorm(x))
        down, _ = mlp.linear_fc2(swiglu(gate_up))
        return x + down, None


def positions_first(config: TransformerConfig) -> bool:
    """Whether our own layers take [S, B, H] rather than [B, S, H]."""
    return config.tensor_model_parallel_size > 1


def attend(
    mixed: torch.Tensor, angles: torch.Tensor, groups: int, queries: int, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Attention with rotary positions: [B, S, groups * (queries + 2) * size] -> [B, S, groups * queries * size].

    For each of the `groups` key-value heads `mixed` holds its query heads, then the key, then the value. `mask`, bool
    [B, 1, S, S], is true where attention must not look (Megatron-core's convention). Without it, attention is causal.
    """
    batch, sequence, _ = mixed.shape
    size = angles.shape[-1]
    turns = angles.view(sequence, 1, size)
    query, key, value = mixed.view(batch, sequence, groups, queries + 2, size).split([queries, 1, 1], dim=3)
    query, key, value = rotate(query.flatten(2, 3), turns), rotate(key.squeeze(3), turns), value.squeeze(3)
    if queries > 1:
        key, value = key.repeat_interleave(queries, dim=2), value.repeat_interleave(queries, dim=2)
    query, key, value = (heads.transpose(1, 2) for heads in (query, key, value))
    allowed = None if mask is None else ~mask
    context = F.scaled_dot_product_attention(query, key, value, attn_mask=allowed, is_causal=allowed is None)
    return context.transpose(1, 2).flatten(2, 3)


def rotate(heads: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Rotary positions: turn the pairs (i, i + size / 2) of heads [B, S, heads, size] by angles [S, 1, size]."""
    wide = heads.to(torch.promote_types(heads.dtype, angles.dtype))
    first, second = wide.chunk(2, dim=-1)
    return (wide * torch.cos(angles) + torch.cat([-second, first], dim=-1) * torch.sin(angles)).to(heads.dtype)


class Network(GPTModel):
    """Megatron-core's GPTModel, with the loss computed straight from hidden states by `linear_cross_entropy`."""

    backend: str
    """"te", "torch" or "cpu"; set by the builder."""

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: None = None,
        attention_mask: torch.Tensor | None = None,
        *,
        labels: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Logits [B, S, V] of tokens [B, S], for this process's part of the vocabulary.

        With `labels` [B, S] the loss of each token instead, float32 [B, S]. `attention_mask` is as in `attend`.
        """
        group = self.pg_collection.tp
        sequences_first = self.backend != "te" and not positions_first(self.config)
        hidden = self.decoder(
            hidden_states=self.embedding.word_embeddings(input_ids)
            if sequences_first
            else self.embedding(input_ids=input_ids, position_ids=None),
            attention_mask=attention_mask,
            rotary_pos_emb=self.rotary_pos_emb(input_ids.shape[1]),
        )
        tied = self.share_embeddings_and_output_weights
        weight = self.shared_embedding_or_output_weight() if tied else self.output_layer.weight
        if labels is None:
            logits, _ = self.output_layer(hidden, weight=weight)
            return logits if sequences_first else logits.transpose(0, 1)
        if self.config.sequence_parallel:
            hidden = gather_from_sequence_parallel_region(hidden, group=group)
        elif group.size() > 1:
            hidden = copy_to_tensor_model_parallel_region(hidden, group=group)
        losses = linear_cross_entropy(
            hidden.flatten(0, 1),
            weight,
            (labels if sequences_first else labels.t()).flatten(),
            group=group if group.size() > 1 else None,
            compiled=self.backend != "cpu",
        )
        return losses.view(labels.shape) if sequences_first else losses.view(labels.t().shape).t()
