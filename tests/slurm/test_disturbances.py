"""What a cluster does to a job of days, done to training processes of two nodes: they go on as if nothing had happened.

After each disturbance the job has its old number, the jobs that wait for it still do, and in the end every step read the same
samples and came to the same numbers as in a run that nobody disturbed.
"""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import slurm_studies as studies
from paths import LAB_SCRIPTS

from curricula.jobs.run import Run
from curricula.jobs.slurm.submissions import submissions

STEPS = 48
LAST = f"pretrain-trunk-{STEPS}"


@pytest.fixture(scope="module")
def place(lab, tmp_path_factory):
    """A study of slow steps with two ranks on two nodes, and a run folder that holds its data."""
    folder = tmp_path_factory.mktemp("disturbances")
    study = studies.write_study(folder, steps=STEPS, batch=32, micro_batch=16)
    profile = studies.write_profile(folder, stages={"pretraining": {"nodes": 2, "gpus_per_node": 1}}, lead_time_s=25)
    return study, profile, studies.prepared(lab, folder, study)


def begin(lab, place, name: str) -> Path:
    """Submit the trunk to its end, in a copy of the prepared run folder."""
    study, profile, prepared = place
    run = prepared.parent / name
    shutil.copytree(prepared, run)
    studies.submit(lab, study, profile, run, "--stage", "pretrain", "--arm", "safe-100")
    return run


def finish(lab, run: Path) -> list[str]:
    studies.wait_until(lambda: studies.is_done(run, LAST, "trunk"), f"{run.name} to finish", 600, lambda: studies.logs(run))
    return studies.metrics(run, "trunk")


def ranks_of(run: Path) -> list[int]:
    """The training processes of a run, on all nodes."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"python" in words[0] and any(word.endswith(b"run_element.py") for word in words) and bytes(run) in words:
            found.append(int(folder.name))
    return sorted(found)


def preempt(lab, run: Path, task: str) -> None:
    assert lab.preempt(task), lab.state()


def requeue(lab, run: Path, task: str) -> None:
    lab.run("scontrol", "requeue", task)


def ask_to_save(lab, run: Path, task: str) -> None:
    """What Slurm sends before a time limit."""
    lab.run("scancel", "--signal=USR2", task)


def lose_a_node(lab, run: Path, task: str) -> None:
    node = studies.show(lab, task)["BatchHost"]
    lab.run(LAB_SCRIPTS / "kill-node", node)


def kill_a_rank(lab, run: Path, task: str) -> None:
    os.kill(ranks_of(run)[-1], signal.SIGKILL)


DISTURBANCES = [preempt, ask_to_save, lose_a_node, kill_a_rank, requeue]


@pytest.mark.slow
def test_a_disturbed_run_ends_like_an_undisturbed_one(lab, place):
    undisturbed, run = (begin(lab, place, name) for name in ("undisturbed", "disturbed"))
    job = studies.TRUNK.replace("12", str(STEPS // 2))
    number = {name: studies.task_of(run, name, "trunk") for name in (job, LAST)}
    current = job
    for disturb in DISTURBANCES:
        # With something saved since the last start, for else the job would rightly be taken for one that gets nowhere.
        before = studies.saved_step(run, "trunk")

        def is_under_way(before=before):
            return studies.saved_step(run, "trunk") > before and len(ranks_of(run)) == 2

        studies.wait_until(is_under_way, f"a checkpoint before {disturb.__name__}", 300, lambda: studies.logs(run))
        current = LAST if studies.is_done(run, job, "trunk") else job
        restarts = int(studies.show(lab, number[current])["Restarts"])
        disturb(lab, run, number[current])

        def is_back(current=current, restarts=restarts):
            told = studies.show(lab, number[current])
            return int(told["Restarts"]) > restarts

        studies.wait_until(is_back, f"the job after {disturb.__name__}", 300, lambda: studies.logs(run))
        if current == job:
            waiting = studies.show(lab, number[LAST])
            assert waiting["JobState"] == "PENDING" and waiting["Reason"] == "Dependency", (disturb.__name__, waiting)
        if disturb is lose_a_node:
            lab.up()
    assert finish(lab, run) == finish(lab, undisturbed)
    assert {name: studies.task_of(run, name, "trunk") for name in number} == number


@pytest.mark.slow
def test_where_preempted_jobs_are_cancelled_the_next_array_continues(own_lab, tmp_path):
    study = studies.write_study(tmp_path, steps=STEPS, batch=32, micro_batch=16)
    profile = studies.write_profile(tmp_path, continuations=1)
    run = studies.prepared(own_lab, tmp_path, study)
    own_lab.run("scontrol", "update", "PartitionName=batch", "PreemptMode=CANCEL")
    said = studies.submit(own_lab, study, profile, run, "--stage", "pretrain", "--arm", "safe-100")
    assert "jobs of partition batch are cancelled when others preempt them, so 1 more array will continue" in said
    first = submissions(Run(run))[0]
    studies.wait_until(lambda: studies.saved_step(run, "trunk") > 0, "a checkpoint", 300, lambda: studies.logs(run))
    assert own_lab.preempt(f"{first.job_id}_0"), own_lab.state()
    assert studies.show(own_lab, f"{first.job_id}_0")["JobState"] == "PREEMPTED"
    finish(own_lab, run)
    assert studies.show(own_lab, f"{first.job_id}_0")["Restarts"] == "0"


@pytest.mark.slow
def test_a_job_that_must_not_be_requeued_ends_and_is_resumed_by_a_retry(lab, place):
    study, _, prepared = place
    folder, run = prepared.parent / "refused", prepared.parent / "not-requeued"
    shutil.copytree(prepared, run)
    words = ("--stage", "pretrain", "--arm", "safe-100")
    held = studies.write_profile(folder, stages={"all": {"options": {"hold": True}}})
    studies.submit(lab, study, held, run, *words)
    for submission in submissions(Run(run)):
        lab.run("scontrol", "update", f"JobId={submission.job_id}", "Requeue=0")
        lab.run("scontrol", "release", submission.job_id)
    task = f"{submissions(Run(run))[0].job_id}_0"
    studies.wait_until(lambda: studies.saved_step(run, "trunk") > 0, "a checkpoint", 300, lambda: studies.logs(run))
    lab.run("scancel", "--signal=USR2", task)
    studies.wait_until(lambda: studies.show(lab, task)["JobState"] == "FAILED", "the job to end", 60)
    assert "Slurm did not requeue its job" in studies.curricula(lab, "status", run, "--json")
    studies.curricula(lab, "retry", run, "--profile", studies.write_profile(folder))
    finish(lab, run)


@pytest.mark.slow
def test_two_ranks_that_get_nowhere_give_up_with_their_code_and_not_that_of_the_kill(lab, place):
    study, _, prepared = place
    folder = prepared.parent / "nowhere"
    two_ranks = {"pretraining": {"nodes": 2, "gpus_per_node": 1}}
    profile = studies.write_profile(folder, stages=two_ranks, restarts_without_progress=1)
    run = folder / "run"
    shutil.copytree(prepared, run)
    (run / "pretrain/trunk/metrics.jsonl").mkdir(parents=True)  # an error that no start mends, though nobody foresaw it
    studies.submit(lab, study, profile, run, "--stage", "pretrain", "--arm", "safe-100")
    first = studies.TRUNK.replace("12", str(STEPS // 2))
    numbers = [studies.task_of(run, name, "trunk").partition("_")[0] for name in (first, LAST)]

    def ended():
        return not any(lab.run("squeue", "--noheader", f"--jobs={number}", check=False).strip() for number in numbers)

    studies.wait_until(ended, "both jobs to end", 300, lambda: studies.logs(run))
    said = lab.run("sacct", "-X", "--noheader", "--parsable2", "--format=State,ExitCode", f"--jobs={','.join(numbers)}")
    assert sorted(said.split()) == ["CANCELLED|0:0", "FAILED|93:0"]
    why = json.loads((run / "jobs" / first / "trunk" / "failed.json").read_text())["error"]
    assert "times without progress" in why and "IsADirectoryError" in why
