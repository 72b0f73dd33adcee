"""Export: the Hugging Face folder of an arm's model."""

from __future__ import annotations

from pathlib import Path

from curricula.curriculum.plan import Arm
from curricula.curriculum.stages import BASE
from curricula.jobs.run import Run
from curricula.jobs.stages.base import Stage, Work
from curricula.model.checkpoints import require_checkpoint
from curricula.progress import Progress


class Export(Stage):
    name, section = "export", "export"

    def run(self, work: Work, progress: Progress) -> None:
        export_model(work, progress)


def export_model(work: Work, progress: Progress) -> None:
    """Write the element's model from the checkpoint that holds it."""
    from curricula.eval.contents import record_hash
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
    """The checkpoint of the element's model."""
    from curricula.model.checkpoints.folder import read_info, step_folder

    run, study, kind, point = work.run, work.study, work.element.kind, work.element.point
    along = study.along(kind) if point else None
    if kind == BASE:
        if along is None:
            return base_checkpoint(run, work.arm)
        return step_folder(run.branch(work.key) / "checkpoints", along.steps(study.budget.steps)[point])
    last = require_checkpoint(run.tuning(work.key, kind) / "checkpoints")
    if along is None:
        return last
    return step_folder(last.parent, along.steps(read_info(last).recipe["total_steps"])[point])


def base_checkpoint(run: Run, arm: Arm, at: float | None = None) -> Path:
    """The checkpoint at a fraction of an arm's pretraining, by default its end, whatever else is there: a damaged last one may
    have been deleted."""
    from curricula.model.checkpoints import step_folder

    study = run.study.at(arm.replicate.variant)
    step = study.budget.step_at(1.0 if at is None else at)
    return step_folder(run.branch(study.branch_at(arm, step)) / "checkpoints", step)
