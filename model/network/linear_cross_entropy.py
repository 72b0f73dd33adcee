"""The training loss: cross entropy straight from hidden states, with output projection and loss combined, chunk by chunk.

With z the logits, loss = log sum exp z - z[target], and its gradient is softmax(z) - one-hot(target).

The logits are by far the largest tensor of a small model: 16 sequences of 2,048 tokens and 49,152 entries are 6 GiB in
float32, and torch's own cross entropy holds three such tensors. Here they exist once, in the precision of the weights, and
the forward pass overwrites them with their own gradient; float32 values exist for one chunk only. Without gradients only one
chunk of logits exists at a time.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F

from curricula.model.network.fused_linear import accumulate

CHUNK = 4096
"""Tokens in a chunk."""


def linear_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    *,
    group: dist.ProcessGroup | None = None,
    compiled: bool = False,
    chunk: int = CHUNK,
) -> torch.Tensor:
    """Losses float32 [N] of hidden states [N, H] at targets int64 [N], differentiable once.

    `weight` [V, H] is the part of the vocabulary that this rank of `group` holds, or all of it without a group. Over a group,
    the gradient of `hidden` is this process's part of a sum. If the weight has a sink (`fused_linear.py`), its gradient goes
    there.
    """
    first = 0 if group is None else dist.get_rank(group) * weight.shape[0]
    if torch.is_grad_enabled():
        return _LinearCrossEntropy.apply(hidden, weight, targets, first, group, compiled, chunk)
    pieces = zip(hidden.split(chunk), targets.split(chunk))
    return torch.cat([_losses(F.linear(x, weight), t, first, group, compiled)[0] for x, t in pieces])


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        targets: torch.Tensor,
        first: int,
        group: dist.ProcessGroup | None,
        compiled: bool,
        chunk: int,
    ) -> torch.Tensor:
        _, to_gradient = _kernels(compiled)
        logits = hidden.new_empty(hidden.shape[0], weight.shape[0])
        losses = []
        for piece, x, t in zip(logits.split(chunk), hidden.split(chunk), targets.split(chunk)):
            torch.mm(x, weight.t(), out=piece)
            loss, log_total = _losses(piece, t, first, group, compiled)
            to_gradient(piece, t, first, log_total)
            losses.append(loss)
        ctx.save_for_backward(hidden, weight, logits)
        ctx.sink = getattr(weight, "sink", None)
        ctx.announced = getattr(weight, "sink_announced", False)
        return torch.cat(losses)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, weight, logits_gradient = ctx.saved_tensors
        d_loss = gradients[0].to(hidden.dtype)[:, None]
        d_hidden = (logits_gradient @ weight).mul_(d_loss)
        if ctx.sink is None:
            d_weight = logits_gradient.t() @ (hidden * d_loss)
        else:
            accumulate(ctx.sink, logits_gradient, hidden * d_loss)
            d_weight = torch.empty_like(weight) if ctx.announced else None
        return d_hidden, d_weight, None, None, None, None, None


def _losses(
    logits: torch.Tensor, targets: torch.Tensor, first: int, group: dist.ProcessGroup | None, compiled: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses [N] of logits [N, V], and the logarithm of the sum of exponentials over the whole vocabulary [N]."""
    statistics, _ = _kernels(compiled)
    maximum, total, at_target = statistics(logits, targets, first)
    if group is not None:
        highest = maximum.clone()
        dist.all_reduce(highest, op=dist.ReduceOp.MAX, group=group)
        sums = torch.stack([total * torch.exp(maximum - highest), at_target])
        dist.all_reduce(sums, group=group)
        maximum, (total, at_target) = highest, sums
    log_total = maximum + torch.log(total)
    return log_total - at_target, log_total


def _statistics(logits: torch.Tensor, targets: torch.Tensor, first: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """For each row of logits [N, V]: maximum, sum of exponentials relative to it, target's logit (0 if in another part)."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    # With kept dimensions the compiler recognises a softmax and reads the logits once for both results, not twice.
    maximum = wide.amax(dim=-1, keepdim=True)
    total = (wide - maximum).exp_().sum(dim=-1, keepdim=True)
    here, column = _columns(targets, first, logits.shape[1])
    at_target = wide.gather(1, column).squeeze(1)
    return maximum.squeeze(1), total.squeeze(1), torch.where(here, at_target, torch.zeros_like(at_target))


def _to_gradient(logits: torch.Tensor, targets: torch.Tensor, first: int, log_total: torch.Tensor) -> None:
    """Overwrite logits [N, V] with softmax - one-hot, rounded once to their precision."""
    here, column = _columns(targets, first, logits.shape[1])
    if torch.compiler.is_compiling():  # one pass; without a compiler the comparison would be two more
        position = torch.arange(logits.shape[1], device=logits.device)
        one_hot = here[:, None] & (position == column)
        logits.copy_(torch.exp(logits - log_total[:, None]) - one_hot.to(log_total.dtype))
    else:
        at_target = torch.exp(logits.gather(1, column) - log_total[:, None]) - here[:, None].to(log_total.dtype)
        logits.copy_((logits - log_total[:, None]).exp_())
        logits.scatter_(1, column, at_target.to(logits.dtype))


def _columns(targets: torch.Tensor, first: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Whether each target lies in the part of the vocabulary that begins at `first`, and its column [N, 1] there."""
    column = targets - first
    here = (column >= 0) & (column < size)
    return here, column.clamp(0, size - 1)[:, None]


@functools.cache
def _kernels(compiled: bool) -> tuple[Callable[..., Any], Callable[..., None]]:
    """`_statistics` and `_to_gradient`."""
    if not compiled:
        return _statistics, _to_gradient
    return torch.compile(_statistics, dynamic=False), torch.compile(_to_gradient, dynamic=False)
