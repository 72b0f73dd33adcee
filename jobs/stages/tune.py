"""The stages that train a model further, and the one that exports it.

Tune: finetuning on conversations, and the export of the finetuned model. Midtrain: training on pretraining text with a learning
rate of its own. Export: the Hugging Face folder of a pretrained or midtrained model.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from curricula.curriculum.config import Midtrain as MidtrainConfig
from curricula.curriculum.config import Tuning
from curricula.curriculum.plan import Arm
from curricula.curriculum.sources.conversations import POOLS
from curricula.curriculum.stages import BASE, samples_of
from curricula.durable import exclusive_lock, read_json, write_json
from curricula.errors import UserError
from curricula.eval.identity import record_hash
from curricula.jobs.estimates import check_epochs, gpu_hours_of
from curricula.jobs.plan import Element
from curricula.jobs.run import Run
from curricula.jobs.slurm.profile import Request
from curricula.jobs.stages.base import Stage, Training, Work, checkpoint_to_resume
from curricula.jobs.stages.pretrain import batches_of, shard_files, validation_batches
from curricula.jobs.study import Study
from curricula.model import TrainJob
from curricula.model.checkpoints.folder import INFO_FILE, read_info, require_checkpoint, step_folder
from curricula.progress import Progress


class Tune(Training):
    name, section = "tune", "tuning"

    def names(self, element: Element) -> tuple[str, ...]:
        return (self.name, element.kind)

    def run(self, work: Work, progress: Progress) -> None:
        """All processes train; the first one exports."""
        from curricula.curriculum.sources.hub import require_whole
        from curricula.curriculum.sources.tables import require_flat
        from curricula.curriculum.stream.tuning import TuningBatches
        from curricula.model.runtime.distributed import read_ranks

        run, study, arm = work.run, work.study, work.arm
        tuning = study.tree.stages[work.element.kind]
        assert isinstance(tuning, Tuning)
        batches = TuningBatches(
            tuning,
            run.data_root,
            run.tokenizer,
            where=study.place_of(work.element.kind),
            sequence_length=study.budget.sequence_length,
            seed=arm.replicate.tuning_seed,
            tagged_share=tuning.tagged_share(arm.name, arm.interventions),
            declared=study.tuning_sets,
        )
        for name in batches.identities:  # before this stage was added, nothing looked at tables of the data folder
            for stem in (study.tuning_sets.get(name) or POOLS[name]).stems(run.data_root):
                require_whole(stem, None)  # a source may have fetched only the first rows
                require_flat(stem)
        hold_to_sets(work, batches.identities)
        train_stage(work, batches, progress, seed=arm.replicate.tuning_seed, packed=tuning.packing)
        if read_ranks().rank == 0:
            export_model(work, progress)

    def global_batch(self, study: Study, element: Element) -> int:
        return study.tree.stages[element.kind].global_batch or 0

    def inputs(self, work: Work) -> list[Path]:
        """The tokenizer and the checkpoint to begin from: the training's own, else that of the model it continues from."""
        own = checkpoint_to_resume(work.training)
        return [work.run.tokenizer / "tokenizer.json", (own or _source(work)) / INFO_FILE]

    def flops(self, study: Study, element: Element) -> float:
        """FLOPs, with a padded row for each conversation; 0 if the study does not say how many conversations there are."""
        config, stage = study.model.resolve(), study.tree.stages[element.kind]
        rows = (stage.steps or 0) * (stage.global_batch or 0)
        if isinstance(stage, Tuning):
            rows = stage.conversations or rows
        return rows * config.sequence_length * config.flops_per_token(config.sequence_length)


class Midtrain(Tune):
    name, section = "midtrain", "pretraining"

    def run(self, work: Work, progress: Progress) -> None:
        run, study, arm = work.run, work.study, work.arm
        check_epochs(work.plan, run.shards)
        stage = study.tree.stages[work.element.kind]
        assert isinstance(stage, MidtrainConfig) and stage.global_batch
        phases = study.tree.stream(work.element.kind, arm, study.budget)
        begin = phases[-1].until - samples_of(stage)
        batches = batches_of(run, study, phases, stage.global_batch, arm.replicate.data_seed, begin)
        train_stage(work, batches, progress, seed=arm.replicate.init_seed, validation=validation_batches(run, study))

    def inputs(self, work: Work) -> list[Path]:
        """The tokenizer, the checkpoint to begin from, and the first shard of each source."""
        phases = work.study.tree.stream(work.element.kind, work.arm, work.study.budget)
        return [*super().inputs(work), *shard_files(work.run, phases)]

    def gpu_hours(self, study: Study, element: Element, request: Request) -> float:
        stage = study.tree.stages[element.kind]
        assert isinstance(stage, MidtrainConfig)
        return gpu_hours_of(study, samples_of(stage) * study.budget.sequence_length)


class Export(Stage):
    name, section = "export", "export"

    def run(self, work: Work, progress: Progress) -> None:
        export_model(work, progress)


def hold_to_sets(work: Work, identities: Mapping[str, str]) -> None:
    """Record the hash of each tuning set when the run first trains on it. Raises UserError if a set holds something else now,
    so that models of one run do not differ in their data."""
    run = work.run
    path = run.tuning_sets
    kept = read_json(path) if path.exists() else {}
    if not identities.keys() <= kept.keys():
        with exclusive_lock(path.with_suffix(".lock"), wait_s=60):  # several elements may be the first
            kept = {**identities, **(read_json(path) if path.exists() else {})}
            write_json(path, kept)
    for name, identity in identities.items():
        if kept[name] != identity:
            table = run.study.tuning_sets.get(name) or POOLS[name]
            place = table.path or " and ".join(map(str, table.stems(run.data_root)))
            raise UserError(
                f"tuning set {name}: {place} holds other conversations than when this run first trained on it; restore it, "
                f"start another run with --run, or remove {path} if no model was trained on it"
            )


def train_stage(
    work: Work, batches: Any, progress: Progress, *, seed: int, packed: bool = False, validation: Any = None
) -> None:
    """Train the element's model from that of the stage before it, and keep the checkpoints that are measured along the way."""
    from curricula.model.train import train

    run, study, kind = work.run, work.study, work.element.kind
    along = study.along(kind)
    try:
        points = tuple(along.steps(batches.total_steps).values()) if along else ()
    except ValueError as error:
        raise UserError(f"{study.place_of(kind)}.{error}") from None
    train(
        TrainJob(
            out=work.training,
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
    """The checkpoint of the model that the stage begins from."""
    kind, tree = work.element.kind, work.study.tree
    if tree.parent(kind) == BASE:
        return base_checkpoint(work.run, work.arm, tree.stages[kind].at)
    owner = work.plan.study.owners[work.key, tree.parent(kind)]
    return _end_of(work.run.tuning(owner, tree.parent(kind)))


def _end_of(training: Path) -> Path:
    """The checkpoint at the end of a stage's training. Raises UserError if only an earlier one is left, which another stage or
    an export would take for the finished model."""
    last = require_checkpoint(training / "checkpoints")
    info = read_info(last)
    if info.step < (total := info.recipe["total_steps"]):
        raise UserError(f"{last}: step {info.step:,} of {total:,}, and the last checkpoint is gone; run its training again")
    return last


def export_model(work: Work, progress: Progress) -> None:
    """Write the element's model as a Hugging Face folder, with its provenance and hash."""
    from curricula.model.convert import export_hf

    run, arm, element = work.run, work.arm, work.element
    provenance = {
        "study": run.study.name,
        "arm": element.arm,
        "start": arm.start,
        "interventions": arm.interventions,
        "model": element.model,
        "seed": arm.replicate.seed,
        # A path of this machine means nothing elsewhere.
        **{key: value for key, value in run.provenance.items() if key != "data_folder"},
    }
    export_hf(checkpoint_of(work), work.model_folder, run.tokenizer, provenance, progress)
    record_hash(work.model_folder)


def checkpoint_of(work: Work) -> Path:
    """The checkpoint of the element's model, at its point of the training or at the end."""
    run, study, kind, point = work.run, work.study, work.element.kind, work.element.point
    along = study.along(kind) if point else None
    if kind == BASE:
        if along is None:
            return base_checkpoint(run, work.arm)
        return step_folder(run.branch(work.key) / "checkpoints", along.steps(study.budget.steps)[point])
    if along is None:
        return _end_of(work.training)
    last = require_checkpoint(work.training / "checkpoints")
    return step_folder(last.parent, along.steps(read_info(last).recipe["total_steps"])[point])


def base_checkpoint(run: Run, arm: Arm, at: float | None = None) -> Path:
    """The checkpoint at a fraction of an arm's pretraining, by default its end."""
    study = run.study.of(arm)
    step = study.budget.step_at(1.0 if at is None else at)  # the newest may be an earlier one, if the last was damaged
    return step_folder(run.branch(study.segment_at(arm, step).branch) / "checkpoints", step)
