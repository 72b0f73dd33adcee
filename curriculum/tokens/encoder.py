"""Texts to token ids: the tokenizer's own ids, computed several times as fast for tokenizers of SmolLM's kind.

`tokenizers` tracks offsets and normalisation at every step, but tokenising a corpus needs only ids. `tiktoken` encodes
byte-level BPE and nothing else. It merges two neighbours according to the token they form, `tokenizers` according to a list
of pairs. The two agree on every text if each token of the vocabulary is formed by exactly one pair and its own text encodes
to that token: wherever two neighbours could form a token, they were formed as they are within that token's text alone, where
the last merge is that one pair. Both conditions are checked when a tokenizer is opened. A tokenizer that fails them, or is
of another kind, encodes the texts itself.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import tiktoken
from tokenizers import Tokenizer

_PIECES = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?=\p{N})|\s+(?!\S)|\s+"
"""SmolLM's pre-tokenizer as one expression: single digits, then GPT-2's words.

A digit ends the piece before it, so white space before a digit is not split as it is before a letter."""
_RARE = re.compile("[\U00010000-\U0001efff\U0002a6e0-\U0010ffff]")
"""Code points where Unicode still adds letters: whether one counts as a letter depends on a library's version of Unicode."""
_PRE_TOKENIZER = [
    {"type": "Digits", "individual_digits": True},
    {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
]
_PLAIN: dict[str, Any] = {
    "dropout": None,
    "unk_token": None,
    "byte_fallback": False,
    "ignore_merges": False,
    "continuing_subword_prefix": (None, ""),
    "end_of_word_suffix": (None, ""),
}


class Encoder:
    """Encodes texts as `tokenizer` does, with special entries that a text quotes read as letters, not as tokens."""

    def __init__(self, tokenizer: Tokenizer):
        self._reference = tokenizer
        self._reference.encode_special_tokens = True
        self._ids = np.empty(0, np.int64)
        self._fast = self._build(json.loads(tokenizer.to_str()))
        self._threads = int(os.environ.get("RAYON_NUM_THREADS") or len(os.sched_getaffinity(0)))

    @property
    def is_fast(self) -> bool:
        return self._fast is not None

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of each text, integers [n]."""
        if self._fast is None:
            return self._encode_slowly(texts)
        found = [self._ids[ranks] for ranks in self._fast.encode_ordinary_batch(list(texts), num_threads=self._threads)]
        for number, (text, ids) in enumerate(zip(texts, found)):
            lacks_a_byte = len(ids) and ids.min() < 0
            if lacks_a_byte or (not text.isascii() and _RARE.search(text)):
                (found[number],) = self._encode_slowly([text])
        return found

    def _encode_slowly(self, texts: Sequence[str]) -> list[np.ndarray]:
        encoded = self._reference.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, np.int64) for encoding in encoded]

    def _build(self, content: dict[str, Any]) -> tiktoken.Encoding | None:
        """The same encoding for tiktoken, or None where the two might differ. `_ids` maps its ranks to ids."""
        model = content["model"]
        if not _is_like_smollm(content):
            return None
        merges = ["".join(pair if isinstance(pair, list) else pair.split(" ")) for pair in model["merges"]]
        if len(set(merges)) < len(merges) or any(len(self._reference.model.tokenize(text)) != 1 for text in merges):
            return None
        alphabet = _alphabet()
        ranks: dict[bytes, int] = {}
        ids = []
        for text in [*(letter for letter in alphabet if letter in model["vocab"]), *merges]:
            ranks[bytes(alphabet[letter] for letter in text)] = len(ranks)
            ids.append(model["vocab"][text])
        for byte in range(256):
            if bytes([byte]) not in ranks:
                ranks[bytes([byte])] = len(ranks)
                ids.append(-1)
        self._ids = np.array(ids, np.int64)
        return tiktoken.Encoding("curricula", pat_str=_PIECES, mergeable_ranks=ranks, special_tokens={})


def _is_like_smollm(content: dict[str, Any]) -> bool:
    """Whether a tokenizer is byte-level BPE over single digits and GPT-2's words, and nothing else."""
    model, splitter = content["model"], content["pre_tokenizer"] or {}
    steps = [
        {key: step.get(key) for key in plain} for step, plain in zip(splitter.get("pretokenizers", ()), _PRE_TOKENIZER)
    ]
    return (
        model["type"] == "BPE"
        and all(model.get(key) in (plain if isinstance(plain, tuple) else (plain,)) for key, plain in _PLAIN.items())
        and content["normalizer"] is None
        and splitter.get("type") == "Sequence"
        and len(splitter["pretokenizers"]) == len(_PRE_TOKENIZER)
        and steps == _PRE_TOKENIZER
    )


def _alphabet() -> dict[str, int]:
    """The byte that each letter of GPT-2's alphabet stands for: visible bytes are themselves, the others come after 255."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(256 + place): byte for place, byte in enumerate(hidden)}
