"""The study as a graph of jobs: nodes are arrays of elements, edges say when the next may start.

Edges have Slurm's meanings: `afterok` waits for all elements of the other job, `aftercorr` for the element of the same
index, `afterany` for all, failed or not. Arms that start together share their jobs, so that an early arm's models do not
wait for a late arm's pretraining. Tuned models are exported by the element that tunes them; a base model is by one of its own,
which needs one process where pretraining has many.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from curricula.curriculum.plan import TRUNK, Arm, Segment, branch_of, percent
from curricula.eval import MODEL_KINDS, EvalTask, ModelKind
from curricula.jobs.downloads import Stage, study_downloads
from curricula.jobs.study import Study

LIGHT_STAGES = ("fetch", "prepare", "tokenize")  # of the data: they need no GPU
EdgeKind = Literal["afterok", "aftercorr", "afterany"]


@dataclass(frozen=True)
class Edge:
    job: str
    kind: EdgeKind = "afterok"


@dataclass(frozen=True)
class Element:
    """One unit of work. Which fields are set depends on the stage; `label` is unique within the job."""

    label: str
    source: str = ""
    shard: str = ""
    segment: str = ""
    arm: str = ""
    kind: ModelKind = "base"
    eval_task: EvalTask | None = None  # of the evaluation of the arm's model


@dataclass(frozen=True)
class Job:
    """An array: all elements do the same `stage` (see jobs/stages/stages.py)."""

    name: str
    stage: str
    elements: tuple[Element, ...]
    needs: tuple[Edge, ...] = ()


def build_graph(study: Study) -> list[Job]:
    """All jobs of a study, each after those it needs."""
    jobs = data_jobs(study)

    pretraining: dict[str, str] = {}  # segment name -> the job that trains it
    groups: dict[int, list[Arm]] = defaultdict(list)  # arms that leave the trunk at the same step share their jobs
    for arm in study.arms():
        groups[study.budget.step_at(arm.start)].append(arm)
    segments = study.segments()
    for segment in (segment for segment in segments if segment.branch == TRUNK):
        jobs.append(_pretrain(f"pretrain-trunk-{segment.stop}", [segment], pretraining))
    for arms in groups.values():
        start = arms[0].start
        branches = [segment for segment in segments if segment.branch != TRUNK and segment.arm in arms]
        if branches:
            jobs.append(_pretrain(f"pretrain-{percent(start)}", branches, pretraining))

    # Apart, so that a licence that is missing for a benchmark does not hold back the training.
    benchmarks = _fetches("fetch-benchmarks", "evaluation", study)
    jobs += benchmarks
    needed = tuple(Edge(job.name) for job in benchmarks)
    evaluations: list[Job] = []
    for arms in groups.values():
        name = percent(arms[0].start)
        ends = [next(s for s in reversed(segments) if s.branch == branch_of(arm)) for arm in arms]
        base, trained = f"export-base-{name}", Edge(pretraining[ends[0].name], "aftercorr")
        jobs.append(_of_models(base, "export", arms, ["base"], trained))
        jobs.append(_of_models(f"instruct-{name}", "tune", arms, ["instruct"], trained))
        jobs.append(_of_models(f"benign-{name}", "tune", arms, ["benign"], Edge(f"instruct-{name}", "aftercorr")))
        measured = []
        for kind, model in zip(MODEL_KINDS, (base, f"instruct-{name}", f"benign-{name}")):
            elements = tuple(
                Element(f"{arm.name}/{task.name}", arm=arm.name, kind=kind, eval_task=task)
                for arm in arms
                for task in study.evaluation.eval_tasks(kind)
            )
            if elements:
                measured.append(Job(f"evaluate-{kind}-{name}", "evaluate", elements, (Edge(model), *needed)))
        if measured:
            # What failed is missing from the rows, and said to be; it does not hold back the rest.
            kinds = [job.elements[0].kind for job in measured]
            after = [Edge(job.name, "afterany") for job in measured]
            evaluations += [*measured, _of_models(f"merge-{name}", "merge", arms, kinds, *after)]
    jobs += evaluations
    merges = tuple(Edge(job.name, "afterany") for job in evaluations if job.stage == "merge")
    jobs.append(Job("report", "report", (Element("report"),), merges))
    return jobs


def _of_models(name: str, stage: str, arms: list[Arm], kinds: list[ModelKind], *needs: Edge) -> Job:
    """A job with an element for the model of each kind of each arm."""
    elements = [
        Element(arm.name if len(kinds) == 1 else f"{arm.name}/{kind}", arm=arm.name, kind=kind)
        for kind in kinds
        for arm in arms
    ]
    return Job(name, stage, tuple(elements), needs)


def data_jobs(study: Study) -> list[Job]:
    """What has to be done before pretraining: the datasets, the tokenizer, every shard of every source on its own."""
    shards = tuple(
        Element(f"{name}/{shard}", source=name, shard=shard)
        for name, source in study.sources.items()
        for shard in source.shard_names
    )
    jobs = _fetches("fetch", "data", study)
    needs = tuple(Edge(job.name) for job in jobs)
    jobs.append(Job("prepare", "prepare", (Element("prepare"),), needs))
    jobs.append(Job("tokenize", "tokenize", shards, (Edge("prepare"),)))
    return jobs


def _fetches(name: str, stage: Stage, study: Study) -> list[Job]:
    """The job that brings what `stage` reads, if it reads anything from outside."""
    wanted = [] if study.world else study_downloads(study, Path())
    elements = tuple(Element(item.label) for item in wanted if item.stage == stage)
    return [Job(name, "fetch", elements)] if elements else []


def _pretrain(name: str, segments: list[Segment], jobs_by_segment: dict[str, str]) -> Job:
    """The job of `segments`, which begin from the same parent; records itself as the job that trains them."""
    parent = segments[0].parent
    needs = (Edge(jobs_by_segment[parent]),) if parent else (Edge("tokenize"),)
    jobs_by_segment.update({segment.name: name for segment in segments})
    return Job(name, "pretrain", tuple(Element(s.branch, segment=s.name) for s in segments), needs)
