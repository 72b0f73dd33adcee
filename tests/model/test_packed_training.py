"""Packed rows train as their conversations would alone."""

import numpy as np
import pytest
import torch
from random_batches import LENGTHS, SMALL, PackedBatches, train_job

from curricula.durable import read_jsonl
from curricula.model.config import EngineConfig
from curricula.model.network import transformer
from curricula.model.network.build import build_network, choose_backend, initialize
from curricula.model.runtime.distributed import started
from curricula.model.runtime.loading import MicroBatches, borders
from curricula.model.train import train


def test_attention_stays_within_each_text_of_a_row():
    tokens, _, marks = MicroBatches(PackedBatches(), 4)[0]
    with started() as parallel, torch.no_grad(), parallel.cuda_names():
        network = build_network(SMALL, parallel, choose_backend(EngineConfig(), parallel, packed=True))
        initialize(network, SMALL, seed=0)
        packed = network(tokens[:, :-1], marks, labels=tokens[:, 1:])
        position = 0
        for length in LENGTHS:
            text = tokens[:, position : position + length]
            alone = network(text[:, :-1], labels=text[:, 1:])
            assert torch.allclose(packed[:, position : position + length - 1], alone, atol=1e-5)
            position += length
        everything = network(tokens[:, :-1], labels=tokens[:, 1:])
        assert not torch.allclose(packed, everything, atol=1e-3)


def test_attention_between_borders_is_attention_under_the_mask(monkeypatch):
    """Torch's kernel for borders needs a GPU; here a plain computation takes its place."""

    def kernel(query, key, value, begins, also_begins, longest, also_longest, **causal):
        assert causal in ({"is_causal": True}, {"window_size": (-1, 0)})
        assert begins is also_begins and begins.dtype == torch.int32 and longest == also_longest == 16
        parts = zip(*(heads.split(begins.diff().tolist()) for heads in (query, key, value)))
        return torch.cat([attended.transpose(0, 1) for attended in map(causal_attention, parts)])

    def causal_attention(part):
        query, key, value = (heads.transpose(0, 1) for heads in part)
        return torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)

    monkeypatch.setattr(transformer, "varlen_attn", kernel)
    marks = borders(PackedBatches().rows(0, 0, 3).documents)
    generator = torch.Generator().manual_seed(0)
    angles, mixed = (torch.randn(shape, generator=generator) for shape in ((16, 1, 1, 8), (3, 16, 2 * 4 * 8)))
    results = []
    for mask in (transformer.crossing_mask(marks, 3, 16), transformer.steadied(marks, 48)):
        wanted = mixed.clone().requires_grad_()
        context = transformer.attend(wanted, transformer.turns_of(angles), groups=2, queries=2, mask=mask)
        (context**2).sum().backward()
        results.append((context, wanted.grad))
    for exact, other in zip(*results):
        assert torch.allclose(exact, other, atol=1e-5)


@pytest.mark.skipif(transformer.varlen_attn is None, reason="this torch has no attention between borders")
def test_torch_takes_the_borders_as_they_are_given():
    heads = torch.empty(48, 4, 8, device="meta", dtype=torch.bfloat16, requires_grad=True)
    context = transformer.attend_between(heads, heads, heads, torch.empty(64, dtype=torch.int32, device="meta"), 16)
    context.sum().backward()
    assert context.shape == heads.grad.shape == heads.shape


def test_compiled_code_for_borders_serves_batches_of_other_documents():
    few, many = (borders(np.tile(np.arange(16) // length, (2, 1))) for length in (8, 2))
    assert few.tolist() == [0, 8, 16, 24, 32]
    assert many.numel() == 17
    assert transformer.steadied(few, 32).shape == transformer.steadied(many, 32).shape
    assert transformer.steadied(few, 32)[:6].tolist() == [0, 8, 16, 24, 32, 32]
    assert transformer.steadied(few.to("meta"), 32).shape == (64,)  # without waiting for what a GPU computes


def test_packed_rows_train_whatever_the_micro_batch(tmp_path):
    for micro_batch in (8, 3):
        out = tmp_path / str(micro_batch)
        train(train_job(out, micro_batch=micro_batch, stop_step=4, packed=True), PackedBatches())
    whole, parts = (read_jsonl(tmp_path / name / "metrics.jsonl") for name in ("8", "3"))
    for one, other in zip(whole, parts):
        assert other["loss"] == pytest.approx(one["loss"], abs=1e-5)
