"""Report: the page with the figures and tables of a run."""

from __future__ import annotations

import contextlib
import csv
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from curricula.curriculum.tokens.shards import read_manifest
from curricula.errors import UserError
from curricula.eval.benchmarks import difference
from curricula.eval.tasks import JUDGED
from curricula.jobs.estimates import describe
from curricula.jobs.plan import Plan
from curricula.jobs.run import Run
from curricula.jobs.slurm.profile import Ask
from curricula.jobs.stages.base import Stage, Work, are_filled
from curricula.jobs.study import Study
from curricula.progress import Progress, silent

if TYPE_CHECKING:
    from curricula.eval.judges.question import Judge


class Report(Stage):
    name, section, ends_study = "report", "report", True

    def run(self, work: Work, progress: Progress) -> None:
        report(work.run, work.plan, progress)

    def is_complete(self, work: Work) -> bool:
        return are_filled(work.run.report / "index.html")

    def ask(self, study: Study) -> Ask:
        return Ask(hours=study.resources.data_hours)


def report(
    run: Run,
    plan: Plan,
    progress: Progress = silent,
    out: Path | None = None,
    unfinished: Sequence[str] = (),
    is_live: bool = False,
) -> Path:
    """Write the report of a run, finished or not, to `out` (by default RUN/report); returns the path of its page.

    `unfinished` says what runs or waits; a page that `is_live` looks for a newer one at its server.
    """
    from curricula.eval import MODEL_KINDS
    from curricula.eval.analysis import ArmInfo
    from curricula.eval.report.page import write_report

    arms = [ArmInfo(arm.name, arm.start, arm.interventions, arm.replicate.seed, arm.key) for arm in run.study.trainings]
    tasks = {kind: [task.name for task in run.study.evaluation.tasks_of(kind)] for kind in MODEL_KINDS}
    described = {
        "plan": describe(plan, run.shards),
        "provenance": run.provenance,
        "tasks": tasks,
        "changed": _changed_benchmarks(run),
        "judges": _rule_judges(run),
        "hashes": _hashes(run),
        "unfinished": unfinished,
    }
    page = write_report(run.root, arms, described, out or run.report, progress, is_live)
    if run.study.tracking.wandb_project and not is_live:
        track_report(run.study.tracking.wandb_project, run.root, page.parent)
    return page


def _rule_judges(run: Run) -> dict[str, Judge]:
    """The study's judges that decide by rules, by kind: they can judge answers that no merging job has seen yet."""
    from curricula.eval.judges.registry import load_judge

    found: dict[str, Judge] = {}
    for kind in JUDGED:
        settings = run.study.evaluation.judge_of(kind)
        if not settings.model_name:
            with contextlib.suppress(UserError, OSError):  # the world is not made yet
                found[kind] = load_judge(settings, kind, run.world if run.study.world else None)
    return found


def _hashes(run: Run) -> list[tuple[str, str, str]]:
    """(what, name, hash) of the study's file, its code, and the shards of each source."""
    found = [("study", "study.yaml", hashlib.sha256((run.root / "study.yaml").read_bytes()).hexdigest())]
    found += [("code", "snapshot of the jobs", folder.name) for folder in sorted((run.root / "code").glob("*"))]
    for source, settings in run.study.sources.items():
        digest, tokenizer = hashlib.sha256(), ""
        with contextlib.suppress(UserError, OSError):  # not tokenised yet
            for shard in settings.shard_names:
                manifest = read_manifest(run.shards / source / shard)
                digest.update(manifest["sha256"].encode())
                tokenizer = manifest["tokenizer"]
            found += [("tokens", source, digest.hexdigest()), ("tokenizer", source, tokenizer)]
    return found


def track_report(project: str, root: Path, folder: Path) -> None:
    """Hand the tables and figures of a report to Weights & Biases, as one run for the run folder `root`.

    Raises UserError where its package is missing.
    """
    try:
        import wandb
    except ImportError:
        raise UserError(
            f"tracking.wandb_project is {project}, but wandb is not installed; `pip install wandb`, or remove the key"
        ) from None
    identity = hashlib.sha256(f"{root.resolve()}/report".encode()).hexdigest()[:16]
    tracked = wandb.init(project=project, id=identity, name=f"{root.resolve().name}/report", resume="allow")
    for path in sorted(folder.glob("tables/*.csv")):
        with open(path, newline="") as file:
            head, *rows = list(csv.reader(file)) or [[]]
        if rows:
            tracked.log({f"tables/{path.stem}": wandb.Table(columns=head, data=rows)})
    for path in sorted(folder.glob("figures/*.png")):
        tracked.log({f"figures/{path.stem}": wandb.Image(str(path))})
    tracked.finish()


def _changed_benchmarks(run: Run) -> dict[str, str]:
    """How the benchmarks that the study accepts as changed differ from the published ones, by name."""
    evaluation, found = run.study.evaluation, {}
    for name in evaluation.used_benchmarks:
        if name in evaluation.accept_changed:
            try:
                found[name] = difference(name, run.data_root)
            except UserError:  # a report needs the rows alone
                found[name] = "accepted as changed, and its file cannot be read any more"
    return {name: how for name, how in found.items() if how}
