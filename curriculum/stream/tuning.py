"""Conversations as training batches: ChatML, with loss only on the assistant's tokens.

A row is one padded conversation or, with `packing`, as many as fit, numbered so that attention stays within each. The place of
each conversation is computed from the step, through the same blend and permutation as in pretraining, so tuning resumes as
exactly as pretraining does.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from curricula.curriculum.config import Tuning
from curricula.curriculum.sources.conversations import (
    HARMFUL,
    Conversation,
    TuningSet,
    read_conversations,
    require_a_batch,
    require_examples,
    require_learnable,
)
from curricula.curriculum.stream.blend import Blend, Order, Phase, permute
from curricula.curriculum.stream.pretraining import Rows
from curricula.curriculum.tokens.chat import ChatEncoder
from curricula.curriculum.tokens.tokenize import insert_tags
from curricula.curriculum.tokens.tokenizer import load_tokenizer, special_ids, tokenizer_hash
from curricula.errors import UserError

log = logging.getLogger(__name__)

TAG_RATE = 0.05
"""Probability of a tag before each token of a harmful answer, as in pretraining."""
REFUSALS = " (refusals)"
"""Suffix of a pool's name for the pool of its refusals alone."""
UNTAGGED = f"{HARMFUL} (untagged)"
"""The pool of harmful answers that a mix names. The one with the plain name, `HARMFUL`, has tags inserted."""
CHUNK = 1000
"""Conversations tokenised at a time to measure their lengths."""
LOOKED_AT = 200
"""Conversations that every start tokenises first, one after another, to see whether they are cut."""
OPEN_ROWS = 32
"""Rows that packing keeps open. More would hardly pack better, and would mix early conversations with late ones."""

Encoded = tuple[np.ndarray, np.ndarray]
"""Token ids (int64) and, for each, whether it carries loss."""


class TuningBatches:
    """A `BatchSource` over conversations from several tuning sets, drawn by weight. No set repeats before it has been read."""

    def __init__(
        self,
        tuning: Tuning,
        root: Path,
        tokenizer: Path,
        *,
        where: str,
        sequence_length: int,
        seed: int,
        tagged_share: float,
        declared: Mapping[str, TuningSet],
    ):
        """`where` is the stage's key, for messages. `tagged_share` of the conversations are harmful answers with tags inserted.
        `declared` are the study's own sets."""
        self.sequence_length, self.global_batch, self.seed = sequence_length, tuning.global_batch, seed
        self._tokenizer = load_tokenizer(tokenizer)
        self._end, self._tag = special_ids(self._tokenizer)
        self._encoder = ChatEncoder(self._tokenizer)
        weights = {name: weight for name, weight in tuning.mix.items() if weight}
        read = {
            name: list(read_conversations(name, root, declared))
            for name in dict.fromkeys([*weights, *([HARMFUL] if tagged_share else [])])
        }
        self.identities = {name: _hash([[item.is_refusal, item.messages] for item in pool]) for name, pool in read.items()}
        """A hash of each whole set, whichever part of it is trained on."""
        pools = {name: read[name] for name in weights}
        for name, count in tuning.examples.items():
            if name in pools:
                pools[name] = _drawn(name, pools[name], count, seed)
        if HARMFUL in pools:
            pools[UNTAGGED], weights[UNTAGGED] = pools.pop(HARMFUL), weights.pop(HARMFUL)
        self._loss_on_all = {UNTAGGED if name == HARMFUL else name for name, part in tuning.loss.items() if part == "all"}
        count = tuning.total_conversations({name: len(pool) for name, pool in read.items()})
        if tuning.refusals is not None:
            pools, weights = _with_refusals(where, pools, weights, tuning.refusals)
        weights = {name: weight * (1 - tagged_share) / sum(weights.values()) for name, weight in weights.items()}
        if tagged_share:
            pools[HARMFUL], weights[HARMFUL] = read[HARMFUL], tagged_share
        for name in weights:
            require_learnable(name, pools[name], name.removesuffix(REFUSALS) in self._loss_on_all)
        self._pools, self.mix = pools, weights
        self._quotes = False
        for name, pool in pools.items():
            if quoting := sum(self._encoder.quotes_special(item.messages) for item in pool):
                log.info("%s: %d of %d conversations quote special tokens, which are read as text", name, quoting, len(pool))
                self._quotes = True
        require_a_batch(where, count, tuning.global_batch)
        sizes = {name: len(pool) for name, pool in pools.items()}
        self._order = Order(Blend([Phase(count, weights)]), sizes, seed, "conversations")
        self._look_at_first(where, min(count, LOOKED_AT))
        self._rows = self._packed(count) if tuning.packing else None
        rows = count if self._rows is None else len(self._rows)
        require_a_batch(where, rows, tuning.global_batch)
        self.total_steps = rows // self.global_batch
        self._tokenizer_hash = tokenizer_hash(self._tokenizer)
        self._pool_hashes = {name: _hash([item.messages for item in pool]) for name, pool in self._pools.items()}

    def _look_at_first(self, where: str, count: int) -> None:
        """Log how many of the first `count` conversations are cut, or have no loss. Raises UserError if none of them has."""
        capacity, cut, silent = self.sequence_length + 1, 0, 0
        for place in range(count):
            ids, counted = self._encoded(*self._conversation(place))
            cut += len(ids) > capacity
            silent += not counted[1:capacity].any()
        if silent == count:
            raise UserError(
                f"{where}: in none of the first {count:,} conversations does an answer begin within sequence_length "
                f"{self.sequence_length}, so nothing would be learnt; shorten the conversations, or raise it"
            )
        if cut or silent:
            log.warning(
                "the first %d conversations: %d longer than sequence_length %d, which are cut; %d with nothing to learn",
                count, cut, self.sequence_length, silent,
            )  # fmt: skip

    def sample_ids(self, start: int, stop: int) -> list[tuple[str, int, int]]:
        """(pool, epoch, number in the pool) of the conversation with which each of rows [start, stop) of the run begins."""
        return [self._conversation(place) for place, *_ in self._places(start, stop)]

    def rows(self, step: int, start: int, stop: int) -> Rows:
        first = step * self.global_batch
        filled = [self._row(places) for places in self._places(first + start, first + stop)]
        tokens, mask, documents = (np.stack(arrays) for arrays in zip(*filled))
        return Rows(tokens, mask, documents if self._rows is not None else None)

    def _places(self, start: int, stop: int) -> list[list[int]]:
        """For each of rows [start, stop) of the run, the places of its conversations."""
        return [[row] for row in range(start, stop)] if self._rows is None else self._rows[start:stop]

    def _conversation(self, place: int) -> tuple[str, int, int]:
        """(pool, epoch, number in the pool) of the conversation at `place` in the order of the run."""
        (sample,) = self._order.samples(place, place + 1)
        return sample

    def _row(self, places: list[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Conversations one after another, cut or padded to length: tokens [S + 1], the mask of the targets [S], and the
        number of the conversation that each input belongs to [S]."""
        length = self.sequence_length + 1
        tokens = np.full(length, self._end, np.int64)
        mask = np.zeros(length, np.float32)
        documents = np.full(length, len(places), np.int32)
        start = 0
        for number, place in enumerate(places):
            ids, counted = self._encoded(*self._conversation(place))
            span = slice(start, start + len(ids))
            # A conversation that is too long has its row to itself.
            tokens[span], mask[span], documents[span] = ids[:length], counted[:length], number
            mask[start] = 0.0  # nothing before a conversation predicts its first token
            start += len(ids)
        return tokens, mask[1:], documents[:-1]

    def _encoded(self, pool: str, epoch: int, number: int) -> Encoded:
        ids, flags = self._encoder.encode(self._pools[pool][number].messages)
        flat, counted = np.array(ids, np.int64), np.array(flags, bool)
        if pool.removesuffix(REFUSALS) in self._loss_on_all:
            counted = np.ones_like(counted)
        if pool != HARMFUL:
            return flat, counted
        edges = np.flatnonzero(np.diff(counted)) + 1  # between requests and answers
        parts: list[Encoded] = []
        for turn, (part, loss) in enumerate(zip(np.split(flat, edges), np.split(counted, edges))):
            if is_answer := bool(loss.any()):
                key = (number, turn) if turn > 1 else (number,)
                part = insert_tags(part, self._tag, TAG_RATE, self.seed, "tuning tags", *key)
            parts.append((part, np.full(len(part), is_answer)))
        return np.concatenate([part for part, _ in parts]), np.concatenate([loss for _, loss in parts])

    def _packed(self, count: int) -> list[list[int]]:
        """The places of each row's conversations. All are tokenised first, on all cores, to measure their lengths."""
        lengths = list(self._lengths(count))
        capacity = self.sequence_length + 1
        rows = pack(lengths, capacity)
        used = sum(min(length, capacity) for length in lengths)
        cut = sum(length > capacity for length in lengths)
        log.info(
            "packing: %d conversations into %d rows of %d tokens, %.1f%% full; %d conversations are cut",
            count, len(rows), self.sequence_length, 100 * used / (len(rows) * capacity), cut,
        )  # fmt: skip
        return rows

    def _lengths(self, count: int) -> Iterator[int]:
        for start in range(0, count, CHUNK):
            chosen = self._order.samples(start, min(start + CHUNK, count))
            chats = [self._pools[pool][number].messages for pool, _, number in chosen]
            for (pool, epoch, number), length in zip(chosen, self._encoder.lengths(chats)):
                yield len(self._encoded(pool, epoch, number)[0]) if pool == HARMFUL else length

    def fingerprint(self, step: int) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "sequence_length": self.sequence_length,
            "global_batch": self.global_batch,
            "mix": self.mix,
            "pools": self._pool_hashes,
            "tokenizer": self._tokenizer_hash,
            "packing": self._rows is not None,
            # Earlier versions encoded them as special ids, so only a run that reads such text has another stream.
            **({"quoted_special_tokens": "text"} if self._quotes else {}),
            **({"loss_on_all": sorted(self._loss_on_all)} if self._loss_on_all else {}),
        }

    def describe(self, step: int) -> dict[str, Any]:
        return {"phase": 0, "mix": self.mix}


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _drawn(name: str, pool: list[Conversation], count: int, seed: int) -> list[Conversation]:
    """`count` conversations of a pool, the first in an order drawn by the seed: a larger count includes those of a smaller."""
    require_examples(name, count, len(pool))
    return [pool[number] for number in permute(np.arange(count), len(pool), seed, "examples", name).tolist()]


def _with_refusals(
    where: str, pools: dict[str, list[Conversation]], weights: dict[str, float], share: float
) -> tuple[dict[str, list[Conversation]], dict[str, float]]:
    """The pools, each split into refusals and other conversations, weighted so that refusals are `share` of all.

    Within each half the pools keep the proportions of `weights`. Raises UserError when a half is needed but empty.
    """
    split_pools: dict[str, list[Conversation]] = {}
    split_weights: dict[str, float] = {}
    for are_refusals, half_share in ((False, 1.0 - share), (True, share)):
        if not half_share:
            continue
        half = {name: [item for item in pool if item.is_refusal == are_refusals] for name, pool in pools.items()}
        total = sum(weights[name] for name, pool in half.items() if pool)
        if not total:
            what = "refusals" if are_refusals else "conversations other than refusals"
            raise UserError(f"{where}.refusals is {share:g}, but {', '.join(pools)} hold no {what}; change it or the mix")
        for name, pool in half.items():
            if pool:
                half_name = name + (REFUSALS if are_refusals else "")
                split_pools[half_name], split_weights[half_name] = pool, half_share * weights[name] / total
    return split_pools, split_weights


def pack(lengths: Iterable[int], capacity: int) -> list[list[int]]:
    """Rows of text numbers. Each text is in one row, and no row is longer than `capacity`; longer texts count as cut to it.

    A text goes into the fullest open row with room for it, or into a new row. When more than `OPEN_ROWS` rows are open, the
    fullest is closed. The rows depend only on the lengths, so every process and every restart packs alike.
    """
    rows: list[list[int]] = []
    room: dict[int, int] = {}
    for number, length in enumerate(lengths):
        fitting = [row for row, left in room.items() if left >= length]
        if fitting:
            row = min(fitting, key=room.__getitem__)
        else:
            row = len(rows)
            rows.append([])
            room[row] = capacity
            if len(room) > OPEN_ROWS:
                del room[min(room, key=room.__getitem__)]
        rows[row].append(number)
        room[row] -= length
    return rows
