"""The plan of a study: its arms, its training tree and its jobs with their elements, dependencies and requests.

`jobs/graph.py` computes it once from a study; everything else reads it: `plan` and `submit`, the launchers, the elements,
`status` and the report.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from curricula.curriculum.plan import Arm, Segment
from curricula.errors import UsageError
from curricula.eval import EvalTask, ModelKind
from curricula.jobs.slurm.profile import Request
from curricula.jobs.study import Study

EdgeKind = Literal["afterok", "aftercorr", "afterany"]
Key = tuple[str, str]
"""An element by the name of its job and its label."""
Chosen = Mapping[str, tuple[str, ...]]
"""Some elements of a plan: names of jobs -> labels, both in the plan's order."""


@dataclass(frozen=True)
class Edge:
    """A dependency on another job, in Slurm's words.

    `afterok` waits for all elements of that job to succeed, `aftercorr` for the element of the same index, `afterany` for all
    to end, whether they succeed or fail.
    """

    job: str
    kind: EdgeKind = "afterok"


@dataclass(frozen=True)
class Element:
    """One unit of work. Which fields are set depends on the stage; `label` is unique within the job."""

    label: str
    source: str = ""
    shard: str = ""
    segment: str = ""
    arm: str = ""
    kind: ModelKind = "base"
    eval_task: EvalTask | None = None
    """The evaluation task, where the stage evaluates."""
    gpu_hours: float = 0.0
    """Pretraining by its FLOPs at the utilisation that the study expects; all else by its time limit, an upper bound."""


@dataclass(frozen=True)
class Job:
    """An array: all elements do the same stage (jobs/stages/) and ask the cluster for the same."""

    name: str
    stage: str
    elements: tuple[Element, ...]
    needs: tuple[Edge, ...] = ()
    request: Request = Request()

    stage_names: tuple[str, ...] = ()
    """What people may call its stage: its name, and the kind of model where the stage makes one kind at a time."""

    @cached_property
    def labels(self) -> tuple[str, ...]:
        return tuple(element.label for element in self.elements)


def keys_of(chosen: Chosen) -> list[Key]:
    return [(job, label) for job, labels in chosen.items() for label in labels]


@dataclass(frozen=True)
class Plan:
    """What a study will do. Jobs come after those they need, segments after their parents."""

    study: Study
    arms: tuple[Arm, ...]
    segments: Mapping[str, Segment]
    jobs: tuple[Job, ...]

    @cached_property
    def by_name(self) -> Mapping[str, Job]:
        return {job.name: job for job in self.jobs}

    @cached_property
    def needs(self) -> Mapping[Key, list[tuple[Key, bool]]]:
        """For each element, in the plan's order, the elements it waits for, each with whether that one must have succeeded."""
        return {
            (job.name, label): [
                ((edge.job, other), edge.kind != "afterany")
                for edge in job.needs
                for place, other in enumerate(self.by_name[edge.job].labels)
                if edge.kind != "aftercorr" or place == index
            ]
            for job in self.jobs
            for index, label in enumerate(job.labels)
        }

    def find(self, job_name: str, label: str) -> tuple[Job, Element]:
        """Raises UsageError that names the jobs or elements there are."""
        if job_name not in self.by_name:
            raise UsageError(f"job {job_name!r} is not in this study; its jobs are {', '.join(self.by_name)}")
        job = self.by_name[job_name]
        for element in job.elements:
            if element.label == label:
                return job, element
        raise UsageError(f"job {job_name} has no element {label!r}; it has {', '.join(job.labels)}")

    def elements(self) -> Iterator[tuple[Job, Element]]:
        for job in self.jobs:
            for element in job.elements:
                yield job, element

    def gpu_hours(self, chosen: Chosen | None = None) -> dict[str, float]:
        """GPU-hours of the `chosen` elements (all by default), by section of a profile's `stages`."""
        hours: dict[str, float] = defaultdict(float)
        for job, element in self.elements():
            if chosen is None or element.label in chosen.get(job.name, ()):
                hours[job.request.section] += element.gpu_hours
        return hours

    def jobs_up_to(self, names: Iterable[str]) -> tuple[Job, ...]:
        """The named jobs and all that they need, in the plan's order."""
        wanted, todo = set(), list(names)
        while todo:
            name = todo.pop()
            if name not in wanted:
                wanted.add(name)
                todo += [edge.job for edge in self.by_name[name].needs]
        return tuple(job for job in self.jobs if job.name in wanted)
