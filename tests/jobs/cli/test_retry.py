"""What runs again after a failure: what ended badly and what waits for it, no more; by `retry` and by resubmit.sh."""

import errno
import io
import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from run_folders import FakeSlurm, fail, finish, finish_evaluation, make, new_run, submitted
from small_studies import demo as full_demo

from curricula.durable import write_json
from curricula.jobs.cli.main import main
from curricula.jobs.cli.submit import to_run_again
from curricula.jobs.graph import plan_study
from curricula.jobs.local import Outcome
from curricula.jobs.monitor.state import ElementStatus
from curricula.jobs.run import Run
from curricula.jobs.slurm.commands import Task
from curricula.jobs.slurm.profile import Profile, StageOptions, Stages, keep_profile
from curricula.jobs.slurm.script import write_resubmit
from curricula.jobs.slurm.submissions import BadNode, latest_tasks, record_bad_nodes, submissions
from curricula.jobs.slurm.submit import Standing, submit_plan
from curricula.jobs.study import parse_study

SBATCH = 'n=$(cat "$0.count" 2>/dev/null || echo 900); echo $((n + 1)) > "$0.count"; echo "$n"; exit 0'
SUBMITTED = SBATCH.replace('"$n"', '"Submitted batch job $n"')


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    slurm = FakeSlurm(tmp_path / "bin", monkeypatch)
    slurm.answer("sbatch", script=SUBMITTED)
    return slurm


@pytest.fixture
def demo(tmp_path, slurm):
    """A whole study in the queue, trained up to 20%."""
    run, jobs = new_run(tmp_path / "run")
    keep_profile(run.profile, Profile())
    for number, job in enumerate(jobs.values()):
        submitted(run, job.name, str(100 + number), [element.label for element in job.elements])
    return run, jobs


def hide_ended(slurm):
    """Have `squeue --me` list only what waits or runs, as Slurm does."""
    listing = (slurm.folder / "squeue.out").read_text()
    live = f'[[ " $* " != *" --me "* ]] || {{ grep -E "PENDING|RUNNING" "{slurm.folder}/squeue.out"; exit 0; }}'
    slurm.answer("squeue", listing, script=live)


def statuses(plan, states, default="done"):
    return [
        ElementStatus(job.name, job.stage, element.label, states.get(f"{job.name}/{element.label}", default), task="1_0")
        for job, element in plan.elements()
    ]


@pytest.fixture(scope="module")
def plan():
    return plan_study(parse_study(full_demo(), "demo"))


def test_what_failed_and_what_needs_it_runs_again_and_nothing_else(plan):
    again = to_run_again(plan, statuses(plan, {"instruct-20/full-20": "failed"}, default="pending"), plan.needs)
    needs = plan.needs
    assert again[0] == ("instruct-20", "full-20") and ("instruct-20", "data-20") not in again
    assert ("merge-20", "full-20/instruct") in again and ("benign-20", "full-20") in again and ("report", "report") in again
    assert not any(job.endswith(("-0", "-60", "-100")) and job.startswith(("pretrain", "instruct")) for job, _ in again)
    for key in again[1:]:
        assert any(need in again for need, _ in needs[key])


def test_every_element_after_a_failure_runs_again_or_runs_still(plan):
    for job in plan.jobs:
        for element in job.elements[:1]:
            found = statuses(plan, {f"{job.name}/{element.label}": "cancelled"}, default="pending")
            again = set(to_run_again(plan, found, plan.needs))
            for key, needs in plan.needs.items():
                assert (key in again) == (key == (job.name, element.label) or any(need in again for need, _ in needs))


def test_what_waits_in_vain_for_the_array_of_another_arm_runs_again_too(plan):
    evaluated = ("evaluate-base-20", "data-20/probes")
    found = [
        replace(item, state="pending", reason="DependencyNeverSatisfied") if (item.job, item.label) == evaluated else item
        for item in statuses(plan, {"export-base-20/full-20": "failed"})
    ]
    assert evaluated in to_run_again(plan, found, plan.needs)
    # Before the last export of that array has ended, nothing shows yet that the wait is in vain.
    found = [replace(item, reason="Dependency") if item.reason else item for item in found]
    again = to_run_again(plan, found, plan.needs)
    assert evaluated in again and ("evaluate-base-20", "full-20/probes") not in again  # which has been done before
    pending = statuses(plan, {"pretrain-20/full-20": "failed"}, "pending")
    again = to_run_again(plan, [replace(item, reason="Dependency") for item in pending], plan.needs)
    assert {("export-base-20", "full-20"), evaluated} <= {*again} and ("export-base-20", "data-20") not in again
    # An array waits for none that was submitted later, as for an arm that was added, nor for a task that succeeded before.
    later = [replace(item, task="2_0") if item.label == "full-20" else item for item in found]
    stale = [replace(item, state="stale") if item.state == "failed" else item for item in found]
    assert evaluated not in to_run_again(plan, later, plan.needs) and evaluated not in to_run_again(plan, stale, plan.needs)
    states = {"pretrain-20/full-20": "failed", "export-base-20/data-20": "cancelled"}
    pending = [replace(item, reason="Dependency") for item in statuses(plan, states, "pending")]
    assert evaluated not in to_run_again(plan, pending, {("pretrain-20", "full-20")})  # what it needs itself was not asked for


def test_a_report_that_was_written_without_what_failed_is_written_again(plan):
    states = {"evaluate-base-20/full-20/probes": "failed"}
    again = to_run_again(plan, statuses(plan, states), plan.needs)
    assert again == [("evaluate-base-20", "full-20/probes"), ("merge-20", "full-20/base"), ("report", "report")]


def test_what_runs_is_left_alone_and_so_is_what_was_never_submitted(plan):
    elements = statuses(plan, {"prepare/prepare": "failed", "tokenize/web/00000": "running"}, default="waiting")
    bare = [ElementStatus(**{**vars(item), "task": "" if item.job.startswith("evaluate") else "1_0"}) for item in elements]
    again = to_run_again(plan, bare, plan.needs)
    assert ("prepare", "prepare") in again and ("tokenize", "web/00000") not in again
    assert not any(job.startswith("evaluate") for job, _ in again)


@pytest.mark.parametrize("state", ["failed", "interrupted", "stale"])
def test_what_began_on_this_machine_is_retried_when_the_rest_is_on_slurm(plan, state):
    """Such as a shard that was tokenised before the submission, and that a purge of the disk has removed."""
    elements = [
        replace(item, task="" if item.job == "tokenize" else "1_0") for item in statuses(plan, {"tokenize/web/00000": state})
    ]
    assert to_run_again(plan, elements, plan.needs) == [("tokenize", "web/00000")]


def test_only_the_failures_of_an_arm_or_stage_are_retried(plan):
    states = {"pretrain-20/full-20": "failed", "pretrain-20/data-20": "failed"}
    again = to_run_again(plan, statuses(plan, states, "pending"), {("pretrain-20", "data-20")})
    assert ("pretrain-20", "data-20") in again and ("pretrain-20", "full-20") not in again
    assert ("instruct-20", "data-20") in again and ("instruct-20", "full-20") not in again


@pytest.fixture
def failed(demo, slurm, monkeypatch):
    """All is trained, one export has failed, and the rest waits. The run, and the tasks of its elements."""
    for module in ("completion", "monitor.state"):
        monkeypatch.setattr(f"curricula.jobs.{module}.is_complete", lambda *_: True)
    run, jobs = demo
    tasks = latest_tasks(submissions(run))
    made = ["prepare", "tokenize", *(name for name in jobs if name.startswith("pretrain"))]
    rows = []
    for name, job in jobs.items():
        for element in job.elements:
            task = tasks[name, element.label]
            if name in made:
                finish(run, name, element.label)
            elif name == "export-base-20" and element.label == "full-20":
                fail(run, name, element.label)
                rows.append((task.job_id, str(task.number), "FAILED", "NonZeroExitCode", "n1", 0))
            else:
                rows.append((task.job_id, str(task.number), "PENDING", "Dependency", "", 0))
    slurm.queue(*rows)
    hide_ended(slurm)
    return run, tasks


def test_retry_submits_the_failed_and_cancels_what_waited_for_it(failed, slurm, capsys):
    run, tasks = failed
    record_bad_nodes(run, [BadNode(node="n7", reason="x", time=4e9)])
    assert main(["retry", str(run.root)]) == 0
    new = latest_tasks(submissions(run))
    moved = {key for key in new if new[key] != tasks[key]}
    assert (
        ("export-base-20", "full-20") in moved
        and ("evaluate-base-20", "full-20/probes") in moved
        and ("report", "report") in moved
    )
    assert ("pretrain-20", "full-20") not in moved and ("evaluate-base-60", "full-60/probes") not in moved
    (cancelled,) = slurm.calls("scancel")
    # Nothing that waits for the end of another must begin when that is cancelled, so it goes first.
    assert cancelled[0] == f"{tasks['report', 'report'].job_id}_[0]" and len(cancelled) > 2
    assert not any(word.startswith(f"{tasks['export-base-60', 'full-60'].job_id}_") for word in cancelled)
    assert not (run.element("export-base-20", "full-20") / "failed.json").exists()
    script = (run.slurm / "scripts").glob("*export-base-20.sbatch")
    assert len(list(script)) == 1 and "elements in" in capsys.readouterr().out
    sent = [path.read_text() for path in run.slurm.glob("*.sh")] + [" ".join(call) for call in slurm.calls("sbatch")]
    assert any("--exclude=n7" in text for text in sent)


@pytest.mark.parametrize("is_lost", [False, True])
def test_what_is_done_between_two_elements_that_run_again_runs_again_too(demo, slurm, monkeypatch, is_lost):
    """Otherwise the later one would not wait for the first: such as a training whose shards a purge of the disk has removed."""

    def is_complete(work, _):
        return not (is_lost and work.job.name == "tokenize")

    for module in ("completion", "monitor.state"):
        monkeypatch.setattr(f"curricula.jobs.{module}.is_complete", is_complete)
    run, _ = demo
    plan = plan_study(run.study)
    for key in plan.needs:
        make(run, plan, key, 1000.0)
    for key in (("pretrain-20", "full-20"), ("evaluate-base-20", "full-20/probes")):
        (run.element(*key) / "done.json").unlink()
        fail(run, *key)
    slurm.queue()
    before = len(submissions(run))
    assert main(["retry", str(run.root)]) == 0
    trunk = next(job for job, _ in plan.needs if job.startswith("pretrain-trunk"))
    failed = ["pretrain-20", "export-base-20", "evaluate-base-20", "merge-20", "report"]
    new = submissions(run)[before:]
    assert [array.job for array in new] == (["tokenize", trunk] if is_lost else []) + failed
    script = (run.slurm / f"{new[-3].job_id}_submission.sh").read_text()
    assert f"--dependency=afterok:{new[-4].job_id}\n" in script  # the evaluation waits for the export


AWAY = "slurm_load_jobs error: Unable to contact slurm controller"


@pytest.mark.parametrize("words", [[], ["--dry-run"]])
def test_nothing_is_cancelled_while_slurm_does_not_say_what_runs(demo, slurm, capsys, words):
    """Elements that run or wait again, and left the mark of an earlier failure, would look as if they had ended badly."""
    run, _ = demo
    fail(run, "pretrain-20", "full-20")
    tasks = latest_tasks(submissions(run)).values()
    slurm.queue(*((task.job_id, str(task.number), "PENDING", "BeginTime", "", 1) for task in tasks))
    listing = (slurm.folder / "squeue.out").read_text()
    slurm.answer("squeue", listing, script=f"[[ $* = *--me* ]] || {{ echo '{AWAY}' >&2; exit 1; }}")
    assert main(["retry", str(run.root), *words]) == 1
    assert "nothing was submitted or cancelled, because squeue: slurm_load_jobs error: Unable" in capsys.readouterr().err
    assert slurm.calls("scancel") == slurm.calls("sbatch") == []


def test_nothing_runs_again_while_a_mark_cannot_be_read(failed, slurm, capsys, monkeypatch):
    run, _ = failed
    mark, read = run.element("prepare", "prepare") / "done.json", Path.read_bytes

    def read_bytes(path):
        if path == mark:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    assert main(["retry", str(run.root)]) == 1
    assert f"{mark}: cannot be read (Stale file handle)" in capsys.readouterr().err
    assert main(["retry", str(run.root), "--dry-run"]) == 1
    assert f"{mark}: cannot be read (Stale file handle)" in capsys.readouterr().err
    assert slurm.calls("scancel") == slurm.calls("sbatch") == [] and mark.exists()
    assert main(["status", str(run.root)]) == 0
    shown = capsys.readouterr().out
    assert "curricula logs" in shown and "curricula retry" not in shown


def test_retry_decides_when_no_other_command_changes_the_run(failed, slurm, capsys):
    run, _ = failed
    with Run.locked(run.root):
        assert main(["retry", str(run.root)]) == 1
    assert "in use by process" in capsys.readouterr().err and slurm.calls("squeue") == []


def test_what_waits_keeps_its_place_when_sbatch_refuses_the_first_array(failed, slurm, capsys):
    run, _ = failed
    slurm.answer("sbatch", error="sbatch: error: invalid partition specified: gpu2", code=1)
    assert main(["retry", str(run.root)]) == 1
    assert "invalid partition" in capsys.readouterr().err and slurm.calls("scancel") == []
    assert (run.element("export-base-20", "full-20") / "failed.json").exists()


def test_once_something_is_submitted_again_what_waited_for_the_failed_goes(failed, slurm, capsys):
    run, tasks = failed
    slurm.answer("sbatch", script=f'[ -e "$0.count" ] && {{ echo "sbatch: error: no" >&2; exit 1; }}; {SUBMITTED}')
    assert main(["retry", str(run.root)]) == 1
    ((*cancelled,),) = slurm.calls("scancel")
    assert len(submissions(run)) == len({task.job_id for task in tasks.values()}) + 1
    assert f"{tasks['report', 'report'].job_id}_[0]" in cancelled


def test_what_has_begun_meanwhile_is_not_cancelled(failed, slurm):
    run, tasks = failed
    report = tasks["report", "report"].job_id
    begin = f'sed -i "/^{report} /s/PENDING/RUNNING/" "{slurm.folder}/squeue.out"'
    slurm.answer("sbatch", script=f"{begin}; {SUBMITTED}")
    assert main(["retry", str(run.root)]) == 0
    (cancelled,) = slurm.calls("scancel")
    assert len(cancelled) > 1 and not any(word.startswith(f"{report}_") for word in cancelled)


def test_where_slurm_takes_no_more_jobs_what_waits_makes_room_for_what_replaces_it(failed, slurm):
    run, tasks = failed
    full = "sbatch: error: QOSMaxSubmitJobPerUserLimit"
    room = f'[ -e "{slurm.folder}/scancel.calls" ] || {{ echo "{full}" >&2; exit 1; }}'
    slurm.answer("sbatch", script=f"{room}; {SUBMITTED}")
    assert main(["retry", str(run.root)]) == 0
    assert latest_tasks(submissions(run))["report", "report"] != tasks["report", "report"]


def test_a_jobs_owner_is_named_where_another_cannot_cancel_it(failed, slurm, capsys):
    run, tasks = failed
    slurm.answer("scancel", error="scancel: error: Access denied", code=1)
    assert main(["retry", str(run.root)]) == 0
    assert (
        f"Access denied; cancel yourself what still waits of arrays {tasks['report', 'report'].job_id}, "
        in capsys.readouterr().out
    )


def test_secrets_of_whoever_submitted_first_are_no_reason_to_submit_what_ends_at_once(failed, slurm, capsys, tmp_path):
    run, _ = failed
    keep_profile(run.profile, Profile(secrets_file=str(tmp_path / "anns-secrets")))
    assert main(["retry", str(run.root)]) == 2
    assert "anns-secrets, which cannot be read (No such file or directory); name a file of your own" in capsys.readouterr().err
    assert slurm.calls("sbatch") == slurm.calls("scancel") == []


def test_a_retry_that_cannot_be_submitted_cancels_nothing(demo, slurm, capsys):
    run, jobs = demo
    tasks = latest_tasks(submissions(run))
    fail(run, "export-base-20", "full-20")
    fail(run, "evaluate-base-20", "full-20/probes")
    waiting = tasks["merge-20", "full-20/base"]
    slurm.queue(
        *(
            (task.job_id, str(task.number), "FAILED", "NonZeroExitCode", "n1", 0)
            for key, task in tasks.items()
            if key != ("merge-20", "full-20/base")
        ),
        (waiting.job_id, str(waiting.number), "PENDING", "Dependency", "", 0),
    )
    hide_ended(slurm)
    assert main(["retry", str(run.root), "--job", "evaluate-base-20"]) != 0
    assert "needs" in capsys.readouterr().err
    assert not slurm.calls("scancel") and not slurm.calls("sbatch")


def test_dry_run_names_what_would_run_again_and_submits_nothing(demo, slurm, capsys):
    run, jobs = demo
    fail(run, "report", "report")
    slurm.queue(*((str(100 + n), str(k), "PENDING", "None", "", 0) for n in range(len(jobs) - 1) for k in range(30)))
    assert main(["retry", str(run.root), "--dry-run"]) == 0
    assert capsys.readouterr().out.splitlines() == ["report/report", "1 element would run"]
    assert slurm.calls("sbatch") == []


def test_nothing_to_retry_is_reported(tmp_path, capsys):
    run, _ = new_run(tmp_path / "run")
    assert main(["retry", str(run.root)]) == 0
    said = capsys.readouterr().out
    assert "nothing has failed" in said and "242 elements not submitted or begun yet: repeat `curricula submit`" in said
    fail(run, "prepare", "prepare")
    assert main(["retry", str(run.root), "--stage", "tokenize"]) == 0
    assert "nothing selected has failed" in capsys.readouterr().out


def test_on_this_machine_only_what_is_selected_runs_again(tmp_path, monkeypatch, capsys):
    run, jobs = new_run(tmp_path / "run")
    for name, job in jobs.items():
        for element in job.elements:
            finish(run, name, element.label)
    for label in ("data-20", "full-20"):
        fail(run, "pretrain-20", label)
        (run.element("pretrain-20", label) / "done.json").unlink()
    started = []

    def run_plan(run, plan, watcher, chosen, done, workers):
        started.extend(chosen)
        return Outcome(done=list(chosen))

    for module in ("completion", "monitor.state"):
        monkeypatch.setattr(f"curricula.jobs.{module}.is_complete", lambda *_: True)
    monkeypatch.setattr("curricula.jobs.cli.local.run_plan", run_plan)
    assert main(["retry", str(run.root), "--arm", "data-20", "--profile", "h100-4x8"]) == 2 and not started
    assert main(["retry", str(run.root), "--arm", "data-20"]) == 0
    assert started == [("pretrain-20", "data-20")]
    assert "on this machine. Ctrl-C stops it; the same command continues.\n" in capsys.readouterr().out  # not broken in a file


def test_on_this_machine_a_run_goes_on_as_a_whole_and_not_for_days_unasked(tmp_path, monkeypatch, capsys):
    run, jobs = new_run(tmp_path / "run", "paper")
    fail(run, "tokenize", jobs["tokenize"].labels[0])
    monkeypatch.setattr("curricula.jobs.cli.local.run_elements", pytest.fail)
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert main(["retry", str(run.root), "--dry-run"]) == 0
    count = sum(len(job.labels) for job in jobs.values())
    *_, last = capsys.readouterr().out.splitlines()
    assert last == f"{count} elements would run"  # what never began, too
    assert main(["retry", str(run.root)]) == 1
    assert f"{count} elements to run, about " in capsys.readouterr().err


def queue_lines(logs):
    """What squeue says of arrays, by number, and where their logs go."""
    return "".join(f"{number:<24}{log!s:<4096}\n" for number, log in logs.items())


def resubmit(run, slurm, *words):
    slurm.answer("sbatch", script=SBATCH)
    profile = Profile(stages=Stages(all=StageOptions(throttle=4)))
    plan = plan_study(run.study, profile)
    write_resubmit(run, plan, profile, list(plan.needs))
    return subprocess.run([run.root / "resubmit.sh", *words], capture_output=True, text=True)


def test_resubmit_submits_and_records_what_is_open_with_its_dependencies(demo, slurm):
    run, jobs = demo
    evaluation = jobs["evaluate-base-20"]
    for name, job in jobs.items():
        for element in job.elements:
            if not name.startswith(("evaluate-base-20", "export-base-20")):
                finish(run, name, element.label)
    for element in evaluation.elements[::2]:
        finish_evaluation(run, evaluation, element.label)
    finish(run, "export-base-20", "data-20")
    counted = [run.element("export-base-20", label) / "restarts.json" for label in ("data-20", "full-20")]
    for path in counted:
        write_json(path, {"saved": 3})
    slurm.answer("squeue", queue_lines({777: "/another/log.out"}))
    done = resubmit(run, slurm, "--nice=1 0")
    assert done.returncode == 0, done.stderr
    calls = slurm.calls("sbatch")
    assert [next(word for word in call if word.startswith("--array")) for call in calls] == [
        "--array=1%4",
        "--array=1,3,5%4",
        "--array=0,1,2,3,4,5%4",
        "--array=0%4",
    ]
    assert [[word for word in call if word.startswith("--dependency")] for call in calls] == [
        [], ["--dependency=afterok:900"], ["--dependency=afterany:901"], ["--dependency=afterany:902"],
    ]  # fmt: skip
    assert all("--nice=1 0" in call for call in calls)
    tasks = latest_tasks(submissions(run))
    assert tasks["export-base-20", "full-20"] == Task("900", 1) and tasks["report", "report"] == Task("903", 0)
    assert tasks["evaluate-base-20", evaluation.elements[3].label] == Task("901", 3)
    assert not (run.element("report", "report") / "done.json").exists()  # it has to see the new results
    assert [path.exists() for path in counted] == [True, False]  # what runs again has all its restarts


def test_resubmit_refuses_while_slurm_still_has_something(demo, slurm):
    run, _ = demo
    ours = run.slurm / "%A_%a_0_log.out"  # 950 is of a call that was killed just after sbatch
    lines = queue_lines({101: ours, 777: "/another/log.out", 950: ours})
    slurm.answer("squeue", f"squeue: warning: [x*\n{lines}{lines}")
    done = resubmit(run, slurm)
    assert done.returncode == 1 and "still in the queue: array 101, 950;" in done.stderr
    assert "scancel 101 950\n" in done.stderr
    assert slurm.calls("sbatch") == []


def test_resubmit_waits_for_a_controller_that_does_not_answer(demo, slurm):
    run, _ = demo
    slurm.answer("squeue", error="slurm_load_jobs error: Unable to contact slurm controller", code=1)
    done = resubmit(run, slurm)
    assert done.returncode == 1 and "Unable to contact slurm controller; repeat" in done.stderr
    assert slurm.calls("sbatch") == []


def test_resubmit_keeps_to_what_was_submitted(tmp_path, slurm):
    run, jobs = new_run(tmp_path / "run")
    plan, profile = plan_study(run.study), Profile()
    prepare, instruct = [("prepare", "prepare")], [("instruct-20", "full-20"), ("benign-20", "full-20")]
    for chosen in (instruct, prepare):
        needed = {need for key in chosen for need, _ in plan.needs[key]}
        made = submit_plan(run, plan, chosen, profile, Standing(needed, {}), lambda _: None)
        assert len(made) == len(chosen)
    before = len(slurm.calls("sbatch"))
    slurm.answer("sbatch", script=SBATCH)
    slurm.answer("squeue", "")
    done = subprocess.run([run.root / "resubmit.sh"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert set(latest_tasks(submissions(run))) == {*prepare, *instruct}
    calls = slurm.calls("sbatch")[before:]
    assert [word for call in calls for word in call if word.startswith("--dependency")] == ["--dependency=afterok:904"]
    assert len(calls) == 3 and len(list((run.slurm / "scripts").iterdir())) == 3


def test_resubmit_of_a_run_that_is_done_submits_nothing(demo, slurm):
    run, jobs = demo
    for name, job in jobs.items():
        for element in job.elements:
            finish(run, name, element.label)
    slurm.answer("squeue", "")
    done = resubmit(run, slurm)
    assert (done.returncode, done.stdout, slurm.calls("sbatch")) == (0, "", [])
    assert (run.element("report", "report") / "done.json").exists()


@pytest.mark.parametrize("accounting", [False, True])
def test_a_killed_batch_script_counts_as_a_failure_and_is_retried_with_what_needs_it(tmp_path, slurm, capsys, accounting):
    """kill -9 by an administrator or for memory: nothing is left to requeue the job, and Slurm cancels its dependants."""
    run, jobs = new_run(tmp_path / "run")
    keep_profile(run.profile, Profile())
    submitted(run, "prepare", "7", ["prepare"])
    submitted(run, "tokenize", "8", jobs["tokenize"].labels[:1])
    (run.element("prepare", "prepare")).mkdir(parents=True)
    if accounting:
        script = f"sbatch {run.slurm}/x.sh"
        slurm.answer("sacct", f"7_0|FAILED|0:9|n1|{script}\n8_0|CANCELLED|0:0||{script}\n")
    else:
        slurm.queue(("7", "0", "FAILED", "RaisedSignal:9(Killed)", "n1", 0), ("8", "0", "CANCELLED", "Dependency", "", 0))
    assert main(["status", str(run.root), "--json"]) == 0
    shown = {f"{row['job']}/{row['label']}": row for row in json.loads(capsys.readouterr().out)}
    assert shown["prepare/prepare"]["state"] == "failed" and "script was killed" in shown["prepare/prepare"]["error"]
    assert shown[f"tokenize/{jobs['tokenize'].labels[0]}"]["state"] == "cancelled"
    assert main(["retry", str(run.root)]) == 0
    assert [one.job for one in submissions(run)][2:] == ["prepare", "tokenize"]
