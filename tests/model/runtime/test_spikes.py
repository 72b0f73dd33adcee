"""Steps whose loss or gradient norm is a spike make no update, spikes that do not end are taken back to before them, and a run
that is killed and resumed does the same."""

import dataclasses
import functools
import json
import shutil
import signal
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
from examples import examples
from forked import ended, ranks
from hypothesis import given
from hypothesis import strategies as st
from random_batches import SCHEDULE, RandomBatches, SpoiltBatches, numbers, train_job

from curricula.durable import read_jsonl, write_json
from curricula.errors import StorageError, UserError
from curricula.model.checkpoints import writer
from curricula.model.checkpoints.folder import CheckpointInfo, prune, read_info, step_folder, step_of, stored_file
from curricula.model.config import ModelConfig, OptimizerConfig, Rewind, ScheduleConfig, SpikeGuard, TrainJob, learning_rate
from curricula.model.runtime.spikes import Guard, Measured, SpikeWindow, named_samples
from curricula.model.train import train

GUARD = SpikeGuard(window=8, sigmas=6)
REWIND = SpikeGuard(window=8, sigmas=6, rewind=Rewind(after=3, interval_steps=8))
TOTAL, BATCH = 24, RandomBatches().global_batch
SPOILT = (9, 10, 17)
ASTRAY = (14, 15, 16)
"""Batches after which `REWIND` leads from step 17 back to step 8."""


def skipped(out: Path) -> dict[int, list[int]]:
    """The samples of each skipped step."""
    return {row["step"]: row["skipped"]["samples"] for row in numbers(out) if "skipped" in row}


def spoilt(**settings) -> SpoiltBatches:
    return SpoiltBatches(total_steps=TOTAL, spoilt=SPOILT, **settings)


def files_of(checkpoint: Path) -> dict:
    return {name: file for name, file in read_info(checkpoint).files.items() if name.endswith(".distcp")}


def resumed_twice(job: TrainJob, batches: SpoiltBatches, at: int) -> None:
    """From its stop `at` this step the run goes on twice, for it is killed two steps later."""

    class Stopped(Exception):
        pass

    def stop(done, total, **figures):
        if done == at + 2:
            raise Stopped

    with pytest.raises(Stopped):
        train(job, batches, stop)
    train(job, batches)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    out = tmp_path_factory.mktemp("guarded")
    train(train_job(out, spike_guard=GUARD, keep_steps=(10,)), spoilt())
    return out


def test_an_undisturbed_run_is_the_same_to_the_bit_with_and_without_the_guard(tmp_path):
    steps, batches = 16, RandomBatches(total_steps=16, switch_step=8, masked=True)
    train(train_job(tmp_path / "without", micro_batch=3), batches)
    train(train_job(tmp_path / "with", micro_batch=3, spike_guard=GUARD), batches)
    assert numbers(tmp_path / "with") == numbers(tmp_path / "without")
    with_guard, without = (step_folder(tmp_path / name / "checkpoints", steps) for name in ("with", "without"))
    assert files_of(with_guard) == files_of(without)


def test_a_spike_is_skipped_and_recorded_while_steps_samples_and_learning_rates_go_on(guarded):
    assert skipped(guarded) == {batch + 1: [batch * BATCH, (batch + 1) * BATCH] for batch in SPOILT}
    rates = [learning_rate(step, TOTAL, OptimizerConfig(), SCHEDULE) for step in range(TOTAL)]
    row_tokens = RandomBatches().sequence_length
    assert [(row["step"], row["lr"], row["tokens"]) for row in numbers(guarded)] == [
        (step, rate, step * BATCH * row_tokens) for step, rate in enumerate(rates, start=1)
    ]


def test_a_skipped_batch_is_logged_and_leaves_no_trace_in_the_weights(guarded, tmp_path, caplog):
    """What follows is the same whatever the spoilt batches held."""
    train(train_job(tmp_path, spike_guard=GUARD), spoilt(token=1))
    assert sum("its update is skipped: loss " in text and "it read safe " in text for text in caplog.messages) == 3
    for row, other in zip(numbers(guarded), numbers(tmp_path), strict=True):
        assert (row == other) == (row["step"] - 1 not in SPOILT)
    ends = [step_folder(out / "checkpoints", TOTAL) for out in (guarded, tmp_path)]
    assert files_of(ends[0]) == files_of(ends[1])


def test_older_checkpoints_are_not_read_without_a_rewind_and_cannot_be_left_unread_with_one(tmp_path):
    job = functools.partial(train_job, tmp_path, spike_guard=GUARD, keep_steps=(4,), save_interval_steps=4)
    train(job(stop_step=8), spoilt())
    info = step_folder(tmp_path / "checkpoints", 4) / "checkpoint.json"
    info.unlink()
    info.mkdir()  # what cannot be read, as on a disk that fails
    train(job(stop_step=12), spoilt())
    assert step_folder(tmp_path / "checkpoints", 12).is_dir()
    with pytest.raises(StorageError):  # not "none", for what it may need would be deleted
        Guard(train_job(tmp_path, spike_guard=REWIND), RandomBatches(), None).needed_by(info.parent)


def test_a_run_that_stops_amid_its_spikes_and_resumes_skips_the_same_steps(guarded, tmp_path):
    """It goes on after the first of two skipped steps, and has to know that it skipped it."""
    train(train_job(tmp_path, spike_guard=GUARD, stop_step=10), spoilt())
    resumed_twice(train_job(tmp_path, spike_guard=GUARD), spoilt(), at=10)
    assert [start["resumed_step"] for start in read_jsonl(tmp_path / "starts.jsonl")] == [0, 10, 10]
    assert numbers(tmp_path) == numbers(guarded)


def test_a_branch_skips_what_the_same_arm_trained_from_scratch_skips(guarded, tmp_path):
    arm = spoilt(switch_step=12)
    train(train_job(tmp_path / "scratch", spike_guard=GUARD), arm)
    train(train_job(tmp_path / "arm", spike_guard=GUARD, init_from=step_folder(guarded / "checkpoints", 10)), arm)
    assert numbers(guarded)[:10] + numbers(tmp_path / "arm") == numbers(tmp_path / "scratch")
    assert list(skipped(tmp_path / "scratch")) == [10, 11, 18]


def rewound(out: Path) -> dict[int, dict]:
    return {row["step"]: row["rewound"] for row in numbers(out) if "rewound" in row}


def astray(**settings) -> SpoiltBatches:
    return SpoiltBatches(total_steps=TOTAL, spoilt=ASTRAY, **settings)


@pytest.fixture(scope="module")
def taken_back(tmp_path_factory):
    out = tmp_path_factory.mktemp("taken-back")
    train(train_job(out, spike_guard=REWIND, keep_steps=(8, 17)), astray())
    return out


def test_spikes_that_do_not_end_lead_back_to_the_state_before_them(taken_back):
    assert rewound(taken_back) == {17: {"to_step": 8, "samples": [8 * BATCH, 17 * BATCH]}}
    before, after = (step_folder(taken_back / "checkpoints", step) for step in (8, 17))
    assert files_of(before) == files_of(after)
    info = read_info(after)
    assert info.step == 17 and info.consumed_samples == 17 * BATCH
    assert (info.guarded_from, info.skipped_in_a_row, info.recent) == (17, 0, ())  # the weights are others


def test_what_is_taken_back_leaves_no_trace_in_the_weights(taken_back, tmp_path):
    train(train_job(tmp_path, spike_guard=REWIND), astray(token=1))
    assert numbers(tmp_path)[17:] == numbers(taken_back)[17:]
    ends = [step_folder(out / "checkpoints", TOTAL) for out in (taken_back, tmp_path)]
    assert files_of(ends[0]) == files_of(ends[1])


def test_a_run_goes_back_to_a_checkpoint_that_is_still_being_written(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "stored_file", lambda path: time.sleep(1) or stored_file(path))
    train(train_job(tmp_path, spike_guard=REWIND, stop_step=15), SpoiltBatches(total_steps=TOTAL, spoilt=(12, 13, 14)))
    assert {step: found["to_step"] for step, found in rewound(tmp_path).items()} == {15: 8}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run that stopped amid the spikes, at step 16."""
    out = tmp_path_factory.mktemp("stopped")
    train(train_job(out, spike_guard=REWIND, keep_last=1, stop_step=16), astray())
    return out


@pytest.fixture
def copy(stopped, tmp_path):
    return shutil.copytree(stopped, tmp_path / "copy")


def test_a_run_that_stops_amid_the_spikes_and_resumes_goes_back_to_the_same_step(taken_back, copy):
    resumed_twice(train_job(copy, spike_guard=REWIND, keep_last=1), astray(), at=16)
    assert numbers(copy) == numbers(taken_back)


@pytest.mark.slow
def test_a_run_that_stops_where_it_went_back_and_resumes_goes_on_as_if_it_had_not(taken_back, copy):
    job = train_job(copy, spike_guard=REWIND, keep_last=1)
    train(dataclasses.replace(job, stop_step=17), astray())
    resumed_twice(job, astray(), at=17)
    assert numbers(copy) == numbers(taken_back)


def test_a_branch_goes_back_as_far_as_the_point_where_it_begins(taken_back, tmp_path):
    train(train_job(tmp_path, spike_guard=REWIND, init_from=step_folder(taken_back / "checkpoints", 8)), astray())
    assert numbers(tmp_path) == numbers(taken_back)[8:]


@pytest.mark.parametrize("is_whole", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["late", "early and late"])
def test_branches_go_back_where_the_same_arm_trained_from_scratch_does_even_into_the_runs_before_them(tmp_path, is_whole):
    """The arm parts from the trunk amid a phase, its own branches soon after or late, and spikes come soon after each.

    The whole trunk goes on after the arm's point, and keeps what an arm may go back to.
    """
    spoilt = SpoiltBatches(total_steps=40, spoilt=(14, 15, 16, 33, 34, 35))
    settings = {"spike_guard": REWIND, "keep_last": 1}
    train(train_job(tmp_path / "scratch", **settings), spoilt)
    assert {step: found["to_step"] for step, found in rewound(tmp_path / "scratch").items()} == {17: 8, 36: 24}

    def point(run: str, step: int) -> Path:
        return step_folder(tmp_path / run / "checkpoints", step)

    train(train_job(tmp_path / "trunk", **settings, keep_steps=(11, 40), stop_step=40 if is_whole else 11), spoilt)
    train(train_job(tmp_path / "arm", **settings, keep_steps=(13, 27), init_from=point("trunk", 11), stop_step=27), spoilt)
    expected = numbers(tmp_path / "scratch")
    assert numbers(tmp_path / "arm") == expected[11:27]
    if is_whole:
        pasts = {"init_from": point("arm", 13), "earlier_branch_points": (point("trunk", 11),)}
        # Its first part ends amid the spikes.
        train(train_job(tmp_path / "early", **settings, **pasts, stop_step=16, keep_steps=(16,)), spoilt)
        train(train_job(tmp_path / "early", **settings, **pasts), spoilt)
        assert numbers(tmp_path / "early") == expected[13:]
    pasts = {"init_from": point("arm", 27), "earlier_branch_points": (point("trunk", 11),)}
    train(train_job(tmp_path / "late", **settings, **pasts), spoilt)
    assert numbers(tmp_path / "late") == expected[27:]


def test_a_rewind_stays_within_its_phase(tmp_path):
    late = SpoiltBatches(total_steps=26, spoilt=(21, 22, 23), switch_step=15)
    train(train_job(tmp_path / "a", spike_guard=REWIND, stop_step=24), late)
    assert {step: found["to_step"] for step, found in rewound(tmp_path / "a").items()} == {24: 16}
    train(train_job(tmp_path / "b", spike_guard=REWIND, stop_step=24), msgspec.structs.replace(late, switch_step=16))
    assert list(skipped(tmp_path / "b")) == [22, 23, 24] and not rewound(tmp_path / "b")


@pytest.mark.parametrize("lost", [17, pytest.param(19, marks=pytest.mark.slow)])
def test_a_lost_branch_point_is_made_again_across_a_rewind(tmp_path, lost):
    job = train_job(tmp_path, spike_guard=REWIND, keep_steps=(lost,), keep_last=1)
    train(job, astray())
    point = step_folder(tmp_path / "checkpoints", lost)
    whole = files_of(point)
    shutil.rmtree(point)
    train(dataclasses.replace(job, stop_step=lost), astray())
    assert files_of(point) == whole
    assert (tmp_path / "checkpoints/latest").read_text().strip() == f"step_{TOTAL:08d}"


def test_a_branch_point_is_made_again_from_no_checkpoint_that_lacks_what_it_may_go_back_to(tmp_path):
    """A new arm leaves at step 18, where nothing was kept but step 16, from which spikes would lead back to step 8."""
    calm = RandomBatches(total_steps=26)
    train(train_job(tmp_path / "trunk", spike_guard=REWIND, keep_last=1, stop_step=26), calm)
    kept = sorted(step_of(folder) for folder in (tmp_path / "trunk/checkpoints").glob("step_*"))
    assert kept == [16, 24, 26]
    train(train_job(tmp_path / "trunk", spike_guard=REWIND, keep_last=1, stop_step=18, keep_steps=(18,)), calm)
    arm = SpoiltBatches(total_steps=26, spoilt=(18, 19, 20))
    start = step_folder(tmp_path / "trunk/checkpoints", 18)
    train(train_job(tmp_path / "arm", spike_guard=REWIND, init_from=start, stop_step=23), arm)
    train(train_job(tmp_path / "scratch", spike_guard=REWIND, stop_step=23), arm)
    assert numbers(tmp_path / "arm") == numbers(tmp_path / "scratch")[18:]
    assert rewound(tmp_path / "arm")[21]["to_step"] == 8


@pytest.mark.parametrize("harm", [shutil.rmtree, lambda folder: next(folder.glob("*.distcp")).write_bytes(b"")])
def test_without_the_checkpoint_to_go_back_to_a_run_stops_and_says_so(copy, harm):
    harm(step_folder(copy / "checkpoints", 8))
    with pytest.raises(UserError, match="step_00000008: missing or damaged, and step 17 has to go back to it; write the name"):
        train(train_job(copy, spike_guard=REWIND), astray())


def test_without_the_checkpoint_of_another_run_to_go_back_to_both_are_to_be_trained_again(tmp_path):
    lost = Guard(train_job(tmp_path), RandomBatches(), None).lost(step_folder(tmp_path / "trunk", 8), 17)
    assert f"delete {tmp_path / 'trunk'} and {tmp_path / 'checkpoints'} and train both again" in str(lost)


@pytest.mark.forked
def test_two_ranks_skip_and_go_back_together_and_one_process_continues_after_one_is_killed(taken_back, tmp_path, free_port):
    wanted = {"out": str(tmp_path), "spike_guard": msgspec.to_builtins(REWIND), "micro_batch": 4, "save_interval_steps": 4}
    argument = json.dumps({**wanted, "batches": msgspec.to_builtins(astray()), "kill_at": 18})
    outcomes = ended(ranks("train_in_child.py", argument, tmp_path, 2, free_port))
    assert [status for status, _ in outcomes] == [-signal.SIGKILL, 1], outcomes
    train(train_job(tmp_path, spike_guard=REWIND), astray())
    assert skipped(tmp_path) == skipped(taken_back) and list(skipped(tmp_path)) == [15, 16, 17]
    assert rewound(tmp_path) == rewound(taken_back)
    for row, other in zip(numbers(tmp_path), numbers(taken_back), strict=True):
        assert row["loss"] == pytest.approx(other["loss"], abs=1e-5)


def test_warm_up_and_the_first_steps_of_a_phase_are_never_skipped(tmp_path):
    train(train_job(tmp_path / "a", spike_guard=GUARD, schedule=ScheduleConfig(warmup_steps=12), stop_step=18), spoilt())
    assert list(skipped(tmp_path / "a")) == [18]
    train(train_job(tmp_path / "b", spike_guard=GUARD, stop_step=18), spoilt(switch_step=15))
    assert list(skipped(tmp_path / "b")) == [10, 11]


@pytest.mark.parametrize("spike", [Measured(2.5, 1.0), Measured(2.0, 1.25)], ids=["loss", "norm"])
def test_a_spike_of_either_is_skipped_right_after_the_warm_up(tmp_path, caplog, spike):
    """Even one that would lie within the limits of a window that it is in itself."""
    job = train_job(tmp_path, spike_guard=GUARD, schedule=ScheduleConfig(warmup_steps=6))
    guard, other = (
        Guard(job, RandomBatches(total_steps=TOTAL), SimpleNamespace(is_main=is_main, any=bool)) for is_main in (True, False)
    )
    calm = Measured(2.0, 1.0)
    steps = list(enumerate([*[calm] * 5, spike, spike, calm]))
    judged = [guard.judge(*step) for step in steps]
    assert [bool(found) for found in judged] == [False] * 6 + [True, False] and guard.state()["skipped_in_a_row"] == 0
    found = judged[6]["skipped"]
    assert found["samples"] == [6 * BATCH, 7 * BATCH] and found["loss_limit"] > 2 > found["grad_norm_limit"] > 1
    loss = f"loss {spike.loss:.4g} (limit {found['loss_limit']:.4g})"
    norm = f"gradient norm {spike.grad_norm:.3g} (limit {found['grad_norm_limit']:.3g})"
    assert f"step 7 is a spike, and its update is skipped: {loss}, {norm}; it read safe {6 * BATCH}, " in caplog.text
    assert not any(other.judge(*step) for step in steps)  # the first process decides


def test_eight_samples_are_named_and_the_others_counted_by_source():
    samples = [("web", 0, number) for number in (*range(90, 99), 12)] + [("stories", 1, 3)]
    assert named_samples(samples).endswith("web 96, web 97 and 3 more (2 web, 1 stories)")
    assert named_samples(samples[:2]) == "web 90, web 91"


def test_another_guard_in_the_past_is_refused(tmp_path):
    train(train_job(tmp_path, stop_step=3, spike_guard=GUARD), RandomBatches())
    with pytest.raises(UserError, match="another recipe .recipe.spike_guard"):
        train(train_job(tmp_path), RandomBatches())


def window(values: list[float]) -> SpikeWindow:
    found = SpikeWindow(SpikeGuard(window=8, sigmas=3))
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


EVENTS = st.lists(st.tuples(st.sampled_from(["trained", "trained", "skipped", "phase"]), st.integers(1, 14)), max_size=7)


@given(EVENTS, EVENTS, st.integers(1, 4), st.integers(8, 12), st.integers(1, 2), st.integers(5, 40))
@examples(120)
def test_whatever_checkpoint_a_run_goes_on_from_those_it_goes_back_to_are_there(past, other, after, interval, last, kept):
    """After each save, from each checkpoint that is kept, with the same steps again and with others, as a branch has them."""
    events, others = flat(past), flat(other)
    guard = SpikeGuard(window=8, rewind=Rewind(after=after, interval_steps=interval))
    with tempfile.TemporaryDirectory() as folder:
        needed_by = Guard(train_job(Path(folder), spike_guard=guard), RandomBatches(), None).needed_by
        for step, window in steps_of(events, guard, SpikeWindow(guard), 0):
            if not (window.is_save_due(step) or step % 5 == 0 or step == kept):
                continue
            state = {"guarded_from": window.begins, "skipped_in_a_row": window.skipped_in_a_row}
            info = CheckpointInfo(**UNIMPORTANT, step=step, **state)
            step_folder(Path(folder), step).mkdir()
            write_json(step_folder(Path(folder), step) / "checkpoint.json", msgspec.to_builtins(info))
            prune(Path(folder), last, (kept,), needed_by)
            there = {step_of(path) for path in Path(folder).glob("step_*")}
            for begins in {*sorted(there)[-last:], *({kept} & there)}:
                for future in (events[begins:], others):
                    window_there = SpikeWindow(guard, read_info(step_folder(Path(folder), begins)))
                    on_disk = {other for other in there if other <= begins}
                    steps = [step for step, _ in steps_of(future, guard, window_there, begins, on_disk)]
                    assert steps == list(range(begins + 1, begins + len(future) + 1))


UNIMPORTANT = {
    **{"consumed_samples": 0, "consumed_tokens": 0, "precision": "float32", "full": True},
    "model": ModelConfig(layers=1, hidden=8, heads=1, kv_heads=1, ffn=8),
}


def flat(blocks: list[tuple[str, int]]) -> list[str]:
    return [event for block, length in blocks for event in (["phase"] if block == "phase" else [block] * length)]


def steps_of(
    events: list[str], guard: SpikeGuard, window: SpikeWindow, begins: int, on_disk: set[int] | None = None
) -> Iterator[tuple[int, SpikeWindow]]:
    """The steps after `begins`; where a run goes back to is checked against the guard's docstring and what is `on_disk`."""
    for step, event in enumerate(events, start=begins + 1):
        if event == "phase":
            window.begin(step - 1)
        window.count(event == "skipped")
        good = range(0, step - window.skipped_in_a_row - guard.window // 2 + 1, guard.rewind.interval_steps)
        wanted = max((one for one in good if one > window.begins), default=None)
        earlier = window.rewinds_to(step)
        assert earlier == (wanted if window.skipped_in_a_row >= guard.rewind.after else None)
        if on_disk is not None:
            assert earlier is None or earlier in on_disk
            on_disk.add(step)
        if earlier is not None:
            window.begin(step)
        yield step, window
