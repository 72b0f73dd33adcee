"""What a study reads: its downloads and tables, and the checks that need more than the study's file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Literal

from curricula.curriculum.config import Source, Tuning
from curricula.curriculum.sources.conversations import (
    HARMFUL,
    POOLS,
    read_conversations,
    require_a_batch,
    require_examples,
    require_learnable,
)
from curricula.curriculum.sources.declared import DATASETS, DeclaredTable, declared_in
from curricula.curriculum.sources.hub import Download, declared_download, downloads_of
from curricula.curriculum.sources.registry import local_root
from curricula.errors import UsageError, UserError
from curricula.eval.benchmarks import BENCHMARKS, benchmark_downloads
from curricula.jobs.run import Run
from curricula.jobs.study import Study, load_study

Purpose = Literal["data", "evaluation"]
READERS = {"sources": ("prepare", "tokenize"), "tuning_sets": ("prepare", "tune"), "evaluation": ("evaluate", "along")}
"""The stages that read what is declared under each key of a study."""


@dataclass(frozen=True)
class Wanted:
    """One download that a study or a user asks for."""

    label: str
    """Unique among the downloads of a study."""
    download: Download
    readers: tuple[str, ...]
    """The stages that read it."""
    rows: int | None = None
    """The number of rows that is enough; None for all."""

    @property
    def purpose(self) -> Purpose:
        """What it is needed for: "data" if for both, since the data are needed first."""
        return "data" if "prepare" in self.readers else "evaluation"


def named_downloads(name: str, root: Path) -> list[Wanted]:
    """The downloads of a dataset or a benchmark; raises UsageError if neither has this name."""
    if name in DATASETS:
        return _labelled(name, downloads_of(name, root), READERS["sources"])
    if name in BENCHMARKS:
        return _labelled(name, benchmark_downloads(name, root), READERS["evaluation"])
    raise UsageError(f"{name!r} is neither a dataset nor a benchmark; choose from {', '.join([*DATASETS, *BENCHMARKS])}")


def study_downloads(study: Study, root: Path) -> list[Wanted]:
    """The downloads, into `root`, of everything that a study reads."""
    pools = [study.tuning_sets.get(pool) or POOLS[pool] for pool in used_pools(study)]
    probes = study.used_probes.tables if study.used_probes else ()
    read: list[tuple[DeclaredTable, tuple[str, ...]]] = [
        *((table, READERS["sources"]) for table in study.sources.values()),
        *((table, READERS["tuning_sets"]) for table in pools),
        *((table, ("prepare", *READERS["evaluation"])) for table in probes),
    ]
    wanted = []
    for table, readers in read:
        if table.dataset is not None:
            rows = table.documents if isinstance(table, Source) else None
            wanted += _labelled(table.dataset, downloads_of(table.dataset, root, table.parts), readers, rows)
    for name in study.used_benchmarks:
        if name in BENCHMARKS:
            wanted += _labelled(name, benchmark_downloads(name, root), READERS["evaluation"])
    for key, table in declared_in(study):
        if table.hub is not None:
            rows = table.needed_rows if isinstance(table, Source) else None
            wanted.append(Wanted(table.place, declared_download(table, root), READERS[key.partition(".")[0]], rows))
    return once(wanted)


def read_study(path: Path, changes: Sequence[str] = ()) -> Study:
    """Load a study and look at its tables. Also raises UserError if CURRICULA_DATA names no folder, or for equal models."""
    study = load_study(path, changes)
    for point in study.variants.values():
        _require_different_models(point, path)
    look_at_tables(study, None if study.world else local_root())
    return study


def _require_different_models(study: Study, path: Path) -> None:
    """Refuse a stage that begins before its arms have parted: it would make one model of both, which the report refuses."""
    for name, stage in study.tree.stages.items():
        if stage.at is None or not study.tasks_of(name):
            continue
        first: dict[tuple[str, float], str] = {}
        for arm in study.arms:
            if arm.name in study.tree.arms[name]:
                share = stage.tagged_share(arm.name, arm.interventions) if isinstance(stage, Tuning) else 0.0
                segment = study.segment_at(arm, study.budget.step_at(stage.at))
                if (other := first.setdefault((segment.name, share), arm.name)) != arm.name:
                    place = study.place_of(name)
                    raise UserError(
                        f"{path}: {place}.at is {stage.at:g}, where {other} and {arm.name} are still the same model; name only "
                        f"one of them in {place}.arms, or begin it later"
                    )


def read_tables(study: Study) -> dict[str, DeclaredTable]:
    """Every table that a study declares, by its key, and every public tuning set that it uses, as `tuning_sets.NAME`."""
    declared = dict(declared_in(study))
    return declared | {f"tuning_sets.{name}": POOLS[name] for name in used_pools(study) if name not in study.tuning_sets}


def used_pools(study: Study) -> list[str]:
    """The names of the tuning sets that stages read, each as often as a stage reads it."""
    return [pool for tuning in study.tunings for pool in (*tuning.mix, *([HARMFUL] if tuning.tagged_harmful else []))]


def check_pool(study: Study, name: str, root: Path) -> int:
    """The number of conversations that a tuning set holds. Raises UserError if a row is not a conversation, or if a stage
    would learn nothing from the set or asks for more than it holds."""
    held = sum(1 for _ in read_conversations(name, root, study.tuning_sets))
    for tuning in study.tunings:
        if tuning.mix.get(name):
            require_learnable(name, read_conversations(name, root, study.tuning_sets), tuning.loss.get(name) == "all")
            require_examples(name, tuning.examples.get(name, 0), held)
    return held


def check_lengths(study: Study, held: Mapping[str, int]) -> None:
    """Raise UserError if a finetuning stage is shorter than a step, or does not come to a point that is measured along it.
    `held` says how many conversations each tuning set holds; stages that read others are not checked."""
    for point in study.variants.values():
        for name, stage in point.tree.stages.items():
            # How many rows packing makes is known only in training.
            if isinstance(stage, Tuning) and not stage.packing and stage.mix.keys() <= held.keys():
                count = stage.total_conversations(held)
                require_a_batch(point.place_of(name), count, stage.global_batch)
                if stage.along:
                    try:
                        stage.along.steps(count // stage.global_batch)
                    except ValueError as error:
                        raise UserError(f"{point.place_of(name)}.{error}") from None


def check_change(run: Run, study: Study) -> None:
    """Raise UserError if the run is there and cannot continue with `study`, or if a stage that it would get fails a check of
    the job `prepare`, which does not run again. Tuning sets that are not on this machine are left to that stage."""
    if not (run.root / "study.yaml").exists():
        return
    run.check(study)
    added = [tuning for tuning in study.tunings if tuning not in run.study.tunings]
    sets = {name: study.tuning_sets.get(name) or POOLS[name] for tuning in added for name in tuning.mix}
    root = run.data_root if study.world else local_root() or run.data_root
    check_lengths(study, {name: check_pool(study, name, root) for name, table in sets.items() if table.is_here(root)})


def look_at_tables(study: Study, root: Path | None) -> None:
    """Check the first rows of every table that the user has declared and that is on this machine. Raises UserError that names
    the key if a column or file is missing, empty or wrong, or if an arm would read the same rows through two sources."""
    revisions: dict[str, tuple[str, str | None]] = {}
    for key, table in declared_in(study):
        if table.dataset is None and table.is_here(root):
            table.look(root or Path(), key)
        if table.hub is not None:
            other, revision = revisions.setdefault(table.place, (key, table.revision))
            if table.revision != revision:
                raise UserError(
                    f"{other}.revision is {revision!r} and {key}.revision is {table.revision!r}, but {table.place} is fetched "
                    "only once; make them equal"
                )
    _check_overlaps(study)


def _check_overlaps(study: Study) -> None:
    declared = {name: source for name, source in study.sources.items() if not source.dataset}
    arms = [arm for point in study.variants.values() for arm in point.arms]
    for (first, source), (second, other) in combinations(declared.items(), 2):
        if source.overlaps(other) and (readers := [arm.name for arm in arms if {first, second} <= arm.sources]):
            raise UserError(
                f"sources.{first} and sources.{second}: arm {readers[0]} would read the same rows of {source.place} twice, "
                "through both sources; keep one of them in its mixes, or separate their scores by min_score and max_score"
            )


def once(wanted: Iterable[Wanted]) -> list[Wanted]:
    """Each download once, under its first label, with enough rows and all readers of every use."""
    first: dict[tuple[Path, str], Wanted] = {}
    for item in wanted:
        earlier = first.setdefault((item.download.out, item.download.prefix), item)
        rows = None if item.rows is None or earlier.rows is None else max(item.rows, earlier.rows)
        readers = tuple(dict.fromkeys((*earlier.readers, *item.readers)))
        first[item.download.out, item.download.prefix] = replace(earlier, readers=readers, rows=rows)
    by_label: dict[str, Wanted] = {}
    for item in first.values():
        # Two sources can read different parts of a dataset. The first keeps its label when a study grows by the second.
        label = f"{item.label}/{item.download.config}" if item.label in by_label else item.label
        by_label[label] = replace(item, label=label)
    return list(by_label.values())


def _labelled(name: str, downloads: list[Download], readers: tuple[str, ...], rows: int | None = None) -> list[Wanted]:
    several = len(downloads) > 1
    return [Wanted(f"{name}/{download.config}" if several else name, download, readers, rows) for download in downloads]
