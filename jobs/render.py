"""The job graph as plain sbatch scripts and one script that submits them with their dependencies.

For those who want to read, change and submit with Slurm alone: `curricula render STUDY OUT`, then `OUT/submit.sh`. Everything
a user can name is quoted before it reaches the shell.
"""

from __future__ import annotations

import math
import shlex
import sys
from pathlib import Path

import jinja2

from curriculum.durable import open_atomically
from jobs.graph import LIGHT_STAGES, Edge, Job, build_graph
from jobs.run import Run
from jobs.study import Allocation, Study

TEMPLATES = Path(__file__).parent.parent / "sbatch_templates"


def render(run: Run, out: Path) -> list[Path]:
    """Write a script for each job of `run`'s study, and submit.sh; returns their paths."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=False,  # shell, not markup: every value passes `quote`
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(quote=shlex.quote, variable=_variable, dependency=_dependency, script=_script_name)
    study, jobs = run.study, build_graph(run.study)
    paths = []
    for number, job in enumerate(jobs):
        allocation, gpus = _allocation(job, study)
        text = environment.get_template("array.sbatch.j2").render(
            study=study.name,
            job=job,
            allocation=allocation,
            gpus_per_node=gpus,
            tasks_per_node=max(1, gpus),
            cpus_per_task=study.resources.data_cpus if job.stage in LIGHT_STAGES else 0,
            minutes=math.ceil(allocation.hours * 60),
            python=sys.executable,
            run=str(run.root.resolve()),
        )
        paths.append(out / _script_name(number, job))
        _write_script(paths[-1], text)
    logs = str((run.root / "slurm").resolve())
    submit = environment.get_template("submit.sh.j2").render(study=study.name, jobs=jobs, logs=logs)
    _write_script(out / "submit.sh", submit)
    return [*paths, out / "submit.sh"]


def _allocation(job: Job, study: Study) -> tuple[Allocation, int]:
    """What an element of the job asks for, and how many GPUs a node of it has."""
    resources = study.resources
    if job.stage in ("pretrain", "tune"):
        asked = resources.pretraining if job.stage == "pretrain" else resources.tuning
        return asked, asked.gpus_per_node
    if job.stage == "evaluate" or (job.stage == "merge" and study.evaluation.judged_on_gpu):
        return resources.evaluation, min(1, resources.evaluation.gpus_per_node)
    return Allocation(hours=resources.data_hours), 0


def _variable(name: str) -> str:
    return "job_" + "".join(letter if letter.isalnum() else "_" for letter in name)


def _dependency(edge: Edge) -> str:
    return f"{edge.kind}:${{{_variable(edge.job)}}}"


def _script_name(number: int, job: Job) -> str:
    return f"{number:02d}-{job.name}.sbatch"


def _write_script(path: Path, text: str) -> None:
    with open_atomically(path, "w") as file:
        file.write(text)
    path.chmod(0o700)
