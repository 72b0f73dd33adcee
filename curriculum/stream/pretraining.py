"""The interface between a training loop and its data, `BatchSource`: any row of any global batch, computed from the step alone.

`PretrainingBatches` implements it for pretraining, as a blend over shards of tokens. Validation needs only a `RowSource`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from curricula.curriculum.config import VALIDATION
from curricula.curriculum.stream.blend import Blend, Order, Phase, exact_shares
from curricula.curriculum.tokens.shards import MEND, TokenStream, content_hash, read_manifest, source_shards
from curricula.errors import UserError

ORDER = "tree with debts, feistel-6"
"""The algorithm that orders samples. A run that began under another order cannot continue under this one."""


class Rows(NamedTuple):
    """Rows of a batch, n sequences of S tokens."""

    tokens: np.ndarray
    """int64 [n, S + 1]: the inputs and, shifted by one, their targets."""
    mask: np.ndarray | None = None
    """float32 [n, S]: the weight of each target's loss; None if every target counts."""
    documents: np.ndarray | None = None
    """int32 [n, S]: the number, within its row, of the document that each input belongs to. Attention must not cross documents.
    None if each row is one text."""


class RowSource(Protocol):
    """Global batches that are a pure function of the step.

    It does not know the data-parallel size: each rank asks for its own rows of the global batch.
    """

    sequence_length: int
    global_batch: int
    """Sequences in one global batch."""
    total_steps: int

    def rows(self, step: int, start: int, stop: int) -> Rows:
        """Rows [start, stop) of global batch `step`."""


class BatchSource(RowSource, Protocol):
    """A stream to train on. A single integer resumes it, and it can say what a run has consumed."""

    def sample_ids(self, start: int, stop: int) -> list[tuple[str, int, int]]:
        """(source, epoch, number in the source) of the text with which each of global samples [start, stop) begins, for the
        record of what a run consumed. Row r of batch s is global sample s * global_batch + r."""

    def fingerprint(self, step: int) -> dict[str, Any]:
        """A JSON-serialisable record of all that determines the batches before `step`: equal records mean equal batches."""

    def describe(self, step: int) -> dict[str, Any]:
        """The composition of batch `step`, for the metrics line: {"phase": 1, "mix": {"web": 0.7, ...}}."""


class PretrainingBatches:
    """A `BatchSource` over tokenised sources.

    A batch is a pure function of its step. Across phases, no sample of a source appears twice before all its samples have
    appeared once. Each epoch of a source has its own order, keyed by the study's seed.
    """

    def __init__(
        self,
        phases: list[Phase],
        shards: Path,
        sequence_length: int,
        global_batch: int,
        seed: int,
        vocabulary: int,
        begin: int = 0,
        *,
        loss: Mapping[str, str] | None = None,
        tag: int | None = None,
    ):
        """`shards` holds one folder for each source named in `phases`. Step 0 begins at sample `begin` of the phases. `loss`
        names the sources of which only the tags count ("tags"; their id is `tag`) or no token counts ("none").

        Raises UserError when a source has no sample, was tokenised by another tokenizer than the rest, or differs from its
        manifests.
        """
        self.sequence_length, self.global_batch = sequence_length, global_batch
        self.seed, self.vocabulary = seed, vocabulary
        self.phases, self.begin = phases, begin
        self.blend = Blend(phases)
        self._loss, self._tag = {name: kind for name, kind in (loss or {}).items() if kind != "all"}, tag
        self.total_steps = (self.blend.total - begin) // global_batch
        self.streams: list[TokenStream] = []
        self._hashes: dict[str, str] = {}
        tokenizers: dict[str, str] = {}
        for name in self.blend.sources:
            stream, manifests = _open_source(shards / name, sequence_length)
            self.streams.append(stream)
            tokenizers.update({manifest["tokenizer"]: name for manifest in manifests})
            self._hashes[name] = content_hash(manifests)
        if len(tokenizers) > 1:
            one, other, *_ = tokenizers.values()
            raise UserError(
                f"{shards}: {one} and {other} were tokenised by different tokenizers; delete the folder of the one that is "
                "out of date and run `curricula data tokenize`"
            )
        sizes = {name: stream.samples for name, stream in zip(self.blend.sources, self.streams)}
        self._order = Order(self.blend, sizes, seed, "samples")

    def sample_ids(self, start: int, stop: int) -> list[tuple[str, int, int]]:
        return self._order.samples(self.begin + start, self.begin + stop)

    def rows(self, step: int, start: int, stop: int) -> Rows:
        first = self.begin + step * self.global_batch
        sources, _, numbers = self._order.locate(first + start, first + stop)
        tokens = _read([self.streams[source] for source in sources], numbers, self.vocabulary, self.sequence_length)
        return Rows(tokens, self._mask(tokens, [self._loss.get(self.blend.sources[source], "all") for source in sources]))

    def _mask(self, tokens: np.ndarray, kinds: list[str]) -> np.ndarray | None:
        """Which targets count in rows whose sources have these kinds of loss; None if all do."""
        if set(kinds) <= {"all"}:
            return None
        all_count = np.array([kind == "all" for kind in kinds])[:, None]
        tags_count = np.array([kind == "tags" for kind in kinds])[:, None]
        return (all_count | (tags_count & (tokens[:, 1:] == self._tag))).astype(np.float32)

    def fingerprint(self, step: int) -> dict[str, Any]:
        """Settings, sources and phases up to the samples before `step`: a changed future leaves it unchanged."""
        consumed, start = self.begin + step * self.global_batch, 0
        phases: list[dict[str, Any]] = []
        for phase in self.phases:
            until = min(phase.until, consumed)
            if until > start:
                phases.append({"until_sample": until, "mix": exact_shares(phase.mix)})
            start = phase.until
        used = {name for phase in phases for name in phase["mix"]}
        masked = {name: kind for name, kind in sorted(self._loss.items()) if name in used}
        return {
            "order": ORDER,
            "seed": self.seed,
            "sequence_length": self.sequence_length,
            "global_batch": self.global_batch,
            **({"begin_sample": self.begin} if self.begin else {}),
            "phases": phases,
            "sources": {name: self._hashes[name] for name in sorted(used)},
            **({"loss": masked} if masked else {}),
        }

    def describe(self, step: int) -> dict[str, Any]:
        phase = self.blend.phase_at(self.begin + step * self.global_batch)
        mix = self.phases[phase].mix
        return {"phase": phase, "mix": {name: weight / sum(mix.values()) for name, weight in mix.items()}}


def _open_source(folder: Path, sequence_length: int) -> tuple[TokenStream, list[dict[str, Any]]]:
    """The stream of a source's tokens, and the manifests of its shards."""
    prefixes = source_shards(folder)
    stream = TokenStream(prefixes, sequence_length)
    if not stream.samples:
        raise UserError(
            f"source {folder.name}: {stream.tokens} tokens in {folder} are fewer than one sample of {sequence_length + 1}; "
            "give it more documents or a weight of 0"
        )
    manifests = [read_manifest(prefix) for prefix in prefixes]
    for shard, manifest in zip(stream.shards, manifests):
        if shard.length != manifest["tokens"]:  # the fingerprint would vouch for other tokens
            raise UserError(f"{shard.bin_path}: {shard.length} tokens, but its manifest says {manifest['tokens']}; {MEND}")
    return stream, manifests


def _read(streams: Sequence[TokenStream], numbers: np.ndarray, vocabulary: int, sequence_length: int) -> np.ndarray:
    """Read sample `numbers[i]` of `streams[i]` into row i: int64 [n, sequence_length + 1].

    Raises UserError for an id that the model has no embedding for: on a GPU, it would fail an assertion in a kernel.
    """
    tokens = np.empty((len(numbers), sequence_length + 1), np.int64)
    for row, stream, number in zip(tokens, streams, numbers.tolist()):
        stream.read(number, row)
    if tokens.size and not 0 <= np.min(tokens) <= np.max(tokens) < vocabulary:
        bad, column = divmod(int(np.argmax((tokens < 0) | (tokens >= vocabulary))), tokens.shape[1])
        prefix, place = streams[bad].locate(int(numbers[bad]))
        raise UserError(
            f"{prefix}.bin: the sample at token {place} holds id {tokens[bad, column]}, but the model's vocabulary has "
            f"{vocabulary}; the file is damaged or of another tokenizer: {MEND}"
        )
    return tokens


class ValidationBatches:
    """The held-out documents of one source, in order, as a `RowSource`. Masked rows fill up the last batch.

    The tag, with id `tag`, is read but never counts as a target: models that have never seen it would fare worse by it alone.
    """

    def __init__(self, folder: Path, sequence_length: int, global_batch: int, vocabulary: int, tag: int):
        self.sequence_length, self.global_batch = sequence_length, global_batch
        self.vocabulary, self.tag = vocabulary, tag
        self.stream = TokenStream([folder / VALIDATION], sequence_length)
        self.total_steps = -(-self.stream.samples // global_batch)

    def rows(self, step: int, start: int, stop: int) -> Rows:
        numbers = step * self.global_batch + np.arange(start, stop)
        real = numbers < self.stream.samples
        streams = [self.stream] * len(numbers)
        tokens = _read(streams, np.where(real, numbers, 0), self.vocabulary, self.sequence_length)
        return Rows(tokens, (real[:, None] & (tokens[:, 1:] != self.tag)).astype(np.float32))

    def bytes_per_token(self, sizes: np.ndarray) -> float:
        """Mean bytes of the tokens that the loss is taken over. `sizes` holds the bytes of each entry of the vocabulary."""
        row, total, counted = np.empty(self.sequence_length + 1, np.int64), 0, 0
        for number in range(self.stream.samples):
            self.stream.read(number, row)
            targets = row[1:][row[1:] != self.tag]
            total, counted = total + int(sizes[targets].sum()), counted + len(targets)
        return total / max(1, counted)
