"""What SmolLM2 computes on Megatron-core's parameters: a block of the Llama family, and the network around it.

Megatron-core's layers hold the weights, split them over processes and save them. For our own two backends the computation is
written out here: it is short, it compiles as a whole, and one compilation serves all blocks. Transformer Engine computes with
its own layers; only the loss is ours.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
from typing import Any

import torch
import torch.nn.functional as F

from curricula.model.megatron import (
    GPTModel,
    PackedSeqParams,
    TransformerConfig,
    TransformerLayer,
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
)
from curricula.model.network.linear_cross_entropy import linear_cross_entropy
from curricula.model.network.swiglu import swiglu

varlen_attn: Any = None
with contextlib.suppress(ImportError):  # torch 2.10 and later
    varlen_attn = importlib.import_module("torch.nn.attention.varlen").varlen_attn
CAUSAL: dict[str, Any] = {"window_size": (-1, 0)}
"""The argument that makes torch's kernel causal; torch 2.10 had another one."""
if varlen_attn is not None and "is_causal" in inspect.signature(varlen_attn).parameters:
    CAUSAL = {"is_causal": True}


class RMSNorm(torch.nn.Module):
    """Root-mean-square norm. Under sequence parallelism its weight is marked, so that its gradient is summed over ranks."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float, **unused: Any) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype))
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class Block(TransformerLayer):
    """One layer: x + attention(norm(x)), then x + mlp(norm(x)).

    Without tensor parallelism sequences come first, [B, S, H]: this is the order of attention kernels, which saves copies. With
    tensor parallelism positions come first, [S, B, H], since Megatron-core splits and joins the first dimension.
    """

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None, rotary_pos_emb: torch.Tensor, **unused: Any
    ) -> Any:
        """Compute the layer. Hidden states are in either order, with S / TP positions under sequence parallelism;
        `rotary_pos_emb` is a result of `turns_of`; `attention_mask` is as in `attend`."""
        output, _ = self.compute(hidden_states, attention_mask, rotary_pos_emb)
        return output, None

    def compute(self, x: torch.Tensor, mask: torch.Tensor | None, turns: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The output, and the sum after attention, detached.

        The compiler saves for the backward pass what compiled code returns. Without the sum, it would save attention's output
        and repeat the addition: 11 passes over tensors of this size instead of 8, for both norms' gradients together.
        """
        attention, mlp = self.self_attention, self.mlp
        mixed, _ = attention.linear_qkv(self.input_layernorm(x))
        groups = attention.num_query_groups_per_partition
        queries = attention.num_attention_heads_per_partition // groups
        if positions_first(self.config):
            context = attend(mixed.transpose(0, 1), turns, groups, queries, mask).transpose(0, 1)
        else:
            context = attend(mixed, turns, groups, queries, mask)
        projected, _ = attention.linear_proj(context)
        between = x + projected
        gate_up, _ = mlp.linear_fc1(self.pre_mlp_layernorm(between))
        down, _ = mlp.linear_fc2(swiglu(gate_up))
        return between + down, between.detach()


def positions_first(config: TransformerConfig) -> bool:
    """Whether our own layers take [S, B, H] rather than [B, S, H]."""
    return config.tensor_model_parallel_size > 1


def attend(mixed: torch.Tensor, turns: torch.Tensor, groups: int, queries: int, mask: torch.Tensor | None) -> torch.Tensor:
    """Causal attention with rotary positions: [B, S, groups * (queries + 2) * size] -> [B, S, groups * queries * size].

    For each of the `groups` key-value heads, `mixed` holds its query heads, then the key, then the value. `turns` is a result
    of `turns_of`. For rows of several documents, `mask` is a result of `steadied` or `crossing_mask`.
    """
    batch, sequence, _ = mixed.shape
    size = turns.shape[-1]
    query, key, value = mixed.view(batch, sequence, groups, queries + 2, size).split([queries, 1, 1], dim=3)
    query, key, value = rotate(query.flatten(2, 3), turns), rotate(key.squeeze(3), turns), value.squeeze(3)
    if queries > 1:
        key, value = key.repeat_interleave(queries, dim=2), value.repeat_interleave(queries, dim=2)
    if mask is not None and mask.dim() == 1:
        query, key, value = (heads.flatten(0, 1).contiguous() for heads in (query, key, value))
        return attend_between(query, key, value, mask, sequence).view(batch, sequence, -1)
    query, key, value = (heads.transpose(1, 2) for heads in (query, key, value))
    allowed = None if mask is None else ~mask
    context = F.scaled_dot_product_attention(query, key, value, attn_mask=allowed, is_causal=allowed is None)
    return context.transpose(1, 2).flatten(2, 3)


def attend_between(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, borders: torch.Tensor, longest: int
) -> torch.Tensor:
    """Causal attention of [tokens, heads, size] within the documents that begin at `borders`, of at most `longest` tokens.

    Torch's kernel for this runs only on GPUs. It spends no time on pairs of tokens in different documents.
    """
    return varlen_attn(query, key, value, borders, borders, longest, longest, **CAUSAL)


def steadied(borders: torch.Tensor, end: int) -> torch.Tensor:
    """The `borders` of documents, of which the last is `end`. It is repeated (as empty documents) until the length is a power
    of two, so that code compiled for one length serves most batches."""
    length = max(64, 1 << (borders.numel() - 1).bit_length())
    return F.pad(borders, (0, length - borders.numel()), value=end)


def crossing_mask(borders: torch.Tensor, rows: int, length: int) -> torch.Tensor:
    """What attention must not see, bool [rows, 1, length, length]: later positions, and other documents of the row.

    This works on every device but costs as much as attention to everything, so it is used only without a kernel for `borders`.
    """
    positions = torch.arange(rows * length, dtype=borders.dtype, device=borders.device)
    documents = torch.bucketize(positions, borders, right=True).view(rows, length)
    earlier = torch.ones(length, length, dtype=torch.bool, device=borders.device).tril()
    same = documents[:, None, :, None] == documents[:, None, None, :]
    return ~(same & earlier)


def turns_of(angles: torch.Tensor) -> torch.Tensor:
    """Cosine and sine, [2, S, 1, size], of Megatron-core's rotary angles [S, 1, 1, size].

    All blocks share them: code compiled for a block would compute them again for each head, forward and backward.
    """
    return torch.stack([angles.cos(), angles.sin()]).squeeze(2)


def rotate(heads: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """Rotary positions: turn the pairs (i, i + size / 2) of heads [B, S, heads, size] by `turns` [2, S, 1, size]."""
    wide = heads.to(torch.promote_types(heads.dtype, turns.dtype))
    first, second = wide.chunk(2, dim=-1)
    return (wide * turns[0] + torch.cat([-second, first], dim=-1) * turns[1]).to(heads.dtype)


class Network(GPTModel):
    """Megatron-core's GPTModel, with the loss computed straight from hidden states by `linear_cross_entropy`."""

    backend: Any
    """The `Backend` of `build.py`; set by `build_network`."""

    def forward(
        self, input_ids: torch.Tensor, borders: torch.Tensor | None = None, *, labels: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Logits [B, S, V] of tokens [B, S], for this process's part of the vocabulary.

        With `labels` [B, S], the loss of each token instead, float32 [B, S]. With the `borders` of documents
        (`runtime/loading.py`), tokens see only those of the same document. Rotary positions need no reset: attention depends
        only on distances.
        """
        if borders is not None and not self.backend.own_layers:
            # Transformer Engine takes packed rows as one sequence and does not attend across the borders in it.
            longest = input_ids.shape[1]
            losses_or_logits = self._compute(
                input_ids.reshape(1, -1),
                None if labels is None else labels.reshape(1, -1),
                rotary_length=longest,
                packed_seq_params=PackedSeqParams(
                    qkv_format="thd", cu_seqlens_q=borders, cu_seqlens_kv=borders, max_seqlen_q=longest, max_seqlen_kv=longest
                ),
            )
            return losses_or_logits.view(*input_ids.shape, *losses_or_logits.shape[2:])
        mask = None
        if borders is not None:
            has_kernel = borders.is_cuda and varlen_attn is not None
            mask = steadied(borders, input_ids.numel()) if has_kernel else crossing_mask(borders, *input_ids.shape)
        return self._compute(input_ids, labels, rotary_length=input_ids.shape[1], attention_mask=mask)

    def _compute(
        self,
        input_ids: torch.Tensor,
        labels: torch.Tensor | None,
        rotary_length: int,
        attention_mask: torch.Tensor | None = None,
        **packed: PackedSeqParams,
    ) -> torch.Tensor:
        group = self.pg_collection.tp
        sequences_first = self.backend.own_layers and not positions_first(self.config)
        angles = self.rotary_pos_emb(rotary_length)
        if sequences_first:
            embedded = self.embedding.word_embeddings(input_ids)
        else:
            embedded = self.embedding(input_ids=input_ids, position_ids=None)
        hidden = self.decoder(
            hidden_states=embedded,
            attention_mask=attention_mask,
            rotary_pos_emb=turns_of(angles) if self.backend.own_layers else angles,
            **packed,
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
        targets = labels if sequences_first else labels.t()
        losses = linear_cross_entropy(
            hidden.flatten(0, 1),
            weight,
            targets.flatten(),
            group=group if group.size() > 1 else None,
            compiled=self.backend.is_compiled,
        ).view(targets.shape)
        return losses if sequences_first else losses.t()
