"""Packed linear layers: the products and gradients of plain layers, and a model that gives the same answers."""

import dataclasses
import weakref

import pytest
import torch
from tiny_llama import save_tiny_llama

from curricula.eval.attacks.losses import Attack, gradients
from curricula.eval.config import Gcg
from curricula.eval.decoding.sampling import sample_topk
from curricula.eval.decoding.settings import TopK
from curricula.eval.models import load_model, read_checkpoint
from curricula.eval.packed import SMALLEST, PackedLinear, pack_linears

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch is built without oneDNN")


@pytest.mark.parametrize("shape", [(1, 300), (20, 300), (2, 7, 300), (257, 300), (0, 300)])
@pytest.mark.parametrize("bias", [False, True])
def test_products_and_gradients_equal_those_of_a_plain_layer(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    plain = torch.nn.Linear(300, 250, bias=bias).requires_grad_(False)
    packed = PackedLinear(plain)
    inputs = torch.randn(shape)
    exact = torch.nn.functional.linear(inputs.double(), plain.weight.double(), plain.bias.double() if bias else None)
    with torch.no_grad():
        torch.testing.assert_close(packed(inputs).double(), exact, rtol=1e-5, atol=1e-5)

    weights = torch.randn(exact.shape)
    ours, theirs = inputs.clone().requires_grad_(), inputs.clone().requires_grad_()
    (packed(ours) * weights).sum().backward()
    (plain(theirs) * weights).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-5)


def test_only_large_float32_layers_are_packed() -> None:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.large, self.small = torch.nn.Linear(256, SMALLEST // 256), torch.nn.Linear(16, 16)
            self.precise = torch.nn.Linear(256, SMALLEST // 256, dtype=torch.float64)

    model = Model()
    plain = weakref.ref(model.large.weight)
    pack_linears(model)
    assert plain() is None  # memory holds the weights once
    assert isinstance(model.large, PackedLinear)
    assert type(model.small) is type(model.precise) is torch.nn.Linear


def test_a_packed_layer_shows_its_weights_and_refuses_to_be_saved_without_them() -> None:
    plain = torch.nn.Linear(300, 250)
    packed = PackedLinear(plain)
    assert torch.equal(packed.weight, plain.weight)
    with pytest.raises(RuntimeError, match="a packed model cannot be saved"):
        torch.nn.Sequential(packed).state_dict()


def test_a_model_with_packed_layers_gives_the_answers_and_gradients_of_the_plain_one(tmp_path) -> None:
    folder = save_tiny_llama(tmp_path, hidden=256, scale=4.0)
    packed = load_model(folder, "instruct", "cpu")
    assert any(isinstance(layer, PackedLinear) for layer in packed.model.modules())
    plain = dataclasses.replace(packed, model=read_checkpoint(folder, torch.float32)[0].eval().requires_grad_(False))

    ids = torch.arange(4, 44).view(2, 20)
    with torch.no_grad():
        torch.testing.assert_close(packed.model(ids).logits, plain.model(ids).logits, rtol=0, atol=1e-3)
    prompts, keys = [[5, 6, 7], [8, 9]], [("a",), ("b",)]
    config = TopK(max_new_tokens=12, samples=3)
    assert sample_topk(packed, prompts, keys, config) == sample_topk(plain, prompts, keys, config)

    attacks = [Attack(model, "do it", Gcg()) for model in (packed, plain)]
    ours, theirs = (
        gradients(each.loaded, [each.prefix], [each.initial_ids], each.closing_ids, each.target_ids) for each in attacks
    )
    assert (ours - theirs).norm() < 1e-4 * theirs.norm()
