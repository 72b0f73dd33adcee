"""Random numbers by key: the same key gives the same draws, on any machine, in any order, in any process."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np


def key_seed(*key: Any) -> int:
    """A 63-bit seed from the words of `key`, such as (study seed, "tags", document id)."""
    digest = hashlib.blake2b("\x1f".join(map(str, key)).encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def keyed_rng(*key: Any) -> np.random.Generator:
    """A generator whose draws follow from `key` alone."""
    return np.random.Generator(np.random.Philox(key_seed(*key)))
