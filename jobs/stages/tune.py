"""Tune: instruction tuning of a base model, or benign finetuning of an instruct model, and the export of the result."""

from __future__ import annotations

from pathlib import Path

from curricula.jobs.plan import Element
from curricula.jobs.slurm.profile import Ask
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
            export_model(work.run, work.arm, work.element.kind, progress)

    def inputs(self, work: Work) -> list[Path]:
        """The tokenizer and the checkpoint to go on from: its own, or that of the model that is tuned."""
        from curricula.model.checkpoints.folder import INFO_FILE

        own = checkpoint_to_resume(work.run.tuning(work.arm.key, work.element.kind))
        return [work.run.tokenizer / "tokenizer.json", (own or _source(work)) / INFO_FILE]

    def saved(self, work: Work) -> int:
        return saved_steps(work.run.tuning(work.arm.key, work.element.kind))

    def flops(self, study: Study, element: Element) -> float:
        """Of one padded row for each conversation, where the study says how many."""
        config, conversations = study.model.resolve(), study.tuning.stages[element.kind].conversations or 0
        return conversations * config.sequence_length * config.flops_per_token(config.sequence_length)

    def ask(self, study: Study) -> Ask:
        asked = study.resources.tuning
        return Ask(asked.nodes, asked.gpus_per_node, asked.hours, one_task_per_gpu=True)


def tune(work: Work, progress: Progress) -> None:
    """Train the element's model. All its processes call this together."""
    from curricula.curriculum.stream.tuning import TuningBatches
    from curricula.model.train import train

    run, study, element, arm = work.run, work.study, work.element, work.arm
    config = study.model.resolve()
    tuning = study.tuning.stages[element.kind]
    batches = TuningBatches(
        tuning.mix,
        run.data_root,
        run.tokenizer,
        sequence_length=config.sequence_length,
        global_batch=tuning.global_batch,
        conversations=tuning.conversations,
        tagged_share=tuning.tagged_harmful.get(arm.interventions, 0.0),
        refusals=tuning.refusals,
        packing=tuning.packing,
        seed=arm.replicate.tuning_seed,
    )
    train(
        TrainJob(
            out=run.tuning(arm.key, element.kind),
            model=config,
            config=study.tuning.train_config(tuning),
            execution=study.resources,
            tracking=study.tracking,
            seed=arm.replicate.tuning_seed,
            packed=tuning.packing,
            compiled=run.compiled,
            init_weights=_source(work),
        ),
        batches,
        progress,
    )


def _source(work: Work) -> Path:
    """The checkpoint of the model that is tuned."""
    if work.element.kind == "instruct":
        return base_checkpoint(work.run, work.arm)
    return require_checkpoint(work.run.tuning(work.arm.key, "instruct") / "checkpoints")
