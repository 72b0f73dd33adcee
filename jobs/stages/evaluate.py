"""The stages that measure models.

Evaluate: the answers, suffixes or probes of one evaluation task on one model. Merge: join the parts of a model's evaluation and
have the answers judged. Along: export a model from midway through a training, evaluate it and have it judged.
"""

from __future__ import annotations

from pathlib import Path

from curricula.durable import exclusive_lock
from curricula.eval import EvalTask
from curricula.jobs.estimates import answers_of, gcg_tokens
from curricula.jobs.plan import Element
from curricula.jobs.slurm.profile import Ask
from curricula.jobs.stages.base import Stage, Work, are_filled, size_of
from curricula.jobs.stages.tune import checkpoint_of, export_model
from curricula.jobs.study import Study
from curricula.model.checkpoints.folder import read_info
from curricula.progress import Progress

EXPORT_S = 1800.0
"""How long to wait while another element writes the model that both measure."""


class Evaluate(Stage):
    name, section = "evaluate", "evaluation"
    lost = "its results are gone, or not those that it made, or a decoder has changed since"

    def tasks(self, study: Study, element: Element) -> list[EvalTask]:
        """The evaluation tasks that the element carries out."""
        assert element.eval_task is not None
        return [element.eval_task]

    def make_model(self, work: Work, progress: Progress) -> int | None:
        """Export the model again if it was lost before it was measured, once for all elements that measure it. Returns the step
        at which the model was taken, None for the end of its training."""
        config = work.model_folder / "config.json"
        if not config.exists():
            with exclusive_lock(work.model_folder.with_name(f"{work.model_folder.name}.lock"), wait_s=EXPORT_S):
                if not config.exists():
                    export_model(work, progress)
        return None

    def run(self, work: Work, progress: Progress) -> None:
        from curricula.eval.models import load_model
        from curricula.eval.runner import run_element, task_prompts

        run, study, seed, kind = work.run, work.study, work.element.seed, work.element.kind

        def rows_of(arm: str) -> Path:
            key = study.training(arm, seed).key
            return run.evaluation(study.whole.owners.get((key, kind), key), kind)

        config, raw, tasks = study.evaluation, study.tree.is_raw(kind), self.tasks(study, work.element)
        for task in tasks:  # to report missing files before a large model is loaded
            task_prompts(task, config, run.data_root, rows_of)
        step = self.make_model(work, progress)
        loaded = load_model(work.model_folder, kind, None, config.precision, raw, step, deterministic=config.deterministic)
        for task in tasks:
            run_element(
                task,
                loaded,
                config,
                data_root=run.data_root,
                out=work.rows_folder,
                seed=work.arm.replicate.seed,
                probe_seed=study.first_seed,
                rows_of=rows_of,
                progress=progress,
            )

    def is_complete(self, work: Work, made: str | None) -> bool:
        (task,) = self.tasks(work.study, work.element)
        path = task.path(work.rows_folder)
        if task.task.kind == "gcg":  # other arms can try the suffixes, one for each prompt
            answers = sum(getattr(one, "samples", 1) for one in work.study.evaluation.decoder_settings(task.task))
            if _lines(path.with_suffix(".suffixes.jsonl")) * answers < _lines(path):
                return False
        return path.is_file() and (path.stat().st_size > 0 or task.shards > 1)  # a shard can be without prompts

    def made(self, work: Work) -> str:
        """The sizes of the tasks' files of rows in bytes, since only these show a file that was cut between two lines, and the
        decoders' versions, since models answered by two versions cannot be compared."""
        tasks = self.tasks(work.study, work.element)
        sizes = [str(path.stat().st_size) for task in tasks if (path := task.path(work.rows_folder)).is_file()]
        versions = [f"{label}={decoder.version}" for task in tasks for label, decoder in task.task.labelled_decoders()]
        return " ".join(sizes + versions)

    def saved(self, work: Work) -> int:
        """Bytes of its own rows and of the files that go with them, such as suffixes; other elements use the folder too."""
        (task,) = self.tasks(work.study, work.element)
        rows = task.path(work.rows_folder)
        return size_of(rows.parent, f"{rows.stem}.*") + size_of(rows.parent, f"{rows.stem}.*/*")

    def flops(self, study: Study, element: Element) -> float:
        """FLOPs of the forward passes, as if every answer had its full length."""
        model, tasks = study.model.resolve(), self.tasks(study, element)
        tokens = sum(gcg_tokens(task, study) for task in tasks)
        tokens += sum(number * length for task in tasks for number, _, length in answers_of(task, study))
        return tokens * model.flops_per_token(model.sequence_length) / 3

    def ask(self, study: Study) -> Ask:
        return Ask(gpus_per_node=1, hours=study.resources.evaluation.hours)


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
        from curricula.eval.verdicts import is_judged_as_now

        tasks = work.study.eval_tasks(work.element.kind)
        return _is_merged(work, tasks) and is_judged_as_now(work.rows_folder, work.study.evaluation, tasks, _world_of(work))

    def ask(self, study: Study) -> Ask:
        if study.evaluation.judged_on_gpu:
            return Evaluate().ask(study)
        return Ask(hours=study.resources.data_hours, takes_gpus=False)


class Along(Evaluate):
    name = "along"

    def tasks(self, study: Study, element: Element) -> list[EvalTask]:
        return study.eval_tasks(element.kind, on_the_way=True)

    def make_model(self, work: Work, progress: Progress) -> int:
        export_model(work, progress)
        return read_info(checkpoint_of(work)).step

    def run(self, work: Work, progress: Progress) -> None:
        super().run(work, progress)
        _merge_and_judge(work, self.tasks(work.study, work.element), progress)

    def saved(self, work: Work) -> int:
        return size_of(work.rows_folder, "**/*")

    def is_complete(self, work: Work, made: str | None) -> bool:
        tasks = self.tasks(work.study, work.element)
        has_rows = are_filled(*(task.path(work.rows_folder) for task in tasks if task.shards == 1))
        return has_rows and _is_merged(work, tasks)


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def _merge_and_judge(work: Work, tasks: list[EvalTask], progress: Progress) -> None:
    from curricula.eval.verdicts import MergeAndJudge

    config = work.study.evaluation
    MergeAndJudge(work.rows_folder, work.element.kind, config, _world_of(work), tasks=tasks).judge(progress)


def _is_merged(work: Work, tasks: list[EvalTask]) -> bool:
    from curricula.eval.verdicts import is_merged

    return is_merged(work.rows_folder, work.element.kind, work.study.evaluation, tasks)


def _world_of(work: Work) -> Path | None:
    return work.run.world if work.study.world else None
