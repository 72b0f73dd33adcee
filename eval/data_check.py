"""What a declared table holds, before a GPU-hour is spent on it: first rows, counts, duplicates and benchmark prompts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from curricula.curriculum.sources.conversations import TuningSet
from curricula.curriculum.sources.declared import DeclaredTable, TextTable
from curricula.curriculum.sources.documents import Document, Documents
from curricula.curriculum.tokens.shards import Shard, source_shards
from curricula.curriculum.tokens.tokenizer import load_tokenizer, special_ids
from curricula.eval.contamination import Duplicates, Overlap, PromptFinder

SHOWN_ROWS = 3
SHOWN_CHARACTERS = 300
"""Characters shown of each value in a row."""
_BATCH = 256


def table_facts(key: str, table: DeclaredTable, root: Path, limit: int | None) -> dict[str, Any]:
    """The first rows and the size of a table, and the refusals among its first `limit` conversations; `key` is its key in the
    study."""
    rows = table.look(root, key)
    opened = table.open(root, key)
    refusals = {}
    if isinstance(table, TuningSet):
        refusals = {"refusals": sum(conversation.is_refusal for conversation in islice(table.conversations(root, key), limit))}
    return {
        **refusals,
        "table": key,
        "place": table.place,
        "files": len(opened.files),
        "bytes": sum(file.stat().st_size for file in opened.files),
        "rows": len(opened),
        "first_rows": [{name: _shown(value) for name, value in row.items()} for row in rows[:SHOWN_ROWS]],
    }


def documents_of(key: str, table: DeclaredTable, root: Path) -> Iterator[Document]:
    """The texts of a table of documents or conversations, as training reads them; none for a table of prompts."""
    if isinstance(table, TextTable):
        yield from Documents.of(key, table, root).read()
    elif isinstance(table, TuningSet):
        for number, conversation in enumerate(table.read(root, key)):
            text = "\n\n".join(message["content"] for message in conversation.messages)
            odd = "" if text.strip() else "empty"
            yield Document(number, str(number), text, odd if conversation.is_utf8 else "not_utf8")


def shard_documents(source: Path, tokenizer_folder: Path) -> Iterator[Document]:
    """The training documents of a tokenised source, decoded, without tags and end tokens."""
    tokenizer = load_tokenizer(tokenizer_folder)
    marks, number = special_ids(tokenizer), 0
    for prefix in source_shards(source):
        shard = Shard.open(prefix)
        ends = np.cumsum(shard.lengths)
        for start in range(0, len(ends), _BATCH):
            ids = [
                [token for token in shard.tokens[end - length : end].tolist() if token not in marks]
                for end, length in zip(ends[start : start + _BATCH], shard.lengths[start : start + _BATCH])
            ]
            for text in tokenizer.decode_batch(ids, skip_special_tokens=False):
                yield Document(number, str(number), text)
                number += 1


def text_facts(documents: Iterable[Document], finder: PromptFinder, limit: int | None) -> tuple[dict[str, Any], Overlap]:
    """Counts over the documents, or over the first `limit` of them, and the prompts that occur in these."""
    duplicates, overlap = Duplicates(), Overlap(set(), set())
    ids: set[str] = set()
    counts = dict.fromkeys(("documents", "characters", "empty", "not_utf8", "repeated_ids"), 0)
    for document in islice(documents, limit):
        counts["documents"] += 1
        counts["repeated_ids"] += document.id in ids
        ids.add(document.id)
        if document.odd:
            counts[document.odd] += 1
            continue
        counts["characters"] += len(document.text)
        duplicates.add(document.text)
        overlap.add(finder.find(document.text))
    return counts | {"exact_duplicates": duplicates.exact, "near_duplicates": duplicates.near()}, overlap


def _shown(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float)):
        return value
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "…"
