"""Report: the page with the figures and tables of a run."""

from __future__ import annotations

import contextlib
import csv
import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curricula.curriculum.config import Along as AlongConfig
from curricula.curriculum.config import Tuning, point_label
from curricula.curriculum.plan import Arm
from curricula.curriculum.stages import BASE, model_name
from curricula.curriculum.sweep import points_of
from curricula.curriculum.tokens.shards import content_hash, read_manifest
from curricula.curriculum.tokens.tokenizer import load_tokenizer, token_bytes
from curricula.durable import exclusive_lock, read_jsonl
from curricula.errors import UserError
from curricula.eval.benchmarks import difference
from curricula.eval.judges.registry import load_judge
from curricula.eval.tasks import JUDGED, EvalTask
from curricula.jobs.estimates import describe, describe_point
from curricula.jobs.plan import Plan
from curricula.jobs.run import Run, arm_infos, read_contamination
from curricula.jobs.stages.base import Stage, Work, are_filled
from curricula.jobs.stages.pretrain import validation_batches
from curricula.jobs.study import Study
from curricula.model.config import decay_start
from curricula.progress import Progress, silent

if TYPE_CHECKING:
    from curricula.eval.analysis.along import Course
    from curricula.eval.judges.question import Judge

PATIENCE_S = 1800.0
"""How long to wait while another process writes a report to the same folder; that of a large sweep takes minutes."""


class Report(Stage):
    name, section, ends_study = "report", "report", True

    def run(self, work: Work, progress: Progress) -> None:
        report(work.run, work.plan, progress)

    def is_complete(self, work: Work, made: str | None) -> bool:
        return are_filled(work.run.report / "index.html")


def report(
    run: Run,
    plan: Plan,
    progress: Progress = silent,
    out: Path | None = None,
    unfinished: Sequence[str] = (),
    is_live: bool = False,
) -> Path:
    """Write the report of a run, finished or not, to `out` (by default RUN/report); returns the path of its page.

    `unfinished` says what is running or waiting. A page that `is_live` asks its server for newer versions of itself.
    """
    from curricula.eval.report.page import write_report
    from curricula.eval.report.training import read_training

    out, study = out or run.report, run.study
    spent = None if study.sweep is None else read_training(run.root, describe(plan, run.shards))

    def write(point: Study, folder: Path, progress: Progress) -> Path:
        described = _described(run, plan, point) | {"unfinished": unfinished, "sweep": spent}
        return write_report(run.root, arm_infos(point), described, folder, progress, is_live)

    with exclusive_lock(out / ".lock", wait_s=PATIENCE_S):  # files have one writer at a time
        page = write(study, out, progress) if study.sweep is None else _write_sweep(study, out, progress, write)
    if study.tracking.wandb_project and not is_live:
        track_report(study.tracking.wandb_project, run.root, out)
    return page


def _write_sweep(study: Study, out: Path, progress: Progress, write: Callable[[Study, Path, Progress], Path]) -> Path:
    """Call `write` for the report of each point of a sweep, and write the overview; returns the path of its page."""
    from curricula.eval.report.overviews import POINTS, SweptPoint, write_overview

    assert study.sweep is not None
    found = []
    for number, (name, point) in enumerate(points_of(study.sweep).items()):

        def part(done: int, total: int, number: int = number, **figures: Any) -> None:
            progress(number * total + done, len(study.variants) * total, **figures)

        variant = study.variants[name]
        page = write(variant, out / POINTS / name, part)
        settings = ", ".join(f"{key}: {value}" for key, value in point.items())
        found.append(SweptPoint(name, settings, variant.model.resolve().parameters, variant.budget.tokens, page))
    return write_overview(study.name, found, out)


def _described(run: Run, plan: Plan, study: Study) -> dict[str, Any]:
    """What `write_report` needs to know about a study without a sweep, or about one point of a sweep."""
    stages = (BASE, *study.tree.stages)
    losses, missing = _held_out_losses(run, study)
    return {
        "plan": describe_point(plan, study, run.shards),
        "provenance": run.provenance,
        "tasks": {name: list(dict.fromkeys(map(_planned_name, study.eval_tasks(name)))) for name in stages},
        "having": study.tree.arms,
        "parents": _comparable_parents(study),
        "papers": study.tree.papers,
        "courses": list(_courses(study)),
        "changed": _changed_benchmarks(run),
        "bits_per_byte": losses,
        "bits_missing": missing,
        "contamination": [row for row in read_contamination(run) if row["text"] == "all"],
        "judges": _rule_judges(run),
        "tagged": _are_tuned_apart(study),
        "cooled": _are_cooled_apart(study),
        "hashes": _hashes(run),
    }


def _comparable_parents(study: Study) -> dict[str, str]:
    """The stage that each stage continues from, if the models of both are asked in the same form. One that begins at an earlier
    point of pretraining has none, since it does not continue from the base model."""
    tree = study.tree
    parents = {name: tree.parent(name) for name, stage in tree.stages.items() if stage.at is None}
    return {name: parent for name, parent in parents.items() if tree.is_raw(name) == tree.is_raw(parent)}


def _are_tuned_apart(study: Study) -> bool:
    """Whether some stage tunes arms with different shares of tagged harmful conversations."""
    return any(
        len({stage.tagged_share(arm.name, arm.interventions) for arm in study.arms if arm.name in study.tree.arms[name]}) > 1
        for name, stage in study.tree.stages.items()
        if isinstance(stage, Tuning)
    )


def _are_cooled_apart(study: Study) -> bool:
    """Whether the learning rates of arms begin to fall at different steps, for example because some have a cooldown."""
    return len({decay_start(study.budget.steps, study.pretraining_of(arm).schedule) for arm in study.arms}) > 1


def _planned_name(task: EvalTask) -> str:
    return f"capability {task.benchmark}" if task.task.kind == "capability" else task.task.name


def _courses(study: Study) -> Iterator[Course]:
    """What is measured along the trainings, by arm and stage."""
    for stage in (BASE, *study.tree.stages):
        if along := study.along(stage):
            yield from (_course(study, arm, stage, along) for arm in study.trainings if arm.name in study.tree.arms[stage])


def _course(study: Study, arm: Arm, stage: str, along: AlongConfig) -> Course:
    from curricula.eval.analysis.along import Course

    budget, owners = study.budget, study.whole.owners
    owner, begin = owners[arm.key, stage], None
    steps: int | None = budget.steps
    if stage == BASE:
        *before, last = study.path(arm)
        ends: dict[str, int | None] = {**{segment.branch: segment.stop for segment in before}, last.branch: None}
        logs = [(f"pretrain/{branch}/metrics.jsonl", end) for branch, end in ends.items()]
        batch = budget.global_batch
        makers = {point: study.segment_at(arm, step).branch for point, step in along.steps(budget.steps).items()}
    else:
        config, parent = study.tree.stages[stage], study.tree.parent(stage)
        begin = None if config.at else f"{owners[arm.key, parent]}/{parent}"
        logs = [(f"tune/{owner}/{stage}/metrics.jsonl", None)]
        steps, batch = config.total_steps, config.global_batch or 0
        makers = {point_label(place): owner for place in along.at}
    return Course(
        arm=arm.name,
        seed=arm.replicate.seed,
        stage=stage,
        tasks=along.tasks,
        points=tuple(f"{maker}/{model_name(stage, point)}" for point, maker in makers.items()),
        begin=begin,
        end=f"{owner}/{stage}",
        logs=tuple(logs),
        step_tokens=batch * budget.sequence_length,
        steps=steps,
    )


def _rule_judges(run: Run) -> dict[str, Judge]:
    """The study's judges that decide by rules, by kind: they can judge answers that no `merge` job has judged yet."""
    found: dict[str, Judge] = {}
    for kind in JUDGED:
        settings = run.study.evaluation.judge_of(kind)
        if not settings.model_name:
            with contextlib.suppress(UserError, OSError):  # the world may not be made yet
                found[kind] = load_judge(settings, kind, run.world if run.study.world else None)
    return found


def _hashes(run: Run) -> list[tuple[str, str, str]]:
    """(what, name, hash) of the study's file, its code, and the shards of each source."""
    found = [("study", "study.yaml", hashlib.sha256((run.root / "study.yaml").read_bytes()).hexdigest())]
    found += [("code", "snapshot of the jobs", folder.name) for folder in sorted((run.root / "code").glob("*"))]
    for source, settings in run.study.sources.items():
        with contextlib.suppress(UserError, OSError):  # the source may not be tokenised yet
            manifests = [read_manifest(run.shards / source / shard) for shard in settings.shard_names]
            found += [("tokens", source, content_hash(manifests)), ("tokenizer", source, manifests[-1]["tokenizer"])]
    return found


def track_report(project: str, root: Path, folder: Path) -> None:
    """Send the tables and figures of a report to Weights & Biases, as one run there for the run folder `root`."""
    from curricula.model.runtime.reporting import wandb_run

    tracked = wandb_run(project, f"{root.resolve()}/report", f"{root.resolve().name}/report")
    import wandb

    for path in sorted(folder.glob("tables/*.csv")):
        with open(path, encoding="utf-8", newline="") as file:
            head, *rows = csv.reader(file)
        tracked.log({f"tables/{path.stem}": wandb.Table(columns=head, data=rows)})
    for path in sorted(folder.glob("figures/*.png")):
        tracked.log({f"figures/{path.stem}": wandb.Image(str(path))})
    tracked.finish()


def _changed_benchmarks(run: Run) -> dict[str, str]:
    """How the benchmarks that the study accepts as changed differ from the published ones, by name."""
    evaluation, found = run.study.evaluation, {}
    for name in run.study.used_benchmarks:
        if name in evaluation.accept_changed and name not in evaluation.prompts:
            try:
                found[name] = difference(name, run.data_root)
            except UserError:  # a report needs only the rows
                found[name] = "accepted as changed, but its file can no longer be read"
    return {name: how for name, how in found.items() if how}


def _held_out_losses(run: Run, study: Study) -> tuple[list[dict[str, Any]], str]:
    """The last loss of each base model on the held-out text of each source, with that text's bytes per token; and why there are
    none, if the files for counting bytes are gone."""
    losses = [
        {"arm": arm.name, "seed": arm.replicate.seed, "source": name, "loss": loss}
        for arm in study.trainings
        for row in read_jsonl(run.branch(study.path(arm)[-1].branch) / "metrics.jsonl")
        if row.get("step") == study.budget.steps and isinstance(row.get("validation"), dict)
        for name, loss in row["validation"].items()
        # In losses that version 0.1.0 recorded of tagged sources, the tags count.
        if name in study.sources and ("validation_of" in row or not study.sources[name].tag_rate)
    ]
    if not losses:
        return [], ""
    try:
        sizes = token_bytes(load_tokenizer(run.tokenizer))
        if sizes is None:
            return [], ""
        texts = {name: batches.bytes_per_token(sizes) for name, batches in validation_batches(run, study).items()}
    except (UserError, OSError) as error:  # shards can be moved away once models are trained
        return [], str(error)
    return [{**one, "bytes_per_token": texts[one["source"]]} for one in losses if texts.get(one["source"])], ""
