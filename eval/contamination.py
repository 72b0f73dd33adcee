"""Contamination: which prompts occur in the text that models are trained on (docs/data.md has the rules).

One pass suffices: hashes find the places of a text that can match, and these are compared word by word.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

GRAM_WORDS = 13
"""Words of a prompt in a row that count as an overlap; a shorter prompt overlaps as a whole."""
LEAST_WORDS = 8
"""Fewest words of a prompt that is searched for."""
NEAR_WORDS = 3
"""Words of the grams by which near copies are found."""
NEAR_SHARE = 0.8
"""Share of a prompt's grams that a near copy contains."""
NEAR_STRETCH = 2
"""Longest near copy, in lengths of the prompt."""
_WORDS = re.compile(r"[^\W_]+")
_FACTOR = 0x9E3779B97F4A7C15
"""Odd base of the hashes: polynomials of word numbers modulo 2**64."""

Gram = tuple[int, ...]


def words_of(text: str) -> list[str]:
    return _WORDS.findall(text.lower())


class Overlap(NamedTuple):
    """Numbers of the prompts that occur in a body of text."""

    overlapping: set[int]
    near: set[int]

    def add(self, other: Overlap) -> None:
        self.overlapping.update(other.overlapping)
        self.near.update(other.near)


class PromptFinder:
    """Finds prompts in texts. A prompt's number is its place in `prompts`."""

    def __init__(self, prompts: Sequence[str]) -> None:
        self.short: set[int] = set()
        """Prompts with too few words to be searched for."""
        split = [words_of(prompt) for prompt in prompts]
        self._numbers = {word: number for number, word in enumerate(sorted({w for words in split for w in words}), 1)}
        self._lengths = [len(words) for words in split]
        self._holders: dict[int, dict[Gram, set[int]]] = defaultdict(lambda: defaultdict(set))
        """Prompts that contain a gram, by the gram's length and the gram."""
        self._needed: dict[int, int] = {}
        for prompt, words in enumerate(split):
            if len(words) < LEAST_WORDS:
                self.short.add(prompt)
                continue
            numbers = [self._numbers[word] for word in words]
            for length in (NEAR_WORDS, min(GRAM_WORDS, len(words))):
                for gram in _grams(numbers, length):
                    self._holders[length][gram].add(prompt)
            self._needed[prompt] = math.ceil(NEAR_SHARE * len(_grams(numbers, NEAR_WORDS)))
        self._keys = {
            length: np.sort(_hashes(np.array(list(grams), np.uint64), length)[:, 0])
            for length, grams in sorted(self._holders.items())
        }

    def find(self, text: str) -> Overlap:
        words = words_of(text)
        numbers = np.fromiter((self._numbers.get(word, 0) for word in words), np.uint64, len(words))
        overlapping: set[int] = set()
        seen: dict[int, list[tuple[int, Gram]]] = defaultdict(list)
        hashes, hashed = numbers, 1  # the hashes of all runs of `hashed` words
        for length, keys in self._keys.items():
            for place in range(hashed, length):
                hashes = hashes[:-1] * np.uint64(_FACTOR) + numbers[place:]
            hashed = length
            places = np.minimum(np.searchsorted(keys, hashes), len(keys) - 1)
            for place in np.flatnonzero(keys[places] == hashes).tolist():
                gram = tuple(numbers[place : place + length].tolist())
                holders = self._holders[length].get(gram, ())
                if length > NEAR_WORDS:
                    overlapping.update(holders)
                else:
                    for prompt in holders:
                        seen[prompt].append((place, gram))
        return Overlap(overlapping, {prompt for prompt, places in seen.items() if self._is_near(prompt, places)})

    def _is_near(self, prompt: int, places: list[tuple[int, Gram]]) -> bool:
        """Whether enough different 3-grams lie within a stretch of `NEAR_STRETCH` times the prompt's length."""
        needed, span = self._needed[prompt], NEAR_STRETCH * self._lengths[prompt]
        if len(places) < needed:
            return False
        inside: Counter[Gram] = Counter()
        first = 0
        for place, gram in places:
            inside[gram] += 1
            while place + NEAR_WORDS - places[first][0] > span:
                inside[places[first][1]] -= 1
                inside += Counter()  # drops those that no longer occur
                first += 1
            if len(inside) >= needed:
                return True
        return False


def _grams(numbers: Sequence[int], length: int) -> set[Gram]:
    return {tuple(numbers[i : i + length]) for i in range(len(numbers) - length + 1)}


def _hashes(numbers: np.ndarray, length: int) -> np.ndarray:
    """A hash of every run of `length` numbers along the last axis (uint64 [..., n] -> [..., n - length + 1])."""
    runs = numbers.shape[-1] - length + 1
    hashes = np.zeros((*numbers.shape[:-1], runs), np.uint64)
    for place in range(length):
        hashes = hashes * np.uint64(_FACTOR) + numbers[..., place : place + runs]
    return hashes


SHINGLE_WORDS = 5
BUCKETS, ROWS = 14, 8
"""datatrove's defaults, which find a pair with a similarity of 0.8 with a probability of 92%."""
LEAST_SIMILARITY = 0.8
_CHUNK = 4096


class Duplicates:
    """Counts exact and near duplicates among texts.

    Near duplicates have a bucket of their MinHash signatures in common, and at least 80% of the whole signatures. Signatures
    are over word 5-grams, and the share that two have in common estimates their Jaccard similarity.
    """

    def __init__(self) -> None:
        random = np.random.default_rng(0)
        self._factors = random.integers(1, 2**63, BUCKETS * ROWS, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
        self._offsets = random.integers(0, 2**63, BUCKETS * ROWS, dtype=np.uint64)
        self._numbers: dict[str, int] = {}
        self._seen: set[int] = set()
        self._signatures: list[np.ndarray] = []
        self.exact = 0
        """Number of texts with the same words as an earlier text."""

    def add(self, text: str) -> None:
        words = words_of(text)
        numbers = np.fromiter((self._numbers.setdefault(word, len(self._numbers) + 1) for word in words), np.uint64)
        shingles = np.unique(_hashes(numbers, min(SHINGLE_WORDS, max(1, len(words))))) if words else numbers
        text_hash = hash(tuple(numbers.tolist()))
        if text_hash in self._seen:
            self.exact += 1
            return
        self._seen.add(text_hash)
        least = np.full(BUCKETS * ROWS, 2**32 - 1, np.uint32)
        for start in range(0, len(shingles), _CHUNK):
            mixed = shingles[start : start + _CHUNK, None] * self._factors + self._offsets
            least = np.minimum(least, (mixed >> np.uint64(32)).min(axis=0).astype(np.uint32))
        self._signatures.append(least)

    def near(self) -> int:
        """Number of near duplicates: texts to remove until one of each group remains. Exact duplicates are not counted."""
        from scipy.sparse import coo_matrix
        from scipy.sparse.csgraph import connected_components

        if not self._signatures:
            return 0
        signatures = np.stack(self._signatures)
        buckets = _hashes(signatures.reshape(-1, BUCKETS, ROWS).astype(np.uint64), ROWS)[..., 0]
        pairs: list[np.ndarray] = []
        for bucket in range(BUCKETS):
            order = np.argsort(buckets[:, bucket], kind="stable")
            same = np.flatnonzero(buckets[order[1:], bucket] == buckets[order[:-1], bucket])
            here, there = order[same], order[same + 1]
            alike = (signatures[here] == signatures[there]).mean(axis=1) >= LEAST_SIMILARITY
            pairs.append(np.stack([here[alike], there[alike]]))
        here, there = np.concatenate(pairs, axis=1)
        graph = coo_matrix((np.ones(len(here)), (here, there)), shape=(len(signatures),) * 2)
        groups, _ = connected_components(graph, directed=False)
        return len(signatures) - int(groups)


def overlap_rows(
    overlaps: dict[str, Overlap], finder: PromptFinder, benchmark_of: Sequence[str]
) -> Iterable[dict[str, str | int]]:
    """How many prompts of each benchmark occur in each body of text, and in all together ("all")."""
    total = Overlap(set(), set())
    for overlap in overlaps.values():
        total.add(overlap)
    for benchmark in dict.fromkeys(benchmark_of):
        prompts = {number for number, name in enumerate(benchmark_of) if name == benchmark}
        for text, overlap in {"all": total, **overlaps}.items():
            yield {
                "benchmark": benchmark,
                "text": text,
                "prompts": len(prompts),
                "too_short": len(prompts & finder.short),
                "overlapping": len(prompts & overlap.overlapping),
                "near": len(prompts & overlap.near),
            }
