"""Trains one line of a study: from its own last checkpoint, from another line's, from given weights, or from scratch.

    train(TrainJob(out=..., model=PRESETS["tiny"], stop_step=100), batches)

The state after a step is a function of (seed, model, recipe, batches) alone. So a run killed at any instant and started
again ends with the same numbers, and an arm that branches from the trunk ends as if it had been trained from scratch.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import math
import time
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from curricula.curriculum.stream.batches import BatchSource
from curricula.errors import UsageError
from curricula.model.checkpoints import checkpoint
from curricula.model.checkpoints.folder import CheckpointInfo, latest_checkpoint, prune, read_info, step_folder
from curricula.model.checkpoints.lineage import check_past, check_weights, identity
from curricula.model.config import EngineConfig, ModelConfig, OptimizerConfig, ScheduleConfig
from curricula.model.forward_backward import ForwardBackward
from curricula.model.network.backend import choose_backend
from curricula.model.network.build import build_network, build_optimizer, check_memory, initialize, wrap
from curricula.model.runtime.banner import banner, step_line
from curricula.model.runtime.distributed import Parallel, started
from curricula.model.runtime.loading import MicroBatch, load
from curricula.model.runtime.metrics import MetricsFile, Pace, Stopwatch
from curricula.model.runtime.nonfinite import refusal
from curricula.model.runtime.signals import Interrupted, PeerLost, StopRequest, listening
from curricula.model.runtime.tracking import Tracking, curves, open_trackers
from curricula.model.runtime.watchdog import HangLimits, Watchdog
from curricula.model.schedule import learning_rate
from curricula.progress import Progress, silent
from curricula.settings import Settings

log = logging.getLogger(__name__)

LOG_INTERVAL_S = 30.0  # between two steps' lines in the log


class TrainJob(Settings, frozen=True):
    """One call of `train`: what to train, from where to where, and what to keep."""

    out: Path
    """Folder of the line: gets checkpoints/, metrics.jsonl and tensorboard/."""
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
    packed: bool = False
    """Whether rows hold several documents that must not see each other, which not every backend can do."""
    data_workers: int = 0
    """Processes that read ahead for this one; with none it reads its batches itself."""
    save_interval_steps: int = 500
    save_interval_minutes: float | None = None
    """Save also when so much time went by since the last save: what a pre-emption without a warning can cost at most."""
    keep_steps: tuple[int, ...] = ()
    """Steps to save at and never delete: where arms branch off."""
    keep_last: int = 2
    """How many of the newest checkpoints to keep besides. With one, a damaged checkpoint has none to fall back to."""
    validation_interval_steps: int | None = None
    """Measure the validation losses so often, and at the end; by default at the end alone."""
    peak_tflops: float | None = None
    """Of one device, for the model FLOP utilisation; None where it means nothing."""
    tracking: Tracking = Tracking(tensorboard=False)
    hang: HangLimits = HangLimits()

    def check(self) -> None:
        for name in ("micro_batch", "save_interval_steps", "keep_last"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("save_interval_minutes", "validation_interval_steps", "peak_tflops"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be positive, or left out")


def train(
    job: TrainJob,
    batches: BatchSource,
    progress: Progress = silent,
    validation: Mapping[str, BatchSource] | None = None,
) -> None:
    """Train until `job.stop_step`, going on from wherever an earlier call was stopped. All processes call it together.

    Raises UserError when a checkpoint or the data cannot be used or the loss is not a number, UsageError when the job
    contradicts itself, `PeerLost` when another process ended, and `Interrupted` when a signal asked for a stop; the state
    is then saved. A process that hangs is ended, with status `curricula.model.runtime.watchdog.EXIT_CODE`.
    """
    watchdog = Watchdog(job.hang)
    with watchdog.on_duty(), started(job.tensor_parallel) as parallel, listening() as stop, _peers_named(parallel):
        trainer = Trainer(job, batches, dict(validation or {}), parallel, stop, watchdog)
        try:
            with _settled_heap():
                trainer.loop(progress)
        finally:
            trainer.close()


@contextlib.contextmanager
def _settled_heap() -> Iterator[None]:
    """Let Python's collector skip what lives as long as the run: Megatron-core calls it at every save, for 0.2 s each time."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextlib.contextmanager
def _peers_named(parallel: Parallel) -> Iterator[None]:
    """Turn what torch raises when a peer is gone into a sentence."""
    try:
        yield
    except RuntimeError as error:  # torch.distributed's errors all are
        text = str(error)
        if parallel.ranks.size == 1 or not any(sign in text for sign in ("peer", "Connection", "NCCL", "Timed out")):
            raise
        raise PeerLost(
            f"rank {parallel.ranks.rank}: another process of this job ended or stopped answering "
            f"({text.strip().splitlines()[0][:200]}); see its log, then start the job again to go on from its last checkpoint"
        ) from error


class Trainer:
    """One line's training in this process: the pieces, put together and brought to the step to go on from."""

    def __init__(
        self,
        job: TrainJob,
        batches: BatchSource,
        validation: dict[str, BatchSource],
        parallel: Parallel,
        stop: StopRequest,
        watchdog: Watchdog,
    ) -> None:
        self.job, self.batches, self.validation, self.parallel = job, batches, validation, parallel
        self.stop, self.watchdog = stop, watchdog
        self.stop_step = batches.total_steps if job.stop_step is None else job.stop_step
        self.checkpoints = job.out / "checkpoints"
        self._check_sizes()
        at_once = min(job.micro_batch, batches.global_batch // parallel.data_parallel)
        backend = choose_backend(job.engine, parallel, job.packed)
        check_memory(job.model, parallel, backend, at_once, batches.sequence_length)
        network = build_network(job.model, parallel, backend)
        own, self._fills_gap = checkpoint.newest_whole(
            self.checkpoints, parallel, self.stop_step if self.stop_step in job.keep_steps else None
        )
        source = own or job.init_from or job.init_weights
        if source is None:
            initialize(network, job.model, job.seed)
        elif source == job.init_weights:
            check_weights(source, read_info(source), job.model)
            checkpoint.load(source, network, None, parallel)
        self.wrapped = wrap(network, parallel)
        self.optimizer = build_optimizer(self.wrapped, job.optimizer, parallel)
        self.step = 0
        if source is not None and source != job.init_weights:
            info = read_info(source)
            check_past(source, info, job.model, self._recipe(), batches)
            checkpoint.load(source, network, self.optimizer, parallel, is_checked=source == own)
            self.step = info.step
        self.saver = checkpoint.Saver(network, self.optimizer, parallel)
        self.save_stall = Stopwatch()
        self._saved_at = time.monotonic()
        self.forward_backward = ForwardBackward(self.wrapped, parallel, job.micro_batch)
        self._feed: Generator[MicroBatch, None, None] | None = None  # opened at the first step
        self.pace = self._pace()
        records = parallel.is_main and not self._fills_gap  # these steps are on record already
        self.metrics = MetricsFile(job.out / "metrics.jsonl", self.step) if records else None
        settings = msgspec.to_builtins(job, enc_hook=str)
        self.trackers = open_trackers(job.tracking, job.out, self.step, settings) if records else []
        self._logged_at = 0.0
        if parallel.is_main:
            log.info("%s", banner(job, batches, parallel, self.step, self.stop_step, source))

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
            "sequence_length": self.batches.sequence_length,
        }

    def _pace(self) -> Pace:
        peak = self.job.peak_tflops if self.parallel.device.type == "cuda" else None
        return Pace(
            self.batches.global_batch * self.batches.sequence_length,
            self.job.model.flops_per_token(self.batches.sequence_length),
            self.parallel.ranks.size,
            None if peak is None else peak * 1e12,
        )

    def loop(self, progress: Progress) -> None:
        while self.step < self.stop_step:
            self.advance(progress)
        if latest_checkpoint(self.checkpoints) is None:  # branched off at the very end: nothing was left to train
            self._save()
            self._finish_save()
        # After the save, so that a validation that fails costs no training; a resume makes up for one that was missed.
        self._validate_if_due()

    def advance(self, progress: Progress) -> None:
        """One step with all that belongs to it."""
        self._validate_if_due()
        row = self._train_step()
        self._record(row, progress)
        with self.save_stall:
            self._save_if_due()

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
        loss = self.forward_backward.train(self.batches, self._feed)
        if not math.isfinite(loss):
            self._refuse(f"loss {loss}", self.forward_backward.bad_rows(self.batches, self.step))
        with self.parallel.cuda_names():
            _, grad_norm, _ = self.optimizer.step()
        if not math.isfinite(grad_norm):
            self._refuse(f"loss {loss:.6g}, gradient norm {grad_norm}", [])
        description = self.batches.describe(self.step)
        self.step += 1
        seconds = time.perf_counter() - began
        self.watchdog.step_ended(self.step, seconds)
        return {
            "step": self.step,
            "loss": loss,
            "lr": lr,
            "grad_norm": float(grad_norm),
            "tokens": self.step * self.batches.global_batch * self.batches.sequence_length,
            **description,
            "timing": self.pace.timing(
                seconds, self.forward_backward.data_wait.take(), self.save_stall.take(), self.stop_step - self.step
            ),
        }

    def _refuse(self, what: str, bad_rows: list[int]) -> None:
        """Stop, all processes together, before anything of this step is saved; what was saved before is kept."""
        if self.saver.is_unfinished:
            self._finish_save()
        raise refusal(self.job.out, what, self.batches, self.step, bad_rows, self.parallel.is_main)

    def _load(self, batches: BatchSource, start: int, stop: int, workers: int) -> Generator[MicroBatch, None, None]:
        return load(self.forward_backward.share(batches), start, stop, workers, self.parallel.device)

    def _record(self, row: dict[str, Any], progress: Progress) -> None:
        if not self.parallel.is_main:
            return
        if self.metrics:
            self.metrics.write(row)
        for tracker in self.trackers:
            tracker.log(row["step"], curves(row))
        progress(self.step, self.stop_step, loss=row["loss"], tokens=row["tokens"], **row["timing"])
        now = time.monotonic()
        if now - self._logged_at > LOG_INTERVAL_S or self.step == self.stop_step:
            self._logged_at = now
            log.info("%s", step_line(row, self.stop_step))

    def _validate_if_due(self) -> None:
        """Mean loss per token of each validation source, as a metrics line, once for each step where it is due."""
        interval = self.job.validation_interval_steps
        due = self.step == self.stop_step or bool(interval and self.step and self.step % interval == 0)
        if not (self.validation and due) or self._fills_gap:
            return
        if self.parallel.any(self.metrics is not None and self.metrics.is_validated(self.step)):
            return
        losses = {}
        for name, batches in self.validation.items():
            feed = self._load(batches, 0, batches.total_steps, workers=0)
            losses[name] = self.forward_backward.evaluate(
                batches, feed, lambda: self.watchdog.expect("a validation batch")
            )
        self.forward_backward.data_wait.take()  # it was none of a step's
        self.watchdog.step_begins(self.step + 1)
        if self.metrics:
            row = {"step": self.step, "validation": losses}
            self.metrics.write(row)
            for tracker in self.trackers:
                tracker.log(self.step, curves(row))
            log.info("validation after step %d: %s", self.step, ", ".join(f"{k} {v:.4f}" for k, v in losses.items()))

    def _save_if_due(self) -> None:
        """Between two steps: finish the save that was written meanwhile, begin one that is due, stop if asked to."""
        job, last = self.job, self.step == self.stop_step
        minutes = job.save_interval_minutes
        stop, writing, overdue = self.parallel.any_of(
            bool(self.stop),
            self.saver.is_writing,
            minutes is not None and time.monotonic() - self._saved_at > 60 * minutes,
        )
        if self.saver.is_unfinished and not writing:
            self._finish_save()
        interrupted = stop and not last
        if last or interrupted or overdue or self.step % job.save_interval_steps == 0 or self.step in job.keep_steps:
            self._save()
        if last or interrupted:
            self._finish_save()
        if interrupted:
            raise Interrupted(self.step, self.stop_step, self.stop.signal_name or "a signal to another process")

    def _save(self) -> None:
        """Begin to save; what was begun before is finished first."""
        if self.saver.is_unfinished:
            self._finish_save()
        if self.metrics:
            self.metrics.sync()
        for tracker in self.trackers:
            tracker.flush()
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
            tensor_parallel=self.parallel.tensor_parallel,
        )
        self.saver.start(step_folder(self.checkpoints, self.step), info)
        self._saved_at = time.monotonic()

    def _finish_save(self) -> None:
        """Wait for the save that was begun, and delete the checkpoints that are not to be kept beside it."""
        self.watchdog.expect("the writing of a checkpoint")
        self.saver.finish()
        # While a gap is filled all that was saved on the way lies before the latest, and would go at once.
        if self.parallel.is_main and not (self._fills_gap and self.step < self.stop_step):
            prune(self.checkpoints, self.job.keep_last, self.job.keep_steps)
        self.watchdog.step_begins(self.step + 1)

    def close(self) -> None:
        self.saver.abandon()
        if self._feed is not None:
            self._feed.close()  # ends the workers
        if self.metrics:
            self.metrics.close()
        for tracker in self.trackers:
            tracker.close()
