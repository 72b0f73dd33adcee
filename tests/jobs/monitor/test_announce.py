"""Lines in the log and the comment of a running job: readable, rare, of the right task, and never the job's undoing."""

import re
import time

import pytest
from run_folders import FakeSlurm

from curricula.jobs.monitor import announce as module
from curricula.jobs.monitor.announce import announced, line
from curricula.jobs.slurm.commands import own_task
from curricula.progress import silent


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "FIRST_AFTER_S", 0.0)
    return FakeSlurm(tmp_path / "bin", monkeypatch)


def wait_for_calls(slurm, number):
    deadline = time.monotonic() + 60
    while len(slurm.calls("scontrol")) < number and time.monotonic() < deadline:
        time.sleep(0.01)
    return slurm.calls("scontrol")


def test_a_comment_says_how_far_how_well_and_how_long():
    assert line(1200, 5000, 12_000.0, {"loss": 2.34567, "tokens_per_second": 1.234e6, "phase": 1}) == (
        "1200/5000 24% loss 2.346 1.23M tok/s 3:20:00 left"
    )
    assert line(3, 0, None, {"loss": "high"}) == "3/0 300%"


def test_an_array_task_is_named_by_array_and_number():
    assert own_task({"SLURM_JOB_ID": "70", "SLURM_ARRAY_JOB_ID": "70", "SLURM_ARRAY_TASK_ID": "3"}) == "70_3"
    assert own_task({"SLURM_JOB_ID": "70"}) == "70" and own_task({}) is None


def test_log_and_comment_are_told_once_in_a_while_at_most(slurm, capsys):
    progress = announced(silent, {"SLURM_JOB_ID": "70", "SLURM_ARRAY_JOB_ID": "69", "SLURM_ARRAY_TASK_ID": "3"})
    for done in range(1, 200):
        progress(done, 200, loss=1.0)
    (call,) = wait_for_calls(slurm, 1)
    assert call[:2] == ["update", "JobId=69_3"] and call[2].startswith("Comment=1/200 0% loss 1.000")
    (said,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"--- \d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} 1/200 0% loss 1\.000", said)


@pytest.mark.parametrize("how", ["fails", "absent", "hangs"])
def test_whatever_scontrol_does_the_work_goes_on(slurm, monkeypatch, how):
    if how == "fails":
        slurm.answer("scontrol", error="Access denied", code=1)
    elif how == "absent":
        slurm.remove("scontrol")
        monkeypatch.setenv("PATH", str(slurm.folder))
    else:
        slurm.answer("scontrol", script="exec sleep 60")
    told = []
    progress = announced(lambda done, total, **figures: told.append(done), {"SLURM_JOB_ID": "70"})
    began = time.monotonic()
    progress(1, 2)
    progress(2, 2)
    assert told == [1, 2] and time.monotonic() - began < 30


def test_outside_of_slurm_only_the_log_is_told(slurm, capsys):
    announced(silent, {})(5, 9)
    assert "5/9 55%" in capsys.readouterr().err and slurm.calls("scontrol") == []


def test_what_is_over_at_once_leaves_no_lines(capsys):
    progress = announced(silent, {})
    for done in range(9):
        progress(done, 9)
    assert capsys.readouterr().err == ""
