"""The comment of a running job: readable, rare, of the right task, and never the job's undoing."""

import time

import pytest
from run_folders import FakeSlurm

from jobs import comment as module
from jobs.comment import JobComment, comment, with_comment
from jobs.slurm_commands import own_task


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
    assert comment(1200, 5000, 12_000.0, {"loss": 2.34567, "tokens_per_second": 1.234e6, "phase": 1}) == (
        "1200/5000 24% loss 2.346 1.23M tok/s 3:20:00 left"
    )
    assert comment(3, 0, None, {"loss": "high"}) == "3/0 300%"


def test_an_array_task_is_named_by_array_and_number():
    assert own_task({"SLURM_JOB_ID": "70", "SLURM_ARRAY_JOB_ID": "70", "SLURM_ARRAY_TASK_ID": "3"}) == "70_3"
    assert own_task({"SLURM_JOB_ID": "70"}) == "70" and own_task({}) is None


def test_the_comment_is_updated_once_a_minute_at_most(slurm):
    job = JobComment("70_3")
    for done in range(1, 200):
        job(done, 200, loss=1.0)
    (call,) = wait_for_calls(slurm, 1)
    assert call[:2] == ["update", "JobId=70_3"] and call[2].startswith("Comment=1/200 0% loss 1.000")


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
    progress = with_comment(lambda done, total, **figures: told.append(done), {"SLURM_JOB_ID": "70"})
    began = time.monotonic()
    progress(1, 2)
    progress(2, 2)
    assert told == [1, 2] and time.monotonic() - began < 30


def test_outside_of_slurm_there_is_no_comment():
    def progress(done, total, **figures):
        pass

    assert with_comment(progress, {}) is progress
