import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from random_batches import SCHEDULE, SMALL, RandomBatches

from curriculum.durable import read_jsonl
from curriculum.errors import UsageError
from model.distributed import first_host, read_world
from model.train import TrainJob, train

CHILD = Path(__file__).with_name("train_in_child.py")
BATCHES = {"masked": True, "total_steps": 8}


def train_in_two_processes(out: Path, port: int, **wanted) -> None:
    children = []
    for rank in ("0", "1"):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
        argument = json.dumps({"out": str(out), "batches": BATCHES, "micro_batch": 4, **wanted})
        children.append(subprocess.Popen([sys.executable, str(CHILD), argument], env={**os.environ, **place}))
    assert [child.wait(timeout=120) for child in children] == [0, 0]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    out = tmp_path_factory.mktemp("alone")
    train(TrainJob(out=out, model=SMALL, schedule=SCHEDULE), RandomBatches(**BATCHES))
    return read_jsonl(out / "metrics.jsonl")


def assert_same(alone: list[dict], rows: list[dict]) -> None:
    assert [row["step"] for row in rows] == [row["step"] for row in alone]
    for one, two in zip(alone, rows):
        assert two["loss"] == pytest.approx(one["loss"], abs=1e-5)
        assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-4)


def test_two_data_parallel_processes_train_like_one_and_one_goes_on_from_their_checkpoint(tmp_path, alone, free_port):
    train_in_two_processes(tmp_path, free_port, stop_step=5)
    train(TrainJob(out=tmp_path, model=SMALL, schedule=SCHEDULE), RandomBatches(**BATCHES))
    assert_same(alone, read_jsonl(tmp_path / "metrics.jsonl"))


def test_two_tensor_parallel_processes_go_on_from_one_and_train_like_it(tmp_path, alone, free_port):
    train(TrainJob(out=tmp_path, model=SMALL, schedule=SCHEDULE, stop_step=3), RandomBatches(**BATCHES))
    train_in_two_processes(tmp_path, free_port, tensor_parallel=2)
    assert_same(alone, read_jsonl(tmp_path / "metrics.jsonl"))


def test_tensor_parallelism_that_does_not_divide_the_processes_is_refused(tmp_path):
    with pytest.raises(UsageError, match="tensor_parallel is 2, which does not divide the 1 processes"):
        train(TrainJob(out=tmp_path, model=SMALL, tensor_parallel=2), RandomBatches())


def test_the_first_host_of_a_slurm_node_list_is_found():
    assert first_host("n1") == "n1"
    assert first_host("n1,n2") == "n1"
    assert first_host("gpu[003-007,9],login1") == "gpu003"
    assert first_host("gpu[12,14]-ib") == "gpu12-ib"


def test_a_slurm_step_gives_each_task_its_place():
    step = {
        "SLURM_JOB_ID": "4242",
        "SLURM_STEP_ID": "0",
        "SLURM_PROCID": "9",
        "SLURM_LOCALID": "1",
        "SLURM_STEP_NUM_TASKS": "16",
        "SLURM_STEP_NODELIST": "n[03-04]",
    }
    world = read_world(step)
    assert (world.rank, world.size, world.local_rank) == (9, 16, 1)
    assert world.master is not None and world.master.startswith("n03:")
    assert read_world({"SLURM_JOB_ID": "4242", "SLURM_PROCID": "0", "SLURM_NTASKS": "16"}).size == 1
