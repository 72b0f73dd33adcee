"""Reads micro-batches for training: a torch Dataset, read ahead by worker processes into pinned memory.

A micro-batch is one int64 tensor [micro_batch, sequence_length + 1]. It has a loss mask only if some targets do not count, and
borders between documents only if rows are packed. The rows that it holds depend on its number alone, so neither the number of
workers or ranks nor restarts change anything.
"""

from __future__ import annotations

import atexit
import contextlib
import signal
from collections.abc import Generator, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from curricula.curriculum.stream.pretraining import Rows, RowSource
from curricula.errors import UserError, first_line
from curricula.model.runtime.stopping import PeerLost, signals_blocked

PREFETCH = 4
"""Micro-batches that each worker keeps ready."""
_WORKER_GONE = (EOFError, ConnectionError)
"""Errors that a killed worker causes here, besides torch's own: its pipe ends in the middle of a message."""
_TORCH_SAYS_GONE = ("DataLoader worker", "Pin memory thread exited")
"""How torch's own errors say it; the thread that pins memory exits if the pipe ends while it reads."""


class MicroBatch(NamedTuple):
    """`Rows` as tensors, with the borders of documents in place of their numbers."""

    tokens: torch.Tensor
    mask: torch.Tensor | None
    borders: torch.Tensor | None

    def to(self, device: torch.device) -> MicroBatch:
        tokens, *optional = (None if part is None else part.to(device, non_blocking=True) for part in self)
        assert tokens is not None
        return MicroBatch(tokens, *optional)


class MicroBatches(Dataset):
    """One data-parallel rank's share: micro-batch k is part k % `per_step` of its rows of global batch k // `per_step`.

    A UserError is returned as an item: if a worker raised it, torch would wrap it in a text with the worker's traceback.
    """

    def __init__(self, batches: RowSource, micro_batch: int, data_rank: int = 0, data_parallel: int = 1):
        self.batches, self.micro_batch = batches, micro_batch
        self._own = batches.global_batch // data_parallel
        self._first = self._own * data_rank
        self.per_step = -(-self._own // micro_batch)

    def __getitem__(self, number: int) -> MicroBatch | UserError:
        step, part = divmod(number, self.per_step)
        start = self._first + part * self.micro_batch
        stop = min(start + self.micro_batch, self._first + self._own)
        try:
            tokens, mask, documents = Rows(*self.batches.rows(step, start, stop))
        except UserError as error:
            return error
        return MicroBatch(
            torch.from_numpy(tokens),
            None if mask is None else torch.from_numpy(mask),
            None if documents is None else borders(documents),
        )


def borders(documents: np.ndarray) -> torch.Tensor:
    """Where each document begins in the flattened rows, and where the last one ends: int32 [number of documents + 1].

    `documents` [n, S] holds document numbers; a document's positions are adjacent. This is computed here because a GPU would
    have to be waited for: only the result tells how large it is.
    """
    begins = np.ones(documents.shape, bool)
    begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
    return torch.from_numpy(np.append(np.flatnonzero(begins), documents.size).astype(np.int32))


def read_micro_batches(
    dataset: MicroBatches, start: int, stop: int, workers: int, device: torch.device
) -> Generator[MicroBatch, None, None]:
    """The micro-batches of steps [start, stop) in order, on `device`. Without `workers` this process reads them itself.

    Raises UserError if the data are damaged, and PeerLost if a worker was killed: a restart may then succeed.
    """
    loader = DataLoader(
        dataset,
        batch_size=None,
        sampler=range(start * dataset.per_step, stop * dataset.per_step),
        num_workers=workers,
        prefetch_factor=PREFETCH if workers else None,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # the loader draws an unused seed, but not from the generator that checkpoints store
        multiprocessing_context="fork" if workers else None,  # the dataset cannot be pickled
    )
    with signals_blocked(), _sigchld_as_before():  # a stop signal must not end the workers: the trainer still has to save
        items: Any = iter(loader)
    if workers:  # at exit, Python would wait for these workers for ever; torch has no public way to end them
        atexit.register(items._shutdown_workers)
    try:
        for item in items:
            if isinstance(item, UserError):
                raise item
            yield item.to(device)
    except (RuntimeError, *_WORKER_GONE) as error:
        is_gone = isinstance(error, _WORKER_GONE) or any(sign in str(error) for sign in _TORCH_SAYS_GONE)
        is_passed_on = "in DataLoader worker process" in str(error)  # a live worker raised it
        if not workers or not is_gone or is_passed_on:
            raise
        raise PeerLost(
            f"a process that reads ahead was killed ({first_line(error)}); was memory short? Lower resources.data_workers, "
            "then start again"
        ) from error
    finally:
        if workers:
            atexit.unregister(items._shutdown_workers)
            items._shutdown_workers()


@contextlib.contextmanager
def _sigchld_as_before() -> Iterator[None]:
    """Take back the handler with which torch raises in whatever the trainer computes or saves when a worker is killed.

    The loader itself looks for dead workers whenever it has waited for a batch for some seconds.
    """
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGCHLD) != before:  # torch sets it once in a process, and only in the main thread
            signal.signal(signal.SIGCHLD, before)
