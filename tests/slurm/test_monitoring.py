"""Status, comments, cancel, retry, resubmit.sh and the preflight on a real Slurm."""

import shutil
import subprocess
from pathlib import Path

import pytest
import slurm_studies as studies
import yaml

from curricula.durable import read_jsonl, write_text
from curricula.jobs.element import run_element
from curricula.jobs.graph import plan_study
from curricula.jobs.monitor.state import ElementStatus, run_status
from curricula.jobs.run import Run
from curricula.jobs.study import load_study

STEPS = 24
TRUNK = "pretrain-trunk-12"


@pytest.fixture(scope="module")
def place(lab, tmp_path_factory):
    """A study of small steps, and a run folder that holds its data."""
    folder = tmp_path_factory.mktemp("monitoring")
    study = studies.write_study(folder, steps=STEPS, batch=8)
    return study, studies.prepared(lab, folder, study)


def copied(place, name: str) -> tuple[Path, Path]:
    study, prepared = place
    run = prepared.parent / name
    shutil.copytree(prepared, run)
    return study, run


@pytest.fixture(autouse=True)
def in_the_lab(lab, monkeypatch):
    """This process asks the lab's Slurm too: a command for every look would take most of the test's time."""
    for name in ("SLURM_CONF", "PATH"):
        monkeypatch.setenv(name, lab.environment[name])


def states(run: Path) -> dict[str, ElementStatus]:
    opened = Run.open(run)
    status = run_status(opened, plan_study(opened.study))
    assert status.problem == ""
    return {f"{item.job}/{item.label}": item for item in status.elements}


def until(run: Path, name: str, *wanted: str) -> ElementStatus:
    """The element's status once it is in one of the `wanted` states."""
    found: dict[str, ElementStatus] = {}

    def is_reached() -> bool:
        found.update(states(run))
        return found[name].state in wanted

    studies.wait_until(is_reached, f"{name} to be {wanted}", 300, lambda: studies.logs(run), every_s=1.0)
    return found[name]


def begun(folder: Path) -> tuple[Path, Path, Run]:
    """A study of two sources, a profile, and a run folder without data."""
    study = studies.write_study(folder)
    raw = yaml.safe_load(study.read_text())
    raw["sources"] = {name: raw["sources"][name] for name in ("web", "unsafe-tagged")}
    raw["curriculum"].update(safe={"web": 1}, interventions={"full": {"web": 1, "unsafe-tagged": 1}})
    study.write_text(yaml.safe_dump(raw))
    profile = studies.write_profile(folder, stages={"pretraining": {"nodes": 1, "gpus_per_node": 1}})
    return study, profile, Run.create(folder / "run", load_study(study))


def test_a_failure_is_shown_retried_and_what_waits_for_it_too(lab, tmp_path):
    """A damaged world makes the preparation fail and its dependants be cancelled; mended, one retry does all."""
    study, profile, made = begun(tmp_path)
    run, world = made.root, made.world / "world.json"
    write_text(world, "{}")
    elements = [f"{job.name}/{e.label}" for job in plan_study(made.study).jobs_up_to(["tokenize"]) for e in job.elements]
    studies.submit(lab, study, profile, run, "--stage", "prepare,tokenize")
    failed = until(run, "prepare/prepare", "failed")
    assert "not a world of this version" in failed.error and failed.task
    until(run, elements[-1], "cancelled")
    shown = studies.curricula(lab, "status", run)
    assert "1 failed" in shown and f"{len(elements) - 1} cancelled" in shown and "curricula retry" in shown
    assert "first error" in studies.curricula(lab, "logs", run, "prepare")

    world.unlink()
    assert studies.curricula(lab, "retry", run, "--dry-run").split()[: len(elements)] == elements
    said = studies.curricula(lab, "retry", run)
    assert f"{len(elements)} elements in 2 arrays" in said
    for element in elements:
        until(run, element, "done")
    assert "nothing has failed" in studies.curricula(lab, "retry", run)
    assert len(list(run.glob("data/shards/*/00000.bin"))) == 2


def test_cancel_takes_exactly_what_it_names_and_resubmit_needs_only_bash(spare_lab, tmp_path, monkeypatch):
    """Not on the lab of all tests, for a job that holds all nodes would keep their jobs waiting."""
    monkeypatch.setenv("SLURM_CONF", spare_lab.environment["SLURM_CONF"])
    study, profile, made = begun(tmp_path)
    run = made.root
    run_element(run, "prepare", "prepare")
    words = "--parsable --account=research --partition=high --nodes=4 --exclusive --time=10 --output=/dev/null"
    hold = spare_lab.run("sbatch", *words.split(), "--wrap=sleep 600").split()[0]
    studies.submit(spare_lab, study, profile, run, "--stage", "tokenize,pretrain")
    reasons = ("Priority", "Resources", "Dependency", "Nodes required for job are")  # Slurm gives one after a moment
    studies.wait_until(
        lambda: all(states(run)[name].reason.startswith(reasons) for name in ("tokenize/web/00000", f"{TRUNK}/trunk")),
        "both jobs to say what they wait for",
        120,
        every_s=1.0,
    )
    assert "cancelled 1 pending;" in studies.curricula(spare_lab, "cancel", run, "--job", TRUNK, "--yes")
    assert until(run, f"{TRUNK}/trunk", "cancelled").state == "cancelled"
    assert states(run)["tokenize/web/00000"].state == "pending"
    again = subprocess.run([run / "resubmit.sh"], env=spare_lab.environment, capture_output=True, text=True)
    assert again.returncode == 1 and "still in the queue" in again.stderr
    studies.curricula(spare_lab, "cancel", run, "--yes")
    spare_lab.run("scancel", hold)
    until(run, "tokenize/web/00000", "cancelled")

    bare = {"SLURM_CONF": spare_lab.environment["SLURM_CONF"], "PATH": "/usr/bin:/bin:/usr/sbin"}
    again = subprocess.run([run / "resubmit.sh", "--comment=again"], env=bare, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    jobs = [line.split(":")[0] for line in again.stdout.splitlines()]
    assert jobs[:2] == ["tokenize", TRUNK]
    assert "prepare" not in jobs  # it is done
    until(run, "tokenize/web/00000", "running", "done")
    studies.curricula(spare_lab, "cancel", run, "--yes")


@pytest.mark.slow
def test_a_node_that_fails_the_preflight_is_named_and_avoided(lab, place):
    study, run = copied(place, "preflight")
    tools = run.parent / "tools"
    tools.mkdir()
    good = "0, 81559, 4, 0, 31, Not Active, Not Active"
    sick = tools / "sick"  # the node that is first to ask
    (tools / "nvidia-smi").write_text(
        f'#!/bin/bash\nln -s $SLURMD_NODENAME {sick} 2>&-\n[ "$(readlink {sick})" = $SLURMD_NODENAME ] || echo "{good}"\n'
    )
    (tools / "nvidia-smi").chmod(0o755)
    profile = studies.write_profile(
        run.parent,
        stages={"pretraining": {"nodes": 2, "gpus_per_node": 1}},
        setup=[f"export PATH={tools}:$PATH"],
        lead_time_s=25,
    )
    studies.submit(lab, study, profile, run, "--job", TRUNK)
    task = studies.task_of(run, TRUNK, "trunk")
    studies.wait_until(lambda: (run / "slurm" / "bad-nodes.jsonl").exists(), "a bad node", 300, lambda: studies.logs(run))
    (bad,) = read_jsonl(run / "slurm" / "bad-nodes.jsonl")
    assert (bad["node"], bad["reason"], bad["task"]) == (str(sick.readlink()), "0 of 1 GPUs answer", task)
    studies.wait_until(
        lambda: studies.show(lab, task).get("ExcNodeList") == bad["node"], "avoiding it", 120, lambda: studies.logs(run)
    )
    until(run, f"{TRUNK}/trunk", "done")
    assert "preflight: 2 nodes, 2 processes, all-reduce" in studies.logs(run)
