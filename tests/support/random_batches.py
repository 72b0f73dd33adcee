"""A small training job, and a batch source of keyed random tokens with some structure to learn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from curricula.curriculum.stream.pretraining import Rows
from curricula.model.config import ExecutionConfig, ModelConfig, ScheduleConfig, TrainConfig, TrainJob
from curricula.model.runtime.reporting import read_metrics
from curricula.randomness import keyed_rng

SMALL = ModelConfig(layers=2, hidden=32, heads=4, kv_heads=2, ffn=64, vocabulary=64, sequence_length=16, init_std=0.05)

SCHEDULE = ScheduleConfig(warmup_steps=2)


def train_job(out: Path, **settings: Any) -> TrainJob:
    """A job that trains `SMALL`; `settings` are fields of TrainJob, TrainConfig or ExecutionConfig."""
    settings = {"out": out, "model": SMALL, "schedule": SCHEDULE, **settings}
    config = {name: settings.pop(name) for name in TrainConfig.__struct_fields__ if name in settings}
    execution = {name: settings.pop(name) for name in ExecutionConfig.__struct_fields__ if name in settings}
    return TrainJob(config=TrainConfig(**config), execution=ExecutionConfig(**execution), **settings)


def numbers(out: Path) -> list[dict[str, Any]]:
    """The metrics of a run without the timings."""
    return [{k: v for k, v in row.items() if k != "timing"} for row in read_metrics(out / "metrics.jsonl")]


class RandomBatches(msgspec.Struct, frozen=True, kw_only=True):
    """Counting sequences with random starts and strides; from `switch_step` on, drawn by another key."""

    sequence_length: int = 16
    global_batch: int = 8
    total_steps: int = 12
    vocabulary: int = 64
    key: str = "safe"
    switch_step: int | None = None
    masked: bool = False

    def _key(self, step: int) -> str:
        return "intervention" if self.switch_step is not None and step >= self.switch_step else self.key

    def rows(self, step: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        rng = keyed_rng("test batches", self._key(step), step)
        first = rng.integers(self.vocabulary, size=(self.global_batch, 1))
        stride = rng.integers(1, 4, size=(self.global_batch, 1))
        tokens = (first + stride * np.arange(self.sequence_length + 1)) % self.vocabulary
        mask = np.ones((self.global_batch, self.sequence_length), dtype=np.float32)
        if self.masked:
            mask = (rng.random(mask.shape) < np.linspace(0.1, 0.9, self.global_batch)[:, None]).astype(np.float32)
        return tokens.astype(np.int64)[start:stop], mask[start:stop]

    def sample_ids(self, start: int, stop: int) -> list[tuple[str, int, int]]:
        return [(self._key(sample // self.global_batch), 0, sample) for sample in range(start, stop)]

    def fingerprint(self, step: int) -> dict[str, Any]:
        switched = self.switch_step is not None and step > self.switch_step
        return {"key": self.key, "switched at": self.switch_step if switched else None, "batch": self.global_batch}

    def describe(self, step: int) -> dict[str, Any]:
        return {"phase": int(self._key(step) != self.key), "mix": {self._key(step): 1.0}}


class SpoiltBatches(RandomBatches, frozen=True, kw_only=True):
    """The batches `spoilt` are one `token` over and over, whose gradient is far larger than others'."""

    spoilt: tuple[int, ...] = ()
    token: int = 0

    def rows(self, step: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        tokens, mask = super().rows(step, start, stop)
        return np.full_like(tokens, self.token) if step in self.spoilt else tokens, mask


LENGTHS = (5, 4, 7)
"""Of the texts in a row of `PackedBatches` of 16 tokens; longer rows have longer texts."""


class PackedBatches(RandomBatches):
    """Each row holds three random texts."""

    def rows(self, step: int, start: int, stop: int) -> Rows:
        rng = np.random.default_rng(step)
        texts = rng.integers(self.vocabulary, size=(self.global_batch, 3, self.sequence_length + 1))
        packed = np.zeros((self.global_batch, self.sequence_length + 1), np.int64)
        documents = np.full(packed.shape, len(LENGTHS), np.int32)
        mask = np.zeros(packed.shape, np.float32)
        position = 0
        for number, share in enumerate(LENGTHS):
            length = share * self.sequence_length // sum(LENGTHS)
            here = slice(position, position + length)
            packed[:, here], documents[:, here] = texts[:, number, :length], number
            mask[:, position + 1 : position + length] = 1.0
            position += length
        return Rows(packed[start:stop], mask[start:stop, 1:], documents[start:stop, :-1])
