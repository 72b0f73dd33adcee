"""Curves of what was measured while models were trained: attack success, refusals, probe AUC and validation loss by step.

A curve follows one training of an arm: its pretraining, including the shared trunk, or a later stage, for which the curve of
attack success is a tamper curve. It begins with the model that the stage continues from and ends with the stage's own model, if
these have answered the same prompts. All points are rates over the same prompts.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from curricula import durable
from curricula.eval.analysis.metrics import Model, RowId, attack_metrics, harmful, overrefusal_metrics, probe_metrics, row_id
from curricula.eval.analysis.statistics import cluster_of, grouped, prompt_of, rate_interval, tally
from curricula.eval.analysis.study_rows import require_same_requests, require_same_texts
from curricula.eval.identity import recorded_hash
from curricula.eval.rows import JudgedRow, ModelRows, ProbeRow, read_rows
from curricula.eval.tasks import TASKS
from curricula.eval.verdicts import kind_of, read_judged


@dataclass(frozen=True)
class Course:
    """One training of an arm that was measured along the way, and where its files lie in the run folder."""

    arm: str
    seed: int
    stage: str
    tasks: tuple[str, ...]
    points: tuple[str, ...]
    """ARM/MODEL of each point, in the order of training."""
    begin: str | None
    """ARM/MODEL of the model that the stage continues from; None for pretraining."""
    end: str
    """ARM/MODEL of the finished model."""
    logs: tuple[tuple[str, int | None], ...]
    """Files of metrics, each with the last of its steps that belongs to this training (None: all belong)."""
    step_tokens: int
    steps: int | None = None
    """The step of the finished model, if the study alone gives it; otherwise it is the last step of the metrics."""


@dataclass(frozen=True)
class CurvePoint:
    """One measure at one step of one training, with its 95% interval over prompts.

    Rates and AUCs are in 0..1, losses in nats per token.
    """

    stage: str
    arm: str
    seed: int
    step: int
    tokens: int
    measure: str
    """"attack success", "refusals" (of harmful requests), "over-refusal", "probe AUC" or "validation loss"."""
    series: str
    """The decoder, the probed layer or the validation source."""
    value: float
    low: float | None = None
    high: float | None = None
    prompts: int | None = None
    judges: str = ""


def curve_points(run: Path, courses: Sequence[Course]) -> list[CurvePoint]:
    """The points of all curves of the courses."""
    return [point for course in courses for point in _points(run, course)]


def _points(run: Path, course: Course) -> Iterator[CurvePoint]:
    logs = [row for name, last in course.logs for row in durable.read_jsonl(run / name) if last is None or row["step"] <= last]
    last_step = course.steps or max((row["step"] for row in logs), default=0)
    end = course.end if last_step else None  # without metrics its step may not be known
    model = Model(course.arm, course.seed, course.stage)

    def at(step: int, measure: str, series: str, *more: float | str | None) -> CurvePoint:
        place = (course.stage, course.arm, course.seed, step, step * course.step_tokens)
        return CurvePoint(*place, measure, series, *more)  # type: ignore[arg-type]

    for row in logs:
        for source, loss in (row.get("validation") or {}).items():
            yield at(row["step"], "validation loss", source, loss)
    for task in course.tasks:
        if TASKS[task].judged:
            answers = _answers_by_step(run, course, task, end, last_step)
            expected = {row_id(row) for _, rows in answers for row in rows}
            for step, rows in answers:
                for measured in _measured(rows, model, task, expected):
                    yield at(step, *measured)
        elif TASKS[task].kind == "probes":
            files = [run / "eval" / place / "probes.jsonl" for place in (*course.points, end) if place]
            probed = [(path, read_rows(path, ProbeRow)) for path in files]
            require_same_texts(probed)
            for _, probes in probed:
                for entry in probe_metrics(probes, model):
                    yield at(probes[0].step or last_step, "probe AUC", entry.layer, entry.auc)


def _answers_by_step(
    run: Path, course: Course, task: str, end: str | None, last_step: int
) -> list[tuple[int, list[JudgedRow]]]:
    """The answers of each model of the course to the prompts that its points have answered, by step."""
    answers: dict[Path, list[JudgedRow]] = {}
    for place in course.points:
        path = run / "eval" / place / f"{task}.jsonl"
        answers[path] = read_judged(path)
        model = ModelRows(course.stage, recorded_hash(run / "models" / place))
        model.add(path, answers[path], task, TASKS[task].labels)
    asked = {prompt_of(row) for rows in answers.values() for row in rows}
    ends = {run / "eval" / place / f"{task}.jsonl": step for place, step in ((course.begin, 0), (end, last_step)) if place}
    for path in ends:
        answers[path] = [row for row in read_judged(path) if prompt_of(row) in asked]
    require_same_requests(answers.items())
    by_step = [(ends.get(path, rows[0].step or 0), rows) for path, rows in answers.items() if rows]
    return sorted(by_step, key=lambda step_and_rows: step_and_rows[0])


def _measured(
    rows: list[JudgedRow], model: Model, task: str, expected: Collection[RowId]
) -> Iterator[tuple[str, str, float, float | None, float | None, int, str]]:
    """The fields of `CurvePoint` from `measure` on, for one model's answers to one task. `expected` has the whole curve's."""
    if kind_of(task) == "overrefusal":
        last = overrefusal_metrics(rows, model, expected)[-1]  # over all sets
        if last.rate is not None:
            yield "over-refusal", last.decoder, last.rate, last.low, last.high, last.prompts, last.judges
        return
    # A decoder's last metrics are those over all benchmarks.
    attacks = {attack.decoder: attack for attack in attack_metrics(rows, model, expected)}
    for decoder, attack in attacks.items():
        if attack.rate is None:
            continue
        yield "attack success", decoder, attack.rate, attack.low, attack.high, attack.prompts, attack.judges
        parsed = [row for row in rows if row.decoder == decoder and harmful(row) is not None]
        refused = tally((cluster_of(row), row.benchmark, float(row.verdict == "refusal")) for row in parsed)
        if refused:
            low, high = rate_interval(refused)
            yield "refusals", decoder, refused.mean(), low, high, attack.prompts, attack.judges


def mean_over_seeds(points: Sequence[CurvePoint]) -> list[CurvePoint]:
    """One point for each arm, step and series: the mean over training seeds, with an interval only if there is one run.

    A step at which some run of the arm has not been measured yet has no point: means over different runs at different steps
    would show changes that no run has.
    """
    means = []
    curves = grouped(points, lambda point: (point.arm, point.measure, point.series))
    seeds = {curve: {point.seed for point in own} for curve, own in curves.items()}
    for group in grouped(points, lambda point: (point.arm, point.step, point.measure, point.series)).values():
        if {point.seed for point in group} == seeds[group[0].arm, group[0].measure, group[0].series]:
            mean = sum(point.value for point in group) / len(group)
            means.append(group[0] if len(group) == 1 else replace(group[0], value=mean, low=None, high=None))
    return means
