"""What `submit` makes of sbatch's answers: it waits for a controller that is away, and repeats Slurm's reason for a refusal."""

import math
import os
import re
import shlex
import subprocess
import time

import pytest
from paths import STUDIES
from run_folders import FakeSlurm, fail, finish, new_run, squeue_line, submitted
from small_studies import of_jobs, small_study

from curricula.durable import TEAM, write_text
from curricula.errors import UsageError, UserError
from curricula.jobs.cli.main import main
from curricula.jobs.downloads import study_downloads
from curricula.jobs.graph import plan_study
from curricula.jobs.monitor.state import run_status
from curricula.jobs.run import Run
from curricula.jobs.slurm import commands
from curricula.jobs.slurm.commands import (
    ControllerAway,
    DependencyLost,
    QueueFull,
    Task,
    explained,
    is_full,
    partition_minutes,
    qos_minutes,
    too_long,
    why_not_requeued,
    within_array_limit,
)
from curricula.jobs.slurm.profile import Profile, Request, StageOptions, Stages, keep_profile
from curricula.jobs.slurm.restarts import LIMIT, GaveUp, check_restarts
from curricula.jobs.slurm.submissions import BadNode, contents_line, record_bad_nodes, submissions
from curricula.jobs.slurm.submit import Standing, standing, submit_plan
from curricula.jobs.stages import Work
from curricula.jobs.study import load_study

PREPARE = ("prepare", "prepare")
AWAY = "sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)"
REFUSED = ("sbatch: error: invalid partition specified: gpu2", "sbatch: error: Batch job submission failed: Invalid partition")


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    return FakeSlurm(tmp_path / "bin", monkeypatch)


def sbatch(folder):
    folder.mkdir()
    write_text(folder / "script.sh", "true")
    return commands.sbatch(folder / "script.sh", "prepare", "")


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
    made = submit_plan(run, plan, of_jobs(plan, "prepare", "tokenize"), Profile(), Standing(set(), {}), said.append)
    assert [(one.job, one.job_id) for one in made] == [("prepare", "1"), ("tokenize", "3")] and submissions(run) == made
    assert any("does not answer" in line for line in said)


def test_a_refusal_carries_slurms_reason(slurm, tmp_path):
    slurm.answer("sbatch", script="".join(f"echo '{line}' >&2\n" for line in REFUSED), code=1)
    with pytest.raises(UserError, match="invalid partition specified: gpu2; Batch job submission failed: Invalid") as error:
        sbatch(tmp_path / "jobs")
    assert not isinstance(error.value, ControllerAway) and "exit status" not in str(error.value)


@pytest.mark.parametrize("said", [
    AWAY, "sbatch: error: Munge encode failed: Failed to access /run/munge", "sbatch: error: Protocol authentication error",
    "sbatch: error: Socket timed out on send/recv operation", "sbatch: error: Zero Bytes were transmitted or received",
])  # fmt: skip
def test_a_controller_that_is_away_is_no_refusal(slurm, tmp_path, said):
    slurm.answer("sbatch", error=said, code=1)
    with pytest.raises(ControllerAway, match=said.removeprefix("sbatch: error: ").replace("(", r"\(").replace(")", r"\)")):
        sbatch(tmp_path / "jobs")


LIMITS = ("MaxSubmitJobsPerAccount", "QOSMaxSubmitJobPerUserLimit", "AssocMaxSubmitJobLimit")
POLICY = "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)"
LIMITED = """file="${{@: -1}}"; number=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$file"); had=$(cat "{count}")
if [ $((had + number + 1)) -gt {limit} ]; then
    echo "sbatch: error: {reason}" >&2
    echo "sbatch: error: Batch job submission failed: {policy}" >&2
    exit 1
fi
echo $((had + number + 1)) >"{count}"; echo "Submitted batch job $((1000 + had))"; exit 0"""
"""sbatch of a user who may have so many elements in the queue; the count file says how many there are."""


def test_a_submission_over_the_users_limit_goes_in_waves(slurm, tmp_path):
    run, jobs = new_run(tmp_path / "run")
    plan, count = plan_study(run.study), tmp_path / "count"
    slurm.answer("sbatch", script=LIMITED.format(count=count, limit=60, reason="AssocMaxSubmitJobLimit", policy=POLICY))
    waves, sent = [], []
    while len(sent) < len(plan.needs):
        count.write_text("0")
        now = Standing({(one.job, label) for one in submissions(run) for label in one.labels}, {})  # all of them ended
        full = None
        try:
            submit_plan(run, plan, now.open(plan.needs), Profile(), now, print)
        except QueueFull as error:
            full = str(error)
        before, sent = len(sent), [(one.job, label) for one in submissions(run) for label in one.labels]
        waves.append(len(sent) - before)
        assert 0 < waves[-1] <= 60
        left = len(plan.needs) - len(sent)
        assert f"{left} elements left to submit: run the same command again" in full if left else full is None
    assert sent == list(plan.needs) and len(waves) > 1


def test_a_refused_array_keeps_the_marks_of_what_is_done(slurm, tmp_path):
    run, jobs = new_run(tmp_path / "run")
    plan, count = plan_study(run.study), tmp_path / "count"
    job = next(job for job in plan.jobs if len(job.labels) > 2)
    for label in job.labels:
        finish(run, job.name, label)
    count.write_text("0")
    slurm.answer("sbatch", script=LIMITED.format(count=count, limit=1, reason="AssocGrpSubmitJobsLimit", policy=POLICY))
    done = {(one.name, label) for one in plan.jobs for label in one.labels}
    with pytest.raises(QueueFull, match="left to submit"):
        submit_plan(run, plan, of_jobs(plan, job.name), Profile(), Standing(done, {}), print)
    marks = [(run.element(job.name, label) / "done.json").exists() for label in job.labels]
    assert marks == [False] + [True] * (len(marks) - 1)
    with pytest.raises(QueueFull, match=r"accepts no more of your jobs now \(AssocGrpSubmitJobsLimit; Batch.*left to submit"):
        submit_plan(run, plan, of_jobs(plan, job.name)[1:], Profile(), Standing(done, {}), print)


def test_marks_are_not_put_back_while_nobody_knows_whether_slurm_took_the_job(slurm, tmp_path, monkeypatch):
    """It would end at once, as one that is done."""
    monkeypatch.setattr(commands, "RESTART_PATIENCE_S", 0)
    run, _ = new_run(tmp_path / "run")
    finish(run, *PREPARE)
    slurm.answer("sbatch", error=AWAY, code=1)
    with pytest.raises(ControllerAway):
        submit_plan(run, plan_study(run.study), [PREPARE], Profile(), Standing(set(), {}), print)
    assert not (run.element(*PREPARE) / "done.json").exists()


def test_a_limit_that_waiting_does_not_lift_is_a_refusal():
    assert is_full(POLICY) and all(is_full(f"{limit}; {POLICY}") for limit in LIMITS)
    assert not is_full(f"QOSMaxWallDurationPerJobLimit; {POLICY}")


def test_a_budget_that_is_used_up_is_not_called_a_limit_of_gpus():
    assert "budget of GPU time is used up" in explained("AssocGrpGRESMinutes")
    assert "limit of GPUs" in explained("AssocGrpGRES") and "more time" in explained("QOSMaxWallDurationPerJobLimit")
    assert explained("ReqNodeNotAvail, UnavailableNodes:n[1-3]").endswith(" (nodes it asks for are down, drained or reserved)")
    assert explained("QOSNotAllowed") == "QOSNotAllowed"
    assert "`curricula cancel`, correct the profile and submit again" in explained("PartitionTimeLimit")


def test_a_site_may_have_sbatch_say_things_in_another_encoding(slurm):
    slurm.answer("sbatch", script="printf 'Universit\\351\\nJob 7 to start at noon' >&2")
    assert "Job 7 to start at noon" in commands.tested("#!/bin/bash\n")


def test_arrays_are_no_longer_than_slurm_takes(slurm):
    slurm.answer("scontrol", "Configuration data\nMaxArraySize            = 64\nMaxDBDMsgs = 20\n")
    assert within_array_limit(Profile()).max_array_size == 64
    assert within_array_limit(Profile(max_array_size=10)).max_array_size == 10
    slurm.answer("scontrol", "MaxArraySize = 64\nSchedulerParameters     = bf_window=60,max_array_tasks=32,defer\n")
    assert within_array_limit(Profile()).max_array_size == 32
    slurm.answer("scontrol", error="no such", code=1)
    assert within_array_limit(Profile()) == Profile()


PARTITIONS = """PartitionName=cpu AllowGroups=ALL Default=YES MaxNodes=UNLIMITED MaxTime=12:00:00 State=UP
PartitionName=gpu Default=NO MaxTime=2-00:00:00 State=UP
PartitionName=long Default=NO MaxTime=UNLIMITED State=UP
"""


@pytest.mark.parametrize(
    ("partition", "qos", "minutes", "said"),
    [
        (None, None, 12 * 60, ""),
        (None, "any", 13 * 60, "it asks for 13 h, but the default partition allows 12 h, so it will not start; set stages.all"),
        ("gpu", None, 49 * 60, "but partition gpu allows 48 h"),
        ("gpu", "short", 24 * 60, "but QOS short allows 8 h, so it will not start; set stages.all.hours to at most 8"),
        ("gpu", "short", 8 * 60, ""),
        ("cpu,gpu", "any", 48 * 60, ""),
        ("gpu,long", "unknown", 999 * 60, ""),
        ("unknown", None, 999 * 60, ""),
    ],
)
def test_jobs_longer_than_their_partition_or_qos_allows_are_named(slurm, partition, qos, minutes, said):
    slurm.answer("scontrol", PARTITIONS)
    slurm.answer("sacctmgr", "any|\nshort|08:00:00\n")
    request = Request(minutes=minutes, section="all", options=StageOptions(partition=partition, qos=qos))
    told = too_long(request, partition_minutes(), qos_minutes())
    assert said in told and bool(told) == bool(said)


def test_a_dry_run_names_the_jobs_that_will_not_start(slurm, tmp_path, capsys):
    slurm.answer("scontrol", PARTITIONS)
    refusal = "allocation failure: Invalid account"
    slurm.answer("sbatch", script=f"grep -q job-name=report && echo {refusal!r} >&2 || echo 'to start at noon' >&2")
    profile = tmp_path / "p.yaml"
    profile.write_text("stages: {all: {partition: gpu, hours: 1}, data: {partition: cpu, hours: 13}}")
    words = ["submit", "demo", "--cluster", "slurm", "--profile", profile, "--run", tmp_path / "run", "--dry-run"]
    assert main(list(map(str, words))) == 0
    lines = capsys.readouterr().out.splitlines()
    told = [line for line in lines if "will not start" in line or line.startswith("report: Slurm")]
    why = "it asks for 13 h, but partition cpu allows 12 h, so it will not start; set stages.data.hours to at most 12"
    assert sorted(told) == [f"prepare, tokenize: {why}", f"report: Slurm names no start ({refusal})"]
    assert not (tmp_path / "run").exists()


def test_a_dry_run_refuses_what_submit_refuses(slurm, tmp_path, monkeypatch, capsys):
    """With what the run has done and queued, if it is there."""
    profile, run_root = tmp_path / "p.yaml", tmp_path / "run"
    profile.write_text("{}")
    words = ["submit", str(STUDIES / "demo.yaml"), "--cluster", "slurm", "--profile", str(profile), "--run", str(run_root)]
    words += ["--stage", "tokenize", "--dry-run"]
    refusal = "tokenize needs prepare/prepare, which is not done, queued or selected"
    assert main(words) == 2 and refusal in capsys.readouterr().err and not run_root.exists()
    run = Run.create(run_root, load_study(STUDIES / "demo.yaml"))
    assert main(words) == 2 and refusal in capsys.readouterr().err
    submitted(run, "prepare", "7", ["prepare"])
    slurm.queue(("7", "0", "RUNNING", "None", "n1", 0))
    assert main(words) == 0
    write_text(run.slurm / "7_submission.sh", f"code={run_root}/code/0123456789ab")
    assert main([*words, "--set", "resources.workers=7"]) == 1
    assert "array 7 is queued or running with another version of the code" in capsys.readouterr().err
    slurm.queue()
    assert main(words) == 2 and refusal in capsys.readouterr().err
    keep_profile(run.profile, Profile(cluster="blue"))
    assert main(words) == 2 and "its jobs are on cluster blue, but the profile names" in capsys.readouterr().err
    run.profile.unlink()
    slurm.remove("sbatch")
    monkeypatch.setenv("PATH", str(slurm.folder))
    assert main(words) == 0  # nobody can say that it is not queued any more


def test_a_run_that_moves_to_another_data_folder_is_submitted_from_its_beginning(slurm, tmp_path, monkeypatch):
    """What its `fetch` and `prepare` made on this machine is gone then."""
    slurm.answer("sbatch", script='echo x >> "$0.n"; echo "Submitted batch job $((70 + $(wc -l < "$0.n")))"; exit 0')
    monkeypatch.delenv("CURRICULA_DATA", raising=False)
    profile, study = tmp_path / "p.yaml", small_study(tmp_path, world=None)
    profile.write_text("{}")
    run = Run.create(tmp_path / "run", load_study(study))
    for wanted in study_downloads(run.study, run.data_root):
        write_text(wanted.download.finished, "x")
    write_text(run.tokenizer / "tokenizer.json", "x")
    begun = {job.name: job.labels for job in plan_study(run.study).jobs if job.stage in ("fetch", "prepare")}
    for job, labels in begun.items():
        for label in labels:
            finish(run, job, label)
    (tmp_path / "data").mkdir()
    monkeypatch.setenv("CURRICULA_DATA", str(tmp_path / "data"))
    words = ["submit", str(study), "--cluster", "slurm", "--profile", str(profile), "--run", str(run.root)]
    assert main([*words, "--stage", "fetch,prepare"]) == 0
    assert {one.job: one.labels for one in submissions(run)} == begun


def test_a_long_submission_waits_for_nothing_that_is_done_meanwhile(slurm, tmp_path, monkeypatch):
    """Slurm forgets jobs soon after their end, and drops dependencies on them or refuses them."""
    monkeypatch.setattr("curricula.jobs.slurm.submit.LOOK_EVERY_S", 0)
    monkeypatch.setattr("curricula.jobs.completion.is_complete", lambda *_: True)
    run, _ = new_run(tmp_path / "run")
    plan = plan_study(run.study)
    mark = run.element("prepare", "prepare") / "done.json"
    mark.parent.mkdir(parents=True)
    words = f'echo \'{{"seconds": 1, "started": 1}}\' > "{mark}"; cp "${{@: -1}}" "{tmp_path}/last.sh"'
    slurm.answer("sbatch", "Submitted batch job 7\n", script=words)
    chosen = of_jobs(plan, "prepare", "tokenize")
    submit_plan(run, plan, chosen, Profile(), Standing(set(), {}), print)
    script = (tmp_path / "last.sh").read_text()
    assert "--job-name=tokenize" in script and "--dependency" not in script


def test_a_run_goes_to_the_profiles_cluster_and_stays_there(slurm, tmp_path, monkeypatch):
    monkeypatch.setattr(commands, "_cluster", None)
    run, jobs = new_run(tmp_path / "run")
    plan, profile = plan_study(run.study), Profile(cluster="blue")
    slurm.answer("sbatch", "Submitted batch job 7 on cluster blue\n")
    now = standing(run, plan, profile, print)
    submit_plan(run, plan, [PREPARE], profile, now, print)
    assert [one.job_id for one in submissions(run)] == ["7"]
    script = run.slurm / "7_submission.sh"
    assert "#SBATCH --clusters=blue\n" in script.read_text()
    asked = [call[0] for name in ("squeue", "scontrol") for call in slurm.calls(name)]
    assert asked and set(asked) == {"--clusters=blue"}
    resubmit = (run.root / "resubmit.sh").read_text()
    assert "squeue --clusters=blue --me" in resubmit and "scancel --clusters=blue" in resubmit
    with pytest.raises(UsageError, match="its jobs are on cluster blue, but the profile names the login node's own"):
        standing(run, plan, Profile(), print)


def test_numbers_that_slurm_gave_again_are_told_apart(slurm, tmp_path, monkeypatch):
    """A strange job of a recorded number does not hold an element up; one of this run without a record is what its script says,
    and only its script is asked for."""
    run, _ = new_run(tmp_path / "run")
    submitted(run, "prepare", "1", ["prepare"])
    submitted(run, "pretrain-trunk-100", "2", ["trunk"])
    submitted(run, "report", "3", ["report"])
    outputs = {"1": "/others/slurm/log", "2": "/others/log", "3": slurm.output, "4": slurm.output}
    slurm.answer("squeue", "".join(squeue_line(n, "0", "PENDING", output=out) + "\n" for n, out in outputs.items()))
    monkeypatch.setattr("tenacity.nap.time.sleep", lambda _: None)
    away = f'mkdir "{tmp_path}/asked" 2>/dev/null && {{ echo "Unable to contact slurm controller" >&2; exit 1; }}'
    ended = "job script retrieval failed: Invalid job id specified"
    slurm.answer("scontrol", script=away, error=ended, code=1)  # whose job 4 was, is asked until Slurm answers
    assert standing(run, plan_study(run.study), Profile(), print).live == {("report", "report"): (Task("3", 0),)}
    tokenize = contents_line("tokenize", ["web/0"])  # its record was prevented by a kill
    slurm.answer("scontrol", f"{tokenize}\n")
    said: list[str] = []
    now = standing(run, plan_study(run.study), Profile(), said.append)
    assert now.live == {("report", "report"): (Task("3", 0),), ("tokenize", "web/0"): (Task("4", 0),)}
    assert [one.job for one in submissions(run)][3:] == ["tokenize"] and len(said) == 1
    assert slurm.calls("scontrol") == [["write", "batch_script", "4", "-"]] * 3


def test_squeue_is_asked_for_no_more_of_the_logs_paths_than_tells_whose_they_are(slurm, tmp_path):
    """It fills all columns: whole paths of thousands of tasks are hundreds of megabytes."""
    run, _ = new_run(tmp_path / "rün")
    submitted(run, "prepare", "1", ["prepare"])
    output = f"{run.slurm.resolve()}/".encode()
    slurm.answer("squeue", squeue_line("1", "0", "PENDING", output=output.decode())[: -4096 + len(output)] + "\n")
    assert standing(run, plan_study(run.study), Profile(), print).live == {PREPARE: (Task("1", 0),)}
    run_status(run, plan_study(run.study))
    asked = [word for call in slurm.calls("squeue") for word in call if word.startswith("--Format=")]
    assert len(asked) == 2 and all(word.endswith(f",STDOUT:{len(output)}") for word in asked)


def test_what_a_colleague_submitted_is_not_submitted_again(slurm, tmp_path, monkeypatch):
    run, _ = new_run(tmp_path / "run")
    submitted(run, "prepare", "5", ["prepare"])
    submitted(run, "report", "6", ["report"])
    lines = [squeue_line("5", "0", "RUNNING", output=slurm.output), squeue_line("6", "0", "FAILED", output=slurm.output)]
    slurm.answer("squeue", script=f"[[ $* = *--me* ]] || printf '%s\\n' {shlex.join(lines)}")
    monkeypatch.setenv(TEAM, str(os.getgid()))
    assert standing(run, plan_study(run.study), Profile(), print).live == {PREPARE: (Task("5", 0),)}


def test_a_colleague_may_read_what_was_submitted(slurm, tmp_path, monkeypatch):
    """What changes a study looks there for the code that queued jobs run."""
    run, _ = new_run(tmp_path / "run")
    monkeypatch.setenv(TEAM, str(os.getgid()))
    slurm.answer("sbatch", "Submitted batch job 7\n")
    submit_plan(run, plan_study(run.study), [PREPARE], Profile(), Standing(set(), {}), print)
    assert (run.slurm / "7_submission.sh").stat().st_mode & 0o777 == 0o660


SHOW = {
    "Requeue=0": ("JobId=1 Requeue=0 Partition=gpu", "PreemptType = preempt/none", ""),
    "jobs of partition gpu are cancelled": (
        "JobId=1 Requeue=1 Partition=cpu,gpu",
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
        "scontrol", script=f'case "$*" in *job*) echo "{job}";; *config*) echo "{config}";; *gpu) echo "{partition}";; esac'
    )
    slurm.answer(
        "sbatch",
        script=f'cp "${{@: -1}}" "{tmp_path}/$(ls "{tmp_path}" | grep -c script).script"; '
        f'echo "Submitted batch job $(ls "{tmp_path}" | grep -c script)"; exit 0',
    )
    said: list[str] = []
    chosen = of_jobs(plan, "prepare", "tokenize")
    fail(run, "prepare", "prepare")
    made = submit_plan(run, plan, chosen, profile, Standing(set(), {}), said.append)
    waits = [re.findall("--dependency=(.*)", (tmp_path / f"{number}.script").read_text()) for number in range(len(made))]
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
    assert ["This job continues array 4," in text for text in texts] == [False] * 4 + [True] * 2
    listed = [(n, "RUNNING" if n == 4 else "PENDING") for n in range(4, 7)]
    slurm.answer("squeue", "".join(squeue_line(str(n), "0", state, output=slurm.output) + "\n" for n, state in listed))
    label = plan.by_name["tokenize"].labels[0]
    assert standing(run, plan, profile, said.append).live == {("tokenize", label): (Task("4", 0), Task("5", 0), Task("6", 0))}
    (status,) = [one for one in run_status(run, plan).elements if (one.job, one.label) == ("tokenize", label)]
    assert (status.state, status.task) == ("running", "4_0")


@pytest.mark.parametrize(
    ("mode", "site", "is_cancelled"),
    [
        ("cancel", "REQUEUE", True),
        ("requeue", "CANCEL", False),
        ("cluster", "CANCEL", True),
        ("cluster", "REQUEUE", False),
        ("", "GANG,CANCEL", True),
    ],
)
def test_a_qos_that_cancels_is_found_where_a_login_node_serves_several_clusters(slurm, monkeypatch, mode, site, is_cancelled):
    """A QOS without a mode of its own has the cluster's, which sacctmgr calls "cluster"."""
    monkeypatch.setattr(commands, "_cluster", "blue")
    config = f"PreemptMode = {site}\nPreemptType = preempt/qos"
    slurm.answer("scontrol", script=f'[[ $* = *job* ]] && echo "JobId=1 Requeue=1 QOS=low" || echo "{config}"')
    slurm.answer("sacctmgr", script=f'[[ $* = *--clusters* ]] && {{ echo "unrecognized option" >&2; exit 1; }}; echo "{mode}"')
    assert why_not_requeued("1") == ("jobs of QOS low are cancelled when others preempt them" if is_cancelled else "")


@pytest.mark.parametrize(
    ("number_was_given_before", "sbatch"), [(False, ""), (True, ""), (False, "kill -KILL $$")], ids=["new", "again", "killed"]
)
def test_a_job_that_sbatch_took_without_telling_its_number_is_looked_for_before_it_is_sent_again(
    slurm, tmp_path, monkeypatch, number_was_given_before, sbatch
):
    monkeypatch.setattr("tenacity.nap.time.sleep", lambda _: None)
    run, _ = new_run(tmp_path / "run")
    if number_was_given_before:
        submitted(run, "report", "7", ["report"])
    plan = plan_study(run.study)
    slurm.answer("sbatch", "site banner\n", script=sbatch)
    slurm.answer("scontrol", contents_line("prepare", ["prepare"]) + "\n")
    slurm.answer("squeue", squeue_line("7", "0", "PENDING", output=slurm.output) + "\n")
    (made,) = submit_plan(run, plan, [PREPARE], Profile(), Standing(set(), {}), lambda _: None)
    assert made.job_id == "7" and submissions(run)[-1] == made and len(slurm.calls("sbatch")) == 1
    assert standing(run, plan, Profile(), print).live == {PREPARE: (Task("7", 0),)}


def test_lines_that_a_site_has_sbatch_print_are_no_number(slurm, tmp_path):
    slurm.answer("sbatch", "This is job 3 of 40 for you\nSubmitted batch job 7 on cluster blue\nSee also job 5\n")
    assert sbatch(tmp_path / "jobs") == "7"


@pytest.mark.parametrize("stream", [1, 2])
def test_a_job_is_submitted_though_a_site_speaks_another_encoding(slurm, tmp_path, stream):
    slurm.answer("sbatch", "Submitted batch job 7\n", script=f"printf 'Universit\\351\\n' >&{stream}")
    assert sbatch(tmp_path / "jobs") == "7"


LOST = "sbatch: error: Batch job submission failed: Job dependency problem"


@pytest.mark.parametrize("times", [1, 9])
def test_a_job_that_the_controller_forgot_during_a_submission_is_submitted_again_once(slurm, tmp_path, capsys, times):
    profile, root, count = tmp_path / "p.yaml", tmp_path / "run", tmp_path / "count"
    profile.write_text("{}")
    count.write_text("")
    refusal = f'grep -q "job-name=tokenize" "${{@: -1}}" && [ "$n" -le {1 + times} ] && {{ echo "{LOST}" >&2; exit 1; }}'
    slurm.answer("sbatch", script=f'echo >>{count}; n=$(wc -l <{count}); {refusal}; echo "Submitted batch job $n"; exit 0')
    words = ["submit", str(STUDIES / "demo.yaml"), "--cluster", "slurm", "--profile", str(profile), "--run", str(root)]
    code, said = main([*words, "--stage", "prepare,tokenize"]), capsys.readouterr()
    assert "Slurm has forgotten jobs of this run" in said.out
    made = [(one.job, one.job_id) for one in submissions(Run(root))]
    if times == 1:
        assert code == 0 and made == [("prepare", "1"), ("prepare", "3"), ("tokenize", "4")]
        assert "--dependency=afterok:3\n" in (root / "slurm/4_submission.sh").read_text()
    else:
        assert code == 1 and made == [("prepare", "1"), ("prepare", "3")]
        assert "Slurm has forgotten a job that tokenize waits for; repeat the command" in said.err


def test_a_number_that_slurm_gives_twice_shows_that_it_has_forgotten_the_first_job(slurm, tmp_path):
    run, jobs = new_run(tmp_path / "run")
    submitted(run, "prepare", "7", ["prepare"])
    slurm.answer("sbatch", "Submitted batch job 7\n")
    plan, now = plan_study(run.study), Standing(set(), {PREPARE: (Task("7", 0),)})
    with pytest.raises(DependencyLost, match="Slurm has forgotten array 7 of this run"):
        submit_plan(run, plan, of_jobs(plan, "tokenize"), Profile(), now, print)
    slurm.queue(*(("7", str(place), "PENDING", "None", "", 0) for place in range(len(jobs["tokenize"].labels))))
    live = standing(run, plan_study(run.study), Profile(), print).live
    assert {job for job, _ in live} == {"tokenize"} and len(live) == len(jobs["tokenize"].labels)


def test_a_submission_counts_the_restarts_of_its_elements_anew(slurm, tmp_path, monkeypatch):
    monkeypatch.setenv(LIMIT, "1")
    run, _ = new_run(tmp_path / "run")
    plan = plan_study(run.study)
    work = Work(run, plan, *plan.find("prepare", "prepare"))
    check_restarts(work)
    (work.folder / "own-ends").write_text("1\n")
    with pytest.raises(GaveUp):
        check_restarts(work)
    slurm.answer("sbatch", "Submitted batch job 7\n")
    submit_plan(run, plan, [PREPARE], Profile(), Standing(set(), {}), print)
    check_restarts(work)


def test_a_refusal_names_the_nodes_that_the_job_avoids(slurm, tmp_path):
    run, _ = new_run(tmp_path / "run")
    record_bad_nodes(run, [BadNode(node="n3", reason="x", time=time.time())])
    slurm.answer("sbatch", script='echo "sbatch: error: Invalid account" >&2; exit 1')
    with pytest.raises(
        UserError, match=r"refused job prepare \(it avoids nodes n3, which the profile or bad-nodes.jsonl names\)"
    ):
        submit_plan(run, plan_study(run.study), [PREPARE], Profile(), Standing(set(), {}), lambda _: None)


@pytest.mark.parametrize(("refused", "is_avoided"), [("n3", False), ("no list", True), ("n", True)])
def test_a_job_avoids_nodes_that_failed_unless_slurm_could_start_it_only_there(slurm, tmp_path, refused, is_avoided):
    """Otherwise sbatch would refuse the job. During maintenance it could start nowhere, and these nodes are not to blame."""
    run, _ = new_run(tmp_path / "run")
    record_bad_nodes(run, [BadNode(node="n3", reason="x", time=time.time())])
    answer = f'grep -q -e "--exclude=.*{refused}" && echo "Required node not available" || echo "Job 2 to start at noon"'
    slurm.answer("sbatch", "Submitted batch job 1\n", script=f"[[ $* = *--test-only* ]] && {{ {answer}; exit; }} >&2")
    profile, told = Profile(stages=Stages(all=StageOptions(exclude="n[7-9]"))), []
    plan = plan_study(run.study, profile)
    submit_plan(run, plan, [PREPARE], profile, Standing(set(), {}), told.append)
    script = run.slurm / "1_submission.sh"
    excluded = re.search("^#SBATCH --exclude='(.*)'$", script.read_text(), re.M)[1]
    assert excluded == ("n[7-9],n3" if is_avoided else "n[7-9]")
    assert any("prepare: it does not avoid n3, which failed a check: Required" in line for line in told) is not is_avoided


def test_a_job_that_is_requeued_when_its_nodes_are_fit_again_avoids_those_of_the_profile(slurm, tmp_path):
    run, _ = new_run(tmp_path / "run")
    record_bad_nodes(run, [BadNode(node="n3", reason="x", time=time.time())])
    slurm.answer("sbatch", "Submitted batch job 1\n", script="[[ $* = *--test-only* ]] && echo Job 2 to start at noon")
    profile = Profile(stages=Stages(all=StageOptions(exclude="n7")))
    submit_plan(run, plan_study(run.study, profile), [PREPARE], profile, Standing(set(), {}), print)
    run.bad_nodes.unlink()
    slurm.answer("srun", script="exit 1")
    slurm.answer("squeue", script="echo RUNNING n3,n7")
    slurm.answer("scontrol", script='[ "$1" != show ] || tr , "\\n" <<<"$3"; exit 0')
    task = {**os.environ, "SLURM_ARRAY_JOB_ID": "1", "SLURM_ARRAY_TASK_ID": "0"}
    subprocess.run(["bash", run.slurm / "1_submission.sh"], env=task, capture_output=True)
    assert slurm.calls("scontrol")[-1][-1] == "ExcNodeList=n7"


@pytest.mark.parametrize("error", [ControllerAway, DependencyLost])
def test_an_array_whose_submission_was_interrupted_is_continued_by_the_next_command(slurm, tmp_path, monkeypatch, error):
    """The controller went away after sbatch, before it said whether it requeues the array, or has forgotten what that waits
    for."""
    monkeypatch.setattr(commands, "RESTART_PATIENCE_S", 0)
    run, _ = new_run(tmp_path / "run")
    plan, count, refuses = plan_study(run.study), tmp_path / "n", tmp_path / "refuses"
    refusal = f'[ -e "{refuses}" ] && [ -e "{count}" ] && {{ echo "{LOST}" >&2; exit 1; }}'
    slurm.answer("sbatch", script=f'{refusal}; echo x >> "{count}"; echo "Submitted batch job $(wc -l < "{count}")"; exit 0')
    if error is ControllerAway:
        slurm.answer("scontrol", script=f'[[ $* = *job* ]] && {{ echo "{AWAY}" >&2; exit 1; }}; exit 0')
    else:
        refuses.touch()
        slurm.answer("scontrol", "JobId=1 Requeue=0\n")
    profile, said = Profile(continuations=2), []
    with pytest.raises(error):
        submit_plan(run, plan, [PREPARE], profile, Standing(set(), {}), said.append)
    refuses.unlink(missing_ok=True)
    slurm.answer("scontrol", "JobId=1 Requeue=0\n")
    now = Standing(set(), {PREPARE: (Task("1", 0),)})
    made = submit_plan(run, plan, of_jobs(plan, "tokenize"), profile, now, said.append)
    assert [(one.job, one.job_id) for one in made] == [
        ("prepare", "2"), ("prepare", "3"), ("tokenize", "4"), ("tokenize", "5"), ("tokenize", "6"),
    ]  # fmt: skip
    assert (run.slurm / "1.continued").read_text() == "2\n3\n"
    now = Standing(set(), {PREPARE: (Task("1", 0), Task("2", 0), Task("3", 0))})
    (one,) = {one.job for one in submit_plan(run, plan, of_jobs(plan, "tokenize"), profile, now, said.append)}
    assert one == "tokenize"  # what was asked once is not asked again


def test_an_array_is_continued_as_often_as_its_hours_need(slurm, tmp_path):
    run, _ = new_run(tmp_path / "run")
    plan = plan_study(run.study, profile := Profile(stages=Stages(data=StageOptions(hours=0.25))))
    slurm.answer("scontrol", "JobId=1 Requeue=0\n")
    slurm.answer("sbatch", "Submitted batch job 1\n")
    request = plan.by_name["prepare"].request
    made = submit_plan(run, plan, [PREPARE], profile, Standing(set(), {}), lambda _: None)
    assert len(made) == 1 + math.ceil(request.total_hours * 60 / request.minutes) > 2
    (tmp_path / "count").write_text("0")
    limit = LIMITED.format(count=tmp_path / "count", limit=2, reason="AssocMaxSubmitJobLimit", policy=POLICY)
    slurm.answer("sbatch", script=limit)
    said: list[str] = []
    with pytest.raises(QueueFull, match="fewer arrays than needed continue prepare"):
        submit_plan(run, plan, [PREPARE], profile, Standing(set(), {}), said.append)
    assert re.search(f"only 1 of the {len(made) - 1} arrays that continue prepare are submitted.*`curricula retry", said[-1])
    (tmp_path / "count").write_text("0")
    lost = LIMITED.format(count=tmp_path / "count", limit=2, reason="gone", policy="Job dependency problem")
    slurm.answer("sbatch", script=lost)
    with pytest.raises(QueueFull, match="fewer arrays than needed continue prepare"):
        submit_plan(run, plan, [PREPARE], profile, Standing(set(), {}), said.append)
    assert said[-1].startswith(f"Slurm has forgotten a job that they wait for; only 1 of the {len(made) - 1} arrays that")
