"""Submitting to a real Slurm: dependencies, interrupted submissions, a controller that is away, hostile names."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import psutil
import pytest
import slurm_studies as studies
import yaml
from examples import examples
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from small_studies import without_tuning, write_study

from curricula.jobs.graph import plan_study
from curricula.jobs.run import Run
from curricula.jobs.slurm.script import short_name
from curricula.jobs.slurm.submissions import submissions
from curricula.jobs.study import load_study

HELD = {"options": {"hold": True}}  # accepted and never started: what is submitted is all that matters


def held_in(folder: Path) -> tuple[Path, Path, Path]:
    """A study of few arrays, a profile whose jobs are held, and a run folder to come."""
    raw = yaml.safe_load(studies.write_study(folder).read_text())
    return write_study(folder, without_tuning(raw)), studies.write_profile(folder, stages={"all": HELD}), folder / "run"


@pytest.fixture
def place(lab, tmp_path):
    """`held_in` a folder; the queue is empty again afterwards."""
    yield held_in(tmp_path)
    ids = [one.job_id for one in submissions(Run(tmp_path / "run"))]
    if ids:
        lab.run("scancel", *ids)


def queue(lab, run: Path) -> dict[str, list[str]]:
    """Of each array of this run in Slurm's queue: its job name and what it waits for."""
    found = {}
    for line in lab.run("squeue", "--noheader", "--format=%F|%j|%E|%o").splitlines():
        job_id, name, waits, script = line.split("|", 3)
        if str(run) in script:
            found.setdefault(job_id, [name, waits])
    return found


def elements(jobs) -> int:
    return sum(len(job.elements) for job in jobs)


def test_the_whole_graph_is_submitted_with_its_dependencies_and_only_once(lab, place):
    _, profile, run = place
    study = studies.write_study(run.parent)  # with every kind of job
    said = studies.submit(lab, study, profile, run)
    jobs = plan_study(load_study(study)).jobs
    made = submissions(Run(run))
    assert [one.job for one in made] == [job.name for job in jobs] and f"{len(jobs)} arrays" in said
    numbers = {one.job: one.job_id for one in made}
    have = queue(lab, run)
    assert {job_id: name for job_id, (name, _) in have.items()} == {
        numbers[job.name]: f"{short_name(job.name)}@demo" for job in jobs
    }
    for job in jobs:
        _, waits = have[numbers[job.name]]
        got = set(re.findall(r"(after\w+):(\d+)", waits))
        assert got == {(edge.kind, numbers[edge.job]) for edge in job.needs}, job.name
    assert f"nothing to submit; {elements(jobs)} elements queued" in studies.submit(lab, study, profile, run)
    assert submissions(Run(run)) == made


def test_a_submission_that_is_killed_anywhere_is_completed_by_the_same_command(lab, place):
    study, profile, run = place
    words = [
        sys.executable,
        "-m",
        "curricula.jobs.cli.main",
        "submit",
        study,
        "--cluster",
        "slurm",
        "--profile",
        profile,
        "--run",
        run,
        "--yes",
    ]
    jobs = [job.name for job in plan_study(load_study(study)).jobs]
    for kill_after in (2, 6):  # arrays recorded, from there a random moment: in sbatch, before or after the record
        process = subprocess.Popen(list(map(str, words)), env=lab.environment, cwd=studies.ROOT, stdout=subprocess.DEVNULL)
        studies.wait_until(lambda n=kill_after, p=process: len(submissions(Run(run))) >= n or p.poll() is not None, "arrays")
        if process.poll() is None:
            process.send_signal(signal.SIGSTOP)
            under_way = psutil.Process(process.pid).children(recursive=True)
            process.kill()
            psutil.wait_procs(under_way, 300)  # a job that such an sbatch has sent appears in the queue only then
        process.wait()
    studies.submit(lab, study, profile, run)
    recorded = submissions(Run(run))
    assert sorted(one.job for one in recorded) == sorted(jobs)
    assert {one.job_id for one in recorded} == set(queue(lab, run))


def test_a_job_that_was_taken_but_not_recorded_is_found_by_its_script(lab, place):
    study, profile, run = place
    studies.submit(lab, study, profile, run, "--stage", "prepare")
    (made,) = submissions(Run(run))
    (run / "slurm" / "submissions.jsonl").unlink()  # as it is just after sbatch returned
    again = lab.run(run / "resubmit.sh", check=False)
    assert f"still in the queue: array {made.job_id};" in again
    said = studies.submit(lab, study, profile, run, "--stage", "prepare")
    assert "interrupted command; recorded" in said and "nothing to submit" in said
    assert [one.job_id for one in submissions(Run(run))] == [made.job_id] == list(queue(lab, run))


def test_plain_scripts_that_were_killed_between_sbatch_and_record_are_gone_on_with(lab, place):
    study, profile, run = place
    out = run.parent / "scripts"
    studies.curricula(lab, "render", study, out, "--profile", profile, "--run", run)
    lab.run(out / "submit_all.sh")
    made = submissions(Run(run))
    record = run / "slurm" / "submissions.jsonl"
    lines = record.read_text().splitlines(keepends=True)
    record.write_text("")
    again = lab.run(out / "submit_all.sh", check=False)
    assert "in the queue already" in again and f"scancel {made[0].job_id} " in again
    record.write_text("".join(lines[:-1]))
    assert "interrupted command; recorded" in studies.submit(lab, study, profile, run)
    assert [(one.job, one.job_id) for one in submissions(Run(run))] == [(one.job, one.job_id) for one in made]
    assert set(queue(lab, out)) == {one.job_id for one in made}
    other = run.parent / "other"  # rendered to the same place: what was submitted from there before is not its own
    studies.curricula(lab, "render", study, out, "--profile", profile, "--run", other)
    assert "interrupted" not in studies.submit(lab, study, profile, other, "--stage", "prepare")
    (one,) = submissions(Run(other))
    lab.run("scancel", one.job_id)
    assert one.job_id not in {one.job_id for one in made}


def test_a_controller_that_restarts_during_a_submission_is_waited_for(spare_lab, tmp_path):
    study, profile, run = held_in(tmp_path)
    os.kill(spare_lab.pid("slurmctld"), signal.SIGKILL)
    back = threading.Timer(4, spare_lab.up)
    back.start()
    try:
        said = studies.submit(spare_lab, study, profile, run)
    finally:
        back.join()
    jobs = plan_study(load_study(study)).jobs
    assert f"{len(jobs)} arrays" in said
    assert len(queue(spare_lab, run)) == len(submissions(Run(run))) == len(jobs)


def test_accounting_that_is_away_holds_nothing_up(spare_lab, tmp_path):
    study, profile, run = held_in(tmp_path)
    os.kill(spare_lab.pid("slurmdbd"), signal.SIGKILL)
    studies.submit(spare_lab, study, profile, run)
    assert f"{elements(plan_study(load_study(study)).jobs)} pending" in studies.curricula(spare_lab, "status", run)


def test_arrays_are_cut_at_the_longest_that_slurm_takes_and_keep_step(lab, place):
    study, _, run = place
    profile = studies.write_profile(study.parent, stages={"all": HELD}, max_array_size=4)
    studies.submit(lab, study, profile, run, "--stage", "tokenize,prepare")
    parts = [one for one in submissions(Run(run)) if one.job == "tokenize"]
    assert [len(one.labels) for one in parts] == [4, 4, 4, 2]
    (job,) = [job for job in plan_study(load_study(study)).jobs if job.name == "tokenize"]
    assert [label for one in parts for label in one.labels] == [element.label for element in job.elements]


def test_a_job_that_gets_nowhere_gives_up_and_what_waits_for_it_is_cancelled(lab, place):
    study, _, run = place
    profile = studies.write_profile(study.parent, stages={"data": HELD}, restarts_without_progress=1)
    studies.submit(lab, study, profile, run, "--stage", "prepare,tokenize")
    (run / "world").write_text("in the way of the data")  # an error that no start mends, though nobody foresaw it
    numbers = {one.job: one.job_id for one in submissions(Run(run))}
    lab.run("scontrol", "release", numbers["prepare"])
    studies.wait_until(lambda: not queue(lab, run), "both jobs to end", 300, lambda: studies.logs(run))
    ended = {
        name: lab.run("sacct", "-X", "--noheader", "--parsable2", "--format=State,ExitCode", f"--jobs={number}").split()
        for name, number in numbers.items()
    }
    assert ended == {"prepare": ["FAILED|93:0"], "tokenize": ["CANCELLED|0:0"]}
    why = json.loads((run / "jobs/prepare/prepare/failed.json").read_text())["error"]
    # More often where another test's job of a higher partition took its node meanwhile.
    assert re.search(r"restarted [1-9] times without progress", why) and "FileExistsError" in why


def test_work_that_cannot_even_begin_is_not_put_back_for_ever(lab, place):
    study, _, run = place
    profile = studies.write_profile(study.parent, python="/no/such/python", restarts_without_progress=1)
    studies.submit(lab, study, profile, run, "--stage", "prepare")
    mark = run / "jobs/prepare/prepare/failed.json"
    studies.wait_until(mark.exists, "the job to give up", 300, lambda: studies.logs(run))
    assert "never began" in json.loads(mark.read_text())["error"]
    studies.wait_until(lambda: not queue(lab, run), "the job to end")


def test_a_refused_job_is_said_in_slurms_words_and_the_next_command_goes_on(lab, place):
    study, profile, run = place
    wrong = studies.write_profile(study.parent, stages={"all": HELD, "pretraining": {"partition": "no-such"}})
    said = studies.submit(lab, study, wrong, run, check=False)
    assert "sbatch refused job pretrain-trunk-12" in said and "invalid partition" in said and "Traceback" not in said
    assert [one.job for one in submissions(Run(run))] == ["prepare", "tokenize"]
    studies.submit(lab, study, studies.write_profile(study.parent, stages={"all": HELD}), run)
    assert len(queue(lab, run)) == len(submissions(Run(run))) == len(plan_study(load_study(study)).jobs)


def test_a_dry_run_shows_every_script_and_slurms_answer_and_writes_nothing(lab, place):
    study, profile, run = place
    said = studies.submit(lab, study, profile, run, "--dry-run")
    arrays = len(plan_study(load_study(study)).jobs)
    assert said.count("#!/bin/bash") == arrays == len(re.findall(r"Job \d+ to start at", said))
    assert "afterok:prepare" in said and f"{arrays} sbatch calls" in said
    assert not run.exists() and not queue(lab, run)


# Words that a shell, an #SBATCH line or Slurm's file name patterns could take for their own.
HOSTILE = st.lists(
    st.sampled_from([" ", "'", '"', ";", "$(touch PWNED)", "`touch PWNED`", "\n", "&", "|", "*", "~", "!", "é", "#", "-x",
                     "--wrap=touch PWNED", "${HOME}", "(", "<", ">", "%j", "\\", "a", "B"]),
    min_size=1, max_size=6,
).map("".join)  # fmt: skip


@settings(examples(4), suppress_health_check=list(HealthCheck))
@example(folder="a b'$(touch PWNED)", variable='"`touch PWNED`; é')
@given(folder=HOSTILE, variable=HOSTILE)
def test_no_name_breaks_or_is_executed(lab, place, folder, variable):
    """Real sbatch, real bash: what runs is the element, with the words exactly as they were named, or nothing at all."""
    study, _, run = place
    base = Path(tempfile.mkdtemp(prefix="named-", dir=run.parent))  # a late job of another example must not meet this one
    target = base / folder.replace("/", "")
    stand_in = base / "python"  # instead of Python: tells what it was given
    stand_in.write_text('#!/bin/bash\nprintf "%s\\0" "$@" "$NAMED" >' + str(base / "given.aside") +
                        f"\nmv {base}/given.aside {base}/given\n")  # fmt: skip
    stand_in.chmod(0o755)
    profile = studies.write_profile(base, environment={"NAMED": variable, "MASTER_ADDR": "127.0.0.1"}, python=str(stand_in))
    said = studies.submit(lab, study, profile, target, "--stage", "prepare", check=False)
    if not list(base.rglob("submissions.jsonl")):  # refused in one sentence, before anything was made
        assert said.startswith("curricula: ") and "Traceback" not in said, said
        assert re.search(r"[%\\\n]", folder + variable), said  # all other words get through
        assert not target.exists() or not (target / "slurm" / "submissions.jsonl").exists()
        return
    studies.wait_until((base / "given").exists, "the element", 300, lambda: studies.logs(target))
    words = (base / "given").read_bytes().decode().split("\0")[:-1]
    assert words[1:] == [str(target), "prepare", "prepare", variable]
    assert not [path for path in run.parent.rglob("*") if path.name.startswith("PWNED")]
    script = next(target.glob("slurm/*_submission.sh"))
    assert subprocess.run(["bash", "-n", script]).returncode == 0
