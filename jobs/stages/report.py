"""Report: the page with the figures and tables of a run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from curricula.curriculum.config import point_label
from curricula.curriculum.plan import TRUNK, branch_of
from curricula.curriculum.stages import BASE, model_name
from curricula.errors import UserError
from curricula.eval.benchmarks import difference
from curricula.jobs.estimates import describe
from curricula.jobs.plan import Plan
from curricula.jobs.run import Run
from curricula.jobs.slurm.profile import Ask
from curricula.jobs.stages.base import Stage, Work, are_filled
from curricula.jobs.study import Study
from curricula.progress import Progress, silent

if TYPE_CHECKING:
    from curricula.eval.analysis.along import Course


class Report(Stage):
    name, section, ends_study = "report", "report", True

    def run(self, work: Work, progress: Progress) -> None:
        report(work.run, work.plan, progress)

    def is_complete(self, work: Work) -> bool:
        return are_filled(work.run.report / "index.html")

    def ask(self, study: Study) -> Ask:
        return Ask(hours=study.resources.data_hours)


def report(run: Run, plan: Plan, progress: Progress = silent, out: Path | None = None) -> Path:
    """Write the report of a run, finished or not, to `out` (by default RUN/report); returns the path of its page."""
    from curricula.eval.analysis import ArmInfo
    from curricula.eval.report.page import write_report

    arms = [ArmInfo(arm.name, arm.start, arm.interventions, arm.replicate.seed, arm.key) for arm in run.study.trainings]
    stages = (BASE, *run.study.tree.stages)
    tasks = {name: list(dict.fromkeys(task.task.name for task in run.study.eval_tasks(name))) for name in stages}
    described = {
        "plan": describe(plan, run.shards),
        "provenance": run.provenance,
        "tasks": tasks,
        "having": run.study.tree.arms,
        "papers": run.study.tree.papers,
        "courses": list(_courses(run.study)),
        "changed": _changed_benchmarks(run),
    }
    return write_report(run.root, arms, described, out or run.report, progress)


def _courses(study: Study) -> Iterator[Course]:
    """What is measured along the way, by arm and stage."""
    from curricula.eval.analysis.along import Course

    for stage in (BASE, *study.tree.stages):
        along = study.along(stage)
        for arm in study.trainings:
            if along is None or arm.name not in study.tree.arms[stage]:
                continue
            switch = study.budget.step_at(arm.start)
            if stage == BASE:
                steps = along.steps(study.budget.steps)
                places = tuple(
                    f"{study.branch_at(arm, step)}/{model_name(BASE, point)}" for point, step in steps.items()
                )
                logs = ((arm.replicate.named(TRUNK), switch), (branch_of(arm), None))
                files = tuple((f"pretrain/{branch}/metrics.jsonl", last) for branch, last in dict(logs).items())
                batch, begin = study.budget.global_batch, None
            else:
                config = study.tree.stages[stage]
                places = tuple(f"{arm.key}/{model_name(stage, point)}" for point in map(point_label, along.at))
                files = ((f"tune/{arm.key}/{stage}/metrics.jsonl", None),)
                batch = config.global_batch or 0
                begin = None if config.at else f"{arm.key}/{study.tree.parent(stage)}"
            yield Course(
                arm=arm.name,
                seed=arm.replicate.seed,
                stage=stage,
                tasks=along.tasks,
                points=places,
                begin=begin,
                end=f"{arm.key}/{stage}",
                logs=files,
                step_tokens=batch * study.budget.sequence_length,
            )


def _changed_benchmarks(run: Run) -> dict[str, str]:
    """How the benchmarks that the study accepts as changed differ from the published ones, by name."""
    evaluation, found = run.study.evaluation, {}
    for name in run.study.used_benchmarks:
        if name in evaluation.accept_changed:
            try:
                found[name] = difference(name, run.data_root)
            except UserError:  # a report needs the rows alone
                found[name] = "accepted as changed, and its file cannot be read any more"
    return {name: how for name, how in found.items() if how}
