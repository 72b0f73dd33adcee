"""Folders of shards: a source tokenised as a run does it, or one of any size whose tokens give their own positions."""

import hashlib
import json

import numpy as np

from curricula.curriculum.tokens.shards import write_shard
from curricula.curriculum.tokens.tokenize import Tokenization, tokenize_shard


def tokenize_source(work: Tokenization) -> None:
    """All shards of a source, one after the other."""
    for shard in work.source.shard_names:
        tokenize_shard(work, shard)


def write_source(folder, sizes, vocabulary=50_000, tokenizer="t"):
    """Shards of these sizes (in tokens) whose tokens count up through the source, modulo the vocabulary."""
    folder.mkdir(parents=True)
    start = 0
    for number, size in enumerate(sizes):
        tokens = (np.arange(start, start + size) % vocabulary).astype(np.uint16)
        write_shard(folder / f"{number:05d}", [tokens] if size else [])
        manifest = {
            "shards": len(sizes),
            "tokens": size,
            "tokenizer": tokenizer,
            "sha256": hashlib.sha256(tokens.tobytes()).hexdigest(),
        }
        (folder / f"{number:05d}.json").write_text(json.dumps(manifest))
        start += size
