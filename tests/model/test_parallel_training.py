import json
import shutil
from pathlib import Path

import pytest
import torch
from compilers import needs_compiler
from forked import ended, ranks
from ports import claimed_port
from random_batches import RandomBatches, train_job

from curricula.curriculum.tokens.tokenizer import train_tokenizer
from curricula.durable import read_jsonl
from curricula.errors import UsageError
from curricula.model.checkpoints.folder import latest_checkpoint
from curricula.model.convert import export_hf, import_hf
from curricula.model.runtime.distributed import ALONE, Ranks, first_host, read_ranks
from curricula.model.train import train

pytestmark = pytest.mark.forked

BATCHES = {"masked": True, "total_steps": 20}


def train_in_processes(size: int, out: Path, port: int, **wanted) -> None:
    argument = json.dumps({"out": str(out), "batches": BATCHES, "micro_batch": 2, **wanted})
    outcomes = ended(ranks("train_in_child.py", argument, out, size, port), timeout_s=240)
    assert [status for status, _ in outcomes] == [0] * size, outcomes


def train_alone(out: Path, **wanted) -> list[dict]:
    train(train_job(out, **wanted), RandomBatches(**BATCHES))
    return read_jsonl(out / "metrics.jsonl")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return train_alone(tmp_path_factory.mktemp("alone"))


@pytest.fixture(scope="module")
def two_by_two(tmp_path_factory):
    """The run of four processes, tensor parallel 2 and data parallel 2, up to step 12."""
    out = tmp_path_factory.mktemp("two-by-two")
    with claimed_port() as port:
        train_in_processes(4, out, port, tensor_parallel=2, stop_step=12)
    return out


def assert_same(alone: list[dict], rows: list[dict]) -> None:
    assert [row["step"] for row in rows] == [row["step"] for row in alone]
    for one, two in zip(alone, rows):
        assert two["loss"] == pytest.approx(one["loss"], abs=1e-5)
        assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-4)


@pytest.mark.slow
def test_two_data_parallel_processes_train_like_one_which_can_continue_from_their_checkpoint(tmp_path, alone, free_port):
    train_in_processes(2, tmp_path, free_port, stop_step=15)
    assert_same(alone, train_alone(tmp_path))


@pytest.mark.slow
def test_two_tensor_parallel_processes_continue_from_one_and_train_like_it(tmp_path, alone, free_port):
    train_alone(tmp_path, stop_step=3)
    train_in_processes(2, tmp_path, free_port, tensor_parallel=2)
    assert_same(alone, read_jsonl(tmp_path / "metrics.jsonl"))


@pytest.mark.slow
def test_without_sequence_parallelism_they_train_like_one_too(tmp_path, alone, free_port):
    train_in_processes(2, tmp_path, free_port, tensor_parallel=2, engine={"sequence_parallel": False})
    assert_same(alone, read_jsonl(tmp_path / "metrics.jsonl"))


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("tensor_parallel", [1, 2], ids=["data parallel", "tensor parallel"])
def test_compiled_they_train_like_one_too(tmp_path, alone, free_port, tensor_parallel):
    train_in_processes(2, tmp_path, free_port, tensor_parallel=tensor_parallel, engine={"backend": "torch"})
    assert_same(alone, read_jsonl(tmp_path / "metrics.jsonl"))


def test_four_processes_two_by_two_train_like_one_which_can_continue_from_their_checkpoint(tmp_path, alone, two_by_two):
    shutil.copytree(two_by_two, tmp_path / "run")
    assert_same(alone, train_alone(tmp_path / "run"))


def test_two_processes_can_train_again(tmp_path, free_port):
    train_in_processes(2, tmp_path, free_port, stop_steps=[1, 2, 3])
    assert [start["resumed_step"] for start in read_jsonl(tmp_path / "starts.jsonl")] == [0, 1, 2]


def test_what_four_processes_trained_is_exported_evaluated_imported_and_trained_on_by_one(tmp_path, two_by_two):
    from transformers import LlamaForCausalLM

    train_tokenizer(["a few words to make a tokenizer of"], 300, tmp_path / "tokenizer")
    export_hf(latest_checkpoint(two_by_two / "checkpoints"), tmp_path / "hf", tmp_path / "tokenizer", {})
    batches = RandomBatches(key="later")
    tokens = torch.from_numpy(batches.rows(0, 0, 8)[0])
    with torch.no_grad():
        evaluated = LlamaForCausalLM.from_pretrained(tmp_path / "hf")(tokens, labels=tokens).loss.item()
    imported = import_hf(tmp_path / "hf", tmp_path / "imported")
    train(train_job(tmp_path / "on", init_weights=imported), batches)
    losses = [row["loss"] for row in read_jsonl(tmp_path / "on/metrics.jsonl")]
    begun = [row["loss"] for row in read_jsonl(two_by_two / "metrics.jsonl")]
    assert losses[0] == pytest.approx(evaluated, abs=1e-5)
    assert losses[0] < begun[0] - 0.1 and losses[-1] < losses[0]


def test_tensor_parallelism_that_does_not_divide_the_processes_is_refused(tmp_path):
    with pytest.raises(UsageError, match="tensor_parallel is 2, which does not divide the 1 processes"):
        train(train_job(tmp_path, tensor_parallel=2), RandomBatches())


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
    ranks = read_ranks(step)
    assert (ranks.rank, ranks.size, ranks.local_rank) == (9, 16, 1)
    assert ranks.master is not None and ranks.master.startswith("n03:")
    assert read_ranks({**step, "SLURM_RESTART_COUNT": "1"}).master != ranks.master  # what holds the old port may live on
    others = [read_ranks({**step, "SLURM_JOB_ID": str(job)}).master for job in range(67_000_000, 67_000_100)]
    assert read_ranks({**step, "SLURM_STEP_ID": "1"}).master != ranks.master  # two steps of a job can run at once
    assert len(set(others)) == 100 and all(15000 <= int(str(other).rpartition(":")[2]) < 30000 for other in others)
    assert read_ranks({**step, "MASTER_ADDR": "10.0.0.3", "MASTER_PORT": "31000"}).master == "10.0.0.3:31000"
    assert read_ranks({"SLURM_JOB_ID": "4242", "SLURM_PROCID": "0", "SLURM_NTASKS": "16"}) == ALONE
    assert read_ranks({**step, "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}) == ALONE  # it opens no port


def test_torchrun_gives_each_process_its_place():
    torchrun = {"RANK": "9", "LOCAL_RANK": "1", "WORLD_SIZE": "16", "MASTER_ADDR": "n03", "MASTER_PORT": "29400"}
    assert read_ranks(torchrun) == Ranks(9, 16, 1, "n03:29400")
    del torchrun["LOCAL_RANK"]  # as a launcher of a site's own may leave it
    assert read_ranks(torchrun).local_rank == 9
    assert read_ranks({**torchrun, "RANK": "0", "WORLD_SIZE": "1"}) == ALONE
