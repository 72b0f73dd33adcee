"""Text to tokens: a source's documents as Megatron shards, each made on its own and described by a manifest.

Shard s of n holds every document from the s-th to the (s+1)-th n-th of the source but those held out for validation,
shuffled, each followed by the end-of-document token. A document's tokens depend on its id and the study's seed alone, so any
division gives the same ones; across shards the order of samples is shuffled when they are read
(curriculum/stream/pretraining.py).

A shard counts as done when its manifest, written last, matches what it would be made from now; then it is never redone.
"""

from __future__ import annotations

import hashlib
import time
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from tokenizers import Tokenizer

from curricula.curriculum.config import VALIDATION, Source
from curricula.curriculum.sources.documents import Document, Documents
from curricula.curriculum.stream.permutation import permute
from curricula.curriculum.tokens.encoder import Encoder
from curricula.curriculum.tokens.indexed import Shard, write_shard
from curricula.curriculum.tokens.speakers import name_speakers
from curricula.curriculum.tokens.tags import insert_tags
from curricula.curriculum.tokens.tokenizer import load_tokenizer, special_ids, tokenizer_hash
from curricula.durable import disk_full_explained, read_json, write_json
from curricula.errors import UserError
from curricula.progress import Progress, silent

BATCH_CHARACTERS = 1 << 20  # texts are encoded together up to this length: enough for every core, little memory
LARGEST_VOCABULARY = 2**16
MEND_ALL = "delete the source's folder of shards and run `curricula data tokenize` again"


@dataclass(frozen=True)
class TokenizeJob:
    """One source to tokenise into the folder `out`."""

    name: str
    source: Source
    tokenizer: Path
    out: Path
    root: Path  # the data folder
    seed: int
    validation_documents: int


def tokenize_source(job: TokenizeJob, progress: Progress = silent) -> None:
    """Write all shards of a source that are not there yet, one after the other."""
    for name in job.source.shard_names:
        tokenize_shard(job, name, progress)


def tokenize_shard(job: TokenizeJob, name: str, progress: Progress = silent) -> None:
    """Write shard `out`/`name` and its manifest, unless they are there.

    Raises UserError when the source has too few documents, or when the shard was made from something else.
    """
    documents = Documents.open(job.source.dataset, job.root, job.source.parts, job.source.documents)
    count = len(documents)
    if count < job.validation_documents + job.source.shards:
        raise UserError(
            f"source {job.name}: dataset {job.source.dataset} has {count} documents, too few for {job.source.shards} "
            f"shards and {job.validation_documents} validation documents; add documents or ask for fewer"
        )
    tokenizer = load_tokenizer(job.tokenizer)
    inputs = _inputs(job, documents, tokenizer)
    prefix = job.out / name
    if _is_done(prefix, inputs):
        return
    held_out = np.sort(permute(np.arange(job.validation_documents), count, job.seed, "held out", job.source.dataset))
    if name == VALIDATION:
        chosen, total = documents.select(held_out.tolist()), len(held_out)
    else:
        start, stop = (count * (int(name) + more) // job.source.shards for more in (0, 1))
        kept = set(held_out[(held_out >= start) & (held_out < stop)].tolist())
        chosen = (document for document in documents.read(start, stop) if document.number not in kept)
        total = stop - start - len(kept)
    prefix.parent.mkdir(parents=True, exist_ok=True)
    spool = prefix.with_name(f".{name}.spool")  # the documents in the order they are read
    with disk_full_explained(spool):
        try:
            with open(spool, "w+b") as file:
                _write(job, prefix, tokenizer, chosen, total, file, inputs, progress)
        finally:
            spool.unlink(missing_ok=True)


def source_shards(folder: Path) -> list[Path]:
    """Prefixes of a source's training shards, in order; raises UserError when one is missing."""
    prefixes = sorted(path.with_suffix("") for path in folder.glob("[0-9]*.json") if path.stem.isdecimal())
    if not prefixes:
        raise UserError(
            f"{folder}: holds no finished shard; name a source's folder in RUN/data/shards, or make its shards with "
            "`curricula data tokenize`"
        )
    expected = {read_manifest(prefix)["shards"] for prefix in prefixes}
    if len(expected) > 1:
        raise UserError(
            f"{folder}: its manifests disagree on how many shards there are, {sorted(expected)}; {MEND_ALL}"
        )
    (count,) = expected
    if [int(prefix.name) for prefix in prefixes] != list(range(count)):
        raise UserError(
            f"{folder}: {len(prefixes)} of {count} shards are finished; run `curricula data tokenize` for this source"
        )
    return prefixes


def is_whole(prefix: Path) -> bool:
    """Whether a shard has its three files, with the sizes that they say of each other."""
    try:
        return read_manifest(prefix)["tokens"] == Shard.open(prefix).length
    except UserError:
        return False


def read_manifest(prefix: Path) -> dict[str, Any]:
    """What a shard was made from and holds; raises UserError when it is missing or no manifest."""
    path = prefix.with_name(prefix.name + ".json")
    manifest = read_json(path)
    kinds = {"shards": int, "tokens": int, "sha256": str, "tokenizer": str}
    if not isinstance(manifest, dict) or any(type(manifest.get(key)) is not kind for key, kind in kinds.items()):
        raise UserError(f"{path}: not a shard's manifest; {MEND_ALL}")
    return manifest


def content_hash(manifests: list[dict[str, Any]]) -> str:
    """A hash of the tokens of all shards of a source."""
    return hashlib.sha256("".join(manifest["sha256"] for manifest in manifests).encode()).hexdigest()


def _inputs(job: TokenizeJob, documents: Documents, tokenizer: Tokenizer) -> dict[str, Any]:
    """What determines a source's tokens: a manifest with other values is of another shard."""
    return {
        "source": job.name,
        "dataset": job.source.dataset,
        "parts": list(job.source.parts),
        "source_documents": len(documents),
        "source_files": documents.table.identity,
        "tag_rate": job.source.tag_rate,
        "named_speakers": job.source.names_speakers,
        "shards": job.source.shards,
        "validation_documents": job.validation_documents,
        "seed": job.seed,
        "tokenizer": tokenizer_hash(tokenizer),
    }


def _is_done(prefix: Path, inputs: dict[str, Any]) -> bool:
    path = prefix.with_name(prefix.name + ".json")
    if not path.exists():
        return False
    manifest = read_manifest(prefix)
    for key, value in inputs.items():
        if manifest.get(key) != value:
            raise UserError(
                f"{path}: was made with {key} {manifest.get(key)!r}, now it is {value!r}; "
                f"delete {path.parent} to make it anew, or name another run folder"
            )
    return is_whole(prefix)  # else it is made again


def _write(
    job: TokenizeJob,
    prefix: Path,
    tokenizer: Tokenizer,
    documents: Iterable[Document],
    total: int,
    spool: IO[bytes],
    inputs: dict[str, Any],
    progress: Progress,
) -> None:
    """Tokenise into `spool`, then write the shard from it in shuffled order, then the manifest."""
    if tokenizer.get_vocab_size() > LARGEST_VOCABULARY:
        raise UserError(
            f"{job.tokenizer}: {tokenizer.get_vocab_size()} entries do not fit 16-bit shards ({LARGEST_VOCABULARY:,} at most)"
        )
    encoder = Encoder(tokenizer)
    counts = Counter({"empty_documents": 0, "not_utf8_documents": 0})
    lengths = array("i")
    began, read, encoded = time.monotonic(), 0, 0
    for batch in _batches(documents):
        for tokens in _encode(job, batch, encoder, special_ids(tokenizer), counts):
            spool.write(tokens.data)
            lengths.append(len(tokens))
            encoded += len(tokens)
        read += len(batch)
        progress(read, total, tokens_per_second=round(encoded / max(1e-3, time.monotonic() - began)))
    spool.flush()
    ends = np.cumsum(lengths, dtype=np.int64)
    written = np.memmap(spool, "<u2", "r") if len(ends) else np.empty(0, "<u2")
    order = permute(np.arange(len(ends)), max(1, len(ends)), job.seed, "documents", job.name, prefix.name)
    digest, tag, tags, largest = hashlib.sha256(), special_ids(tokenizer)[1], 0, 0

    def shuffled() -> Iterator[np.ndarray]:
        nonlocal tags, largest
        for number in order:
            tokens = written[ends[number] - lengths[number] : ends[number]]
            digest.update(tokens.data)
            tags, largest = tags + int(np.count_nonzero(tokens == tag)), max(largest, int(tokens.max()))
            yield tokens

    write_shard(prefix, shuffled())
    contents = {
        "documents": len(lengths),
        "tokens": len(written),
        "tags": tags,
        "largest_id": largest,
        "sha256": digest.hexdigest(),
    }
    write_json(prefix.with_name(prefix.name + ".json"), {**inputs, **contents, **counts})


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _encode(
    job: TokenizeJob, documents: list[Document], encoder: Encoder, special: tuple[int, int], counts: Counter[str]
) -> Iterator[np.ndarray]:
    """The tokens of each document that has any, uint16, with tags where the source has them and the end token."""
    end, tag = special
    counts.update(f"{document.odd}_documents" for document in documents if document.odd)
    whole = [document for document in documents if not document.odd]
    texts = [document.text for document in whole]
    if job.source.names_speakers:
        texts = [name_speakers(text, job.seed, "speakers", item.id) for text, item in zip(texts, whole)]
    for document, ids in zip(whole, encoder.encode(texts)):
        tokens = ids.astype("<u2")
        if job.source.tag_rate:
            tokens = insert_tags(tokens, tag, job.source.tag_rate, job.seed, "tags", document.id)
        yield np.append(tokens, np.array(end, dtype="<u2"))
