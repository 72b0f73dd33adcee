"""The batch script of a job array: the options of sbatch, and the body.

Both `curricula submit`, through submitit, and `curricula render`, which writes plain scripts, use it. Whatever a user can name
is quoted before it reaches the shell, and checked before it reaches an #SBATCH line.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from curricula.errors import UsageError
from curricula.jobs.plan import Job
from curricula.jobs.slurm.profile import Profile
from curricula.jobs.slurm.snapshot import ENTRY
from curricula.jobs.study import Study
from curricula.provenance import PACKAGE

if TYPE_CHECKING:
    import jinja2

TEMPLATES = PACKAGE / "sbatch_templates"
RESERVE_S = 20
"""A job is requeued at least this long before its time limit."""
CONTENTS = "# runs "
"""Begins the line of a script that says what it runs: a `Contents` as JSON."""
LOG = "%A_%a_%t_log.out"
"""A task's log in RUN/slurm: array, index and rank. The script's own output goes to that of rank 0."""

Options = dict[str, str | int | bool]


def check_root(root: Path) -> Path:
    """The run folder as an absolute path; raises UsageError where Slurm would take it for something else."""
    root = root.resolve()
    if re.search(r"[\x00-\x1f\x7f%\\,]", str(root)):
        raise UsageError(
            f"{str(root)!r}: Slurm reads '%', ',', a backslash or a line break in a path in its own way; name a folder without "
            "them with --run"
        )
    return root


def sbatch_options(job: Job, study: Study, profile: Profile) -> Options:
    """The job's options of sbatch by their long names, except those that differ from submission to submission."""
    request, asked = job.request, job.request.options
    options: Options = {
        "job-name": f"{study.name}/{job.name}",
        "nodes": request.nodes,
        "ntasks-per-node": request.tasks_per_node,
        "time": request.minutes,
        "requeue": True,  # under the same number, after preemption and the loss of a node
        "open-mode": "append",
        "kill-on-invalid-dep": "yes",  # otherwise jobs that wait for a failed one would wait for ever
        "signal": f"USR2@{profile.lead_time_s}",
    }
    if request.gpus_per_node:
        options["gpus-per-node"] = (
            f"{asked.gpu_type}:{request.gpus_per_node}" if asked.gpu_type else request.gpus_per_node
        )
    if request.cpus_per_task:
        options["cpus-per-task"] = request.cpus_per_task
    if asked.memory_gb:
        options["mem"] = f"{round(asked.memory_gb * 1024)}M"
    elif asked.exclusive:
        options["mem"] = 0  # all of it; a site's default may be far less than a whole node has
    if asked.exclusive:
        options["exclusive"] = True
    for name in ("partition", "account", "qos", "constraint", "reservation", "exclude"):
        if getattr(asked, name):
            options[name] = getattr(asked, name)
    return {**options, **{name: value for name, value in asked.options.items() if value is not False}}


def array_option(count: int, throttle: int | None) -> str:
    return f"0-{count - 1}" + (f"%{throttle}" if throttle else "")


def body(job: Job, labels: Sequence[str], study: Study, profile: Profile, root: Path, code: Path) -> str:
    """The batch script without its #SBATCH lines. `root` is the absolute run folder, `code` the snapshot to run."""
    command = [profile.interpreter(), str(code / ENTRY)]
    srun_words = list(profile.srun_options)
    container = profile.container
    if container and container.kind == "pyxis":
        srun_words += [
            f"--container-image={container.image}",
            f"--container-mounts={','.join(_mounts(profile, root, study))}",
        ]
        srun_words += [*container.options, "--no-container-mount-home"]
    elif container:
        binds = [word for mount in _mounts(profile, root, study) for word in ("--bind", mount)]
        command = ["apptainer", "exec", *binds, *container.options, container.image, *command]
    return (
        templates()
        .get_template("element.sh.j2")
        .render(
            contents=contents_line(job.name, labels),
            study=study.name,
            job=job,
            labels=labels,
            elements=str(root / "jobs" / job.name),
            profile=profile,
            request=job.request,
            secrets_file=os.path.expanduser(profile.secrets_file or ""),
            code=str(code),
            run=str(root),
            exclude_file=str(root / "slurm" / "exclude"),
            excluded=f"{job.request.options.exclude}," if job.request.options.exclude else "",
            reserve_s=RESERVE_S,
            task_log=str(root / "slurm" / LOG),
            srun_words=srun_words,
            command=command,
        )
    )


class Contents(msgspec.Struct, frozen=True):
    """What a batch script runs: array task i runs the element labels[i]. It identifies a job that was never recorded."""

    job: str
    labels: tuple[str, ...]


def contents_line(job: str, labels: Sequence[str]) -> str:
    return CONTENTS + json.dumps({"job": job, "labels": list(labels)})


def contents_in(script: str) -> Contents | None:
    """What a batch script runs; None where it is not one of ours."""
    for line in script.splitlines():
        if line.startswith(CONTENTS):
            with contextlib.suppress(msgspec.DecodeError):
                return msgspec.json.decode(line.removeprefix(CONTENTS), type=Contents)
    return None


def _mounts(profile: Profile, root: Path, study: Study) -> list[str]:
    """Folders that the container mounts, each under its own name, and the profile's own mounts."""
    assert profile.container is not None
    data = None if study.world else os.environ.get("CURRICULA_DATA")  # the same for the whole run: see Run.create
    folders = [str(root), *([str(Path(data).resolve())] if data else [])]
    return [*(f"{folder}:{folder}" for folder in folders), *(os.path.expandvars(it) for it in profile.container.mounts)]


@functools.cache
def templates() -> jinja2.Environment:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=False,  # shell, not markup: every value passes `quote`
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["quote"] = shlex.quote
    return environment
