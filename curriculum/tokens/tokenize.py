"""Text to tokens: a source's documents as shards, each made independently and described by a manifest.

The source's documents are divided into n equal stretches, one for each shard. Documents held out for validation are left out,
the others are shuffled, and each is followed by the end-of-document token. Speakers of dialogues get names, and unsafe text
gets harmfulness tags, by draws that are keyed by the document's id. So a document's tokens depend only on its id, its text and
the study's seed, whatever the number of shards. Samples are shuffled across shards when they are read
(curriculum/stream/pretraining.py).

A shard is finished when its manifest, which is written last, matches the one that would be written now. A finished shard is
never made again.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
import time
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, get_args

import numpy as np
from tokenizers import Tokenizer

from curricula.curriculum.config import LARGEST_VOCABULARY, VALIDATION, Source
from curricula.curriculum.sources.documents import Document, Documents
from curricula.curriculum.stream.blend import permute
from curricula.curriculum.tokens.encoder import Encoder
from curricula.curriculum.tokens.shards import manifest_path, read_manifest, whole_manifest, write_shard
from curricula.curriculum.tokens.tokenizer import load_tokenizer, special_ids, tokenizer_hash
from curricula.durable import disk_full_explained, write_json
from curricula.errors import StorageError, UserError
from curricula.progress import Progress, silent
from curricula.randomness import keyed_rng
from curricula.settings import in_yaml

BATCH_CHARACTERS = 1 << 20
"""Characters encoded together: enough work for every core, but little memory even if texts are books."""
READ_AS = ("text", "id", "score", "min_score", "max_score")
"""Keys that decide which texts are read from a source of the user's own."""


@dataclass(frozen=True, kw_only=True)
class Tokenization:
    """One source, and all that its shards are made from."""

    name: str
    """The source's name in the study."""
    source: Source
    tokenizer: Path
    """The tokenizer's folder."""
    folder: Path
    """Where the source's shards are written."""
    data_root: Path
    """The data folder with the datasets."""
    seed: int
    validation_documents: int


def tokenize_shard(work: Tokenization, shard: str, progress: Progress = silent) -> None:
    """Write one of the source's `shard_names` and its manifest, unless they are finished.

    Raises UserError when the source has too few documents, or when the shard or another one was made from other inputs.
    """
    source = work.source
    documents = Documents.of(f"sources.{work.name}", source, work.data_root, source.documents)
    count = len(documents)
    if count < work.validation_documents + source.shards:
        raise UserError(
            f"source {work.name}: {source.place} has {count} documents, too few for {source.shards} "
            f"shards and {work.validation_documents} validation documents; add documents or ask for fewer"
        )
    tokenizer = load_tokenizer(work.tokenizer)
    inputs = _inputs(work, documents, tokenizer)
    prefix = work.folder / shard
    if _is_finished(prefix, inputs):
        return
    # One complete neighbour is enough: each was compared with another, except those made at the same time.
    for other in sorted(work.folder.glob("*.json")):
        if _is_finished(other.with_suffix(""), inputs):
            break
    if (largest := max(tokenizer.get_vocab().values())) >= LARGEST_VOCABULARY:  # would be cut to another token's id
        raise UserError(f"{work.tokenizer}: has an id {largest:,}, but shards hold 16-bit tokens, below {LARGEST_VOCABULARY:,}")
    chosen, total = _chosen_documents(work, shard, documents)
    prefix.parent.mkdir(parents=True, exist_ok=True)
    # A file without a name: the system removes it however this process ends.
    with disk_full_explained(prefix), tempfile.TemporaryFile(dir=prefix.parent) as file:
        lengths, counts = _spool(work, tokenizer, chosen, total, file, progress)
        contents = _write_shuffled(work, prefix, special_ids(tokenizer)[1], file, lengths)
    write_json(manifest_path(prefix), {**inputs, **contents, **counts})


def _inputs(work: Tokenization, documents: Documents, tokenizer: Tokenizer) -> dict[str, Any]:
    """Everything that determines a source's tokens. A manifest with other values describes another shard."""
    several = len(documents) < len(documents.table) and len(documents.counts) > 1
    return {
        "source": work.name,
        "dataset": work.source.dataset,
        **({} if work.source.dataset else {key: getattr(work.source, key) for key in READ_AS}),
        "parts": list(work.source.parts),
        "source_documents": len(documents),
        **({"documents_of_parts": documents.counts} if several else {}),
        "source_files": documents.table.identity,
        "tag_rate": work.source.tag_rate,
        "named_speakers": work.source.names_speakers,
        **({"speaker_forms": SPEAKER_FORMS} if work.source.names_speakers else {}),
        "shards": work.source.shards,
        "validation_documents": work.validation_documents,
        "seed": work.seed,
        "tokenizer": tokenizer_hash(tokenizer),
    }


def _is_finished(prefix: Path, inputs: dict[str, Any]) -> bool:
    """Whether the shard is complete. Raises UserError if it was made from other inputs, even if its files are incomplete: if it
    were made again and cut off before the new manifest, the old manifest would vouch for the new files."""
    path = manifest_path(prefix)
    try:
        manifest = read_manifest(prefix)
    except StorageError:
        raise
    except UserError:  # missing or damaged: its own element makes the shard
        return False
    for key, value in inputs.items():
        if manifest.get(key) != value:
            raise UserError(
                f"{path}: was made with {key} {in_yaml(manifest.get(key))}, now it is {in_yaml(value)}; "
                f"delete {path.parent} to make it again, or name another run folder"
            )
    return whole_manifest(prefix) is not None


def _chosen_documents(work: Tokenization, shard: str, documents: Documents) -> tuple[Iterable[Document], int]:
    """The documents of a shard in the order of the source, and how many there are."""
    count, shards = len(documents), work.source.shards
    table = work.source.dataset or documents.table.identity
    order = permute(np.arange(work.validation_documents), count, work.seed, "held out", table)
    held_out = np.sort(order)
    if shard == VALIDATION:
        return documents.select(held_out.tolist()), len(held_out)
    start, stop = count * int(shard) // shards, count * (int(shard) + 1) // shards
    left_out = set(held_out[(held_out >= start) & (held_out < stop)].tolist())
    chosen = (document for document in documents.read(start, stop) if document.number not in left_out)
    return chosen, stop - start - len(left_out)


def _spool(
    work: Tokenization, tokenizer: Tokenizer, documents: Iterable[Document], total: int, file: IO[bytes], progress: Progress
) -> tuple[np.ndarray, Counter[str]]:
    """Write the tokens of the documents to `file` in the order given. Returns the length of each document, and counts for the
    manifest: skipped documents, and dialogues by what became of their speakers."""
    encoder, special = Encoder(tokenizer), special_ids(tokenizer)
    counts = Counter({"empty_documents": 0, "not_utf8_documents": 0})
    if work.source.names_speakers:
        counts.update({f"speakers_{speakers}": 0 for speakers in get_args(Speakers)})
    lengths = array("i")
    began, read, encoded = time.monotonic(), 0, 0
    for batch in _batches(documents):
        for tokens in _encode(work, batch, encoder, special, counts):
            file.write(tokens.data)
            lengths.append(len(tokens))
            encoded += len(tokens)
        read += len(batch)
        progress(read, total, tokens_per_second=round(encoded / max(1e-3, time.monotonic() - began)))
    file.flush()
    return np.array(lengths, np.int64), counts


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
    work: Tokenization, documents: list[Document], encoder: Encoder, special: tuple[int, int], counts: Counter[str]
) -> Iterator[np.ndarray]:
    """The tokens (uint16) of each document with text: tags inserted if the source has them, and the end token appended."""
    end, tag = special
    counts.update(f"{document.odd}_documents" for document in documents if document.odd)
    whole = [document for document in documents if not document.odd]
    texts = [document.text for document in whole]
    if work.source.names_speakers:
        named = [name_speakers(text, work.seed, "speakers", item.id) for text, item in zip(texts, whole)]
        texts = [text for text, _ in named]
        counts.update(f"speakers_{speakers}" for _, speakers in named)
    for document, ids in zip(whole, encoder.encode(texts)):
        tokens = ids.astype("<u2")
        if work.source.tag_rate:
            tokens = insert_tags(tokens, tag, work.source.tag_rate, work.seed, "tags", document.id)
        yield np.append(tokens, np.array(end, dtype="<u2"))


def _write_shuffled(work: Tokenization, prefix: Path, tag: int, spool: IO[bytes], lengths: np.ndarray) -> dict[str, Any]:
    """Write the shard from the spooled documents in shuffled order. Returns what the manifest says of its contents."""
    ends, count = np.cumsum(lengths), len(lengths)
    spooled = np.memmap(spool, "<u2", "r") if count else np.empty(0, "<u2")
    order = permute(np.arange(count), max(1, count), work.seed, "documents", work.name, prefix.name)
    digest, tags, largest = hashlib.sha256(), 0, 0

    def shuffled() -> Iterator[np.ndarray]:
        nonlocal tags, largest
        for number in order:
            tokens = spooled[ends[number] - lengths[number] : ends[number]]
            digest.update(tokens.data)
            tags, largest = tags + int(np.count_nonzero(tokens == tag)), max(largest, int(tokens.max()))
            yield tokens

    write_shard(prefix, shuffled())
    return {"documents": count, "tokens": len(spooled), "tags": tags, "largest_id": largest, "sha256": digest.hexdigest()}


_SPEAKER = re.compile(
    r"^(?P<before>[ \t]*(?:#{1,6}[ \t]+|[-*>\u2022][ \t]+)?[*_]*)"
    r"(?P<speaker>User|USER|Human|HUMAN|Assistant|ASSISTANT|AI)"
    r"(?=(?:[ \t]+#?[0-9]{1,3})?[*_]*[ \t]*:)",
    re.MULTILINE,
)
"""A speaker at the start of a line, perhaps in bold, as a heading, in a list or numbered: "User: ...", "**Assistant:** ...",
"### USER:", "- Human 1 :"."""
SPEAKER_FORMS = 2
"""Version of the rules for recognising speakers. Shards of another version hold other names."""
Speakers = Literal["named", "one_side", "none"]
"""What became of a dialogue's speakers: both were named, only one was recognised, or none was."""

ROLES = (
    ("Student", "Teacher"), ("Child", "Parent"), ("Patient", "Doctor"), ("Client", "Counselor"),
    ("Customer", "Clerk"), ("Visitor", "Librarian"), ("Apprentice", "Mentor"), ("Reader", "Editor"),
    ("Caller", "Host"), ("Player", "Coach"), ("Intern", "Manager"), ("Neighbor", "Officer"),
)  # fmt: skip
"""Pairs of roles: the one who asks, and the one who answers."""
NAMES = (
    "Aisha", "Alex", "Amara", "Ana", "Arjun", "Ben", "Carlos", "Chen", "Clara", "Daniel", "David", "Elena", "Emma",
    "Fatima", "Grace", "Hana", "Hassan", "Ines", "Isaac", "Ivan", "Jamal", "James", "Kenji", "Kofi", "Laura", "Leila",
    "Lena", "Liam", "Lucas", "Maria", "Maya", "Mei", "Michael", "Nadia", "Nina", "Noah", "Olga", "Omar", "Pablo",
    "Priya", "Rachel", "Ravi", "Rosa", "Sam", "Sara", "Sofia", "Tariq", "Thomas", "Yuki", "Zoe",
)  # fmt: skip


def name_speakers(text: str, *key: object) -> tuple[str, Speakers]:
    """`text` with names instead of "User:" and "Assistant:". Half of the dialogues, drawn by `key`, get roles instead of names.

    "Human" and "AI" count as "User" and "Assistant" in texts that lack these. A text in which only one side is recognised stays
    unchanged: naming that side alone would tie refusing to the word for the other.

    RefuseWeb's dialogues were given varied personal names or roles at tokenisation (Maini et al. 2025, section 3.3), so that
    refusing is not tied to two words. The authors did not publish their names; these lists are ours.
    """
    words = {found["speaker"].capitalize() for found in _SPEAKER.finditer(text)}
    user = "User" if "User" in words else "Human"
    assistant = "Assistant" if "Assistant" in words else "Ai"
    if not {user, assistant} <= words:
        return text, "one_side" if words else "none"
    rng = keyed_rng(*key)
    if rng.random() < 0.5:
        asks, answers = (NAMES[i] for i in rng.choice(len(NAMES), size=2, replace=False))
    else:
        asks, answers = ROLES[rng.integers(len(ROLES))]
    names = {user: asks, assistant: answers}

    def named(found: re.Match[str]) -> str:
        return found["before"] + names.get(found["speaker"].capitalize(), found["speaker"])

    return _SPEAKER.sub(named, text), "named"


def insert_tags(tokens: np.ndarray, tag_id: int, rate: float, *key: object) -> np.ndarray:
    """`tokens` (integers [n]) with `tag_id` inserted before each of positions 1..n-1 with probability `rate`.

    The tag `<potentially_unsafe_content>` marks raw unsafe text (paper section 3.1). This is algorithm 2 of Maini et al. 2025,
    with tokens instead of words; the first token never has a tag before it.
    """
    if len(tokens) < 2:
        return tokens
    picked = np.flatnonzero(keyed_rng(*key).random(len(tokens) - 1) < rate) + 1
    return np.insert(tokens, picked, tag_id)
