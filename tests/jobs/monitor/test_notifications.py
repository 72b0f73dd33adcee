"""Progress in the log and in a job comment, and the notify command: readable, rare, without secrets, harmless to the job."""

import json
import re
import socket
import sys
import threading
import time
from types import SimpleNamespace

import pytest
from run_folders import FakeSlurm, new_run

from curricula.durable import read_json, write_text
from curricula.errors import StorageError, UserError
from curricula.jobs import element
from curricula.jobs.monitor import progress
from curricula.jobs.monitor.progress import Announced, Reading, notify, progress_line, read_progress
from curricula.jobs.slurm.commands import own_task
from curricula.jobs.slurm.profile import Profile, keep_profile
from curricula.jobs.slurm.restarts import GaveUp
from curricula.jobs.stages import STAGES

TELL = "import json, os, sys; json.dump([sys.stdin.read(), dict(os.environ), sys.argv[1:]], open(sys.argv[1], 'w'))"


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "FIRST_AFTER_S", 0.0)
    return FakeSlurm(tmp_path / "bin", monkeypatch)


def in_slurm(monkeypatch, **variables: str) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(f"SLURM_{name}", value)


def wait_for_calls(slurm, number):
    deadline = time.monotonic() + 60
    while len(slurm.calls("scontrol")) < number and time.monotonic() < deadline:
        time.sleep(0.01)
    return slurm.calls("scontrol")


def test_a_comment_shows_progress_loss_speed_and_time_left():
    figures = {"loss": 2.34567, "tokens_per_second": 1.234e6, "phase": 1}
    assert progress_line(Reading(1200, 5000, 0.0, 12_000.0, figures=figures)) == (
        "1200/5000 24% loss 2.346 1.23M tok/s 3:20:00 left"
    )
    assert progress_line(Reading(3, 0, 0.0, figures={"loss": "high"})) == "3"
    assert progress_line(Reading(0, 0, 0.0)) == "0/0 0%"  # of nothing to do


def test_the_time_left_is_at_the_pace_since_this_start_began(monkeypatch, tmp_path):
    """What an earlier start has done took none of this one's time."""
    in_slurm(monkeypatch, RESTART_COUNT="2")
    now, path = [100.0], tmp_path / "progress.json"
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now[0], time=lambda: 5.0))
    announce, found = Announced(path, 7), []
    for done, total in ((10, 100), (30, 100), (50, 100), (60, 0)):
        announce(done, total, loss=2.0)
        found.append(read_progress(path))
        now[0] += 40.0
    assert [reading.left_s for reading in found] == [None, 140.0, 100.0, None]
    assert found[1] == Reading(30, 100, 5.0, 140.0, socket.gethostname(), 7, 2, {"loss": 2.0})


def test_an_array_task_is_named_by_array_and_number(monkeypatch):
    assert own_task() is None
    in_slurm(monkeypatch, JOB_ID="70")
    assert own_task() == "70"
    in_slurm(monkeypatch, ARRAY_JOB_ID="70", ARRAY_TASK_ID="3")
    assert own_task() == "70_3"


def test_log_and_comment_are_throttled(slurm, tmp_path, capsys, monkeypatch):
    in_slurm(monkeypatch, JOB_ID="70", ARRAY_JOB_ID="69", ARRAY_TASK_ID="3")
    announce = Announced(tmp_path / "progress.json")
    for done in range(1, 200):
        announce(done, 200, loss=1.0)
    (call,) = wait_for_calls(slurm, 1)
    assert call[:2] == ["update", "JobId=69_3"] and call[2].startswith("Comment=1/200 0% loss 1.000")
    (said,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"--- \d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} 1/200 0% loss 1\.000", said)


@pytest.mark.parametrize(("tasks", "calls"), [("1", 2), ("1000", 1)])
def test_comments_of_a_long_array_are_rarer(monkeypatch, tmp_path, tasks, calls):
    """Each is a call of Slurm's controller."""

    class Joined(threading.Thread):
        """A thread that has ended when `start` returns."""

        def start(self):
            super().start()
            self.join()

    now, told = [0.0], []
    monkeypatch.setattr(progress, "FIRST_AFTER_S", 0.0)
    monkeypatch.setattr(progress, "COMMENT_EVERY_S", 0.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now[0], time=time.time))
    monkeypatch.setattr(progress, "threading", SimpleNamespace(Thread=Joined))
    monkeypatch.setattr(progress, "set_comment", lambda task, text, _: told.append((task, text[:3])))
    in_slurm(monkeypatch, ARRAY_JOB_ID="69", ARRAY_TASK_ID="3", ARRAY_TASK_COUNT=tasks)
    announce = Announced(tmp_path / "progress.json")
    for done in (1, 2):
        announce(done, 9)
        now[0] += 0.6
    assert told == [("69_3", "1/9"), ("69_3", "2/9")][:calls]


@pytest.mark.parametrize("how", ["fails", "absent", "hangs"])
def test_the_work_continues_whatever_scontrol_does(slurm, tmp_path, monkeypatch, how):
    if how == "fails":
        slurm.answer("scontrol", error="Access denied", code=1)
    elif how == "absent":
        slurm.remove("scontrol")
        monkeypatch.setenv("PATH", str(slurm.folder))
    else:
        slurm.answer("scontrol", script="exec sleep 60")
    in_slurm(monkeypatch, JOB_ID="70")
    announce = Announced(tmp_path / "progress.json")
    began = time.monotonic()
    announce(1, 2)
    announce(2, 2)
    assert read_json(tmp_path / "progress.json")["done"] == 2 and time.monotonic() - began < 30


def test_outside_slurm_only_the_log_gets_progress(slurm, tmp_path, capsys):
    Announced(tmp_path / "progress.json")(5, 9)
    assert "5/9 55%" in capsys.readouterr().err and slurm.calls("scontrol") == []


def test_a_short_element_leaves_no_lines(tmp_path, capsys):
    announce = Announced(tmp_path / "progress.json")
    for done in range(9):
        announce(done, 9)
    assert capsys.readouterr().err == ""


def test_a_crash_loop_is_notified_once_when_it_gives_up(told, tmp_path, monkeypatch):
    run, _ = new_run(tmp_path / "run")
    keep_profile(run.profile, Profile(notify=told[1]))
    in_slurm(monkeypatch, ARRAY_JOB_ID="7", ARRAY_TASK_ID="0", RESTART_COUNT="1")
    monkeypatch.setenv("CURRICULA_RESTARTS_WITHOUT_PROGRESS", "1")
    monkeypatch.setattr(STAGES["prepare"], "run", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        element.run_element(run.root, "prepare", "prepare")
    assert not told[0].exists()
    failed = read_json(run.element("prepare", "prepare") / "failed.json")
    assert (failed["final"], failed["task"], failed["restarts"]) == (False, "7_0", 1)

    def give_up(_):
        raise GaveUp("too often")

    monkeypatch.setattr(element, "check_restarts", give_up)
    with pytest.raises(GaveUp):
        element.run_element(run.root, "prepare", "prepare")
    assert "prepare/prepare failed: too often" in json.loads(told[0].read_text())[0]


def test_a_final_error_that_only_other_processes_meet_is_notified_once(told, tmp_path, monkeypatch):
    run, _ = new_run(tmp_path / "run")
    keep_profile(run.profile, Profile(notify=told[1]))
    in_slurm(monkeypatch, PROCID="1")

    def fail(*_):
        raise UserError("the shard cannot be read here")

    monkeypatch.setattr(STAGES["prepare"], "run", fail)
    with pytest.raises(UserError):
        element.run_element(run.root, "prepare", "prepare")
    assert "prepare/prepare failed: the shard cannot be read here" in json.loads(told[0].read_text())[0]
    told[0].unlink()
    with pytest.raises(UserError):
        element.run_element(run.root, "prepare", "prepare")
    assert not told[0].exists()  # one of them is enough


def test_a_password_in_an_error_reaches_neither_the_log_nor_the_record(tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise RuntimeError("cannot reach https://me:hunter2@host/v1")

    run, _ = new_run(tmp_path / "run")
    monkeypatch.setattr(STAGES["prepare"], "run", fail)
    assert element.main([str(run.root), "prepare", "prepare"]) == 1
    log, record = capsys.readouterr().err, (run.element("prepare", "prepare") / "failed.json").read_text()
    assert "Traceback" in log and all("RuntimeError: cannot reach https://***@host/v1" in text for text in (log, record))
    assert "hunter2" not in log + record


@pytest.fixture
def told(tmp_path):
    (tmp_path / "tell me.py").write_text(TELL)
    return (
        tmp_path / "told it's.json",
        f"{sys.executable} '{tmp_path}/tell me.py' \"{tmp_path}/told it's.json\" '$(touch pwned)'",
    )


def test_the_notify_command_gets_a_line_and_an_environment_without_secrets_and_no_shell(told, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hunter2")
    for name in ("OPENAI_API_KEY", "GH_PAT", "DATABASE_URL"):
        monkeypatch.setenv(name, "hunter2")
    monkeypatch.setenv("HTTPS_PROXY", "http://me:hunter2@proxy")
    monkeypatch.setenv("HOME", str(tmp_path))
    command = told[1].replace(f"'{tmp_path}", "'~")
    notify(command, "failed", tmp_path / "run", "pretrain-0/full-0", "loss nan\nat \x1b[31mstep 3; $(id)")
    line, environment, words = json.loads(told[0].read_text())
    assert line == "run: pretrain-0/full-0 failed: loss nan at \ufffd[31mstep 3; $(id)\n"
    assert words[1:] == ["$(touch pwned)"]
    assert {name: environment[f"CURRICULA_{name}"] for name in ("EVENT", "RUN", "ELEMENT")} == {
        "EVENT": "failed", "RUN": str(tmp_path / "run"), "ELEMENT": "pretrain-0/full-0",
    }  # fmt: skip
    assert "hunter2" not in json.dumps(environment)


@pytest.mark.parametrize(
    "command", ["/no/such/command", "false", "sh -c 'sleep 60'", "unclosed 'quote", "sh -c 'echo sorry >&2; exit 3'"]
)
def test_a_notify_command_that_fails_is_only_noted(command, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(progress, "NOTIFY_PATIENCE_S", 0.5)
    notify(command, "done", tmp_path, "report/report", "")
    assert "the notification failed: " in capsys.readouterr().err


def test_a_failed_element_and_the_report_are_notified(told, tmp_path, monkeypatch):
    run, _ = new_run(tmp_path / "run")
    keep_profile(run.profile, Profile(notify=told[1]))

    def fall_over(*_):
        raise StorageError("the lamp fell over")  # outside Slurm nothing starts the element again

    monkeypatch.setattr(STAGES["prepare"], "run", fall_over)
    for name in ("report", "tokenize"):
        monkeypatch.setattr(STAGES[name], "run", lambda *_: None)
    with pytest.raises(UserError):
        element.run_element(run.root, "prepare", "prepare")
    assert "prepare/prepare failed: the lamp fell over" in json.loads(told[0].read_text())[0]
    write_text(run.report / "index.html", "x")
    element.run_element(run.root, "report", "report")
    line, environment, _ = json.loads(told[0].read_text())
    assert line == "run: report/report done\n" and environment["CURRICULA_EVENT"] == "done"
    told[0].unlink()
    element.run_element(run.root, "tokenize", "web/00000")
    assert not told[0].exists()  # of each of two thousand elements nobody wants to hear
    write_text(run.root / "study.yaml", "name: [")
    with pytest.raises(UserError):
        element.run_element(run.root, "tokenize", "web/00000")
    assert "tokenize/web/00000 failed: " in json.loads(told[0].read_text())[0]
