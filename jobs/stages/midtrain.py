"""Midtrain: a stage of training on pretraining text with a learning rate of its own. Another element exports its model."""

from __future__ import annotations

from pathlib import Path

from curricula.curriculum.config import Midtrain as MidtrainConfig
from curricula.curriculum.stages import samples_of
from curricula.jobs.estimates import check_epochs, gpu_hours_of
from curricula.jobs.plan import Element
from curricula.jobs.slurm.profile import Request
from curricula.jobs.stages.base import Work
from curricula.jobs.stages.pretrain import loss_of, shard_files, sources_of, validation_batches
from curricula.jobs.stages.scratch import near
from curricula.jobs.stages.tune import Tune, train_stage
from curricula.jobs.study import Study
from curricula.progress import Progress


class Midtrain(Tune):
    name, section = "midtrain", "pretraining"

    def run(self, work: Work, progress: Progress) -> None:
        from curricula.curriculum.stream.pretraining import PretrainingBatches

        run, study, arm = work.run, work.study, work.arm
        check_epochs(work.plan, run.shards)
        stage = study.tree.stages[work.element.kind]
        assert stage.global_batch
        stream = study.tree.stream(work.element.kind, arm, study.budget)
        batches = PretrainingBatches(
            stream.phases,
            near(run.shards, sources_of(stream.phases)),
            study.budget.sequence_length,
            stage.global_batch,
            arm.replicate.data_seed,
            study.model.resolve().vocabulary,
            stream.begin,
            **loss_of(run),
        )
        train_stage(work, batches, progress, seed=arm.replicate.init_seed, validation=validation_batches(run, study))

    def inputs(self, work: Work) -> list[Path]:
        """What any stage reads, and the first shard of each source."""
        stream = work.study.tree.stream(work.element.kind, work.arm, work.study.budget)
        return [*super().inputs(work), *shard_files(work.run, stream.phases)]

    def gpu_hours(self, study: Study, element: Element, request: Request) -> float:
        stage = study.tree.stages[element.kind]
        assert isinstance(stage, MidtrainConfig)
        return gpu_hours_of(study, samples_of(stage) * study.budget.sequence_length)
