"""What the compiler makes of a block, as far as its graphs show it without a GPU."""

import pytest
import torch
from msgspec.structs import replace
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func
from torch._functorch.partitioners import min_cut_rematerialization_partition

from curricula.model.config import PRESETS, EngineConfig
from curricula.model.memory import Layout, layer_bytes
from curricula.model.network.build import LAYER_OPTIONS, build_network, choose_backend, layer_options
from curricula.model.network.transformer import turns_of
from curricula.model.runtime.distributed import started

TINY = PRESETS["tiny"]


def graphs_of_a_block(model=TINY) -> list[torch.fx.Graph]:
    """The forward and the backward graph of a tiny model's block, as they are handed to the code generator."""
    graphs = []

    def note(module, inputs):
        graphs.append(module.graph)
        return make_boxed_func(module.forward)

    backend = aot_autograd(fw_compiler=note, bw_compiler=note, partition_fn=min_cut_rematerialization_partition)
    with started() as parallel:
        network = build_network(model, parallel, choose_backend(EngineConfig(), parallel))
        block = network.decoder.layers[0]
        x = torch.randn(3, 8, network.config.hidden_size, requires_grad=True)
        compute = torch.compile(block.compute, fullgraph=True, dynamic=False, backend=backend)
        compute(x, None, turns_of(network.rotary_pos_emb(8)))[0].sum().backward()
    return graphs


def test_the_sum_between_the_halves_is_kept_for_the_backward_pass():
    forward, backward = graphs_of_a_block()
    kept = [node for node in forward.output_node().args[0] if isinstance(node, torch.fx.Node)]
    assert any(node.target is torch.ops.aten.add.Tensor for node in kept[2:])
    projected = [node for node in forward.nodes if node.target is torch.ops.aten.mm.default][1]
    assert projected not in kept


@pytest.mark.parametrize("kv_heads", [2, 4])
def test_a_block_keeps_as_many_bytes_as_the_memory_estimate_says(kv_heads):
    model = replace(TINY, kv_heads=kv_heads)
    _, *kept = graphs_of_a_block(model)[0].output_node().args[0]
    tensors = [node.meta["val"] for node in kept if isinstance(node, torch.fx.Node)]
    held = {it.untyped_storage()._cdata: it.untyped_storage().nbytes() for it in tensors if it.shape[0] in (3, 3 * 8)}
    assert sum(held.values()) == pytest.approx(2 * 3 * 8 * layer_bytes(model, Layout(3, 8)), rel=0.02)  # float32 takes twice


def test_options_that_torch_does_not_know_are_left_out(monkeypatch):
    assert layer_options().items() <= LAYER_OPTIONS.items()
    monkeypatch.setitem(LAYER_OPTIONS, "of_another_torch", True)
    assert "of_another_torch" not in layer_options()
