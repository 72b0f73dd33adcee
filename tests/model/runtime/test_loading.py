"""Micro-batches as training gets them, read ahead by real worker processes."""

import multiprocessing
import os
import signal
import sys
import traceback
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch
from forked import PROMPT_S, forkserver, started
from shard_folders import write_source

from curricula.curriculum.stream.blend import Phase
from curricula.curriculum.stream.pretraining import PretrainingBatches
from curricula.errors import UserError
from curricula.model.runtime.loading import MicroBatch, MicroBatches, read_micro_batches

pytestmark = pytest.mark.forked

BATCH, LENGTH = 12, 7


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    root = tmp_path_factory.mktemp("shards")
    write_source(root / "web", [900, 700])
    write_source(root / "rare", [300])
    return root


def batches(shards, vocabulary=50_000):
    phases = [Phase(5 * BATCH, {"web": 1.0}), Phase(20 * BATCH, {"web": 3.0, "rare": 1.0})]
    return PretrainingBatches(phases, shards, LENGTH, BATCH, 3, vocabulary)


@pytest.fixture(scope="module")
def aside():
    """A process that only reads, as in training: workers are forked, and other tests leave threads in this process."""
    with ProcessPoolExecutor(1, mp_context=forkserver()) as pool:
        yield pool


def read(aside, *args, **kwargs):
    return [
        MicroBatch(*(None if part is None else torch.from_numpy(part) for part in parts))
        for parts in aside.submit(read_here, *args, **kwargs).result()
    ]


def read_here(shards, start, stop, workers, micro=4, rank=0, ranks=1, vocabulary=50_000):
    dataset = MicroBatches(batches(shards, vocabulary), micro, rank, ranks)
    found = read_micro_batches(dataset, start, stop, workers, torch.device("cpu"))
    return [[None if part is None else part.numpy() for part in micro_batch] for micro_batch in found]


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_a_micro_batch_is_one_int64_tensor_whatever_the_number_of_workers(shards, aside, workers):
    source = batches(shards)
    found = read(aside, shards, 0, 20, workers)
    assert len(found) == 20 * 3
    assert all(
        tokens.shape == (4, LENGTH + 1) and tokens.dtype == torch.int64 and mask is None and documents is None
        for tokens, mask, documents in found
    )
    whole = torch.cat([micro_batch.tokens for micro_batch in found])
    assert torch.equal(whole, torch.cat([torch.from_numpy(source.rows(step, 0, BATCH)[0]) for step in range(20)]))


@pytest.mark.parametrize(("ranks", "micro", "workers"), [(2, 4, 2), (3, 1, 0), (4, 2, 1), (1, 5, 2)])
def test_ranks_together_read_each_global_batch_once_from_any_step(shards, aside, ranks, micro, workers):
    source, start = batches(shards), 4
    shares = [read(aside, shards, start, 9, workers, micro, rank, ranks) for rank in range(ranks)]
    per_step = len(shares[0]) // 5
    for step in range(5):
        rows = torch.cat([part.tokens for share in shares for part in share[step * per_step : (step + 1) * per_step]])
        assert torch.equal(rows, torch.from_numpy(source.rows(start + step, 0, BATCH)[0]))


def test_a_worker_says_in_one_sentence_what_is_wrong_with_the_data(shards, aside):
    with pytest.raises(UserError, match=r"^\S*.bin: the sample at token \d+ holds id \d+, but the model's") as caught:
        read(aside, shards, 0, 20, workers=2, vocabulary=500)
    assert "Traceback" not in str(caught.value)


class Failing:
    """Rows that cannot be read for a reason that has nothing to do with processes."""

    sequence_length, global_batch, total_steps = LENGTH, BATCH, 20

    def __init__(self, error):
        self.error = error

    def rows(self, step, start, stop):
        raise self.error


def read_failing(error, workers):
    list(read_micro_batches(MicroBatches(Failing(error), 4), 0, 20, workers, torch.device("cpu")))


@pytest.mark.parametrize(("kind", "workers"), [(RuntimeError, 1), (EOFError, 1), (BrokenPipeError, 0)])
def test_an_error_in_reading_is_not_taken_for_the_death_of_a_worker(aside, kind, workers):
    with pytest.raises(kind, match="the index ends too soon"):
        aside.submit(read_failing, kind("the index ends too soon"), workers).result()


def _consume(shards, what, said):
    os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT), 2)
    status = 0
    try:
        print(_consumed(shards, what), file=sys.stderr)
    except Exception:  # as curricula/jobs/element.py does it
        traceback.print_exc()
        status = 1
    sys.exit(status)


def _consumed(shards, what):
    source = PretrainingBatches([Phase(20 * BATCH, {"web": 1.0})], shards, LENGTH, BATCH, 3, 50_000)
    signal.signal(signal.SIGTERM, lambda *_: None)
    feed = read_micro_batches(MicroBatches(source, 4), 0, 20, 2, torch.device("cpu"))
    read = [next(feed)]
    workers = [child.pid for child in multiprocessing.active_children()]
    assert len(workers) == 2
    if what == "error":
        raise RuntimeError("CUDA out of memory")
    for worker in workers:
        os.kill(worker, getattr(signal, what))
    print("the trainer computes" if sum(range(10_000_000)) else "", file=sys.stderr)  # long enough to learn of dead children
    read += feed
    return len(read)


def consume(shards, what, tmp_path):
    """Read in a process of its own, which has to end whatever happens to its workers: its exit status and what it said."""
    process = started(_consume, shards, what, tmp_path / "said")
    process.join(PROMPT_S)
    process.kill()
    return process.exitcode, (tmp_path / "said").read_text()


def test_a_signal_to_the_whole_job_leaves_the_workers_alive(shards, tmp_path):
    assert consume(shards, "SIGTERM", tmp_path) == (0, "the trainer computes\n60\n")


def test_an_error_in_the_trainer_ends_the_workers_and_the_process(shards, tmp_path):
    status, said = consume(shards, "error", tmp_path)
    assert status == 1 and "CUDA out of memory" in said


def test_a_killed_worker_ends_the_trainer_with_a_sentence(shards, tmp_path):
    status, said = consume(shards, "SIGKILL", tmp_path)
    assert status == 1 and "PeerLost: a process that reads ahead was killed" in said
    assert "the trainer computes" in said  # the death of a worker does not break off what it is not needed for
