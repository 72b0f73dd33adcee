"""From chosen elements to arrays and Slurm's dependencies, without a Slurm."""

import re

import pytest
from run_folders import new_run
from small_studies import demo

from curricula.errors import UsageError
from curricula.jobs.graph import plan_study
from curricula.jobs.plan import Edge, Element, Job, Plan
from curricula.jobs.selection import check_needs
from curricula.jobs.slurm.commands import Task
from curricula.jobs.slurm.profile import Profile
from curricula.jobs.slurm.script import render
from curricula.jobs.slurm.submit import arrays_of, dependency, preview
from curricula.jobs.study import parse_study


def job(name: str, count: int, *needs: Edge, stage: str = "export") -> Job:
    return Job(name, stage, tuple(Element(f"e{number}") for number in range(count)), needs)


PREPARE, TRAIN = job("prepare", 1), job("train", 4, Edge("prepare"))
EXPORT = job("export", 4, Edge("train", "aftercorr"), Edge("prepare"))
REPORT = job("report", 1, Edge("export", "afterany"))
PLAN = Plan(parse_study(demo(), "demo"), jobs=(PREPARE, TRAIN, EXPORT, REPORT))


def submit(chosen=None, live=None, longest=100):
    """What `submit_plan` does, with numbers 100, 101, ... from Slurm: (job, labels, dependency) of each array."""
    tasks = dict(live or {})
    sizes = {task.job_id: 4 for task in tasks.values()}
    made = []
    for one in PLAN.jobs:
        labels = one.labels if chosen is None else chosen.get(one.name, ())
        for array in arrays_of(PLAN, one, labels, tasks, longest):
            waits = dependency(PLAN, array, tasks, sizes)
            number = str(100 + len(made))
            made.append((one.name, array.labels, waits))
            sizes[number] = len(array.labels)
            tasks.update({(one.name, label): Task(number, place) for place, label in enumerate(array.labels)})
    return made


def test_the_plan_as_a_whole():
    assert submit() == [
        ("prepare", ("e0",), ""),
        ("train", ("e0", "e1", "e2", "e3"), "afterok:100"),
        ("export", ("e0", "e1", "e2", "e3"), "aftercorr:101,afterok:100"),
        ("report", ("e0",), "afterany:102"),
    ]


def test_arrays_that_are_cut_keep_step():
    assert submit(longest=3)[1:] == [
        ("train", ("e0", "e1", "e2"), "afterok:100"),
        ("train", ("e3",), "afterok:100"),
        ("export", ("e0", "e1", "e2"), "aftercorr:101,afterok:100"),
        ("export", ("e3",), "aftercorr:102,afterok:100"),
        ("report", ("e0",), "afterany:103:104"),
    ]


def test_plain_scripts_of_arrays_that_are_cut_keep_step_too(tmp_path):
    run, _ = new_run(tmp_path / "run")
    plan = Plan(run.study, plan_study(run.study).jobs_up_to(["export-base-20"]))
    *scripts, submission = render(run, plan, Profile(max_array_size=1), tmp_path / "out")
    numbers = {path.stem.partition("-")[2]: path.stem.partition("-")[0] for path in scripts}
    for piece in ("part0", "part1"):
        waits = rf"after aftercorr \"\$job_{numbers[f'pretrain-20-{piece}']}\"\s+submit export-base-20 "
        assert re.search(rf"{waits}\S+-export-base-20-{piece}\.sbatch", submission.read_text())


def test_elements_whose_needs_are_done_wait_for_nothing():
    assert submit({"export": ("e1", "e2")}) == [("export", ("e1", "e2"), "")]


def test_elements_that_are_made_again_are_waited_for_by_their_own_alone():
    """As after a failure of e2: train/e2 and export/e0 to e2 are to be made, train/e0 and e1 are done."""
    made = submit({"train": ("e2",), "export": ("e0", "e1", "e2"), "report": ("e0",)})
    assert made == [
        ("train", ("e2",), ""),
        ("export", ("e0", "e1"), ""),
        ("export", ("e2",), "aftercorr:100"),
        ("report", ("e0",), "afterany:101:102"),
    ]


def test_elements_out_of_step_with_a_queued_array_wait_for_its_tasks():
    live = {("train", f"e{number}"): Task("7", number) for number in range(4)}
    assert submit({"export": ("e2", "e3")}, live) == [("export", ("e2", "e3"), "afterok:7_2:7_3")]


def test_a_preview_names_the_arrays_that_are_waited_for(tmp_path):
    def waits(chosen):
        return {one.job: one.waits for one in preview(PLAN, chosen, Profile(max_array_size=3), tmp_path / "run")}

    assert waits(list(PLAN.needs)) == {
        "prepare": "",
        "train/0": "afterok:prepare",
        "train/1": "afterok:prepare",
        "export/0": "aftercorr:train/0,afterok:prepare",
        "export/1": "aftercorr:train/1,afterok:prepare",
        "report": "afterany:export/0:export/1",
    }
    assert waits([("export", "e1"), ("export", "e2")]) == {"export": ""} and not list(tmp_path.iterdir())


def test_an_unmet_need_is_refused_before_anything_is_submitted():
    with pytest.raises(UsageError, match="export needs train/e0, which is not done, queued or selected.*--from train"):
        check_needs(PLAN, [("export", "e0")], done=set(), live=set())
    check_needs(PLAN, [("export", "e0")], done={("train", "e0"), ("prepare", "e0")}, live=set())
    check_needs(PLAN, [("export", "e0")], done={("prepare", "e0")}, live={("train", "e0")})
    check_needs(PLAN, [("report", "e0")], done=set(), live=set())  # afterany needs nothing
