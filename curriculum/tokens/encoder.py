"""Texts to token ids: what the tokenizer says, several times as fast where it is of SmolLM's kind.

`tokenizers` keeps track of offsets and normalisation at every step; tokenising a corpus needs ids alone. `tiktoken` encodes
byte-level BPE with nothing else. It merges neighbours by what they become, `tokenizers` by a list of pairs, and the two
agree on every text if each token of the vocabulary comes about by one pair only and its own text is encoded as that token:
for when two neighbours could become a token, they have come about as within the token's text alone, where the last
step is that one pair. Both are checked when a tokenizer is opened; one that fails, or that is of another kind, does the work
itself.
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

# SmolLM's pre-tokenizer as one expression: digits alone, then GPT-2's words. A digit ends the piece before it, so that white
# space before a digit is not parted as it is before a letter.
_PIECES = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?=\p{N})|\s+(?!\S)|\s+"
# Where new letters are still being added: which of them are letters depends on a library's version of Unicode.
_RARE = re.compile("[\U00010000-\U0001efff\U0002a6e0-\U0010ffff]")
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
    """Encodes texts as `tokenizer` does when special entries that a text quotes are letters, not tokens."""

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
            return self._slowly(texts)
        found = [self._ids[ranks] for ranks in self._fast.encode_ordinary_batch(list(texts), num_threads=self._threads)]
        for number, (text, ids) in enumerate(zip(texts, found)):
            lacks_a_byte = len(ids) and ids.min() < 0
            if lacks_a_byte or (not text.isascii() and _RARE.search(text)):
                (found[number],) = self._slowly([text])
        return found

    def _slowly(self, texts: Sequence[str]) -> list[np.ndarray]:
        encoded = self._reference.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, np.int64) for encoding in encoded]

    def _build(self, content: dict[str, Any]) -> tiktoken.Encoding | None:
        """The same encoding for tiktoken, whose ranks `_ids` maps to ids; None where the two might differ."""
        model = content["model"]
        if not _is_of_smollms_kind(content):
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


def _is_of_smollms_kind(content: dict[str, Any]) -> bool:
    """Byte-level BPE over single digits and GPT-2's words, with nothing before or between."""
    model, before = content["model"], content["pre_tokenizer"] or {}
    steps = [
        {key: step.get(key) for key in plain} for step, plain in zip(before.get("pretokenizers", ()), _PRE_TOKENIZER)
    ]
    return (
        model["type"] == "BPE"
        and all(model.get(key) in (plain if isinstance(plain, tuple) else (plain,)) for key, plain in _PLAIN.items())
        and content["normalizer"] is None
        and before.get("type") == "Sequence"
        and len(before["pretokenizers"]) == len(_PRE_TOKENIZER)
        and steps == _PRE_TOKENIZER
    )


def _alphabet() -> dict[str, int]:
    """Which byte each letter of the byte-level alphabet stands for (GPT-2's: visible bytes as themselves, others after 255)."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(256 + place): byte for place, byte in enumerate(hidden)}
