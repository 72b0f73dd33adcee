"""Which sample comes next: a stateless map from the global sample index to (source, position), across phases.

Invariant: within a phase, sources alternate so that after n samples each source has been drawn as often as its weight
says, to within a few samples (Webster's divisor method, which is monotone in n and never starves a small weight).
Counters carry over from phase to phase, so a source goes on where it stood: no sample repeats before all have been seen.
Nothing depends on the data-parallel size, on the number of workers or on where the run was resumed.

How: item j of a source with weight w is due at time (j + 1/2) / w. The order of the stream is the order of those times,
ties going to the earlier source. How many items of each source are due by time t is a division, so the state after any n
samples is found by bisecting t: no history, no index file. All arithmetic is on exact integers.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from math import lcm

import numpy as np


@dataclass(frozen=True)
class Phase:
    """Samples up to index `until` (exclusive, counted from the start of the run) are drawn by the weights of `mix`."""

    until: int
    mix: dict[str, float]


class Blend:
    """The order of the samples of a run: `draw(start, stop)` gives source and position for any range of indices."""

    def __init__(self, phases: list[Phase]):
        """`phases` in order, each ending where the next begins; weights need not sum to one."""
        self.sources = sorted({name for phase in phases for name, weight in phase.mix.items() if weight})
        self._ends = [phase.until for phase in phases]
        if any(end <= start for start, end in zip([0, *self._ends], self._ends)):
            raise ValueError(f"phases must each be at least one sample long, but end at {self._ends}")
        self._weights = [_integer_weights(phase.mix, self.sources) for phase in phases]
        self._before = [[0] * len(self.sources)]  # samples of each source consumed before each phase
        for start, end, weights in zip([0, *self._ends], self._ends, self._weights):
            counts = _counts(weights, end - start)
            self._before.append([a + b for a, b in zip(self._before[-1], counts)])
        self.block = lru_cache(maxsize=8)(self._block)

    @property
    def total(self) -> int:
        return self._ends[-1]

    def phase_at(self, index: int) -> int:
        return bisect_right(self._ends, index)

    def counts(self, index: int) -> dict[str, int]:
        """How many samples of each source lie before global sample `index`."""
        phase = min(self.phase_at(index), len(self._ends) - 1)
        start = self._ends[phase - 1] if phase else 0
        within = _counts(self._weights[phase], index - start)
        return {name: a + b for name, a, b in zip(self.sources, self._before[phase], within)}

    def draw(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Sources (int16, index into `self.sources`) and positions within them (int64) of samples [start, stop)."""
        if not 0 <= start <= stop <= self.total:
            raise ValueError(f"samples [{start}, {stop}) are not within the run's {self.total}")
        size = self.BLOCK
        parts = [self.block(number) for number in range(start // size, -(-stop // size))]
        if not parts:
            return np.empty(0, np.int16), np.empty(0, np.int64)
        first = start // size * size
        sources = np.concatenate([part[0] for part in parts])[start - first : stop - first]
        positions = np.concatenate([part[1] for part in parts])[start - first : stop - first]
        return sources, positions

    BLOCK = 1024  # samples computed at once: the bisection is then a thousandth of the cost of a look-up

    def _block(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        index, stop = number * self.BLOCK, min((number + 1) * self.BLOCK, self.total)
        sources, positions = [], []
        while index < stop:
            phase = self.phase_at(index)
            start, end = (self._ends[phase - 1] if phase else 0), min(self._ends[phase], stop)
            for source, item in _items(self._weights[phase], index - start, end - start):
                sources.append(source)
                positions.append(self._before[phase][source] + item)
            index = end
        return np.array(sources, np.int16), np.array(positions, np.int64)


def _integer_weights(mix: dict[str, float], sources: list[str]) -> list[int]:
    """The weights of `mix` in the order of `sources` as integers in exactly the same ratio; 0 where it has none."""
    if any(weight < 0 for weight in mix.values()) or not any(mix.values()):
        raise ValueError(f"weights must be non-negative and not all zero: {mix}")
    fractions = [Fraction(str(mix.get(name, 0))) for name in sources]
    scale = lcm(*(fraction.denominator for fraction in fractions))
    return [int(fraction * scale) for fraction in fractions]


def _due(weight: int, time: int, total: int) -> int:
    """Items of a source due by `time`, where item j is due at floor((2j + 1) * total / (2 * weight))."""
    # (2j + 1) * total < (time + 1) * 2 * weight  <=>  2j + 1 <= ((time + 1) * 2 * weight - 1) // total
    return (((time + 1) * 2 * weight - 1) // total + 1) // 2


def _time(weight: int, item: int, total: int) -> int:
    return (2 * item + 1) * total // (2 * weight)


def _counts(weights: list[int], samples: int) -> list[int]:
    """Samples of each source among the first `samples` of a phase."""
    total = sum(weights)
    # By time t no fewer than t + 1 - len(weights) samples are due; bisect for the last t with no more than `samples`.
    low, high = -1, samples + len(weights) + 1
    while high - low > 1:
        middle = (low + high) // 2
        if sum(_due(weight, middle, total) for weight in weights if weight) <= samples:
            low = middle
        else:
            high = middle
    counts = [_due(weight, low, total) if weight else 0 for weight in weights]
    left = samples - sum(counts)
    for source, weight in enumerate(weights):  # items due at time low + 1, in source order, fill up the rest
        if left and weight:
            extra = min(left, _due(weight, low + 1, total) - counts[source])
            counts[source] += extra
            left -= extra
    return counts


def _items(weights: list[int], start: int, stop: int) -> list[tuple[int, int]]:
    """(source, item) of the samples [start, stop) of a phase."""
    total = sum(weights)
    counts = _counts(weights, start)
    queue = [(_time(weight, counts[s], total), s, counts[s]) for s, weight in enumerate(weights) if weight]
    heapq.heapify(queue)
    items = []
    for _ in range(stop - start):
        _, source, item = queue[0]
        items.append((source, item))
        heapq.heapreplace(queue, (_time(weights[source], item + 1, total), source, item + 1))
    return items
