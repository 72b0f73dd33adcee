"""Trains in its own process, once up to each of `stop_steps`: `python train_in_child.py JSON`. It kills itself after step
`kill_at`."""

import functools
import json
import os
import signal
import sys
from pathlib import Path

import msgspec
from random_batches import SpoiltBatches, train_job

from curricula.model.config import EngineConfig, SpikeGuard
from curricula.model.network import build
from curricula.model.train import train

BUCKET = 2000
"""Parameters: a small model's gradients are then reduced in several parts, as a large one's are."""

if __name__ == "__main__":
    wanted = json.loads(sys.argv[1])
    kill_at, out = wanted.pop("kill_at", None), Path(wanted.pop("out"))
    stop_steps = wanted.pop("stop_steps", [wanted.pop("stop_step", None)])
    wanted["engine"] = EngineConfig(**wanted.pop("engine", {}))
    if "spike_guard" in wanted:
        wanted["spike_guard"] = msgspec.convert(wanted["spike_guard"], SpikeGuard)
    build.DistributedDataParallelConfig = functools.partial(build.DistributedDataParallelConfig, bucket_size=BUCKET)
    batches = SpoiltBatches(**wanted.pop("batches", {}))

    def die(done: int, total: int, **figures: object) -> None:
        if done == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    for stop_step in stop_steps:
        train(train_job(out, stop_step=stop_step, **wanted), batches, die)
