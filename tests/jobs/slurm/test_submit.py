"""What `submit` makes of sbatch's answers: it waits for a controller that is away, and repeats Slurm's reason for a refusal."""

import pytest
from run_folders import FakeSlurm, new_run, squeue_line, submitted

from curricula.errors import UserError
from curricula.jobs.graph import plan_study
from curricula.jobs.slurm.commands import ControllerAway, Task
from curricula.jobs.slurm.profile import Profile
from curricula.jobs.slurm.script import contents_line
from curricula.jobs.slurm.submissions import submissions
from curricula.jobs.slurm.submit import ElementExecutor, Standing, standing, submit_plan

AWAY = "sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)"
REFUSED = (
    "sbatch: error: invalid partition specified: gpu2",
    "sbatch: error: Batch job submission failed: Invalid partition",
)


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    return FakeSlurm(tmp_path / "bin", monkeypatch)


def executor(folder):
    folder.mkdir()
    executor = ElementExecutor(folder)
    executor.prepare("prepare", 1, {"time": 5}, None)
    return executor


def test_a_controller_that_goes_away_midway_is_waited_for(slurm, tmp_path, monkeypatch):
    run, _ = new_run(tmp_path / "run")
    plan = plan_study(run.study)
    monkeypatch.setattr("tenacity.nap.time.sleep", lambda _: None)
    count = tmp_path / "count"
    slurm.answer(
        "sbatch",
        script=f'echo >> "{count}"; [ "$(wc -l < "{count}")" = 2 ] && {{ echo "{AWAY}" >&2; exit 1; }}\n'
        f'echo "Submitted batch job $(wc -l < "{count}")"; exit 0',
    )
    said: list[str] = []
    chosen = {job.name: job.labels for job in plan.jobs_up_to(["tokenize"])}
    made = submit_plan(run, plan, chosen, Profile(), Standing(set(), {}), said.append)
    assert [(one.job, one.job_id) for one in made] == [("prepare", "1"), ("tokenize", "3")] and submissions(run) == made
    assert any("does not answer" in line for line in said)


def test_a_refusal_carries_slurms_reason(slurm, tmp_path):
    slurm.answer("sbatch", script="".join(f"echo '{line}' >&2\n" for line in REFUSED), code=1)
    with pytest.raises(
        UserError, match="invalid partition specified: gpu2; Batch job submission failed: Invalid"
    ) as error:
        executor(tmp_path / "jobs").submit_body("true")
    assert not isinstance(error.value, ControllerAway) and "exit status" not in str(error.value)


def test_a_controller_that_is_away_is_no_refusal(slurm, tmp_path):
    slurm.answer("sbatch", error=AWAY, code=1)
    with pytest.raises(ControllerAway, match="Unable to contact slurm controller"):
        executor(tmp_path / "jobs").submit_body("true")


def test_numbers_that_slurm_gave_again_are_told_apart(slurm, tmp_path):
    """A strange job of a recorded number does not hold an element up; one of this run is what its script says."""
    run, _ = new_run(tmp_path / "run")
    submitted(run, "prepare", "1", ["prepare"])
    submitted(run, "pretrain-trunk-100", "2", ["trunk"])
    submitted(run, "report", "3", ["report"])
    outputs = {"1": "/others/slurm/log", "2": slurm.output, "3": slurm.output}
    slurm.answer("squeue", "".join(squeue_line(n, "0", "PENDING", output=out) + "\n" for n, out in outputs.items()))
    tokenize = contents_line("tokenize", ["web/0"])  # its record was prevented by a kill
    slurm.answer(
        "scontrol", script=f"[[ $* = *' 2 '* ]] && echo '{tokenize}' || echo '{contents_line('report', ['report'])}'"
    )
    said: list[str] = []
    now = standing(run, plan_study(run.study), said.append)
    assert now.live == {("report", "report"): (Task("3", 0),), ("tokenize", "web/0"): (Task("2", 0),)}
    assert [one.job for one in submissions(run)][3:] == ["tokenize"] and len(said) == 1
