"""Tune: a stage of finetuning on conversations, and the export of its model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from curricula.curriculum.config import Tuning
from curricula.curriculum.stages import BASE
from curricula.errors import UserError
from curricula.jobs.plan import Element
from curricula.jobs.stages.base import Stage, Work, checkpoint_to_resume, saved_steps
from curricula.jobs.stages.export import base_checkpoint, export_model
from curricula.jobs.study import Study
from curricula.model import TrainJob
from curricula.model.checkpoints import require_checkpoint
from curricula.progress import Progress


class Tune(Stage):
    name, section, trains, unit = "tune", "tuning", True, "steps"

    def names(self, element: Element) -> tuple[str, ...]:
        return (self.name, element.kind)

    def run(self, work: Work, progress: Progress) -> None:
        """All processes train; the first one exports."""
        from curricula.model.runtime.distributed import read_ranks

        tune(work, progress)
        if read_ranks().rank == 0:
            export_model(work, progress)

    def inputs(self, work: Work) -> list[Path]:
        """The tokenizer and the checkpoint to go on from: its own, or that of the model that is trained further."""
        from curricula.model.checkpoints.folder import INFO_FILE

        own = checkpoint_to_resume(work.run.tuning(work.key, work.element.kind))
        return [work.run.tokenizer / "tokenizer.json", (own or _source(work)) / INFO_FILE]

    def saved(self, work: Work) -> int:
        return saved_steps(work.run.tuning(work.key, work.element.kind))

    def flops(self, study: Study, element: Element) -> float:
        """Of one padded row for each conversation, where the study says how many."""
        config, stage = study.model.resolve(), study.tree.stages[element.kind]
        rows = (stage.steps or 0) * (stage.global_batch or 0)
        if isinstance(stage, Tuning):
            rows = stage.conversations or rows
        return rows * config.sequence_length * config.flops_per_token(config.sequence_length)


def tune(work: Work, progress: Progress) -> None:
    """Train the element's model. All its processes call this together."""
    from curricula.curriculum.stream.tuning import TuningBatches

    run, arm = work.run, work.arm
    tuning = work.study.tree.stages[work.element.kind]
    assert isinstance(tuning, Tuning)
    batches = TuningBatches(
        tuning.mix,
        run.data_root,
        run.tokenizer,
        sequence_length=work.study.budget.sequence_length,
        global_batch=tuning.global_batch,
        conversations=tuning.conversations,
        tagged_share=tuning.tagged_harmful.get(arm.interventions, 0.0),
        refusals=tuning.refusals,
        packing=tuning.packing,
        epochs=tuning.epochs,
        steps=tuning.steps,
        examples=tuning.examples,
        loss=tuning.loss,
        declared=work.study.tuning_sets,
        seed=arm.replicate.tuning_seed,
    )
    train_stage(work, batches, progress, seed=arm.replicate.tuning_seed, packed=tuning.packing)


def train_stage(
    work: Work, batches: Any, progress: Progress, *, seed: int, packed: bool = False, validation: Any = None
) -> None:
    """Train the element's model from that of the stage before it, keeping the checkpoints that are measured."""
    from curricula.model.train import train

    run, study, kind = work.run, work.study, work.element.kind
    along = study.along(kind)
    try:
        points = tuple(along.steps(batches.total_steps).values()) if along else ()
    except ValueError as error:
        raise UserError(f"{study.place_of(kind)}.{error}; write fractions, or fewer steps") from None
    train(
        TrainJob(
            out=run.tuning(work.key, kind),
            model=study.model.resolve(),
            config=study.train_config(kind),
            execution=study.resources,
            tracking=study.tracking,
            seed=seed,
            keep_steps=points,
            validate_steps=points,
            packed=packed,
            compiled=run.compiled,
            init_weights=_source(work),
        ),
        batches,
        progress,
        validation=validation,
    )


def _source(work: Work) -> Path:
    """The checkpoint of the model that is trained further."""
    kind, tree = work.element.kind, work.study.tree
    if tree.parent(kind) == BASE:
        return base_checkpoint(work.run, work.arm, tree.stages[kind].at)
    owner = work.plan.study.owners[work.key, tree.parent(kind)]
    return require_checkpoint(work.run.tuning(owner, tree.parent(kind)) / "checkpoints")
