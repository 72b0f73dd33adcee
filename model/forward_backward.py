"""Runs the network over global batches: the loss with its gradient, the loss alone, or the rows whose loss is not finite.

`_token_losses` calls the network, which computes the loss by `linear_cross_entropy` (network/linear_cross_entropy.py). The
masked losses are summed over all tokens, then divided by the number of tokens that count.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch

from curricula.curriculum.stream.pretraining import RowSource
from curricula.model.megatron import get_forward_backward_func
from curricula.model.runtime.distributed import OwnTime, Parallel
from curricula.model.runtime.loading import MicroBatch, MicroBatches
from curricula.model.runtime.reporting import Stopwatch

Report = dict[str, torch.Tensor]
ForwardStep = Callable[[Iterator[MicroBatch], Any], tuple[torch.Tensor, Any]]


class ForwardBackward:
    """Runs Megatron-core's schedule over the micro-batches of one rank and sums the results of all ranks."""

    def __init__(self, wrapped: Any, parallel: Parallel, micro_batch: int) -> None:
        self.wrapped, self.parallel, self.micro_batch = wrapped, parallel, micro_batch
        self.data_wait = Stopwatch()
        """Time spent waiting for micro-batches."""
        self.own_time = OwnTime(parallel.device)
        """This process's part of the last training step."""
        finalize = wrapped.config.finalize_model_grads_func

        def finalize_with_others(*args: Any, **kwargs: Any) -> None:
            self.own_time.end()
            finalize(*args, **kwargs)

        wrapped.config.finalize_model_grads_func = finalize_with_others

    def share(self, batches: RowSource) -> MicroBatches:
        """This data-parallel rank's part of the batches."""
        return MicroBatches(batches, self.micro_batch, self.parallel.data_rank, self.parallel.data_parallel)

    def train(self, batches: RowSource, feed: Iterator[MicroBatch]) -> float:
        """Forward and backward over the next global batch; returns the mean loss of its counted tokens."""
        self.own_time.begin()
        return mean_loss(*self._losses(batches, feed, forward_only=False))

    @torch.no_grad()
    def evaluate(self, batches: RowSource, feed: Iterator[MicroBatch], each: Callable[[], None]) -> float:
        """Mean loss per counted token over all of `batches`; calls `each` after every global batch."""
        self.wrapped.eval()
        totals = []
        # In bfloat16 even if training computes in fp8: else the layers' history of largest values would take note of it.
        with mock.patch.object(self.wrapped.config, "fp8", None):
            for _ in range(batches.total_steps):
                totals.append(self._losses(batches, feed, forward_only=True))
                each()
        self.wrapped.train()
        return mean_loss(*map(math.fsum, zip(*totals)))

    @torch.no_grad()
    def bad_rows(self, batches: RowSource, step: int) -> list[int]:
        """The rows of global batch `step` whose loss is not a finite number under the present weights."""
        share = self.share(batches)
        feed = (share[step * share.per_step + part].to(self.parallel.device) for part in range(share.per_step))
        reports = self._run(batches, feed, True, _row_step)
        own = torch.cat([report["bad rows"] for report in reports]).tolist()
        flags = [0.0] * batches.global_batch
        first = self.parallel.data_rank * len(own)
        flags[first : first + len(own)] = own
        return [row for row, flag in enumerate(self.parallel.sum(*flags)) if flag]

    def _losses(self, batches: RowSource, feed: Iterator[MicroBatch], forward_only: bool) -> tuple[float, float]:
        """Summed loss and counted tokens of the next global batch."""
        reports = self._run(batches, _timed(feed, self.data_wait), forward_only, _loss_step)
        total = torch.stack([report["loss and tokens"] for report in reports]).sum(dim=0).tolist()
        loss, tokens = self.parallel.sum(*total)
        return loss, tokens

    def _run(
        self, batches: RowSource, feed: Iterator[MicroBatch], forward_only: bool, forward_step: ForwardStep
    ) -> list[Report]:
        with self.parallel.cuda_names():
            return get_forward_backward_func()(
                forward_step_func=forward_step,
                data_iterator=feed,
                model=[self.wrapped],
                num_microbatches=self.share(batches).per_step,
                seq_length=batches.sequence_length,
                micro_batch_size=self.micro_batch,
                forward_only=forward_only,
            )


def mean_loss(loss: float, tokens: float) -> float:
    return loss / max(1.0, tokens)


def _token_losses(micro_batches: Iterator[MicroBatch], network: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The next micro-batch's losses [n, S] and the weights of its targets [n, S]."""
    tokens, mask, documents = next(micro_batches)
    losses = network(tokens[:, :-1], None, documents, labels=tokens[:, 1:])
    return losses, torch.ones_like(losses) if mask is None else mask


def _loss_step(micro_batches: Iterator[MicroBatch], network: Any) -> tuple[torch.Tensor, Any]:
    """Megatron-core's forward step: the losses of one micro-batch, and the function that sums them up."""
    losses, mask = _token_losses(micro_batches, network)

    def summed(losses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, Report]:
        loss, counted = (losses * mask).sum(), mask.sum()
        report = torch.stack([loss.detach(), counted]).double()
        return loss, counted.to(torch.int), {"loss and tokens": report}

    return losses, summed


def _row_step(micro_batches: Iterator[MicroBatch], network: Any) -> tuple[torch.Tensor, Any]:
    """The same with a flag for each row: 1 where the sum of its losses is not a finite number."""
    losses, mask = _token_losses(micro_batches, network)

    def flagged(losses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, Report]:
        rows = (losses * mask).sum(dim=1)
        return rows.sum(), mask.sum().to(torch.int), {"bad rows": (~rows.isfinite()).double()}

    return losses, flagged


def _timed(feed: Iterator[MicroBatch], waiting: Stopwatch) -> Iterator[MicroBatch]:
    while True:
        with waiting:
            micro_batch = next(feed)
        yield micro_batch
