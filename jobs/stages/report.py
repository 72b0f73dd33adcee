"""Report: the page with the figures and tables of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from curricula.durable import read_jsonl
from curricula.errors import UserError
from curricula.eval.benchmarks import difference
from curricula.jobs.estimates import describe
from curricula.jobs.plan import Plan
from curricula.jobs.run import Run, read_contamination
from curricula.jobs.slurm.profile import Ask
from curricula.jobs.stages.base import Stage, Work, are_filled
from curricula.jobs.stages.pretrain import held_out
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
    from curricula.eval.analysis import ArmInfo
    from curricula.eval.report.page import write_report

    arms = [ArmInfo(arm.name, arm.start, arm.interventions, arm.replicate.seed, arm.key) for arm in run.study.trainings]
    tasks = {kind: [task.name for task in run.study.evaluation.tasks_of(kind)] for kind in MODEL_KINDS}
    described = {
        "plan": describe(plan, run.shards),
        "provenance": run.provenance,
        "tasks": tasks,
        "changed": _changed_benchmarks(run),
        "bits_per_byte": _held_out_losses(run),
        "contamination": [row for row in read_contamination(run) if row["text"] == "all"],
    }
    return write_report(run.root, arms, described, out or run.report, progress)


def _changed_benchmarks(run: Run) -> dict[str, str]:
    """How the benchmarks that the study accepts as changed differ from the published ones, by name."""
    evaluation, found = run.study.evaluation, {}
    for name in evaluation.used_benchmarks:
        if name in evaluation.accept_changed and name not in evaluation.prompts:
            try:
                found[name] = difference(name, run.data_root)
            except UserError:  # a report needs the rows alone
                found[name] = "accepted as changed, and its file cannot be read any more"
    return {name: how for name, how in found.items() if how}


def _held_out_losses(run: Run) -> list[dict[str, Any]]:
    """The last loss of each base model on the held-out text of each source, and that text's bytes a token."""
    from curricula.curriculum.tokens.tokenizer import load_tokenizer, token_bytes

    study, sizes, found = run.study, None, []
    if run.tokenizer.exists():
        sizes = token_bytes(load_tokenizer(run.tokenizer))
    if sizes is None:
        return []
    try:
        texts = {name: batches.bytes_per_token(sizes) for name, batches in held_out(run).items()}
    except (UserError, OSError):  # shards may be moved away once models are trained
        return []
    for arm in study.trainings:
        for row in read_jsonl(run.base_branch(arm) / "metrics.jsonl"):
            if row.get("step") == study.budget.steps and isinstance(row.get("validation"), dict):
                found += [
                    {
                        "arm": arm.name,
                        "seed": arm.replicate.seed,
                        "source": name,
                        "loss": loss,
                        "bytes_per_token": texts[name],
                    }
                    for name, loss in row["validation"].items()
                    if texts.get(name)
                ]
    return found
