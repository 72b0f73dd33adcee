"""The exact token stream of a pretraining run: a blend over shards, in batches as a training loop asks for them."""

from __future__ import annotations

from functools import lru_cache
from math import gcd
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from curricula.curriculum.config import VALIDATION
from curricula.curriculum.permutation import permute
from curricula.curriculum.stream.batches import Rows
from curricula.curriculum.stream.blend import BLOCK, Blend, Phase, integer_weights
from curricula.curriculum.tokens.shards import MEND, TokenStream, content_hash, read_manifest, source_shards
from curricula.errors import UserError

ORDER = "tree with debts, feistel-6"
"""The algorithm that orders samples. A run that began under another order cannot continue under this one."""


class PretrainingBatches:
    """A `BatchSource` over tokenised sources.

    Invariants: a batch is a pure function of its step. Across phases, no sample of a source appears twice before all its
    samples have appeared once. Each epoch of a source has its own order, keyed by the study's seed.
    """

    def __init__(
        self, phases: list[Phase], shards: Path, sequence_length: int, global_batch: int, seed: int, vocabulary: int
    ):
        """`shards` holds one folder for each source named in `phases`.

        Raises UserError when a source has no sample, was tokenised by another tokenizer than the rest, or differs from its
        manifests.
        """
        self.sequence_length, self.global_batch, self.seed, self.vocabulary = (
            sequence_length, global_batch, seed, vocabulary,
        )  # fmt: skip
        self.phases = phases
        self.blend = Blend(phases)
        self.total_steps = self.blend.total // global_batch
        self.streams: list[TokenStream] = []
        self._hashes: dict[str, str] = {}
        tokenizers: dict[str, str] = {}
        for name in self.blend.sources:
            prefixes = source_shards(shards / name)
            self.streams.append(TokenStream(prefixes, sequence_length))
            if not self.streams[-1].samples:
                raise UserError(
                    f"source {name}: {self.streams[-1].tokens} tokens in {shards / name} are fewer than one sample of "
                    f"{sequence_length + 1}; give it more documents or a weight of 0"
                )
            manifests = [read_manifest(prefix) for prefix in prefixes]
            for shard, manifest in zip(self.streams[-1].shards, manifests):
                if shard.length != manifest["tokens"]:  # the fingerprint would vouch for other tokens
                    raise UserError(
                        f"{shard.bin_path}: {shard.length} tokens, where its manifest says {manifest['tokens']}; {MEND}"
                    )
            tokenizers.update({manifest["tokenizer"]: name for manifest in manifests})
            self._hashes[name] = content_hash(manifests)
        if len(tokenizers) > 1:
            one, other, *_ = tokenizers.values()
            raise UserError(
                f"{shards}: {one} and {other} were tokenised by different tokenizers; delete the folder of the one that is "
                "out of date and run `curricula data tokenize`"
            )
        self._located = lru_cache(maxsize=8)(self._locate_block)

    def sample_ids(self, start: int, stop: int) -> list[tuple[str, int, int]]:
        """(source, epoch, sample of the source) of global samples [start, stop)."""
        sources, epochs, numbers = self._locate(start, stop)
        return [(self.blend.sources[s], int(e), int(n)) for s, e, n in zip(sources, epochs, numbers)]

    def rows(self, step: int, start: int, stop: int) -> Rows:
        first = step * self.global_batch
        tokens = np.empty((stop - start, self.sequence_length + 1), np.int64)
        sources, _, numbers = self._locate(first + start, first + stop)
        for row, source, number in zip(tokens, sources.tolist(), numbers.tolist()):
            self.streams[source].read(number, row)
        bad = _outside(tokens, self.vocabulary)
        if bad is not None:
            _refuse_id(self.streams[sources[bad[0]]], int(numbers[bad[0]]), tokens[bad], self.vocabulary)
        return Rows(tokens)

    def _locate(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Source index, epoch and sample number of global samples [start, stop)."""
        if not 0 <= start <= stop <= self.blend.total:
            raise IndexError(f"samples [{start}, {stop}) of {self.blend.total}")
        if start == stop:
            return np.empty(0, np.int16), np.empty(0, np.int64), np.empty(0, np.int64)
        blocks = [self._located(number) for number in range(start // BLOCK, (stop - 1) // BLOCK + 1)]
        window = slice(start % BLOCK, start % BLOCK + stop - start)
        if len(blocks) == 1:
            sources, epochs, numbers = blocks[0]
            return sources[window], epochs[window], numbers[window]
        sources, epochs, numbers = (np.concatenate(arrays)[window] for arrays in zip(*blocks))
        return sources, epochs, numbers

    def _locate_block(self, block: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """A whole block at once: the permutation costs a few array operations, however many samples it maps."""
        sources, positions = self.blend.draw(block * BLOCK, min((block + 1) * BLOCK, self.blend.total))
        epochs, numbers = np.zeros_like(positions), np.zeros_like(positions)
        for source in np.unique(sources):
            name, size = self.blend.sources[source], self.streams[source].samples
            drawn = sources == source
            epochs[drawn], places = np.divmod(positions[drawn], size)
            numbers[drawn] = permute(places, size, self.seed, "samples", name, epochs=epochs[drawn])
        return sources, epochs, numbers

    def fingerprint(self, step: int) -> dict[str, Any]:
        """Settings, sources and phases up to the samples before `step`: a changed future leaves it unchanged."""
        consumed, start = step * self.global_batch, 0
        phases: list[dict[str, Any]] = []
        for phase in self.phases:
            until = min(phase.until, consumed)
            if until > start:
                # The order follows from these integers exactly; different ones can have equal shares in floating point.
                mix = dict(zip(self.blend.sources, integer_weights(phase.mix, self.blend.sources)))
                common = gcd(*mix.values())
                phases.append({"until_sample": until, "mix": {name: w // common for name, w in mix.items() if w}})
            start = phase.until
        used = {name for phase in phases for name in phase["mix"]}
        return {
            "order": ORDER,
            "seed": self.seed,
            "sequence_length": self.sequence_length,
            "global_batch": self.global_batch,
            "phases": phases,
            "sources": {name: self._hashes[name] for name in sorted(used)},
        }

    def describe(self, step: int) -> dict[str, Any]:
        phase = self.blend.phase_at(step * self.global_batch)
        mix = self.phases[phase].mix
        return {"phase": phase, "mix": {name: weight / sum(mix.values()) for name, weight in mix.items()}}


def _outside(tokens: np.ndarray, vocabulary: int) -> tuple[int, int] | None:
    """Row and column of the first id without an embedding in the model, which on a GPU would fail an assertion in a kernel."""
    if not tokens.size or 0 <= tokens.min() <= tokens.max() < vocabulary:
        return None
    row, column = divmod(int(np.argmax((tokens < 0) | (tokens >= vocabulary))), tokens.shape[1])
    return row, column


def _refuse_id(stream: TokenStream, sample: int, token: int, vocabulary: int) -> NoReturn:
    prefix, place = stream.locate(sample)
    raise UserError(
        f"{prefix}.bin: the sample at token {place} holds id {token}, where the model's vocabulary has {vocabulary}; "
        f"the file is damaged or of another tokenizer: {MEND}"
    )


class ValidationBatches:
    """The held-out documents of one source, in order, as a `BatchSource`; masked rows fill up the last batch."""

    def __init__(self, folder: Path, sequence_length: int, global_batch: int, vocabulary: int):
        self.sequence_length, self.global_batch, self.name = sequence_length, global_batch, folder.name
        self.vocabulary = vocabulary
        self.stream = TokenStream([folder / VALIDATION], sequence_length)
        self.total_steps = -(-self.stream.samples // global_batch)

    def sample_ids(self, start: int, stop: int) -> list[tuple[str, int, int]]:
        return [(self.name, 0, number) for number in range(start, min(stop, self.stream.samples))]

    def rows(self, step: int, start: int, stop: int) -> Rows:
        numbers = step * self.global_batch + np.arange(start, stop)
        real = numbers < self.stream.samples
        tokens = np.empty((len(numbers), self.sequence_length + 1), np.int64)
        for row, number in zip(tokens, np.where(real, numbers, 0).tolist()):
            self.stream.read(number, row)
        bad = _outside(tokens, self.vocabulary)
        if bad is not None:
            _refuse_id(self.stream, int(numbers[bad[0]]), tokens[bad], self.vocabulary)
        return Rows(tokens, np.repeat(real[:, None], self.sequence_length, axis=1).astype(np.float32))

    def bytes_per_token(self, sizes: np.ndarray) -> float:
        """Bytes that the predicted tokens spell, on average, by the size of each entry: over the very tokens of the loss."""
        row, total = np.empty(self.sequence_length + 1, np.int64), 0
        for number in range(self.stream.samples):
            self.stream.read(number, row)
            total += int(sizes[row[1:]].sum())
        return total / (self.stream.samples * self.sequence_length)

    def fingerprint(self, step: int) -> dict[str, Any]:
        return {"validation": self.name}

    def describe(self, step: int) -> dict[str, Any]:
        return {"phase": 0, "mix": {self.name: 1.0}}
