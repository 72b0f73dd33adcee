"""The verbs report, export and import: the page of a run, and models to and from Hugging Face folders."""

from __future__ import annotations

import argparse
from pathlib import Path

from curricula.durable import require_ours
from curricula.errors import UsageError, UserError
from curricula.jobs.graph import plan_study
from curricula.jobs.run import Run, current_provenance, newest_run
from curricula.jobs.stages.prepare import model_source
from curricula.jobs.stages.report import report as write_report
from curricula.model.checkpoints import require_checkpoint


def report(args: argparse.Namespace) -> int:
    run = Run.open(args.run)
    out = run.report
    try:
        require_ours(run.root)
    except UserError:  # a colleague's: write nothing there
        out = Path("reports") / run.root.resolve().name
    path = write_report(run, plan_study(run.study), out=out)
    print(f"Report: {path.resolve()}")
    return 0


def export(args: argparse.Namespace) -> int:
    from curricula.model.convert import export_hf

    folder = args.checkpoint
    if not folder.exists() and len(folder.parts) == 1:  # a branch of the newest run
        folder = Run.open(newest_run()).branch(str(folder)) / "checkpoints"
    checkpoint = require_checkpoint(folder) if (folder / "latest").exists() else folder
    export_hf(checkpoint, args.out, args.tokenizer or _tokenizer_of(checkpoint), current_provenance())
    print(f"Hugging Face model: {args.out}")
    return 0


def _tokenizer_of(checkpoint: Path) -> Path:
    """The tokenizer of the run that holds the checkpoint."""
    for folder in checkpoint.resolve().parents:
        if (folder / "study.yaml").exists():
            return Run(folder).tokenizer
    raise UsageError(f"{checkpoint}: lies in no run folder, whose tokenizer it would get; name one with --tokenizer")


def import_checkpoint(args: argparse.Namespace) -> int:
    from curricula.model.convert import import_hf

    print(f"Megatron checkpoint: {import_hf(model_source(args.source), args.out)}")
    return 0
