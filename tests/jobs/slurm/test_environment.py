"""What the user's shell holds changes no job: neither options of Slurm's commands nor the ranks' variables of another job."""

import os
import subprocess

import pytest
from run_folders import FakeSlurm, new_run

from curricula.jobs.graph import plan_study
from curricula.jobs.slurm import commands
from curricula.jobs.slurm.commands import ignored, ignored_explained
from curricula.jobs.slurm.profile import Profile
from curricula.jobs.slurm.script import render
from curricula.jobs.slurm.submit import Standing, submit_plan

SHELL = {"SBATCH_EXPORT": "NONE", "SBATCH_NO_REQUEUE": "1", "SLURM_EXPORT_ENV": "NONE", "RANK": "3", "MASTER_ADDR": "n7"}
SHOWN = {"SQUEUE_STATES": "RUNNING"}
"""Hides jobs from the suite, but changes none."""
NEEDED = {
    "SLURM_CONF": "/etc/slurm.conf",
    "SLURM_CONF_SERVER": "controller",
    "SLURM_JWT": "token",
    "HF_HOME": "/data",
    "RANKING": "x",
}


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    for name, value in {**SHELL, **SHOWN, **NEEDED}.items():
        monkeypatch.setenv(name, value)
    slurm = FakeSlurm(tmp_path / "bin", monkeypatch)
    for name in ("sbatch", "squeue"):
        slurm.answer(name, script=f'env >> "{tmp_path}/seen"\n[ {name} = squeue ] || echo "Submitted batch job 7"; exit 0')
    return slurm


def seen(tmp_path) -> dict[str, str]:
    """The variables that some command got."""
    lines = (tmp_path / "seen").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)


def check(found: dict[str, str]) -> None:
    assert not {*SHELL, *SHOWN} & set(found)
    assert NEEDED.items() <= found.items()


def test_slurms_commands_get_no_option_from_the_shell_and_it_is_said_once(slurm, tmp_path):
    run, _ = new_run(tmp_path / "run")
    said: list[str] = []
    submit_plan(run, plan_study(run.study), [("prepare", "prepare")], Profile(), Standing(set(), {}), said.append)
    check(seen(tmp_path))
    assert [line for line in said if "Ignored" in line] == [
        "Ignored variables of this shell: MASTER_ADDR, RANK, SBATCH_EXPORT, SBATCH_NO_REQUEUE, SLURM_EXPORT_ENV. "
        "The profile decides."
    ]
    (tmp_path / "seen").unlink()
    commands.squeue()
    commands.tested("#!/bin/bash")
    check(seen(tmp_path))


def test_plain_scripts_clean_the_shell_too(slurm, tmp_path):
    run, _ = new_run(tmp_path / "run")
    slurm.answer("sbatch", script=f'env >> "{tmp_path}/seen"; echo 7; exit 0')
    scripts = render(run, plan_study(run.study), Profile(), tmp_path / "out")
    done = subprocess.run([scripts[-1]], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr.count("SBATCH_EXPORT") == 1, done.stderr
    check(seen(tmp_path))
    text = scripts[0].read_text()
    assert "#SBATCH --export=ALL\n" in text and "srun --export=ALL " in text and "\nunset RANK WORLD_SIZE " in text


def test_inside_an_allocation_its_own_variables_are_dropped_without_a_word(monkeypatch):
    monkeypatch.setattr(os, "environ", {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "SLURM_CONF": "/x"})
    assert ignored() == ["SLURM_JOB_ID", "SLURM_NTASKS"] and ignored_explained() == ""
    os.environ["SBATCH_TIMELIMIT"] = "1"
    assert "SBATCH_TIMELIMIT" in ignored_explained()
