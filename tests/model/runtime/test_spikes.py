"""Steps whose loss or gradient norm is a spike make no update, and a run that is killed and resumed skips the same ones."""

import json
import logging
import signal
import statistics
from pathlib import Path

import pytest
import torch
from forked import ended, ranks
from random_batches import RandomBatches, SpoiltBatches, train_job

from curricula.durable import read_jsonl
from curricula.errors import UserError
from curricula.model import ScheduleConfig, SpikeGuard
from curricula.model.checkpoints.folder import read_info, step_folder
from curricula.model.runtime.stopping import Measured, SpikeWindow
from curricula.model.train import train

GUARD = SpikeGuard(window=8, sigmas=6)
TOTAL, BATCH = 24, RandomBatches().global_batch
SPOILT = (9, 10, 17)


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def numbers(out: Path) -> list[dict]:
    return [{k: v for k, v in row.items() if k != "timing"} for row in read_jsonl(out / "metrics.jsonl")]


def skipped(out: Path) -> dict[int, list[int]]:
    """The samples of each skipped step."""
    return {row["step"]: row["skipped"]["samples"] for row in numbers(out) if "skipped" in row}


def spoilt(**settings) -> SpoiltBatches:
    return SpoiltBatches(total_steps=TOTAL, spoilt=SPOILT, **settings)


def files_of(checkpoint: Path) -> dict:
    return {name: file for name, file in read_info(checkpoint).files.items() if name.endswith(".distcp")}


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    out = tmp_path_factory.mktemp("guarded")
    train(train_job(out, spike_guard=GUARD), spoilt())
    return out


def test_an_undisturbed_run_is_the_same_to_the_bit_with_and_without_the_guard(tmp_path):
    batches = RandomBatches(total_steps=TOTAL, switch_step=14, masked=True)
    train(train_job(tmp_path / "without", micro_batch=3), batches)
    train(train_job(tmp_path / "with", micro_batch=3, spike_guard=GUARD), batches)
    assert numbers(tmp_path / "with") == numbers(tmp_path / "without")
    with_guard, without = (step_folder(tmp_path / name / "checkpoints", TOTAL) for name in ("with", "without"))
    assert files_of(with_guard) == files_of(without)


def test_a_spike_is_skipped_and_recorded_while_steps_samples_and_learning_rates_go_on(guarded, tmp_path, caplog):
    assert skipped(guarded) == {batch + 1: [batch * BATCH, (batch + 1) * BATCH] for batch in SPOILT}
    with caplog.at_level(logging.WARNING):
        train(train_job(tmp_path, spike_guard=GUARD), spoilt())
    assert sum("its update is skipped: loss " in text and "it read safe " in text for text in caplog.messages) == 3
    without = tmp_path / "without"
    train(train_job(without), spoilt())
    for row, other in zip(numbers(guarded), numbers(without), strict=True):
        assert [row[key] for key in ("step", "lr", "tokens")] == [other[key] for key in ("step", "lr", "tokens")]


def test_a_skipped_batch_leaves_no_trace_in_the_weights(guarded, tmp_path):
    """What follows is the same whatever the spoilt batches held."""
    train(train_job(tmp_path, spike_guard=GUARD), spoilt(token=1))
    for row, other in zip(numbers(guarded), numbers(tmp_path), strict=True):
        assert (row == other) == (row["step"] - 1 not in SPOILT)
    ends = [step_folder(out / "checkpoints", TOTAL) for out in (guarded, tmp_path)]
    assert files_of(ends[0]) == files_of(ends[1])


@pytest.mark.parametrize("killed_at", [8, 10, 11, 17])
def test_a_run_that_stops_anywhere_and_resumes_skips_the_same_steps(guarded, tmp_path, killed_at):
    class Stopped(Exception):
        pass

    def stop(done, total, **figures):
        if done == killed_at:
            raise Stopped

    with pytest.raises(Stopped):
        train(train_job(tmp_path, spike_guard=GUARD, save_interval_steps=3), spoilt(), stop)
    train(train_job(tmp_path, spike_guard=GUARD, save_interval_steps=3), spoilt())
    assert numbers(tmp_path) == numbers(guarded)


def test_a_branch_skips_what_the_same_arm_trained_from_scratch_skips(tmp_path):
    arm = spoilt(switch_step=12)
    train(train_job(tmp_path / "scratch", spike_guard=GUARD), arm)
    train(train_job(tmp_path / "trunk", spike_guard=GUARD, stop_step=10, keep_steps=(10,)), spoilt())
    train(
        train_job(tmp_path / "arm", spike_guard=GUARD, init_from=step_folder(tmp_path / "trunk/checkpoints", 10)), arm
    )
    assert numbers(tmp_path / "trunk") + numbers(tmp_path / "arm") == numbers(tmp_path / "scratch")
    assert list(skipped(tmp_path / "scratch")) == [10, 11, 18]


def test_two_ranks_skip_together_and_one_process_continues_after_one_of_them_is_killed(guarded, tmp_path, free_port):
    wanted = {"batches": {"total_steps": TOTAL, "spoilt": SPOILT}, "spike_guard": {"window": 8}, "micro_batch": 4}
    argument = json.dumps({"out": str(tmp_path), **wanted, "save_interval_steps": 4, "kill_at": 15})
    outcomes = ended(ranks("train_in_child.py", argument, tmp_path, 2, free_port))
    assert [status for status, _ in outcomes] == [-signal.SIGKILL, 1], outcomes
    train(train_job(tmp_path, spike_guard=GUARD), spoilt())
    assert skipped(tmp_path) == skipped(guarded)
    for row, other in zip(numbers(tmp_path), numbers(guarded), strict=True):
        assert row["loss"] == pytest.approx(other["loss"], abs=1e-5)


def test_warm_up_and_the_first_steps_of_a_phase_are_never_skipped(tmp_path):
    train(train_job(tmp_path / "a", spike_guard=GUARD, schedule=ScheduleConfig(warmup_steps=12)), spoilt())
    assert list(skipped(tmp_path / "a")) == [18]
    train(train_job(tmp_path / "b", spike_guard=GUARD), spoilt(switch_step=15))
    assert list(skipped(tmp_path / "b")) == [10, 11]


def test_another_guard_in_the_past_is_refused(tmp_path):
    train(train_job(tmp_path, stop_step=3, spike_guard=GUARD), RandomBatches())
    with pytest.raises(UserError, match="another recipe .recipe.spike_guard"):
        train(train_job(tmp_path), RandomBatches())


def window(values: list[float]) -> SpikeWindow:
    found = SpikeWindow(SpikeGuard(window=8, sigmas=3), [])
    for value in values:
        found.add(Measured(value, 1.0))
    return found


def test_limits_follow_their_formula_from_half_a_window_on():
    values = [2.0, 2.4, 2.2, 2.6]
    assert window(values[:3]).limits() is None
    assert window(values).limits() == pytest.approx((2.3 + 3 * statistics.pstdev(values), 1.03))


def test_a_spike_in_the_window_hides_no_second_one_and_a_lasting_level_is_accepted():
    calm = [2.0, 2.1, 1.9, 2.0, 2.1, 1.9, 2.0, 2.0]
    after = window([*calm, 50.0])
    assert after.limits().loss < 3.0
    taken = 0
    while after.limits().loss < 4.0:
        after.add(Measured(4.0, 1.0))
        taken += 1
    assert taken < 8
