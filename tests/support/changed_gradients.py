"""`python changed_gradients.py CHANGE RECIPE`, on a GPU: how far a change of the benchmark's moves each weight's gradient."""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from paths import BENCHMARKS

from curricula.model.config import EngineConfig, ModelConfig
from curricula.model.network.build import Backend, build_network, choose_backend, initialize, wrap
from curricula.model.runtime.distributed import Parallel, started

sys.path.append(str(BENCHMARKS))

from training_changes import CHANGES

MODEL = ModelConfig(layers=2, hidden=256, heads=4, kv_heads=2, ffn=512, vocabulary=512, sequence_length=128)


def gradients(change: str, backend: Backend, parallel: Parallel) -> dict[str, torch.Tensor]:
    """Of the second of two equal passes: delayed scaling scales by the largest values of the first."""
    rows = torch.randint(512, (8, 129), generator=torch.Generator().manual_seed(0)).to(parallel.device)
    with CHANGES[change](), parallel.cuda_names():
        network = build_network(MODEL, parallel, backend)
        initialize(network, MODEL, 0)
        wrapped = wrap(network, parallel)
        for _ in range(2):
            network.set_is_first_microbatch()  # else modules of Transformer Engine keep the first pass's 8-bit weights
            wrapped.zero_grad_buffer()
            wrapped(rows[:, :-1], labels=rows[:, 1:]).sum().backward()
    return {name: weight.main_grad.clone() for name, weight in network.named_parameters()}


def differences(change: str, backend: Backend, parallel: Parallel) -> dict[str, Any]:
    """By weight, the norm of the difference as a part of the gradient's norm; None if it is not a number."""
    plain, changed = (gradients(name, backend, parallel) for name in ("nothing", change))
    assert plain.keys() == changed.keys()
    found = {name: float((changed[name] - plain[name]).norm() / plain[name].norm()) for name in plain}
    return {name: value if value == value else None for name, value in found.items()}


if __name__ == "__main__":
    with started() as parallel:
        engine = EngineConfig(backend="te", fp8=sys.argv[2])
        print(json.dumps(differences(sys.argv[1], choose_backend(engine, parallel), parallel)))
