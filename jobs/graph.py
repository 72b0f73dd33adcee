"""From a study to its plan: its jobs, what each waits for and what it asks of the cluster.

Only arms that start at the same step share their jobs, so an early arm's models do not wait for a late arm's pretraining. All
seeds of an arm share them too: another seed makes arrays longer, not more numerous. Pretrained and midtrained models are
exported by elements of their own, which need one process each, whereas their training needs many.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from curricula.curriculum.config import Midtrain, point_label
from curricula.curriculum.plan import TRUNK, Arm, percent
from curricula.curriculum.stages import BASE
from curricula.curriculum.tree import Segment
from curricula.errors import UsageError
from curricula.eval import ModelKind
from curricula.jobs.downloads import Purpose, study_downloads
from curricula.jobs.plan import Edge, Element, Job, Key, Plan
from curricula.jobs.slurm.profile import Profile, StageOptions, request_of
from curricula.jobs.stages import STAGES
from curricula.jobs.study import Study

Measured = tuple[ModelKind, str]
"""A kind of model, and a job that measures models of this kind."""


@dataclass(frozen=True)
class _Group:
    """Arms that share their jobs, since they start at the same step."""

    name: str
    arms: list[Arm]
    made_by: dict[ModelKind, str]
    """The job that makes each kind of their models."""


def plan_study(study: Study, profile: Profile | None = None) -> Plan:
    """The plan of `study`. A `profile` adapts what each job asks for to the cluster. Raises UsageError if stages or jobs cannot
    be told apart by name, or if the profile gives a stage less time than its jobs need to save."""
    for name in study.stage_names:
        if name in STAGES:  # the option --stage could not tell them apart
            raise UsageError(f"stages.{name} has the name of one of the suite's own stages; choose another name")
    return _Planner(study, profile).plan()


def check_batches(plan: Plan, chosen: Collection[Key]) -> None:
    """Raise UsageError if the rows of a step do not divide evenly among the GPUs that a chosen element gets. The job itself
    would notice only when everything that it waits for is done."""
    split = plan.study.resources.tensor_parallel
    for job, element in map(plan.by_key.__getitem__, chosen):
        stage, study = STAGES[job.stage], plan.study.at(element.variant)
        batch, processes = stage.global_batch(study, element), job.request.nodes * job.request.tasks_per_node
        where = f"the nodes and GPUs in the study's resources.{stage.section} or in the profile's stages"
        if batch and processes % split:
            raise UsageError(
                f"{job.name}: {processes} processes are not a multiple of tensor_parallel {split}; change {where}, or "
                "resources.tensor_parallel"
            )
        if batch and batch % (processes // split):
            raise UsageError(
                f"{study.place_of(element.kind)}.global_batch is {batch}, which the {processes // split} data-parallel "
                f"processes of {job.name} cannot share evenly; change it, or {where}"
            )


class _Planner:
    def __init__(self, study: Study, profile: Profile | None):
        self.study, self.profile = study, profile
        self.jobs: dict[str, Job] = {}
        self._trained_by: dict[tuple[str, ModelKind], Key] = {}
        """The element that trains each model, by the arm's key and the stage."""

    def plan(self) -> Plan:
        self._add_data()
        self._add_pretraining()
        # A separate job, so that a missing licence for a benchmark does not hold back the training.
        self._benchmarks = [Edge(job) for job in self._add_downloads("fetch-benchmarks", "evaluation")]
        groups = [_Group(name, arms, self._add_models(name, arms)) for name, arms in self.study.groups.items()]
        self._add_pretraining_points()
        self._add_evaluations(groups)
        before = Plan(self.study, tuple(self.jobs.values()))
        read = {need for needed in before.needs.values() for need, _ in needed}
        ends = dict.fromkeys(name for name, label in before.by_key if (name, label) not in read)
        self._add("report", "report", [Element("report")], *(Edge(name, "afterany") for name in ends))
        return Plan(self.study, tuple(self.jobs.values()))

    def _add(self, name: str, stage: str, elements: list[Element], *needs: Edge) -> str:
        """Add a job, with its request and the costs of its elements; returns its name."""
        if name in self.jobs:
            raise UsageError(f"two jobs would have the name {name}; rename a stage of the study")
        own, profile = STAGES[stage], self.profile
        section, ask = own.section_of(self.study), own.ask(self.study)
        request = profile.request(stage, section, ask) if profile else request_of(section, ask, StageOptions())
        priced = []
        for element in elements:
            study = self.study.at(element.variant)
            gpu_hours, flops = own.gpu_hours(study, element, request), own.flops(study, element)
            priced.append(replace(element, gpu_hours=gpu_hours, flops=flops))
        self.jobs[name] = Job(name, stage, tuple(priced), needs, request, own.names(elements[0]))
        return name

    def _add_downloads(self, name: str, purpose: Purpose) -> list[str]:
        """Add the job that downloads what `purpose` needs; returns its name in a list, empty if there is nothing to do."""
        wanted = [] if self.study.world else study_downloads(self.study, Path())
        elements = [Element(item.label) for item in wanted if item.purpose == purpose]
        return [self._add(name, "fetch", elements)] if elements else []

    def _add_data(self) -> None:
        """Add the jobs that fetch datasets, make the tokenizer, and tokenise: one element for each shard of each source."""
        shards = [
            Element(f"{name}/{shard}", source=name, shard=shard)
            for name, source in self.study.sources.items()
            for shard in source.shard_names
        ]
        self._downloads = [Edge(job) for job in self._add_downloads("fetch", "data")]
        self._add("prepare", "prepare", [Element("prepare")], *self._downloads)
        self._add("tokenize", "tokenize", shards, Edge("prepare"))

    def _add_pretraining(self) -> None:
        """Add a job for the trunk segments that end at the same step, and one for the branches that begin at the same step.
        A branch that others leave is split there into further jobs."""
        self._job_of_segment = {segment.name: self._pretrain_name(segment) for segment in self.study.segments}
        by_job: dict[str, list[Segment]] = defaultdict(list)
        for segment in sorted(self.study.segments, key=lambda segment: (not segment.is_trunk, segment.start)):
            by_job[self._job_of_segment[segment.name]].append(segment)
        for name in by_job:
            self._pretrain(name, by_job)

    def _pretrain_name(self, segment: Segment) -> str:
        variant = segment.arm.replicate.variant
        budget, suffix = self.study.at(variant).budget, self.study.class_of(variant)
        if segment.is_trunk:
            return f"pretrain-trunk-{segment.stop}{suffix}"
        is_start = segment.start == budget.step_at(segment.arm.start)
        start = segment.arm.start if is_start else round(segment.start / budget.steps, 4)
        stop = "" if segment.stop == budget.steps else f"-{segment.stop}"
        return f"pretrain-{percent(start)}{stop}{suffix}"

    def _pretrain(self, name: str, by_job: dict[str, list[Segment]]) -> None:
        """Add a job, unless it is there, after the jobs that train its segments' parents."""
        if name in self.jobs:
            return
        parents, needs = [segment.parent for segment in by_job[name]], []
        for job in dict.fromkeys(self._job_of_segment[parent] if parent else "tokenize" for parent in parents):
            self._pretrain(job, by_job)
            trained = [segment.name for segment in by_job.get(job, ())]
            is_one_to_one = parents == trained and len(trained) > 1
            needs.append(Edge(job, "aftercorr" if is_one_to_one else "afterok"))
        self._add(name, "pretrain", list(map(_training, by_job[name])), *needs)

    def _add_models(self, name: str, arms: list[Arm]) -> dict[ModelKind, str]:
        """Add the jobs that make the models of `arms`, of base and of each later stage; returns them by stage."""
        made_by: dict[ModelKind, str] = {}
        if base := self._having(BASE, arms):
            made_by[BASE] = self._add(f"export-base-{name}", "export", _models(base, BASE), *self._after(BASE, base))
        for stage in self.study.stage_names:
            having = self._having(stage, arms)
            if not having:
                continue
            # A stage that is added to a finished run, or changes, may need data that no earlier job needed.
            elements, needs = _models(having, stage), [*self._after(stage, having), *self._downloads]
            is_midtraining = isinstance(self.study.of(having[0]).tree.stages[stage], Midtrain)
            job = self._add(f"{stage}-{name}", "midtrain" if is_midtraining else "tune", elements, *needs)
            self._trained_by |= {(arm.key, stage): (job, arm.key) for arm in having}
            made_by[stage] = job
            if is_midtraining:
                made_by[stage] = self._add(f"export-{stage}-{name}", "export", elements, Edge(job, "aftercorr"))
        return made_by

    def _having(self, stage: ModelKind, arms: list[Arm]) -> list[Arm]:
        """The arms among `arms` that make a model of this stage themselves, and do not share another training's."""
        owners = self.study.owners
        return [arm for arm in arms if owners.get((arm.key, stage)) == arm.key]

    def _after(self, stage: ModelKind, arms: list[Arm]) -> list[Edge]:
        """The edges of a stage's job, from element to element if the job before it has the same arms in the same order."""
        before = [self._before(stage, arm) for arm in arms]
        names = list(dict.fromkeys(job for job, _ in before))
        is_one_to_one = before == [(names[0], label) for label in self.jobs[names[0]].labels]
        return [Edge(name, "aftercorr" if is_one_to_one else "afterok") for name in names]

    def _before(self, stage: ModelKind, arm: Arm) -> Key:
        """The element that makes the checkpoint from which a stage of an arm begins."""
        study = self.study.of(arm)
        parent, at = (BASE, None) if stage == BASE else (study.tree.parent(stage), study.tree.stages[stage].at)
        if parent == BASE:
            segment = study.segment_at(arm, study.budget.steps if at is None else study.budget.step_at(at))
            return self._job_of_segment[segment.name], segment.branch
        return self._trained_by[self.study.owners[arm.key, parent], parent]

    def _add_evaluations(self, groups: list[_Group]) -> None:
        measured: dict[str, list[Measured]] = {}
        has_transfers = any(self._elements(kind, group.arms, transfers=True) for group in groups for kind in group.made_by)
        for group in groups:
            measured[group.name] = self._add_measurements(group)
            if not has_transfers:
                self._add_merge(group, measured[group.name])
            self._add_points(group)
        if has_transfers:
            # An arm's suffixes are tried on all other arms, so no model's rows are complete before all models are measured.
            sources = self.study.evaluation.attacks.suffixes_of
            searched = [group.name for group in groups if any(arm.name in sources for arm in group.arms)]
            searches = [search for name in searched for search in measured[name]]
            for group in groups:
                self._add_merge(group, [*measured[group.name], *self._add_measurements(group, searches)])

    def _elements(self, kind: ModelKind, arms: list[Arm], transfers: bool) -> list[Element]:
        """An element for each evaluation task of models of this kind: those that try other arms' suffixes, or the others."""
        having = self._having(kind, arms)
        return [
            replace(model, label=f"{model.label}/{task.name}", eval_task=task)
            for arm, model in zip(having, _models(having, kind))
            for task in self.study.of(arm).eval_tasks(kind)
            if (task.task.kind == "transfer") is transfers
        ]

    def _add_measurements(self, group: _Group, searches: list[Measured] | None = None) -> list[Measured]:
        """Add the jobs that measure a group's models, one for each kind; returns them. Given `searches`, the jobs that search
        for suffixes, add instead those that try what these find."""
        measured: list[Measured] = []
        for kind, made_by in group.made_by.items():
            if elements := self._elements(kind, group.arms, transfers=searches is not None):
                name = f"evaluate-{kind}-{group.name}" if searches is None else f"evaluate-{kind}-transfer-{group.name}"
                # If a search fails, only its suffixes are missing.
                after = [Edge(job, "afterany") for searched, job in searches or () if searched == kind]
                measured.append((kind, self._add(name, "evaluate", elements, Edge(made_by), *self._benchmarks, *after)))
        return measured

    def _add_points(self, group: _Group) -> None:
        """Add the jobs that measure points along the stages after pretraining."""
        for kind, made_by in group.made_by.items():
            points = [
                replace(model, label=f"{model.label}/{point}", point=point)
                for model in (_models(self._having(kind, group.arms), kind) if kind != BASE else ())
                if (along := self.study.at(model.variant).along(kind))
                for point in map(point_label, along.at)
            ]
            if points:
                self._add(f"along-{kind}-{group.name}", "along", points, Edge(made_by), *self._benchmarks)

    def _add_merge(self, group: _Group, measured: list[Measured]) -> None:
        if not measured:
            return
        # A failed evaluation must not hold back the others; the report says what is missing.
        after = [Edge(job, "afterany") for _, job in measured]
        elements = [
            replace(model, label=f"{model.label}/{kind}")
            for kind in dict.fromkeys(kind for kind, _ in measured)
            for model in _models(self._having(kind, group.arms), kind)
        ]
        self._add(f"merge-{group.name}", "merge", elements, *after)

    def _add_pretraining_points(self) -> None:
        """Add the jobs that measure points along pretraining. A point of the trunk is measured once for all arms."""
        segments = {segment.name: segment for segment in self.study.segments}
        for job in dict.fromkeys(self._job_of_segment.values()):
            points = []
            for element in self.jobs[job].elements:
                segment, study = segments[element.segment], self.study.at(element.variant)
                along = study.pretraining.along
                points += [
                    replace(element, label=f"{element.label}/{point}", segment="", point=point)
                    for point, step in (along.steps(study.budget.steps) if along else {}).items()
                    if segment.start < step <= segment.stop
                ]
            if points:
                self._add(f"along-{job.removeprefix('pretrain-')}", "along", points, Edge(job), *self._benchmarks)


def _training(segment: Segment) -> Element:
    arm, replicate = TRUNK if segment.is_trunk else segment.arm.name, segment.arm.replicate
    return Element(segment.branch, segment=segment.name, arm=arm, seed=replicate.seed, variant=replicate.variant)


def _models(arms: list[Arm], kind: ModelKind) -> list[Element]:
    return [Element(arm.key, arm=arm.name, seed=arm.replicate.seed, variant=arm.replicate.variant, kind=kind) for arm in arms]
