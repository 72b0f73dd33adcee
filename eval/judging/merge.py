"""The last job of a model's evaluation: merge the shards of each task, and judge the answers.

Starting again is cheap: shards are merged anew only when one has changed, and a verdict on the disk is not asked for again.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec

from curricula import durable
from curricula.errors import UserError
from curricula.eval.config import EvalConfig
from curricula.eval.judges.question import Judge
from curricula.eval.judges.registry import load_judge
from curricula.eval.judging.verdicts import (
    JudgeRun,
    complete_all,
    key_of_question,
    kind_of,
    read_stamp,
    stamp_path,
    verdicts_path,
)
from curricula.eval.rows import GenerationRow, ModelKind, ModelRows, VerdictRow, read_rows
from curricula.eval.tasks import TASKS, EvalTask, Judged, Task, row_files
from curricula.progress import Progress, silent
from curricula.settings import decode


def merged_path(out: Path, task: str) -> Path:
    return out / f"{task}.jsonl"


def shards_by_task(tasks: Sequence[EvalTask]) -> dict[str, list[EvalTask]]:
    """The shards to merge, by task. Probes, which no judge judges, stay as they are."""
    by_task: dict[str, list[EvalTask]] = {}
    for shard in tasks:
        if shard.task.judged:
            by_task.setdefault(shard.task.name, []).append(shard)
    return by_task


def is_merged(out: Path, model_kind: ModelKind, config: EvalConfig, tasks: Sequence[EvalTask] | None = None) -> bool:
    """Whether the merged rows are those of the shards that exist now, and the judge has given each a verdict.

    Damaged files are not merged: the merging job, run again, says what is wrong with them. Files that are as the merge left
    them are not read, for the status of a run asks this of every model.
    """
    tasks = config.eval_tasks(model_kind) if tasks is None else tasks
    if stamp_path(out).is_file() and stamp_path(out).read_bytes() == _marks(out, tasks, config).encode():
        return True
    for task, shards in shards_by_task(tasks).items():
        found = [shard.path(out) for shard in shards if shard.path(out).exists()]
        merged = merged_path(out, task)
        if found and not (merged.is_file() and merged.read_bytes() == _concatenated(found)):
            return False
        try:
            if found and not _is_judged(merged, config.judge_of(kind_of(task)).full_name):
                return False
        except UserError:
            return False
    return True


def is_judged_as_now(out: Path, config: EvalConfig, tasks: Sequence[EvalTask], world_root: Path | None) -> bool:
    """Whether no task of a merged model has its verdicts from another version of the judge, as far as judging again is free.

    A server is not asked twice. A function is taken as unchanged: its package may have another version here than where jobs
    run, and a look at a run should not import it. So is a judge that is not to be had here.
    """
    by_task = shards_by_task(tasks)
    versions: dict[Judged, str] = {}
    for kind in set(map(kind_of, by_task)):
        settings = config.judge_of(kind)
        if settings.name != "python" and (settings.on_this_machine or not settings.has_template):
            with contextlib.suppress(UserError, OSError):
                versions[kind] = load_judge(settings, kind, world_root).version
    given = {task: _first_version(verdicts_path(merged_path(out, task))) for task in by_task}
    return all(found in (None, versions.get(kind_of(task), found)) for task, found in given.items())


def _first_version(path: Path) -> str | None:
    """The version of the judge that stands first in a file of verdicts, the study's own; None without verdicts."""
    try:
        with open(path, "rb") as file:
            return decode(file.readline(), VerdictRow).version
    except (OSError, msgspec.DecodeError):
        return None


def _marks(out: Path, tasks: Sequence[EvalTask], config: EvalConfig) -> str:
    """Sizes and times of all files that is_merged looks at, and the judges. Equal marks: nothing has changed."""
    marks: dict[str, Any] = {}
    for task, shards in shards_by_task(tasks).items():
        merged = merged_path(out, task)
        marks[task] = config.judge_of(kind_of(task)).full_name
        for path in (*(shard.path(out) for shard in shards), merged, verdicts_path(merged)):
            if path.exists():
                marks[str(path.relative_to(out))] = [path.stat().st_size, path.stat().st_mtime_ns]
    return json.dumps(marks)


def _is_judged(merged: Path, judge: str) -> bool:
    """Whether one version of `judge` has a verdict on every answer in `merged`, as it is asked about it now."""
    by_version: dict[str, set[tuple[str, str]]] = {}
    for verdict in read_rows(verdicts_path(merged), VerdictRow):
        if verdict.judge == judge:
            by_version.setdefault(verdict.version, set()).add((verdict.key, verdict.question))
    rows = read_rows(merged, GenerationRow)
    return not rows or any(
        all((row.key, key_of_question(row, judge, version)) in judged for row in rows) for version, judged in by_version.items()
    )


class MergeAndJudge:
    """The merged shards in `out`, and the judges' work on them.

    `tasks` are by default those of the paper's model of this kind. A shard that does not exist is left out: its rows are
    missing. With `whatever_is_there`, the files of other benchmarks in `out` are merged too.
    """

    def __init__(
        self,
        out: Path,
        model_kind: ModelKind,
        config: EvalConfig,
        world_root: Path | None,
        whatever_is_there: bool = False,
        ask_unparsed_again: bool = False,
        tasks: Sequence[EvalTask] | None = None,
    ) -> None:
        self._tasks = tasks = config.eval_tasks(model_kind) if tasks is None else tasks
        self._out, self._config = out, config
        judges: dict[str, Judge] = {}
        model = ModelRows(model_kind)
        self.judge_runs: dict[str, JudgeRun] = {}
        for task, shards in shards_by_task(tasks).items():
            found = [shard.path(out) for shard in shards if shard.path(out).exists()]
            if whatever_is_there:
                found = row_files(out, TASKS[task], shards)
            if not found:
                continue
            kind, path = kind_of(task), merged_path(out, task)
            rows = _merge(path, found, TASKS[task], model)
            if kind not in judges:
                judges[kind] = load_judge(config.judge_of(kind), kind, world_root)
            self.judge_runs[task] = JudgeRun(rows, verdicts_path(path), judges[kind], ask_unparsed_again)

    def judge(self, progress: Progress = silent) -> None:
        """Ask for missing verdicts. Where a judge cannot go on, earlier verdicts are kept."""
        _note_judges(self._out, {task: self._config.judge_of(kind_of(task)).full_name for task in self.judge_runs})
        total = complete_all(self.judge_runs.values(), progress, as_first=True)
        durable.write_text(stamp_path(self._out), _marks(self._out, self._tasks, self._config))
        progress(total, total)


def _note_judges(out: Path, judges: Mapping[str, str] = MappingProxyType({})) -> None:
    """Note who judges each task before anybody does: the verdicts of whoever comes first are not yet the study's own.

    A judge takes the place of an earlier one in all of its tasks at once, whether or not it comes to their end. What the last
    merge was done with is forgotten: with another judge's name, or other rows, it would pass for this one.
    """
    known = read_stamp(out)
    noted = {task: name for task, name in known.items() if isinstance(name, str)} | {**judges}
    if noted != known:
        durable.write_text(stamp_path(out), json.dumps(noted))


def _merge(path: Path, shards: list[Path], task: Task, model: ModelRows) -> list[GenerationRow]:
    """Make `path` the rows of `shards`, one file after another, unless it is that already. Returns the rows."""
    rows = model.read_answers(shards, task.name, task.labels)
    data = _concatenated(shards)
    noted = read_stamp(path.parent).get(path.name)
    if not path.exists() or path.read_bytes() != data or (isinstance(noted, list) and noted[0] != len(data)):
        _note_judges(path.parent)
        with durable.open_atomically(path) as file:
            file.write(data)
    return rows


def _concatenated(shards: list[Path]) -> bytes:
    """The whole lines of the files, one after another."""
    return b"".join(data[: data.rfind(b"\n") + 1] for data in map(Path.read_bytes, shards))
