"""Report: the page with the figures and tables of a run."""

from __future__ import annotations

from pathlib import Path

from curricula.errors import UserError
from curricula.eval.benchmarks import difference
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


def report(run: Run, plan: Plan, progress: Progress = silent, out: Path | None = None) -> Path:
    """Write the report of a run, finished or not, to `out` (by default RUN/report); returns the path of its page."""
    from curricula.eval import MODEL_KINDS
    from curricula.eval.report.page import write_report

    tasks = {kind: [task.name for task in run.study.evaluation.tasks_of(kind)] for kind in MODEL_KINDS}
    described = {
        "plan": describe(plan, run.shards),
        "provenance": run.provenance,
        "tasks": tasks,
        "changed": _changed_benchmarks(run),
    }
    return write_report(run.root, run.arms, described, out or run.report, progress)


def _changed_benchmarks(run: Run) -> dict[str, str]:
    """How the benchmarks that the study accepts as changed differ from the published ones, by name."""
    evaluation, found = run.study.evaluation, {}
    for name in evaluation.used_benchmarks:
        if name in evaluation.accept_changed:
            try:
                found[name] = difference(name, run.data_root)
            except UserError:  # a report needs the rows alone
                found[name] = "accepted as changed, and its file cannot be read any more"
    return {name: how for name, how in found.items() if how}
