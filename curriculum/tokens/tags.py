"""Harmfulness tags: `<potentially_unsafe_content>` strewn through raw unsafe text (paper section 3.1).

Before each token position but the first, the tag is inserted with probability `rate` (Maini et al. 2025, algorithm 2, with
tokens for words). The draw is keyed by the document's id, so any sharding of the same documents gives the same tokens.
"""

from __future__ import annotations

import numpy as np

from curricula.randomness import keyed_rng


def insert_tags(tokens: np.ndarray, tag_id: int, rate: float, *key: object) -> np.ndarray:
    """`tokens` (integers [n]) with `tag_id` before each position 1..n-1 that a draw of probability `rate` picks."""
    if len(tokens) < 2:
        return tokens
    picked = np.flatnonzero(keyed_rng(*key).random(len(tokens) - 1) < rate) + 1
    return np.insert(tokens, picked, tag_id)
