"""From a study to its plan: its jobs, what each waits for and what it asks of the cluster.

Arms that start together share their jobs, so that an early arm's models do not wait for a late arm's pretraining. So do all
seeds of an arm: a further seed makes longer arrays, not more of them. Models of raw text are exported by elements of their own,
which need one process where pretraining needs many.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from curricula.curriculum.config import Midtrain, point_label
from curricula.curriculum.plan import TRUNK, Arm, Segment, percent
from curricula.curriculum.stages import BASE
from curricula.errors import UsageError
from curricula.eval import ModelKind
from curricula.jobs.downloads import Purpose, study_downloads
from curricula.jobs.plan import Edge, Element, Job, Key, Plan
from curricula.jobs.slurm.profile import Profile, StageOptions, request_of
from curricula.jobs.stages import STAGES
from curricula.jobs.study import Study

Group = tuple[str, list[Arm], dict[ModelKind, str]]
"""The name of a group of arms, the arms, and the job that makes each kind of their models."""
Measured = tuple[ModelKind, str]
"""A kind of model, and a job that measures it."""


def plan_study(study: Study, profile: Profile | None = None) -> Plan:
    """The plan of `study`; `profile`, where there is one, adapts what each job asks for to the cluster.

    Raises UsageError where two jobs have one name, and where the profile gives a stage less time than its jobs need to save.
    """
    return _Planner(study, profile).plan()


def check_batches(plan: Plan, chosen: Collection[Key]) -> None:
    """Raise UsageError where the rows of a step do not divide among the GPUs that a chosen element gets. The job itself would
    find that out only when all that it waits for is done."""
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
        self.jobs: list[Job] = []
        self._made: dict[tuple[str, ModelKind], Key] = {}
        """By an arm's key and a stage, the element that trains the model."""

    def plan(self) -> Plan:
        study = self.study
        self._add_data()
        self._add_pretraining()
        # A separate job, so that a missing licence for a benchmark does not hold back the training.
        benchmarks = self._add_downloads("fetch-benchmarks", "evaluation")
        made = [(name, arms, self._add_models(name, arms)) for name, arms in study.groups.items()]
        needs = tuple(map(Edge, benchmarks))
        self._add_pretraining_points(needs)
        self._add_evaluations(made, needs)
        before = Plan(study, tuple(self.jobs))
        read = {need for needed in before.needs.values() for need, _ in needed}
        ends = [job.name for job in self.jobs if any((job.name, label) not in read for label in job.labels)]
        self._add("report", "report", [Element("report")], *(Edge(name, "afterany") for name in ends))
        return replace(before, jobs=tuple(self.jobs))

    def _add(self, name: str, stage: str, elements: list[Element], *needs: Edge) -> str:
        if any(job.name == name for job in self.jobs):
            raise UsageError(f"two jobs would have the name {name}; rename a stage of the study")
        own, profile = STAGES[stage], self.profile
        section, ask = own.section_of(self.study), own.ask(self.study)
        request = profile.request(stage, section, ask) if profile else request_of(section, ask, StageOptions())
        priced = []
        for one in elements:
            study = self.study.at(one.variant)
            priced.append(replace(one, gpu_hours=own.gpu_hours(study, one, request), flops=own.flops(study, one)))
        self.jobs.append(Job(name, stage, tuple(priced), needs, request, own.names(elements[0])))
        return name

    def _add_downloads(self, name: str, purpose: Purpose) -> list[str]:
        """Add the job that downloads the datasets for `purpose`; returns its name, or nothing without downloads."""
        wanted = [] if self.study.world else study_downloads(self.study, Path())
        elements = [Element(item.label) for item in wanted if item.purpose == purpose]
        return [self._add(name, "fetch", elements)] if elements else []

    def _add_data(self) -> None:
        """Datasets and tokenizer, then one element for each shard of each source."""
        shards = [
            Element(f"{name}/{shard}", source=name, shard=shard)
            for name, source in self.study.sources.items()
            for shard in source.shard_names
        ]
        self._downloads = self._add_downloads("fetch", "data")
        self._add("prepare", "prepare", [Element("prepare")], *map(Edge, self._downloads))
        self._add("tokenize", "tokenize", shards, Edge("prepare"))

    def _add_pretraining(self) -> None:
        """A job for the trunk's segments that end at the same step, and one for the branches that begin at the same step. A
        branch that others leave has jobs of its own up to there."""
        self._job_of_segment = {one.name: self._pretrain_name(one) for one in self.study.segments}
        by_job: dict[str, list[Segment]] = defaultdict(list)
        for segment in sorted(self.study.segments, key=lambda one: (not one.is_trunk, one.start)):
            by_job[self._job_of_segment[segment.name]].append(segment)
        for name in by_job:
            self._pretrain(name, by_job)

    def _pretrain_name(self, segment: Segment) -> str:
        variant = segment.arm.replicate.variant
        budget, suffix = self.study.at(variant).budget, self.study.class_of(variant)
        if segment.is_trunk:
            return f"pretrain-trunk-{segment.stop}{suffix}"
        is_start = segment.start == budget.step_at(segment.arm.start)
        name = f"pretrain-{percent(segment.arm.start if is_start else round(segment.start / budget.steps, 4))}"
        return f"{name}{'' if segment.stop == budget.steps else f'-{segment.stop}'}{suffix}"

    def _pretrain(self, name: str, by_job: dict[str, list[Segment]]) -> None:
        """Add a job after those that its segments' parents are in, once."""
        if any(job.name == name for job in self.jobs):
            return
        segments, needs = by_job[name], []
        for job in dict.fromkeys(self._job_of_segment[one.parent] if one.parent else "tokenize" for one in segments):
            self._pretrain(job, by_job)
            parents = [one.name for one in by_job.get(job, ())]
            is_one_to_one = [one.parent for one in segments] == parents and len(parents) > 1
            needs.append(Edge(job, "aftercorr" if is_one_to_one else "afterok"))
        self._add(name, "pretrain", list(map(_training, segments)), *needs)

    def _add_models(self, name: str, arms: list[Arm]) -> dict[ModelKind, str]:
        """Add the export and the stages of the models of `arms`; returns the job that makes the model of each stage."""
        made: dict[ModelKind, str] = {}
        base = self._having(BASE, arms)
        if base:
            made[BASE] = self._add(f"export-base-{name}", "export", _models(base, BASE), *self._after(BASE, base))
        for stage in self.study.stage_names:
            having = self._having(stage, arms)
            if not having:
                continue
            # A stage that is added to a finished run may need data that nothing before it does.
            fetched = map(Edge, self._downloads if stage in self.study.stages else ())
            elements, needs = _models(having, stage), [*self._after(stage, having), *fetched]
            is_midtraining = isinstance(self.study.of(having[0]).tree.stages[stage], Midtrain)
            made[stage] = self._add(f"{stage}-{name}", "midtrain" if is_midtraining else "tune", elements, *needs)
            self._made |= {(arm.key, stage): (made[stage], arm.key) for arm in having}
            if is_midtraining:
                made[stage] = self._add(f"export-{stage}-{name}", "export", elements, Edge(made[stage], "aftercorr"))
        return made

    def _having(self, stage: ModelKind, arms: list[Arm]) -> list[Arm]:
        """Those of `arms` that make a model of this stage themselves."""
        owners = self.study.owners
        return [arm for arm in arms if owners.get((arm.key, stage)) == arm.key]

    def _after(self, stage: ModelKind, arms: list[Arm]) -> list[Edge]:
        """What the elements of a stage for these arms wait for: element for element, where they continue from a whole job."""
        before = [self._before(stage, arm) for arm in arms]
        jobs = list(dict.fromkeys(job for job, _ in before))
        whole = next(job for job in self.jobs if job.name == jobs[0])
        is_one_to_one = before == [(whole.name, label) for label in whole.labels]
        return [Edge(job, "aftercorr" if is_one_to_one else "afterok") for job in jobs]

    def _before(self, stage: ModelKind, arm: Arm) -> Key:
        """The element that makes what a stage of an arm begins from."""
        study = self.study.of(arm)
        parent, at = (BASE, None) if stage == BASE else (study.tree.parent(stage), study.tree.stages[stage].at)
        if parent == BASE:
            segment = study.segment_at(arm, study.budget.steps if at is None else study.budget.step_at(at))
            return self._job_of_segment[segment.name], segment.branch
        return self._made[self.study.owners[arm.key, parent], parent]

    def _add_evaluations(self, groups: list[Group], needs: tuple[Edge, ...]) -> None:
        measured: dict[str, list[Measured]] = {}
        transfers = any(self._elements(kind, arms, transfers=True) for _, arms, made in groups for kind in made)
        for group in groups:
            measured[group[0]] = self._add_measurements(group, needs)
            if not transfers:
                self._add_merge(group, measured[group[0]])
            self._add_points(group, needs)
        # An arm's suffixes are tried on every other, so no model's rows are whole before all are measured.
        sources = self.study.evaluation.attacks.suffixes_of
        suffixes = [one for name, arms, _ in groups if any(arm.name in sources for arm in arms) for one in measured[name]]
        for group in groups if transfers else ():
            tried = self._add_measurements(group, needs, suffixes)
            self._add_merge(group, [*measured[group[0]], *tried])

    def _elements(self, kind: ModelKind, arms: list[Arm], transfers: bool) -> list[Element]:
        """The evaluation tasks on the models of this kind, without or only those that try other arms' suffixes."""
        having = self._having(kind, arms)
        return [
            replace(model, label=f"{model.label}/{task.name}", eval_task=task)
            for arm, model in zip(having, _models(having, kind))
            for task in self.study.of(arm).eval_tasks(kind)
            if (task.task.kind == "transfer") is transfers
        ]

    def _add_measurements(
        self, group: Group, needs: tuple[Edge, ...], suffixes: list[Measured] | None = None
    ) -> list[Measured]:
        """Add what is measured on the models of a group alone, or the trials of what the jobs `suffixes` find; returns the job
        for each kind of model. Trials wait for arms of which those that fail are missing."""
        name, arms, made_by = group
        found: list[Measured] = []
        for kind, made in made_by.items():
            if elements := self._elements(kind, arms, transfers=suffixes is not None):
                after = [Edge(job, "afterany") for other, job in suffixes or () if other == kind]
                job = f"evaluate-{kind}-{name}" if suffixes is None else f"evaluate-{kind}-transfer-{name}"
                found.append((kind, self._add(job, "evaluate", elements, Edge(made), *needs, *after)))
        return found

    def _add_points(self, group: Group, needs: tuple[Edge, ...]) -> None:
        name, arms, made_by = group
        for kind, made in made_by.items():
            points = [
                replace(model, label=f"{model.label}/{point}", point=point)
                for model in (_models(self._having(kind, arms), kind) if kind != BASE else ())
                if (along := self.study.at(model.variant).along(kind))
                for point in map(point_label, along.at)
            ]
            if points:
                self._add(f"along-{kind}-{name}", "along", points, Edge(made), *needs)

    def _add_merge(self, group: Group, measured: list[Measured]) -> None:
        if not measured:
            return
        name, arms, _ = group
        # A failed evaluation does not hold back the others: the report says what is missing.
        after = [Edge(job, "afterany") for _, job in measured]
        kinds = dict.fromkeys(kind for kind, _ in measured)
        made = [replace(one, label=f"{one.label}/{kind}") for kind in kinds for one in _models(self._having(kind, arms), kind)]
        self._add(f"merge-{name}", "merge", made, *after)

    def _add_pretraining_points(self, needs: tuple[Edge, ...]) -> None:
        """Add the measurement of what pretraining passes; a point of the trunk is measured once for all arms."""
        jobs, segments = {job.name: job for job in self.jobs}, {one.name: one for one in self.study.segments}
        for job in [jobs[name] for name in dict.fromkeys(self._job_of_segment.values())]:
            points = []
            for element in job.elements:
                segment, study = segments[element.segment], self.study.at(element.variant)
                along = study.pretraining.along
                points += [
                    replace(element, label=f"{element.label}/{point}", segment="", point=point)
                    for point, step in (along.steps(study.budget.steps) if along else {}).items()
                    if segment.start < step <= segment.stop
                ]
            if points:
                self._add(f"along-{job.name.removeprefix('pretrain-')}", "along", points, Edge(job.name), *needs)


def _training(segment: Segment) -> Element:
    arm, replicate = TRUNK if segment.is_trunk else segment.arm.name, segment.arm.replicate
    return Element(segment.branch, segment=segment.name, arm=arm, seed=replicate.seed, variant=replicate.variant)


def _models(arms: list[Arm], kind: ModelKind) -> list[Element]:
    return [Element(arm.key, arm=arm.name, seed=arm.replicate.seed, variant=arm.replicate.variant, kind=kind) for arm in arms]
