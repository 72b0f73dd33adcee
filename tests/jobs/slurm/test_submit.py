"""What `submit` makes of sbatch's answers: it waits for a controller that is away, and repeats Slurm's reason for a refusal."""

import math
import re

import pytest
from run_folders import FakeSlurm, fail, new_run, squeue_line, submitted

from curricula.errors import UserError
from curricula.jobs.graph import plan_study
from curricula.jobs.monitor.state import run_status
from curricula.jobs.slurm.commands import ControllerAway, Task
from curricula.jobs.slurm.profile import Profile, StageOptions, Stages
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


SHOW = {
    "Requeue=0": ("JobId=1 Requeue=0 Partition=gpu", "PreemptType = preempt/none", ""),
    "partition gpu cancels": (
        "JobId=1 Requeue=1 Partition=gpu",
        "PreemptType = preempt/partition_prio",
        "PreemptMode=CANCEL",
    ),
    "": ("JobId=1 Requeue=1 Partition=gpu", "PreemptType = preempt/partition_prio", "PreemptMode=GANG,REQUEUE"),
}


@pytest.mark.parametrize("reason", SHOW)
def test_what_slurm_will_not_requeue_is_continued_by_further_arrays(slurm, tmp_path, reason):
    """Each after the one before, and after all that the first waits for; what needs the array waits for the last."""
    run, _ = new_run(tmp_path / "run")
    profile = Profile(stages=Stages(pretraining=StageOptions(hours=0.05)), continuations=2)
    plan = plan_study(run.study, profile)
    job, config, partition = SHOW[reason]
    slurm.answer(
        "scontrol",
        script=f'case "$*" in *job*) echo "{job}";; *config*) echo "{config}";; *) echo "PartitionName=gpu {partition}";; esac',
    )
    slurm.answer(
        "sbatch",
        script=f'cp "${{@: -1}}" "{tmp_path}/$(ls "{tmp_path}" | grep -c script).script"; '
        f'echo "Submitted batch job $(ls "{tmp_path}" | grep -c script)"; exit 0',
    )
    said: list[str] = []
    chosen = {"prepare": ("prepare",), "tokenize": plan.by_name["tokenize"].labels}
    fail(run, "prepare", "prepare")
    made = submit_plan(run, plan, chosen, profile, Standing(set(), {}), said.append)
    waits = [
        re.findall("--dependency=(.*)", (tmp_path / f"{number}.script").read_text()) for number in range(len(made))
    ]
    assert submissions(run) == made and not (run.element("prepare", "prepare") / "failed.json").exists()
    if not reason:
        assert waits == [[], ["afterok:1"]]
        return
    assert any(reason in line for line in said)
    assert waits == [
        [], ["afterany:1"], ["afterany:2"],
        ["afterok:3"], ["afterok:3,afterany:4"], ["afterok:3,afterany:5"],
    ]  # fmt: skip
    assert (run.slurm / "4.continued").read_text() == "5\n6\n"
    texts = [(tmp_path / f"{number}.script").read_text() for number in range(6)]
    assert ["CURRICULA_CONTINUES=4" in text for text in texts] == [False] * 4 + [True] * 2
    listed = [(n, "RUNNING" if n == 4 else "PENDING") for n in range(4, 7)]
    slurm.answer("squeue", "".join(squeue_line(str(n), "0", state, output=slurm.output) + "\n" for n, state in listed))
    label = plan.by_name["tokenize"].labels[0]
    assert standing(run, plan, said.append).live == {("tokenize", label): (Task("4", 0), Task("5", 0), Task("6", 0))}
    (status,) = [one for one in run_status(run, plan).elements if (one.job, one.label) == ("tokenize", label)]
    assert (status.state, status.task) == ("running", "4_0")


def test_an_array_is_continued_as_often_as_its_hours_need(slurm, tmp_path):
    run, _ = new_run(tmp_path / "run")
    plan = plan_study(run.study, profile := Profile(stages=Stages(data=StageOptions(hours=0.25))))
    slurm.answer("scontrol", "JobId=1 Requeue=0\n")
    slurm.answer("sbatch", "Submitted batch job 1\n")
    request = plan.by_name["prepare"].request
    made = submit_plan(run, plan, {"prepare": ("prepare",)}, profile, Standing(set(), {}), lambda _: None)
    assert len(made) == 1 + math.ceil(request.total_hours * 60 / request.minutes) > 2
