"""What a training run reports: metrics, curves, log and timings."""

import logging
import sys
import types

import pytest
from random_batches import SMALL, RandomBatches, train_job

from curricula.durable import read_jsonl
from curricula.errors import UserError
from curricula.model.config import TrackingConfig
from curricula.model.runtime.reporting import MetricsFile, Pace, curves, read_metrics
from curricula.model.train import train


def test_tensorboard_shows_the_metrics_lines_even_after_steps_were_repeated(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    class Stopped(Exception):
        pass

    def stop_at_7(done, total, **figures):
        if done == 7:
            raise Stopped

    wanted = train_job(tmp_path, tracking=TrackingConfig(), save_interval_steps=3, validation_interval_steps=4)
    held_out = {"held out": RandomBatches(key="held out", total_steps=1)}
    with pytest.raises(Stopped):
        train(wanted, RandomBatches(), stop_at_7, validation=held_out)
    train(wanted, RandomBatches(), validation=held_out)
    shown = EventAccumulator(str(tmp_path / "tensorboard"))
    shown.Reload()
    rows = read_metrics(tmp_path / "metrics.jsonl")
    steps, checks = [row for row in rows if "loss" in row], [row for row in rows if "validation" in row]
    assert [row["step"] for row in checks] == [4, 8, 12]
    for name, expected in {
        "loss": [(row["step"], row["loss"]) for row in steps],
        "mix/safe": [(row["step"], 1.0) for row in steps],
        "validation/held out": [(row["step"], row["validation"]["held out"]) for row in checks],
    }.items():
        points = [(event.step, event.value) for event in shown.Scalars(name)]
        assert [step for step, _ in points] == [step for step, _ in expected]
        assert [value for _, value in points] == pytest.approx([value for _, value in expected], rel=1e-6)


def test_weights_and_biases_gets_the_curves_of_one_run_for_each_run_folder(tmp_path, monkeypatch):
    calls = []

    class FakeRun:
        def define_metric(self, name, step_metric):
            assert (name, step_metric) == ("*", "step")

        def log(self, values):
            calls.append((values["step"], values["loss"]))

        def finish(self):
            calls.append("finished")

    def init(**settings):
        calls.append(settings)
        return FakeRun()

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    tracking = TrackingConfig(tensorboard=False, wandb_project="when-safety")
    train(train_job(tmp_path, tracking=tracking, stop_step=2), RandomBatches())
    train(train_job(tmp_path, tracking=tracking, stop_step=3), RandomBatches())
    first, second = (call for call in calls if isinstance(call, dict))
    assert first["id"] == second["id"] and first["project"] == "when-safety" and first["resume"] == "allow"
    assert first["config"]["model"]["hidden"] == SMALL.hidden
    losses = [(row["step"], row["loss"]) for row in read_metrics(tmp_path / "metrics.jsonl")]
    assert [call for call in calls if isinstance(call, tuple)] == losses
    assert calls.count("finished") == 2


def test_a_tracker_whose_package_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="tracking.wandb_project is p, but wandb is not installed"):
        train(train_job(tmp_path, tracking=TrackingConfig(wandb_project="p")), RandomBatches())


def test_curves_are_the_numbers_of_a_metrics_line_by_their_path():
    row = {"step": 3, "loss": 2.5, "mix": {"web": 0.7}, "phase": 1, "timing": {"mfu": 0.4}, "note": "text"}
    assert curves(row) == {"loss": 2.5, "mix/web": 0.7, "phase": 1.0, "timing/mfu": 0.4}


def test_the_log_begins_with_everything_that_was_resolved_and_ends_with_the_last_step(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        train(train_job(tmp_path, save_interval_minutes=30.0, keep_steps=(4,)), RandomBatches())
    banner = next(text for text in caplog.messages if text.startswith(str(tmp_path)))
    for part in (
        "0 to 12 of 12, beginning with new weights",
        "parameters: layers 2, hidden 32",
        "8 x 16 = 128 tokens; for each data-parallel rank 8 sequences in micro-batches of at most 16",
        "warmup-stable-decay: peak 0.0005 after 2 steps, falling from step 11 to 0 at step 12",
        "every 500 steps or 30 minutes, the last 2 kept, and steps 4",
        "megatron-core",
    ):
        assert part in banner
    assert any(text.startswith("step 12/12: loss ") and text.endswith("0:00:00 left") for text in caplog.messages)


def test_timings_follow_their_formulas():
    pace = Pace(tokens=1_000_000, flops_per_token=6e9, devices=4, peak_flops=1e15)
    pace.timing(2.0, steps_left=3)
    pace.waited_s.update(data=0.01, save=1.0)
    timing = pace.timing(2.0, steps_left=2)
    assert timing["tokens_per_second"] == 500_000
    assert timing["tokens_per_second_per_device"] == 125_000
    assert timing["tflops_per_device"] == 750
    assert timing["mfu"] == 0.75
    assert (timing["data_wait_s"], timing["save_stall_s"]) == (0.01, 1.0)
    assert timing["left_s"] == 2 * (2.0 + 0.5)
    assert "mfu" not in Pace(1, 1.0, 1, None).timing(1.0, 0)


def test_each_start_records_what_it_resumed_from_and_how_many_steps_were_lost(tmp_path):
    for resumed, last in ((0, 7), (3, 5), (5, 6)):
        file = MetricsFile(tmp_path / "metrics.jsonl", resumed)
        for step in range(resumed + 1, last + 1):
            file.write({"step": step, "loss": 1.0})
        file.close()
        with open(tmp_path / "metrics.jsonl", "a") as torn:  # by a kill
            torn.write('{"step": 9, "lo')
    starts = read_jsonl(tmp_path / "starts.jsonl")
    assert [(start["resumed_step"], start["lost_steps"]) for start in starts] == [(0, 0), (3, 4), (5, 0)]
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]
