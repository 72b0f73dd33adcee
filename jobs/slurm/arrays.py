"""From chosen elements to job arrays: which elements go together, and Slurm's dependency for each array."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from curricula.errors import UsageError
from curricula.jobs.plan import Chosen, Job, Key, Plan, keys_of
from curricula.jobs.slurm.commands import Task


@dataclass(frozen=True)
class Array:
    """Elements of one job that are submitted together; task i runs labels[i]."""

    job: Job
    labels: tuple[str, ...]


def check_needs(plan: Plan, chosen: Chosen, done: Collection[Key], live: Collection[Key]) -> None:
    """Raise UsageError when a chosen element needs one that is neither done nor `live` (queued or running) nor chosen."""
    available = {*done, *live, *keys_of(chosen)}
    for job, label in keys_of(chosen):
        for need, must_be_ok in plan.needs[job, label]:
            if must_be_ok and need not in available:
                raise UsageError(
                    f"{job} needs {need[0]}/{need[1]}, which is neither done nor queued nor chosen; "
                    f"begin earlier, with --from {need[0]}"
                )


def arrays_of(
    plan: Plan, job: Job, labels: Sequence[str], tasks: Mapping[Key, Task], max_array_size: int
) -> list[Array]:
    """The job's elements in arrays of at most `max_array_size`.

    Elements that wait for their counterparts (aftercorr) in different arrays are kept apart, and so are those that have
    nothing left to wait for. `tasks`: the array tasks of elements that are queued or running.
    """
    groups: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for label in labels:
        found = _counterparts(plan, job, label, tasks)
        groups[tuple(task.job_id for task in found if task)].append(label)
    return [
        Array(job, tuple(group[start : start + max_array_size]))
        for group in groups.values()
        for start in range(0, len(group), max_array_size)
    ]


def _counterparts(plan: Plan, job: Job, label: str, tasks: Mapping[Key, Task]) -> list[Task | None]:
    """For each aftercorr edge the array task of the element that `label` waits for, if it is queued or running."""
    edges = [edge for edge in job.needs if edge.kind == "aftercorr"]
    if not edges:
        return []
    place = job.labels.index(label)
    return [tasks.get((edge.job, plan.by_name[edge.job].labels[place])) for edge in edges]


def dependency(plan: Plan, array: Array, tasks: Mapping[Key, Task], sizes: Mapping[str, int]) -> str:
    """The value of sbatch's --dependency; empty when there is nothing to wait for. `sizes`: how many tasks each array has."""
    places = {label: place for place, label in enumerate(array.job.labels)}
    clauses = []
    for edge in array.job.needs:
        others = plan.by_name[edge.job].labels
        if edge.kind == "aftercorr":
            counterparts = [tasks.get((edge.job, others[places[label]])) for label in array.labels]
            found = [task for task in counterparts if task is not None]
            if not found:
                continue
            if found == [Task(found[0].job_id, number) for number in range(len(array.labels))]:
                clauses.append(f"aftercorr:{found[0].job_id}")
            else:  # not in step with the other array: all wait for all
                clauses.append(f"afterok:{_ids(found, sizes)}")
        elif found := [tasks[edge.job, label] for label in others if (edge.job, label) in tasks]:
            if edge.kind == "afterany":  # tasks that have ended do no harm
                clauses.append(":".join(["afterany", *dict.fromkeys(task.job_id for task in found)]))
            else:
                clauses.append(f"afterok:{_ids(found, sizes)}")
    return ",".join(dict.fromkeys(clauses))


def _ids(found: Sequence[Task], sizes: Mapping[str, int]) -> str:
    """The tasks as Slurm names them, whole arrays by one number."""
    numbers: dict[str, set[int]] = defaultdict(set)
    for task in found:
        numbers[task.job_id].add(task.number)
    ids = []
    for job_id, of_job in numbers.items():
        ids += [job_id] if len(of_job) == sizes[job_id] else [f"{job_id}_{number}" for number in sorted(of_job)]
    return ":".join(ids)
