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

from curricula.curriculum.plan import TRUNK, Arm, Segment
from curricula.errors import UsageError
from curricula.eval import EvalTask, ModelKind
from curricula.jobs.slurm.profile import Request
from curricula.jobs.study import Study

EdgeKind = Literal["afterok", "aftercorr", "afterany"]
Key = tuple[str, str]
"""An element by the name of its job and its label."""
Chosen = Mapping[str, tuple[str, ...]]
"""Some elements of a plan: the labels of each job, by its name, both in the plan's order."""


@dataclass(frozen=True)
class Edge:
    """A dependency on another job."""

    job: str
    kind: EdgeKind = "afterok"
    """As Slurm names it: `afterok` waits for all elements of that job to succeed, `aftercorr` for the element of the same
    index, `afterany` for all to end, whether they succeed or fail. `Plan.needs` says which of them an element reads."""


@dataclass(frozen=True)
class Element:
    """One unit of work. Which fields are set depends on the stage."""

    label: str
    """Unique within the job."""
    source: str = ""
    shard: str = ""
    segment: str = ""
    arm: str = ""
    """The arm that it trains or measures, or "trunk"; empty for what all arms share, such as the data."""
    seed: int | None = None
    """The seed of that training; None for what all replicates share."""
    kind: ModelKind = "base"
    eval_task: EvalTask | None = None
    """What an element of the stage `evaluate` measures."""
    gpu_hours: float = 0.0
    """Estimated from its FLOPs for pretraining; for all else the time limit, an upper bound."""
    flops: float = 0.0
    """Of its training or of its answers, roughly; what loading and writing cost is not in it."""


@dataclass(frozen=True)
class Job:
    """An array of elements of one stage, which all ask the cluster for the same."""

    name: str
    stage: str
    """A name in `jobs.stages.STAGES`."""
    elements: tuple[Element, ...]
    needs: tuple[Edge, ...] = ()
    request: Request = Request()
    stage_names: tuple[str, ...] = ()
    """The names by which a command can select its stage: `stage` and, where the job makes one kind of model, that kind."""

    @cached_property
    def labels(self) -> tuple[str, ...]:
        return tuple(element.label for element in self.elements)


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
        """For each element, in the plan's order, the elements it waits for, and whether each of these must succeed.

        On Slurm it waits for their whole arrays where the edge is no `aftercorr`.
        """
        return {
            (job.name, element.label): [
                ((edge.job, other.label), edge.kind != "afterany")
                for edge in job.needs
                for place, other in enumerate(self.by_name[edge.job].elements)
                if (place == index if edge.kind == "aftercorr" else _concerns(other, element))
            ]
            for job in self.jobs
            for index, element in enumerate(job.elements)
        }

    def find(self, job_name: str, label: str) -> tuple[Job, Element]:
        """The element with its job; raises UsageError that names the known ones when there is none."""
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


def _concerns(one: Element, other: Element) -> bool:
    """Whether `other` reads what `one` makes, if its job does: they work for one arm and seed, where both have any."""
    is_of_arm = "" in (one.arm, other.arm) or one.arm in (TRUNK, other.arm)
    return is_of_arm and (None in (one.seed, other.seed) or one.seed == other.seed)


def keys_of(chosen: Chosen) -> list[Key]:
    return [(job, label) for job, labels in chosen.items() for label in labels]


def chosen_of(keys: Iterable[Key]) -> Chosen:
    """The inverse of `keys_of`."""
    chosen: dict[str, tuple[str, ...]] = {}
    for job, label in keys:
        chosen[job] = (*chosen.get(job, ()), label)
    return chosen
