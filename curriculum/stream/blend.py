"""Which sample comes next: a stateless map from the global sample index to (source, position), across phases (`Blend`), and
from there to a sample of the source, in a new order for each epoch (`Order`).

Counts follow the weights to within a few samples, no sample repeats before all have been seen, and arms with the same past
share their samples: docs/explanation/blender.md says what is promised, how it works and why it holds.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from math import gcd, lcm
from typing import Any

import numpy as np

from curricula.randomness import key_seed

FINEST = 2**48
"""Largest sum of integer weights. It keeps the arithmetic of a block within 63 bits."""
BLOCK = 1024
"""Samples computed at once."""
ROUNDS = 6
"""Rounds of `permute`: enough for orders of a thousand samples or more to pass a chi-square test of randomness."""


@dataclass(frozen=True)
class Phase:
    """A phase of a run: its samples are drawn by the weights of `mix`."""

    until: int
    """The global sample at which the phase ends (exclusive, counted from the start of the run)."""
    mix: dict[str, float]
    """Relative weights of sources, by name."""


def sources_of(phases: Iterable[Phase]) -> list[str]:
    """The sources that the phases read, sorted."""
    return sorted({name for phase in phases for name, weight in phase.mix.items() if weight})


class Blend:
    """The blend of a run's sources: `draw(start, stop)` gives the source and position of any range of samples."""

    def __init__(self, phases: list[Phase]):
        """`phases` follow one another; their weights need not sum to one."""
        self.sources = sources_of(phases)
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

    @property
    def total(self) -> int:
        return self._ends[-1]

    def phase_at(self, index: int) -> int:
        return bisect_right(self._ends, index)

    def counts(self, index: int) -> dict[str, int]:
        """Number of samples of each source before global sample `index`."""
        phase = min(self.phase_at(index), len(self._ends) - 1)
        drawn = self._counts_in_phase(self._trees[phase], index - self._starts[phase], 0)[:, 0]
        return dict(zip(self.sources, (self._consumed[phase] + drawn).tolist()))

    def draw(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Sources (int16, index into `self.sources`) and positions within them (int64) of samples [start, stop)."""
        return _gathered(self._block, start, stop, self.total)

    def _block(self, number: int) -> tuple[np.ndarray, np.ndarray]:
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


class Order:
    """Turns the blend's positions into samples: `locate(start, stop)` gives source, epoch and number in the source.

    Each epoch has an order of its own.
    """

    def __init__(self, blend: Blend, sizes: Mapping[str, int], *key: object):
        """`sizes` holds the number of samples of each source; `key` is the key of all orders, such as a seed."""
        self._blend, self._sizes, self._key = blend, sizes, key
        self._block = lru_cache(maxsize=8)(self._compute_block)

    def locate(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Sources (index into the blend's `sources`), epochs and numbers of samples [start, stop)."""
        return _gathered(self._block, start, stop, self._blend.total)

    def samples(self, start: int, stop: int) -> list[tuple[str, int, int]]:
        """The same as one tuple for each sample: the source's name, epoch and number."""
        located = zip(*(values.tolist() for values in self.locate(start, stop)))
        return [(self._blend.sources[source], epoch, number) for source, epoch, number in located]

    def _compute_block(self, block: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """A whole block at once, since a permutation costs a few array operations however many samples it maps."""
        sources, positions = self._blend.draw(block * BLOCK, min((block + 1) * BLOCK, self._blend.total))
        epochs, numbers = np.zeros_like(positions), np.zeros_like(positions)
        for source in np.unique(sources):
            name, drawn = self._blend.sources[source], sources == source
            epochs[drawn], places = np.divmod(positions[drawn], self._sizes[name])
            numbers[drawn] = permute(places, self._sizes[name], *self._key, name, epochs=epochs[drawn])
        return sources, epochs, numbers


def _gathered(block: Callable[[int], tuple[np.ndarray, ...]], start: int, stop: int, total: int) -> Any:
    """The values of samples [start, stop), from what `block` computes for each block of samples, given its number."""
    if not 0 <= start <= stop <= total:
        raise IndexError(f"samples [{start}, {stop}) of {total}")
    blocks = [block(number) for number in range(start // BLOCK, max(start, stop - 1) // BLOCK + 1)]
    window = slice(start % BLOCK, start % BLOCK + stop - start)
    return tuple(np.concatenate(values)[window] for values in zip(*blocks))


@dataclass(frozen=True)
class _Node:
    """A leaf (`source` is set), or a fork that sends `weight - second.weight` of every `weight` samples to `first`.

    In lowest terms, `first` gets `share` of every `whole` samples; `offset / (2 * whole)` is added before rounding down.
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
    """Fill in `counts` for the leaves below `node` once it has passed on `passed` samples (int64, rising by 0 or 1)."""
    if node.first is None or node.second is None:
        counts[node.source] = passed
        return
    # The first value needs Python integers of any size; the few steps after it fit 64 bits.
    begin, rest = divmod(2 * int(passed[0]) * node.share + node.offset, 2 * node.whole)
    sent = begin + (rest + 2 * node.share * (passed - passed[0])) // (2 * node.whole)
    sent = np.clip(sent, 0, passed)
    _spread(node.first, sent, counts)
    _spread(node.second, passed - sent, counts)


def _tree(weights: list[int], owed: list[Fraction]) -> _Node:
    """The tree over the sources that have a weight. The heavier child comes first; ties go to the earlier source."""
    heap = [(weight, number, _Node(weight, debt, number)) for number, (weight, debt) in enumerate(zip(weights, owed)) if weight]
    heapq.heapify(heap)
    tie_breaker = len(weights)
    while len(heap) > 1:
        (_, _, second), (_, _, first) = heapq.heappop(heap), heapq.heappop(heap)
        node = _fork(first, second)
        heapq.heappush(heap, (node.weight, tie_breaker, node))
        tie_breaker += 1
    return heap[0][2]


def _fork(first: _Node, second: _Node) -> _Node:
    weight, owed = first.weight + second.weight, first.owed + second.owed
    common = gcd(first.weight, weight)
    share, whole = first.weight // common, weight // common
    offset = round(2 * whole * (Fraction(1, 2) + first.owed - Fraction(share, whole) * owed))
    return _Node(weight, owed, -1, first, second, share, whole, offset)


def _still_owed(owed: list[Fraction], weights: list[int], samples: int, drawn: list[int]) -> list[Fraction]:
    """What each source is owed after a phase of `samples`, rounded to 2^-40 samples: exact fractions would grow forever."""
    total = sum(weights)
    exact = (debt + Fraction(samples * weight, total) - count for debt, weight, count in zip(owed, weights, drawn))
    return [Fraction(round(debt * 2**40), 2**40) for debt in exact]


def integer_weights(mix: dict[str, float], sources: list[str]) -> list[int]:
    """The weights of `mix` as integers, in the order of `sources`; 0 for a source without one.

    Their ratio is exactly that of the given decimal numbers if integers that sum to at most `FINEST` can express it.
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
    """The weights of `mix` as integers in lowest terms. If they are equal, so is the order of samples; floating-point shares
    can be equal for weights that differ."""
    names = sorted(mix)
    weights = integer_weights(mix, names)
    common = gcd(*weights)
    return {name: weight // common for name, weight in zip(names, weights) if weight}


def permute(positions: np.ndarray, size: int, *key: object, epochs: np.ndarray | int = 0) -> np.ndarray:
    """Map `positions` (int64, each in [0, size)) to their places in the permutation of 0..size-1 named by `key`.

    Each epoch has its own permutation; `epochs` (int64) names one for all positions or one for each. A balanced Feistel network
    permutes the smallest domain of 2^(2h) values that holds `size`. Values that land outside are permuted again until they land
    inside (at most 4 times on average, since the domain is smaller than four times `size`).
    """
    if size <= 0:
        raise ValueError(f"a permutation needs a positive size, not {size}")
    values = np.asarray(positions, dtype=np.int64)
    if values.size and (values.min() < 0 or values.max() >= size):
        raise ValueError(f"positions must lie in [0, {size})")
    half_bits = ((size - 1).bit_length() + 1) // 2
    tweaks = np.broadcast_to(_scrambled(np.asarray(epochs, np.uint64)), values.shape)
    round_keys = [np.uint64(key_seed(*key, "round", number)) for number in range(ROUNDS)]
    walked = _feistel(values.astype(np.uint64), half_bits, round_keys, tweaks)
    outside = walked >= size
    while outside.any():
        walked[outside] = _feistel(walked[outside], half_bits, round_keys, tweaks[outside])
        outside = walked >= size
    return walked.astype(np.int64)


def _feistel(values: np.ndarray, half_bits: int, round_keys: list[np.uint64], tweaks: np.ndarray) -> np.ndarray:
    mask = np.uint64((1 << half_bits) - 1)
    left, right = values >> np.uint64(half_bits), values & mask
    for round_key in round_keys:
        left, right = right, left ^ (_scrambled(right ^ round_key ^ tweaks) & mask)
    return (left << np.uint64(half_bits)) | right


def _scrambled(values: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser: every input bit reaches every output bit (Steele, Lea, Flood 2014)."""
    with np.errstate(over="ignore"):
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
