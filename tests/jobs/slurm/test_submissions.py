"""The record of what was submitted: whole lines count, a torn one does not, the latest submission of an element wins."""

import pytest

from curricula.errors import UserError
from curricula.jobs.run import Run
from curricula.jobs.slurm.commands import Task, TaskState
from curricula.jobs.slurm.submissions import Submission, contents_line, latest_tasks, record, submissions, unrecorded


def submission(job="evaluate", job_id="12", labels=("a/x", "b/x")):
    return Submission(job=job, job_id=job_id, labels=labels, submitted=1.5)


def test_what_is_recorded_is_read_back_in_order(tmp_path):
    run = Run(tmp_path)
    assert submissions(run) == []
    record(run, submission())
    record(run, submission(job_id="13", labels=("b/x",)))
    assert submissions(run) == [submission(), submission(job_id="13", labels=("b/x",))]


def test_a_line_that_a_kill_cut_short_is_left_out_and_then_cut_off(tmp_path):
    run = Run(tmp_path)
    record(run, submission())
    with open(run.submissions, "a") as file:
        file.write('{"job": "evaluate", "job_id": "13", "lab')
    assert submissions(run) == [submission()]
    record(run, submission(job_id="14"))
    assert submissions(run) == [submission(), submission(job_id="14")]


@pytest.mark.parametrize("line", ["", "null", '{"job": "evaluate"}', '{"job": 1, "job_id": "2", "labels": [], "submitted": 3}'])
def test_a_whole_line_that_is_no_submission_is_named(tmp_path, line):
    run = Run(tmp_path)
    record(run, submission())
    with open(run.submissions, "a") as file:
        file.write(line + "\n")
    with pytest.raises(UserError, match=r"submissions\.jsonl: line 2 is not a submission"):
        submissions(run)


def test_an_element_submitted_again_belongs_to_the_latest_array():
    tasks = latest_tasks([submission(), submission(job_id="13", labels=("b/x",)), submission(job="tune", labels=("a",))])
    assert tasks == {("evaluate", "a/x"): Task("12", 0), ("evaluate", "b/x"): Task("13", 0), ("tune", "a"): Task("12", 0)}
    assert str(tasks["evaluate", "a/x"]) == "12_0"


@pytest.mark.parametrize(
    ("script", "live", "is_found"),
    [
        (contents_line("evaluate", ["a/x", "b/x"]), 1, True),  # the same element is in both, so either record names a live task
        (contents_line("evaluate", ["a/x", "b/x"]), 0, False),  # a/x is in the recorded array alone
        ("another program", 1, False),
        ("", 1, False),
    ],
)
def test_an_array_is_recorded_later_unless_that_would_hide_a_live_task(tmp_path, monkeypatch, script, live, is_found):
    run = Run(tmp_path)
    record(run, submission())
    monkeypatch.setattr("curricula.jobs.slurm.submissions.batch_script", lambda _: script)
    pending = TaskState("PENDING", output=f"{run.slurm.resolve()}/log")
    found = unrecorded(run, {Task("12", live): pending, Task("13", 1): pending})
    assert [(one.job_id, one.labels) for one in found] == ([("13", ("a/x", "b/x"))] if is_found else [])
