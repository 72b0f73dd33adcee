"""`python backends_in_child.py FOLDER PAIRS`: trains backends from each other's checkpoints and prints the losses as JSON.

PAIRS, as JSON, are those of a writer and a reader that goes on with all of its state.
Transformer Engine is its stand-in, and "torch" is not compiled: what is compared is what checkpoints hold, not kernels.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import shutil
import sys
from pathlib import Path

import torch
import transformer_engine_on_cpu

transformer_engine_on_cpu.install()

from changed_gradients import differences  # noqa: E402
from random_batches import PackedBatches, RandomBatches, train_job  # noqa: E402

from curricula.durable import read_jsonl  # noqa: E402
from curricula.model import train as training  # noqa: E402
from curricula.model.checkpoints.folder import latest_checkpoint  # noqa: E402
from curricula.model.config import EngineConfig  # noqa: E402
from curricula.model.network.build import Backend  # noqa: E402
from curricula.model.runtime.distributed import started  # noqa: E402

BACKENDS = {
    "cpu": Backend("cpu", "test"),
    "torch": Backend("torch", "test"),
    "te": Backend("te", "test"),
    "te-fp8": Backend("te", "test", EngineConfig(fp8="delayed")),
}


def trained(out: Path, backend: str, batches: RandomBatches | None = None, **settings) -> list[float]:
    """The losses of a small run that takes `backend`."""
    training.choose_backend = lambda engine, parallel, packed: dataclasses.replace(BACKENDS[backend], packed=packed)
    training.train(train_job(out, **settings), batches or RandomBatches(), validation=VALIDATION.get(out.name))
    gc.collect()  # of its process groups, whose threads poll
    return [row["loss"] for row in read_jsonl(out / "metrics.jsonl") if "loss" in row]


VALIDATION = {"validated": {"held out": RandomBatches(key="held out", total_steps=2)}}
SEEN: dict[str, dict] = {}
"""Of the last trainer: histories of the layers, settings of the optimizer."""


class Observed(training.Trainer):
    def close(self) -> None:
        layers = self.wrapped.module.named_modules()
        SEEN["histories"] = {name: layer.history for name, layer in layers if getattr(layer, "history", [])}
        parts = getattr(self.optimizer, "chained_optimizers", [self.optimizer])
        groups = [group for part in parts for group in part.optimizer.param_groups]
        SEEN["optimizer"] = {"class": type(parts[0].optimizer).__name__, "fused": [group["fused"] for group in groups]}
        super().close()


def main(folder: Path, pairs: list[list[str]]) -> None:
    torch.compile = lambda function=None, **options: function if function is not None else lambda decorated: decorated
    torch.nn.Module.compile = lambda self, **options: None
    training.Trainer = Observed
    gc.freeze()  # `trained` would go through all that was imported
    found: dict = {"undisturbed": trained(folder / "undisturbed", "cpu", stop_step=6), "optimizers": {}}
    for backend in BACKENDS:
        trained(folder / backend, backend, stop_step=4)
        found["optimizers"][backend] = SEEN["optimizer"]
    for writer, reader in pairs:
        out = folder / f"{writer} to {reader}"
        shutil.copytree(folder / writer, out)
        found[f"{writer} to {reader}, whole"] = trained(out, reader, stop_step=6)
        found["optimizers"][f"{writer} to {reader}"] = SEEN["optimizer"]
        if writer == reader == "te-fp8":
            found["histories, resumed"] = SEEN["histories"]
    for writer, reader in [*((one, "cpu") for one in BACKENDS), *(("cpu", one) for one in BACKENDS if one != "cpu")]:
        weights = latest_checkpoint(folder / writer / "checkpoints")
        tuned = folder / f"{writer} to {reader}, tuned"
        found[f"{writer} to {reader}, weights"] = trained(tuned, reader, init_weights=weights, stop_step=1)
    trained(folder / "unvalidated", "te-fp8", stop_step=6)
    found["histories, undisturbed"] = SEEN["histories"]
    trained(folder / "validated", "te-fp8", stop_step=6, validation_interval_steps=2)
    found["histories, validated"] = SEEN["histories"]
    for backend in BACKENDS:
        found[f"packed, {backend}"] = trained(
            folder / "packed" / backend, backend, PackedBatches(), stop_step=3, packed=True, micro_batch=3
        )
    with started() as parallel:
        found["differences, MLP of operations"] = differences("MLP of operations", BACKENDS["te"], parallel)
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
