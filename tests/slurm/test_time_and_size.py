"""Time limits far shorter than the work, a rank that hangs, the paper's shape of 4 x 8 ranks, and plain scripts."""

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import slurm_studies as studies
from test_disturbances import ranks_of

from curricula.jobs.run import Run
from curricula.jobs.slurm.submissions import submissions


def undisturbed(lab, folder: Path, study: Path, prepared: Path, profile: Path, last: str) -> list[str]:
    run = folder / "undisturbed"
    shutil.copytree(prepared, run)
    studies.submit(lab, study, profile, run, "--stage", "pretrain", "--arm", "safe-100")
    studies.wait_until(lambda: studies.is_done(run, last, "trunk"), "the undisturbed run", 600, lambda: studies.logs(run))
    return studies.metrics(run, "trunk")


@pytest.mark.slow
def test_a_run_of_many_time_limits_goes_on_from_slice_to_slice(lab, tmp_path):
    """A partition that ends every job after a minute; the work takes several, more than any count of timeouts in between."""
    study = studies.write_study(tmp_path, steps=200, batch=128, micro_batch=64, save_interval_steps=1000)
    prepared = studies.prepared(lab, tmp_path, study)
    profile = studies.write_profile(tmp_path, stages={"pretraining": {"partition": "short", "hours": 1 / 60}}, lead_time_s=25)
    run, whole = tmp_path / "sliced", tmp_path / "whole"
    for root, its_profile in ((run, profile), (whole, studies.write_profile(tmp_path / "whole-profile"))):
        shutil.copytree(prepared, root)
        studies.submit(lab, study, its_profile, root, "--stage", "pretrain", "--arm", "safe-100")
    job = "pretrain-trunk-100"
    number = studies.task_of(run, job, "trunk")

    def slices():
        return int(studies.show(lab, number)["Restarts"])

    studies.wait_until(lambda: slices() > 3, "more than three slices", 900, lambda: studies.logs(run))
    assert studies.show(lab, studies.task_of(run, "pretrain-trunk-200", "trunk"))["Reason"] == "Dependency"
    sliced = studies.metrics(run, "trunk")
    studies.wait_until(lambda: len(studies.metrics(whole, "trunk")) >= len(sliced), "the run in one piece", 900)
    lab.run("scancel", *{one.job_id for root in (run, whole) for one in submissions(Run(root))})
    assert sliced == studies.metrics(whole, "trunk")[: len(sliced)] and sliced


@pytest.mark.slow
def test_a_rank_that_hangs_is_ended_in_time_and_the_job_goes_on(lab, tmp_path):
    """SIGSTOP to one of two ranks: nothing moves any more, and the job still does not end as TIMEOUT."""
    study = studies.write_study(tmp_path, steps=60, batch=32, micro_batch=16)
    prepared = studies.prepared(lab, tmp_path, study)
    stages = {"pretraining": {"nodes": 2, "gpus_per_node": 1, "partition": "short", "hours": 1 / 60}}
    profile = studies.write_profile(tmp_path, stages=stages, lead_time_s=25)
    run, last = tmp_path / "hung", "pretrain-trunk-60"
    shutil.copytree(prepared, run)
    studies.submit(lab, study, profile, run, "--stage", "pretrain", "--arm", "safe-100")
    studies.wait_until(lambda: studies.saved_step(run, "trunk") and len(ranks_of(run)) == 2, "training", 300)
    os.kill(ranks_of(run)[-1], signal.SIGSTOP)
    number = studies.task_of(run, "pretrain-trunk-30", "trunk")
    hit = number if not studies.is_done(run, "pretrain-trunk-30", "trunk") else studies.task_of(run, last, "trunk")
    studies.wait_until(lambda: int(studies.show(lab, hit)["Restarts"]) > 0, "a restart", 400, lambda: studies.logs(run))
    studies.wait_until(lambda: studies.is_done(run, last, "trunk"), "the end", 900, lambda: studies.logs(run))
    plain = studies.write_profile(tmp_path, stages={"pretraining": {"nodes": 2, "gpus_per_node": 1}})
    assert studies.metrics(run, "trunk") == undisturbed(lab, tmp_path, study, prepared, plain, last)


@pytest.mark.slow
def test_the_papers_shape_of_four_nodes_of_eight(lab, tmp_path):
    """32 Megatron ranks, tensor parallel over 2 and data parallel over 16, through the real submission path."""
    study = studies.write_study(tmp_path, steps=4, batch=32, micro_batch=2)
    text = study.read_text().replace("resources:\n", "resources:\n  tensor_parallel: 2\n")
    study.write_text(text)
    assert "tensor_parallel: 2" in text
    prepared = studies.prepared(lab, tmp_path, study)
    profile = studies.write_profile(tmp_path, stages={"pretraining": {"nodes": 4, "gpus_per_node": 8}})
    run = tmp_path / "full"
    shutil.copytree(prepared, run)
    studies.submit(lab, study, profile, run, "--stage", "pretrain", "--arm", "safe-100")
    studies.wait_until(lambda: studies.is_done(run, "pretrain-trunk-4", "trunk"), "32 ranks", 1500, lambda: studies.logs(run))
    told = studies.show(lab, studies.task_of(run, "pretrain-trunk-4", "trunk"))
    assert told["NumNodes"] == "4" and told["NumTasks"] == "32" and told["Restarts"] == "0"
    assert studies.step_of(run, "trunk") == 4
    assert len(list((run / "slurm").glob(f"{studies.task_of(run, 'pretrain-trunk-4', 'trunk')}_*_log.out"))) == 32


@pytest.mark.slow
def test_plain_scripts_do_the_same_as_submit(lab, tmp_path):
    """Both ways to Slurm, and equal losses."""
    study, profile = studies.write_study(tmp_path, steps=8), studies.write_profile(tmp_path)
    prepared = studies.prepared(lab, tmp_path, study)
    plain, last = tmp_path / "plain", "pretrain-trunk-8"
    shutil.copytree(prepared, plain)
    studies.curricula(lab, "render", study, tmp_path / "scripts", "--profile", profile, "--run", plain)
    environment = {**lab.environment, "PATH": os.environ["PATH"]}
    ran = subprocess.run([tmp_path / "scripts" / "submit_all.sh"], env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    submitted = undisturbed(lab, tmp_path, study, prepared, profile, last)
    studies.wait_until(lambda: studies.is_done(plain, last, "trunk"), "the scripts", 600, lambda: studies.logs(plain))
    lab.run("scancel", *{one.job_id for one in submissions(Run(plain))})
    assert studies.metrics(plain, "trunk") == submitted
