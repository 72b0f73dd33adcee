"""Packed rows train as their conversations would alone."""

import numpy as np
import pytest
import torch
from random_batches import SMALL, RandomBatches, train_job

from curricula.curriculum.stream.batches import Rows
from curricula.durable import read_jsonl
from curricula.model.config import EngineConfig
from curricula.model.forward_backward import crossing_mask
from curricula.model.network.build import build_network, choose_backend, initialize
from curricula.model.runtime.distributed import started
from curricula.model.train import train

LENGTHS = (5, 4, 7)


class PackedBatches(RandomBatches):
    """Each row holds three random texts."""

    def rows(self, step, start, stop):
        rng = np.random.default_rng(step)
        texts = rng.integers(self.vocabulary, size=(self.global_batch, 3, self.sequence_length + 1))
        packed = np.zeros((self.global_batch, self.sequence_length + 1), np.int64)
        documents = np.full(packed.shape, len(LENGTHS), np.int32)
        mask = np.zeros(packed.shape, np.float32)
        position = 0
        for number, length in enumerate(LENGTHS):
            here = slice(position, position + length)
            packed[:, here], documents[:, here] = texts[:, number, :length], number
            mask[:, position + 1 : position + length] = 1.0
            position += length
        return Rows(packed[start:stop], mask[start:stop, 1:], documents[start:stop, :-1])


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def test_attention_stays_within_each_text_of_a_row():
    tokens, mask, documents = (torch.from_numpy(array) for array in PackedBatches().rows(0, 0, 4))
    with started() as parallel, torch.no_grad(), parallel.cuda_names():
        network = build_network(SMALL, parallel, choose_backend(EngineConfig(), parallel, packed=True))
        initialize(network, SMALL, seed=0)
        packed = network(tokens[:, :-1], None, crossing_mask(documents), labels=tokens[:, 1:])
        position = 0
        for length in LENGTHS:
            text = tokens[:, position : position + length]
            alone = network(text[:, :-1], None, None, labels=text[:, 1:])
            assert torch.allclose(packed[:, position : position + length - 1], alone, atol=1e-5)
            position += length
        everything = network(tokens[:, :-1], None, None, labels=tokens[:, 1:])
        assert not torch.allclose(packed, everything, atol=1e-3)


def test_packed_rows_train_whatever_the_micro_batch(tmp_path):
    for micro_batch in (8, 3):
        out = tmp_path / str(micro_batch)
        train(train_job(out, micro_batch=micro_batch, stop_step=4, packed=True), PackedBatches())
    whole, parts = (read_jsonl(tmp_path / name / "metrics.jsonl") for name in ("8", "3"))
    for one, other in zip(whole, parts):
        assert other["loss"] == pytest.approx(one["loss"], abs=1e-5)
