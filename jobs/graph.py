"""From a study to its plan: its jobs, what each waits for and what it asks of the cluster.

Arms that start together share their jobs, so that an early arm's models do not wait for a late arm's pretraining. So do all
seeds of an arm: a further seed makes longer arrays, not more of them. The element
that tunes a model also exports it. Models of raw text are exported by separate elements, which need one process where
pretraining needs many. What is measured in the midst of a training is exported, evaluated and judged by one element.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from curricula.curriculum.config import Midtrain, point_label
from curricula.curriculum.plan import TRUNK, Arm, Segment, branch_of
from curricula.curriculum.stages import BASE
from curricula.eval import ModelKind
from curricula.jobs.downloads import Purpose, study_downloads
from curricula.jobs.plan import Edge, Element, Job, Plan
from curricula.jobs.slurm.profile import Profile
from curricula.jobs.stages import STAGES
from curricula.jobs.study import Study


def plan_study(study: Study, profile: Profile | None = None) -> Plan:
    """The plan of `study`; `profile`, where there is one, adapts what each job asks for to the cluster.

    Raises UsageError when the profile gives a stage less time than its jobs need to save.
    """
    return _Planner(study, profile).plan()


class _Planner:
    def __init__(self, study: Study, profile: Profile | None):
        self.study, self.profile = study, profile
        self.jobs: list[Job] = []

    def plan(self) -> Plan:
        study, segments = self.study, self.study.segments
        self._add_data()
        self._add_pretraining()
        # A separate job, so that a missing licence for a benchmark does not hold back the training.
        benchmarks = self._add_downloads("fetch-benchmarks", "evaluation")
        made = [(name, arms, self._add_models(name, arms)) for name, arms in study.groups.items()]
        needs = tuple(map(Edge, benchmarks))
        judged = [
            *self._add_pretraining_points(needs),
            *(job for one in made for job in self._add_evaluations(*one, needs)),
        ]
        self._add("report", "report", [Element("report")], *(Edge(name, "afterany") for name in judged))
        return Plan(study, study.arms, {segment.name: segment for segment in segments}, tuple(self.jobs))

    def _add(self, name: str, stage: str, elements: list[Element], *needs: Edge) -> str:
        request = STAGES[stage].request(self.study, self.profile)
        priced = (replace(one, gpu_hours=STAGES[stage].gpu_hours(self.study, one, request)) for one in elements)
        self.jobs.append(Job(name, stage, tuple(priced), needs, request, STAGES[stage].names(elements[0])))
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
        """A job for each segment of the trunk, and one for each group of arms that leave it at the same step."""
        self._job_of_segment: dict[str, str] = {}
        segments = self.study.segments
        for stop in dict.fromkeys(segment.stop for segment in segments if segment.is_trunk):
            self._pretrain(f"pretrain-trunk-{stop}", [one for one in segments if one.is_trunk and one.stop == stop])
        for name, arms in self.study.groups.items():
            branches = [segment for segment in segments if not segment.is_trunk and segment.arm in arms]
            if branches:
                self._pretrain(f"pretrain-{name}", branches)

    def _pretrain(self, name: str, segments: list[Segment]) -> None:
        """Add the job of `segments`, which all have the same parent, each in its own replicate."""
        parents = [segment.parent for segment in segments if segment.parent]
        needs = Edge("tokenize")
        if parents:
            is_one_to_one = len(set(parents)) == len(segments) > 1
            needs = Edge(self._job_of_segment[parents[0]], "aftercorr" if is_one_to_one else "afterok")
        self._add(name, "pretrain", list(map(_training, segments)), needs)
        self._job_of_segment.update({segment.name: name for segment in segments})

    def _add_models(self, name: str, arms: list[Arm]) -> dict[ModelKind, str]:
        """Add the export and the stages of the models of `arms`; returns the job that makes the model of each stage."""
        tree = self.study.tree
        last = next(one for one in reversed(self.study.segments) if one.branch == branch_of(arms[0]))
        trained = Edge(self._job_of_segment[last.name], "aftercorr")
        ends = {BASE: trained.job}
        made: dict[ModelKind, str] = {BASE: self._add(f"export-base-{name}", "export", _models(arms, BASE), trained)}
        for stage, config in tree.stages.items():
            having = self._having(stage, arms)
            if not having:
                continue
            if config.at is not None:
                needs = Edge(self._job_of_segment[self._segment_at(having[0], config.at)])
            else:
                is_one_to_one = having == self._having(tree.parent(stage), arms)
                needs = Edge(ends[tree.parent(stage)], "aftercorr" if is_one_to_one else "afterok")
            # A stage that is added to a finished run may need data that nothing before it does.
            fetched = map(Edge, self._downloads if stage in self.study.stages else ())
            elements = _models(having, stage)
            is_midtraining = isinstance(config, Midtrain)
            ends[stage] = self._add(
                f"{stage}-{name}", "midtrain" if is_midtraining else "tune", elements, needs, *fetched
            )
            made[stage] = ends[stage]
            if is_midtraining:
                made[stage] = self._add(f"export-{stage}-{name}", "export", elements, Edge(ends[stage], "aftercorr"))
        return made

    def _having(self, stage: ModelKind, arms: list[Arm]) -> list[Arm]:
        return [arm for arm in arms if arm.name in self.study.tree.arms[stage]]

    def _segment_at(self, arm: Arm, at: float) -> str:
        """The segment that holds the checkpoint of `arm` at a fraction of the budget."""
        step = self.study.budget.step_at(at)
        branch = self.study.branch_at(arm, step)
        return next(one.name for one in self.study.segments if one.branch == branch and one.start < step <= one.stop)

    def _add_evaluations(
        self, name: str, arms: list[Arm], made_by: dict[ModelKind, str], needs: tuple[Edge, ...]
    ) -> list[str]:
        """Add the evaluation of the models of `arms`; returns the jobs that judge its rows."""
        measured: dict[ModelKind, str] = {}
        found: list[str] = []
        for kind, made in made_by.items():
            having = self._having(kind, arms)
            elements = [
                Element(f"{arm.key}/{task.name}", arm=arm.name, seed=arm.replicate.seed, kind=kind, eval_task=task)
                for arm in having
                for task in self.study.eval_tasks(kind)
            ]
            if elements:
                measured[kind] = self._add(f"evaluate-{kind}-{name}", "evaluate", elements, Edge(made), *needs)
            along = self.study.along(kind) if kind != BASE else None
            if along:
                points = [
                    replace(one, label=f"{one.label}/{point}", point=point)
                    for one in _models(having, kind)
                    for point in map(point_label, along.at)
                ]
                found.append(self._add(f"along-{kind}-{name}", "along", points, Edge(made), *needs))
        if measured:
            # A failed evaluation does not hold back the others: the report says what is missing.
            after = [Edge(job, "afterany") for job in measured.values()]
            several = len(measured) > 1
            models = [one for kind in measured for one in _models(self._having(kind, arms), kind, several)]
            found.insert(0, self._add(f"merge-{name}", "merge", models, *after))
        return found

    def _add_pretraining_points(self, needs: tuple[Edge, ...]) -> list[str]:
        """Add the measurement of what pretraining passes; a point of the trunk is measured once for all arms."""
        along, budget = self.study.pretraining.along, self.study.budget
        found: list[str] = []
        if along is None:
            return found
        jobs = {job.name: job for job in self.jobs}
        for job in [jobs[name] for name in dict.fromkeys(self._job_of_segment.values())]:
            points = []
            for element in job.elements:
                segment = next(one for one in self.study.segments if one.name == element.segment)
                points += [
                    replace(element, label=f"{element.label}/{point}", segment="", point=point)
                    for point, step in along.steps(budget.steps).items()
                    if segment.start < step <= segment.stop
                ]
            if points:
                name = f"along-{job.name.removeprefix('pretrain-')}"
                found.append(self._add(name, "along", points, Edge(job.name), *needs))
        return found


def _training(segment: Segment) -> Element:
    arm = TRUNK if segment.is_trunk else segment.arm.name
    return Element(segment.branch, segment=segment.name, arm=arm, seed=segment.arm.replicate.seed)


def _models(arms: list[Arm], kind: ModelKind, several: bool = False) -> list[Element]:
    """An element for the model of this kind of each arm; with `several` kinds in the job, the label says which."""
    return [
        Element(f"{arm.key}/{kind}" if several else arm.key, arm=arm.name, seed=arm.replicate.seed, kind=kind)
        for arm in arms
    ]
