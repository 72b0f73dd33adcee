"""What a training run reports: metrics.jsonl, its curves in TensorBoard or Weights & Biases, and its log. Imports no torch.

metrics.jsonl is the record; curves and log repeat it. It has a line for each step and one for each validation, whose keys
docs/training.md lists. Everything except "timing" is a function of the study: it stays the same after any number of kills and
resumes. starts.jsonl has a line for each start, with the number of steps that were on record but not saved, and so were lost.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import statistics
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from curricula.durable import append_jsonl, disk_full_explained, read_jsonl, write_text
from curricula.errors import UserError
from curricula.fencing import check_fences
from curricula.model.config import TrainConfig, TrainJob, decay_start, warmup_steps
from curricula.terminal import plural

if TYPE_CHECKING:
    from curricula.curriculum.stream.pretraining import BatchSource
    from curricula.model.runtime.distributed import Parallel

log = logging.getLogger(__name__)

LOG_INTERVAL_S = 30.0
"""Time between two steps' lines in the log."""


class Reports:
    """Everything the main process writes about a run besides checkpoints."""

    def __init__(self, job: TrainJob, resumed_step: int, stop_step: int, is_on_record: bool) -> None:
        """Reports of the run in `job.out`, which continues after `resumed_step`.

        With `is_on_record`, the steps are trained again only to replace a lost checkpoint: they appear in the log but are not
        recorded twice. Raises UserError if metrics.jsonl is damaged or a tracker's package is missing.
        """
        self._stop_step, self._logged_at = stop_step, 0.0
        self._records: list[MetricsFile | TensorBoard | WeightsAndBiases] = []
        self.validated: set[int] = set()
        """Steps whose validation was on record at the start."""
        if is_on_record:
            return
        metrics = MetricsFile(job.out / "metrics.jsonl", resumed_step)
        self._records.append(metrics)
        self.validated = metrics.validated
        if job.tracking.tensorboard:
            self._records.append(TensorBoard(job.out / "tensorboard", resumed_step))
        if job.tracking.wandb_project:
            self._records.append(WeightsAndBiases(job, job.tracking.wandb_project))

    def step(self, row: dict[str, Any]) -> None:
        """Record a step's metrics; its line in the log appears every `LOG_INTERVAL_S` and at the end."""
        self._each(lambda record: record.write(row))
        now = time.monotonic()
        if now - self._logged_at > LOG_INTERVAL_S or row["step"] == self._stop_step:
            self._logged_at = now
            log.info("%s", step_line(row, self._stop_step))

    def validation(self, step: int, losses: Mapping[str, float]) -> None:
        row = {"step": step, "validation": dict(losses), "validation_of": "text"}
        self._each(lambda record: record.write(row))
        log.info("validation after step %d: %s", step, ", ".join(f"{k} {v:.4f}" for k, v in losses.items()))

    def _each(self, act: Callable[[Any], None]) -> None:
        for record in self._records:
            with disk_full_explained(record.path):
                act(record)

    def sync(self) -> None:
        """Make everything recorded so far survive a power cut."""
        self._each(lambda record: record.sync())

    def close(self) -> None:
        self._each(lambda record: record.close())


class MetricsFile:
    """Appends lines. After a resume, it first drops those of steps that will be repeated."""

    def __init__(self, path: Path, resumed_step: int) -> None:
        """Raises UserError if `path` holds lines that are neither a step's nor a validation's."""
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = read_metrics(path)
        kept = [row for row in rows if row["step"] <= resumed_step]
        if len(kept) < len(rows) or (path.exists() and not path.read_bytes().endswith(b"\n")):
            write_text(path, "".join(json.dumps(row) + "\n" for row in kept))
        lost = max([0, *(row["step"] - resumed_step for row in rows)])
        start = {"time": time.time(), "resumed_step": resumed_step, "lost_steps": lost}
        append_jsonl(path.with_name("starts.jsonl"), [start])
        self.path = path
        self.validated = {row["step"] for row in kept if "validation" in row}
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (open as long as the run)

    def write(self, row: dict[str, Any]) -> None:
        """Hand a line to the operating system: it survives this process now, and a power cut after the next `sync`."""
        check_fences()
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def sync(self) -> None:
        os.fsync(self._file.fileno())

    def close(self) -> None:
        with contextlib.suppress(OSError):  # closing retries a write that failed, and that failure has been reported
            self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All complete lines of a metrics.jsonl. Raises UserError if one is not a metrics line."""
    rows = read_jsonl(path)
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            raise UserError(f"{path}: line {number} is not a metrics line, its step is not a whole number; remove the line")
    return rows


class Pace:
    """The "timing" of steps: how fast the devices work, what held them up, and how much time is left.

    Times are monotonic seconds of this process. `mfu`, model FLOP utilisation, is

        tokens/s/device x FLOPs per token / peak FLOP/s of a device,

    with the FLOPs of `ModelConfig.flops_per_token`: 6 for each parameter and token plus causal attention, nothing for
    recomputation (PaLM, Chowdhery et al. 2022, appendix B, without the half of attention that causality leaves uncomputed).
    """

    def __init__(self, tokens: int, flops_per_token: float, devices: int, peak_flops: float | None) -> None:
        """`tokens` are those of one step. `peak_flops` is the peak of one device; None on CPUs, where it means nothing."""
        self._tokens, self._flops, self._devices, self._peak = tokens, flops_per_token, devices, peak_flops
        self._recent: deque[float] = deque(maxlen=50)
        self._stalled_s, self._steps = 0.0, 0
        self.waited_s = defaultdict[str, float](float)
        """Seconds waited since the last step's timing: for "data" (batches), and for a "save" that held up training."""

    @contextlib.contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.waited_s[what] += time.perf_counter() - began

    def timing(self, seconds: float, steps_left: int) -> dict[str, float]:
        """The timing of a step that took `seconds`, and of the save between the previous step and this one."""
        waited_s, self.waited_s = self.waited_s, defaultdict(float)
        self._recent.append(seconds)
        self._stalled_s, self._steps = self._stalled_s + waited_s["save"], self._steps + 1
        per_device = self._tokens / seconds / self._devices
        timing = {
            "seconds": round(seconds, 4),
            "tokens_per_second": round(self._tokens / seconds, 1),
            "tokens_per_second_per_device": round(per_device, 1),
            "tflops_per_device": round(per_device * self._flops / 1e12, 4),
            "data_wait_s": round(waited_s["data"], 5),
            "save_stall_s": round(waited_s["save"], 5),
            "left_s": round(steps_left * (statistics.median(self._recent) + self._stalled_s / self._steps), 1),
        }
        if self._peak is not None:
            timing["mfu"] = round(per_device * self._flops / self._peak, 4)
        return timing


def curves(row: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers of a metrics line as named curves: {"loss": 2.3, "mix/web": 0.7, "timing/mfu": 0.41}."""
    values: dict[str, float] = {}
    for name, value in row.items():
        if isinstance(value, Mapping):
            values |= curves(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)) and name != "step":
            values[prefix + name] = float(value)
    return values


class TensorBoard:
    """Event files, one for each start of the run. A start discards the points after the step that it resumes from."""

    def __init__(self, folder: Path, resumed_step: int) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary
        from torch.utils.tensorboard import SummaryWriter

        self._summary, self.path = Summary, folder
        self._writer: Any = SummaryWriter(str(folder), purge_step=resumed_step + 1, flush_secs=10)

    def write(self, row: Mapping[str, Any]) -> None:
        # One event for each step: `add_scalar` would write one for each value, which takes milliseconds.
        points = [self._summary.Value(tag=name, simple_value=value) for name, value in curves(row).items()]
        self._writer.file_writer.add_summary(self._summary(value=points), row["step"])

    def sync(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """One W&B run for each run folder, continued after a restart."""

    def __init__(self, job: TrainJob, project: str) -> None:
        self.path = job.out.resolve()
        settings = msgspec.to_builtins(job, enc_hook=str)
        self._run = wandb_run(project, str(self.path), "/".join(self.path.parts[-3:]), config=settings)
        # W&B's own step can only grow: it would ignore steps that a restart repeats, and a validation that it makes up for.
        self._run.define_metric("*", step_metric="step")

    def write(self, row: Mapping[str, Any]) -> None:
        self._run.log({**curves(row), "step": row["step"]})

    def sync(self) -> None:
        """W&B sends in the background by itself."""

    def close(self) -> None:
        self._run.finish()


def wandb_run(project: str, place: str, name: str, **more: Any) -> Any:
    """The W&B run of a folder, or of another `place`. Raises UserError if its package is missing."""
    try:
        import wandb
    except ImportError:
        raise UserError(
            f"tracking.wandb_project is {project}, but wandb is not installed; `pip install wandb`, or remove the key"
        ) from None
    identity = hashlib.sha256(place.encode()).hexdigest()[:16]
    return wandb.init(project=project, id=identity, name=name, resume="allow", **more)


def banner(
    job: TrainJob,
    batches: BatchSource,
    parallel: Parallel,
    step: int,
    stop: int,
    source: Path | None,
    versions: Mapping[str, str],
) -> str:
    """The resolved configuration for the log, one aligned line for each part. `source` is the checkpoint to begin with."""
    config, model = job.config, job.model
    per_rank = batches.global_batch // parallel.data_parallel
    tokens = batches.global_batch * batches.sequence_length
    lines = {
        "steps": f"{step:,} to {stop:,} of {batches.total_steps:,}, beginning with {source or 'new weights'}",
        "model": f"{model.parameters:,} parameters: {_settings(model)}",
        "batch": f"{batches.global_batch:,} x {batches.sequence_length:,} = {tokens:,} tokens; for each data-parallel rank "
        f"{plural(per_rank, 'sequence')} in micro-batches of at most {config.micro_batch}",
        "optimizer": f"AdamW: {_settings(config.optimizer)}",
        "schedule": _schedule(config, batches.total_steps),
        "checkpoints": f"every {config.save_interval_steps:,} steps"
        + (f" or {config.save_interval_minutes:g} minutes" if config.save_interval_minutes else "")
        + f", the last {config.keep_last} kept"
        + (f", and steps {', '.join(f'{kept:,}' for kept in sorted(job.keep_steps))}" if job.keep_steps else ""),
        "data": f"{_settings(batches.describe(min(step, batches.total_steps - 1)))}; "
        f"{job.execution.data_workers} readers ahead",
        "versions": _settings(versions),
    }
    if config.spike_guard:
        lines["spike guard"] = _settings(config.spike_guard)
    return "\n".join([str(job.out), *(f"  {name:<12} {text}" for name, text in lines.items())])


def step_line(row: Mapping[str, Any], stop_step: int) -> str:
    timing = row["timing"]
    used = f", {timing['mfu']:.1%} MFU" if "mfu" in timing else ""
    return (
        f"step {row['step']:,}/{stop_step:,}: loss {row['loss']:.4f}, gradient norm {row['grad_norm']:.3g}, "
        f"lr {row['lr']:.3g}, {timing['tokens_per_second_per_device']:,.0f} tokens/s/device{used}, "
        f"{timedelta(seconds=round(timing['left_s']))} left"
    )


def _schedule(config: TrainConfig, total_steps: int) -> str:
    schedule = config.schedule
    peak, rise = config.optimizer.lr, plural(warmup_steps(total_steps, schedule), "step")
    falls = f"falling from step {decay_start(total_steps, schedule):,} to {schedule.final_fraction * peak:g}"
    return f"{schedule.kind}: peak {peak:g} after {rise}, {falls} at step {total_steps:,}"


def _settings(value: Any) -> str:
    plain = msgspec.to_builtins(value)
    return ", ".join(f"{name} {_plain(item)}" for name, item in plain.items())


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name} {_plain(item)}" for name, item in value.items()) + "}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
