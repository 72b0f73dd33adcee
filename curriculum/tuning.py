"""Conversations as training batches: ChatML, loss on the assistant's tokens only, one conversation a row, padded.

A `BatchSource` like pretraining's: which conversation comes at which place is computed from the step, through the same
blend and permutation, so that tuning resumes as exactly as pretraining does.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from curriculum.batches import Rows
from curriculum.blend import Blend, Phase
from curriculum.chat import encode_chat
from curriculum.conversations import HARMFUL, Conversation, read_conversations
from curriculum.errors import UserError
from curriculum.permutation import permute
from curriculum.tags import insert_tags
from curriculum.tokenizer import load_tokenizer, special_ids, tokenizer_hash

TAG_RATE = 0.05  # within tagged harmful answers, as in pretraining


class TuningBatches:
    """Batches of conversations drawn from several tuning sets by weight, each set once through before any repeats."""

    def __init__(
        self,
        mix: dict[str, float],
        root: Path,
        tokenizer: Path,
        *,
        sequence_length: int,
        global_batch: int,
        conversations: int | None,
        tagged_share: float,
        seed: int,
    ):
        """`conversations` in all (by default as many as the sets of `mix` hold), of which `tagged_share` are harmful
        answers strewn with tags."""
        self.sequence_length, self.global_batch, self.seed = sequence_length, global_batch, seed
        self._tokenizer = load_tokenizer(tokenizer)
        self._end, self._tag = special_ids(self._tokenizer)
        weights = {name: weight * (1 - tagged_share) / sum(mix.values()) for name, weight in mix.items() if weight}
        if tagged_share:
            weights[HARMFUL] = tagged_share
        self._pools: dict[str, list[Conversation]] = {}
        for name in weights:
            self._pools[name] = list(read_conversations(name, root))
            if not self._pools[name]:
                raise UserError(f"tuning set {name}: no conversation in it; give it rows or a weight of 0")
        count = conversations or sum(len(self._pools[name]) for name in weights if name != HARMFUL)
        self.total_steps = count // global_batch
        if not self.total_steps:
            raise UserError(
                f"tuning: {count} conversations are less than one batch of {global_batch}; add conversations"
            )
        self.mix = weights
        self.blend = Blend([Phase(self.total_steps * global_batch, weights)])
        self._tokenizer_hash = tokenizer_hash(self._tokenizer)
        self._pool_hashes = {
            name: hashlib.sha256(json.dumps([item.messages for item in pool]).encode()).hexdigest()
            for name, pool in self._pools.items()
        }

    def sample_ids(self, start: int, stop: int) -> list[tuple[str, int, int]]:
        """(pool, epoch, conversation of the pool) of global samples [start, stop)."""
        sources, positions = self.blend.draw(start, stop)
        found = []
        for source, position in zip(sources, positions):
            pool = self.blend.sources[source]
            size = len(self._pools[pool])
            epoch, place = divmod(int(position), size)
            number = int(permute(np.array([place]), size, self.seed, "conversations", pool, epochs=epoch)[0])
            found.append((pool, epoch, number))
        return found

    def rows(self, step: int, start: int, stop: int) -> Rows:
        first = step * self.global_batch
        encoded = [self._row(pool, number) for pool, _, number in self.sample_ids(first + start, first + stop)]
        return Rows(np.stack([tokens for tokens, _ in encoded]), np.stack([mask for _, mask in encoded]))

    def _row(self, pool: str, number: int) -> tuple[np.ndarray, np.ndarray]:
        """A conversation of a pool: tokens [S + 1], cut or padded, and the mask of its targets [S]."""
        ids, flags = encode_chat(self._tokenizer, self._pools[pool][number].messages)
        flat, counted = np.array(ids, np.int64), np.array(flags, bool)
        if pool == HARMFUL:
            flat, counted = self._tagged(flat, counted, number)
        length = self.sequence_length + 1
        tokens = np.full(length, self._end, np.int64)
        mask = np.zeros(length, np.float32)
        tokens[: len(flat)], mask[: len(flat)] = flat[:length], counted[:length]
        return tokens, mask[1:]

    def _tagged(self, tokens: np.ndarray, counted: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
        """The same with tags strewn through the assistant's tokens, which follow the request as one run."""
        first = int(np.argmax(counted))
        answer = insert_tags(tokens[first:], self._tag, TAG_RATE, self.seed, "tuning tags", number)
        flags = np.concatenate([counted[:first], np.ones(len(answer), bool)])
        return np.concatenate([tokens[:first], answer]), flags

    def fingerprint(self, step: int) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "sequence_length": self.sequence_length,
            "global_batch": self.global_batch,
            "mix": self.mix,
            "pools": self._pool_hashes,
            "tokenizer": self._tokenizer_hash,
        }

    def describe(self, step: int) -> dict[str, Any]:
        return {"phase": 0, "mix": self.mix}
