"""Report: the page with the figures and tables of a run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curricula.curriculum.config import point_label
from curricula.curriculum.stages import BASE, model_name
from curricula.curriculum.sweep import points_of
from curricula.durable import read_jsonl
from curricula.errors import UserError
from curricula.eval.benchmarks import difference
from curricula.jobs.estimates import describe, described_size
from curricula.jobs.plan import Plan
from curricula.jobs.run import Run, arm_infos, read_contamination
from curricula.jobs.slurm.profile import Ask
from curricula.jobs.stages.base import Stage, Work, are_filled
from curricula.jobs.stages.pretrain import validation_batches
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
    from curricula.eval.report.sweep import POINTS, SweptPoint, write_overview

    study, out = run.study, out or run.report
    if study.sweep is None:
        return _point_report(run, plan, study, out, progress)
    found = []
    for number, (name, point) in enumerate(points_of(study.sweep).items()):

        def part(done: int, total: int, number: int = number, **figures: Any) -> None:
            progress(number * total + done, len(study.variants) * total, **figures)

        variant = study.variants[name]
        page = _point_report(run, plan, variant, out / POINTS / name, part)
        settings = ", ".join(f"{key}: {value}" for key, value in point.items())
        found.append(SweptPoint(name, settings, variant.model.resolve().parameters(), variant.budget.tokens, page))
    return write_overview(study.name, found, out)


def _point_report(run: Run, plan: Plan, study: Study, out: Path, progress: Progress) -> Path:
    """Write the report of a study without a sweep, or of one point of it."""
    from curricula.eval.report.page import write_report

    stages = (BASE, *study.tree.stages)
    tasks = {name: list(dict.fromkeys(task.task.name for task in study.eval_tasks(name))) for name in stages}
    described = {
        "plan": {**describe(plan, run.shards), **described_size(study)},
        "provenance": run.provenance,
        "tasks": tasks,
        "having": study.tree.arms,
        "papers": study.tree.papers,
        "courses": list(_courses(study)),
        "changed": _changed_benchmarks(run),
        "bits_per_byte": _held_out_losses(run, study),
        "contamination": [row for row in read_contamination(run) if row["text"] == "all"],
    }
    return write_report(run.root, arm_infos(study), described, out, progress)


def _courses(study: Study) -> Iterator[Course]:
    """What is measured along the way, by arm and stage."""
    from curricula.eval.analysis.along import Course

    for stage in (BASE, *study.tree.stages):
        along = study.along(stage)
        for arm in study.trainings:
            if along is None or arm.name not in study.tree.arms[stage]:
                continue
            if stage == BASE:
                steps = along.steps(study.budget.steps)
                places = tuple(
                    f"{study.branch_at(arm, step)}/{model_name(BASE, point)}" for point, step in steps.items()
                )
                *parts, end = study.path(arm)
                logs = {**{one.branch: one.stop for one in parts}, end.branch: None}
                files = tuple((f"pretrain/{branch}/metrics.jsonl", last) for branch, last in logs.items())
                batch, begin = study.budget.global_batch, None
            else:
                config = study.tree.stages[stage]
                key = study.whole.owners[arm.key, stage]
                places = tuple(f"{key}/{model_name(stage, point)}" for point in map(point_label, along.at))
                files = ((f"tune/{key}/{stage}/metrics.jsonl", None),)
                batch = config.global_batch or 0
                parent = study.tree.parent(stage)
                begin = None if config.at else f"{study.whole.owners[arm.key, parent]}/{parent}"
            yield Course(
                arm=arm.name,
                seed=arm.replicate.seed,
                stage=stage,
                tasks=along.tasks,
                points=places,
                begin=begin,
                end=f"{study.whole.owners[arm.key, stage]}/{stage}",
                logs=files,
                step_tokens=batch * study.budget.sequence_length,
            )


def _changed_benchmarks(run: Run) -> dict[str, str]:
    """How the benchmarks that the study accepts as changed differ from the published ones, by name."""
    evaluation, found = run.study.evaluation, {}
    for name in run.study.used_benchmarks:
        if name in evaluation.accept_changed and name not in evaluation.prompts:
            try:
                found[name] = difference(name, run.data_root)
            except UserError:  # a report needs the rows alone
                found[name] = "accepted as changed, and its file cannot be read any more"
    return {name: how for name, how in found.items() if how}


def _held_out_losses(run: Run, study: Study) -> list[dict[str, Any]]:
    """The last loss of each base model on the held-out text of each source, and that text's bytes a token."""
    from curricula.curriculum.tokens.tokenizer import load_tokenizer, token_bytes

    sizes, found = None, []
    if run.tokenizer.exists():
        sizes = token_bytes(load_tokenizer(run.tokenizer))
    if sizes is None:
        return []
    try:
        texts = {name: batches.bytes_per_token(sizes) for name, batches in validation_batches(run, study).items()}
    except (UserError, OSError):  # shards may be moved away once models are trained
        return []
    for arm in study.trainings:
        for row in read_jsonl(run.branch(study.path(arm)[-1].branch) / "metrics.jsonl"):
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
