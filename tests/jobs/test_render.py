"""Plain sbatch scripts: with stand-ins for Slurm's commands that record their words and run the script's."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from jobs.cli import main
from jobs.graph import build_graph
from jobs.study import load_study

DEMO = Path(__file__).parents[2] / "jobs" / "studies" / "demo.yaml"
HOSTILE = "a b'c\"$(touch pwned);&%j"

SBATCH = """#!{python}
import json, sys
with open({record!r}, "a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
    print(1000 + file.tell())
"""
SRUN = '#!/bin/bash\n[ "$1" = --kill-on-bad-exit=1 ] && shift\nexec "$@"\n'
SCONTROL = '#!/bin/bash\necho "$@" >> "{record}"\n'


@pytest.fixture
def rendered(tmp_path):
    """A study rendered into folders with names that a shell would trip over, and stand-ins on the PATH."""
    raw = yaml.safe_load(DEMO.read_text())
    raw["world"].update(web_documents=60, stories=20, math_problems=20, unsafe_documents=20, validation_documents=5)
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(raw))
    run, out = tmp_path / HOSTILE / "run", tmp_path / HOSTILE / "scripts"
    assert main(["render", str(tmp_path / "study.yaml"), str(out), "--run", str(run)]) == 0
    (tmp_path / "bin").mkdir()
    for name, text in {
        "sbatch": SBATCH.format(python=sys.executable, record=str(tmp_path / "sbatch.jsonl")),
        "srun": SRUN,
        "scontrol": SCONTROL.format(record=tmp_path / "scontrol.log"),
    }.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    return run, out


def call(tmp_path, *words, **environment):
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    return subprocess.run(
        list(map(str, words)),
        cwd=tmp_path,
        env={**os.environ, "PATH": path, **environment},
        capture_output=True,
        text=True,
    )


def test_every_job_is_submitted_once_with_the_graphs_dependencies(rendered, tmp_path):
    run, out = rendered
    ran = call(tmp_path, out / "submit.sh", "--partition=gpu one")
    assert ran.returncode == 0, ran.stderr
    ids = dict(line.split(": ") for line in ran.stdout.splitlines())
    calls = [json.loads(line) for line in (tmp_path / "sbatch.jsonl").read_text().splitlines()]
    jobs = build_graph(load_study(tmp_path / "study.yaml"))
    assert len(calls) == len(jobs)
    for job, words in zip(jobs, calls):
        assert words[-1].endswith(f"-{job.name}.sbatch") and "--partition=gpu one" in words
        asked = [word.partition("=")[2] for word in words if word.startswith("--dependency=")]
        wanted = [",".join(f"{edge.kind}:{ids[edge.job]}" for edge in job.needs)] if job.needs else []
        assert asked == wanted
        (log,) = [word.partition("=")[2] for word in words if word.startswith("--output=")]
        assert log.replace("%%", "%") == f"{run / 'slurm' / job.name}-%a.log"


def test_scripts_are_valid_bash_and_no_name_is_executed(rendered, tmp_path):
    _, out = rendered
    scripts = sorted(out.iterdir())
    assert len(scripts) == len(build_graph(load_study(tmp_path / "study.yaml"))) + 1
    for script in scripts:
        assert call(tmp_path, "bash", "-n", script).returncode == 0
    assert not list(tmp_path.rglob("pwned"))


def test_a_script_runs_its_element_and_marks_it_done(rendered, tmp_path):
    run, out = rendered
    ran = call(tmp_path, out / "00-prepare.sbatch", SLURM_ARRAY_TASK_ID="0", SLURM_ARRAY_JOB_ID="7")
    assert ran.returncode == 0, ran.stderr
    assert (run / "jobs/prepare/prepare/done.json").exists() and (run / "data/tokenizer/tokenizer.json").exists()
    assert not list(tmp_path.rglob("pwned"))


@pytest.mark.parametrize(("code", "left_with", "requeued"), [(75, 0, "requeue 7_0\n"), (1, 1, None), (93, 93, None)])
def test_only_an_element_that_saved_and_stopped_is_requeued(rendered, tmp_path, code, left_with, requeued):
    _, out = rendered
    (tmp_path / "bin" / "srun").write_text(f"#!/bin/bash\nexit {code}\n")
    ran = call(tmp_path, out / "02-pretrain-trunk-100.sbatch", SLURM_ARRAY_TASK_ID="0", SLURM_ARRAY_JOB_ID="7")
    assert ran.returncode == left_with
    log = tmp_path / "scontrol.log"
    assert (log.read_text() if log.exists() else None) == requeued
