"""Trains in a process of its own: `python train_in_child.py JSON`, with `kill_at` the step to die at."""

import json
import os
import signal
import sys
from pathlib import Path

import torch
from random_batches import SCHEDULE, SMALL, RandomBatches

from curricula.model.config import EngineConfig
from curricula.model.train import TrainJob, train

if __name__ == "__main__":
    torch.set_num_threads(1)
    wanted = json.loads(sys.argv[1])
    kill_at, out = wanted.pop("kill_at", None), Path(wanted.pop("out"))
    wanted["engine"] = EngineConfig(**wanted.pop("engine", {}))
    batches = RandomBatches(**wanted.pop("batches", {}))

    def die(done: int, total: int, **figures: object) -> None:
        if done == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    train(TrainJob(out=out, model=SMALL, schedule=SCHEDULE, **wanted), batches, die)
