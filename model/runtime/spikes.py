"""Spikes: steps whose loss or gradient norm is far above those of the steps before, or not a number at all.

A run with a spike guard skips the update of such a step, and goes back to an earlier checkpoint if spikes do not end. A loss or
gradient that is not a number ends any run: the error names the samples, and nonfinite.json lists them all. Imports no torch.
"""

from __future__ import annotations

import logging
import math
from collections import Counter, deque
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from curricula.durable import write_json
from curricula.errors import StorageError, UserError
from curricula.model.checkpoints.folder import CheckpointInfo, read_info, step_folder, step_of
from curricula.model.config import SpikeGuard, TrainJob, warmup_steps

if TYPE_CHECKING:
    from curricula.curriculum.stream.pretraining import BatchSource
    from curricula.model.runtime.distributed import Parallel

log = logging.getLogger(__name__)

FLOOR = 0.01
"""Smallest standard deviation assumed, as a share of the mean: after very calm steps, a small rise is no spike."""
NAMED_SAMPLES = 8
"""Samples that a message about a batch names; it only counts the others."""


class Measured(NamedTuple):
    loss: float
    grad_norm: float


class SpikeWindow:
    """The latest steps of this phase, with which the next is compared. Its answers depend only on earlier steps, and
    checkpoints store those.

    It works like OLMo-core's `SkipStepOptimizer` (2 OLMo 2 Furious, 2025), with three differences. Steps of other phases of the
    curriculum are not compared, since other text has another loss. A spike enters the window only up to its limit, so that it
    does not hide the next one, while a lasting change of level is accepted in the end. The deviation has a floor (`FLOOR`).

    If the guard has a rewind, skipped steps that do not end lead back to a checkpoint at a multiple of `interval_steps`, at
    least half a window before the first of them: the weights may have gone astray before it showed. The checkpoint belongs to
    the same phase, and not to a step that was undone.
    """

    def __init__(self, guard: SpikeGuard, info: CheckpointInfo | None = None) -> None:
        """The window of a run that begins, or that continues from the checkpoint that `info` describes."""
        self._guard = guard
        self.steps = deque((Measured(*step) for step in info.recent) if info else (), maxlen=guard.window)
        self.begins = info.guarded_from if info else 0
        self.skipped_in_a_row = info.skipped_in_a_row if info else 0

    def begin(self, step: int) -> None:
        """Forget all earlier steps: those after `step` belong to another phase, or begin with other weights."""
        self.steps.clear()
        self.begins, self.skipped_in_a_row = step, 0

    def limits(self) -> Measured | None:
        """The largest values that are no spike; None until the window is half full."""
        if len(self.steps) < self._guard.window / 2:
            return None
        return Measured(*(self._limit(values) for values in zip(*self.steps)))

    def _limit(self, values: tuple[float, ...]) -> float:
        mean = math.fsum(values) / len(values)
        deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))
        return mean + self._guard.sigmas * max(deviation, FLOOR * mean)

    def add(self, step: Measured) -> None:
        limits = self.limits()
        self.steps.append(step if limits is None else Measured(*map(min, step, limits)))

    def count(self, is_skipped: bool) -> None:
        """Record whether the step just added was skipped."""
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if is_skipped else 0

    def rewinds_to(self, step: int) -> int | None:
        """The step whose checkpoint replaces the state after `step`; None if the run simply continues."""
        rewind = self._guard.rewind
        if rewind is None or self.skipped_in_a_row < rewind.after:
            return None
        return max((needed for needed in self.needed_steps(step) if needed <= self._last_good(step)), default=None)

    def needed_steps(self, step: int) -> set[int]:
        """The steps up to `step` whose checkpoints a run with a rewind may have to go back to, if it continues from `step`."""
        assert self._guard.rewind
        interval, good = self._guard.rewind.interval_steps, self._last_good(step)
        first = max(self.begins + 1, good - good % interval)
        return set(range(-(-first // interval) * interval, step + 1, interval))

    def is_save_due(self, step: int) -> bool:
        """Whether a rewind could lead back to this step."""
        rewind = self._guard.rewind
        return rewind is not None and step % rewind.interval_steps == 0

    def _last_good(self, step: int) -> int:
        return step - self.skipped_in_a_row - self._guard.window // 2


class Guard:
    """The spike guard of a run: it judges each step, and knows the checkpoints that the run can go back to."""

    def __init__(self, job: TrainJob, batches: BatchSource, parallel: Parallel) -> None:
        """Without settings in `job` the guard is off, and the run never goes back."""
        self._job, self._batches, self._parallel = job, batches, parallel
        self._checkpoints = job.out / "checkpoints"
        self.is_on = job.config.spike_guard is not None
        self._settings = job.config.spike_guard or SpikeGuard()
        self.window = SpikeWindow(self._settings)

    def resume(self, info: CheckpointInfo) -> None:
        self.window = SpikeWindow(self._settings, info)

    def state(self) -> dict[str, Any]:
        """What checkpoints store about the guard: fields of `CheckpointInfo`."""
        window = self.window
        return {"recent": tuple(window.steps), "guarded_from": window.begins, "skipped_in_a_row": window.skipped_in_a_row}

    def judge(self, step: int, measured: Measured) -> dict[str, Any]:
        """Judge the step after `step`. Returns the metrics' entry if all processes skip its update, else an empty one."""
        batches, window = self._batches, self.window
        if step and batches.describe(step) != batches.describe(step - 1):
            window.begin(step)
        # During the warm-up gradient norms rise and fall.
        is_warm = step >= warmup_steps(batches.total_steps, self._job.config.schedule)
        limits = window.limits() if is_warm else None
        window.add(measured)
        is_spike = limits is not None and (measured.loss > limits.loss or measured.grad_norm > limits.grad_norm)
        # The first rank decides for all, since its window is the one in checkpoints.
        is_skipped = self._parallel.any(self._parallel.is_main and is_spike)
        window.count(is_skipped)
        if not is_skipped:
            return {}
        assert limits is not None
        first = step * batches.global_batch
        end = first + batches.global_batch
        if self._parallel.is_main:
            log.warning(
                "step %d is a spike, and its update is skipped: loss %.4g (limit %.4g), gradient norm %.3g (limit %.3g); "
                "it read %s",
                step + 1, measured.loss, limits.loss, measured.grad_norm, limits.grad_norm,
                named_samples(batches.sample_ids(first, end)),
            )  # fmt: skip
        return {"skipped": {"samples": [first, end], "loss_limit": limits.loss, "grad_norm_limit": limits.grad_norm}}

    def checkpoint_of(self, step: int) -> Path:
        """The place of an earlier step's checkpoint: in this run's folder, or in that of a run that it branched from."""
        branch_points = filter(None, (self._job.init_from, *self._job.earlier_branch_points))
        holders = [self._checkpoints, *(point.parent for point in branch_points if step <= step_of(point))]
        return step_folder(holders[-1], step)

    def lost(self, folder: Path, step: int) -> UserError:
        """The error to raise when the checkpoint to go back to from `step` is missing or damaged."""
        if folder.parent == self._checkpoints:
            remedy = f"write the name of an older one into {folder.with_name('latest')} and start again"
        else:
            remedy = f"delete {folder.parent} and {self._checkpoints} and train both again"
        return UserError(f"{folder}: missing or damaged, and step {step} has to go back to it; {remedy}")

    def needed_by(self, folder: Path) -> set[int]:
        """The steps to which a rewind could return after resuming from this checkpoint."""
        if self._settings.rewind is None:
            return set()
        try:
            info = read_info(folder)
        except StorageError:  # which says nothing about the checkpoint
            raise
        except UserError:  # it is damaged, so the check of all bytes will keep the run from continuing there
            return set()
        return SpikeWindow(self._settings, info).needed_steps(info.step)

    def has_what_it_needs(self, folder: Path) -> bool:
        """Whether every checkpoint that a rewind could need, after resuming from this one, still exists."""
        return all(self.checkpoint_of(step).is_dir() for step in self.needed_by(folder))


def nonfinite_error(out: Path, what: str, batches: BatchSource, step: int, bad_rows: Sequence[int], is_main: bool) -> UserError:
    """The error to raise if global batch `step` gave `what`, such as "loss nan". The losses of its `bad_rows` are not finite.

    The main process also writes `out`/nonfinite.json.
    """
    first = step * batches.global_batch
    batch = batches.sample_ids(first, first + batches.global_batch)
    bad = [batch[row] for row in bad_rows]
    if is_main:
        record = {"step": step + 1, "what": what, "samples": _as_records(bad), "whole_batch": _as_records(batch)}
        write_json(out / "nonfinite.json", record)
    culprits = f"; caused by {named_samples(bad)}" if bad else ""
    return UserError(
        f"{out}: {what} at step {step + 1}, on batch {step} {batches.describe(step)}{culprits}; all samples of the batch are "
        "in nonfinite.json, and the last checkpoint precedes it: look at them or lower optimizer.lr, then start again"
    )


def _as_records(samples: Sequence[tuple[str, int, int]]) -> list[dict[str, Any]]:
    return [{"source": source, "epoch": epoch, "sample": number} for source, epoch, number in samples]


def named_samples(samples: Sequence[tuple[str, int, int]]) -> str:
    """Name the first few (source, epoch, number) and count the others: "web 12, web 90 and 3 more (2 web, 1 stories)"."""
    text = ", ".join(f"{source} {number}" for source, _, number in samples[:NAMED_SAMPLES])
    rest = Counter(source for source, _, _ in samples[NAMED_SAMPLES:])
    if rest:
        text += f" and {rest.total()} more ({', '.join(f'{count} {source}' for source, count in rest.items())})"
    return text
