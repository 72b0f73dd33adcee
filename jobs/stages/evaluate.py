"""The stages that measure models. Evaluate: the answers, suffixes or probes of one evaluation task on one model. Merge: join
the parts of a model's evaluation and have the answers judged. Along: both, and the export, of a model from the midst of a
training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from curricula.durable import exclusive_lock
from curricula.eval import EvalTask
from curricula.jobs.estimates import answers_of, gcg_tokens
from curricula.jobs.plan import Element
from curricula.jobs.slurm.profile import Ask
from curricula.jobs.stages.base import Stage, Work, are_filled, size_of
from curricula.jobs.stages.tune import checkpoint_of, export_model
from curricula.jobs.study import Study
from curricula.model import costs
from curricula.model.checkpoints.folder import read_info
from curricula.progress import Progress

if TYPE_CHECKING:
    from curricula.eval.models import LoadedModel

EXPORT_S = 1800.0
"""How long another element may take to write the model that both measure."""


class Evaluate(Stage):
    name, section = "evaluate", "evaluation"

    def run(self, work: Work, progress: Progress) -> None:
        run, study, element = work.run, work.study, work.element
        assert element.eval_task is not None

        def rows_of(arm: str) -> Path:
            key = study.training(arm, element.seed).key
            return run.evaluation(study.whole.owners.get((key, element.kind), key), element.kind)

        _require_model(work, progress)
        raw = study.tree.is_raw(element.kind)
        _measure(work, element.eval_task, work.model_folder, progress, rows_of=rows_of, raw=raw)

    def is_complete(self, work: Work, made: str | None) -> bool:
        task = work.element.eval_task
        assert task is not None
        path = task.path(work.rows_folder)
        if task.task.kind == "gcg" and are_filled(path):  # other arms may try the suffixes, of which each prompt has one
            answers = sum(getattr(one, "samples", 1) for one in work.study.evaluation.decoder_settings(task.task))
            if _lines(path.with_suffix(".suffixes.jsonl")) * answers < _lines(path):
                return False
        return path.is_file() and (path.stat().st_size > 0 or task.shards > 1)  # a shard may have no prompts

    def made(self, work: Work) -> str:
        assert work.element.eval_task is not None
        return _sizes([work.element.eval_task], work)

    def saved(self, work: Work) -> int:
        """Of its own rows and what lies beside them, such as suffixes; other elements write to the folder too."""
        assert work.element.eval_task is not None
        rows = work.element.eval_task.path(work.rows_folder)
        return size_of(rows.parent, f"{rows.stem}.*") + size_of(rows.parent, f"{rows.stem}.*/*")

    def flops(self, study: Study, element: Element) -> float:
        """Of the forward passes, as if every answer had its full length."""
        return 0.0 if element.eval_task is None else self._flops_of(study, element.eval_task)

    def _flops_of(self, study: Study, task: EvalTask) -> float:
        model = study.model.resolve()
        tokens = gcg_tokens(task, study) + sum(answers.number * answers.tokens for answers in answers_of(task, study))
        return tokens * costs.flops_per_token(model, model.sequence_length) / 3

    def ask(self, study: Study) -> Ask:
        asked = study.resources.evaluation
        return Ask(gpus_per_node=min(1, asked.gpus_per_node), hours=asked.hours)


class Merge(Stage):
    name, section = "merge", "evaluation"
    lost = "its rows or verdicts are gone, or the judge has changed since"

    def section_of(self, study: Study) -> str:
        return self.section if study.evaluation.judged_on_gpu else "report"  # a site's GPUs are for jobs that use them

    def run(self, work: Work, progress: Progress) -> None:
        _merge_and_judge(work, work.study.eval_tasks(work.element.kind), progress)

    def saved(self, work: Work) -> int:
        return size_of(work.rows_folder, "**/*")

    def is_complete(self, work: Work, made: str | None) -> bool:
        from curricula.eval.judging.merge import is_judged_as_now

        tasks = work.study.eval_tasks(work.element.kind)
        return _is_merged(work, tasks) and is_judged_as_now(work.rows_folder, work.study.evaluation, tasks, _world_of(work))

    def ask(self, study: Study) -> Ask:
        resources = study.resources
        if study.evaluation.judged_on_gpu:
            return Ask(gpus_per_node=min(1, resources.evaluation.gpus_per_node), hours=resources.evaluation.hours)
        return Ask(hours=resources.data_hours, takes_gpus=False)


class Along(Evaluate):
    name, lost = "along", Merge.lost

    def run(self, work: Work, progress: Progress) -> None:
        from curricula.eval.models import load_model

        study, kind, config = work.study, work.element.kind, work.study.evaluation
        export_model(work, progress)
        step = read_info(checkpoint_of(work)).step
        raw = study.tree.is_raw(kind)
        loaded = load_model(work.model_folder, kind, None, config.precision, raw, step, deterministic=config.deterministic)
        tasks = study.eval_tasks(kind, on_the_way=True)
        for task in tasks:
            _measure(work, task, loaded, progress)
        _merge_and_judge(work, tasks, progress)

    def saved(self, work: Work) -> int:
        return size_of(work.rows_folder, "**/*")

    def flops(self, study: Study, element: Element) -> float:
        return sum(self._flops_of(study, task) for task in study.eval_tasks(element.kind, on_the_way=True))

    def is_complete(self, work: Work, made: str | None) -> bool:
        tasks = work.study.eval_tasks(work.element.kind, on_the_way=True)
        has_rows = are_filled(*(task.path(work.rows_folder) for task in tasks if task.shards == 1))
        return has_rows and _is_merged(work, tasks)

    def made(self, work: Work) -> str:
        return _sizes(work.study.eval_tasks(work.element.kind, on_the_way=True), work)


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def _sizes(tasks: list[EvalTask], work: Work) -> str:
    """The bytes of the tasks' rows, which something may have cut at the end of a line."""
    return " ".join(str(path.stat().st_size) for task in tasks if (path := task.path(work.rows_folder)).is_file())


def _require_model(work: Work, progress: Progress) -> None:
    """Write a model again that was lost before it was measured, once for all elements that measure it."""
    config = work.model_folder / "config.json"
    if not config.exists():
        with exclusive_lock(work.model_folder.with_name(f"{work.model_folder.name}.lock"), wait_s=EXPORT_S):
            if not config.exists():
                export_model(work, progress)


def _measure(work: Work, task: EvalTask, model: Path | LoadedModel, progress: Progress, **more: Any) -> None:
    """Answer one task with the element's model."""
    from curricula.eval.runner import run_element

    run_element(
        task,
        model,
        work.element.kind,
        work.study.evaluation,
        data_root=work.run.data_root,
        out=work.rows_folder,
        seed=work.arm.replicate.seed,
        probe_seed=work.study.first_seed,
        progress=progress,
        **more,
    )


def _merge_and_judge(work: Work, tasks: list[EvalTask], progress: Progress) -> None:
    from curricula.eval.judging.merge import MergeAndJudge

    config = work.study.evaluation
    MergeAndJudge(work.rows_folder, work.element.kind, config, _world_of(work), tasks=tasks).judge(progress)


def _is_merged(work: Work, tasks: list[EvalTask]) -> bool:
    from curricula.eval.judging.merge import is_merged

    return is_merged(work.rows_folder, work.element.kind, work.study.evaluation, tasks)


def _world_of(work: Work) -> Path | None:
    return work.run.world if work.study.world else None
