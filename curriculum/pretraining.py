"""The exact token stream of a pretraining line: a blend over shards, as the batches a training loop asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from curriculum.blend import Blend, Phase
from curriculum.errors import UserError
from curriculum.indexed import TokenStream
from curriculum.permutation import permute
from curriculum.shards import VALIDATION, content_hash, source_shards


class PretrainingBatches:
    """A `BatchSource` over tokenised sources.

    Invariants: a batch is a pure function of its step; no sample of a source comes twice before all its samples came
    once, across phases; each epoch of a source has an order of its own, keyed by the study's seed.
    """

    def __init__(self, phases: list[Phase], shards: Path, sequence_length: int, global_batch: int, seed: int):
        """`shards` holds one folder for each source named in `phases`; raises UserError where one has no sample."""
        self.sequence_length, self.global_batch, self.seed = sequence_length, global_batch, seed
        self.phases = phases
        self.blend = Blend(phases)
        self.total_steps = self.blend.total // global_batch
        self.streams: list[TokenStream] = []
        self._hashes: dict[str, str] = {}
        for name in self.blend.sources:
            prefixes = source_shards(shards / name)
            stream = TokenStream(prefixes, sequence_length)
            if not stream.samples:
                raise UserError(
                    f"source {name}: {stream.tokens} tokens in {shards / name} are less than one sample of "
                    f"{sequence_length + 1}; give it more documents or a weight of 0"
                )
            self.streams.append(stream)
            self._hashes[name] = content_hash(prefixes)

    def sample_ids(self, start: int, stop: int) -> list[tuple[str, int, int]]:
        """(source, epoch, sample of the source) of global samples [start, stop): what a run consumed, by name."""
        sources, epochs, numbers = self._locate(start, stop)
        return [(self.blend.sources[s], int(e), int(n)) for s, e, n in zip(sources, epochs, numbers)]

    def rows(self, step: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        first = step * self.global_batch
        sources, _, numbers = self._locate(first + start, first + stop)
        tokens = np.stack([self.streams[s].sample(n) for s, n in zip(sources, numbers)]).astype(np.int64)
        return tokens, np.ones((stop - start, self.sequence_length), np.float32)

    def _locate(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Source index, epoch and sample number of global samples [start, stop)."""
        sources, positions = self.blend.draw(start, stop)
        epochs, numbers = np.zeros_like(positions), np.zeros_like(positions)
        for source in np.unique(sources):
            name, size = self.blend.sources[source], self.streams[source].samples
            here = sources == source
            epochs[here] = positions[here] // size
            for epoch in np.unique(epochs[here]):
                now = here & (epochs == epoch)
                numbers[now] = permute(positions[now] % size, size, self.seed, "samples", name, int(epoch))
        return sources, epochs, numbers

    def fingerprint(self, step: int) -> dict[str, Any]:
        """Settings, sources and phases clipped to the samples before `step`: a changed future leaves it as it is."""
        consumed, start = step * self.global_batch, 0
        phases: list[dict[str, Any]] = []
        for phase in self.phases:
            until = min(phase.until, consumed)
            if until > start:
                total = sum(phase.mix.values())
                mix = {name: weight / total for name, weight in sorted(phase.mix.items()) if weight}
                phases.append({"until_sample": until, "mix": mix})
            start = phase.until
        used = {name for phase in phases for name in phase["mix"]}
        return {
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


class ValidationBatches:
    """The held-out documents of one source, in order, as a `BatchSource`; the last batch is filled up with masked rows."""

    def __init__(self, folder: Path, sequence_length: int, global_batch: int):
        self.sequence_length, self.global_batch, self.name = sequence_length, global_batch, folder.name
        self.stream = TokenStream([folder / VALIDATION], sequence_length)
        self.total_steps = -(-self.stream.samples // global_batch)

    def rows(self, step: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        numbers = step * self.global_batch + np.arange(start, stop)
        there = numbers < self.stream.samples
        tokens = np.stack([self.stream.sample(n) for n in np.where(there, numbers, 0)]).astype(np.int64)
        return tokens, np.repeat(there[:, None], self.sequence_length, axis=1).astype(np.float32)

    def fingerprint(self, step: int) -> dict[str, Any]:
        return {"validation": self.name}

    def describe(self, step: int) -> dict[str, Any]:
        return {"phase": 0, "mix": {self.name: 1.0}}
