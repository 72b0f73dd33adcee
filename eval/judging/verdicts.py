"""Verdicts beside the answers: find the missing ones, ask for them, and join answers with them (docs/evaluation.md).

    rows = read_rows(path, GenerationRow)
    JudgeRun(rows, verdicts_path(path), load_judge(config, "attack", None)).complete()
    judged = read_judged(path)

A file of verdicts is append-only while a judge is at work.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import msgspec

from curricula import durable
from curricula.durable import exclusive_lock
from curricula.errors import UserError
from curricula.eval.judges.question import LABELS, UNPARSED, Estimate, Judge, Question, Verdict, question_key
from curricula.eval.rows import GenerationRow, JudgedRow, VerdictRow, append_rows, read_rows, write_rows
from curricula.eval.tasks import Judged, find_task
from curricula.progress import Progress, silent


def kind_of(task: str) -> Judged:
    """What the answers of a task are judged for: "attack" or "overrefusal"."""
    return find_task(task).judged or "attack"


def verdicts_path(rows: Path) -> Path:
    return rows.with_name(f"{rows.stem}.verdicts.jsonl")


def question_of(row: GenerationRow) -> Question:
    attack = kind_of(row.task) == "attack"
    return Question(
        kind="attack" if attack else "overrefusal",
        behavior=row.behavior,
        response=row.response,
        context=row.context,
        beginning=row.prompt if attack and row.raw else "",
        prefill=row.prefill,
    )


def key_of_question(row: GenerationRow, judge: str, version: str) -> str:
    """Hash of what this judge is asked about an answer; "" for a short-circuit, which no judge sees."""
    return "" if row.finish == "tag" else question_key(judge, version, question_of(row))


class JudgeRun:
    """One judge's work on the answers of one task."""

    def __init__(self, rows: Sequence[GenerationRow], path: Path, judge: Judge, ask_unparsed_again: bool = False) -> None:
        """`path` is the file of verdicts. `ask_unparsed_again`: this judge's "unparsed" counts as no verdict, but stays until
        another replaces it."""
        self.path, self.judge, self.rows = path, judge, rows
        self._ask_unparsed_again = ask_unparsed_again
        self._look()

    def _look(self) -> None:
        """Find out what is left to ask."""
        path, judge, rows = self.path, self.judge, self.rows

        def is_given(row: VerdictRow) -> bool:
            return not (self._ask_unparsed_again and row.label == UNPARSED)

        mine = [row for row in read_rows(path, VerdictRow) if self._is_mine(row)]
        found = [row for row in mine if is_given(row)]
        given = {(row.key, row.question) for row in found}
        unreadable = {(row.key, row.question) for row in mine if not is_given(row)}
        # An answer whose verdict was set aside may have come back.
        unused = [row for row in read_rows(unused_path(path), VerdictRow) if self._is_mine(row) and is_given(row)]
        self._known = {row.question: row for row in [*unused, *found] if row.question}
        self._replacing: set[str] = set()
        self._short: list[GenerationRow] = []
        self._waiting: dict[str, list[GenerationRow]] = defaultdict(list)
        self._questions: dict[str, Question] = {}
        for row in rows:
            key = key_of_question(row, judge.name, judge.version)
            if (row.key, key) in given:
                continue
            if (row.key, key) in unreadable:
                self._replacing.add(row.key)
            if key:
                self._waiting[key].append(row)
                self._questions[key] = question_of(row)
            else:
                self._short.append(row)
        self.total, self.done = len(rows), len(rows) - len(self._short) - sum(map(len, self._waiting.values()))

    def _is_mine(self, row: VerdictRow) -> bool:
        return (row.judge, row.version) == (self.judge.name, self.judge.version)

    @property
    def left(self) -> list[Question]:
        """The questions that the judge has not answered yet."""
        return [question for key, question in self._questions.items() if key not in self._known]

    def estimate(self) -> Estimate | None:
        return self.judge.estimate(self.left)

    def complete(self, progress: Progress = silent) -> None:
        """Ask for the missing verdicts. Each lot is on the disk before the next is written.

        Raises UserError when another process is at work on the same file, or when the judge cannot go on.
        """
        with _alone_with(self.path):
            self._look()  # again: another process may have judged since, while a person was asked about the cost
            self._complete(progress)

    def _complete(self, progress: Progress) -> None:
        set_aside(self.path, self.rows)
        progress(self.done, self.total)
        self._append([verdict_row(self.judge, row, "", None) for row in self._short], progress)
        repeats = [(row, key) for key, rows in self._waiting.items() if key in self._known for row in rows]
        self._append([verdict_row(self.judge, row, key, self._known[key]) for row, key in repeats], progress)

        def settle(verdicts: Sequence[tuple[Question, Verdict]]) -> None:
            rows = []
            for question, verdict in verdicts:
                key = question_key(self.judge.name, self.judge.version, question)
                rows += [verdict_row(self.judge, row, key, verdict) for row in self._waiting[key]]
            self._append(rows, progress)

        proven = any(row.label != UNPARSED for row in self._known.values())
        self.judge.rule(self.left, settle, self.path.with_suffix(""), proven)

    def _append(self, rows: list[VerdictRow], progress: Progress) -> None:
        if rows:
            self._replace([row for row in rows if row.key in self._replacing])
            append_rows(self.path, [row for row in rows if row.key not in self._replacing])
            self.done += len(rows)
            progress(self.done, self.total)

    def _replace(self, rows: list[VerdictRow]) -> None:
        """Put verdicts in place of this judge's "unparsed" on the same answers, so that a study's own stays the first."""
        if rows:
            by_key = {row.key: row for row in rows}
            found = read_rows(self.path, VerdictRow)
            write_rows(self.path, [by_key.get(row.key, row) if self._is_mine(row) else row for row in found])


def complete_all(runs: Collection[JudgeRun], progress: Progress, as_first: bool = False) -> int:
    """Ask for the missing verdicts on several tasks' answers, and put the files in order; returns the number of answers.

    `as_first`: each judge then stands first in its file, as the study's own.
    """
    total, finished = sum(run.total for run in runs), 0
    for run in runs:
        run.complete(_shifted(progress, finished, total))
        finished += run.total
        put_in_order(run.path, run.rows, run.judge if as_first else None)
    return total


def _shifted(progress: Progress, finished: int, whole: int) -> Progress:
    """The progress of one task, reported as that of `whole` units of which `finished` came first."""

    def report(done: int, total: int, **figures: Any) -> None:
        progress(finished + done, whole, **figures)

    return report


def verdict_row(judge: Judge, row: GenerationRow, question: str, verdict: Verdict | VerdictRow | None) -> VerdictRow:
    """A judge's verdict on an answer; None for a short-circuit."""
    kind = kind_of(row.task)
    is_benign = kind == "overrefusal"
    if verdict is None:
        given: Verdict | VerdictRow = Verdict(label="5_shortcircuit" if is_benign else "shortcircuit")
    else:
        given = verdict if verdict.label in LABELS[kind] else Verdict(label=UNPARSED, reply=verdict.reply)
    return VerdictRow(
        key=row.key,
        judge=judge.name,
        version=judge.version,
        label=given.label,
        question=question,
        reply=given.reply,
        tells_helpful=judge.tells_helpful if is_benign else None,
    )


def set_aside(path: Path, rows: Sequence[GenerationRow]) -> None:
    """Move verdicts on answers that are gone or have changed to `<name>.unused.jsonl`."""
    answers = {row.key: row for row in rows}

    def holds(row: VerdictRow) -> bool:
        answer = answers.get(row.key)
        return answer is not None and row.question == key_of_question(answer, row.judge, row.version)

    found = read_rows(path, VerdictRow)
    stale = [row for row in found if not holds(row)]
    if stale:
        known = set(map(_identity, read_rows(unused_path(path), VerdictRow)))
        append_rows(unused_path(path), [row for row in stale if _identity(row) not in known])
        write_rows(path, [row for row in found if holds(row)])


def put_in_order(path: Path, rows: Sequence[GenerationRow], first: Judge | None = None) -> None:
    """Sort a file of verdicts into the order of the answers, those of judge `first` before all others.

    Without `first`, the judge that stands first stays there. A file that was written with interruptions thus ends with the same
    bytes as one that was not.
    """
    place = {row.key: number for number, row in enumerate(rows)}

    with _alone_with(path):
        found = read_rows(path, VerdictRow)
        leads = (first.name, first.version) if first else (found[0].judge, found[0].version) if found else None

        def rank(row: VerdictRow) -> tuple[bool, str, str, int]:
            return (row.judge, row.version) != leads, row.judge, row.version, place.get(row.key, len(place))

        ordered = sorted(found, key=rank)
        if ordered != found:
            write_rows(path, ordered)


def _alone_with(path: Path) -> AbstractContextManager[None]:
    """Lock a file of verdicts: a merging job and a rejudging command must not write it at once."""
    return exclusive_lock(path.with_name(f".{path.stem}.lock"))


def stamp_path(out: Path) -> Path:
    """The stamp of merging in the folder of a model: the judge of each task and, once that is done, what it was done with."""
    return out / ".merged.json"


def read_stamp(out: Path) -> dict[str, Any]:
    """What the stamp holds; nothing if there is none, or it is damaged."""
    with contextlib.suppress(OSError, UserError):
        found = durable.read_json(stamp_path(out))
        return found if isinstance(found, dict) else {}
    return {}


def unused_path(path: Path) -> Path:
    return path.with_name(path.stem + ".unused.jsonl")


def _identity(row: VerdictRow) -> tuple[str, str, str, str]:
    return row.key, row.judge, row.version, row.question


def read_answers(path: Path) -> list[GenerationRow]:
    """The merged answers in `path`. Raises UserError where the file is not as long as the merge left it: rows that were lost
    would be missed by nobody."""
    size = path.stat().st_size if path.exists() else 0  # before the stamp, which a merge drops before it rewrites the file
    left = read_stamp(path.parent).get(path.name) if size else None
    if isinstance(left, list) and size != left[0]:
        raise UserError(
            f"{path}: has {size:,} bytes, and the merge left {left[0]:,}; run the study again, or the same "
            "`curricula eval`, which merges the answers anew"
        )
    return read_rows(path, GenerationRow)


def read_judged(path: Path) -> list[JudgedRow]:
    """The answers in `path`, each with the study's own verdict.

    An answer without such a verdict is "unparsed", by judge "". It is counted, and never as safe. So is an answer whose
    verdict was given on another text: `changed` says so.
    """
    verdicts = next(iter(verdicts_by_judge(path).values()), {})
    return [judged(row, verdicts.get(row.key)) for row in read_answers(path)]


def read_judges(path: Path) -> tuple[list[JudgedRow], dict[str, list[JudgedRow]]]:
    """The answers in `path` with the study's own verdicts, and with those of each other judge, by its name and version."""
    rows = read_answers(path)
    given = {
        f"{judge} {version}": [judged(row, of.get(row.key)) for row in rows]
        for (judge, version), of in verdicts_by_judge(path).items()
    }
    own = given.pop(next(iter(given))) if given else [judged(row, None) for row in rows]
    return own, dict(sorted(given.items()))


def verdicts_by_judge(path: Path) -> dict[tuple[str, str], dict[str, VerdictRow]]:
    """The verdicts on the answers in `path` by judge and version, each by the answer's key.

    The first are the study's own, even if a merge that was cut short has left none. Another judge does not fill their gaps: a
    rate would be that of neither judge.
    """
    given: dict[tuple[str, str], dict[str, VerdictRow]] = defaultdict(dict)
    for verdict in read_rows(verdicts_path(path), VerdictRow):
        given[verdict.judge, verdict.version].setdefault(verdict.key, verdict)
    own = read_stamp(path.parent).get(path.stem)
    if own is None:
        return given
    first = next((key for key in given if key[0] == own), (str(own), ""))
    return {first: given.pop(first, {}), **given}


def judged_now(rows: Sequence[GenerationRow], judge: Judge) -> list[JudgedRow]:
    """The answers with the verdicts of a judge that decides by rules; nothing is written."""
    asked = {key_of_question(row, judge.name, judge.version): question_of(row) for row in rows if row.finish != "tag"}
    found: dict[str, Verdict] = {}

    def settle(verdicts: Sequence[tuple[Question, Verdict]]) -> None:
        found.update({question_key(judge.name, judge.version, asked): given for asked, given in verdicts})

    judge.rule(list(asked.values()), settle, Path(), True)
    keys = [key_of_question(row, judge.name, judge.version) for row in rows]
    return [judged(row, verdict_row(judge, row, key, found[key] if key else None)) for row, key in zip(rows, keys)]


def judged(row: GenerationRow, verdict: VerdictRow | None) -> JudgedRow:
    """The answer with its verdict, or with none where the judge was asked about another text."""
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
