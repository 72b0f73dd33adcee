"""The notification: told what happened and nothing secret, and never the job's undoing."""

import json
import sys

import pytest
from run_folders import new_run

from curricula.durable import write_text
from curricula.errors import UserError
from curricula.jobs import element
from curricula.jobs.monitor import notify as module
from curricula.jobs.monitor.notify import notify
from curricula.jobs.slurm.profile import Profile, keep_profile

TELL = "import json, os, sys; json.dump([sys.stdin.read(), dict(os.environ), sys.argv[1:]], open(sys.argv[1], 'w'))"


@pytest.fixture
def told(tmp_path):
    (tmp_path / "tell me.py").write_text(TELL)
    return (
        tmp_path / "told it's.json",
        f"{sys.executable} '{tmp_path}/tell me.py' \"{tmp_path}/told it's.json\" '$(touch pwned)'",
    )


def test_the_command_is_told_by_line_and_environment_without_a_shell_or_secrets(told, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hunter2")
    monkeypatch.setenv("OPENAI_API_KEY", "hunter2")
    notify(told[1], "failed", tmp_path / "run", "pretrain-0/full-0", "loss nan\nat \x1b[31mstep 3; $(id)")
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
def test_a_command_that_fails_is_noted_and_no_more(command, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(module, "PATIENCE_S", 0.5)
    notify(command, "done", tmp_path, "report/report", "")
    assert "the notification failed: " in capsys.readouterr().err


def test_an_element_that_fails_and_the_report_are_told(told, tmp_path, monkeypatch):
    run, _ = new_run(tmp_path / "run")
    keep_profile(run, Profile(notify=told[1]))

    def stage(run, job, item, progress):
        if job.name == "prepare":
            raise UserError("the lamp fell over")

    monkeypatch.setattr(element, "STAGES", {"prepare": stage, "report": stage, "tokenize": stage})
    with pytest.raises(UserError):
        element.run_element(run.root, "prepare", "prepare")
    assert "prepare/prepare failed: the lamp fell over" in json.loads(told[0].read_text())[0]
    write_text(run.report / "index.html", "x")
    element.run_element(run.root, "report", "report")
    assert json.loads(told[0].read_text())[1]["CURRICULA_EVENT"] == "done"
    told[0].unlink()
    element.run_element(run.root, "tokenize", "web/00000")
    assert not told[0].exists()  # of each of two thousand elements nobody wants to hear
