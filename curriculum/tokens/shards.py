"""Shards of tokens on disk: Megatron indexed datasets (`.bin` + `.idx`), each with a manifest (`.json`).

Shards are written atomically, checked before use and read one sample at a time. Layout of `.idx`
(megatron.core.datasets.indexed_dataset): "MMIDIDX\\0\\0", uint64 version 1, uint8 dtype code, uint64 sequences, uint64
document boundaries; then int32 lengths and int64 byte offsets of the sequences, int64 document boundaries (counted in
sequences, starting with 0). `.bin` holds nothing but tokens. We write uint16, one sequence per document; we read every
integer type, and documents of several sequences. This module needs only numpy, so data can be inspected without torch.
"""

from __future__ import annotations

import hashlib
import os
import struct
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np

from curricula.durable import names_in, open_atomically, read_json
from curricula.errors import StorageError, UserError

MAGIC = b"MMIDIDX\x00\x00"
HEADER = struct.Struct("<9sQBQQ")
UINT16 = 8
"""Megatron's code of uint16, which is enough for a vocabulary of 65,536 entries."""
DTYPES = {1: "<u1", 2: "<i1", 3: "<i2", 4: "<i4", 5: "<i8", UINT16: "<u2"}
"""Megatron's codes of the integer types."""
OPEN_FILES = 64
"""Files that one source keeps open. The usual limit of 1,024 leaves room for a dozen sources and everything else."""
MEND = "delete the shard and run `curricula data tokenize` again"
MEND_ALL = "delete the source's folder of shards and run `curricula data tokenize` again"


@dataclass(frozen=True)
class Shard:
    """A shard whose two files exist and agree.

    Opening a shard only compares sizes, so that a thousand open in a moment; `check` reads the whole index.
    """

    prefix: Path
    dtype: np.dtype
    length: int
    """Tokens in the shard."""
    sequences: int
    boundaries: int

    @classmethod
    def open(cls, prefix: Path) -> Shard:
        """Open a shard. Raises UserError, naming the file, when one is missing, truncated or not of this format."""
        index, bin_path = _beside(prefix, ".idx"), _beside(prefix, ".bin")
        with _opened(index) as file:
            raw, size = file.read(HEADER.size), os.fstat(file.fileno()).st_size
            if len(raw) < HEADER.size or raw[: len(MAGIC)] != MAGIC:
                raise UserError(f"{index}: not a Megatron index (it does not begin with MMIDIDX); {MEND}")
            _, version, code, sequences, boundaries = HEADER.unpack(raw)
            if version != 1 or code not in DTYPES:
                raise UserError(
                    f"{index}: version {version} with dtype code {code}; only version 1 with an integer type "
                    f"({sorted(DTYPES)}) can be read; {MEND}"
                )
            if size != HEADER.size + 12 * sequences + 8 * boundaries:
                raise UserError(f"{index}: {size} bytes do not hold its {sequences} sequences; {MEND}")
            dtype, expected = np.dtype(DTYPES[code]), 0
            if sequences:  # the last sequence ends where the tokens end
                (last,) = struct.unpack("<i", os.pread(file.fileno(), 4, HEADER.size + 4 * (sequences - 1)))
                (offset,) = struct.unpack("<q", os.pread(file.fileno(), 8, HEADER.size + 12 * sequences - 8))
                expected = offset + last * dtype.itemsize
        with _opened(bin_path) as file:
            bin_size = os.fstat(file.fileno()).st_size
        if bin_size != expected or expected % dtype.itemsize:
            raise UserError(f"{bin_path}: {bin_size} bytes, but its index says {expected}; {MEND}")
        return cls(prefix, dtype, expected // dtype.itemsize, sequences, boundaries)

    @property
    def bin_path(self) -> Path:
        return _beside(self.prefix, ".bin")

    @cached_property
    def tokens(self) -> np.ndarray:
        """The tokens of all sequences in order, memory-mapped: for reading a shard from end to end."""
        return np.memmap(self.bin_path, self.dtype, "r") if self.length else np.empty(0, self.dtype)

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each document (int64 [documents]). A document can consist of several sequences."""
        starts = _starts(self._read_index(0, "<i4", self.sequences))
        return np.diff(starts[self._read_index(12 * self.sequences, "<i8", self.boundaries)])

    def _read_index(self, offset: int, dtype: str, count: int) -> np.ndarray:
        path = _beside(self.prefix, ".idx")
        return np.fromfile(path, dtype, count, offset=HEADER.size + offset) if count else np.empty(0, dtype)

    def check(self) -> None:
        """Read the whole index. Raises UserError if it contradicts itself."""
        index = _beside(self.prefix, ".idx")
        lengths = self._read_index(0, "<i4", self.sequences)
        offsets = self._read_index(4 * self.sequences, "<i8", self.sequences)
        boundaries = self._read_index(12 * self.sequences, "<i8", self.boundaries)
        if (lengths < 0).any() or not np.array_equal(offsets, _starts(lengths)[:-1] * self.dtype.itemsize):
            raise UserError(f"{index}: its sequences do not follow one another in order; {MEND}")
        ends = boundaries[[0, -1]].tolist() if len(boundaries) else None
        if ends != [0, self.sequences] or (np.diff(boundaries) < 0).any():
            raise UserError(f"{index}: its documents do not cover its sequences in order; {MEND}")


class TokenStream:
    """The shards of one source as one stream of tokens, cut into samples of `sequence_length` + 1 tokens.

    Sample k is tokens [k * S, k * S + S + 1): neighbours share one token, so every token but the first is a target once.
    Samples are read with `pread`, not through memory maps: a page fault would read ahead many times what a sample needs, and
    a file that is truncated meanwhile would kill the process. Not thread-safe: threads would close each other's files.
    """

    def __init__(self, prefixes: list[Path], sequence_length: int):
        self.shards = [Shard.open(prefix) for prefix in prefixes]
        self.sequence_length = sequence_length
        self._starts = _starts(np.array([shard.length for shard in self.shards], np.int64))
        self._files: dict[int, IO[bytes]] = {}

    @property
    def tokens(self) -> int:
        return int(self._starts[-1])

    @property
    def samples(self) -> int:
        return max(0, (self.tokens - 1) // self.sequence_length)

    def read(self, number: int, out: np.ndarray) -> None:
        """Copy the tokens of sample `number` into `out` (integers [sequence_length + 1])."""
        shard, offset = self._place(number)
        filled = 0
        while filled < len(out):
            tokens = self._read_shard(shard, offset, len(out) - filled)
            out[filled : filled + len(tokens)] = tokens
            filled += len(tokens)
            shard, offset = shard + 1, 0

    def locate(self, number: int) -> tuple[Path, int]:
        """The shard in which sample `number` begins, and the number of its first token there."""
        shard, offset = self._place(number)
        return self.shards[shard].prefix, offset

    def _place(self, number: int) -> tuple[int, int]:
        if not 0 <= number < self.samples:
            raise IndexError(f"sample {number} of {self.samples}")
        start = number * self.sequence_length
        shard = int(self._starts.searchsorted(start, "right")) - 1
        return shard, start - int(self._starts[shard])

    def _read_shard(self, number: int, offset: int, most: int) -> np.ndarray:
        """At most `most` tokens of a shard, from `offset` on; fewer at its end."""
        shard, file = self.shards[number], self._file(number).fileno()
        size, count = shard.dtype.itemsize, min(most, shard.length - offset)
        raw = os.pread(file, count * size, offset * size)
        if len(raw) != count * size:
            held = os.fstat(file).st_size // size
            raise UserError(f"{shard.bin_path}: {held} tokens; it had {shard.length} when it was opened; {MEND}")
        return np.frombuffer(raw, shard.dtype)

    def _file(self, number: int) -> IO[bytes]:
        """The open file of a shard; when too many are open, the least recently used one is closed."""
        file = self._files.pop(number, None)
        if file is None:
            if len(self._files) >= OPEN_FILES:
                self._files.pop(next(iter(self._files))).close()
            file = _opened(self.shards[number].bin_path)
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        self._files[number] = file
        return file


def write_shard(prefix: Path, documents: Iterable[np.ndarray]) -> None:
    """Write token arrays as `prefix`.bin, then `prefix`.idx."""
    lengths = array("i")
    with open_atomically(_beside(prefix, ".bin")) as file:
        for tokens in documents:
            file.write(np.ascontiguousarray(tokens, dtype="<u2").data)
            lengths.append(len(tokens))
    sizes = np.array(lengths, dtype="<i4")
    with open_atomically(_beside(prefix, ".idx")) as file:
        file.write(HEADER.pack(MAGIC, 1, UINT16, len(sizes), len(sizes) + 1))
        file.write(sizes.tobytes() + (_starts(sizes)[:-1] * 2).tobytes())
        file.write(np.arange(len(sizes) + 1, dtype="<i8").tobytes())


def manifest_path(prefix: Path) -> Path:
    return _beside(prefix, ".json")


def read_manifest(prefix: Path) -> dict[str, Any]:
    """The manifest of a shard: what it holds and what it was made from. Raises UserError when it is missing or damaged."""
    path = manifest_path(prefix)
    manifest = read_json(path)
    kinds = {"shards": int, "tokens": int, "sha256": str, "tokenizer": str}
    if not isinstance(manifest, dict) or any(type(manifest.get(key)) is not kind for key, kind in kinds.items()):
        raise UserError(f"{path}: not a shard's manifest; {MEND}")
    return manifest


def whole_manifest(prefix: Path) -> dict[str, Any] | None:
    """The manifest of a shard whose three files exist and agree in size; None for any other shard, which its element makes.

    Raises StorageError when a file cannot be read now.
    """
    try:
        manifest = read_manifest(prefix)
        return manifest if manifest["tokens"] == Shard.open(prefix).length else None
    except StorageError:
        raise
    except UserError:
        return None


def source_shards(folder: Path) -> list[Path]:
    """Prefixes of a source's training shards, in order; raises UserError when one is missing."""
    names = (name.removesuffix(".json") for name in names_in(folder) if name.endswith(".json"))
    prefixes = sorted(folder / name for name in names if name.isdecimal())
    if not prefixes:
        raise UserError(
            f"{folder}: holds no finished shard; name a source's folder in RUN/data/shards, or make its shards with "
            "`curricula data tokenize`"
        )
    numbers, expected = [int(prefix.name) for prefix in prefixes], {read_manifest(prefix)["shards"] for prefix in prefixes}
    count = max(expected)
    if len(expected) > 1 or numbers[-1] >= count:
        raise UserError(
            f"{folder}: holds shards up to {prefixes[-1].name}, but its manifests expect {sorted(expected)}; {MEND_ALL}"
        )
    if numbers != list(range(count)):
        raise UserError(
            f"{folder}: {len(prefixes)} of {count} shards are finished; run `curricula data tokenize` for this source"
        )
    return prefixes


def content_hash(manifests: list[dict[str, Any]]) -> str:
    """A hash of all tokens of a source, from its shards' manifests."""
    return hashlib.sha256("".join(manifest["sha256"] for manifest in manifests).encode()).hexdigest()


def _starts(lengths: np.ndarray) -> np.ndarray:
    """The starts of consecutive stretches of these lengths, and the end of the last: int64 [n + 1]."""
    return np.concatenate([np.zeros(1, "<i8"), np.cumsum(lengths, dtype="<i8")])


def _beside(prefix: Path, suffix: str) -> Path:
    return prefix.with_name(prefix.name + suffix)


def _opened(path: Path) -> IO[bytes]:
    try:
        return open(path, "rb", buffering=0)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; check the name, and that `curricula data tokenize` has finished") from None
    except OSError as error:
        raise StorageError(f"{path}: cannot be read ({error.strerror}); check its permissions, or {MEND}") from None
