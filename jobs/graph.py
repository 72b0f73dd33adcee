"""From a study to its plan: its jobs, what each waits for and what it asks of the cluster.

Arms that start together share their jobs, so that an early arm's models do not wait for a late arm's pretraining. The element
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
        self._add_pretraining(segments)
        # A separate job, so that a missing licence for a benchmark does not hold back the training.
        benchmarks = self._add_downloads("fetch-benchmarks", "evaluation")
        evaluated = [self._add_models(arms, segments) for arms in self._groups()]
        merges = [merge for group in evaluated for merge in self._add_evaluations(*group, tuple(map(Edge, benchmarks)))]
        self._add("report", "report", [Element("report")], *(Edge(name, "afterany") for name in merges))
        return Plan(study, study.arms, {segment.name: segment for segment in segments}, tuple(self.jobs))

    def _groups(self) -> list[list[Arm]]:
        """Arms that leave the trunk at the same step, earliest first."""
        groups: dict[int, list[Arm]] = defaultdict(list)
        for arm in self.study.arms:
            groups[self.study.budget.step_at(arm.start)].append(arm)
        return list(groups.values())

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

    def _add_pretraining(self, segments: tuple[Segment, ...]) -> None:
        """A job for each segment of the trunk, and one for each group of arms that leave it at the same step."""
        self._job_of_segment: dict[str, str] = {}
        for segment in segments:
            if segment.branch == TRUNK:
                self._pretrain(f"pretrain-trunk-{segment.stop}", [segment])
        for arms in self._groups():
            branches = [segment for segment in segments if segment.branch != TRUNK and segment.arm in arms]
            if branches:
                self._pretrain(f"pretrain-{percent(arms[0].start)}", branches)

    def _pretrain(self, name: str, segments: list[Segment]) -> None:
        """Add the job of `segments`, which all have the same parent."""
        parent = segments[0].parent
        needs = Edge(self._job_of_segment[parent]) if parent else Edge("tokenize")
        self._add(name, "pretrain", [Element(s.branch, segment=s.name) for s in segments], needs)
        self._job_of_segment.update({segment.name: name for segment in segments})

    def _add_models(self, arms: list[Arm], segments: tuple[Segment, ...]) -> tuple[list[Arm], dict[ModelKind, str]]:
        """Add the export and tuning of the models of `arms`; returns the job that makes each kind of model."""
        name = percent(arms[0].start)
        last = next(segment for segment in reversed(segments) if segment.branch == branch_of(arms[0]))
        trained = Edge(self._job_of_segment[last.name], "aftercorr")
        base = self._add(f"export-base-{name}", "export", _models(arms, ["base"]), trained)
        instruct = self._add(f"instruct-{name}", "tune", _models(arms, ["instruct"]), trained)
        benign = self._add(f"benign-{name}", "tune", _models(arms, ["benign"]), Edge(instruct, "aftercorr"))
        return arms, {"base": base, "instruct": instruct, "benign": benign}

    def _add_evaluations(self, arms: list[Arm], made_by: dict[ModelKind, str], needs: tuple[Edge, ...]) -> list[str]:
        """Add the evaluation of the models of `arms`; returns the job that merges its rows, if anything is evaluated."""
        name = percent(arms[0].start)
        measured: dict[ModelKind, str] = {}
        for kind in MODEL_KINDS:
            elements = [
                Element(f"{arm.name}/{task.name}", arm=arm.name, kind=kind, eval_task=task)
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


def _models(arms: list[Arm], kinds: list[ModelKind]) -> list[Element]:
    """An element for the model of each kind of each arm."""
    return [
        Element(arm.name if len(kinds) == 1 else f"{arm.name}/{kind}", arm=arm.name, kind=kind)
        for kind in kinds
        for arm in arms
    ]
