"""From a study to its plan: its jobs, what each waits for and what it asks of the cluster.

Arms that start together share their jobs, so that an early arm's models do not wait for a late arm's pretraining. So do all
seeds of an arm: a further seed makes longer arrays, not more of them. The element
that tunes a model also exports it. Base models are exported by separate elements, which need one process where
pretraining needs many.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from pathlib import Path

from curricula.curriculum.plan import TRUNK, Arm, Segment, branch_of, percent
from curricula.eval import MODEL_KINDS, ModelKind
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
        merges = [merge for group in made for merge in self._add_evaluations(*group, tuple(map(Edge, benchmarks)))]
        self._add("report", "report", [Element("report")], *(Edge(name, "afterany") for name in merges))
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
        downloads = self._add_downloads("fetch", "data")
        self._add("prepare", "prepare", [Element("prepare")], *map(Edge, downloads))
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
        budget = self.study.budget
        if segment.is_trunk:
            return f"pretrain-trunk-{segment.stop}"
        is_start = segment.start == budget.step_at(segment.arm.start)
        name = f"pretrain-{percent(segment.arm.start if is_start else round(segment.start / budget.steps, 4))}"
        return name if segment.stop == budget.steps else f"{name}-{segment.stop}"

    def _pretrain(self, name: str, by_job: dict[str, list[Segment]]) -> None:
        """Add a job after those that its segments' parents are in, once."""
        if any(job.name == name for job in self.jobs):
            return
        segments, needs = by_job[name], []
        for job in dict.fromkeys(self._job_of_segment[one.parent] if one.parent else "tokenize" for one in segments):
            parents = [one.name for one in by_job.get(job, ())]
            if parents:
                self._pretrain(job, by_job)
            is_one_to_one = [one.parent for one in segments] == parents and len(parents) > 1
            needs.append(Edge(job, "aftercorr" if is_one_to_one else "afterok"))
        self._add(name, "pretrain", list(map(_training, segments)), *needs)

    def _add_models(self, name: str, arms: list[Arm]) -> dict[ModelKind, str]:
        """Add the export and tuning of the models of `arms`; returns the job that makes each kind of model."""
        last = {one.branch: one for one in self.study.segments}
        trained = self._after([last[branch_of(arm)] for arm in arms])
        base = self._add(f"export-base-{name}", "export", _models(arms, ["base"]), *trained)
        instruct = self._add(f"instruct-{name}", "tune", _models(arms, ["instruct"]), *trained)
        made: dict[ModelKind, str] = {"base": base, "instruct": instruct}
        if self.study.tuning.benign:
            made["benign"] = self._add(f"benign-{name}", "tune", _models(arms, ["benign"]), Edge(instruct, "aftercorr"))
        return made

    def _after(self, segments: list[Segment]) -> list[Edge]:
        """What waits for these segments, element for element where they are a whole job."""
        jobs = list(dict.fromkeys(self._job_of_segment[one.name] for one in segments))
        whole = [one.segment for job in self.jobs if job.name == jobs[0] for one in job.elements]
        return [Edge(job, "aftercorr" if whole == [one.name for one in segments] else "afterok") for job in jobs]

    def _add_evaluations(
        self, name: str, arms: list[Arm], made_by: dict[ModelKind, str], needs: tuple[Edge, ...]
    ) -> list[str]:
        """Add the evaluation of the models of `arms`; returns the job that merges its rows, if anything is evaluated."""
        measured: dict[ModelKind, str] = {}
        for kind in MODEL_KINDS:
            elements = [
                Element(f"{arm.key}/{task.name}", arm=arm.name, seed=arm.replicate.seed, kind=kind, eval_task=task)
                for arm in arms
                for task in self.study.evaluation.eval_tasks(kind)
            ]
            if elements:
                measured[kind] = self._add(f"evaluate-{kind}-{name}", "evaluate", elements, Edge(made_by[kind]), *needs)
        if not measured:
            return []
        # A failed evaluation does not hold back the others: the report says what is missing.
        after = [Edge(job, "afterany") for job in measured.values()]
        return [self._add(f"merge-{name}", "merge", _models(arms, list(measured)), *after)]


def _training(segment: Segment) -> Element:
    arm = TRUNK if segment.is_trunk else segment.arm.name
    return Element(segment.branch, segment=segment.name, arm=arm, seed=segment.arm.replicate.seed)


def _models(arms: list[Arm], kinds: list[ModelKind]) -> list[Element]:
    """An element for the model of each kind of each arm."""
    return [
        Element(arm.key if len(kinds) == 1 else f"{arm.key}/{kind}", arm=arm.name, seed=arm.replicate.seed, kind=kind)
        for kind in kinds
        for arm in arms
    ]
