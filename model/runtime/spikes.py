"""Recognises steps whose loss or gradient norm is a spike, so that training can skip their updates. Imports no torch.

As OLMo-core's `SkipStepOptimizer` does (2 OLMo 2 Furious, 2025), with three differences. Steps of another phase of the
curriculum are no measure, since their text has another loss. A spike enters the window as no more than its limit: so it
hides no second one, and a lasting change of level is accepted after a few steps. Calm windows have a floor.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from curricula.model.config import SpikeGuard

FLOOR = 0.01
"""Least standard deviation, as a share of the mean: however calm the window, a smaller rise is no spike."""


class Measured(NamedTuple):
    """What a step is judged by."""

    loss: float
    grad_norm: float

    def is_beyond(self, limits: Measured) -> bool:
        return self.loss > limits.loss or self.grad_norm > limits.grad_norm


class SpikeWindow:
    """The latest steps of this phase. What it says is a function of the steps before, which checkpoints hold."""

    def __init__(self, guard: SpikeGuard, steps: Iterable[Measured]) -> None:
        self._guard = guard
        self._steps = deque(steps, maxlen=guard.window)

    @property
    def steps(self) -> tuple[Measured, ...]:
        return tuple(self._steps)

    def begin_phase(self) -> None:
        self._steps.clear()

    def limits(self) -> Measured | None:
        """The largest values that are no spike; None until half the window is filled."""
        if len(self._steps) < self._guard.window / 2:
            return None
        return Measured(*(self._limit(values) for values in zip(*self._steps)))

    def _limit(self, values: tuple[float, ...]) -> float:
        mean = math.fsum(values) / len(values)
        deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))
        return mean + self._guard.sigmas * max(deviation, FLOOR * mean)

    def add(self, step: Measured) -> None:
        limits = self.limits()
        self._steps.append(step if limits is None else Measured(*map(min, step, limits)))
