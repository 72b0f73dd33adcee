"""Trains in its own process and suffers a fault: `python faulty_child.py JSON`; see `test_faults.py`.

The JSON names the `out` folder, the `attempt`, further settings of the `job`, and as `fault` what happens on which `rank`.
served.jsonl records every row that is read, so that a test can compare what several attempts consumed.
"""

import json
import logging
import os
import resource
import signal
import sys
import time
from pathlib import Path

import torch
from random_batches import RandomBatches, train_job

from curricula.errors import UserError
from curricula.model.checkpoints import checkpoint, writer
from curricula.model.checkpoints import folder as checkpoint_folder
from curricula.model.runtime import distributed
from curricula.model.runtime.stopping import Interrupted
from curricula.model.train import train

RANK = int(os.environ.get("RANK", "0"))
TRAINER = os.getpid()  # processes that read ahead are others


class WatchedBatches(RandomBatches):
    """Records what is read, and causes the fault in the middle of a step."""

    def rows(self, step, start, stop):
        with open(Path(asked["out"]) / "served.jsonl", "a") as file:
            line = {"attempt": asked.get("attempt", 0), "step": step, "rows": [start, stop], "reader": os.getpid()}
            file.write(json.dumps(line) + "\n")
        if fault.get("step") == step:
            if fault["kind"] == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            elif fault["kind"] == "hung":
                time.sleep(3600)
            elif fault["kind"] == "stopped":
                os.kill(os.getpid(), signal.SIGSTOP)
            elif fault["kind"] == "asked to stop":
                os.kill(TRAINER, getattr(signal, fault["signal"]))
            elif fault["kind"] == "error":
                raise UserError("the shard is gone")
        if fault.get("kind") == "slow":
            time.sleep(fault["seconds"])
        return super().rows(step, start, stop)


def kill_the_trainer(*arguments):
    """Runs in the writing child, once its data is written."""
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(3600)  # the child of a dead parent has to end too


def kill_myself(*arguments, **options):
    os.kill(os.getpid(), signal.SIGKILL)


def note_straggler(done, total, straggler="", **figures):
    with open(Path(asked["out"]) / "stragglers.jsonl", "a") as file:
        file.write(json.dumps({"step": done, "straggler": straggler}) + "\n")


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    fault = asked.get("fault", {})
    if fault.get("rank", 0) != RANK:
        fault = {}
    if fault.get("kind") == "killed in a save":
        writer.stored_file = kill_the_trainer
    if fault.get("kind") == "killed before the pointer moves":
        moved = checkpoint_folder.point_at
        checkpoint_folder.point_at = lambda folder: kill_myself() if folder.name == fault["folder"] else moved(folder)
    if fault.get("kind") == "killed in a load":
        checkpoint.dist_checkpointing.load = kill_myself
    if fault.get("kind") == "full disk":
        resource.setrlimit(resource.RLIMIT_FSIZE, (8 * 1024, resource.RLIM_INFINITY))
    if asked.get("like_nccl"):  # there an end waits for collectives, which wait for the process that failed
        torch.distributed.get_backend = lambda group=None: "nccl"
        torch.distributed.destroy_process_group = lambda group=None: time.sleep(3600)
    if asked.get("compare_every_step"):
        distributed.INTERVAL_S = 0.0
        logging.basicConfig(level=logging.INFO)
    job = train_job(Path(asked["out"]), **asked.get("job", {}))
    Path(asked["out"]).mkdir(parents=True, exist_ok=True)
    try:
        train(job, WatchedBatches(), note_straggler)
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        sys.exit(stop.exit_code)
