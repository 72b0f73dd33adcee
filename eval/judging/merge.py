"""The last job of a model's evaluation: its parts put together, and judged.

Cheap to begin again: parts are put together anew when one has changed, and a verdict that is there is not asked for again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from curricula import durable
from curricula.errors import UserError
from curricula.eval.config import EvalConfig
from curricula.eval.judges.question import Estimate, Judge
from curricula.eval.judges.registry import load_judge
from curricula.eval.judging.verdicts import JudgeRun, kind_of, put_in_order, verdicts_path
from curricula.eval.rows import GenerationRow, ModelKind, VerdictRow, read_rows
from curricula.eval.tasks import TASKS, EvalTask, row_files
from curricula.progress import Progress, silent


def merged_path(out: Path, task: str) -> Path:
    return out / f"{task}.jsonl"


def parts_by_task(model_kind: ModelKind, config: EvalConfig) -> dict[str, list[EvalTask]]:
    """The parts that are put together; probes, which no judge judges, stay as they are."""
    by_task: dict[str, list[EvalTask]] = {}
    for part in config.eval_tasks(model_kind):
        if part.task.judged:
            by_task.setdefault(part.task.name, []).append(part)
    return by_task


def is_merged(out: Path, model_kind: ModelKind, config: EvalConfig) -> bool:
    """Whether the merged rows are those of the parts that are there now, and the judge has given each a verdict.

    What is damaged is not merged: the job that merges, run again, says what is wrong with it. Files that are as the merge
    left them are not read: the status of a run asks this of every model.
    """
    if _stamp(out).exists() and _stamp(out).read_text() == _marks(out, model_kind, config):
        return True
    for task, parts in parts_by_task(model_kind, config).items():
        there = [part.path(out) for part in parts if part.path(out).exists()]
        merged = merged_path(out, task)
        if there and not (merged.is_file() and merged.read_bytes() == _together(there)):
            return False
        try:
            if there and not _is_judged(merged, config.judge_of(kind_of(task)).full_name):
                return False
        except UserError:
            return False
    return True


def _stamp(out: Path) -> Path:
    return out / ".merged.json"


def _marks(out: Path, model_kind: ModelKind, config: EvalConfig) -> str:
    """Sizes and times of all that is_merged asks of, and the judges: equal marks, nothing has changed."""
    marks: dict[str, Any] = {}
    for task, parts in parts_by_task(model_kind, config).items():
        merged = merged_path(out, task)
        marks[task] = config.judge_of(kind_of(task)).full_name
        for path in (*(part.path(out) for part in parts), merged, verdicts_path(merged)):
            if path.exists():
                marks[str(path.relative_to(out))] = [path.stat().st_size, path.stat().st_mtime_ns]
    return json.dumps(marks)


def _is_judged(merged: Path, judge: str) -> bool:
    """Whether one version of `judge` has a verdict on every answer in `merged`."""
    by_version: dict[str, set[str]] = {}
    for verdict in read_rows(verdicts_path(merged), VerdictRow):
        if verdict.judge == judge:
            by_version.setdefault(verdict.version, set()).add(verdict.key)
    keys = {row.key for row in read_rows(merged, GenerationRow)}
    return not keys or any(keys <= judged for judged in by_version.values())


class Merge:
    """The parts in `out` put together, and what judges still have to say about them.

    A part that is not there is left out: its rows are missing. With `whatever_is_there` the parts of other benchmarks that
    lie in `out` are put in too. Raises UserError when rows are damaged.
    """

    def __init__(
        self,
        out: Path,
        model_kind: ModelKind,
        config: EvalConfig,
        world_root: Path | None,
        whatever_is_there: bool = False,
        ask_unparsed_again: bool = False,
    ) -> None:
        self._out, self._model_kind, self._config = out, model_kind, config
        judges: dict[str, Judge] = {}
        self._work = []
        for task, parts in parts_by_task(model_kind, config).items():
            there = [part.path(out) for part in parts if part.path(out).exists()]
            if whatever_is_there:
                there = row_files(out, TASKS[task])
            if not there:
                continue
            kind, path = kind_of(task), merged_path(out, task)
            rows = _put_together(path, there)
            if kind not in judges:
                judges[kind] = load_judge(config.judge_of(kind), kind, world_root)
            judgement = JudgeRun(rows, verdicts_path(path), judges[kind], ask_unparsed_again)
            self._work.append((rows, judges[kind], judgement))

    def estimates(self) -> list[Estimate | None]:
        """What servers will be asked, task by task."""
        return [judgement.estimate() for _, _, judgement in self._work]

    def judge(self, progress: Progress = silent) -> None:
        """Raises UserError when a judge cannot go on; all verdicts until then are kept."""
        total, before = sum(judgement.total for _, _, judgement in self._work), 0
        for rows, judge, judgement in self._work:
            judgement.complete(shifted(progress, before, total))
            before += judgement.total
            put_in_order(judgement.path, rows, judge)
        durable.write_text(_stamp(self._out), _marks(self._out, self._model_kind, self._config))
        progress(total, total)


def shifted(progress: Progress, before: int, whole: int) -> Progress:
    """The progress of one stretch of a longer way."""

    def report(done: int, total: int, **figures: Any) -> None:
        progress(before + done, whole, **figures)

    return report


def _put_together(path: Path, parts: list[Path]) -> list[GenerationRow]:
    """Make `path` the whole rows of `parts`, one file after another, unless it is that already; returns the rows."""
    rows = [row for part in parts for row in read_rows(part, GenerationRow)]
    data = _together(parts)
    if not path.exists() or path.read_bytes() != data:
        with durable.open_atomically(path) as file:
            file.write(data)
    return rows


def _together(parts: list[Path]) -> bytes:
    return b"".join(map(_whole_lines, parts))


def _whole_lines(path: Path) -> bytes:
    data = path.read_bytes()
    return data[: data.rfind(b"\n") + 1]
