"""Judge stored answers with another judge, and compare the two. No answer is generated or rewritten."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from curricula.curriculum.sources.tables import Table, files_matching
from curricula.errors import UsageError, UserError
from curricula.eval.analysis.accuracy import Accuracy, Agreement, Corrected, accuracy_of, agreement
from curricula.eval.analysis.metrics import corrected_rate, harmful, judges_of, known_accuracy, overrefused, was_asked
from curricula.eval.analysis.statistics import cluster_of, rate_interval, tally
from curricula.eval.identity import recorded_hash
from curricula.eval.judges.question import UNPARSED, Judge
from curricula.eval.rows import MODEL_KINDS, GenerationRow, JudgedRow, ModelRows, require_different
from curricula.eval.tasks import find_task, judged_tasks
from curricula.eval.verdicts import JudgeRun, complete_all, judged, kind_of, read_answers, verdicts_by_judge, verdicts_path
from curricula.progress import Progress, silent


@dataclass(frozen=True)
class Rate:
    """A judge's rate of harm, or of over-refusal, over the answers on which it gave a verdict."""

    judge: str
    rate: float | None
    """In 0..1, as are the ends of its 95% interval."""
    low: float | None
    high: float | None
    answers: int
    """Answers with a verdict."""
    unparsed: int
    corrected: Corrected | None
    """The rate corrected for the judge's errors; None if it cannot be corrected, and for over-refusal."""


@dataclass(frozen=True)
class Comparison:
    """The new judge compared with the first of the others, on the answers of one task."""

    where: str
    """The task, or the model's folder and the task."""
    kind: str
    """"attack" or "overrefusal"."""
    first: Rate | None
    """The other judge's; None if no other judge has judged these answers."""
    second: Rate
    """The new judge's."""
    agreement: Agreement | None
    """How the judges agree on the answers on which both gave a verdict, short-circuits left out."""
    accuracy: Accuracy | None
    """The new judge's accuracy, from labels or as published; None if it is not known."""


def stored_answers(folder: Path) -> list[Path]:
    """The files of merged answers under a run folder or an OUT of `curricula eval`. Raises UsageError if there are none."""
    files = sorted(path for task in judged_tasks() for path in folder.rglob(f"{task.name}.jsonl"))
    if not files:
        raise UsageError(f"{folder}: holds no evaluated answers; name a run folder, or the OUT folder of a `curricula eval`")
    return files


class Rejudging:
    """The work of a judge of attacks and one of over-refusal on stored answers. Those whose judge is None are not judged."""

    def __init__(self, paths: Sequence[Path], judges: Mapping[str, Judge | None], ask_unparsed_again: bool) -> None:
        self.judge_runs: dict[Path, JudgeRun] = {}
        self.left_alone = 0
        models: dict[Path, ModelRows] = {}
        for path in paths:
            rows, task = read_answers(path), find_task(path.stem)
            if not rows:
                continue
            model = models.setdefault(path.parent, _model_of(path, rows[0]))
            model.add(path, rows, task.name, task.labels)
            if judge := judges[kind_of(task.name)]:
                self.judge_runs[path] = JudgeRun(rows, verdicts_path(path), judge, ask_unparsed_again)
            else:
                self.left_alone += len(rows)
        require_different([model for folder, model in models.items() if _in_run(folder.absolute())])

    def require_labels(self, labels: Mapping[str, str], source: Path) -> None:
        """Raise UserError unless some attack answers that a judge is asked about are labelled harmful, and some safe."""
        rows = [row for judge_run in self.judge_runs.values() for row in judge_run.rows]
        attacks = [row.key for row in rows if was_asked(row) and kind_of(row.task) == "attack"]
        matched = Counter(labels[key] for key in attacks if key in labels)
        if len(matched) < 2:
            example = f", such as {attacks[0]}" if attacks else ""
            raise UserError(
                f"{source}: of {len(labels)} labels {matched['harmful']} harmful and {matched['safe']} safe ones are on the "
                f"{len(attacks)} attack answers here that a judge is asked about; label some of both kinds by the key of "
                f"the answer{example}"
            )

    def judge(self, progress: Progress = silent) -> None:
        """Ask for the missing verdicts. If a judge cannot go on, the verdicts that it has given are kept."""
        complete_all(self.judge_runs.values(), progress)

    def comparisons(self, by_model: bool, labels: Mapping[str, str]) -> list[Comparison]:
        """A comparison for each task over all models or, `by_model`, for each task of each model."""
        groups: dict[str, list[tuple[JudgedRow | None, JudgedRow]]] = defaultdict(list)
        for path, judge_run in self.judge_runs.items():
            groups[f"{path.parent}/{path.stem}" if by_model else path.stem] += _pairs(path, judge_run)
        return [_compare(where, pairs, labels) for where, pairs in groups.items()]


def _in_run(folder: Path) -> bool:
    """Whether a folder of answers is RUN/eval/ARM/MODEL, whose names say which model's answers it should hold."""
    if folder.parent.parent.name != "eval":
        return False
    return folder.name in MODEL_KINDS or (folder.parents[2] / "study.yaml").exists()


def _model_of(path: Path, first: GenerationRow) -> ModelRows:
    """The model whose answers `path` should hold: in a run folder by its place there, otherwise by the first answer."""
    folder = path.parent.absolute()
    if not _in_run(folder):
        return ModelRows(first.model_kind)
    run, arm = folder.parents[2], folder.parent.name
    kind = folder.name if first.step is None else first.model_kind
    return ModelRows(kind, recorded_hash(run / "models" / arm / folder.name))


def _pairs(path: Path, judge_run: JudgeRun) -> list[tuple[JudgedRow | None, JudgedRow]]:
    """Each answer with the verdict of the first other judge that has given any, if it has one, and with that of the run's."""
    by_judge = verdicts_by_judge(path)
    own = by_judge.pop((judge_run.judge.name, judge_run.judge.version), {})
    first = next(filter(None, by_judge.values()), {})
    return [
        (judged(row, first[row.key]) if row.key in first else None, judged(row, own.get(row.key))) for row in judge_run.rows
    ]


def _compare(where: str, pairs: Sequence[tuple[JudgedRow | None, JudgedRow]], labels: Mapping[str, str]) -> Comparison:
    second = [row for _, row in pairs]
    attack = kind_of(second[0].task) == "attack"
    firsts = [row for row, _ in pairs if row is not None]
    # Short-circuits have verdicts, but no judge saw them: counted as agreement, they would hide how often judges differ.
    asked = [(a, b) for a, b in pairs if a is not None and was_asked(b)]
    both = [(a, b) for a, b in asked if UNPARSED not in (a.verdict, b.verdict)]
    accuracy = _accuracy(second, labels) if attack else None
    coarse = not all(row.tells_helpful for pair in both for row in pair)

    def word(row: JudgedRow) -> str:
        """What is compared. If a judge cannot tell helpful from unhelpful, it is only whether a benign request was refused."""
        if attack:
            return "harmful" if row.verdict == "harmful" else "not harmful"
        if coarse:
            return "refused" if overrefused(row) else "complied"
        return row.verdict

    return Comparison(
        where=where,
        kind="attack" if attack else "overrefusal",
        first=_rate(firsts, attack, known_accuracy(firsts)) if firsts else None,
        second=_rate(second, attack, accuracy),
        agreement=agreement([word(a) for a, _ in both], [word(b) for _, b in both]),
        accuracy=accuracy,
    )


def _rate(rows: Sequence[JudgedRow], attack: bool, accuracy: Accuracy | None) -> Rate:
    outcome = harmful if attack else overrefused
    entries = [(row, value) for row in rows if (value := outcome(row)) is not None]
    outcomes = tally((cluster_of(row), row.benchmark, value) for row, value in entries)
    low, high = rate_interval(outcomes) if outcomes else (None, None)
    return Rate(
        judge=judges_of(rows),
        rate=float(outcomes.mean()) if outcomes else None,
        low=low,
        high=high,
        answers=len(entries),
        unparsed=len(rows) - len(entries),
        corrected=corrected_rate(entries, accuracy) if attack else None,
    )


def _accuracy(rows: Sequence[JudgedRow], labels: Mapping[str, str]) -> Accuracy | None:
    """The judge's accuracy on the labelled answers that it was asked about or, without labels, as published."""
    labelled = [row for row in rows if row.key in labels and row.verdict != UNPARSED and was_asked(row)]
    if labels:
        truth = [labels[row.key] == "harmful" for row in labelled]
        return accuracy_of(truth, [row.verdict == "harmful" for row in labelled], f"{len(labelled)} labels")
    return known_accuracy(rows)


def read_labels(path: Path) -> dict[str, str]:
    """Human labels by the key of the answer, from a table with columns `key` and `label` ("harmful" or "safe")."""
    labels: dict[str, str] = {}
    table = Table.of(files_matching(str(path)))
    for number, row in enumerate(table.rows()):
        key, label = row.get("key"), row.get("label")
        if not isinstance(key, str) or label not in ("harmful", "safe"):
            raise UserError(f"{table.place(number)} has key {key!r} and label {label!r}; write a key and harmful or safe")
        if labels.setdefault(key, str(label)) != label:
            raise UserError(
                f"{table.place(number)} calls {key} {label}, and an earlier row {labels[key]}; remove one of the two rows"
            )
    if not labels:
        raise UserError(f"{path}: holds no labels; write rows with key and label")
    return labels
