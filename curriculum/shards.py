"""Text to tokens: a source's documents, shuffled once, as Megatron shards with a manifest each.

A shard counts as done when its manifest, written last, matches what it would be made from now; then it is never redone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from curriculum.config import Source
from curriculum.durable import read_json, write_json
from curriculum.errors import UserError
from curriculum.indexed import Shard, write_shard
from curriculum.permutation import permute
from curriculum.progress import Progress, silent
from curriculum.sources import dataset, read_documents
from curriculum.tags import insert_tags
from curriculum.tokenizer import load_tokenizer, special_ids, tokenizer_hash

BATCH_DOCUMENTS = 256
VALIDATION = "validation"  # the shard of held-out documents, beside the numbered ones


@dataclass(frozen=True)
class Job:
    """One source to tokenise into the folder `out`."""

    name: str
    source: Source
    tokenizer: Path
    out: Path
    root: Path | None  # local dataset folder, or None for the hub
    seed: int
    validation_documents: int


def tokenize_source(job: Job, progress: Progress = silent) -> None:
    """Write the shards `out`/00000.. and `out`/validation that are not there yet."""
    inputs = _inputs(job)
    names = [VALIDATION, *(f"{number:05d}" for number in range(job.source.shards))]
    missing = [name for name in names if not _is_done(job.out / name, inputs)]
    if not missing:
        return
    documents = list(read_documents(job.source.dataset, job.root, job.source.documents))
    if len(documents) < job.validation_documents + job.source.shards:
        raise UserError(
            f"source {job.name}: dataset {job.source.dataset} has {len(documents)} documents, too few for "
            f"{job.source.shards} shards and {job.validation_documents} validation documents; add documents or ask for fewer"
        )
    for name in set(names) - set(missing):
        before = read_json((job.out / name).with_suffix(".json"))["source_documents"]
        if before != len(documents):
            raise UserError(
                f"source {job.name}: {len(documents)} documents now, {before} when {job.out / name} was made; "
                f"bring the old data back, or delete {job.out} to make all shards anew"
            )
    order = permute(np.arange(len(documents)), len(documents), job.seed, "documents", job.name)
    held_out, training = np.split(order, [job.validation_documents])
    parts = dict(zip(names, [held_out, *np.array_split(training, job.source.shards)]))
    tokenizer = load_tokenizer(job.tokenizer)
    total, before = sum(len(parts[name]) for name in missing), 0
    for name in missing:
        chosen = [documents[number] for number in parts[name]]
        done = before
        before += len(chosen)

        _write(
            job,
            job.out / name,
            chosen,
            tokenizer,
            {**inputs, "source_documents": len(documents)},
            _shifted(progress, done, total),
        )


def _shifted(progress: Progress, before: int, of: int) -> Progress:
    """Progress of a part, told as that of the whole."""

    def report(done: int, total: int, **figures: Any) -> None:
        progress(before + done, of, **figures)

    return report


def source_shards(folder: Path) -> list[Path]:
    """Prefixes of a source's training shards, in order; raises UserError when there is none."""
    prefixes = sorted(path.with_suffix("") for path in folder.glob("[0-9]*.json"))
    if not prefixes:
        raise UserError(f"{folder}: no finished shard; run `curricula data tokenize` for this source")
    return prefixes


def content_hash(prefixes: list[Path]) -> str:
    """A hash of the tokens of all shards, from their manifests."""
    return hashlib.sha256("".join(read_json(p.with_suffix(".json"))["sha256"] for p in prefixes).encode()).hexdigest()


def _inputs(job: Job) -> dict[str, Any]:
    """What determines a source's tokens: a manifest with other values is of another shard."""
    return {
        "source": job.name,
        "dataset": job.source.dataset,
        "revision": dataset(job.source.dataset).revision,
        "documents_limit": job.source.documents,
        "tag_rate": job.source.tag_rate,
        "shards": job.source.shards,
        "validation_documents": job.validation_documents,
        "seed": job.seed,
        "tokenizer": tokenizer_hash(job.tokenizer),
    }


def _is_done(prefix: Path, inputs: dict[str, Any]) -> bool:
    path = prefix.with_suffix(".json")
    if not path.exists():
        return False
    manifest = read_json(path)
    for key, value in inputs.items():
        if manifest.get(key) != value:
            raise UserError(
                f"{path}: was made with {key} {manifest.get(key)!r}, now it is {value!r}; delete {path.parent} to make it anew"
            )
    Shard.open(prefix)
    return True


def _write(
    job: Job,
    prefix: Path,
    documents: list[tuple[str, str]],
    tokenizer: Tokenizer,
    inputs: dict[str, Any],
    progress: Progress,
) -> None:
    counts = {"empty_documents": 0}
    digest = hashlib.sha256()

    def encoded() -> Iterator[np.ndarray]:
        for tokens in _encode(job, documents, tokenizer, progress):
            if len(tokens) == 1:  # nothing but the end of document
                counts["empty_documents"] += 1
                continue
            digest.update(tokens.tobytes())
            yield tokens

    lengths = write_shard(prefix, encoded())
    sizes = {"documents": len(lengths), "tokens": int(lengths.sum()), "sha256": digest.hexdigest()}
    write_json(prefix.with_suffix(".json"), {**inputs, **sizes, **counts})


def _encode(
    job: Job, documents: list[tuple[str, str]], tokenizer: Tokenizer, progress: Progress
) -> Iterator[np.ndarray]:
    end, tag = special_ids(tokenizer)
    tokenizer.encode_special_tokens = True  # a text that quotes the tag or the end mark holds letters, not the token
    if tokenizer.get_vocab_size() > 65500:
        raise UserError(
            f"{job.tokenizer}: {tokenizer.get_vocab_size()} entries do not fit 16-bit shards (65,500 at most)"
        )
    for start in range(0, len(documents), BATCH_DOCUMENTS):
        batch = documents[start : start + BATCH_DOCUMENTS]
        for (name, _), encoding in zip(
            batch, tokenizer.encode_batch_fast([text for _, text in batch], add_special_tokens=False)
        ):
            tokens = np.array(encoding.ids, dtype="<u2")
            if job.source.tag_rate:
                tokens = insert_tags(tokens, tag, job.source.tag_rate, job.seed, "tags", name)
            yield np.append(tokens, np.array(end, dtype="<u2"))
        progress(start + len(batch), len(documents))
