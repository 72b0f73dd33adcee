"""What a training process says: at its start what it resolved from study, machine and checkpoints; later how it does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from curricula.curriculum.stream.batches import BatchSource
from curricula.model.checkpoints.checkpoint import versions
from curricula.model.runtime.distributed import Parallel
from curricula.model.schedule import decay_start, warmup_steps

if TYPE_CHECKING:
    from curricula.model.train import TrainJob


def banner(job: TrainJob, batches: BatchSource, parallel: Parallel, step: int, stop: int, source: Path | None) -> str:
    """The resolved configuration, one aligned line for each part."""
    per_rank = batches.global_batch // parallel.data_parallel
    tokens = batches.global_batch * batches.sequence_length
    model = job.model
    lines = {
        "steps": f"{step:,} to {stop:,} of {batches.total_steps:,}, beginning with {source or 'new weights'}",
        "model": f"{model.parameters():,} parameters: {_settings(model)}",
        "batch": f"{batches.global_batch:,} x {batches.sequence_length:,} = {tokens:,} tokens; of a data-parallel rank "
        f"{per_rank:,} sequences in {-(-per_rank // job.micro_batch)} micro-batches of at most {job.micro_batch}",
        "devices": f"{parallel.ranks.size} x {parallel.device.type}, {str(parallel.precision).removeprefix('torch.')}; "
        f"tensor parallel {parallel.tensor_parallel} x data parallel {parallel.data_parallel}",
        "optimizer": f"AdamW: {_settings(job.optimizer)}",
        "schedule": _schedule(job, batches.total_steps),
        "checkpoints": f"every {job.save_interval_steps:,} steps"
        + (f" or {job.save_interval_minutes:g} minutes" if job.save_interval_minutes else "")
        + f", the last {job.keep_last} kept"
        + (f", and steps {', '.join(f'{kept:,}' for kept in sorted(job.keep_steps))}" if job.keep_steps else ""),
        "data": f"{_settings(batches.describe(min(step, batches.total_steps - 1)))}; {job.data_workers} readers ahead",
        "versions": _settings(versions()),
    }
    return "\n".join([str(job.out), *(f"  {name:<12} {text}" for name, text in lines.items())])


def step_line(row: Mapping[str, Any], stop_step: int) -> str:
    """The log's line of a step, from its metrics line."""
    timing = row["timing"]
    used = f", {timing['mfu']:.1%} MFU" if "mfu" in timing else ""
    minutes, seconds = divmod(round(timing["left_s"]), 60)
    return (
        f"step {row['step']:,}/{stop_step:,}: loss {row['loss']:.4f}, gradient norm {row['grad_norm']:.3g}, "
        f"lr {row['lr']:.3g}, {timing['tokens_per_second_per_device']:,.0f} tokens/s/device{used}, "
        f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d} left"
    )


def _schedule(job: TrainJob, total_steps: int) -> str:
    schedule = job.schedule
    text = f"{schedule.kind}: peak {job.optimizer.lr:g} after {warmup_steps(total_steps, schedule):,} steps"
    if schedule.kind == "warmup-stable-decay":
        text += f", falling from step {decay_start(total_steps, schedule):,}"
    return f"{text} to {schedule.final_fraction:g} of it at step {total_steps:,}"


def _settings(value: Any) -> str:
    plain = value if isinstance(value, dict) else msgspec.to_builtins(value)
    return ", ".join(f"{name} {_plain(item)}" for name, item in plain.items())


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name} {_plain(item)}" for name, item in value.items()) + "}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
