"""A whole study through Slurm, preempted, losing a node, meeting a time limit on the way, against the same on this machine."""

import itertools
import subprocess
import sys
from pathlib import Path

import pytest
import slurm_studies as studies
from paths import LAB_SCRIPTS

from curricula.jobs.graph import plan_study
from curricula.jobs.run import Run
from curricula.jobs.slurm.submissions import latest_tasks, submissions
from curricula.jobs.study import load_study

pytestmark = pytest.mark.slow


def running(lab, run: Path, stage: str) -> list[tuple[str, str]]:
    """Array tasks of the run's jobs of a stage that run now, with their first node."""
    tasks = latest_tasks(submissions(Run(run)))
    of_stage = {job.name for job in plan_study(Run(run).study).jobs if stage in job.stage_names}
    ours = {str(task) for (job, _), task in tasks.items() if job in of_stage}
    lines = lab.run("squeue", "--noheader", "--array", "--states=RUNNING", "--format=%F_%K %B").splitlines()
    return [(task, node) for task, node in map(str.split, lines) if task in ours]


def disturb(lab, run: Path) -> list[str]:
    """Preempt pretraining, lose a node under finetuning; returns the tasks that were hit."""
    hit = []
    for stage in ("pretrain", "tune"):
        found: list[tuple[str, str]] = []

        def is_running(stage=stage, found=found):
            found[:] = running(lab, run, stage)
            return found

        studies.wait_until(is_running, f"an element of {stage}", 1500, lambda: studies.logs(run))
        task, node = found[0]
        if stage == "pretrain":
            while not lab.preempt(task):
                studies.wait_until(is_running, f"an element of {stage}", 1500, lambda: studies.logs(run))
                task, node = found[0]
        else:
            lab.run(LAB_SCRIPTS / "kill-node", node)
            lab.up()
        hit.append(task)
        studies.wait_until(lambda: int(studies.show(lab, hit[-1])["Restarts"]), f"the restart of {task}")
    return hit


def tables(run: Path) -> dict[str, str]:
    """What the study has found: the report's tables, every generation with its verdict, every step's loss."""
    found = {str(path.relative_to(run)): path.read_text() for path in sorted(run.glob("report/tables/*"))}
    found |= {str(path.relative_to(run)): path.read_text() for path in sorted(run.glob("eval/*/*/*.jsonl"))}
    for line in sorted(run.glob("pretrain/*")):
        found[f"pretrain/{line.name}"] = "\n".join(studies.metrics(run, line.name))
    return found


@pytest.mark.parametrize("size", ["small", "demo"])
def test_a_study_through_a_rough_slurm_ends_with_the_same_tables_as_on_this_machine(lab, tmp_path, size):
    study = studies.write_study(tmp_path, steps=120) if size == "small" else studies.demo_file(tmp_path)
    here, there = tmp_path / "local", tmp_path / "slurm"
    # What pretrains for longer meets its time limit too. The demo's trainings run side by side, so their starts are slow.
    short = {"hours": (1 if size == "small" else 2) / 60}
    studies.submit(lab, study, studies.write_profile(tmp_path, stages={"pretraining": short}), there)
    numbers = {key: str(task) for key, task in latest_tasks(submissions(Run(there))).items()}
    hit = disturb(lab, there)
    jobs = plan_study(load_study(study)).jobs
    keys = list(itertools.chain.from_iterable(((job.name, e.label) for e in job.elements) for job in jobs))
    studies.wait_until(
        lambda: all(studies.is_done(there, *key) for key in keys), "the study", 3000, lambda: studies.logs(there)
    )
    assert {key: str(task) for key, task in latest_tasks(submissions(Run(there))).items()} == numbers
    words = [sys.executable, "-m", "curricula.jobs.cli.main", "submit", study, "--cluster", "local", "--run", here]
    subprocess.run(list(map(str, words)), env=lab.environment, cwd=studies.ROOT, check=True, stdout=subprocess.DEVNULL)
    one, other = tables(here), tables(there)
    assert one.keys() == other.keys() and len(one) > 20
    assert [name for name in one if one[name] != other[name]] == []
    print(f"{size}: {len(one)} files equal; hit were {', '.join(hit)}")
