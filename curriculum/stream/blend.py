"""Which sample comes next: a stateless map from the global sample index to (source, position), across phases.

Invariants. At every n of the first phase, each source has been drawn as often as the weights demand, to within 1.7
samples. After hundreds of phases of a few samples, in which a dozen sources come and go, the count is still within four
samples of what all phases so far demand (the worst in thousands of random runs was 3.3). So there are no blocks, no
small weight is rounded to nothing, and the steps of a ramp cause no drift. Counters carry over from phase to phase, so a
source continues where it stopped and no sample repeats before all have been seen. A phase's stream does not depend on
where the phase ends, so arms with the same beginning share its samples. Nothing depends on the data-parallel size, the
number of workers or the step at which a run was resumed.

Method. The sources are the leaves of a binary tree. A node that has passed on m samples has sent round(m * share) of
them to its first child and the others to its second. Both counts grow by steps of 0 or 1 with m, so the count of each
leaf is an exact integer formula in n that never falls. The tree joins the two lightest nodes first, as Huffman's does.
A node's rounding error, at most 1/2, reaches a leaf in proportion to the shares p1, p2, ... on the path between them,
counted from the leaf. In such a tree p(i+1) <= 1 / (1 + p(i)), so a leaf is off by at most
(1 + 1 + 1/2 + 1/3 + 1/5 + ...) / 2 = 1.68 samples.

The next phase repays what a phase leaves a source short of, or takes back its excess: `owed` samples, ideal minus drawn.
A node that owes its children `first` and `second` rounds m * share + first - share * (first + second) instead, clamped
to [0, m], which again grows by steps of 0 or 1. This brings the debt of the first child to its share of the node's debt,
to within the same 1/2.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from math import gcd, lcm

import numpy as np

FINEST = 2**48
"""Integer weights sum to at most this, so that the arithmetic of a block fits 63 bits."""
BLOCK = 1024
"""Samples computed at once."""


@dataclass(frozen=True)
class Phase:
    """A phase of a run: its samples are drawn by the weights of `mix`."""

    until: int
    """The global sample at which the phase ends (exclusive, counted from the start of the run)."""
    mix: dict[str, float]


class Blend:
    """The order of a run's samples: `draw(start, stop)` gives source and position for any range of indices."""

    def __init__(self, phases: list[Phase]):
        """`phases` follow one another; their weights need not sum to one."""
        self.sources = sorted({name for phase in phases for name, weight in phase.mix.items() if weight})
        self._ends = [phase.until for phase in phases]
        self._starts = [0, *self._ends[:-1]]
        if any(end <= start for start, end in zip(self._starts, self._ends)):
            raise ValueError(f"phases must each be at least one sample long, but end at {self._ends}")
        self._trees: list[_Node] = []
        # Samples of each source consumed before each phase.
        self._consumed = [np.zeros(len(self.sources), np.int64)]
        owed = [Fraction(0)] * len(self.sources)
        for start, phase in zip(self._starts, phases):
            weights = integer_weights(phase.mix, self.sources)
            self._trees.append(_tree(weights, owed))
            drawn = self._counts_in_phase(self._trees[-1], phase.until - start, 0)[:, 0]
            self._consumed.append(self._consumed[-1] + drawn)
            owed = _still_owed(owed, weights, phase.until - start, drawn.tolist())
        self._block = lru_cache(maxsize=8)(self._compute_block)

    @property
    def total(self) -> int:
        return self._ends[-1]

    def phase_at(self, index: int) -> int:
        return bisect_right(self._ends, index)

    def counts(self, index: int) -> dict[str, int]:
        """How many samples of each source lie before global sample `index`."""
        phase = min(self.phase_at(index), len(self._ends) - 1)
        drawn = self._counts_in_phase(self._trees[phase], index - self._starts[phase], 0)[:, 0]
        return dict(zip(self.sources, (self._consumed[phase] + drawn).tolist()))

    def draw(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Sources (int16, index into `self.sources`) and positions within them (int64) of samples [start, stop)."""
        if not 0 <= start <= stop <= self.total:
            raise ValueError(f"samples [{start}, {stop}) are not within the run's {self.total}")
        blocks = [self._block(number) for number in range(start // BLOCK, -(-stop // BLOCK))]
        if not blocks:
            return np.empty(0, np.int16), np.empty(0, np.int64)
        first = start // BLOCK * BLOCK
        sources, positions = (np.concatenate(arrays)[start - first : stop - first] for arrays in zip(*blocks))
        return sources, positions

    def _compute_block(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        index, stop = number * BLOCK, min((number + 1) * BLOCK, self.total)
        sources, positions = np.empty(stop - index, np.int16), np.empty(stop - index, np.int64)
        first = index
        while index < stop:
            phase = self.phase_at(index)
            start, end = self._starts[phase], min(self._ends[phase], stop)
            counts = self._counts_in_phase(self._trees[phase], index - start, end - index)
            source, place = np.nonzero(np.diff(counts))
            sources[index - first + place] = source
            positions[index - first + place] = self._consumed[phase][source] + counts[source, place]
            index = end
        return sources, positions

    def _counts_in_phase(self, tree: _Node, start: int, samples: int) -> np.ndarray:
        """Samples of each source among the first n of a phase, for n = start .. start + samples: int64 [sources, n]."""
        counts = np.zeros((len(self.sources), samples + 1), np.int64)
        _spread(tree, start + np.arange(samples + 1, dtype=np.int64), counts)
        return counts


@dataclass(frozen=True)
class _Node:
    """A leaf (`source` is set), or a fork that sends `weight - second.weight` of every `weight` samples to `first`.

    In lowest terms these are `share` of every `whole` samples; `offset / (2 * whole)` is added before rounding down.
    """

    weight: int
    owed: Fraction
    source: int = -1
    first: _Node | None = None
    second: _Node | None = None
    share: int = 1
    whole: int = 1
    offset: int = 0


def _spread(node: _Node, passed: np.ndarray, counts: np.ndarray) -> None:
    """Fill in `counts` of the leaves below `node` after it has passed on `passed` samples (int64, rising by 0 or 1)."""
    if node.first is None or node.second is None:
        counts[node.source] = passed
        return
    # Python integers for the first m, 64-bit integers for the few steps after it.
    begin, rest = divmod(2 * int(passed[0]) * node.share + node.offset, 2 * node.whole)
    sent = begin + (rest + 2 * node.share * (passed - passed[0])) // (2 * node.whole)
    sent = np.clip(sent, 0, passed)
    _spread(node.first, sent, counts)
    _spread(node.second, passed - sent, counts)


def _tree(weights: list[int], owed: list[Fraction]) -> _Node:
    """The tree over the sources that have a weight. The heavier child comes first; ties go to the earlier source."""
    heap = [
        (weight, number, _Node(weight, debt, number))
        for number, (weight, debt) in enumerate(zip(weights, owed))
        if weight
    ]
    heapq.heapify(heap)
    made = len(weights)
    while len(heap) > 1:
        (_, _, second), (_, _, first) = heapq.heappop(heap), heapq.heappop(heap)
        node = _fork(first, second)
        heapq.heappush(heap, (node.weight, made, node))
        made += 1
    return heap[0][2]


def _fork(first: _Node, second: _Node) -> _Node:
    weight, owed = first.weight + second.weight, first.owed + second.owed
    common = gcd(first.weight, weight)
    share, whole = first.weight // common, weight // common
    offset = round(2 * whole * (Fraction(1, 2) + first.owed - Fraction(share, whole) * owed))
    return _Node(weight, owed, -1, first, second, share, whole, offset)


def _still_owed(owed: list[Fraction], weights: list[int], samples: int, drawn: list[int]) -> list[Fraction]:
    """What each source is owed after a phase of `samples`, in units of 2^-40 samples: exact fractions would grow forever."""
    total = sum(weights)
    exact = (debt + Fraction(samples * weight, total) - count for debt, weight, count in zip(owed, weights, drawn))
    return [Fraction(round(debt * 2**40), 2**40) for debt in exact]


def integer_weights(mix: dict[str, float], sources: list[str]) -> list[int]:
    """The weights of `mix` as integers, in the order of `sources`: 0 where it has none.

    Their ratio is exactly that of the given decimal numbers where integers that sum to at most `FINEST` can express it.
    Otherwise they are rounded to that precision, which moves a count by less than one sample in 2^48 / (2 * sources).
    """
    if any(weight < 0 for weight in mix.values()) or not any(mix.values()):
        raise ValueError(f"weights must be non-negative and not all zero: {mix}")
    fractions = [Fraction(str(mix.get(name, 0))) for name in sources]
    scale = Fraction(lcm(*(fraction.denominator for fraction in fractions)))
    if sum(fractions) * scale > FINEST:
        scale = Fraction(FINEST) / sum(fractions)
    return [max(1, round(fraction * scale)) if fraction else 0 for fraction in fractions]


def exact_shares(mix: dict[str, float]) -> dict[str, int]:
    """The weights of `mix` as integers in lowest terms: equal ones mean the same order of samples. Different weights can have
    equal shares in floating point."""
    names = sorted(mix)
    weights = integer_weights(mix, names)
    common = gcd(*weights)
    return {name: weight // common for name, weight in zip(names, weights) if weight}
