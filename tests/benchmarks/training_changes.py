"""Changes to a backend, one at a time, for the training benchmark's rows that measure what each part of it is worth.

They are made from outside, since users need no such switches: each is a context in which a network is built and trained.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F

from curricula.model.network import build, transformer

Change = Callable[[], contextlib.AbstractContextManager[Any]]


def inductor(**settings: Any) -> Change:
    """Inductor's settings, with `__` for the dot in their names.

    They are given with each call of `torch.compile`: on a GPU the backward graph is compiled in a thread of autograd's, which
    from torch 2.13 on does not see what `torch._inductor.config.patch` sets here.
    """
    added = {name.replace("__", "."): value for name, value in settings.items()}
    compile_plainly = torch.compile

    def compile_with(*args: Any, options: dict[str, Any] | None = None, **named: Any) -> Any:
        return compile_plainly(*args, options={**(options or {}), **added}, **named)

    return lambda: mock.patch.object(torch, "compile", compile_with)


def plain_swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


@contextlib.contextmanager
def gradients_by_autograd() -> Iterator[None]:
    """No weight adds its own gradient to the buffer: autograd makes each gradient, and Megatron-core adds it."""
    with mock.patch.multiple(build, _accumulating=lambda network: [], attach_sinks=lambda weights, announced: None):
        yield


def sum_not_kept() -> contextlib.AbstractContextManager[Any]:
    """The compiler decides what a block keeps."""
    compute = transformer.Block.compute
    return mock.patch.object(transformer.Block, "compute", lambda *given: (compute(*given)[0], None))


def compile_as_one(network: Any) -> None:
    """All layers and the last norm as one graph. Compiling takes as many times longer as there are layers."""
    decoder = network.decoder

    def all_layers(x: torch.Tensor, mask: torch.Tensor | None, turns: torch.Tensor) -> tuple[torch.Tensor, Any]:
        kept = []
        for layer in decoder.layers:
            x, between = layer.compute(x, mask, turns)
            kept.append(between)
        return decoder.final_layernorm(x), kept

    compiled = torch.compile(all_layers, fullgraph=True, dynamic=False, options=build.layer_options())

    def forward(
        hidden_states: torch.Tensor, attention_mask: torch.Tensor | None, rotary_pos_emb: torch.Tensor, **unused: Any
    ) -> torch.Tensor:
        return compiled(hidden_states, attention_mask, rotary_pos_emb)[0]

    decoder.forward = forward


def mlp_of_operations() -> contextlib.AbstractContextManager[Any]:
    """An MLP and its norm as one sequence of Transformer Engine's operations, each of which quantizes for the next.

    Not for training: histories of delayed scaling would be neither in checkpoints nor kept over a validation.
    """
    layers = functools.partial(build.get_gpt_layer_with_transformer_engine_spec, use_te_op_fuser=True)
    return mock.patch.object(build, "_te_layers", layers)


CHANGES: dict[str, Change] = {
    "nothing": contextlib.nullcontext,
    "SwiGLU by the compiler": lambda: mock.patch.object(transformer, "swiglu", plain_swiglu),
    "gradients added by autograd": gradients_by_autograd,
    "sum between halves not kept": sum_not_kept,
    "norm gradients in two kernels": inductor(triton__mix_order_reduction=False),
    "QKV gradient in one kernel": lambda: mock.patch.object(build, "LAYER_OPTIONS", {}),
    "logits read twice": inductor(online_softmax=False),
    "layers as one graph": lambda: mock.patch.object(build, "_compile_layers", compile_as_one),
    "products chosen by trial": inductor(max_autotune_gemm=True),
    "MLP of operations": mlp_of_operations,
}
