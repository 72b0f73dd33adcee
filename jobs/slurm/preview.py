"""The scripts of a submission before it is one: what `--dry-run` shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from curricula.jobs.graph import Job
from curricula.jobs.selection import Chosen
from curricula.jobs.slurm.arrays import arrays_of, dependency
from curricula.jobs.slurm.executor import ElementExecutor
from curricula.jobs.slurm.profile import Profile, Request
from curricula.jobs.slurm.queue import Key
from curricula.jobs.slurm.script import body, sbatch_options
from curricula.jobs.slurm.snapshot import code_files, snapshot_folder
from curricula.jobs.slurm.submissions import Task
from curricula.jobs.study import Study


@dataclass(frozen=True)
class Preview:
    job: str
    count: int
    request: Request
    waits: str
    """The dependency, with names of jobs for the numbers they will get."""
    script: str


def preview(study: Study, profile: Profile, jobs: Sequence[Job], chosen: Chosen, root: Path) -> list[Preview]:
    """Every array of a first submission of `chosen`."""
    executor = ElementExecutor(root / "slurm")
    tasks: dict[Key, Task] = {}
    sizes: dict[str, int] = {}
    code = snapshot_folder(root, code_files())
    found = []
    for job in jobs:
        arrays = arrays_of(jobs, job, chosen.get(job.name, ()), tasks, profile.max_array_size)
        for number, array in enumerate(arrays):
            name = job.name if len(arrays) == 1 else f"{job.name}/{number}"
            waits = dependency(jobs, array, tasks, sizes)
            options = sbatch_options(job, study, profile)
            if waits:
                options["dependency"] = waits
            executor.prepare(job.name, len(array.labels), options, profile.options(job).throttle)
            text = executor.text(body(job, array.labels, study, profile, root, code))
            request = profile.request(job, study)
            found.append(Preview(name, len(array.labels), request, waits, text))
            sizes[name] = len(array.labels)
            tasks.update({(job.name, label): Task(name, place) for place, label in enumerate(array.labels)})
    return found
