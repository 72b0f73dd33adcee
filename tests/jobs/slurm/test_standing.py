"""What a submission finds in the queue, what it refuses, and what it asks of Slurm for arrays that are there already."""

import pytest
from run_folders import FakeSlurm, new_run, squeue_line, submitted
from small_studies import of_jobs

from curricula.durable import write_text
from curricula.errors import UsageError
from curricula.jobs.graph import plan_study
from curricula.jobs.slurm import commands
from curricula.jobs.slurm.commands import Task
from curricula.jobs.slurm.profile import Profile, StageOptions, Stages, keep_profile, kept_profile
from curricula.jobs.slurm.submissions import cancel_waiting
from curricula.jobs.slurm.submit import Standing, standing, submit_plan

PREPARE, REPORT = ("prepare", "prepare"), ("report", "report")


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    slurm = FakeSlurm(tmp_path / "bin", monkeypatch)
    slurm.answer("sbatch", script='echo >>"$0.n"; echo "Submitted batch job $((70 + $(wc -l <"$0.n")))"; exit 0')
    return slurm


@pytest.fixture
def run(tmp_path):
    return new_run(tmp_path / "run")[0]


def test_what_waits_for_a_failed_job_is_cancelled_and_is_submitted_again(slurm, run):
    """It would wait in vain. An element must not be in the queue twice."""
    submitted(run, "prepare", "7", ["prepare"])
    submitted(run, "report", "8", ["report"])
    slurm.queue(("7", "0", "PENDING", "DependencyNeverSatisfied", "", 0), ("8", "0", "PENDING", "Dependency", "", 0))
    slurm.answer("scancel", error="scancel: error: Invalid job id specified", code=1)  # it has just left the queue
    now = standing(run, plan_study(run.study), Profile(), print)
    assert slurm.calls("scancel") == [["7_[0]"]]
    assert now.live == {REPORT: (Task("8", 0),)} and now.open([PREPARE, REPORT]) == [PREPARE]


def test_of_what_was_to_be_cancelled_only_the_runs_own_jobs_that_still_wait_are(slurm, run):
    rows = (("7", "PENDING", slurm.output), ("8", "RUNNING", slurm.output), ("9", "PENDING", "/of/others/log"))
    slurm.answer("squeue", "".join(squeue_line(number, "0", state, output=output) + "\n" for number, state, output in rows))
    cancel_waiting(run, [Task(number, 0) for number in ("10", "9", "8", "7")], print)
    assert slurm.calls("scancel") == [["7_[0]"]]


def test_what_cannot_run_is_refused_before_anything_is_submitted(slurm, run):
    profile = Profile(stages=Stages(tuning=StageOptions(gpus_per_node=3)))
    plan = plan_study(run.study, profile)
    with pytest.raises(UsageError, match="tokenize needs prepare/prepare, which is not done, queued or selected"):
        submit_plan(run, plan, of_jobs(plan, "tokenize"), profile, Standing(set(), {}), print)
    with pytest.raises(UsageError, match="which the 3 data-parallel processes of instruct-20 cannot share evenly"):
        submit_plan(run, plan, of_jobs(plan, "instruct-20"), profile, Standing(set(plan.needs), {}), print)
    assert slurm.calls("sbatch") == []


def test_arrays_are_as_long_as_the_site_allows_and_the_profile_is_kept_as_it_was_given(slurm, run):
    slurm.answer("scontrol", "MaxArraySize            = 3\n")
    profile = Profile(stages=Stages(data=StageOptions(throttle=2)), setup=("module load x",), notify="mail -s x me")
    plan = plan_study(run.study, profile)
    made = submit_plan(run, plan, of_jobs(plan, "prepare", "tokenize"), profile, Standing(set(), {}), print)
    assert sum(len(one.labels) for one in made[1:]) == len(plan.by_name["tokenize"].labels) > 3
    assert [len(one.labels) for one in made[:2]] == [1, 3] and max(len(one.labels) for one in made) == 3
    script = (run.slurm / f"{made[1].job_id}_submission.sh").read_text()
    assert "#SBATCH --array=0-2%2\n" in script and "--error" not in script  # errors go to the log, too
    assert kept_profile(run.profile) == profile


def test_what_needs_an_array_that_others_continue_waits_for_the_last_of_them(slurm, run):
    plan = plan_study(run.study)
    for number in ("1", "2"):
        submitted(run, "prepare", number, ["prepare"])
    write_text(run.slurm / "1.continued", "2\n")
    now = Standing(set(), {PREPARE: (Task("1", 0), Task("2", 0))})
    (made,) = submit_plan(run, plan, of_jobs(plan, "tokenize"), Profile(), now, print)
    assert "--dependency=afterok:2\n" in (run.slurm / f"{made.job_id}_submission.sh").read_text()


def test_a_profile_may_ask_for_no_array_that_continues_another(slurm, run):
    slurm.answer("scontrol", "JobId=71 Requeue=0\n")
    said: list[str] = []
    made = submit_plan(run, plan_study(run.study), [PREPARE], Profile(continuations=0), Standing(set(), {}), said.append)
    assert len(made) == 1 and any("so 0 more arrays will continue it" in line for line in said)


def test_a_run_that_was_only_rendered_may_go_to_another_cluster(slurm, run, monkeypatch):
    monkeypatch.setattr(commands, "_cluster", None)
    keep_profile(run.profile, Profile(cluster="red"))
    assert standing(run, plan_study(run.study), Profile(cluster="blue"), print) == Standing(set(), {})
