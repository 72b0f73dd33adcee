"""Faults injected into real training processes: nothing is lost or hangs, no sample is repeated or skipped."""

import contextlib
import errno
import faulthandler
import io
import json
import os
import re
import signal
import socket
import sys
import threading
import time
import types
from collections import Counter
from pathlib import Path

import msgspec
import numpy as np
import psutil
import pytest
from forked import PROMPT_S, Program, ended, ranks, started
from random_batches import RandomBatches, train_job

from curricula.durable import read_jsonl
from curricula.errors import StorageError, UserError
from curricula.model.checkpoints.folder import latest_checkpoint, step_of, stored_file
from curricula.model.runtime import stopping
from curricula.model.runtime.reporting import read_metrics
from curricula.model.runtime.spikes import nonfinite_error
from curricula.model.runtime.stopping import HANG_EXIT_CODE, Interrupted, PeerLost, Watchdog, lost_peers_named
from curricula.model.train import train

pytestmark = pytest.mark.forked

CHILD = "faulty_child.py"
TOTAL = RandomBatches().total_steps
BATCH = RandomBatches().global_batch
HANG_MINUTES = 0.05


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed")
    train(train_job(out), RandomBatches())
    return read_metrics(out / "metrics.jsonl")


def start(out: Path, size: int, port: int = 0, **asked) -> list[Program]:
    """A training job of `size` processes."""
    out.mkdir(parents=True, exist_ok=True)
    argument = json.dumps({"out": str(out), **asked})
    return ranks(CHILD, argument, out, size, port) if size > 1 else [Program(CHILD, argument, out)]


def assert_finishes_undisturbed(out: Path, undisturbed: list[dict], exactly: bool = True) -> None:
    """One process finishes the run, with the losses and the consumed samples of an undisturbed run."""
    (status, said), *_ = ended(start(out, 1, attempt=1))
    assert status == 0, said
    rows = read_metrics(out / "metrics.jsonl")
    assert [row["step"] for row in rows] == [row["step"] for row in undisturbed]
    for row, other in zip(rows, undisturbed):
        assert row["loss"] == (other["loss"] if exactly else pytest.approx(other["loss"], abs=1e-5))
    assert consumed(out) == Counter(range(TOTAL * BATCH))


def consumed(out: Path) -> Counter:
    """How often each global sample was trained on, without the steps that a later attempt undid."""
    found: Counter[tuple[int, int]] = Counter()
    began: dict[int, int] = {}
    for line in read_jsonl(out / "served.jsonl"):
        if line["attempt"] not in began:
            began[line["attempt"]] = line["step"]
            found = Counter({sample: count for sample, count in found.items() if sample[0] < line["step"]})
        found.update((line["step"], row) for row in range(*line["rows"]))
    return Counter({step * BATCH + row: count for (step, row), count in found.items()})


def test_when_one_rank_is_killed_in_a_step_the_others_end_and_nothing_is_lost(tmp_path, undisturbed, free_port):
    fault = {"kind": "killed", "rank": 1, "step": 7}
    children = start(tmp_path, 2, free_port, fault=fault, job={"save_interval_steps": 3, "micro_batch": 4})
    (survivor, said), (killed, _) = ended(children)
    assert killed == -signal.SIGKILL
    assert survivor == PeerLost.exit_code == os.EX_OSERR and "another process of this job ended" in said
    assert latest_checkpoint(tmp_path / "checkpoints").name in ("step_00000003", "step_00000006")
    assert_finishes_undisturbed(tmp_path, undisturbed, exactly=False)


def test_when_one_rank_is_killed_in_a_load_the_other_does_not_blame_the_checkpoint(tmp_path, free_port):
    train(train_job(tmp_path, stop_step=2), RandomBatches())
    (survivor, said), _ = ended(start(tmp_path, 2, free_port, fault={"kind": "killed in a load", "rank": 1}))
    assert survivor == PeerLost.exit_code and "another process of this job ended" in said


@pytest.mark.parametrize(
    ("said", "is_lost"),
    [
        ("NCCL error in: x.cpp:1, remote process exited or there was a network error\nLast error: gone", True),
        ("The client socket has failed to connect to (n1, 29500).", True),
        ("Timed out waiting 1800000ms for recv operation to complete", True),
        ("wait timeout after 1800000ms, keys: /default_pg/0//cpu//0/rank_1", True),
        ("NCCL error in: x.cpp:1, invalid usage (run with NCCL_DEBUG=WARN for details)", False),
        ("NCCL error in: x.cpp:1\nDuplicate GPU detected : rank 1 and rank 0", False),
        ("shape mismatch", False),
    ],
)
def test_a_wrong_set_up_is_not_taken_for_a_lost_peer(said, is_lost):
    kind, shown = PeerLost if is_lost else RuntimeError, said.splitlines()[-1]
    with pytest.raises(kind, match=re.escape(shown)) as raised, lost_peers_named(1, 8):
        raise RuntimeError(said)
    assert not is_lost or "\n" not in str(raised.value)
    with pytest.raises(RuntimeError), lost_peers_named(0, 1):  # alone
        raise RuntimeError(said)


def test_a_rank_with_an_error_says_so_and_ends_although_nccl_would_wait_for_the_others(tmp_path, free_port):
    fault = {"kind": "error", "rank": 1, "step": 7}
    (other, _), (failed, said) = ended(start(tmp_path, 2, free_port, fault=fault, like_nccl=True, job={"micro_batch": 4}))
    assert failed == UserError.exit_code and "the shard is gone" in said
    assert other == PeerLost.exit_code


@pytest.mark.parametrize(
    ("fault", "saved"),
    [
        ({"kind": "killed in a save"}, None),
        ({"kind": "killed before the pointer moves", "folder": "step_00000008"}, "step_00000004"),
    ],
    ids=["in a save", "before the pointer moves"],
)
def test_a_run_killed_while_saving_continues_from_the_last_complete_checkpoint(tmp_path, undisturbed, fault, saved):
    ((status, _),) = ended(start(tmp_path, 1, fault=fault, job={"save_interval_steps": 4}))
    assert status == -signal.SIGKILL
    assert_no_process_is_left(tmp_path)  # the writer died with the trainer
    latest = tmp_path / "checkpoints/latest"
    assert (latest.read_text().strip() if latest.exists() else None) == saved
    assert_finishes_undisturbed(tmp_path, undisturbed)
    assert not list((tmp_path / "checkpoints").glob(".*"))


def test_all_of_a_checkpoint_is_on_the_disk_when_latest_names_it(tmp_path, monkeypatch):
    """Otherwise a node that loses its power leaves empty files behind the name."""
    sync = os.fsync
    with open(tmp_path / "synced", "ab", buffering=0) as synced:  # the writing process notes its files there, too

        def note(descriptor: int) -> None:
            synced.write(b"%d " % os.fstat(descriptor).st_ino)
            sync(descriptor)

        monkeypatch.setattr(os, "fsync", note)
        train(train_job(tmp_path, stop_step=1), RandomBatches())
    folder = latest_checkpoint(tmp_path / "checkpoints")
    latest = b" %d " % folder.with_name("latest").stat().st_ino
    on_disk = {int(number) for number in (tmp_path / "synced").read_bytes().rpartition(latest)[0].split()}
    needed = (*folder.iterdir(), folder.parent, tmp_path / "metrics.jsonl")
    assert [path.name for path in needed if path.stat().st_ino not in on_disk] == []


@pytest.mark.parametrize(
    ("when", "how", "said"),
    [
        ("_write", lambda *_: os.kill(os.getpid(), signal.SIGKILL), r".* was ended by SIGKILL; was memory short\?"),
        ("FileSystemWriter.write_data", lambda *_: os.kill(os.getpid(), signal.SIGKILL), ".* was ended by SIGKILL; .*"),
        ("FileSystemWriter.write_data", lambda *_: os._exit(3), ".* was ended by exit status 3; .*"),
        ("stored_file", lambda path: path[0], "TypeError: 'PosixPath' object is not subscriptable"),
        ("stored_file", lambda path: (stored_file(path), os.truncate(path, 0))[0], ".*__0_0.distcp: has 0 bytes of .*"),
    ],
)
def test_a_writer_that_is_killed_or_fails_is_not_waited_for(tmp_path, monkeypatch, when, how, said):
    """The last as another machine's file system shows a file that has not arrived."""
    monkeypatch.setattr(f"curricula.model.checkpoints.writer.{when}", how)
    with pytest.raises(StorageError, match=rf"could not be written \({said}\); earlier"):
        train(train_job(tmp_path, stop_step=1), RandomBatches())
    assert latest_checkpoint(tmp_path / "checkpoints") is None and not list((tmp_path / "checkpoints").iterdir())


def test_a_peer_that_is_lost_in_a_save_is_not_taken_for_a_disk(tmp_path, monkeypatch):
    def lose(*_, **__):
        raise RuntimeError("Connection closed by peer")

    monkeypatch.setattr("curricula.model.checkpoints.writer.sharded_state", lose)
    with pytest.raises(RuntimeError, match="^Connection closed by peer"):
        train(train_job(tmp_path, stop_step=1), RandomBatches())
    assert not list((tmp_path / "checkpoints").iterdir())


def test_signals_to_the_whole_job_do_not_end_a_writer(tmp_path, monkeypatch):
    def blocked():
        return {number.name for number in signal.pthread_sigmask(signal.SIG_BLOCK, ())}

    def stored_by_a_writer(path):
        (tmp_path / "blocked").write_text(" ".join(blocked()))
        return stored_file(path)

    before = blocked()
    monkeypatch.setattr("curricula.model.checkpoints.writer.stored_file", stored_by_a_writer)
    train(train_job(tmp_path, stop_step=1), RandomBatches())
    assert {*(tmp_path / "blocked").read_text().split()} >= {"SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2"}
    assert blocked() == before  # the training can still be asked to stop


def assert_no_process_is_left(out: Path) -> None:
    deadline = time.monotonic() + PROMPT_S
    while left := [process for process in psutil.process_iter(["cwd"]) if process.info["cwd"] == str(out)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def test_a_full_disk_on_one_rank_ends_all_ranks_with_a_sentence_and_keeps_earlier_checkpoints(tmp_path, undisturbed, free_port):
    train(train_job(tmp_path, stop_step=2), RandomBatches())
    fault = {"kind": "full disk", "rank": 1}
    for status, said in ended(start(tmp_path, 2, free_port, fault=fault, job={"save_interval_steps": 4})):
        assert status == os.EX_IOERR
        assert re.search(r"step_00000004: .* could not be written \((File too large|the file system accepts no)", said)
        assert "Traceback" not in said
    assert [path.name for path in sorted((tmp_path / "checkpoints").iterdir())] == ["latest", "step_00000002"]


def test_a_hung_rank_ends_the_job_within_the_limit_and_the_logs_say_where(tmp_path, free_port):
    fault = {"kind": "hung", "rank": 1, "step": 3}  # the first step that the short limit is for
    children = start(tmp_path, 2, free_port, fault=fault, job={"micro_batch": 4, "hang_minutes": HANG_MINUTES})
    (waiting, _), (hung, said) = ended(children)
    assert hung == HANG_EXIT_CODE == os.EX_SOFTWARE
    assert waiting in (HANG_EXIT_CODE, PeerLost.exit_code)  # whichever watchdog acts first
    assert re.search(r"watchdog: step 4 has taken more than \d+ s", said)
    assert "faulty_child.py" in said and "in rows" in said and "ending this process; start it again" in said


def test_when_one_rank_is_stopped_the_others_end_and_log_that_they_waited(tmp_path, free_port):
    fault = {"kind": "stopped", "rank": 1, "step": 3}
    waiting, still = start(tmp_path, 2, free_port, fault=fault, job={"micro_batch": 4, "hang_minutes": HANG_MINUTES})
    ((status, said),) = ended([waiting])
    still.kill()
    assert status == HANG_EXIT_CODE and still.ended()[0] == -signal.SIGKILL
    assert "what each thread of process" in said and "in _train_step" in said


def test_a_signal_to_one_rank_stops_all_at_the_end_of_the_step(tmp_path, undisturbed, free_port):
    fault = {"kind": "asked to stop", "signal": "SIGUSR2", "rank": 1, "step": 4}
    for status, said in ended(start(tmp_path, 2, free_port, fault=fault, job={"micro_batch": 4})):
        assert status == Interrupted.exit_code == os.EX_TEMPFAIL and "at step 5 of 12, which is saved" in said
    latest = latest_checkpoint(tmp_path / "checkpoints")
    assert latest.name == "step_00000005" and len(list(latest.glob("*.distcp"))) == 2  # both have written a part
    assert_finishes_undisturbed(tmp_path, undisturbed, exactly=False)


def test_processes_that_read_ahead_change_no_loss_even_where_they_had_read_past_a_stop(tmp_path, undisturbed):
    fault = {"kind": "asked to stop", "signal": "SIGUSR2", "step": 7}
    for attempt, expected in ((0, Interrupted.exit_code), (1, 0)):
        asked = {"attempt": attempt, "fault": fault if attempt == 0 else {}, "job": {"data_workers": 2}}
        ((status, said),) = ended(start(tmp_path, 1, **asked))
        assert status == expected, said
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [(row["step"], row["loss"]) for row in rows] == [(row["step"], row["loss"]) for row in undisturbed]
    readers = {(line["attempt"], line["reader"]) for line in read_jsonl(tmp_path / "served.jsonl")}
    assert sorted(attempt for attempt, _ in readers) == [0, 0, 1, 1]


def test_a_slow_rank_is_named_with_its_host_in_log_and_progress_after_three_comparisons(tmp_path, free_port):
    fault = {"kind": "slow", "rank": 1, "seconds": 1.0}  # far more than the other takes on a busy machine
    children = start(tmp_path, 2, free_port, fault=fault, compare_every_step=True, job={"stop_step": 6})
    (first, said), (second, _) = ended(children)
    assert (first, second) == (0, 0)
    pattern = rf"rank 1 \({re.escape(socket.gethostname())}\) takes \d+\.\d+ times as long as the median rank"
    assert re.search(pattern + " for its own part of a step", said)
    named = [line["straggler"] for line in read_jsonl(tmp_path / "stragglers.jsonl")]
    compared = read_metrics(tmp_path / "metrics.jsonl")[-1]["timing"]["ranks"]
    assert compared["slowest"] == 1 and compared["slowest_s"] > max(1.0, compared["median_s"])
    assert named[:3] == [""] * 3 and re.fullmatch(pattern, named[-1])


class Poisoned(RandomBatches):
    """The losses of two rows of batch 3 are not numbers."""

    def rows(self, step, start, stop):
        tokens, mask = super().rows(step, start, stop)
        spoilt = np.isin(np.arange(start, stop), [1, 6]) & (step == 3)
        return tokens, np.where(spoilt[:, None], np.nan, mask).astype(np.float32)


def test_a_loss_that_is_not_a_number_names_the_samples_and_keeps_the_last_good_checkpoint(tmp_path, undisturbed):
    with pytest.raises(UserError, match=r"loss nan at step 4, on batch 3 .*caused by safe 25, safe 30; all samples"):
        train(train_job(tmp_path, save_interval_steps=2, micro_batch=3), Poisoned())
    noted = json.loads((tmp_path / "nonfinite.json").read_text())
    assert noted["step"] == 4
    assert noted["samples"] == [{"source": "safe", "epoch": 0, "sample": sample} for sample in (25, 30)]
    assert [sample["sample"] for sample in noted["whole_batch"]] == list(range(24, 32))
    (tmp_path / "nonfinite.json").unlink()
    error = nonfinite_error(tmp_path, "gradient norm nan", RandomBatches(), 3, (), is_main=False)
    assert "caused by" not in str(error) and not (tmp_path / "nonfinite.json").exists()
    assert latest_checkpoint(tmp_path / "checkpoints").name == "step_00000002"
    train(train_job(tmp_path), RandomBatches())
    assert [row["loss"] for row in read_metrics(tmp_path / "metrics.jsonl")] == pytest.approx(
        [row["loss"] for row in undisturbed], abs=1e-5
    )


def test_a_clock_that_jumps_back_changes_nothing(tmp_path, undisturbed, monkeypatch):
    real, hours = time.time, iter(range(10**6))
    monkeypatch.setattr(time, "time", lambda: real() - 3600 * next(hours))
    train(train_job(tmp_path, save_interval_minutes=60.0), RandomBatches())
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["loss"] for row in rows] == [row["loss"] for row in undisturbed]
    assert all(value >= 0 for row in rows for value in row["timing"].values())
    assert [path.name for path in sorted((tmp_path / "checkpoints").glob("step_*"))] == ["step_00000012"]


@pytest.mark.parametrize(
    ("change", "named"),
    [({"global_batch": 4}, r"data.batch was 8, now 4"), ({"sequence_length": 8}, r"recipe.sequence_length was 16, now 8")],
    ids=["global batch", "sequence length"],
)
def test_resuming_with_another_batch_is_refused(tmp_path, change, named):
    train(train_job(tmp_path, stop_step=2), RandomBatches())
    with pytest.raises(UserError, match=named):
        train(train_job(tmp_path), msgspec.structs.replace(RandomBatches(), **change))


def test_checkpoints_are_also_saved_by_the_clock(tmp_path, monkeypatch):
    """A minute passes after each step, before what is due is saved."""
    minutes = [0]
    clock = types.SimpleNamespace(monotonic=lambda: 60.0 * minutes[-1], perf_counter=time.perf_counter)
    monkeypatch.setattr("curricula.model.train.time", clock)
    job = train_job(tmp_path, save_interval_minutes=2.5, keep_last=50)
    train(job, RandomBatches(), lambda done, total, **figures: minutes.append(done))
    assert [step_of(folder) for folder in sorted((tmp_path / "checkpoints").glob("step_*"))] == [4, 8, 12]


def test_steps_that_each_take_less_than_the_limit_may_go_on_for_ever(monkeypatch):
    statuses, timers = [], []
    monkeypatch.setattr(os, "_exit", lambda status: statuses.append(status) or sys.exit())
    monkeypatch.setattr(faulthandler, "dump_traceback_later", lambda seconds, exit: timers.append((seconds, exit)))
    monkeypatch.setattr(faulthandler, "cancel_dump_traceback_later", lambda: timers.append(None))
    for name, value in {"TICK_S": 0.05, "UNKNOWN_LEAST_S": 0.0, "UNKNOWN_FACTOR": 1.0}.items():
        monkeypatch.setattr(stopping, name, value)
    with (watchdog := Watchdog(hang_minutes=0.02)).on_duty():
        for step in range(12):
            watchdog.step_ended(step, seconds=0.001)
            time.sleep(0.2)
        for step in range(12, 25):  # now most of them take a second
            watchdog.step_ended(step, seconds=1.0)
        time.sleep(2.0)
    assert not statuses
    assert timers[0] == (pytest.approx(1.5 * 1.2), False) and timers[-1] is None  # if the interpreter itself is stuck


def test_a_hang_ends_the_process_even_if_the_log_cannot_be_written(monkeypatch):
    ended, statuses = threading.Event(), []

    class Full(io.StringIO):
        fileno = sys.stderr.fileno

        def write(self, text):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def end(status):
        statuses.append(status)
        ended.set()
        sys.exit()  # ends the watching thread

    monkeypatch.setattr(stopping, "UNKNOWN_LEAST_S", 0.05)
    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(sys, "stderr", Full())
    with Watchdog(hang_minutes=0.0005).on_duty():
        ended.wait(30)
    signal.alarm(0)
    faulthandler.cancel_dump_traceback_later()
    assert statuses == [HANG_EXIT_CODE]


def _hang(room):
    """Hang with a log that takes only `room` more bytes."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while os.write(writer, bytes(4096)):
            pass
    os.read(reader, room)
    os.set_blocking(writer, True)
    os.dup2(writer, 2)
    stopping.UNKNOWN_LEAST_S, stopping.BACKSTOP, stopping.LOG_S = 0.05, 1e3, 1
    with Watchdog(hang_minutes=0.0005).on_duty():
        time.sleep(3600)


@pytest.mark.parametrize("room", [0, 200])
def test_a_hang_ends_the_process_even_if_the_log_hangs_too(room):
    process = started(_hang, room)
    process.join(PROMPT_S)
    process.kill()
    assert process.exitcode == -signal.SIGALRM
