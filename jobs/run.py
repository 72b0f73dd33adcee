"""The run folder: everything about a submitted study. Its elements exchange data only through this folder.

docs/architecture.md lists its files. `refusal` says why a run cannot continue with a changed study.
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
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec

from curricula.curriculum.sources.registry import local_root
from curricula.curriculum.sources.tables import Table
from curricula.curriculum.stages import BASE
from curricula.curriculum.tokens.shards import read_manifest
from curricula.durable import exclusive_lock, make_folder, read_json, require_ours, team, write_json, write_text
from curricula.errors import StorageError, UsageError, UserError
from curricula.eval.analysis import ArmInfo, read_study_rows
from curricula.eval.config import EvalConfig
from curricula.eval.tasks import JUDGED
from curricula.jobs.study import SAVING, Study, load_study, study_yaml
from curricula.provenance import ROOT, ask_git, is_checkout, running_commit
from curricula.settings import differences

PACKAGES = (
    "safety-curricula", "torch", "megatron-core", "transformers", "tokenizers", "datasets", "numpy", "scikit-learn",
    "submitit",
)  # fmt: skip

CONTAMINATION = "contamination.csv"
ASKING = (
    "url", "concurrency", "requests_per_minute", "tokens_per_minute", "timeout_s", "retries", "patience", "batch_api",
    "price_in", "price_out",
)  # fmt: skip
"""Settings of a judge that its verdicts do not depend on."""
PATHS = {"folder", "gguf", "weights", "model", "tokenizer", "draft"}
"""Keys of a tokenizer, of models and of judges that name files or folders."""


class Run:
    """Paths and study of one run folder."""

    def __init__(self, root: Path | str):
        self.root = Path(root)
        self.world = self.root / "world"
        self.tokenizer = self.root / "data" / "tokenizer"
        self.shards = self.root / "data" / "shards"
        self.tuning_sets = self.root / "data" / "tuning-sets.json"
        self.initial_checkpoint = self.root / "data" / "initial"  # imported weights that training begins from
        self.compiled = self.root / "compiled"  # torch's compiled kernels, for all processes; safe to delete
        self.report = self.root / "report"
        self.slurm = self.root / "slurm"
        self.submissions = self.slurm / "submissions.jsonl"
        self.profile = self.slurm / "profile.yaml"  # of the latest submission
        self.bad_nodes = self.slurm / "bad-nodes.jsonl"

    @classmethod
    def open(cls, root: Path) -> Run:
        if not (root / "study.yaml").exists():
            raise UsageError(f"{root}: not a run folder (it has no study.yaml); `curricula submit STUDY` makes one")
        return cls(root)

    @staticmethod
    @contextlib.contextmanager
    def locked(root: Path) -> Iterator[None]:
        """Make the run folder `root` if needed, and lock it. Raises UserError if another process has it or `admit` refuses, and
        UsageError if records and scripts, which are UTF-8, cannot name it."""
        path = os.path.abspath(root)
        if path.encode(errors="replace") != os.fsencode(path):
            raise UsageError(f"{path}: is not UTF-8 in this locale; name another folder with --run, or set LC_ALL=C.UTF-8")
        make_folder(root)
        Run(root).admit()
        with exclusive_lock(root / "lock"):
            yield

    def admit(self) -> None:
        """Raise UserError if another user could have changed this run's jobs or their code. For a team, also set the umask so
        that it can change what this process makes from now on."""
        for folder in (self.root, self.slurm, self.root / "code", *(self.root / "code").glob("*")):
            if folder.is_dir():
                require_ours(folder)
        if team() is not None:
            os.umask(0o007)

    @classmethod
    def create(cls, root: Path, study: Study, knows_queue: bool = False) -> Run:
        """Freeze `study` in a new run folder `root`, or in an existing one if `check` allows it. Raises UserError if a stage
        changes of which Slurm may have jobs, unless the caller `knows_queue`."""
        run = cls(root)
        data_folder = None if study.world else local_root()
        if not (root / "study.yaml").exists():
            make_folder(root)
            write_json(root / "run.json", {**current_provenance(), "data_folder": str(data_folder) if data_folder else None})
            write_text(root / "study.yaml", study_yaml(study))
            return run
        run.check(study)
        if study != run.study:
            if changed := refusal(run.study, study, run.study.stage_names):  # a stage that has not begun
                if run.submissions.exists() and not knows_queue:
                    raise UserError(
                        f"{root}: {changed}, and Slurm may have jobs of that stage; give `curricula submit` --cluster slurm "
                        "and --profile, which looks into the queue"
                    )
                (run.element("report", "report") / "done.json").unlink(missing_ok=True)  # it says what that stage lacks
            write_text(root / "study.yaml", study_yaml(study))
        run._move_to(data_folder)
        return cls(root)

    def check(self, study: Study) -> None:
        """Raise UserError if the run cannot continue with `study`."""
        # The stages that have made something, also if it was moved away since.
        begun = {path.name for part in ("tune", "models", "eval") for path in self.root.glob(f"{part}/*/*")}
        jobs, groups = self.root / "jobs", self.study.groups
        for stage in self.study.stage_names:
            begun |= {stage for group in groups if any((jobs / f"{stage}-{group}").glob("*/done.json"))}
        if changed := refusal(self.study, study, begun):
            is_unused = not (self.submissions.exists() or any(self.root.glob("jobs/*/*/done.json")))
            way = "delete the run folder, in which nothing is done yet, or name another" if is_unused else "name another folder"
            if changed.startswith(("evaluation.judge", "evaluation.overrefusal_judge")):
                way = f"keep that judge and ask another with `curricula eval rejudge {self.root}`, or {way}"
            elif changed.partition(" was ")[0].endswith(".path"):
                way = f"keep the path, where a link to files that have moved is enough, or {way}"
            raise UserError(f"{self.root}/study.yaml: was created from a different study: {changed}; {way} with --run")
        data_folder = None if study.world else local_root()
        # Whether anything was made from data that may differ in another folder, or Slurm may be making it now.
        made = [path for place in ("data/shards/*/*.json", "jobs/tokenize/*/done.json") for path in self.root.glob(place)]
        has_begun = self.submissions.exists() or bool(made)
        if data_folder and self.data_folder != data_folder and has_begun:
            then = f"with CURRICULA_DATA={self.data_folder}" if self.data_folder else "without CURRICULA_DATA"
            raise UserError(
                f"CURRICULA_DATA={data_folder}: {self.root} was begun {then}; restore that, delete the run folder, or name "
                "another with --run"
            )

    def _move_to(self, data_folder: Path | None) -> None:
        """Read datasets from another folder from now on, and do again what was done so far. `check` found it to be little."""
        if data_folder in (None, self.data_folder):
            return
        for mark in self.root.glob("jobs/*/*/done.json"):
            mark.unlink()
        shutil.rmtree(self.tokenizer, ignore_errors=True)
        write_json(self.root / "run.json", {**self.provenance, "data_folder": str(data_folder)})

    @cached_property
    def study(self) -> Study:
        try:
            return load_study(self.root / "study.yaml")
        except UsageError as error:
            made = self.provenance["git"]["sha"] if (self.root / "run.json").exists() else ""
            if made in ("", running_commit().removesuffix("-dirty")):
                raise
            raise UsageError(f"{error}; the run was made by the code of commit {made[:12]}, which can read it") from None

    @cached_property
    def tag(self) -> int:
        from curricula.curriculum.tokens.tokenizer import load_tokenizer, special_ids

        return special_ids(load_tokenizer(self.tokenizer))[1]

    @property
    def arms(self) -> list[ArmInfo]:
        """Every training of every arm, as the analysis of rows describes it."""
        return [arm for one in self.study.variants.values() for arm in arm_infos(one)]

    def answers(self) -> list[dict[str, Any]]:
        """Every judged answer of finished models so far as a dictionary, for example for `pandas.DataFrame`: the row's fields,
        and whose it is (`arm`, `start`, `interventions`; `training_seed`; `point` of a sweep; `stage`). Answers of models that
        were measured along a training are left out."""
        arms = {arm.key: arm for arm in self.arms}
        points = {arm.key: name for name, one in self.study.variants.items() for arm in arm_infos(one)}
        stages = dict.fromkeys(stage for one in self.study.variants.values() for stage in (BASE, *one.tree.stages))
        answers: list[dict[str, Any]] = []
        for (key, stage, _), rows in read_study_rows(self.root, self.arms, stages=tuple(stages)).generations.items():
            arm = arms[key]
            whose = {"arm": arm.name, "start": arm.start, "interventions": arm.interventions, "training_seed": arm.seed}
            whose |= {"point": points[key], "stage": stage}
            answers += [{**whose, **msgspec.to_builtins(row)} for row in rows]
        return answers

    @cached_property
    def provenance(self) -> dict[str, Any]:
        return read_json(self.root / "run.json")

    @property
    def data_root(self) -> Path:
        """The folder that datasets are read from: the run's world, the user's data folder, or the run's own downloads."""
        return self.world if self.study.world else self.data_folder or self.root / "data" / "fetched"

    @property
    def data_folder(self) -> Path | None:
        """The folder that CURRICULA_DATA named when the run was created. All elements use it, wherever they run."""
        folder = self.provenance.get("data_folder")
        return Path(folder) if folder else None

    def branch(self, branch: str) -> Path:
        return self.root / "pretrain" / branch

    def tuning(self, arm: str, kind: str) -> Path:
        return self.root / "tune" / arm / kind

    def model(self, arm: str, kind: str) -> Path:
        return self.root / "models" / arm / kind

    def evaluation(self, arm: str, kind: str) -> Path:
        return self.root / "eval" / arm / kind

    def element(self, job: str, label: str) -> Path:
        return self.root / "jobs" / job / label.replace("/", "+")


def tokenizer_near(path: Path) -> Path:
    """The tokenizer of the run folder that `path` lies in; raises UsageError if there is none."""
    for folder in path.resolve().parents:
        if (folder / "study.yaml").exists() and (tokenizer := Run(folder).tokenizer).is_dir():
            return tokenizer
    raise UsageError(f"{path}: lies in no run folder with a tokenizer; name one with --tokenizer")


def tokenised(run: Run) -> bool:
    return all(
        (run.shards / name / f"{shard}.json").exists()
        for name, source in run.study.sources.items()
        for shard in source.shard_names
    )


def shards_digest(run: Run) -> str:
    """A hash of the tokens of all sources, 16 hex digits."""
    digest = hashlib.sha256()
    for name, source in sorted(run.study.sources.items()):
        for shard in source.shard_names:
            digest.update(f"{name} {shard} {read_manifest(run.shards / name / shard)['sha256']}\n".encode())
    return digest.hexdigest()[:16]


def write_contamination(run: Run, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write counts of the prompts that occur in the training text, with a hash of the shards that were searched."""
    text, data = io.StringIO(), shards_digest(run)
    writer = csv.DictWriter(text, [*rows[0], "shards"], lineterminator="\n")
    writer.writeheader()
    writer.writerows({**row, "shards": data} for row in rows)
    write_text(run.root / CONTAMINATION, text.getvalue())


def read_contamination(run: Run) -> list[dict[str, str]]:
    """The rows that `write_contamination` wrote; none if the shards have been made again since."""
    path, digest = run.root / CONTAMINATION, None
    if not path.exists():
        return []
    try:
        digest = shards_digest(run)
    except StorageError:
        raise
    except UserError:  # shards can be moved away once models are trained
        pass
    rows = [row for row in Table.of([path]).rows() if digest in (None, row.get("shards"))]
    counts = ("prompts", "too_short", "overlapping", "near")
    if not all({"benchmark", "text"} <= row.keys() and all(str(row.get(name)).isdecimal() for name in counts) for row in rows):
        raise UserError(f"{path}: damaged; make it again with `curricula data check STUDY --run {run.root}`")
    return rows


def arm_infos(study: Study) -> list[ArmInfo]:
    """The trainings of a study, or of one point of its sweep, and the trainings whose models they share."""
    stages, owners, infos = (BASE, *study.tree.stages), study.whole.owners, []
    for arm in study.trainings:
        shared = tuple((stage, owner) for stage in stages if (owner := owners.get((arm.key, stage), arm.key)) != arm.key)
        infos.append(ArmInfo(arm.name, arm.start, arm.interventions, arm.replicate.seed, arm.key, shared, arm.end))
    return infos


def newest_run() -> Path:
    """The run folder under runs/ whose study was frozen last; raises UsageError if there is none."""
    runs = sorted(Path("runs").glob("*/study.yaml"), key=lambda path: path.stat().st_mtime)
    if not runs:
        raise UsageError("runs/: no run here; name a run folder, or make one with `curricula submit STUDY`")
    return runs[-1].parent


def current_provenance() -> dict[str, Any]:
    """What a run is created with: versions of packages and Python, the machine's architecture, and the code's commit."""
    found = {name: next(iter(importlib.metadata.distributions(name=name)), None) for name in PACKAGES}
    versions = {name: package.version if package else "not installed" for name, package in found.items()}
    changed = ask_git(ROOT, "status", "--porcelain").splitlines() if is_checkout() else []
    git = {"sha": running_commit().removesuffix("-dirty"), "changed_files": changed}
    return {"packages": versions, "python": platform.python_version(), "machine": platform.machine(), "git": git}


def refusal(old: Study, new: Study, begun: Collection[str]) -> str:
    """Why a run of the study `old` cannot continue with `new`, such as "seed was 42, now 43"; empty if it can. Of the stages
    after pretraining, only those that have `begun`, and those that these continue from, must stay as they are."""
    seeds, new_seeds = ([one.seed for one in study.replicates] for study in (old, new))
    if seeds[0] != new_seeds[0]:
        what = "seed" if len(seeds) == len(new_seeds) == 1 else "the first of seeds"
        return f"{what} was {seeds[0]}, now {new_seeds[0]}"
    begun = set(begun)
    for name in reversed(old.stage_names):
        if name in begun:
            begun.update(point.tree.parent(name) for point in old.variants.values() if name in point.tree.stages)
    stages = [name for name in old.tree.stages if name in begun]
    for what, had, has in (("seed", seeds, new_seeds), ("stage", stages, new.tree.stages)):
        if gone := [str(one) for one in had if one not in has]:
            return f"the new study has no {what} {', '.join(gone)}"
    if changed := differences(*_fixed(old, new, stages)):
        return changed[0]
    arms, new_arms = ({arm.key: arm for arm in study.arms} for study in (old, new))
    jobs, new_jobs = ({arm.key: name for name, group in study.groups.items() for arm in group} for study in (old, new))
    for name, arm in arms.items():
        if name not in new_arms:
            return f"the new study has no arm {name}"
        if new_arms[name] != arm:
            return f"arm {name} would read another mix with the new starts"
        if new_jobs[name] != jobs[name]:
            return f"the jobs of arm {name} were named by {jobs[name]}%, now by {new_jobs[name]}%"
    return _lost_start(old, new)


def _lost_start(old: Study, new: Study) -> str:
    """Which stage of `new` cannot begin, because pretraining under `old` kept no checkpoint at its step; empty if all can."""
    ends = {segment.branch: segment.stop for segment in old.segments}
    kept = {(segment.branch, segment.stop) for segment in old.segments}
    kept |= {(branch, step) for branch in ends for step in old.kept_steps(branch)}
    for name, branch, step in new.beginnings():
        if step < ends.get(branch, 0) and (branch, step) not in kept:
            return f"stages.{name} begins at step {step:,} of {branch}, whose checkpoint the old study does not keep"
    return ""


def cut_branches(old: Study, new: Study) -> set[str]:
    """The branches of `old`'s training tree that `new` cuts before their end because new arms leave there."""
    ends = {segment.branch: segment.stop for segment in old.segments}
    known = {segment.name for segment in old.segments}
    added = [segment for segment in new.segments if segment.name not in known]
    return {segment.branch for segment in added if segment.stop < ends.get(segment.branch, 0)}


def _fixed(old: Study, new: Study, begun: Collection[str]) -> tuple[Any, Any]:
    """Both studies as plain values, without what can grow or change: of mappings by arm or set, without new arms and sets; of
    stages, those that have `begun`."""
    plain: tuple[Any, Any] = msgspec.to_builtins(old), msgspec.to_builtins(new)
    sets = {*old.curriculum.interventions, *old.curriculum.arms, *(arm.name for arm in old.arms)}
    for study, typed in zip(plain, (old, new)):
        _drop_execution(study, typed.evaluation)
        del study["seed"], study["seeds"], study["curriculum"]["starts"]
        study["model"] = {**msgspec.to_builtins(typed.model.resolve()), "weights": study["model"]["weights"]}
        study["points"] = {name: {"model": msgspec.to_builtins(one.model.resolve())} for name, one in typed.variants.items()}
        if len({one.seed for one in old.replicates}) == 1:
            del study["replicate"]  # it has no effect while there is one seed
        for name in study["stages"].keys() - {*begun}:
            del study["stages"][name]
        study["tuning"] = {name: stage for name, stage in (study["tuning"] or {}).items() if name in begun}
        stages = [*study["stages"].values(), *study["tuning"].values()]
        by_set = [stage["tagged_harmful"] for stage in stages if "tagged_harmful" in stage]
        for mapping in (*by_set, study["curriculum"]["interventions"], study["curriculum"]["arms"]):
            for name in mapping.keys() - sets:
                del mapping[name]
    for was, now in zip(_with_paths(plain[0]), _with_paths(plain[1])):
        for key in PATHS & was.keys() & now.keys():
            if _is_one_place(was[key], now[key]):
                now[key] = was[key]
    return plain


def _with_paths(study: dict[str, Any]) -> list[dict[str, Any]]:
    """The parts of a study whose paths became absolute when it was read."""
    evaluation = study["evaluation"]
    draft = (evaluation["gcg"] or {}).get("probe_sampling") or {}
    judges = (evaluation["judge"], evaluation["overrefusal_judge"])
    # The model of an "llm" judge is named as on its server, which can look like a path.
    return [study["tokenizer"], study["model"], draft, *({} if one["name"] == "llm" else one for one in judges)]


def _is_one_place(was: str | None, now: str | None) -> bool:
    """Whether one path is the absolute form of the other: reading a study makes a path absolute if it exists."""
    shorter, longer = sorted((Path(was or ""), Path(now or "")), key=lambda path: len(path.parts))
    is_anchored = longer.is_absolute() and not shorter.is_absolute()
    return bool(shorter.parts) and is_anchored and longer.parts[-len(shorter.parts) :] == shorter.parts


def _drop_execution(study: dict[str, Any], typed: EvalConfig) -> None:
    """Remove from a study what only says how the work is carried out, so that a run can continue after a batch that did not fit
    or a judge's server that moved. `typed` are the settings of its evaluation."""
    study["resources"] = {"engine": {"fp8": study["resources"]["engine"]["fp8"]}}  # the rest changes last digits at most
    tuning = study["tuning"] or {}
    for part in (study["pretraining"], tuning, tuning.get("instruct"), tuning.get("benign"), *study["stages"].values()):
        for key in ("micro_batch", *SAVING):
            (part or {}).pop(key, None)
    # With all their settings, since a judge that was given by its name alone can get settings later.
    judges = [msgspec.to_builtins(typed.judge_of(kind)) for kind in JUDGED]
    evaluation = study["evaluation"] = typed.without_together()
    evaluation["judge"], evaluation["overrefusal_judge"] = judges
    for judge in judges:
        for key in ASKING:
            del judge[key]
    for source in study["sources"].values():
        del source["max_epochs"]
    del study["tracking"]
