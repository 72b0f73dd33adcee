"""A keyed permutation of 0..n-1 that is computed, not stored: a Feistel network with cycle walking.

The order of 300 million samples costs no memory and no start-up time. Any position can be computed alone, so a single
integer resumes at any sample. A balanced Feistel network permutes the smallest domain of 2^(2h) values that holds n.
Values that land outside 0..n-1 are permuted again until they land inside (at most 4 times on average, since the domain
is smaller than 4n).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from curricula.randomness import key_seed

ROUNDS = 6
"""Enough for orders of a thousand samples or more to pass a chi-square test of randomness."""


def permute(positions: np.ndarray, size: int, *key: Any, epochs: np.ndarray | int = 0) -> np.ndarray:
    """Map `positions` (int64, each in [0, size)) to their places in the permutation of 0..size-1 named by `key`.

    Each epoch has its own permutation; `epochs` (int64) names one for all positions or one for each.
    """
    if size <= 0:
        raise ValueError(f"a permutation needs a positive size, not {size}")
    values = np.asarray(positions, dtype=np.int64)
    if values.size and (values.min() < 0 or values.max() >= size):
        raise ValueError(f"positions must lie in [0, {size})")
    half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
    tweaks = np.broadcast_to(_mix(np.asarray(epochs, np.uint64)), values.shape)
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
        left, right = right, left ^ (_mix(right ^ round_key ^ tweaks) & mask)
    return (left << np.uint64(half_bits)) | right


def _mix(values: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser: every input bit reaches every output bit (Steele, Lea, Flood 2014)."""
    with np.errstate(over="ignore"):
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
