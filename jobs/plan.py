"""The plan of a study: its arms, its training tree and its jobs with their elements, dependencies and requests.

`jobs/graph.py` computes it from a study, and nobody stores it; everything else reads it: `plan` and
`submit`, the launchers, the elements, `status` and the report.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from curricula.curriculum.plan import Arm, Segment
from curricula.curriculum.stages import BASE, model_name
from curricula.errors import UsageError
from curricula.eval import EvalTask, ModelKind
from curricula.jobs.slurm.profile import Request
from curricula.jobs.study import Study

EdgeKind = Literal["afterok", "aftercorr", "afterany"]
Key = tuple[str, str]
"""An element by the name of its job and its label."""


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
    variant: str = ""
    """The point of the study's sweep that it belongs to; empty without a sweep, and for what all points share."""
    kind: ModelKind = BASE
    """The stage that makes the model that it trains, exports or measures."""
    point: str = ""
    """Where that model is taken from the stage's training (`point_label`); empty for the end."""
    eval_task: EvalTask | None = None
    """What an element of the stage `evaluate` measures."""
    gpu_hours: float = 0.0
    """Estimated from its FLOPs for pretraining and midtraining; for all else by the time limit of one start."""
    flops: float = 0.0
    """Of its training or of its answers, roughly; what loading and writing cost is not in it."""

    @property
    def model(self) -> str:
        """The folder of its model within those of its arm."""
        return model_name(self.kind, self.point)


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
    """The names by which a command can select its stage: `stage` and, where it trains models, the study's name for it."""

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
        found: dict[Key, list[tuple[Key, bool]]] = {}
        makers = {job.name: _Makers(job, self.study) for job in self.jobs}
        for job in self.jobs:
            for index, element in enumerate(job.elements):
                found[job.name, element.label] = [
                    ((edge.job, self.by_name[edge.job].elements[place].label), edge.kind != "afterany")
                    for edge in job.needs
                    for place in ([index] if edge.kind == "aftercorr" else makers[edge.job].of(element))
                ]
        return found

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

    def gpu_hours(self, chosen: Collection[Key] | None = None) -> dict[str, float]:
        """GPU-hours of the `chosen` elements (all by default), by section of a profile's `stages`."""
        hours: dict[str, float] = defaultdict(float)
        wanted = None if chosen is None else set(chosen)
        for job, element in self.elements():
            if wanted is None or (job.name, element.label) in wanted:
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


class _Makers:
    """Finds the elements of a job that make what another element reads, if its job does: those from which it trains on, and
    those that work for the same arm and seed, where both have any."""

    def __init__(self, job: Job, study: Study):
        self.study = study
        self.shared = {place for place, one in enumerate(job.elements) if not one.arm}
        self.all = set(range(len(job.elements)))
        self.by_segment = {one.segment: place for place, one in enumerate(job.elements) if one.segment}
        self.is_measurement = any(one.eval_task for one in job.elements)
        self.by_model: dict[tuple[str, str], set[int]] = defaultdict(set)
        for place in self.all - self.shared:
            self.by_model[_key(job.elements[place], study), job.elements[place].kind].add(place)
        self.suffixes: dict[tuple[str, str], list[int]] = defaultdict(list)
        """All that an evaluation reads of another."""
        for place, one in enumerate(job.elements):
            if one.eval_task and one.eval_task.task.kind == "gcg":
                self.suffixes[_key(one, study), one.kind].append(place)

    def of(self, element: Element) -> list[int]:
        """Their places in the job."""
        if not element.arm:
            return sorted(self.all)
        if element.eval_task and self.suffixes:
            source = _key(replace(element, arm=element.eval_task.benchmark), self.study)
            return self.suffixes.get((self.study.owners.get((source, element.kind), source), element.kind), [])
        key, study, found = _key(element, self.study), self.study, set(self.shared)
        if element.segment:
            before = [next(one.parent or "" for one in study.training_tree.chain(key) if one.name == element.segment)]
        else:
            before = [one.name for one in study.training_tree.chain(study.training_tree.branches.get(key, key))]
            for kind in self._read_by(element):
                found |= self.by_model.get((study.owners.get((key, kind), key), kind), set())
        return sorted(found | {self.by_segment[name] for name in before if name in self.by_segment})

    def _read_by(self, element: Element) -> set[str]:
        """The stages whose models the element may read. A stage's parent differs between points of a sweep."""
        is_own = element.kind == BASE or self.is_measurement
        return {element.kind} if is_own else {element.kind, self.study.at(element.variant).tree.parent(element.kind)}


def _key(element: Element, study: Study) -> str:
    """The name of the folders of the element's training."""
    return study.replicate_of(element.seed, element.variant).named(element.arm)
