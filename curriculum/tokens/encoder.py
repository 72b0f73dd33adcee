"""Texts to token ids: the same ids as the tokenizer's, but several times as fast for tokenizers like SmolLM's.

`tokenizers` tracks offsets and normalisation at every step, but tokenising a corpus needs only ids. `tiktoken` encodes
byte-level BPE and nothing else. It merges two neighbours according to the token they form, `tokenizers` according to a list
of pairs. The two agree on every text if each token of the vocabulary is formed by exactly one pair and its own text encodes
to that token: two neighbours that could form a token were themselves formed as they are within that token's text alone, and
there the last merge is that one pair. Both conditions are checked when a tokenizer is opened. A tokenizer that fails them, or
is of another kind, encodes the texts itself.

`fastokens` reads the tokenizer's own file, with its list of pairs, and takes a quarter less time than `tiktoken`. If it is
installed, it is used under the same conditions, provided that it encodes a text of unusual pieces as the tokenizer does.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tiktoken
from tokenizers import Tokenizer

_PIECES = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?=\p{N})|\s+(?!\S)|\s+"
"""SmolLM's pre-tokenizer as one expression: single digits, then GPT-2's words.

A digit ends the piece before it, so white space before a digit is not split as before a letter."""
_RARE = re.compile("[\U00010000-\U0001efff\U0002a6e0-\U0010ffff]")
"""Code points where Unicode still adds letters: whether one counts as a letter depends on a library's version of Unicode."""
_LONG = 500_000
"""Longest run of white space, in characters, that the fast libraries get. Their expressions backtrack and fail at a million."""
_ODD = "It's  12 lamps\n\tand\u00a03\u00b2 \u6f22\u5b57, e\u0301!? <|endoftext|> <|im_end|>\x04 \U0001f44d\U0001f3fd  "
"""A text of unusual pieces, on which fastokens must agree with the tokenizer."""
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
"""The settings that a plain BPE model must have. A tuple lists equivalent values."""


class Encoder:
    """Encodes texts as `tokenizer` does. Special entries that a text quotes are encoded as text."""

    def __init__(self, tokenizer: Tokenizer):
        self._reference = tokenizer
        self._reference.encode_special_tokens = True
        content = json.loads(tokenizer.to_str())
        self._fast: Callable[[Sequence[str]], list[np.ndarray]] | None = None
        if _is_like_smollm(content) and (merges := self._merges(content["model"])):
            self._fast = self._fastokens() or _tiktoken(content["model"], merges)

    @property
    def is_fast(self) -> bool:
        return self._fast is not None

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of each text, integers [n]."""
        if self._fast is None or any(map(_has_long_space, texts)):
            return self._encode_slowly(texts)
        encoded = self._fast(texts)
        for number, (text, ids) in enumerate(zip(texts, encoded)):
            lacks_a_byte = len(ids) and ids.min() < 0
            if lacks_a_byte or (not text.isascii() and _RARE.search(text)):
                (encoded[number],) = self._encode_slowly([text])
        return encoded

    def _encode_slowly(self, texts: Sequence[str]) -> list[np.ndarray]:
        encoded = self._reference.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, np.int64) for encoding in encoded]

    def _merges(self, model: dict[str, Any]) -> list[str]:
        """The texts that the merges form; empty if two form the same text, or if one does not encode to its own token."""
        merges = list(map("".join, model["merges"]))
        if len(set(merges)) < len(merges) or any(len(self._reference.model.tokenize(text)) != 1 for text in merges):
            return []
        return merges

    def _fastokens(self) -> Callable[[Sequence[str]], list[np.ndarray]] | None:
        """The encoding function of fastokens; None if it is not installed or if it differs on `_ODD`."""
        try:
            from fastokens import Tokenizer as Fast

            fast = Fast.from_json_str(self._reference.to_str())
        except (ImportError, ValueError):
            return None

        def encode(texts: Sequence[str]) -> list[np.ndarray]:
            ids, ends = fast.encode_batch_flat(list(texts), add_special_tokens=False, split_special_tokens=True)
            flat, bounds = np.frombuffer(ids, np.uint32).astype(np.int64), np.frombuffer(ends, np.uint64).tolist()
            return [flat[start:stop] for start, stop in zip(bounds, bounds[1:])]

        return encode if encode([_ODD])[0].tolist() == self._encode_slowly([_ODD])[0].tolist() else None


def _has_long_space(text: str) -> bool:
    return len(text) > _LONG and any(len(space[0]) > _LONG for space in re.finditer(r"\s+", text))


def _tiktoken(model: dict[str, Any], merges: list[str]) -> Callable[[Sequence[str]], list[np.ndarray]]:
    """The encoding function of tiktoken. Id -1 stands for a byte that the vocabulary lacks."""
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
    id_of_rank = np.array(ids, np.int64)
    encoding = tiktoken.Encoding("curricula", pat_str=_PIECES, mergeable_ranks=ranks, special_tokens={})
    asked = os.environ.get("RAYON_NUM_THREADS", "")  # rayon, too, takes 0 and what is no number for all
    threads = (int(asked) if asked.isdecimal() else 0) or len(os.sched_getaffinity(0))
    return lambda texts: [id_of_rank[found] for found in encoding.encode_ordinary_batch(list(texts), num_threads=threads)]


def _is_like_smollm(content: dict[str, Any]) -> bool:
    """Whether a tokenizer is byte-level BPE over single digits and GPT-2's words, and nothing else."""
    model, splitter = content["model"], content["pre_tokenizer"] or {}
    steps = [{key: step.get(key) for key in plain} for step, plain in zip(splitter.get("pretokenizers", ()), _PRE_TOKENIZER)]
    return (
        model["type"] == "BPE"
        and all(model.get(key) in (plain if isinstance(plain, tuple) else (plain,)) for key, plain in _PLAIN.items())
        and content["normalizer"] is None
        and all(entry["special"] for entry in content["added_tokens"])  # others are found before a text is split
        and splitter.get("type") == "Sequence"
        and len(splitter["pretokenizers"]) == len(_PRE_TOKENIZER)
        and steps == _PRE_TOKENIZER
    )


def _alphabet() -> dict[str, int]:
    """The byte that each letter of GPT-2's alphabet stands for: visible bytes are themselves, the others come after 255."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(256 + place): byte for place, byte in enumerate(hidden)}
