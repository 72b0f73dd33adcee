"""Trains one branch of a study's tree. A study's training jobs run it, one process for each GPU:

    python -m curricula.jobs.element RUN pretrain-trunk-100 trunk                            # one process
    torchrun --nproc-per-node 8 -m curricula.jobs.element RUN pretrain-20 full-20            # 8 GPUs of one machine
    srun --ntasks-per-node 8 python -m curricula.jobs.element RUN pretrain-20 full-20        # in a Slurm allocation

Without a study, from Python, with any `BatchSource`:

    train(TrainJob(out=Path("run"), model=PRESETS["tiny"], stop_step=100), batches)

Training begins from the run's own last checkpoint, else from another run's, from given weights, or from scratch. The state
after a step is a function of (seed, model, recipe, batches) alone. So a run killed at any instant and started again ends with
the same numbers, and an arm that branches from the trunk ends as if it had been trained from scratch.
"""

from __future__ import annotations

import functools
import logging
import math
import time
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

import msgspec
import torch

from curricula.curriculum.stream.pretraining import BatchSource, RowSource
from curricula.errors import UsageError, UserError
from curricula.model.checkpoints import checkpoint
from curricula.model.checkpoints.folder import (
    CheckpointInfo,
    check_past,
    check_weights,
    identity,
    latest_checkpoint,
    prune,
    read_info,
    step_folder,
    step_of,
    warn_of_versions,
)
from curricula.model.checkpoints.writer import Saver
from curricula.model.config import TrainJob, learning_rate
from curricula.model.megatron import GPTModel, finalize_model_grads, get_forward_backward_func
from curricula.model.network.build import (
    attention_kernel,
    build_network,
    build_optimizer,
    check_memory,
    choose_backend,
    describe,
    initialize,
    wrap,
)
from curricula.model.runtime.distributed import Parallel, Stragglers, read_ranks, share_compiler, started
from curricula.model.runtime.loading import MicroBatch, MicroBatches, read_micro_batches
from curricula.model.runtime.reporting import Pace, Reports, banner
from curricula.model.runtime.spikes import Guard, Measured, nonfinite_error
from curricula.model.runtime.stopping import Interrupted, Watchdog, listening, lost_peers_named
from curricula.progress import Progress, silent

log = logging.getLogger(__name__)

Report = dict[str, torch.Tensor]


def train(
    job: TrainJob, batches: BatchSource, progress: Progress = silent, validation: Mapping[str, RowSource] | None = None
) -> None:
    """Train until `job.stop_step`, continuing where an earlier call stopped.

    All processes of the job call this together. They can do so again if it returned, or raised `Interrupted`, in all of them;
    after another error they may no longer meet, so end them.

    Raises UserError if a checkpoint or the data cannot be used or the loss is not a number, UsageError if the job
    contradicts itself, `PeerLost` if another process ended, and `Interrupted`, after saving the state, if a signal asked for a
    stop. A process that hangs is ended with status `HANG_EXIT_CODE` of `curricula.model.runtime.stopping`. After an error
    under NCCL, a process group of several processes still exists (see `group_until_end`): leave by `os._exit`.
    """
    watchdog = Watchdog(job.execution.hang_minutes)
    ranks = read_ranks()
    with (
        watchdog.on_duty(),
        lost_peers_named(ranks.rank, ranks.size),
        started(job.execution.tensor_parallel, ranks) as parallel,
        listening() as stop,
    ):
        trainer = Trainer(job, batches, dict(validation or {}), parallel, stop, watchdog)
        try:
            trainer.loop(progress)
        finally:
            trainer.close()


class Trainer:
    """A run's training in this process: network, optimizer, data and reports, brought to the step to continue from.

    A step (`advance`) reads the batch through `runtime/loading.py`, computes the loss and its gradient (`_run`), updates the
    weights, and reports and saves as due.
    """

    def __init__(
        self,
        job: TrainJob,
        batches: BatchSource,
        validation: dict[str, RowSource],
        parallel: Parallel,
        stop: list[str],
        watchdog: Watchdog,
    ) -> None:
        self.job, self.batches, self.validation, self.parallel = job, batches, validation, parallel
        self.stop, self.watchdog = stop, watchdog
        self.stop_step = batches.total_steps if job.stop_step is None else job.stop_step
        self.checkpoints = job.out / "checkpoints"
        self.guard = Guard(job, batches, parallel)
        self._check_sizes()
        self._recipe = self._recipe_of()  # only once: the weights that it names may change on disk
        self.network = network = self._build_network()
        kept_step = self.stop_step if self.stop_step in job.keep_steps else None
        own, self._fills_gap = checkpoint.newest_whole(self.checkpoints, parallel, kept_step, self.guard.has_what_it_needs)
        source = own or job.init_from or job.init_weights
        if source is None:
            initialize(network, job.model, job.seed)
        elif source == job.init_weights:
            check_weights(source, job.model)
            checkpoint.load(source, network, None, parallel)
        self.wrapped = wrap(network, parallel)
        self.optimizer = build_optimizer(self.wrapped, job.config.optimizer, parallel)
        self.step = 0
        if source is not None and source != job.init_weights:
            self._resume(source, is_checked=source == own)
        self._validated_to = 0 if own else self.step  # at a branch point, by the run before this one
        self._saved = own
        self.saver = Saver(network, self.optimizer, parallel)
        self._saved_at = time.monotonic()
        self.stragglers = Stragglers(parallel)
        # Not a method: this object would be part of a reference cycle, and live on with its weights until garbage collection.
        self.wrapped.config.finalize_model_grads_func = functools.partial(_finalize_gradients, self.stragglers)
        self._feed = self._read(batches, self.step, self.stop_step, job.execution.data_workers)
        self.pace = Pace(
            batches.global_batch * batches.sequence_length,
            job.model.flops_per_token(batches.sequence_length),
            parallel.ranks.size,
            1e12 * job.execution.peak_tflops if parallel.device.type == "cuda" else None,
        )
        self.reports: Reports | None = None
        if parallel.is_main:
            self.reports = Reports(job, self.step, self.stop_step, is_on_record=self._fills_gap)
            log.info("%s", banner(job, batches, parallel, self.step, self.stop_step, source, checkpoint.versions()))

    def _resume(self, source: Path, is_checked: bool) -> None:
        """Take over the whole state of the checkpoint `source`: weights, optimizer, step and the guard's window."""
        info = read_info(source)
        check_past(source, info, self.job.model, self._recipe, self.batches)
        if self.parallel.is_main:
            warn_of_versions(source, info, checkpoint.versions())
        checkpoint.load(source, self.network, self.optimizer, self.parallel, is_checked)
        self.step = info.step
        self.guard.resume(info)

    def _build_network(self) -> GPTModel:
        job, batches, parallel = self.job, self.batches, self.parallel
        backend = choose_backend(job.execution.engine, parallel, job.packed)
        if parallel.device.type == "cuda":
            share_compiler(job.compiled)
        sequences = min(job.config.micro_batch, batches.global_batch // parallel.data_parallel)
        check_memory(job.model, parallel, backend, sequences, batches.sequence_length)
        if parallel.is_main:
            log.info("%s", describe(backend, parallel))
        network = build_network(job.model, parallel, backend)
        if parallel.is_main:
            log.info("attention: %s", attention_kernel(network))
        return network

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

    def _recipe_of(self) -> dict[str, Any]:
        """What determines the state besides model and data, as checkpoints store it."""
        job, guard = self.job, self.job.config.spike_guard
        return {
            "seed": job.seed,
            "init_weights": None if job.init_weights is None else identity(job.init_weights),
            "optimizer": msgspec.to_builtins(job.config.optimizer),
            "schedule": msgspec.to_builtins(job.config.schedule),
            "total_steps": self.batches.total_steps,
            "global_batch": self.batches.global_batch,
            "sequence_length": self.batches.sequence_length,
            **({"spike_guard": msgspec.to_builtins(guard)} if guard else {}),
        }

    def loop(self, progress: Progress) -> None:
        """Take the steps up to `stop_step`; save and validate at the end."""
        while self.step < self.stop_step:
            self.advance(progress)
        # A run that branched off at the very end has nothing to train and no checkpoint. Only the main process looks at the
        # disk: others may see another state of it.
        if self.parallel.any(self.parallel.is_main and latest_checkpoint(self.checkpoints) is None):
            self._save()
            self._finish_save()
        self._prune()  # the last save's, which a kill may have cut short
        # After the save, so that a failed validation costs no training; a resume makes up for a missed one.
        self._validate_if_due()

    def advance(self, progress: Progress) -> None:
        """Take one step: validate before it if due, then report and save."""
        self._validate_if_due()
        row, (stop, writing, overdue, comparing) = self._train_step()
        if self.reports:
            self.reports.step(row)
            slow = {"straggler": self.stragglers.named} if self.stragglers.named else {}
            progress(self.step, self.stop_step, loss=row["loss"], tokens=row["tokens"], **row["timing"], **slow)
        if comparing:
            self.stragglers.compare()
        with self.pace.waiting("save"):
            self._save_if_due(stop, writing, overdue)

    def _train_step(self) -> tuple[dict[str, Any], list[bool]]:
        """Take one optimizer step. Returns its metrics, and what the processes `_agree` on at its end."""
        began = time.perf_counter()
        config = self.job.config
        lr = learning_rate(self.step, self.batches.total_steps, config.optimizer, config.schedule)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.wrapped.zero_grad_buffer()
        self.optimizer.zero_grad()
        self.stragglers.step_begins()
        reports = self._run(self.batches, _timed(self._feed, self.pace), forward_only=False)
        loss = _mean(*self._totals(reports))
        if not math.isfinite(loss):
            self._stop_nonfinite(f"loss {loss}", self._bad_rows(reports))
        self.stragglers.step_ended()
        grad_norm, skipped = self._update(loss)
        description = self.batches.describe(self.step)
        self.step += 1
        rewound = self._rewind_if_due()
        agreed = self._agree()  # on several GPUs this waits for the update of the weights, which was only launched
        seconds = time.perf_counter() - began
        self.watchdog.step_ended(self.step, seconds)
        row = {
            "step": self.step,
            "loss": loss,
            "lr": lr,
            "grad_norm": grad_norm,
            "tokens": self.step * self.batches.global_batch * self.batches.sequence_length,
            **description,
            **skipped,
            **rewound,
            "timing": self.pace.timing(seconds, self.stop_step - self.step) | self.stragglers.take_statistics(),
        }
        return row, agreed

    def _run(self, batches: RowSource, feed: Iterator[MicroBatch], forward_only: bool) -> list[Report]:
        """Let Megatron-core's schedule run forward and, unless `forward_only`, backward over this rank's micro-batches of the
        next global batch. Returns what `_loss_step` reports about each."""
        with self.parallel.cuda_names():
            return get_forward_backward_func()(
                forward_step_func=_loss_step,
                data_iterator=feed,
                model=[self.wrapped],
                num_microbatches=self._share(batches).per_step,
                seq_length=batches.sequence_length,
                micro_batch_size=self.job.config.micro_batch,
                forward_only=forward_only,
            )

    def _totals(self, reports: list[Report]) -> list[float]:
        """The summed loss of the global batch, and the number of its tokens that count."""
        return self.parallel.sum(*torch.stack([report["loss and tokens"] for report in reports]).sum(dim=0).tolist())

    def _bad_rows(self, reports: list[Report]) -> list[int]:
        """The rows of the global batch whose loss is not a finite number."""
        own = torch.cat([report["bad rows"] for report in reports]).tolist()
        flags = [0.0] * self.batches.global_batch
        first = self.parallel.data_rank * len(own)
        flags[first : first + len(own)] = own
        return [row for row, flag in enumerate(self.parallel.sum(*flags)) if flag]

    def _share(self, batches: RowSource) -> MicroBatches:
        """This data-parallel rank's part of the batches."""
        return MicroBatches(batches, self.job.config.micro_batch, self.parallel.data_rank, self.parallel.data_parallel)

    def _read(self, batches: RowSource, start: int, stop: int, workers: int) -> Generator[MicroBatch, None, None]:
        return read_micro_batches(self._share(batches), start, stop, workers, self.parallel.device)

    def _update(self, loss: float) -> tuple[float, dict[str, Any]]:
        """Update the weights unless the step is a spike. Returns the gradient norm, and the metrics' entry about a skip."""
        with self.parallel.cuda_names():
            if self.guard.is_on:  # it needs the norm before the update
                self.optimizer.prepare_grads()
                grad_norm = self.optimizer.get_grad_norm()
            else:
                _, grad_norm, _ = self.optimizer.step()
        measured = Measured(loss, float(grad_norm))
        if not math.isfinite(measured.grad_norm):
            self._stop_nonfinite(f"loss {loss:.6g}, gradient norm {measured.grad_norm}", [])
        if not self.guard.is_on:
            return measured.grad_norm, {}
        skipped = self.guard.judge(self.step, measured)
        if not skipped:
            with self.parallel.cuda_names():
                self.optimizer.step()
        return measured.grad_norm, skipped

    def _rewind_if_due(self) -> dict[str, Any]:
        """Go back to an earlier state if spikes do not end. Returns the metrics' entry about it.

        Steps, data and learning rates continue as if nothing had happened.
        """
        earlier = self.guard.window.rewinds_to(self.step)
        if earlier is None:
            return {}
        self._finish_save()  # it may be of the step to go back to
        if self.parallel.is_main:
            log.warning(
                "%d steps in a row are spikes: step %d continues with the weights and the optimizer of step %d",
                self.guard.window.skipped_in_a_row, self.step + 1, earlier,
            )  # fmt: skip
        self.watchdog.expect("reading a checkpoint")
        folder = self.guard.checkpoint_of(earlier)
        if problem := checkpoint.problem_of(folder, self.parallel):
            log.error("%s", problem)
            raise self.guard.lost(folder, self.step)
        checkpoint.load(folder, self.network, self.optimizer, self.parallel, is_checked=True)
        self.guard.window.begin(self.step)
        batch = self.batches.global_batch
        return {"rewound": {"to_step": earlier, "samples": [earlier * batch, self.step * batch]}}

    def _stop_nonfinite(self, what: str, bad_rows: list[int]) -> NoReturn:
        """Stop all processes together before anything of this step is saved; earlier checkpoints are kept."""
        self._finish_save()
        raise nonfinite_error(self.job.out, what, self.batches, self.step, bad_rows, self.parallel.is_main)

    def _validate_if_due(self) -> None:
        """Report the mean loss per token of each validation source, once at each step where that is due."""
        interval = self.job.config.validation_interval_steps
        due = self.step in (self.stop_step, *self.job.validate_steps)
        due = due or bool(interval and self.step > self._validated_to and self.step % interval == 0)
        if not (self.validation and due) or self._fills_gap:
            return
        if self.parallel.any(self.reports is not None and self.step in self.reports.validated):
            return
        losses = {name: self._mean_loss(batches) for name, batches in self.validation.items()}
        self.watchdog.step_begins(self.step + 1)
        for name, loss in losses.items():
            if not math.isfinite(loss):
                raise UserError(
                    f"{self.job.out}: validation loss {loss} on {name} after step {self.step}; delete the checkpoint of this "
                    "step, if there is one, and start again, or lower optimizer.lr"
                )
        if self.reports:
            self.reports.validation(self.step, losses)

    @torch.no_grad()
    def _mean_loss(self, batches: RowSource) -> float:
        feed, totals = self._read(batches, 0, batches.total_steps, workers=0), []
        self.wrapped.eval()
        # After a batch outside fp8, Transformer Engine's layers give out no history of maxima that could be saved.
        may_stop = self._saved == step_folder(self.checkpoints, self.step) or self.job.execution.engine.fp8 != "delayed"
        # In bfloat16 even if training computes in fp8: otherwise validation would enter the layers' history of maxima.
        with mock.patch.object(self.wrapped.config, "fp8", None):
            for _ in range(batches.total_steps):
                if may_stop and self.parallel.any(bool(self.stop)):
                    self._stop_early()
                self.watchdog.expect("a validation batch")  # before it: the first one compiles
                totals.append(self._totals(self._run(batches, feed, forward_only=True)))
        self.wrapped.train()
        return _mean(*map(math.fsum, zip(*totals)))

    def _agree(self) -> list[bool]:
        """Whether, in any process, a signal has asked for a stop, files of the last save are still being written, that save
        began longer ago than `save_interval_minutes`, and `Stragglers.compare` is due."""
        minutes = self.job.config.save_interval_minutes
        return self.parallel.any_of(
            bool(self.stop),
            self.saver.is_writing,
            minutes is not None and time.monotonic() - self._saved_at > 60 * minutes,
            self.stragglers.is_due,
        )

    def _save_if_due(self, stop: bool, writing: bool, overdue: bool) -> None:
        """Finish a save whose files are written, begin one that is due, and stop if asked to. Called between two steps."""
        config, last = self.job.config, self.step == self.stop_step
        if not writing:
            self._finish_save()
        regular = self.step % config.save_interval_steps == 0 or self.step in self.job.keep_steps
        if last or overdue or regular or self.guard.window.is_save_due(self.step):
            self._save()
        if last:
            self._finish_save()
        elif stop:
            self._stop_early()

    def _stop_early(self) -> NoReturn:
        """Save the state, unless it is saved, and stop. A validation that this cuts short is made up for after the resume."""
        if self._saved != step_folder(self.checkpoints, self.step):
            self._save()
        self._finish_save()
        raise Interrupted(self.step, self.stop_step, self.stop[-1] if self.stop else "a signal to another process")

    def _save(self) -> None:
        self._finish_save()  # an earlier one
        if self.reports:
            self.reports.sync()
        samples = self.step * self.batches.global_batch
        info = CheckpointInfo(
            step=self.step,
            consumed_samples=samples,
            consumed_tokens=samples * self.batches.sequence_length,
            model=self.job.model,
            precision=str(self.parallel.precision).removeprefix("torch."),
            full=True,
            data=self.batches.fingerprint(self.step),
            recipe=self._recipe,
            versions=checkpoint.versions(),
            tensor_parallel=self.parallel.tensor_parallel,
            **self.guard.state(),
        )
        self._saved = step_folder(self.checkpoints, self.step)
        self.saver.start(self._saved, info)
        self._saved_at = time.monotonic()

    def _finish_save(self) -> None:
        """Wait for the save that was begun, if any, and delete the checkpoints that it replaces."""
        if not self.saver.is_unfinished:
            return
        self.watchdog.expect("writing a checkpoint")
        self.saver.finish()
        self._prune()
        self.watchdog.step_begins(self.step + 1)

    def _prune(self) -> None:
        if self.parallel.is_main:
            fills_gap = self._fills_gap and self._saved and step_of(self._saved) < self.stop_step
            in_gap = self._saved if fills_gap else None
            prune(self.checkpoints, self.job.config.keep_last, self.job.keep_steps, self.guard.needed_by, in_gap)

    def close(self) -> None:
        self.saver.abandon()
        self._feed.close()  # ends the workers
        if self.reports:
            self.reports.close()


def _mean(loss: float, tokens: float) -> float:
    return loss / max(1.0, tokens)


def _loss_step(micro_batches: Iterator[MicroBatch], network: Any) -> tuple[torch.Tensor, Any]:
    """Megatron-core's forward step. Returns the loss of each token of the next micro-batch, [n, S], and a function to sum them.

    The network computes the losses with `linear_cross_entropy` in `network/linear_cross_entropy.py`.
    """
    tokens, mask, borders = next(micro_batches)
    losses = network(tokens[:, :-1], borders, labels=tokens[:, 1:])

    def summed(losses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, Report]:
        weights = torch.ones_like(losses) if mask is None else mask
        weighted = losses * weights
        loss, counted = weighted.sum(), weights.sum()
        report = {
            "loss and tokens": torch.stack([loss.detach(), counted]).double(),
            "bad rows": (~weighted.detach().sum(dim=1).isfinite()).double(),
        }
        return loss, counted.to(torch.int), report

    return losses, summed


def _finalize_gradients(stragglers: Stragglers, *args: Any, **kwargs: Any) -> None:
    """Called last by the schedule: end this process's own part of the step, then wait for other processes' gradients."""
    stragglers.part_ends()
    finalize_model_grads(*args, **kwargs)


def _timed(feed: Iterator[MicroBatch], pace: Pace) -> Iterator[MicroBatch]:
    while True:
        with pace.waiting("data"):
            micro_batch = next(feed)
        yield micro_batch
