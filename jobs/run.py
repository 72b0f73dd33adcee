"""The run folder: everything about a submitted study. Its elements exchange data through this folder alone.

runs/<study>/
  study.yaml  run.json        the study as submitted, all defaults written out; versions and git SHA
  world/                      the fictional world's datasets, where the study asks for them
  data/fetched/               datasets from the Hugging Face hub, where CURRICULA_DATA names no folder
  data/tokenizer/  data/shards/<source>/
  pretrain/<branch>/          checkpoints and metrics of a branch of the training tree ("trunk" or an arm); here and below
                              names of further seeds end in one, as in trunk-s43
  tune/<arm>/<stage>/         the same of the stages after it, such as "instruct"
  models/<arm>/<model>/       Hugging Face checkpoints: of "base" and each stage, and those measured on the way: "base@25"
  eval/<arm>/<model>/         answers and verdicts, as eval/rows.py describes
  jobs/<job>/<element>/       log.txt, progress.json, done.json or failed.json
  slurm/submissions.jsonl     what was submitted to Slurm (jobs/slurm/submissions.py)
  slurm/<array>.continued     the arrays that continue it where Slurm does not requeue (jobs/slurm/submit.py)
  slurm/bad-nodes.jsonl       nodes that failed a check (jobs/slurm/submissions.py)
  contamination.csv           which prompts occur in the training text (`curricula data check --run`)
  report/
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import importlib.metadata
import io
import os
import platform
import shutil
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec

from curricula.curriculum.sources.registry import local_root
from curricula.curriculum.sources.tables import Table
from curricula.curriculum.stages import BASE
from curricula.curriculum.tokens.shards import read_manifest
from curricula.durable import (
    NO_SPACE,
    exclusive_lock,
    make_folder,
    read_json,
    require_ours,
    team,
    write_json,
    write_text,
)
from curricula.errors import UsageError, UserError
from curricula.eval.analysis import ArmInfo, StudyRows, read_study_rows
from curricula.jobs.growth import refusal
from curricula.jobs.study import Study, load_study, study_yaml
from curricula.provenance import ROOT, ask_git, is_checkout, running_commit

PACKAGES = ("torch", "megatron-core", "transformers", "tokenizers", "datasets", "numpy", "scikit-learn", "submitit")

CONTAMINATION = "contamination.csv"


class Run:
    """Paths and study of one run folder."""

    def __init__(self, root: Path | str):
        self.root = Path(root)

    @classmethod
    def open(cls, root: Path) -> Run:
        if not (root / "study.yaml").exists():
            raise UsageError(f"{root}: not a run folder (it has no study.yaml); `curricula submit STUDY` makes one")
        return cls(root)

    @staticmethod
    @contextlib.contextmanager
    def locked(root: Path) -> Iterator[None]:
        """Lock the run folder `root`, which need not exist yet; raises UserError while another process holds it, and where
        `admit` does."""
        with _making(root):
            Run(root).admit()
            with exclusive_lock(root / "lock"):
                yield

    def admit(self) -> None:
        """Raise UserError where someone else could have changed what this run's jobs are and run.

        A run that a team shares stays open to it: with what this process makes from now on.
        """
        for folder in (self.root, self.slurm, self.root / "code", *(self.root / "code").glob("*")):
            if folder.is_dir():
                require_ours(folder)
        if team() is not None:
            os.umask(0o007)

    @classmethod
    def create(cls, root: Path, study: Study) -> Run:
        """Freeze `study` in `root`, or open the run that is there, which may grow by seeds and arms.

        Raises UserError if that run's study is another.
        """
        if (root / "study.yaml").exists():
            run = cls(root)
            run.check(study)
            if study != run.study:
                write_text(root / "study.yaml", study_yaml(study))
            run._move_to(None if study.world else local_root())
            return cls(root)
        data_folder = None if study.world else local_root()
        with _making(root):
            write_json(
                root / "run.json", {**current_provenance(), "data_folder": str(data_folder) if data_folder else None}
            )
            write_text(root / "study.yaml", study_yaml(study))
        return cls(root)

    def check(self, study: Study) -> None:
        """Raise UserError if the run cannot go on as one of `study`."""
        if changed := refusal(self.study, study):
            raise UserError(f"{self.root}/study.yaml: holds another study: {changed}; name another folder with --run")
        data_folder = None if study.world else local_root()
        if data_folder and self.data_folder != data_folder and self._holds_to_data:
            then = f"with CURRICULA_DATA={self.data_folder}" if self.data_folder else "without CURRICULA_DATA"
            raise UserError(
                f"CURRICULA_DATA={data_folder}: {self.root} was begun {then}; keep it so, delete the folder, or name another "
                "with --run"
            )

    @property
    def _holds_to_data(self) -> bool:
        """Whether anything was made of the data that another folder might hold differently, or Slurm may be making it."""
        return self.submissions.exists() or any(self.root.glob("data/shards/*/*.json"))

    def _move_to(self, data_folder: Path | None) -> None:
        """Read datasets from another folder from now on, as `check` allows. What was made so far is quickly made again."""
        if data_folder in (None, self.data_folder):
            return
        for mark in self.root.glob("jobs/*/*/done.json"):
            mark.unlink()
        shutil.rmtree(self.tokenizer, ignore_errors=True)
        write_json(self.root / "run.json", {**self.provenance, "data_folder": str(data_folder)})

    @cached_property
    def study(self) -> Study:
        return load_study(self.root / "study.yaml")

    @property
    def arms(self) -> list[ArmInfo]:
        """Every training of every arm, as the analysis of rows knows it."""
        return [arm for one in self.study.variants.values() for arm in arm_infos(one)]

    def answers(self) -> list[dict[str, Any]]:
        """Every judged answer there is yet, as plain values: the row's own, and whose it is.

        `arm`, `start` and `interventions` name the arm, `training_seed` the training, `stage` the kind of model. For
        `pandas.DataFrame` and the like.
        """
        arms = {arm.key: arm for arm in self.arms}
        return [
            {"arm": arm.name, "start": arm.start, "interventions": arm.interventions, "training_seed": arm.seed,
             "stage": stage, **msgspec.to_builtins(row)}
            for (key, stage, _), rows in self._rows().generations.items()
            for arm in [arms[key]]
            for row in rows
        ]  # fmt: skip

    def _rows(self) -> StudyRows:
        stages = dict.fromkeys(stage for one in self.study.variants.values() for stage in (BASE, *one.tree.stages))
        return read_study_rows(self.root, self.arms, stages=tuple(stages))

    @cached_property
    def provenance(self) -> dict[str, Any]:
        """What the run was made with."""
        return read_json(self.root / "run.json")

    @property
    def data_root(self) -> Path:
        """The folder that datasets are read from: the run's world, the user's data folder, or what the run fetched itself."""
        return self.world if self.study.world else self.data_folder or self.root / "data" / "fetched"

    @property
    def data_folder(self) -> Path | None:
        """The folder that CURRICULA_DATA named when the run was made, for all its elements, wherever they run."""
        folder = self.provenance.get("data_folder")
        return Path(folder) if folder else None

    @property
    def world(self) -> Path:
        return self.root / "world"

    @property
    def tokenizer(self) -> Path:
        return self.root / "data" / "tokenizer"

    @property
    def compiled(self) -> Path:
        """What torch's compiler made on GPUs: shared by all processes, and safe to delete."""
        return self.root / "compiled"

    @property
    def shards(self) -> Path:
        return self.root / "data" / "shards"

    @property
    def initial_checkpoint(self) -> Path:
        """The imported weights that a study with `model.weights` begins from."""
        return self.root / "data" / "initial"

    def branch(self, branch: str) -> Path:
        return self.root / "pretrain" / branch

    def tuning(self, arm: str, kind: str) -> Path:
        return self.root / "tune" / arm / kind

    def model(self, arm: str, kind: str) -> Path:
        return self.root / "models" / arm / kind

    def evaluation(self, arm: str, kind: str) -> Path:
        return self.root / "eval" / arm / kind

    @property
    def slurm(self) -> Path:
        """The record of submissions, the logs of tasks, the nodes that failed."""
        return self.root / "slurm"

    @property
    def submissions(self) -> Path:
        return self.slurm / "submissions.jsonl"

    @property
    def profile(self) -> Path:
        """The cluster profile of the latest submission."""
        return self.slurm / "profile.yaml"

    @property
    def bad_nodes(self) -> Path:
        return self.slurm / "bad-nodes.jsonl"

    def element(self, job: str, label: str) -> Path:
        return self.root / "jobs" / job / label.replace("/", "+")

    @property
    def report(self) -> Path:
        return self.root / "report"


def tokenised(run: Run) -> bool:
    """Whether all shards of the run's sources are there."""
    return all(
        (run.shards / name / f"{shard}.json").exists()
        for name, source in run.study.sources.items()
        for shard in source.shard_names
    )


def shards_digest(run: Run) -> str:
    """A hash of what the tokenised sources hold, 16 hex digits."""
    digest = hashlib.sha256()
    for name, source in sorted(run.study.sources.items()):
        for shard in source.shard_names:
            digest.update(f"{name} {shard} {read_manifest(run.shards / name / shard)['sha256']}\n".encode())
    return digest.hexdigest()[:16]


def write_contamination(run: Run, rows: Sequence[Mapping[str, Any]]) -> None:
    """Keep which prompts occur in the training text, with a hash of the shards that were read."""
    text, data = io.StringIO(), shards_digest(run)
    writer = csv.DictWriter(text, [*rows[0], "shards"], lineterminator="\n")
    writer.writeheader()
    writer.writerows({**row, "shards": data} for row in rows)
    write_text(run.root / CONTAMINATION, text.getvalue())


def read_contamination(run: Run) -> list[dict[str, str]]:
    """The rows of `write_contamination`; none if there are none, or if the shards have been made again since."""
    path = run.root / CONTAMINATION
    if not path.exists() or not tokenised(run):
        return []
    digest = shards_digest(run)
    rows = [row for row in Table.of([path]).rows() if row.get("shards") == digest]
    counts = ("prompts", "too_short", "overlapping", "near")
    if not all(
        {"benchmark", "text"} <= row.keys() and all(str(row.get(name)).isdecimal() for name in counts) for row in rows
    ):
        raise UserError(f"{path}: damaged; make it again with `curricula data check STUDY --run {run.root}`")
    return rows


def arm_infos(study: Study) -> list[ArmInfo]:
    """The trainings of a study, or of one point of its sweep, with whose models they share."""
    stages, owners = (BASE, *study.tree.stages), study.whole.owners
    return [
        ArmInfo(
            arm.name,
            arm.start,
            arm.interventions,
            arm.replicate.seed,
            arm.key,
            tuple((stage, owner) for stage in stages if (owner := owners.get((arm.key, stage), arm.key)) != arm.key),
        )
        for arm in study.trainings
    ]


def newest_run() -> Path:
    """The run folder under runs/ whose study was frozen last; raises UsageError if there is none."""
    runs = sorted(Path("runs").glob("*/study.yaml"), key=lambda path: path.stat().st_mtime)
    if not runs:
        raise UsageError("runs/: no run here; name a run folder, or make one with `curricula submit STUDY`")
    return runs[-1].parent


@contextlib.contextmanager
def _making(root: Path) -> Iterator[None]:
    """Make the folder `root`; raises UserError where the system refuses it, then or within the block."""
    try:
        make_folder(root)
        yield
    except OSError as error:
        if error.errno not in NO_SPACE and Path(str(error.filename)) in (root, *root.parents, root / "lock"):
            raise UserError(f"{root}: cannot be used ({error.strerror}); name another folder with --run") from None
        raise


def current_provenance() -> dict[str, Any]:
    """What a run is made with: versions of packages and Python, the machine, and the commit of the code."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {"packages": versions, "python": platform.python_version(), "machine": platform.machine(), "git": _git()}


def _git() -> dict[str, Any]:
    if not is_checkout():
        return {"sha": running_commit(), "changed_files": []}
    changed = ask_git(ROOT, "status", "--porcelain").splitlines()
    return {"sha": ask_git(ROOT, "rev-parse", "HEAD").strip(), "changed_files": changed}
