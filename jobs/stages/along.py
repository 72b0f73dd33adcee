"""Along: a model that is taken from the midst of a training: its export, its evaluation and the judging of its answers."""

from __future__ import annotations

from curricula.jobs.plan import Element
from curricula.jobs.stages.base import Work, are_filled
from curricula.jobs.stages.evaluate import Evaluate
from curricula.jobs.stages.export import checkpoint_of, export_model
from curricula.jobs.study import Study
from curricula.progress import Progress


class Along(Evaluate):
    name = "along"

    def run(self, work: Work, progress: Progress) -> None:
        from curricula.eval.judging.merge import Merge
        from curricula.eval.models import load_model
        from curricula.eval.runner import run_element
        from curricula.model.checkpoints.folder import read_info

        run, study, kind, config = work.run, work.study, work.element.kind, work.study.evaluation
        export_model(work, progress)
        step = read_info(checkpoint_of(work)).step
        raw = study.tree.is_raw(kind)
        loaded = load_model(
            work.model_folder, kind, None, config.precision, raw, step, deterministic=config.deterministic
        )
        tasks = study.eval_tasks(kind, on_the_way=True)
        for task in tasks:
            run_element(
                task,
                loaded,
                kind,
                config,
                data_root=run.data_root,
                out=work.rows_folder,
                seed=work.arm.replicate.seed,
                probe_seed=study.first_seed,
                progress=progress,
            )
        world = run.world if study.world else None
        Merge(work.rows_folder, kind, config, world, tasks=tasks).judge(progress)

    def flops(self, study: Study, element: Element) -> float:
        return sum(self._flops_of(study, task) for task in study.eval_tasks(element.kind, on_the_way=True))

    def is_complete(self, work: Work) -> bool:
        from curricula.eval.judging.merge import is_merged

        tasks = work.study.eval_tasks(work.element.kind, on_the_way=True)
        has_rows = are_filled(*(task.path(work.rows_folder) for task in tasks if task.shards == 1))
        return has_rows and is_merged(work.rows_folder, work.element.kind, work.study.evaluation, tasks)
