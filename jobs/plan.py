"""The plan of a study: its arms, its training tree and its jobs with their elements, dependencies and requests.

`jobs/graph.py` computes it from a study. It is never stored. Everything else reads it: `plan` and `submit`, the launchers, the
elements, `status` and the report.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Hashable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from curricula.curriculum.stages import BASE, model_name
from curricula.curriculum.tree import Segment
from curricula.errors import UsageError
from curricula.eval import EvalTask, ModelKind
from curricula.jobs.slurm.profile import Request
from curricula.jobs.study import Study

EdgeKind = Literal["afterok", "aftercorr", "afterany"]
Key = tuple[str, str]
"""An element's job, by name, and its label."""


@dataclass(frozen=True)
class Edge:
    job: str
    kind: EdgeKind = "afterok"
    """Slurm's name: `afterok` waits for all elements of that job to succeed, `aftercorr` for the element with the same index,
    `afterany` for all to end, whether they succeed or fail. `Plan.needs` says which of them an element reads."""


@dataclass(frozen=True)
class Element:
    """One unit of work. Which fields are set depends on the stage."""

    label: str
    """Unique within the job."""
    source: str = ""
    shard: str = ""
    segment: str = ""
    arm: str = ""
    """The arm that it trains or measures, or "trunk"; empty if all arms share the element, as they share the data."""
    seed: int | None = None
    """The seed of that training; None if all replicates share the element."""
    variant: str = ""
    """The point of the study's sweep that it belongs to; empty without a sweep, or if all points share the element."""
    kind: ModelKind = BASE
    """The stage whose model it trains, exports or measures."""
    point: str = ""
    """The point of the stage's training at which that model is taken (`point_label`); empty for the end."""
    eval_task: EvalTask | None = None
    """What an element of the stage `evaluate` measures."""
    gpu_hours: float = 0.0
    """Estimated from FLOPs in pretraining and midtraining; elsewhere the most that the time limit allows one start."""
    flops: float = 0.0
    """Rough FLOPs of its training or its answers, without the cost of loading and writing."""

    @property
    def model(self) -> str:
        """The name of its model's folder within its arm's."""
        return model_name(self.kind, self.point)


@dataclass(frozen=True)
class Job:
    """An array of elements of one stage, which all ask the cluster for the same resources."""

    name: str
    stage: str
    """A name in `jobs.stages.STAGES`."""
    elements: tuple[Element, ...]
    needs: tuple[Edge, ...] = ()
    request: Request = Request()
    stage_names: tuple[str, ...] = ()
    """The names by which a command can select its stage: `stage` and, if it makes models, the study's name for it."""

    @cached_property
    def by_label(self) -> Mapping[str, Element]:
        return {element.label: element for element in self.elements}

    @cached_property
    def labels(self) -> tuple[str, ...]:
        return tuple(self.by_label)

    @property
    def keys(self) -> list[Key]:
        return [(self.name, label) for label in self.labels]

    def part(self, labels: Iterable[str]) -> Job:
        """The job with these elements alone, in this order."""
        return replace(self, elements=tuple(map(self.by_label.__getitem__, labels)))


@dataclass(frozen=True)
class Plan:
    """What a study will do. Jobs come after the jobs they need, segments after their parents."""

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
        """For each element, in the plan's order, the elements it waits for, and whether each of these must succeed. On Slurm it
        waits for their whole arrays, unless the edge is `aftercorr`."""
        makers = {job.name: _Makers(job, self.study) for job in self.jobs}
        needs: dict[Key, list[tuple[Key, bool]]] = defaultdict(list)
        for job in self.jobs:
            for index, element in enumerate(job.elements):
                own = needs[job.name, element.label]
                for edge in job.needs:
                    labels = self.by_name[edge.job].labels
                    places = [index] if edge.kind == "aftercorr" else makers[edge.job].of(element)
                    own += [((edge.job, labels[place]), edge.kind != "afterany") for place in places]
        return dict(needs)

    def find(self, job_name: str, label: str) -> tuple[Job, Element]:
        """The job and its element of these names; raises UsageError that lists the known names if there is none."""
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
        """The named jobs and all jobs that they need, in the plan's order."""
        wanted = set(names)
        for job in reversed(self.jobs):  # each before the jobs that it needs
            if job.name in wanted:
                wanted.update(edge.job for edge in job.needs)
        return tuple(job for job in self.jobs if job.name in wanted)


class _Makers:
    """Finds the elements of a job that make what an element of a later job reads: those whose training it continues, those of
    its own arm and seed, and those of no arm, such as the data."""

    def __init__(self, job: Job, study: Study):
        self.job, self.study = job, study
        self.places: dict[Hashable, list[int]] = defaultdict(list)
        """The indices of the elements by the segment or model that they make or measure; under None, those of no arm."""
        for place, element in enumerate(job.elements):
            self.places[(element.segment or (_key(element, study), element.kind)) if element.arm else None].append(place)
        self.is_measurement = any(element.eval_task for element in job.elements)

    def of(self, element: Element) -> list[int]:
        """The indices of the elements of the job that make what `element` reads."""
        if not element.arm:
            return list(range(len(self.job.elements)))
        if element.eval_task and self.is_measurement:  # a transfer task, which tries the suffixes of another arm
            searched = replace(element, arm=element.eval_task.benchmark)
            tasks = {place: self.job.elements[place].eval_task for place in self.places[self._model(searched, element.kind)]}
            return [place for place, task in tasks.items() if task and task.task.kind == "gcg"]
        training, tree = _key(element, self.study), self.study.training_tree
        read: list[Hashable] = [None]
        if element.segment:
            read += [segment.parent for segment in tree.chain(training) if segment.name == element.segment]
        else:
            read += [segment.name for segment in tree.chain(tree.branches.get(training, training))]
            kinds = [element.kind]
            if element.kind != BASE and not self.is_measurement:
                kinds.append(self.study.at(element.variant).tree.parent(element.kind))
            read += [self._model(element, kind) for kind in kinds]
        return sorted({place for key in read for place in self.places.get(key, ())})

    def _model(self, element: Element, kind: ModelKind) -> tuple[str, ModelKind]:
        """The training, possibly another arm's, that makes the model of this kind of the element's arm; and that kind."""
        key = _key(element, self.study)
        return self.study.owners.get((key, kind), key), kind


def _key(element: Element, study: Study) -> str:
    """The name of the folders of the element's training."""
    return study.replicate_of(element.seed, element.variant).named(element.arm)
