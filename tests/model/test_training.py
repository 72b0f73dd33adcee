import contextlib
import dataclasses
import json
import multiprocessing
import os
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from forked import Program
from random_batches import RandomBatches, numbers, train_job

from curricula.durable import read_jsonl
from curricula.errors import UsageError, UserError
from curricula.model.checkpoints import writer
from curricula.model.checkpoints.folder import latest_checkpoint, read_info, step_folder, step_of
from curricula.model.checkpoints.writer import Saver
from curricula.model.config import EngineConfig, ExecutionConfig, OptimizerConfig, ScheduleConfig, SpikeGuard
from curricula.model.network.build import Backend
from curricula.model.runtime.distributed import Parallel, started
from curricula.model.runtime.stopping import Interrupted, Watchdog
from curricula.model.train import train


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    train(train_job(out, save_interval_steps=3, keep_steps=(6, 9)), RandomBatches())
    return out


def test_training_learns_and_records_every_step(tmp_path):
    batches = RandomBatches(total_steps=40)
    train(train_job(tmp_path, optimizer=OptimizerConfig(lr=1e-2)), batches)
    rows = read_jsonl(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 41))
    assert rows[0]["loss"] == pytest.approx(np.log(64), abs=0.2)
    assert rows[-1]["loss"] < rows[0]["loss"] - 1.0
    assert rows[-1]["tokens"] == 40 * 8 * 16
    assert rows[-1]["mix"] == {"safe": 1.0}
    assert set(rows[0]["timing"]) == {
        "seconds", "tokens_per_second", "tokens_per_second_per_device", "tflops_per_device",
        "data_wait_s", "save_stall_s", "left_s",
    }  # fmt: skip


def test_steps_are_as_large_as_the_learning_rate_that_they_record(tmp_path):
    """Two warm-ups rise alike to different peaks."""
    for lr, warmup in ((1e-3, 4), (5e-4, 2)):
        settings = {"optimizer": OptimizerConfig(lr=lr), "schedule": ScheduleConfig(warmup_steps=warmup)}
        train(train_job(tmp_path / str(warmup), stop_step=4, **settings), RandomBatches())
    higher, lower = numbers(tmp_path / "4"), numbers(tmp_path / "2")
    assert higher[:2] == lower[:2] and higher[2]["loss"] == lower[2]["loss"] and higher[3]["loss"] != lower[3]["loss"]


def test_branch_arm_equals_training_from_scratch(whole_run, tmp_path):
    arm, held_out = RandomBatches(switch_step=6), {"held out": RandomBatches(key="held out", total_steps=1)}
    for name, start in {"scratch": None, "branch": step_folder(whole_run / "checkpoints", 6)}.items():
        train(train_job(tmp_path / name, init_from=start, validation_interval_steps=3), arm, validation=held_out)
    scratch = numbers(tmp_path / "scratch")
    assert numbers(whole_run)[:6] == [row for row in scratch if row["step"] <= 6 and "validation" not in row]
    assert numbers(tmp_path / "branch") == [row for row in scratch if row["step"] > 6]


def test_with_the_weights_of_gpus_too_a_resumed_run_equals_an_undisturbed_one(tmp_path, monkeypatch):
    """Weights in bfloat16, and the float32 masters that the optimizer keeps of them."""

    @contextlib.contextmanager
    def in_bfloat16(*asked):
        with started(*asked) as parallel:
            yield dataclasses.replace(parallel, precision=torch.bfloat16)

    monkeypatch.setattr("curricula.model.train.started", in_bfloat16)
    for name, stops in {"whole": [8], "resumed": [4, 8]}.items():
        for stop in stops:
            train(train_job(tmp_path / name, stop_step=stop), RandomBatches())
    assert read_info(latest_checkpoint(tmp_path / "whole/checkpoints")).precision == "bfloat16"
    assert numbers(tmp_path / "resumed") == numbers(tmp_path / "whole")


def test_a_cooldown_on_other_data_and_another_schedule_equals_training_from_scratch(whole_run, tmp_path):
    """Until the earlier of two decays the learning rate is the same, so one arm branches from the other's past."""
    early = ScheduleConfig(warmup_steps=2, decay_fraction=0.5)
    arm = RandomBatches(switch_step=6)
    train(train_job(tmp_path / "scratch", schedule=early), arm)
    train(train_job(tmp_path / "branch", init_from=step_folder(whole_run / "checkpoints", 6), schedule=early), arm)
    rows = numbers(whole_run)[:6] + numbers(tmp_path / "branch")
    assert rows == numbers(tmp_path / "scratch") and rows[8]["lr"] < rows[5]["lr"]
    late = step_folder(whole_run / "checkpoints", 9)  # a step too late to part
    with pytest.raises(UserError, match="learning rate of step 8"):
        train(train_job(tmp_path / "late", init_from=late, schedule=early), RandomBatches())


def test_an_arm_that_branches_at_the_very_end_is_the_trunk_itself(whole_run, tmp_path):
    end = latest_checkpoint(whole_run / "checkpoints")
    train(train_job(tmp_path, init_from=end), RandomBatches(switch_step=12))
    copied = latest_checkpoint(tmp_path / "checkpoints")
    assert copied.name == "step_00000012"
    assert (copied / "__0_0.distcp").stat().st_size == (end / "__0_0.distcp").stat().st_size


@pytest.mark.forked
def test_resume_after_sigkill_gives_the_same_metrics_bit_for_bit(tmp_path, whole_run):
    wanted = {"out": str(tmp_path), "save_interval_steps": 3, "kill_at": 8}
    status, said = Program("train_in_child.py", json.dumps(wanted), tmp_path).ended()
    assert status == -signal.SIGKILL, said
    assert [row["step"] for row in numbers(tmp_path)] == list(range(1, 9))
    train(train_job(tmp_path, save_interval_steps=3), RandomBatches())
    assert numbers(tmp_path) == numbers(whole_run)


@pytest.mark.parametrize("asked", [signal.SIGUSR2, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_stop_signal_saves_at_the_step_boundary_and_training_goes_on_from_there(tmp_path, whole_run, asked):
    def signal_in_step_4(done, total, **figures):
        if done == 3:
            os.kill(os.getpid(), asked)

    handler = signal.getsignal(asked)
    with pytest.raises(Interrupted, match=f"{asked.name} at step 4 of 12"):
        train(train_job(tmp_path), RandomBatches(), signal_in_step_4)
    assert signal.getsignal(asked) is handler
    assert (tmp_path / "checkpoints/latest").read_text() == "step_00000004\n"
    train(train_job(tmp_path), RandomBatches())
    assert numbers(tmp_path) == numbers(whole_run)


def test_a_run_trains_in_a_thread_to_which_python_delivers_no_signal(tmp_path):
    with ThreadPoolExecutor(1) as pool:
        pool.submit(train, train_job(tmp_path, stop_step=1), RandomBatches()).result()
    assert (tmp_path / "checkpoints/latest").read_text() == "step_00000001\n"


def test_a_stop_signal_in_the_last_step_ends_the_run_as_usual(tmp_path):
    def signal_in_step_2(done, total, **figures):
        os.kill(os.getpid(), signal.SIGUSR2)

    train(train_job(tmp_path, stop_step=2), RandomBatches(), signal_in_step_2)
    assert (tmp_path / "checkpoints/latest").read_text() == "step_00000002\n"


def test_a_training_that_fails_leaves_no_process_that_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "stored_file", lambda path: time.sleep(600))

    def fail(done, total, **figures):
        if done == 3:
            raise EOFError

    with pytest.raises(EOFError):
        train(train_job(tmp_path, save_interval_steps=2), RandomBatches(), fail)
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(
    ("at_read", "fp8", "step", "read"),
    [(2, None, 6, 2), (5, None, 12, 5), (2, "delayed", 7, 3)],
    ids=["on the way", "at the end", "in fp8, whose state cannot be saved now"],
)
def test_a_stop_signal_in_a_validation_ends_it_and_the_next_start_makes_up_for_it(
    tmp_path, monkeypatch, at_read, fp8, step, read
):
    reads = []

    class Signalling(RandomBatches):
        def rows(self, step, start, stop):
            reads.append(step)
            if len(reads) == at_read:
                os.kill(os.getpid(), signal.SIGUSR2)
            return super().rows(step, start, stop)

    job = train_job(tmp_path / "stopped", validation_interval_steps=6, keep_steps=(12,))  # another arm begins at its end
    held_out = RandomBatches(key="held out", total_steps=3)
    with pytest.raises(Interrupted, match=f"at step {step} of 12"), monkeypatch.context() as patch:
        patch.setattr("curricula.model.train.choose_backend", lambda *_: Backend("cpu", "test"))
        asked = dataclasses.replace(job, execution=ExecutionConfig(engine=EngineConfig(fp8=fp8)))
        train(asked, RandomBatches(), validation={"held out": Signalling(key="held out", total_steps=3)})
    assert len(reads) == read
    train(job, RandomBatches(), validation={"held out": held_out})
    train(train_job(tmp_path / "whole", validation_interval_steps=6), RandomBatches(), validation={"held out": held_out})
    assert numbers(tmp_path / "stopped") == numbers(tmp_path / "whole")


def test_a_validation_loss_that_is_not_a_number_ends_the_run(tmp_path):
    class Poisoned(RandomBatches):
        def rows(self, step, start, stop):
            tokens, mask = super().rows(step, start, stop)
            return tokens, mask * np.float32(np.nan)

    with pytest.raises(UserError, match="validation loss nan on held out after step 2; "):
        train(train_job(tmp_path, stop_step=2), RandomBatches(), validation={"held out": Poisoned(total_steps=1)})
    assert not any("validation" in row for row in numbers(tmp_path))


def test_a_step_lasts_until_all_processes_have_updated_their_weights_and_only_saves_stall(tmp_path, monkeypatch):
    agree, begin = Parallel.any_of, Saver.start

    def waiting(parallel, *flags):  # as for the update, which a GPU may not have done yet
        time.sleep(0.05)
        return agree(parallel, *flags)

    def slowly(saver, folder, info):
        time.sleep(0.2)
        begin(saver, folder, info)

    class SlowBatches(RandomBatches):
        def rows(self, step, start, stop):
            time.sleep(0.02)
            return super().rows(step, start, stop)

    monkeypatch.setattr(Parallel, "any_of", waiting)
    monkeypatch.setattr(Saver, "start", slowly)
    train(train_job(tmp_path, stop_step=4, save_interval_steps=3, micro_batch=4), SlowBatches())
    timings = [row["timing"] for row in read_jsonl(tmp_path / "metrics.jsonl")]
    assert [timing["save_stall_s"] >= 0.2 for timing in timings] == [False, False, False, True]
    assert all(timing["seconds"] >= timing["data_wait_s"] + 0.05 and timing["data_wait_s"] >= 0.04 for timing in timings)


@pytest.mark.parametrize(
    ("length", "stop_step", "said"),
    [
        (16, 13, "stop_step is 13; the batches have steps 1 to 12"),
        (32, 12, "sequences of 32 tokens are longer than model.sequence_length 16; shorten them"),
    ],
)
def test_batches_that_do_not_fit_the_model_or_the_stop_are_refused(tmp_path, length, stop_step, said):
    with pytest.raises(UsageError, match=said):
        train(train_job(tmp_path, stop_step=stop_step), RandomBatches(sequence_length=length))
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_batch_that_does_not_divide_among_the_processes_is_refused(tmp_path, monkeypatch):
    """Each would read its share rounded down, and the rest would be lost."""

    @contextlib.contextmanager
    def among_three(*asked):
        with started(*asked) as parallel:
            yield dataclasses.replace(parallel, data_parallel=3)

    monkeypatch.setattr("curricula.model.train.started", among_three)
    for batch, other in ((8, 6), (6, 8)):
        with pytest.raises(UsageError, match="the global batch of 8 sequences does not divide among 3 data-parallel processes"):
            held_out = {"held out": RandomBatches(global_batch=other)}
            train(train_job(tmp_path), RandomBatches(global_batch=batch), validation=held_out)


@pytest.mark.parametrize("stop_step", [6, None], ids=["by the start of an earlier segment too", "by its own"])
def test_a_finished_run_is_left_as_it_is(whole_run, stop_step):
    recorded, end = numbers(whole_run), latest_checkpoint(whole_run / "checkpoints")
    folder = end.stat().st_ino
    train(train_job(whole_run, save_interval_steps=3, keep_steps=(6, 9), stop_step=stop_step), RandomBatches())
    assert latest_checkpoint(whole_run / "checkpoints") == end
    assert numbers(whole_run) == recorded and end.stat().st_ino == folder


def test_a_lost_branch_point_is_made_again_with_no_more_checkpoints_on_the_disk_than_usual(whole_run, tmp_path):
    """A new arm may leave a trunk tens of thousands of steps behind its last kept checkpoint."""
    checkpoints, seen = shutil.copytree(whole_run, tmp_path / "run") / "checkpoints", []
    shutil.rmtree(step_folder(checkpoints, 6))

    def look(done, total, **figures):
        seen.append(sorted(step_of(folder) for folder in checkpoints.glob("step_*")))

    job = train_job(tmp_path / "run", stop_step=6, save_interval_steps=1, keep_steps=(6, 9), keep_last=1)
    train(job, RandomBatches(), look)
    assert {len(steps) for steps in seen} == {2, 3} and all(steps[-2:] == [9, 12] for steps in seen)
    look(6, 6)
    assert seen[-1] == [6, 9, 12]


def test_gradients_gathered_over_micro_batches_are_those_of_the_whole_batch(tmp_path):
    batches = RandomBatches(masked=True, total_steps=6)
    train(train_job(tmp_path / "whole"), batches)
    train(train_job(tmp_path / "parts", micro_batch=3), batches)
    for a, b in zip(numbers(tmp_path / "whole"), numbers(tmp_path / "parts")):
        assert b["loss"] == pytest.approx(a["loss"], abs=1e-5)
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=1e-4)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run that stopped after three steps."""
    out = tmp_path_factory.mktemp("stopped")
    train(train_job(out, stop_step=3), RandomBatches())
    return out


@pytest.fixture
def copy(stopped, tmp_path):
    return shutil.copytree(stopped, tmp_path / "copy")


def test_resuming_on_changed_data_names_what_changed(copy):
    with pytest.raises(UserError, match=r"other data up to step 3 \(data.key was 'safe', now 'unsafe'\)"):
        train(train_job(copy), RandomBatches(key="unsafe"))


def test_weights_that_a_run_began_from_may_be_moved_away_while_it_trains(copy, tmp_path):
    weights = latest_checkpoint(copy / "checkpoints")

    def move(done, total, **figures):
        if done == 2:
            weights.rename(tmp_path / "elsewhere")

    job = train_job(tmp_path / "run", stop_step=6, init_weights=weights, save_interval_steps=4)
    train(job, RandomBatches(), move)
    infos = [read_info(folder) for folder in sorted((tmp_path / "run/checkpoints").glob("step_*"))]
    assert len(infos) >= 2 and len({json.dumps(info.recipe, sort_keys=True) for info in infos}) == 1


def test_resuming_with_a_changed_future_is_allowed(copy):
    train(train_job(copy, stop_step=6), RandomBatches(switch_step=3, total_steps=20))
    assert [row["phase"] for row in numbers(copy)] == [0] * 3 + [1] * 3


def test_resuming_with_another_past_learning_rate_or_seed_is_refused(copy):
    with pytest.raises(UserError, match="learning rate of step 1 was 0.00025, now 0.000125"):
        train(train_job(copy, schedule=ScheduleConfig(warmup_steps=4)), RandomBatches())
    with pytest.raises(UserError, match="learning rate of step 3 was 0.0005, now 0.000454545"):  # the last one taken
        train(train_job(copy, schedule=ScheduleConfig(warmup_steps=2, decay_fraction=11 / 12)), RandomBatches())
    with pytest.raises(UserError, match="recipe.seed was 0, now 1"):
        train(train_job(copy, seed=1), RandomBatches())


class Spike(RandomBatches):
    """The gradient of batch 3, but not its loss, is larger than any number."""

    def rows(self, step, start, stop):
        tokens, mask = super().rows(step, start, stop)
        if step == 3:
            mask = mask * 0.0
            mask[0, 0] = 1e37
        return tokens, mask


@pytest.mark.parametrize("guard", [None, SpikeGuard()])
def test_a_gradient_that_is_not_a_number_stops_without_saving(tmp_path, guard):
    with pytest.raises(UserError, match=r"loss \d\S*, gradient norm (inf|nan) at step 4, on batch 3"):
        train(train_job(tmp_path, save_interval_steps=1, spike_guard=guard), Spike())
    assert (tmp_path / "checkpoints/latest").read_text() == "step_00000003\n"


def test_a_batch_of_which_no_token_counts_has_no_loss_and_no_gradient(tmp_path):
    class Silent(RandomBatches):
        def rows(self, step, start, stop):
            tokens, mask = super().rows(step, start, stop)
            return tokens, mask * np.float32(step != 1)

    train(train_job(tmp_path, stop_step=3), Silent())
    _, silent, after = numbers(tmp_path)
    assert silent["loss"] == silent["grad_norm"] == 0 and np.isfinite(after["loss"])


def test_a_validation_that_failed_costs_no_step_and_is_made_up_for(tmp_path, whole_run):
    class Unreadable(RandomBatches):
        def rows(self, step, start, stop):
            raise UserError("the shard is gone")

    job = train_job(tmp_path, validation_interval_steps=6, validate_steps=(8,))
    with pytest.raises(UserError, match="the shard is gone"):
        train(dataclasses.replace(job, stop_step=6), RandomBatches(), validation={"held out": Unreadable(total_steps=1)})
    train(job, RandomBatches(), validation={"held out": RandomBatches(key="held out", total_steps=1)})
    assert [start["resumed_step"] for start in read_jsonl(tmp_path / "starts.jsonl")] == [0, 6]
    assert [row["step"] for row in numbers(tmp_path) if "validation" in row] == [6, 8, 12]
    assert [row for row in numbers(tmp_path) if "validation" not in row] == numbers(whole_run)


def test_validation_losses_are_recorded_and_change_nothing(tmp_path, whole_run):
    held_out = {"held out": RandomBatches(key="held out", total_steps=2)}
    train(train_job(tmp_path, stop_step=6), RandomBatches(), validation=held_out)
    train(train_job(tmp_path), RandomBatches(), validation=held_out)
    train(train_job(tmp_path), RandomBatches(), validation=held_out)  # nothing left to do, nothing done twice
    rows = numbers(tmp_path)
    checks = [row for row in rows if "validation" in row]
    assert [row["step"] for row in checks] == [6, 12]
    assert checks[1]["validation"]["held out"] < checks[0]["validation"]["held out"]
    assert [row for row in rows if "validation" not in row] == numbers(whole_run)


def test_every_validation_batch_has_more_time_than_a_step_even_the_first_which_may_compile(tmp_path, monkeypatch):
    expected, read_under = [""], set()
    monkeypatch.setattr(Watchdog, "expect", lambda watchdog, what: expected.append(what))
    monkeypatch.setattr(Watchdog, "step_begins", lambda watchdog, step: expected.append(f"step {step}"))

    class HeldOut(RandomBatches):
        def rows(self, step, start, stop):
            read_under.add(expected[-1])
            return super().rows(step, start, stop)

    train(train_job(tmp_path, stop_step=1), RandomBatches(), validation={"held out": HeldOut(total_steps=2)})
    assert read_under == {"a validation batch"} and expected[-1] == "step 2"
    assert "writing a checkpoint" in expected  # which has more time, too


def test_another_seed_gives_other_weights(tmp_path, whole_run):
    train(train_job(tmp_path, seed=1, stop_step=1), RandomBatches())
    assert numbers(tmp_path)[0]["loss"] != numbers(whole_run)[0]["loss"]
