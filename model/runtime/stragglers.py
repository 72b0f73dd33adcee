"""Finds the process that holds all others up: each measures its own part of every step, and now and then they compare.

A process's own part lasts from the request for the batch to the end of its last backward pass, before it waits for other
processes' gradients. Processes that split matrices between them (tensor parallelism) wait for each other within it, so a slow
one there makes its whole group slow.
"""

from __future__ import annotations

import logging
import os
import socket
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch

from curricula.model.runtime.distributed import Parallel

log = logging.getLogger(__name__)

INTERVAL_S = 30.0
"""Between two comparisons."""
FACTOR = 1.2
"""A process is slow when its own part takes longer than this many times the median process's."""
INTERVALS = 3
"""Comparisons in a row after which a slow process is named: one may fall on a passing disturbance."""


class OwnTime:
    """Measures a process's own part of a step: on a GPU, by events on its stream, without waiting for them."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._marks = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if self._on_gpu else []
        self._times = [0.0, 0.0]

    def begin(self) -> None:
        self._mark(0)

    def end(self) -> None:
        self._mark(1)

    def _mark(self, number: int) -> None:
        if self._on_gpu:
            self._marks[number].record()
        else:
            self._times[number] = time.perf_counter()

    def seconds(self) -> float:
        """Of the last step. To be called once its loss is known, when the stream has passed both events."""
        if self._on_gpu:
            return self._marks[0].elapsed_time(self._marks[1]) / 1000
        return self._times[1] - self._times[0]


class Report(NamedTuple):
    """What a process tells the others."""

    seconds: float
    """Median of its own part of the steps since the last comparison."""
    place: str
    """Host and GPU."""


class Stragglers:
    """Compares the processes of a run; each has one of these, and they call `compare` together."""

    def __init__(self, parallel: Parallel) -> None:
        self._parallel = parallel
        self._place = _place(parallel)
        self._own: list[float] = []
        self._compared_at = time.monotonic()
        self._times_slow = Counter[int]()
        """For each slow rank, the number of comparisons in a row in which it was slow."""
        self._statistics: dict[str, float] = {}
        self.named = ""
        """The stragglers in a sentence, on the first rank; empty while there is none."""

    def step_ended(self, own_seconds: float) -> None:
        if self._parallel.ranks.size > 1:
            self._own.append(own_seconds)

    @property
    def is_due(self) -> bool:
        """Whether this process would compare now."""
        return bool(self._own) and time.monotonic() - self._compared_at > INTERVAL_S

    def compare(self) -> None:
        reports = self._parallel.gather(Report(statistics.median(self._own), self._place))
        self._own.clear()
        self._compared_at = time.monotonic()
        if self._parallel.is_main:
            self._judge(reports)

    def _judge(self, reports: Sequence[Report]) -> None:
        seconds = [report.seconds for report in reports]
        median = statistics.median_low(seconds)  # of two ranks the faster
        self._statistics = {
            "median_s": round(median, 4),
            "slowest_s": round(max(seconds), 4),
            "slowest": seconds.index(max(seconds)),
        }
        slow = [rank for rank, own in enumerate(seconds) if own > FACTOR * median]
        self._times_slow = Counter({rank: self._times_slow[rank] + 1 for rank in slow})
        was_named = bool(self.named)
        self.named = "; ".join(
            f"rank {rank} ({reports[rank].place}) takes {seconds[rank] / median:.2f} times as long as the median rank"
            for rank in slow
            if self._times_slow[rank] >= INTERVALS
        )
        if self.named:
            log.warning("%s for its own part of a step, and all others wait for it", self.named)
        elif was_named:
            log.info("no rank is much slower than the median any more")

    def take_statistics(self) -> dict[str, dict[str, float]]:
        """What the metrics say of the last comparison, once, on the first rank."""
        found, self._statistics = self._statistics, {}
        return {"ranks": found} if found else {}


def _place(parallel: Parallel) -> str:
    host = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    if parallel.device.type != "cuda":
        return host
    uuid = getattr(torch.cuda.get_device_properties(parallel.device), "uuid", "")
    return f"{host}, GPU {parallel.device.index}" + (f", GPU-{uuid}" if uuid else "")
