"""Curves of a run for those who like to look at them elsewhere: TensorBoard, and Weights & Biases where it is asked for.

metrics.jsonl stays the truth; what is here is copied from its lines.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from curricula.durable import disk_full_explained
from curricula.errors import UserError
from curricula.settings import Settings


class Tracking(Settings, frozen=True):
    """Where the curves of training go besides metrics.jsonl."""

    tensorboard: bool = True
    """Event files in the folder tensorboard/ of each line: `tensorboard --logdir RUN`."""
    wandb_project: str | None = None
    """A Weights & Biases project to send them to; needs the package wandb and `wandb login`."""


class Tracker(Protocol):
    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add a point to each curve."""

    def flush(self) -> None:
        """Make what was logged so far survive this process."""

    def close(self) -> None: ...


def open_trackers(tracking: Tracking, out: Path, resumed_step: int, settings: Mapping[str, Any]) -> list[Tracker]:
    """The trackers that `tracking` asks for, of the line in `out`, which goes on after `resumed_step`.

    Raises UserError when the package of one is missing.
    """
    trackers: list[Tracker] = []
    if tracking.tensorboard:
        trackers.append(TensorBoard(out / "tensorboard", resumed_step))
    if tracking.wandb_project:
        trackers.append(WeightsAndBiases(tracking.wandb_project, out, settings))
    return trackers


def curves(row: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers of a metrics line as named curves: {"loss": 2.3, "mix/web": 0.7, "timing/mfu": 0.41}."""
    found: dict[str, float] = {}
    for name, value in row.items():
        if isinstance(value, Mapping):
            found |= curves(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)) and name != "step":
            found[prefix + name] = float(value)
    return found


class TensorBoard:
    """Event files, one for each start; points after the step gone on from are taken back."""

    def __init__(self, folder: Path, resumed_step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event, self._summary, self._folder = Event, Summary, folder
        folder.mkdir(parents=True, exist_ok=True)
        self._writer = EventFileWriter(str(folder), flush_secs=10)
        start = SessionLog(status=SessionLog.START)
        self._writer.add_event(Event(wall_time=time.time(), step=resumed_step + 1, session_log=start))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        # One event a step: one for each value would take a millisecond.
        points = [self._summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        with disk_full_explained(self._folder):
            self._writer.add_event(self._event(wall_time=time.time(), step=step, summary=self._summary(value=points)))

    def flush(self) -> None:
        with disk_full_explained(self._folder):
            self._writer.flush()

    def close(self) -> None:
        with disk_full_explained(self._folder):
            self._writer.close()


class WeightsAndBiases:
    """One W&B run for each line, gone on with after a restart."""

    def __init__(self, project: str, out: Path, settings: Mapping[str, Any]) -> None:
        try:
            import wandb
        except ImportError:
            raise UserError(
                f"tracking.wandb_project is {project}, but wandb is not installed; `pip install wandb`, or remove the key"
            ) from None
        identity = hashlib.sha256(str(out.resolve()).encode()).hexdigest()[:16]
        name = "/".join(out.resolve().parts[-3:])
        self._run = wandb.init(project=project, id=identity, name=name, resume="allow", config=dict(settings))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def flush(self) -> None:
        """W&B sends in the background by itself."""

    def close(self) -> None:
        self._run.finish()
