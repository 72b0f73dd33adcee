"""The record of a training run: metrics.jsonl, one line for each step. Imports no torch.

A step's line: {"step", "loss", "lr", "grad_norm", "tokens", ...what the batch source describes..., "timing": {...}}.
A validation line: {"step", "validation": {name: loss}}. `step` counts finished steps, `tokens` those read so far.
All but "timing" is a function of the study: the same after any number of kills and resumes.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from curriculum.durable import read_jsonl, said_when_full, write_text

H100_PEAK_FLOPS = 989.4e12
"""Dense bfloat16 FLOP/s of one H100 SXM, against which model FLOP utilisation is stated."""


class MetricsFile:
    """Appends lines; after a resume, first drops those of steps that will be done again."""

    def __init__(self, path: Path, resumed_step: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = read_jsonl(path)
        kept = [row for row in rows if row["step"] <= resumed_step]
        if len(kept) < len(rows) or (path.exists() and not path.read_bytes().endswith(b"\n")):
            write_text(path, "".join(json.dumps(row) + "\n" for row in kept))
        self._path = path
        self._file = open(path, "a")  # noqa: SIM115 (held as long as the run)

    def write(self, row: dict[str, Any]) -> None:
        """Hand a line to the operating system: it survives this process, and a power cut from the next `sync` on."""
        with said_when_full(self._path):
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()

    def is_validated(self, step: int) -> bool:
        """Whether the line of a validation after `step` is there."""
        return any(row["step"] == step and "validation" in row for row in read_jsonl(self._path))

    def sync(self) -> None:
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def speed(seconds: float, tokens: int, flops_per_token: float, processes: int, on_gpu: bool) -> dict[str, float]:
    """The "timing" of a step of `tokens` tokens on `processes` devices."""
    per_second = tokens / seconds
    timing = {
        "seconds": round(seconds, 4),
        "tokens_per_second": round(per_second, 1),
        "tflops_per_device": round(per_second * flops_per_token / processes / 1e12, 4),
    }
    if on_gpu:
        timing["mfu"] = round(per_second * flops_per_token / processes / H100_PEAK_FLOPS, 4)
    return timing
