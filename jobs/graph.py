"""From a study to its plan: its jobs, what each waits for and what it asks of the cluster.

Arms that start together share their jobs, so that an early arm's models do not wait for a late arm's pretraining. So do all
seeds of an arm: a further seed makes longer arrays, not more of them. The element
that tunes a model also exports it. Base models are exported by separate elements, which need one process where
pretraining needs many.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from curricula.curriculum.plan import TRUNK, Arm, Segment, branch_of
from curricula.eval import MODEL_KINDS, ModelKind
from curricula.jobs.downloads import Purpose, study_downloads
from curricula.jobs.plan import Edge, Element, Job, Plan
from curricula.jobs.slurm.profile import Profile
from curricula.jobs.stages import STAGES
from curricula.jobs.study import Study

Group = tuple[str, list[Arm], dict[ModelKind, str]]
"""The name of a group of arms, the arms, and the job that makes each kind of their models."""
Measured = list[tuple[str, ModelKind]]
"""Jobs of the stage `evaluate`, and the kind of model that each measures."""


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
        merges = self._add_evaluations(made, tuple(map(Edge, benchmarks)))
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
        """Add the export and tuning of the models of `arms`; returns the job that makes each kind of model."""
        last = next(one for one in reversed(self.study.segments) if one.branch == branch_of(arms[0]))
        trained = Edge(self._job_of_segment[last.name], "aftercorr")
        base = self._add(f"export-base-{name}", "export", _models(arms, ["base"]), trained)
        instruct = self._add(f"instruct-{name}", "tune", _models(arms, ["instruct"]), trained)
        made: dict[ModelKind, str] = {"base": base, "instruct": instruct}
        if self.study.tuning.benign:
            made["benign"] = self._add(f"benign-{name}", "tune", _models(arms, ["benign"]), Edge(instruct, "aftercorr"))
        return made

    def _add_evaluations(self, groups: list[Group], needs: tuple[Edge, ...]) -> list[str]:
        """Add the evaluation of all models; returns the jobs that merge its rows."""
        evaluation, merges = self.study.evaluation, []
        transfers = any(task.kind == "transfer" for kind in MODEL_KINDS for task in evaluation.tasks_of(kind))
        measured: dict[str, Measured] = {}
        for group in groups:
            measured[group[0]] = self._add_measurements(group, needs)
            if not transfers:
                merges += self._add_merge(group, measured[group[0]])
        if (
            transfers
        ):  # suffixes are tried on every arm, so no model's rows are whole before their own arms are measured
            own = [name for name, arms, _ in groups if any(arm.name in evaluation.attacks.suffixes_of for arm in arms)]
            sources = [job for name in own for job in measured[name]]
            for group in groups:
                tried = self._add_measurements(group, needs, sources)
                merges += self._add_merge(group, measured[group[0]] + tried)
        return merges

    def _add_measurements(self, group: Group, needs: tuple[Edge, ...], sources: Measured | None = None) -> Measured:
        """Add the jobs that measure the models of a group of arms, one for each kind of model.

        With `sources`, jobs that find suffixes: those that try the suffixes. Where a source fails, they are missing.
        """
        (name, arms, made_by), found = group, []
        for kind in MODEL_KINDS:
            tasks = self.study.evaluation.eval_tasks(kind)
            elements = [
                Element(f"{arm.key}/{task.name}", arm=arm.name, seed=arm.replicate.seed, kind=kind, eval_task=task)
                for arm in arms
                for task in tasks
                if (task.task.kind == "transfer") == (sources is not None)
            ]
            if elements:
                after = [Edge(job, "afterany") for job, of in sources or () if of == kind]
                job = f"evaluate-{kind}-{name}" if sources is None else f"evaluate-{kind}-transfer-{name}"
                found.append((self._add(job, "evaluate", elements, Edge(made_by[kind]), *needs, *after), kind))
        return found

    def _add_merge(self, group: Group, measured: Measured) -> list[str]:
        """Add the job that merges the rows of these jobs, if there are any; returns its name."""
        if not measured:
            return []
        # A failed evaluation does not hold back the others: the report says what is missing.
        after = [Edge(job, "afterany") for job, _ in measured]
        kinds = list(dict.fromkeys(kind for _, kind in measured))
        return [self._add(f"merge-{group[0]}", "merge", _models(group[1], kinds), *after)]


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
