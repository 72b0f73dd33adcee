"""Tokenised sources of any size, made without a tokenizer: every token says where it stands."""

import hashlib
import json

import numpy as np

from curricula.curriculum.tokens.indexed import write_shard


def write_source(folder, sizes, vocabulary=50_000, tokenizer="t"):
    """Shards of these sizes (tokens) whose tokens count up through the source, modulo the vocabulary."""
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
