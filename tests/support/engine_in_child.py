"""Trains a small model in this process, or in each of several: `python engine_in_child.py JSON` (tests/gpu)."""

import json
import logging
import os
import signal
import sys
from pathlib import Path

import msgspec
from random_batches import PackedBatches, RandomBatches, train_job

from curricula.errors import UserError
from curricula.model.config import EngineConfig, ModelConfig, OptimizerConfig, ScheduleConfig
from curricula.model.train import train


class CrossingBatches(PackedBatches):
    """The same rows without borders between their texts."""

    def rows(self, step, start, stop):
        return super().rows(step, start, stop)[:2]


class FailingBatches(RandomBatches):
    """The second process cannot read batch 5."""

    def rows(self, step, start, stop):
        if step == 5 and os.environ["RANK"] == "1":
            raise UserError("the shard is gone")
        return super().rows(step, start, stop)


KINDS = {"random": RandomBatches, "packed": PackedBatches, "crossing": CrossingBatches, "failing": FailingBatches}

if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    asked = json.loads(sys.argv[1])
    job = train_job(
        Path(asked["out"]),
        model=msgspec.convert(asked["model"], ModelConfig),
        micro_batch=8,
        engine=EngineConfig(**asked["engine"]),
        optimizer=OptimizerConfig(lr=3e-3),
        schedule=ScheduleConfig(warmup_steps=2),
        save_interval_steps=4,
        packed=asked["batches"] == "packed",
    )
    batches = KINDS[asked["batches"]](sequence_length=128, global_batch=16, total_steps=asked["steps"], vocabulary=512)

    def die(done: int, total: int, **figures: object) -> None:
        if done == asked["kill_at"]:
            os.kill(os.getpid(), signal.SIGKILL)

    try:
        train(job, batches, die)
    except UserError as error:
        print(error, file=sys.stderr, flush=True)
        os._exit(error.exit_code)  # as jobs/element.py does where the process group is left
