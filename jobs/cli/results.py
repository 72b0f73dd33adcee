"""The verbs report, export and import: the page of a run, and models to and from Hugging Face folders."""

from __future__ import annotations

import argparse
import socket
import tempfile
from collections.abc import Collection
from pathlib import Path

from curricula.durable import read_json, require_ours
from curricula.errors import UsageError, UserError
from curricula.jobs.cli.options import require_with
from curricula.jobs.graph import plan_study
from curricula.jobs.run import Run, current_provenance, newest_run, tokenizer_near
from curricula.jobs.stages.data import model_source
from curricula.jobs.stages.report import report as write_report
from curricula.model.checkpoints.folder import INFO_FILE, require_checkpoint

PORT = 8642


def report(args: argparse.Namespace) -> int:
    require_with(args, "--port", "--serve")
    runs = [Run.open(folder) for folder in args.run]
    if args.serve:
        if len(runs) > 1:
            raise UsageError(f"--serve shows one run, and {len(runs)} were given; leave the others out")
        return _serve(runs[0], PORT if args.port is None else args.port)
    for run in runs if len(runs) > 1 else ():
        if run.study.sweep is not None:
            raise UsageError(f"{run.root}: a sweep has a report for each point and cannot be compared; leave it out")
    pages: dict[str, Path] = {}
    for run in runs:
        name, out = str(run.study.name), _out(run, [page.parent for page in pages.values()])
        pages[name if name not in pages else str(run.root)] = write_report(run, plan_study(run.study), out=out)
    for page in pages.values():
        print(f"Report: {page.resolve()}")
    if len(runs) > 1:
        from curricula.eval.report.overviews import write_comparison

        summaries = {name: read_json(page.parent / "summary.json") for name, page in pages.items()}
        out = Path("reports") / "-and-".join(run.root.resolve().name for run in runs)
        print(f"Comparison: {write_comparison(summaries, out).resolve()}")
    return 0


def _out(run: Run, taken: Collection[Path]) -> Path:
    """The run's own report folder or, for another user's run, a folder of reports/ that is not in `taken`."""
    try:
        require_ours(run.root)
    except UserError:  # another user's run: write nothing there
        name = run.root.resolve().name
        names = (name, *(f"{name}-{number}" for number in range(2, len(taken) + 2)))
        return next(out for one in names if (out := Path("reports") / one) not in taken)
    return run.report


def _serve(run: Run, port: int) -> int:
    """Serve the page of a run from a temporary folder; the run's own report stays as it is."""
    from curricula.eval.report.web.serve import LivePage
    from curricula.jobs.monitor.state import run_status

    plan = plan_study(run.study)

    def build() -> Path:
        elements = run_status(run, plan).elements
        unfinished = [
            f"{one.job} {one.label}: {one.state}" + (f", {one.progress.done} of {one.progress.total}" if one.progress else "")
            for one in elements
            if one.state != "done" and one.job != "report"
        ]
        return write_report(run, plan, out=Path(folder), unfinished=unfinished, is_live=bool(unfinished))

    with tempfile.TemporaryDirectory(prefix="curricula-") as folder:
        live = LivePage(run.root, build, port)
        print(live.address)
        print(f"(from elsewhere: ssh -L {live.port}:127.0.0.1:{live.port} {socket.gethostname()}; Ctrl-C ends it)", flush=True)
        live.serve(interval_s=10.0)
    return 0


def export(args: argparse.Namespace) -> int:
    from curricula.model.convert import export_hf

    folder = args.checkpoint
    if not folder.exists() and len(folder.parts) == 1:  # a branch of the newest run
        folder = Run.open(newest_run()).branch(str(folder))
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder; name the folder of a step or of a training, or a branch of the newest run")
    if (folder / "checkpoints").is_dir():
        folder /= "checkpoints"
    checkpoint = folder if (folder / INFO_FILE).exists() else require_checkpoint(folder)
    export_hf(checkpoint, args.out, args.tokenizer or tokenizer_near(checkpoint), current_provenance())
    print(f"Hugging Face model: {args.out}, from {checkpoint}")
    return 0


def import_checkpoint(args: argparse.Namespace) -> int:
    from curricula.model.convert import import_hf

    print(f"Megatron checkpoint: {import_hf(model_source(args.source), args.out)}")
    return 0
