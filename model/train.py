"""Trains one line of a study: from its own last checkpoint, from another line's, from given weights, or from scratch.

    train(TrainJob(out=..., model=PRESETS["tiny"], stop_step=100), batches)

The state after a step is a function of (seed, model, recipe, batches) alone. So a run killed at any instant and started
again ends with the same numbers, and an arm that branches from the trunk ends as if it had been trained from scratch.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import torch

from curriculum.batches import BatchSource
from curriculum.errors import UsageError, UserError
from curriculum.progress import Progress, silent
from model import checkpoint
from model.build import build_network, build_optimizer, check_memory, initialize, wrap
from model.checkpoint_folder import CheckpointInfo, latest_checkpoint, prune, read_info, step_folder
from model.config import EngineConfig, ModelConfig, OptimizerConfig, ScheduleConfig
from model.distributed import Parallel, started
from model.lineage import check_past, check_weights, identity
from model.loading import MicroBatch, MicroBatches, load
from model.megatron import get_forward_backward_func
from model.metrics import MetricsFile, speed
from model.schedule import learning_rate
from model.signals import Interrupted, StopRequest, listening

log = logging.getLogger(__name__)


class TrainJob(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One call of `train`: what to train, from where to where, and what to keep."""

    out: Path
    """Folder of the line: gets checkpoints/ and metrics.jsonl."""
    model: ModelConfig
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    seed: int = 0
    """Draws the initial weights."""
    stop_step: int | None = None
    """Train until this many steps are done; by default all of the batch source's. The schedule always spans all."""
    init_from: Path | None = None
    """Checkpoint of another line to branch from, with everything: optimizer state, step, position in the data."""
    init_weights: Path | None = None
    """Checkpoint whose weights were or are step 0. A branch names its trunk's, since they are part of its past."""
    micro_batch: int = 16
    """Sequences in one forward and backward pass of one device; the global batch is gathered over several."""
    tensor_parallel: int = 1
    engine: EngineConfig = EngineConfig()
    """How the network is computed: the backend, and how it saves memory."""
    data_workers: int = 0
    """Processes that read ahead for this one; with none it reads its batches itself."""
    save_interval_steps: int = 500
    keep_steps: tuple[int, ...] = ()
    """Steps to save at and never delete: where arms branch off."""
    keep_last: int = 2
    """How many of the newest checkpoints to keep besides."""

    def __post_init__(self) -> None:
        for name in ("micro_batch", "save_interval_steps", "keep_last"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")


def train(
    job: TrainJob,
    batches: BatchSource,
    progress: Progress = silent,
    validation: Mapping[str, BatchSource] | None = None,
) -> None:
    """Train until `job.stop_step`, going on from wherever an earlier call was stopped. All processes call it together.

    Raises UserError when a checkpoint or the data cannot be used or the loss is not a number, UsageError when the job
    contradicts itself, and `Interrupted` when a signal asked for a stop; the state is then saved.
    """
    with started(job.tensor_parallel) as parallel, listening() as stop:
        run = _Run(job, batches, dict(validation or {}), parallel, stop)
        try:
            run.loop(progress)
        finally:
            run.close()


class _Run:
    """The pieces of one training process, put together and brought to the step to go on from."""

    def __init__(
        self,
        job: TrainJob,
        batches: BatchSource,
        validation: dict[str, BatchSource],
        parallel: Parallel,
        stop: StopRequest,
    ) -> None:
        self.job, self.batches, self.validation, self.parallel, self.stop = job, batches, validation, parallel, stop
        self.stop_step = batches.total_steps if job.stop_step is None else job.stop_step
        self.checkpoints = job.out / "checkpoints"
        self._check_sizes()
        at_once = min(job.micro_batch, batches.global_batch // parallel.data_parallel)
        check_memory(job.model, parallel, job.engine, at_once, batches.sequence_length)
        network = build_network(job.model, parallel, job.engine)
        source = _starting_point(job, self.checkpoints)
        if source is None:
            initialize(network, job.model, job.seed)
        elif source == job.init_weights:
            check_weights(source, read_info(source), job.model)
            checkpoint.load(source, network, None, parallel)
        self.wrapped = wrap(network, parallel)
        self.optimizer = build_optimizer(self.wrapped, job.optimizer, parallel)
        self.step = 0
        self._feed: Generator[MicroBatch, None, None] | None = (
            None  # opened at the first step, once the step to begin at is known
        )
        if source is not None and source != job.init_weights:
            info = read_info(source)
            check_past(source, info, job.model, self._recipe(), batches)
            checkpoint.load(source, network, self.optimizer, parallel)
            self.step = info.step
        self.network = network
        self.metrics = MetricsFile(job.out / "metrics.jsonl", self.step) if parallel.is_main else None
        if parallel.is_main:
            log.info(
                "%s: from step %d to %d, starting with %s", job.out, self.step, self.stop_step, source or "new weights"
            )

    def _check_sizes(self) -> None:
        job, parallel = self.job, self.parallel
        if not 0 < self.stop_step <= self.batches.total_steps:
            raise UsageError(f"stop_step is {self.stop_step}; the batches have steps 1 to {self.batches.total_steps}")
        for batches in (self.batches, *self.validation.values()):
            if batches.global_batch % parallel.data_parallel:
                raise UsageError(
                    f"the global batch of {batches.global_batch} sequences does not divide among "
                    f"{parallel.data_parallel} data-parallel processes; change it or the number of tasks"
                )
        if self.batches.sequence_length > job.model.sequence_length:
            raise UsageError(
                f"sequences of {self.batches.sequence_length} tokens are longer than model.sequence_length "
                f"{job.model.sequence_length}; shorten them"
            )

    def _recipe(self) -> dict[str, Any]:
        """What determines the state besides model and data, as it is stored in checkpoints."""
        return {
            "seed": self.job.seed,
            "init_weights": None if self.job.init_weights is None else identity(self.job.init_weights),
            "optimizer": msgspec.to_builtins(self.job.optimizer),
            "schedule": msgspec.to_builtins(self.job.schedule),
            "total_steps": self.batches.total_steps,
            "global_batch": self.batches.global_batch,
        }

    def loop(self, progress: Progress) -> None:
        job = self.job
        while self.step < self.stop_step:
            row = self._train_step()
            last = self.step == self.stop_step
            if self.metrics:
                self.metrics.write(row)
                progress(self.step, self.stop_step, loss=row["loss"], **row["timing"])
            interrupted = not last and self.parallel.any(bool(self.stop))
            if last or interrupted or self.step % job.save_interval_steps == 0 or self.step in job.keep_steps:
                self._save()
            if interrupted:
                raise Interrupted(self.step, self.stop_step, self.stop.signal_name or "a signal to another process")
        if latest_checkpoint(self.checkpoints) is None:  # branched off at the very end: nothing was left to train
            self._save()
        # After the save, so that a validation that fails costs no training; a resume makes up for one that was missed.
        if self.validation and not self.parallel.any(self.metrics is not None and self.metrics.is_validated(self.step)):
            self._validate()

    def _train_step(self) -> dict[str, Any]:
        """One optimizer step; returns its metrics line."""
        began = time.perf_counter()
        lr = learning_rate(self.step, self.batches.total_steps, self.job.optimizer, self.job.schedule)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_mult", 1.0)
        self.wrapped.zero_grad_buffer()
        self.optimizer.zero_grad()
        if self._feed is None:
            self._feed = self._load(self.batches, self.step, self.stop_step, self.job.data_workers)
        loss = _mean(*self._pass(self.batches, self._feed, forward_only=False))
        with self.parallel.cuda_names():
            _, grad_norm, _ = self.optimizer.step()
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            raise UserError(
                f"{self.job.out}: loss {loss}, gradient norm {grad_norm} at step {self.step + 1}, on batch {self.step} "
                f"{self.batches.describe(self.step)}; the last checkpoint is older: lower optimizer.lr or look at "
                "that batch, then start again"
            )
        description = self.batches.describe(self.step)
        self.step += 1
        tokens = self.batches.global_batch * self.batches.sequence_length
        return {
            "step": self.step,
            "loss": loss,
            "lr": lr,
            "grad_norm": float(grad_norm),
            "tokens": self.step * tokens,
            **description,
            "timing": speed(
                time.perf_counter() - began,
                tokens,
                self.job.model.flops_per_token(self.batches.sequence_length),
                self.parallel.world.size,
                self.parallel.device.type == "cuda",
            ),
        }

    def _load(self, batches: BatchSource, start: int, stop: int, workers: int) -> Generator[MicroBatch, None, None]:
        return load(self._share(batches), start, stop, workers, self.parallel.device)

    def _share(self, batches: BatchSource) -> MicroBatches:
        return MicroBatches(batches, self.job.micro_batch, self.parallel.data_rank, self.parallel.data_parallel)

    def _pass(self, batches: BatchSource, feed: Iterator[MicroBatch], forward_only: bool) -> tuple[float, float]:
        """Forward, and backward unless `forward_only`, over the next global batch: summed loss and counted tokens."""
        with self.parallel.cuda_names():
            results = get_forward_backward_func()(
                forward_step_func=_forward_step,
                data_iterator=feed,
                model=[self.wrapped],
                num_microbatches=self._share(batches).per_step,
                seq_length=batches.sequence_length,
                micro_batch_size=self.job.micro_batch,
                forward_only=forward_only,
            )
        total = torch.stack([result["loss and tokens"] for result in results]).sum(dim=0).tolist()
        loss, tokens = self.parallel.sum(*total)
        return loss, tokens

    @torch.no_grad()
    def _validate(self) -> None:
        """Mean loss per token of each validation source, as a metrics line."""
        self.wrapped.eval()
        losses = {}
        for name, batches in self.validation.items():
            feed = self._load(batches, 0, batches.total_steps, workers=0)
            passes = [self._pass(batches, feed, forward_only=True) for _ in range(batches.total_steps)]
            losses[name] = _mean(*map(math.fsum, zip(*passes)))
        self.wrapped.train()
        if self.metrics:
            self.metrics.write({"step": self.step, "validation": losses})

    def _save(self) -> None:
        if self.metrics:
            self.metrics.sync()
        samples = self.step * self.batches.global_batch
        info = CheckpointInfo(
            step=self.step,
            consumed_samples=samples,
            consumed_tokens=samples * self.batches.sequence_length,
            model=self.job.model,
            precision=str(self.parallel.precision).removeprefix("torch."),
            full=True,
            data=self.batches.fingerprint(self.step),
            recipe=self._recipe(),
            versions=checkpoint.versions(),
        )
        checkpoint.save(step_folder(self.checkpoints, self.step), self.network, self.optimizer, info, self.parallel)
        if self.parallel.is_main:
            prune(self.checkpoints, self.job.keep_last, self.job.keep_steps)

    def close(self) -> None:
        if self._feed is not None:
            self._feed.close()  # ends the workers
        if self.metrics:
            self.metrics.close()


def _mean(loss: float, tokens: float) -> float:
    return loss / max(1.0, tokens)


def _starting_point(job: TrainJob, checkpoints: Path) -> Path | None:
    """The checkpoint to begin with: this line's own latest, else the given one, else None."""
    return latest_checkpoint(checkpoints) or job.init_from or job.init_weights


def _forward_step(micro_batches: Iterator[MicroBatch], network: Any) -> tuple[torch.Tensor, Any]:
    """Megatron-core's forward step: the losses of one micro-batch, and the function that sums them up."""
    tokens, mask = next(micro_batches)
    losses = network(tokens[:, :-1], None, None, labels=tokens[:, 1:])

    def summed(losses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        mask_or_all = torch.ones_like(losses) if mask is None else mask
        loss, counted = (losses * mask_or_all).sum(), mask_or_all.sum()
        report = torch.stack([loss.detach(), counted]).double()
        return loss, counted.to(torch.int), {"loss and tokens": report}

    return losses, summed
