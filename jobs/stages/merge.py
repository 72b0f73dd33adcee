"""Merge: join the parts of a model's evaluation and have the answers judged."""

from __future__ import annotations

from curricula.jobs.slurm.profile import Ask
from curricula.jobs.stages.base import Stage, Work
from curricula.jobs.study import Study
from curricula.progress import Progress


class Merge(Stage):
    name, section = "merge", "evaluation"

    def run(self, work: Work, progress: Progress) -> None:
        from curricula.eval.judging.merge import Merge as MergeAndJudge

        kind, study = work.element.kind, work.study
        world, tasks = work.run.world if study.world else None, study.eval_tasks(kind)
        MergeAndJudge(work.rows_folder, kind, study.evaluation, world, tasks=tasks).judge(progress)

    def is_complete(self, work: Work) -> bool:
        from curricula.eval.judging.merge import is_merged

        kind, study = work.element.kind, work.study
        return is_merged(work.rows_folder, kind, study.evaluation, study.eval_tasks(kind))

    def ask(self, study: Study) -> Ask:
        resources = study.resources
        if study.evaluation.judged_on_gpu:
            return Ask(gpus_per_node=min(1, resources.evaluation.gpus_per_node), hours=resources.evaluation.hours)
        return Ask(hours=resources.data_hours, takes_gpus=False)
