"""From chosen elements to job arrays: which elements go together, and what each array waits for, in Slurm's words."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from curricula.errors import UsageError
from curricula.jobs.plan import Chosen, Job, Key
from curricula.jobs.slurm.commands import Task


@dataclass(frozen=True)
class Array:
    """Elements of one job that are submitted together; task i runs labels[i]."""

    job: Job
    labels: tuple[str, ...]


def check_needs(jobs: Sequence[Job], chosen: Chosen, done: Collection[Key], live: Collection[Key]) -> None:
    """Raise UsageError when a chosen element needs one that is not done and that nobody will run."""
    for job in jobs:
        for key in _needed(jobs, job, chosen.get(job.name, ())):
            if key not in done and key not in live and key[1] not in chosen.get(key[0], ()):
                raise UsageError(
                    f"{job.name} needs {key[0]}/{key[1]}, which is neither done nor queued nor chosen; "
                    f"begin earlier, with --from {key[0]}"
                )


def _needed(jobs: Sequence[Job], job: Job, labels: Collection[str]) -> Iterator[Key]:
    """The elements that must have ended well before `labels` of the job can."""
    by_name = {one.name: one for one in jobs}
    places = [place for place, element in enumerate(job.elements) if element.label in labels]
    for edge in job.needs if places else ():
        others = by_name[edge.job].elements
        if edge.kind != "afterany":
            for other in others if edge.kind == "afterok" else (others[place] for place in places):
                yield edge.job, other.label


def arrays_of(
    jobs: Sequence[Job], job: Job, labels: Sequence[str], tasks: Mapping[Key, Task], longest: int
) -> list[Array]:
    """The job's elements in arrays of at most `longest`.

    Elements whose counterparts (aftercorr) are in different arrays, or of which some have none left to wait for, are kept
    apart, so that each waits for its own. `tasks`: the array tasks of elements that are queued or running.
    """
    groups: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for label in labels:
        found = _counterparts(jobs, job, label, tasks)
        groups[tuple(task.job_id for task in found if task)].append(label)
    return [
        Array(job, tuple(group[start : start + longest]))
        for group in groups.values()
        for start in range(0, len(group), longest)
    ]


def _counterparts(jobs: Sequence[Job], job: Job, label: str, tasks: Mapping[Key, Task]) -> list[Task | None]:
    """For each aftercorr edge the array task of the element that `label` waits for, if it is queued or running."""
    corresponding = [edge.job for edge in job.needs if edge.kind == "aftercorr"]
    if not corresponding:
        return []
    by_name = {one.name: one for one in jobs}
    place = [element.label for element in job.elements].index(label)
    return [tasks.get((name, by_name[name].elements[place].label)) for name in corresponding]


def dependency(jobs: Sequence[Job], array: Array, tasks: Mapping[Key, Task], sizes: Mapping[str, int]) -> str:
    """What sbatch takes as --dependency; empty when there is nothing to wait for. `sizes`: how many tasks each array has."""
    by_name = {one.name: one for one in jobs}
    places = {element.label: place for place, element in enumerate(array.job.elements)}
    words = []
    for edge in array.job.needs:
        others = [element.label for element in by_name[edge.job].elements]
        if edge.kind == "aftercorr":
            counterparts = [tasks.get((edge.job, others[places[label]])) for label in array.labels]
            found = [task for task in counterparts if task is not None]
            if not found:
                continue
            if found == [Task(found[0].job_id, number) for number in range(len(array.labels))]:
                words.append(f"aftercorr:{found[0].job_id}")
            else:  # not in step with the other array: all wait for all
                words.append(f"afterok:{_ids(found, sizes)}")
        elif found := [tasks[edge.job, label] for label in others if (edge.job, label) in tasks]:
            if edge.kind == "afterany":  # tasks that have ended do no harm
                words.append(":".join(["afterany", *dict.fromkeys(task.job_id for task in found)]))
            else:
                words.append(f"afterok:{_ids(found, sizes)}")
    return ",".join(dict.fromkeys(words))


def _ids(found: Sequence[Task], sizes: Mapping[str, int]) -> str:
    """The tasks as Slurm names them, whole arrays by one number."""
    numbers: dict[str, set[int]] = defaultdict(set)
    for task in found:
        numbers[task.job_id].add(task.number)
    words = []
    for job_id, which in numbers.items():
        words += [job_id] if len(which) == sizes[job_id] else [f"{job_id}_{number}" for number in sorted(which)]
    return ":".join(words)
