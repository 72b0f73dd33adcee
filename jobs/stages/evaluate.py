"""Evaluate: the answers, suffixes or probes of one evaluation task on one model."""

from __future__ import annotations

from curricula.jobs.slurm.profile import Ask
from curricula.jobs.stages.base import Stage, Work
from curricula.jobs.study import Study
from curricula.progress import Progress


class Evaluate(Stage):
    name, section = "evaluate", "evaluation"

    def run(self, work: Work, progress: Progress) -> None:
        from curricula.eval.runner import run_element

        run, element, arm = work.run, work.element, work.arm
        assert element.eval_task is not None
        run_element(
            element.eval_task,
            run.model(arm.key, element.kind),
            element.kind,
            work.study.evaluation,
            data_root=run.data_root,
            out=run.evaluation(arm.key, element.kind),
            seed=arm.replicate.seed,
            probe_seed=work.study.first_seed,
            rows_of=lambda name: run.evaluation(work.study.training(name, element.seed).key, element.kind),
            progress=progress,
        )

    def is_complete(self, work: Work) -> bool:
        task = work.element.eval_task
        assert task is not None
        path = task.path(work.run.evaluation(work.arm.key, work.element.kind))
        return path.is_file() and (path.stat().st_size > 0 or task.shards > 1)  # a shard may have no prompts

    def saved(self, work: Work) -> int:
        folder = work.run.evaluation(work.arm.key, work.element.kind)
        return sum(path.stat().st_size for path in folder.rglob("*.jsonl")) if folder.is_dir() else 0

    def ask(self, study: Study) -> Ask:
        asked = study.resources.evaluation
        return Ask(gpus_per_node=min(1, asked.gpus_per_node), hours=asked.hours)
