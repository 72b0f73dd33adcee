"""Join the parts of a model's answers, ask judges for missing verdicts, and read both (docs/evaluation.md).

    MergeAndJudge(out, "instruct", EvalConfig(), None).judge()  # the last job of a model's evaluation
    rows = read_judged(merged_path(out, "attacks-topk"))

Starting again is cheap: parts are joined again only if one has changed, and stored verdicts are not asked for again. While a
judge is at work, it only appends to its file of verdicts.
"""

from __future__ import annotations

import contextlib
import json
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import msgspec

from curricula import durable
from curricula.durable import exclusive_lock
from curricula.errors import UserError
from curricula.eval.config import EvalConfig
from curricula.eval.judges.question import LABELS, UNPARSED, Judge, Question, Verdict, question_key
from curricula.eval.judges.registry import load_judge
from curricula.eval.rows import GenerationRow, JudgedRow, ModelKind, ModelRows, VerdictRow, append_rows, read_rows, write_rows
from curricula.eval.tasks import TASKS, EvalTask, Judged, Task, find_task, row_files
from curricula.progress import Progress, silent
from curricula.settings import decode


def kind_of(task: str) -> Judged:
    """What the answers of a task are judged for: "attack" or "overrefusal"."""
    return find_task(task).judged or "attack"


def verdicts_path(rows: Path) -> Path:
    return rows.with_name(f"{rows.stem}.verdicts.jsonl")


def merged_path(out: Path, task: str) -> Path:
    return out / f"{task}.jsonl"


def shards_by_task(tasks: Sequence[EvalTask]) -> dict[str, list[EvalTask]]:
    """The shards to merge, by task. Tasks that are not judged, such as probes, are left out."""
    by_task: dict[str, list[EvalTask]] = {}
    for shard in tasks:
        if shard.task.judged:
            by_task.setdefault(shard.task.name, []).append(shard)
    return by_task


class MergeAndJudge:
    """Merges the shards in `out` and has the answers judged.

    By default, `tasks` are those of the paper's model of this kind. Shards that do not exist are skipped, and their rows are
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
            files = row_files(out, TASKS[task], shards) if whatever_is_there else _existing(out, shards)
            if not files:
                continue
            kind, path = kind_of(task), merged_path(out, task)
            rows = _merge(path, files, TASKS[task], model)
            if kind not in judges:
                judges[kind] = load_judge(config.judge_of(kind), kind, world_root)
            self.judge_runs[task] = JudgeRun(rows, verdicts_path(path), judges[kind], ask_unparsed_again)

    def judge(self, progress: Progress = silent) -> None:
        """Ask for the missing verdicts. If a judge cannot go on, the verdicts that it has given are kept."""
        _note_judges(self._out, {task: self._config.judge_of(kind_of(task)).full_name for task in self.judge_runs})
        complete_all(self.judge_runs.values(), progress, as_first=True)
        durable.write_text(stamp_path(self._out), _marks(self._out, self._tasks, self._config))


def _existing(out: Path, shards: Sequence[EvalTask]) -> list[Path]:
    return [path for path in (shard.path(out) for shard in shards) if path.exists()]


def _merge(path: Path, shards: list[Path], task: Task, model: ModelRows) -> list[GenerationRow]:
    """Write the rows of `shards`, one file after another, to `path` unless it holds them already. Returns the rows."""
    rows = model.read_answers(shards, task.name, task.labels)
    data = _concatenated(shards)
    if not path.exists() or path.read_bytes() != data:
        _note_judges(path.parent, {})
        with durable.open_atomically(path) as file:
            file.write(data)
    return rows


def _concatenated(shards: list[Path]) -> bytes:
    """The complete lines of all files, one file after another."""
    return b"".join(data[: data.rfind(b"\n") + 1] for data in map(Path.read_bytes, shards))


def stamp_path(out: Path) -> Path:
    """The merge's stamp in a model's folder: the judge of each task and, after judging, the sizes and times of the files."""
    return out / ".merged.json"


def read_stamp(out: Path) -> dict[str, Any]:
    """The stamp's content; empty if the stamp is missing or damaged."""
    with contextlib.suppress(OSError, UserError):
        stamp = durable.read_json(stamp_path(out))
        return stamp if isinstance(stamp, dict) else {}
    return {}


def _note_judges(out: Path, judges: Mapping[str, str]) -> None:
    """Write the study's judge of each task into the stamp, before it begins: the first verdicts in a file can be another's.

    A judge replaces an earlier one in all of its tasks at once, even if it does not finish them. The sizes and times of the
    last merge are removed: with another judge's name, or other rows, they would pass for those of this merge.
    """
    known = read_stamp(out)
    noted = {task: name for task, name in known.items() if isinstance(name, str)} | {**judges}
    if noted != known:
        durable.write_text(stamp_path(out), json.dumps(noted))


def _marks(out: Path, tasks: Sequence[EvalTask], config: EvalConfig) -> str:
    """The judges, and the sizes and times of all files that `is_merged` looks at. If they are equal, nothing has changed."""
    marks: dict[str, Any] = {}
    for task, shards in shards_by_task(tasks).items():
        merged = merged_path(out, task)
        marks[task] = config.judge_of(kind_of(task)).full_name
        for path in (*(shard.path(out) for shard in shards), merged, verdicts_path(merged)):
            if path.exists():
                marks[str(path.relative_to(out))] = [path.stat().st_size, path.stat().st_mtime_ns]
    return json.dumps(marks)


def is_merged(out: Path, model_kind: ModelKind, config: EvalConfig, tasks: Sequence[EvalTask] | None = None) -> bool:
    """Whether the merged rows are those of the shards that exist now, and the judge has given each a verdict.

    False for damaged files: the merge job says what is wrong with them when it runs again. Files that are as the merge left
    them are not read, because the status of a run asks this of every model.
    """
    tasks = config.eval_tasks(model_kind) if tasks is None else tasks
    if stamp_path(out).is_file() and stamp_path(out).read_bytes() == _marks(out, tasks, config).encode():
        return True
    for task, shards in shards_by_task(tasks).items():
        files, merged = _existing(out, shards), merged_path(out, task)
        if not files:
            continue
        if not (merged.is_file() and merged.read_bytes() == _concatenated(files)):
            return False
        try:
            if not _is_judged(merged, config.judge_of(kind_of(task)).full_name):
                return False
        except UserError:
            return False
    return True


def _is_judged(merged: Path, judge: str) -> bool:
    """Whether one version of `judge` has a verdict on every answer in `merged`, on the question as it is asked now."""
    rows = read_rows(merged, GenerationRow)
    of_versions = [verdicts for (name, _), verdicts in verdicts_by_judge(merged).items() if name == judge]
    return not rows or any(all(judged(row, verdicts.get(row.key)).judge for row in rows) for verdicts in of_versions)


def is_judged_as_now(out: Path, config: EvalConfig, tasks: Sequence[EvalTask], world_root: Path | None) -> bool:
    """Whether a merged model's verdicts are those of the judge's current version, or judging again would not be free.

    A server is not asked twice. The function of a package is taken as unchanged: the package can have another version here
    than where jobs run, and looking at a run should not import it. So is a judge that cannot be loaded here.
    """
    by_task = shards_by_task(tasks)
    current: dict[Judged, str] = {}
    for kind in set(map(kind_of, by_task)):
        settings = config.judge_of(kind)
        if settings.name != "python" and (settings.on_this_machine or not settings.has_template):
            with contextlib.suppress(UserError, OSError):
                current[kind] = load_judge(settings, kind, world_root).version
    for task in by_task:
        kind, version = kind_of(task), _first_version(verdicts_path(merged_path(out, task)))
        if version is not None and version != current.get(kind, version):
            return False
    return True


def _first_version(path: Path) -> str | None:
    """The version of the judge that comes first in a file of verdicts, the study's own; None without verdicts."""
    try:
        with open(path, "rb") as file:
            return decode(file.readline(), VerdictRow).version
    except (OSError, ValueError):
        return None


def question_of(row: GenerationRow) -> Question:
    kind = kind_of(row.task)
    return Question(
        kind=kind,
        behavior=row.behavior,
        response=row.response,
        context=row.context,
        beginning=row.prompt if kind == "attack" and row.raw else "",
        prefill=row.prefill,
    )


def key_of_question(row: GenerationRow, judge: str, version: str) -> str:
    """Hash of what this judge is asked about an answer; "" for a short-circuit, which no judge sees."""
    return "" if row.finish == "tag" else question_key(judge, version, question_of(row))


class JudgeRun:
    """One judge's work on the answers of one task."""

    def __init__(self, rows: Sequence[GenerationRow], path: Path, judge: Judge, ask_unparsed_again: bool = False) -> None:
        """`path` is the file of verdicts. With `ask_unparsed_again`, the judge is asked again about answers that it left
        "unparsed"; that verdict stays until a new one replaces it."""
        self.path, self.judge, self.rows = path, judge, rows
        self._ask_unparsed_again = ask_unparsed_again
        self._look()

    def _look(self) -> None:
        """Read the file of verdicts: which answers have one, and which wait for one."""
        verdicts = self._own_verdicts(self.path)
        # Verdicts on answers that were gone are set aside there, and such an answer can come back.
        set_aside = self._own_verdicts(unused_path(self.path))
        self._known = {verdict.question: verdict for verdict in [*set_aside, *verdicts] if verdict.question}
        answered = {(verdict.key, verdict.question) for verdict in verdicts}
        self._waiting: dict[str, list[GenerationRow]] = defaultdict(list)
        """Answers without a verdict, by the key of their question; "" for short-circuits."""
        for row in self.rows:
            question = key_of_question(row, self.judge.name, self.judge.version)
            if (row.key, question) not in answered:
                self._waiting[question].append(row)
        self.done = len(self.rows) - sum(map(len, self._waiting.values()))

    def _own_verdicts(self, path: Path) -> list[VerdictRow]:
        """The verdicts of this judge in `path`, except those to be asked for again."""
        judge = self.judge.name, self.judge.version
        own = [verdict for verdict in read_rows(path, VerdictRow) if (verdict.judge, verdict.version) == judge]
        return [verdict for verdict in own if not (self._ask_unparsed_again and verdict.label == UNPARSED)]

    @property
    def left(self) -> list[Question]:
        """The questions that the judge has not answered yet."""
        return [question_of(rows[-1]) for key, rows in self._waiting.items() if key and key not in self._known]

    def locked(self) -> AbstractContextManager[None]:
        """Hold the file of verdicts: a merge job and a rejudging command must not write it at the same time. Raises UserError
        if another process has it."""
        return exclusive_lock(self.path.with_name(f".{self.path.stem}.lock"))

    def complete(self, progress: Progress = silent, as_first: bool = False) -> None:
        """Ask for the missing verdicts, and put the file in order. Verdicts are on disk before more are written.

        With `as_first`, this judge then comes first in the file, as the study's own. Raises UserError if another process is at
        work on the same file, or if the judge cannot go on.
        """
        judge = self.judge

        def settle(verdicts: Sequence[tuple[Question, Verdict]]) -> None:
            rows = []
            for question, verdict in verdicts:
                key = question_key(judge.name, judge.version, question)
                rows += [verdict_row(judge, row, key, verdict) for row in self._waiting[key]]
            self._append(rows, progress)

        with self.locked():
            self._look()  # again, because another process may have judged while the user was asked about the cost
            progress(self.done, len(self.rows))
            known = [(row, key) for key, rows in self._waiting.items() if not key or key in self._known for row in rows]
            self._append([verdict_row(judge, row, key, self._known.get(key)) for row, key in known], progress)
            proven = any(row.label != UNPARSED for row in self._known.values())
            judge.rule(self.left, settle, self.path.with_suffix(""), proven)
            self._put_in_order(as_first)

    def _append(self, rows: list[VerdictRow], progress: Progress) -> None:
        if rows:
            append_rows(self.path, rows)
            self.done += len(rows)
            progress(self.done, len(self.rows))

    def _put_in_order(self, as_first: bool) -> None:
        """Sort the verdicts into the order of the answers, the first judge's before all others.

        Verdicts on answers that are gone or have changed move to `<name>.unused.jsonl`. If a judge has several verdicts on an
        answer, the last is kept: the earlier ones were "unparsed". A file that was written with interruptions thus ends with
        the same bytes as one that was not.
        """
        place = {row.key: number for number, row in enumerate(self.rows)}
        stored, stale = read_rows(self.path, VerdictRow), []
        valid: dict[tuple[str, str, str], VerdictRow] = {}
        for verdict in stored:
            number = place.get(verdict.key)
            if number is not None and verdict.question == key_of_question(self.rows[number], verdict.judge, verdict.version):
                valid[verdict.judge, verdict.version, verdict.key] = verdict
            else:
                stale.append(verdict)
        if stale:
            known = set(read_rows(unused_path(self.path), VerdictRow))
            append_rows(unused_path(self.path), [verdict for verdict in stale if verdict not in known])
        first = (self.judge.name, self.judge.version) if as_first else next(iter(valid), ("", ""))[:2]

        def rank(verdict: VerdictRow) -> tuple[bool, str, str, int]:
            return (verdict.judge, verdict.version) != first, verdict.judge, verdict.version, place[verdict.key]

        ordered = sorted(valid.values(), key=rank)
        if ordered != stored:
            write_rows(self.path, ordered)


def complete_all(runs: Collection[JudgeRun], progress: Progress, as_first: bool = False) -> None:
    """Ask for the missing verdicts of several tasks, as `JudgeRun.complete` does."""
    answers, finished = sum(len(run.rows) for run in runs), 0
    for run in runs:

        def of_all(done: int, total: int, before: int = finished, **figures: Any) -> None:
            progress(before + done, answers, **figures)

        run.complete(of_all, as_first)
        finished += len(run.rows)


def verdict_row(judge: Judge, row: GenerationRow, question: str, verdict: Verdict | VerdictRow | None) -> VerdictRow:
    """The row of a judge's verdict on an answer. A short-circuit has none: `verdict` is None."""
    kind = kind_of(row.task)
    is_benign = kind == "overrefusal"
    if verdict is None:
        label = "5_shortcircuit" if is_benign else "shortcircuit"
    else:
        label = verdict.label if verdict.label in LABELS[kind] else UNPARSED
    return VerdictRow(
        key=row.key,
        judge=judge.name,
        version=judge.version,
        label=label,
        question=question,
        reply=verdict.reply if verdict else None,
        tells_helpful=judge.tells_helpful if is_benign else None,
    )


def unused_path(path: Path) -> Path:
    return path.with_name(path.stem + ".unused.jsonl")


def read_answers(path: Path) -> list[GenerationRow]:
    """The merged answers in `path`. Raises UserError if the file is not as long as the merge left it: nothing else would
    notice that rows were lost."""
    # Before the stamp is read: a merge removes the size from the stamp before it rewrites the file.
    size = path.stat().st_size if path.exists() else 0
    noted = read_stamp(path.parent).get(path.name) if size else None
    if isinstance(noted, list) and size != noted[0]:
        raise UserError(
            f"{path}: has {size:,} bytes, and the merge left {noted[0]:,}; run the study again, or the same "
            "`curricula eval`, which merges the answers again"
        )
    return read_rows(path, GenerationRow)


def read_judged(path: Path) -> list[JudgedRow]:
    """The answers in `path`, each with the study's own verdict.

    An answer without such a verdict is "unparsed", by judge "": it is counted, and never as safe. So is an answer whose verdict
    was given on another text; it is marked as `changed`.
    """
    return read_judges(path)[0]


def read_judges(path: Path) -> tuple[list[JudgedRow], dict[str, list[JudgedRow]]]:
    """The answers in `path` with the study's own verdicts, and with those of each other judge, by "NAME VERSION"."""
    rows = read_answers(path)
    by_judge = {
        f"{judge} {version}": [judged(row, verdicts.get(row.key)) for row in rows]
        for (judge, version), verdicts in verdicts_by_judge(path).items()
    }
    own = by_judge.pop(next(iter(by_judge))) if by_judge else [judged(row, None) for row in rows]
    return own, dict(sorted(by_judge.items()))


def verdicts_by_judge(path: Path) -> dict[tuple[str, str], dict[str, VerdictRow]]:
    """The verdicts on the answers in `path`, by judge and version and then by the answer's key.

    The study's own come first, even if an interrupted merge has left none. Another judge's do not fill their gaps: the rate
    would be that of neither judge.
    """
    by_judge: dict[tuple[str, str], dict[str, VerdictRow]] = defaultdict(dict)
    for verdict in read_rows(verdicts_path(path), VerdictRow):
        by_judge[verdict.judge, verdict.version][verdict.key] = verdict
    own = read_stamp(path.parent).get(path.stem)
    if own is None:
        return by_judge
    first = next((judge for judge in by_judge if judge[0] == own), (str(own), ""))
    return {first: by_judge.pop(first, {}), **by_judge}


def judged_now(rows: Sequence[GenerationRow], judge: Judge) -> list[JudgedRow]:
    """The answers with the verdicts of a judge that decides by rules, which is asked now. Nothing is written."""
    keys = [key_of_question(row, judge.name, judge.version) for row in rows]
    questions = {key: question_of(row) for row, key in zip(rows, keys) if key}
    verdicts: dict[Question, Verdict] = {}
    judge.rule(list(questions.values()), verdicts.update, Path(), True)
    found = {key: verdicts[question] for key, question in questions.items()}
    return [judged(row, verdict_row(judge, row, key, found.get(key))) for row, key in zip(rows, keys)]


def judged(row: GenerationRow, verdict: VerdictRow | None) -> JudgedRow:
    """The answer with its verdict; "unparsed" without one, and if the judge was asked about another text."""
    fields = msgspec.structs.asdict(row)
    changed = verdict is not None and verdict.question != key_of_question(row, verdict.judge, verdict.version)
    if verdict is None or changed:
        return JudgedRow(**fields, verdict=UNPARSED, judge="", judge_version="", changed=changed)
    return JudgedRow(
        **fields,
        verdict=verdict.label,
        judge=verdict.judge,
        judge_version=verdict.version,
        tells_helpful=verdict.tells_helpful is not False,
    )
