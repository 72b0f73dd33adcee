"""Report: the page with the figures and tables of a run."""

from __future__ import annotations

from pathlib import Path

from curricula.jobs.estimates import describe
from curricula.jobs.plan import Plan
from curricula.jobs.run import Run
from curricula.jobs.slurm.profile import Ask
from curricula.jobs.stages.base import Stage, Work, are_filled
from curricula.jobs.study import Study
from curricula.progress import Progress, silent


class Report(Stage):
    name, section, ends_study = "report", "report", True

    def run(self, work: Work, progress: Progress) -> None:
        report(work.run, work.plan, progress)

    def is_complete(self, work: Work) -> bool:
        return are_filled(work.run.report / "index.html")

    def ask(self, study: Study) -> Ask:
        return Ask(hours=study.resources.data_hours)


def report(run: Run, plan: Plan, progress: Progress = silent) -> Path:
    """Write the report of a run, finished or not; returns the path of its page."""
    from curricula.eval import MODEL_KINDS
    from curricula.eval.analysis import ArmInfo
    from curricula.eval.report.page import write_report

    arms = [ArmInfo(arm.name, arm.start, arm.interventions) for arm in plan.arms]
    tasks = {kind: [task.name for task in run.study.evaluation.tasks_of(kind)] for kind in MODEL_KINDS}
    described = {"plan": describe(plan, run.shards), "provenance": run.provenance, "tasks": tasks}
    return write_report(run.root, arms, described, run.report, progress)
