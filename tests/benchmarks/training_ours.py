"""Our side of the training benchmark: a bare step of the engine, and the same step inside the training loop."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from training_changes import CHANGES
from training_measure import PEAK_LR, UNTIMED_STEPS, WARMUP_STEPS, Step, measure, record

from curricula.model.config import (
    EngineConfig,
    ExecutionConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
    TrainJob,
)
from curricula.model.convert import to_hugging_face
from curricula.model.megatron import get_forward_backward_func
from curricula.model.network.build import build_network, build_optimizer, choose_backend, initialize, wrap
from curricula.model.runtime.distributed import Parallel, started
from curricula.model.train import train

SEED = 0
OPTIMIZER = OptimizerConfig(lr=PEAK_LR)


def write_weights(model: dict[str, Any], out: str) -> dict[str, Any]:
    """Write the initial weights that all sides begin with, by Hugging Face's names, in the training precision."""
    from safetensors.torch import save_file

    config = msgspec.convert(model, ModelConfig)
    with started() as parallel:
        network = build_network(config, parallel, choose_backend(EngineConfig(backend="torch"), parallel))
        initialize(network, config, SEED)
        weights = to_hugging_face(network.state_dict(), config)
        save_file({name: weight.detach().cpu().clone() for name, weight in weights.items()}, out)
    return {}


def bare_step(
    model: dict[str, Any],
    engine: dict[str, Any],
    micro_batch: int,
    tokens: str,
    weights: str,
    change: str = "nothing",
    **asked: Any,
) -> dict[str, Any]:
    """The engine's step without the loop around it, with one of `CHANGES`.

    The peer reads `weights`; ours are drawn with the same seed.
    """
    config = msgspec.convert(model, ModelConfig)
    with CHANGES[change](), started() as parallel:
        step = make_step(config, msgspec.convert(engine, EngineConfig), micro_batch, parallel)
        return measure(step, tokens, **asked)


def make_step(model: ModelConfig, engine: EngineConfig, micro_batch: int, parallel: Parallel) -> Step:
    network = build_network(model, parallel, choose_backend(engine, parallel))
    initialize(network, model, SEED)
    wrapped = wrap(network, parallel)
    optimizer = build_optimizer(wrapped, OPTIMIZER, parallel)

    def forward(feed: Iterator[torch.Tensor], network: Any) -> tuple[torch.Tensor, Any]:
        rows = next(feed)

        def summed(losses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
            total = losses.sum()
            count = torch.full((), losses.numel(), dtype=torch.int, device=losses.device)  # `tensor` would wait for the GPU
            return total, count, {"loss": total.detach()}

        return network(rows[:, :-1], labels=rows[:, 1:]), summed

    def step(rows: torch.Tensor, lr: float) -> torch.Tensor:
        for group in optimizer.param_groups:
            group["lr"] = lr
        wrapped.zero_grad_buffer()
        optimizer.zero_grad()
        pieces = rows.split(micro_batch)
        with parallel.cuda_names():
            found = get_forward_backward_func()(
                forward_step_func=forward,
                data_iterator=iter(pieces),
                model=[wrapped],
                num_microbatches=len(pieces),
                seq_length=rows.shape[1] - 1,
                micro_batch_size=micro_batch,
                forward_only=False,
            )
            optimizer.step()
        return torch.stack([each["loss"] for each in found]).sum() / rows[:, 1:].numel()

    return step


class FileBatches(msgspec.Struct, frozen=True):
    """The benchmark's file of tokens as a source of batches, repeated without end."""

    tokens: str
    total_steps: int

    @property
    def _table(self) -> np.ndarray:
        return np.load(self.tokens, mmap_mode="r")

    @property
    def global_batch(self) -> int:
        return self._table.shape[1]

    @property
    def sequence_length(self) -> int:
        return self._table.shape[2] - 1

    def rows(self, step: int, start: int, stop: int) -> tuple[np.ndarray, None]:
        return self._table[step % len(self._table), start:stop].astype(np.int64), None

    def fingerprint(self, step: int) -> dict[str, Any]:
        return {}

    def describe(self, step: int) -> dict[str, Any]:
        return {}


class _Enough(Exception):
    """Ends the loop before it saves: the benchmark does not measure a checkpoint of 20 GB."""


def whole_loop(
    model: dict[str, Any], engine: dict[str, Any], micro_batch: int, tokens: str, timed_steps: int, **others: Any
) -> dict[str, Any]:
    """The training loop as users run it, with reading, metrics and signals; times are from step to step."""
    ends: list[float] = []
    losses: list[float] = []

    def note(done: int, total: int, **figures: Any) -> None:
        ends.append(time.perf_counter())
        losses.append(figures["loss"])
        if done == UNTIMED_STEPS + timed_steps:
            raise _Enough

    with tempfile.TemporaryDirectory() as folder:
        job = TrainJob(
            out=Path(folder),
            model=msgspec.convert(model, ModelConfig),
            config=TrainConfig(
                micro_batch=micro_batch,
                optimizer=OPTIMIZER,
                schedule=ScheduleConfig(warmup_steps=WARMUP_STEPS, decay_fraction=0.0),
                save_interval_steps=10**9,
                save_interval_minutes=None,
            ),
            execution=ExecutionConfig(engine=msgspec.convert(engine, EngineConfig)),
            seed=SEED,
        )
        began = time.perf_counter()
        with contextlib.suppress(_Enough):
            train(job, FileBatches(tokens, 10**6), note)
    return record(np.diff(ends)[-timed_steps:].tolist(), ends[UNTIMED_STEPS - 1] - began, losses)
