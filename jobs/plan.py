"""The plan of a study: its arms, its training tree and its jobs with their elements, dependencies and requests.

`jobs/graph.py` computes it from a study, and nobody stores it; everything else reads it: `plan` and
`submit`, the launchers, the elements, `status` and the report.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Hashable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from curricula.curriculum.plan import Segment
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
    jobs: tuple[Job, ...]

    @cached_property
    def segments(self) -> Mapping[str, Segment]:
        return {segment.name: segment for segment in self.study.segments}

    @cached_property
    def by_name(self) -> Mapping[str, Job]:
        return {job.name: job for job in self.jobs}

    @cached_property
    def by_key(self) -> Mapping[Key, tuple[Job, Element]]:
        return {(job.name, element.label): (job, element) for job in self.jobs for element in job.elements}

    @cached_property
    def needs(self) -> Mapping[Key, list[tuple[Key, bool]]]:
        """For each element, in the plan's order, the elements it waits for, and whether each of these must succeed.

        On Slurm it waits for their whole arrays where the edge is no `aftercorr`.
        """
        makers = {job.name: _Makers(job, self.study) for job in self.jobs}
        return {
            (job.name, element.label): [
                ((edge.job, self.by_name[edge.job].labels[place]), edge.kind != "afterany")
                for edge in job.needs
                for place in ([index] if edge.kind == "aftercorr" else makers[edge.job].of(element))
            ]
            for job in self.jobs
            for index, element in enumerate(job.elements)
        }

    def find(self, job_name: str, label: str) -> tuple[Job, Element]:
        """The element with its job; raises UsageError that names the known ones when there is none."""
        if job_name not in self.by_name:
            raise UsageError(f"job {job_name!r} is not in this study; its jobs are {', '.join(self.by_name)}")
        if (job_name, label) not in self.by_key:
            raise UsageError(f"job {job_name} has no element {label!r}; it has {', '.join(self.by_name[job_name].labels)}")
        return self.by_key[job_name, label]

    def elements(self) -> Iterable[tuple[Job, Element]]:
        return self.by_key.values()

    def gpu_hours(self, chosen: Collection[Key] | None = None) -> dict[str, float]:
        """GPU-hours of the `chosen` elements (all by default), by section of a profile's `stages`."""
        hours: dict[str, float] = defaultdict(float)
        for job, element in self.elements() if chosen is None else map(self.by_key.__getitem__, chosen):
            hours[job.request.section] += element.gpu_hours
        return hours

    def jobs_up_to(self, names: Iterable[str]) -> tuple[Job, ...]:
        """The named jobs and all that they need, in the plan's order."""
        wanted = set(names)
        for job in reversed(self.jobs):  # each before those that it needs
            if job.name in wanted:
                wanted.update(edge.job for edge in job.needs)
        return tuple(job for job in self.jobs if job.name in wanted)


class _Makers:
    """Finds the elements of a job that make what another element reads, if its job does: those from which it trains on, and
    those that work for the same arm and seed, where both have any."""

    def __init__(self, job: Job, study: Study):
        self.job, self.study = job, study
        self.places: dict[Hashable, list[int]] = defaultdict(list)
        """The elements' places in the job, by the segment or the model that they make or measure; None for what has no arm."""
        for place, one in enumerate(job.elements):
            self.places[(one.segment or (_key(one, study), one.kind)) if one.arm else None].append(place)
        self.is_measurement = any(one.eval_task for one in job.elements)

    def of(self, element: Element) -> list[int]:
        """Their places in the job."""
        if not element.arm:
            return list(range(len(self.job.elements)))
        if element.eval_task and self.is_measurement:  # it tries the suffixes of another arm
            found = self.places[self._model(replace(element, arm=element.eval_task.benchmark), element.kind)]
            tasks = {place: self.job.elements[place].eval_task for place in found}
            return [place for place, task in tasks.items() if task and task.task.kind == "gcg"]
        key, tree = _key(element, self.study), self.study.training_tree
        read: list[Hashable] = [None]
        if element.segment:
            read += [one.parent for one in tree.chain(key) if one.name == element.segment]
        else:
            read += [one.name for one in tree.chain(tree.branches.get(key, key))]
            kinds = [element.kind]
            if element.kind != BASE and not self.is_measurement:
                kinds.append(self.study.at(element.variant).tree.parent(element.kind))
            read += [self._model(element, kind) for kind in kinds]
        return sorted({place for made in read for place in self.places.get(made, ())})

    def _model(self, element: Element, kind: ModelKind) -> tuple[str, ModelKind]:
        """The training that makes the model of this kind of the element's arm, which may be another arm's."""
        key = _key(element, self.study)
        return self.study.owners.get((key, kind), key), kind


def _key(element: Element, study: Study) -> str:
    """The name of the folders of the element's training."""
    return study.replicate_of(element.seed, element.variant).named(element.arm)
