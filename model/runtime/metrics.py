"""The record of a training run: metrics.jsonl, one line for each step. Imports no torch.

A step's line: {"step", "loss", "lr", "grad_norm", "tokens", ...what the batch source describes..., "timing": {...}}.
A validation line: {"step", "validation": {name: loss}}. `step` counts finished steps, `tokens` those read so far.
All but "timing" is a function of the study: the same after any number of kills and resumes.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections import deque
from pathlib import Path
from typing import Any

from curricula.durable import disk_full_explained, read_jsonl, write_text
from curricula.errors import UserError


class MetricsFile:
    """Appends lines; after a resume, first drops those of steps that will be done again."""

    def __init__(self, path: Path, resumed_step: int) -> None:
        """Raises UserError when `path` holds lines that are none of a step or a validation."""
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = read_metrics(path)
        kept = [row for row in rows if row["step"] <= resumed_step]
        if len(kept) < len(rows) or (path.exists() and not path.read_bytes().endswith(b"\n")):
            write_text(path, "".join(json.dumps(row) + "\n" for row in kept))
        self._path = path
        self._validated = {row["step"] for row in kept if "validation" in row}
        self._file = open(path, "a")  # noqa: SIM115 (held as long as the run)

    def write(self, row: dict[str, Any]) -> None:
        """Hand a line to the operating system: it survives this process, and a power cut from the next `sync` on."""
        with disk_full_explained(self._path):
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()
        if "validation" in row:
            self._validated.add(row["step"])

    def is_validated(self, step: int) -> bool:
        """Whether the line of a validation after `step` is there."""
        return step in self._validated

    def sync(self) -> None:
        with disk_full_explained(self._path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All complete lines of a metrics.jsonl; raises UserError where one is not a metrics line."""
    rows = read_jsonl(path)
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            raise UserError(
                f"{path}: line {number} is no metrics line, it has no whole number as step; remove the line"
            )
    return rows


class Pace:
    """The "timing" of steps: how fast the devices work, what held them up, and how long it will take.

    Times are monotonic seconds of this process. `mfu`, model FLOP utilisation, is

        tokens/s/device x FLOPs per token / peak FLOP/s of a device,

    with the model's FLOPs of `ModelConfig.flops_per_token`: 6 for each parameter and token plus causal attention, nothing
    for recomputation (PaLM, Chowdhery et al. 2022, appendix B, with attention's causal half left out as it is not computed).
    """

    def __init__(self, tokens: int, flops_per_token: float, devices: int, peak_flops: float | None) -> None:
        """`tokens` of a step; `peak_flops` of one device, or None where utilisation means nothing."""
        self._tokens, self._flops, self._devices, self._peak = tokens, flops_per_token, devices, peak_flops
        self._recent: deque[float] = deque(maxlen=50)
        self._stalled_s, self._steps = 0.0, 0

    def timing(self, seconds: float, data_wait_s: float, save_stall_s: float, steps_left: int) -> dict[str, float]:
        """Of a step that took `seconds`, of which `data_wait_s` went by waiting for batches of this process; saving
        had held training up for `save_stall_s` between the step before and this one."""
        self._recent.append(seconds)
        self._stalled_s, self._steps = self._stalled_s + save_stall_s, self._steps + 1
        per_device = self._tokens / seconds / self._devices
        timing = {
            "seconds": round(seconds, 4),
            "tokens_per_second": round(self._tokens / seconds, 1),
            "tokens_per_second_per_device": round(per_device, 1),
            "tflops_per_device": round(per_device * self._flops / 1e12, 4),
            "data_wait_s": round(data_wait_s, 5),
            "save_stall_s": round(save_stall_s, 5),
            "left_s": round(steps_left * (statistics.median(self._recent) + self._stalled_s / self._steps), 1),
        }
        if self._peak is not None:
            timing["mfu"] = round(per_device * self._flops / self._peak, 4)
        return timing


class Stopwatch:
    """Adds up the monotonic seconds spent inside its `with` blocks until they are taken."""

    def __init__(self) -> None:
        self._total = 0.0

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._total += time.perf_counter() - self._began

    def take(self) -> float:
        """The seconds since the last call."""
        total, self._total = self._total, 0.0
        return total
