"""The network as built: its size, initial weights and constants."""

import math

import msgspec
import pytest
import torch
from random_batches import SMALL

from curricula.errors import UsageError
from curricula.model.config import PRESETS, ModelConfig, OptimizerConfig
from curricula.model.network.build import build_network, build_optimizer, initialize, wrap
from curricula.model.runtime.distributed import Parallel, Ranks, started

WIDE = ModelConfig(layers=8, hidden=256, heads=8, kv_heads=4, ffn=512, vocabulary=1024, sequence_length=64)


def built(model: ModelConfig, seed: int = 0):
    with started() as parallel:
        network = build_network(model, parallel)
        initialize(network, model, seed)
    return network


@pytest.mark.parametrize(
    "model",
    [
        SMALL,
        msgspec.structs.replace(SMALL, tied=False),
        PRESETS["tiny"],
        msgspec.structs.replace(PRESETS["smollm2-135m"], layers=2, vocabulary=1024),
    ],
    ids=["small", "untied", "tiny", "two layers of the 135M"],
)
def test_a_network_has_as_many_parameters_as_its_configuration_says(model):
    assert sum(parameter.numel() for parameter in built(model).parameters()) == model.parameters()


def test_initial_weights_have_the_stated_spread_and_less_into_the_residual_stream():
    weights = dict(built(WIDE).named_parameters())
    for name, weight in weights.items():
        if weight.dim() == 1:
            assert torch.equal(weight, torch.ones_like(weight))
            continue
        into_residual = name.endswith(("linear_proj.weight", "linear_fc2.weight"))
        expected = 0.02 / math.sqrt(2 * 8) if into_residual else 0.02
        assert weight.std().item() == pytest.approx(expected, rel=0.02)
        assert abs(weight.mean().item()) < 0.05 * expected


def test_initial_weights_are_drawn_by_seed_and_name():
    one, same, other = (built(WIDE, seed).state_dict() for seed in (0, 0, 1))
    name = "decoder.layers.3.mlp.linear_fc1.weight"
    assert torch.equal(one[name], same[name])
    assert not torch.equal(one[name], other[name])
    assert not torch.equal(one[name], one["decoder.layers.4.mlp.linear_fc1.weight"])


@pytest.mark.parametrize("base", [10_000.0, 130_000.0], ids=["pretraining", "released"])
def test_positions_turn_by_powers_of_the_rope_base(base):
    assert {preset.rope_base for preset in PRESETS.values()} == {10_000.0}
    with started() as parallel:
        network = build_network(msgspec.structs.replace(WIDE, rope_base=base), parallel)
        with parallel.cuda_names():
            angles = network.rotary_pos_emb(5).squeeze()
    pairs = torch.arange(WIDE.head_size // 2)
    expected = torch.arange(5)[:, None] * base ** (-2 * pairs / WIDE.head_size)
    assert torch.allclose(angles, torch.cat([expected, expected], dim=-1), rtol=1e-5)


def test_norms_have_the_published_epsilon():
    network = built(SMALL)
    layer = network.decoder.layers[0]
    assert {layer.input_layernorm.eps, layer.pre_mlp_layernorm.eps, network.decoder.final_layernorm.eps} == {1e-5}


def test_the_optimizer_decays_all_weights_alike_as_torchs_adamw_does():
    """As the paper's did: weights whose gradients are 0 shrink by the rate times the decay, those of norms too."""
    optimizer = OptimizerConfig(lr=0.5, weight_decay=0.1)
    with started() as parallel:
        network = build_network(SMALL, parallel)
        initialize(network, SMALL, 0)
        adamw = build_optimizer(wrap(network, parallel), optimizer, parallel)
        before = {name: weight.clone() for name, weight in network.named_parameters()}
        with parallel.cuda_names():
            adamw.step()
        for name, weight in network.named_parameters():
            assert torch.allclose(weight, before[name] * 0.95), name


@pytest.mark.parametrize("scale", [0.01, 3.0], ids=["below the limit", "above it"])
def test_two_steps_with_gradients_on_either_side_of_the_limit_equal_torchs_adamw(scale):
    ours = OptimizerConfig(lr=0.1, beta1=0.6, beta2=0.7, eps=0.02, weight_decay=0.2, clip_grad=0.5)
    generator = torch.Generator().manual_seed(0)
    with started() as parallel:
        network = build_network(SMALL, parallel)
        initialize(network, SMALL, 0)
        adamw = build_optimizer(wrap(network, parallel), ours, parallel)
        copies = [weight.detach().clone().requires_grad_() for weight in network.parameters()]
        theirs = torch.optim.AdamW(copies, lr=0.1, betas=(0.6, 0.7), eps=0.02, weight_decay=0.2)
        for _ in range(2):
            drawn = [torch.randn(copy.shape, generator=generator) for copy in copies]
            whole = torch.cat([gradient.flatten() for gradient in drawn]).norm()
            for weight, copy, gradient in zip(network.parameters(), copies, drawn):
                copy.grad = gradient * (scale * ours.clip_grad / whole)
                weight.main_grad.copy_(copy.grad)
            with parallel.cuda_names():
                _, norm, _ = adamw.step()
            assert float(norm) == pytest.approx(scale * ours.clip_grad, rel=1e-4)
            torch.nn.utils.clip_grad_norm_(copies, ours.clip_grad)
            theirs.step()
        for (name, weight), copy in zip(network.named_parameters(), copies):
            assert torch.allclose(weight, copy, rtol=1e-4, atol=1e-6), name


def test_tensor_parallelism_that_does_not_divide_the_model_is_refused():
    three = Parallel(Ranks(0, 3, 0, None), torch.device("cpu"), torch.float32, 3, 1, 0)
    with pytest.raises(UsageError, match="tensor_parallel is 3, which does not divide model.kv_heads 2"):
        build_network(SMALL, three)
