"""`curricula cancel`: exactly what was asked for is cancelled, in one call, and only after a yes."""

import io

import pytest
from run_folders import FakeSlurm, finish, new_run, squeue_line, submitted
from typed import Typed

from curricula.jobs.cli.main import main
from curricula.jobs.run import Run
from curricula.jobs.slurm import commands
from curricula.jobs.slurm.profile import Profile, keep_profile
from curricula.jobs.slurm.submissions import contents_line


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    return FakeSlurm(tmp_path / "bin", monkeypatch)


@pytest.fixture
def demo(tmp_path, slurm):
    """Two arms' pretraining and evaluation in the queue, partly finished, one element twice."""
    run, jobs = new_run(tmp_path / "run")
    labels = [element.label for element in jobs["evaluate-base-20"].elements]
    submitted(run, "pretrain-20", "7", ["data-20", "full-20"])
    submitted(run, "evaluate-base-20", "8", labels)
    submitted(run, "pretrain-20", "9", ["full-20"])
    finish(run, "pretrain-20", "data-20")
    of_arm = [number for number, label in enumerate(labels) if label.startswith("full-20/")]
    slurm.queue(
        ("7", "0", "COMPLETED", "None", "", 0),
        ("7", "1", "FAILED", "NonZeroExitCode", "", 0),
        ("9", "0", "RUNNING", "None", "n1", 0),
        *(("8", str(number), "PENDING", "Dependency", "", 0) for number in range(len(labels))),
    )
    return run, of_arm


def test_a_whole_study_is_cancelled_in_one_call_except_what_has_ended(demo, slurm, capsys):
    run, _ = demo
    assert main(["cancel", str(run.root), "--yes"]) == 0
    assert slurm.calls("scancel") == [["8_[0-5]", "9_[0]"]]
    assert "cancelled 6 pending and 1 running" in capsys.readouterr().out


def test_a_strange_job_of_a_recorded_number_is_left_alone_and_an_unrecorded_array_is_found(demo, slurm):
    """Slurm may give a number again; and a kill just after sbatch leaves an array that no record names."""
    run, _ = demo
    rows = [("7", "0", "/others/slurm/log"), ("8", "0", slurm.output), ("950", "1", slurm.output), ("951", "0", "/others/log")]
    slurm.answer("squeue", "".join(squeue_line(*row[:2], "RUNNING", output=row[2]) + "\n" for row in rows))
    slurm.answer("scontrol", script=f"[[ $* = *' 950 '* ]] && echo '{contents_line('pretrain-0', ['data-0', 'full-0'])}'")
    assert main(["cancel", str(run.root), "--yes"]) == 0
    assert slurm.calls("scancel") == [["8_[0]", "950_[1]"]]


def test_an_arm_of_a_stage_is_cancelled_and_nothing_else(demo, slurm):
    run, of_arm = demo
    assert main(["cancel", str(run.root), "--stage", "evaluate", "--arm", "full-20", "--yes"]) == 0
    assert slurm.calls("scancel") == [[f"8_[{of_arm[0]}-{of_arm[-1]}]"]]


def test_a_person_is_asked_and_may_say_no(demo, slurm, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", Typed("n\n"))
    assert main(["cancel", str(demo[0].root), "--job", "pretrain-20"]) == 1
    shown = capsys.readouterr()
    assert slurm.calls("scancel") == [] and "Cancel 1 running" in shown.out and "nothing was cancelled" in shown.err
    monkeypatch.setattr("sys.stdin", Typed(""))  # Ctrl-D
    assert main(["cancel", str(demo[0].root), "--job", "pretrain-20"]) == 130
    assert slurm.calls("scancel") == []
    monkeypatch.setattr("sys.stdin", Typed("y\n"))
    assert main(["cancel", str(demo[0].root), "--job", "pretrain-20"]) == 0
    assert slurm.calls("scancel") == [["9_[0]"]]


def test_without_a_terminal_it_needs_yes(demo, slurm, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert main(["cancel", str(demo[0].root)]) == 1
    assert "give --yes" in capsys.readouterr().err and slurm.calls("scancel") == []


def test_nothing_is_cancelled_while_squeue_fails(demo, slurm, capsys):
    slurm.answer("squeue", error="Unable to contact slurm controller", code=1)
    assert main(["cancel", str(demo[0].root), "--yes"]) == 1
    assert "Unable to contact slurm controller; nothing was cancelled" in capsys.readouterr().err


def test_nothing_is_cancelled_while_another_command_submits(demo, slurm, capsys):
    run, _ = demo
    with Run.locked(run.root):
        assert main(["cancel", str(run.root), "--yes"]) == 1
    assert "in use by process" in capsys.readouterr().err and slurm.calls("scancel") == []


def test_other_commands_may_change_the_run_while_the_user_thinks(demo, slurm, monkeypatch, capsys):
    """And what has ended when the answer comes is not cancelled."""
    run, _ = demo

    def think(question):
        with Run.locked(run.root):
            slurm.queue(("9", "0", "RUNNING", "None", "n1", 0), ("8", "0", "COMPLETED", "None", "", 0))
        return "y"

    monkeypatch.setattr("sys.stdin", Typed())
    monkeypatch.setattr("builtins.input", think)
    assert main(["cancel", str(run.root)]) == 0
    monkeypatch.setattr("builtins.input", lambda question: slurm.queue() or "y")
    assert main(["cancel", str(run.root)]) == 0
    assert slurm.calls("scancel") == [["9_[0]"]]
    cancelled, nothing = capsys.readouterr().out.splitlines()
    assert cancelled.startswith("cancelled 1 running; ") and nothing.endswith("none of this is in Slurm's queue")


def test_an_error_of_scancel_is_passed_on(demo, slurm, capsys):
    slurm.answer("scancel", error="scancel: error: Access denied", code=1)
    assert main(["cancel", str(demo[0].root), "--yes"]) == 1
    assert "Access denied" in capsys.readouterr().err


def test_an_empty_queue_is_no_error_and_a_local_run_explains_how_to_end_it(demo, slurm, tmp_path, capsys):
    slurm.queue()
    assert main(["cancel", str(demo[0].root), "--yes"]) == 0
    assert "none of this is in Slurm's queue" in capsys.readouterr().out
    assert main(["cancel", str(new_run(tmp_path / "local")[0].root), "--yes"]) == 1
    assert "with Ctrl-C" in capsys.readouterr().err


def test_the_cluster_of_the_run_is_asked(demo, slurm, monkeypatch):
    run, _ = demo
    monkeypatch.setattr(commands, "_cluster", None)
    keep_profile(run.profile, Profile(cluster="blue"))
    slurm.answer("squeue", "CLUSTER: blue\n" + (slurm.folder / "squeue.out").read_text())  # so it begins then
    assert main(["status", str(run.root)]) == 0
    assert main(["cancel", str(run.root), "--yes"]) == 0
    calls = [call for name in ("squeue", "sacct", "scancel") for call in slurm.calls(name)]
    assert len(calls) > 2 and {call[0] for call in calls} == {"--clusters=blue"}
