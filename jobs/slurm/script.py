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

from curricula.durable import team
from curricula.errors import UsageError
from curricula.fencing import Superseded
from curricula.jobs.plan import Job
from curricula.jobs.slurm.commands import AWAY
from curricula.jobs.slurm.environment import IGNORED, KEPT, RANKS
from curricula.jobs.slurm.profile import RESERVE_S, Profile
from curricula.jobs.slurm.snapshot import ENTRY, Snapshot
from curricula.jobs.study import Study
from curricula.provenance import PACKAGE, RECORD
from curricula.settings import decode

if TYPE_CHECKING:
    import jinja2

TEMPLATES = PACKAGE / "sbatch_templates"
CONTENTS = "# runs "
"""Begins the line of a script that says what it runs: a `Contents` as JSON."""
LOG = "%A_%a_%t_log.out"
"""A task's log in RUN/slurm: array, index and rank. The script's own output goes to that of rank 0."""

EXIT_PATIENCE_S = 60
"""How long the other tasks of a job may take to end after its first one has finished the work."""

SHORT = {
    "pretrain-trunk-": "t",
    "pretrain-": "pre-",
    "export-base-": "xb-",
    "instruct-": "sft-",
    "benign-": "ben-",
    "evaluate-base-": "evb-",
    "evaluate-instruct-": "evi-",
    "evaluate-benign-": "evg-",
    "along-": "al-",
    "merge-": "mrg-",
    "fetch-benchmarks": "fetch-b",
}
"""Beginnings of jobs' names, and what Slurm gets instead: squeue shows eight columns of a name."""

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


def short_name(job: str) -> str:
    """The job's name for Slurm's listings; those of a study differ in their first eight characters."""
    long = next((long for long in SHORT if job.startswith(long)), "")
    return SHORT.get(long, "") + job.removeprefix(long)


def sbatch_options(job: Job, study: Study, profile: Profile) -> Options:
    """The job's options of sbatch by their long names, except those that differ from submission to submission."""
    request, asked = job.request, job.request.options
    options: Options = {
        "job-name": f"{short_name(job.name)}@{study.name}",
        "nodes": request.nodes,
        "ntasks-per-node": request.tasks_per_node,
        "time": request.minutes,
        "requeue": True,  # under the same number, after preemption and the loss of a node
        "export": "ALL",
        "open-mode": "append",
        "kill-on-invalid-dep": "yes",  # otherwise jobs that wait for a failed one would wait for ever
        "signal": f"USR2@{profile.lead_time_s}",
    }
    if profile.cluster:
        options["clusters"] = profile.cluster
    extra = dict(asked.options)
    if request.gpus_per_node:
        gpus = f"{asked.gpu_type}:{request.gpus_per_node}" if asked.gpu_type else str(request.gpus_per_node)
        if asked.gpu_option == "gres":
            extra["gres"] = ",".join(filter(None, (f"gpu:{gpus}", str(extra.get("gres") or ""))))
        else:
            options["gpus-per-node"] = gpus
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
    return {**options, **{name: value for name, value in extra.items() if value is not False}}


def array_option(count: int, throttle: int | None) -> str:
    return f"0-{count - 1}" + (f"%{throttle}" if throttle else "")


def body(
    job: Job, labels: Sequence[str], study: Study, profile: Profile, root: Path, code: Snapshot, continues: str = ""
) -> str:
    """The batch script without its #SBATCH lines. `root` is the absolute run folder, `code` the snapshot to run, `continues`
    the number of the array whose elements it continues, if there is one."""
    command = [profile.interpreter(), str(code.folder / ENTRY)]
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
            short_name=short_name(job.name),
            labels=labels,
            elements=str(root / "jobs" / job.name),
            profile=profile,
            request=job.request,
            secrets_file=os.path.expanduser(profile.secrets_file or ""),
            code=str(code.folder),
            seal=code.seal,
            record=RECORD,
            superseded=Superseded.exit_code,
            team=team(),
            run=str(root),
            exclude_file=str(root / "slurm" / "exclude"),
            excluded=f"{job.request.options.exclude}," if job.request.options.exclude else "",
            reserve_s=RESERVE_S,
            several=job.request.nodes * job.request.tasks_per_node > 1,
            exit_patience_s=EXIT_PATIENCE_S,
            task_log=str(root / "slurm" / LOG),
            srun_words=srun_words,
            command=command,
            continues=continues,
            away=AWAY.pattern,
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
                return decode(line.removeprefix(CONTENTS), Contents)
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
    environment.globals.update(ranks=" ".join(RANKS), ignored=IGNORED, kept="|".join(KEPT))
    return environment
