"""Status, comments, cancel, retry, resubmit.sh and the preflight on a real Slurm."""

import shutil
import subprocess
from pathlib import Path

import pytest
import slurm_studies as studies

from curricula.durable import read_jsonl
from curricula.jobs.graph import plan_study
from curricula.jobs.monitor.state import ElementStatus, run_status
from curricula.jobs.run import Run

STEPS = 24
TRUNK, LAST = "pretrain-trunk-12", "pretrain-trunk-24"


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


def test_a_failure_is_shown_retried_and_what_waits_for_it_too(lab, place):
    """A broken record makes the trunk fail and its dependants be cancelled; mended, one retry brings all to an end."""
    study, run = copied(place, "retried")
    profile = studies.write_profile(run.parent, stages={"pretraining": {"nodes": 1, "gpus_per_node": 1}})
    record = run / "pretrain" / "trunk" / "metrics.jsonl"
    record.parent.mkdir(parents=True)
    record.write_text("no JSON\n")
    studies.submit(lab, study, profile, run, "--stage", "pretrain", "--arm", "safe-100")
    failed = until(run, f"{TRUNK}/trunk", "failed")
    assert "metrics.jsonl: line 1 is not JSON" in failed.error and failed.task
    until(run, f"{LAST}/trunk", "cancelled")
    shown = studies.curricula(lab, "status", run)
    assert "1 failed" in shown and "1 cancelled" in shown and "curricula retry" in shown
    assert "first error" in studies.curricula(lab, "logs", run, TRUNK)

    record.unlink()
    assert studies.curricula(lab, "retry", run, "--dry-run").split()[:2] == [f"{TRUNK}/trunk", f"{LAST}/trunk"]
    said = studies.curricula(lab, "retry", run)
    assert "2 elements in 2 arrays" in said
    until(run, f"{LAST}/trunk", "done")
    assert "nothing has failed" in studies.curricula(lab, "retry", run)
    assert len(studies.metrics(run, "trunk")) >= STEPS


def test_cancel_takes_exactly_what_it_names_and_resubmit_needs_only_bash(own_lab, place, monkeypatch):
    """On a lab of its own, for a job that holds all nodes would keep other tests' jobs waiting."""
    monkeypatch.setenv("SLURM_CONF", own_lab.environment["SLURM_CONF"])
    study, run = copied(place, "cancelled")
    profile = studies.write_profile(run.parent, stages={"pretraining": {"nodes": 1, "gpus_per_node": 1}})
    words = "--parsable --account=research --partition=high --nodes=4 --exclusive --time=10 --output=/dev/null"
    hold = own_lab.run("sbatch", *words.split(), "--wrap=sleep 600").split()[0]
    studies.submit(own_lab, study, profile, run, "--stage", "pretrain")
    reasons = ("Priority", "Resources", "Dependency", "Nodes required for job are")  # Slurm gives one after a moment
    studies.wait_until(
        lambda: all(states(run)[f"{job}/trunk"].reason.startswith(reasons) for job in (TRUNK, LAST)),
        "both jobs to say what they wait for",
        120,
        every_s=1.0,
    )
    assert "cancelled 1 pending;" in studies.curricula(own_lab, "cancel", run, "--job", LAST, "--yes")
    assert until(run, f"{LAST}/trunk", "cancelled").state == "cancelled"
    assert states(run)[f"{TRUNK}/trunk"].state == "pending"
    again = subprocess.run([run / "resubmit.sh"], env=own_lab.environment, capture_output=True, text=True)
    assert again.returncode == 1 and "still in the queue" in again.stderr
    studies.curricula(own_lab, "cancel", run, "--yes")
    own_lab.run("scancel", hold)
    until(run, f"{TRUNK}/trunk", "cancelled")

    bare = {"SLURM_CONF": own_lab.environment["SLURM_CONF"], "PATH": "/usr/bin:/bin:/usr/sbin"}
    again = subprocess.run([run / "resubmit.sh", "--comment=again"], env=bare, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    jobs = [line.split(":")[0] for line in again.stdout.splitlines()]
    assert jobs[0] == TRUNK
    assert "tokenize" not in jobs and "prepare" not in jobs  # they are done
    until(run, f"{TRUNK}/trunk", "running", "done")
    studies.curricula(own_lab, "cancel", run, "--yes")


@pytest.mark.slow
def test_a_node_that_fails_the_preflight_is_named_and_avoided(lab, place):
    study, run = copied(place, "preflight")
    tools = run.parent / "tools"
    tools.mkdir()
    good = "0, 81559, 4, 0, 31, Not Active, Not Active"
    (tools / "nvidia-smi").write_text(f'#!/bin/bash\n[ "$SLURMD_NODENAME" = n2 ] || echo "{good}"\n')
    (tools / "nvidia-smi").chmod(0o755)
    profile = studies.write_profile(
        run.parent,
        stages={"pretraining": {"nodes": 2, "gpus_per_node": 1, "options": {"nodelist": "n2"}}},
        setup=[f"export PATH={tools}:$PATH"],
        lead_time_s=25,
    )
    studies.submit(lab, study, profile, run, "--job", TRUNK)
    task = studies.task_of(run, TRUNK, "trunk")
    studies.wait_until(lambda: (run / "slurm" / "bad-nodes.jsonl").exists(), "a bad node", 300, lambda: studies.logs(run))
    (bad,) = read_jsonl(run / "slurm" / "bad-nodes.jsonl")
    assert (bad["node"], bad["reason"], bad["task"]) == ("n2", "0 of 1 GPUs answer", task)
    studies.wait_until(
        lambda: studies.show(lab, task).get("ExcNodeList") == "n2", "the node to be avoided", 120, lambda: studies.logs(run)
    )
    # It had asked for n2 by name; without that it finds others.
    lab.run("scontrol", "update", f"JobId={task}", "ReqNodeList=")
    until(run, f"{TRUNK}/trunk", "done")
    assert "preflight: 2 nodes, 2 processes, all-reduce" in studies.logs(run)
