"""Megatron indexed datasets (`.idx` + `.bin`): written atomically, read through a memory map, checked before use.

Layout of `.idx` (megatron.core.datasets.indexed_dataset): "MMIDIDX\\0\\0", uint64 version 1, uint8 dtype code, uint64
sequences, uint64 documents + 1; then int32 lengths, int64 byte offsets, int64 document boundaries. `.bin` is the bare tokens.
One document is one sequence here. This module needs numpy alone, so that data can be prepared and inspected without torch.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from curriculum.durable import open_atomically
from curriculum.errors import UserError

MAGIC = b"MMIDIDX\x00\x00"
HEADER = struct.Struct("<9sQBQQ")
UINT16 = 8  # Megatron's code for uint16, which holds any vocabulary below 65,500
MEND = "delete the shard and run `curricula data tokenize` again"


def write_shard(prefix: Path, documents: Iterable[np.ndarray]) -> np.ndarray:
    """Write token arrays as `prefix`.bin and then `prefix`.idx; returns the documents' lengths (int32 [documents])."""
    lengths = []
    with open_atomically(prefix.with_suffix(".bin")) as file:
        for tokens in documents:
            file.write(np.ascontiguousarray(tokens, dtype="<u2").tobytes())
            lengths.append(len(tokens))
    sizes = np.array(lengths, dtype="<i4")
    offsets = np.zeros(len(sizes), dtype="<i8")
    np.cumsum(2 * sizes[:-1], out=offsets[1:], dtype="<i8")
    with open_atomically(prefix.with_suffix(".idx")) as file:
        file.write(HEADER.pack(MAGIC, 1, UINT16, len(sizes), len(sizes) + 1))
        file.write(sizes.tobytes() + offsets.tobytes() + np.arange(len(sizes) + 1, dtype="<i8").tobytes())
    return sizes


@dataclass(frozen=True)
class Shard:
    """An open shard: `tokens` (uint16, memory-mapped) of all documents in order, and `lengths` (int32 [documents])."""

    prefix: Path
    tokens: np.ndarray
    lengths: np.ndarray

    @classmethod
    def open(cls, prefix: Path) -> Shard:
        """Open and check; raises UserError that names the file when it is missing, foreign or truncated."""
        index, bin_path = prefix.with_suffix(".idx"), prefix.with_suffix(".bin")
        for path in (index, bin_path):
            if not path.exists():
                raise UserError(f"{path}: no such file; {MEND}")
        raw = index.read_bytes()
        if len(raw) < HEADER.size or raw[: len(MAGIC)] != MAGIC:
            raise UserError(f"{index}: not a Megatron index (it does not begin with MMIDIDX); {MEND}")
        _, version, code, sequences, documents = HEADER.unpack_from(raw)
        if (version, code) != (1, UINT16):
            raise UserError(f"{index}: version {version} with dtype code {code}, where 1 and {UINT16} are read; {MEND}")
        if len(raw) != HEADER.size + 12 * sequences + 8 * documents:
            raise UserError(f"{index}: {len(raw)} bytes do not hold its {sequences} sequences; {MEND}")
        lengths = np.frombuffer(raw, "<i4", sequences, HEADER.size)
        if (lengths < 0).any():
            raise UserError(f"{index}: has documents of negative length; {MEND}")
        expected = 2 * int(lengths.sum(dtype=np.int64))
        if bin_path.stat().st_size != expected:
            raise UserError(f"{bin_path}: {bin_path.stat().st_size} bytes where its index says {expected}; {MEND}")
        tokens = np.memmap(bin_path, "<u2", "r") if expected else np.empty(0, "<u2")
        return cls(prefix, tokens, lengths)


class TokenStream:
    """The shards of one source as one stream of tokens, cut into samples of `sequence_length` + 1 tokens.

    Sample k is tokens [k * S, k * S + S + 1): neighbours share one token, so every token but the first is a target once.
    """

    def __init__(self, prefixes: list[Path], sequence_length: int):
        self.shards = [Shard.open(prefix) for prefix in prefixes]
        self.sequence_length = sequence_length
        self._starts = np.cumsum([0] + [len(shard.tokens) for shard in self.shards], dtype=np.int64)

    @property
    def tokens(self) -> int:
        return int(self._starts[-1])

    @property
    def samples(self) -> int:
        return max(0, (self.tokens - 1) // self.sequence_length)

    def sample(self, number: int) -> np.ndarray:
        """Tokens of sample `number`, uint16 [sequence_length + 1]."""
        if not 0 <= number < self.samples:
            raise IndexError(f"sample {number} of {self.samples}")
        start = number * self.sequence_length
        stop = start + self.sequence_length + 1
        shard = int(np.searchsorted(self._starts, start, "right")) - 1
        parts = []
        while start < stop:
            offset, end = start - self._starts[shard], min(stop, int(self._starts[shard + 1]))
            parts.append(self.shards[shard].tokens[offset : offset + end - start])
            start, shard = end, shard + 1
        return parts[0] if len(parts) == 1 else np.concatenate(parts)
