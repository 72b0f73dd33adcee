"""Export: the Hugging Face folder of an arm's model."""

from __future__ import annotations

from pathlib import Path

from curricula.curriculum.plan import Arm
from curricula.eval import ModelKind
from curricula.jobs.run import Run
from curricula.jobs.slurm.profile import Ask
from curricula.jobs.stages.base import Stage, Work
from curricula.jobs.study import Study
from curricula.model.checkpoints import require_checkpoint
from curricula.progress import Progress


class Export(Stage):
    name, section = "export", "export"

    def run(self, work: Work, progress: Progress) -> None:
        export_model(work.run, work.arm, work.element.kind, progress)

    def ask(self, study: Study) -> Ask:
        return Ask(hours=study.resources.data_hours)


def export_model(run: Run, arm: Arm, kind: ModelKind, progress: Progress) -> None:
    """Write the base, instruct or benign model of an arm from its last checkpoint."""
    from curricula.eval.contents import record_hash
    from curricula.model.convert import export_hf

    tuned = run.tuning(arm.key, kind) / "checkpoints"
    checkpoint = base_checkpoint(run, arm) if kind == "base" else require_checkpoint(tuned)
    provenance = {
        "study": run.study.name,
        "arm": arm.name,
        "start": arm.start,
        "interventions": arm.interventions,
        "model": kind,
        "seed": arm.replicate.seed,
        # A path of this machine means nothing elsewhere.
        **{key: value for key, value in run.provenance.items() if key != "data_folder"},
    }
    out = run.model(arm.key, kind)
    export_hf(checkpoint, out, run.tokenizer, provenance, progress)
    record_hash(out)


def base_checkpoint(run: Run, arm: Arm) -> Path:
    """The checkpoint with which an arm's pretraining ends, whatever else is there: a damaged last one may have been deleted."""
    from curricula.model.checkpoints import step_folder

    return step_folder(run.base_branch(arm) / "checkpoints", run.study.budget.steps)
