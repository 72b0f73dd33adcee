"""What safety costs, in numbers: capability by task, for each run and over training seeds, and bits per byte of held-out text.

Capability is a mean over questions, just as attack success is a mean over prompts, and has the same intervals. Bits per byte
have no prompts: each training run gives one number for a source, and the interval over seeds is Student's.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev

from curricula.eval.analysis.metrics import ALL, Model
from curricula.eval.analysis.seeds import OverSeeds, rate_over_seeds
from curricula.eval.analysis.statistics import Prompt, PromptMean, StudentMean, clustered_error, grouped, rate_interval, tally
from curricula.eval.analysis.study_rows import StudyRows
from curricula.eval.rows import CapabilityRow


@dataclass(frozen=True)
class CapabilityMetrics(Model):
    """How one model did on one task: a share of questions, in 0..1, with its 95% interval over questions."""

    benchmark: str
    """The task. "all" is the average over all tasks that any arm has, each with the same weight, if this run has them all."""
    metric: str
    value: float
    error: float | None
    """Standard error over questions, as lm_eval has it; None for a single question."""
    low: float
    high: float
    questions: int
    cut: int
    """Questions that did not fit the model's context, so that it read only their end."""
    shots: str
    """Answered examples before each question."""


@dataclass(frozen=True)
class CapabilityEstimate:
    """How an arm did on one task, over its training runs."""

    stage: str
    benchmark: str
    arm: str
    value: OverSeeds
    """A share of questions, in 0..1. The questions take the part of prompts."""


@dataclass(frozen=True)
class BitsPerByte:
    """How well a base model predicts the held-out text of one source: fewer is better."""

    arm: str
    seed: int
    source: str
    loss: float
    """Nats per token, as training reported at its end."""
    bytes_per_token: float
    """UTF-8 bytes of the text that the predicted tokens spell. End marks and tags spell none, but their loss counts."""
    value: float


@dataclass(frozen=True)
class BitsEstimate:
    """Bits per byte of an arm over its training runs."""

    arm: str
    source: str
    value: float
    low: float | None
    """Lower end of Student's 95% interval over training seeds; None for a single run."""
    high: float | None
    seeds: int
    runs: Mapping[int, float] = field(metadata={"form": (4, "")})


def capability_metrics(rows: Sequence[CapabilityRow], model: Model, expected: Collection[str] = ()) -> list[CapabilityMetrics]:
    """The metrics of each task and, if there are several and none of `expected` is missing, of their average."""
    benchmarks = list(dict.fromkeys(row.benchmark for row in rows))
    metrics = []
    for name in benchmarks + ([ALL] if len(benchmarks) > 1 and set(expected) <= set(benchmarks) else []):
        own = [row for row in rows if name in (row.benchmark, ALL)]
        tallied = tally((row.question, row.benchmark, row.value) for row in own)  # the same text is one cluster
        assert tallied is not None  # a benchmark has rows
        low, high = rate_interval(tallied)
        metrics.append(
            CapabilityMetrics(
                **vars(model),
                benchmark=name,
                metric=", ".join(sorted({row.metric for row in own})),
                value=tallied.mean(),
                error=clustered_error(tallied),
                low=low,
                high=high,
                questions=len(own),
                cut=sum(row.cut for row in own),
                shots=", ".join(map(str, sorted({row.shots for row in own}))),
            )
        )
    return metrics


def study_capability(study: StudyRows) -> list[CapabilityMetrics]:
    """The metrics of every run. A task that any arm has is expected of every arm."""
    expected = {stage: _tasks(study, stage) for stage in study.stages}
    return [
        metrics
        for arm in study.arms
        for stage in study.stages
        for metrics in capability_metrics(
            study.capability.get((arm.key, stage), []), Model(arm.name, arm.seed, stage), expected[stage]
        )
    ]


def _tasks(study: StudyRows, stage: str) -> list[str]:
    """The tasks that any model of a stage has answered."""
    rows = [row for arm in study.arms for row in study.capability.get((arm.key, stage), ())]
    return list(dict.fromkeys(row.benchmark for row in rows))


def lacking_tasks(study: StudyRows) -> dict[tuple[str, str], list[str]]:
    """The tasks, by stage and arm, that a run of the arm has not answered although another model of the stage has.

    Runs without any answers do not count.
    """
    lacking: dict[tuple[str, str], list[str]] = {}
    for stage in study.stages:
        tasks = _tasks(study, stage)
        for arm in study.arms:
            answered = {row.benchmark for row in study.capability.get((arm.key, stage), ())}
            if answered:
                of_arm = lacking.setdefault((stage, arm.name), [])
                of_arm += [task for task in tasks if task not in answered and task not in of_arm]
    return {place: tasks for place, tasks in lacking.items() if tasks}


def capability_estimates(study: StudyRows) -> Iterator[CapabilityEstimate]:
    """Every arm on every task after every stage, and on the tasks' average if each of its runs has them all."""
    lacking = lacking_tasks(study)
    for stage in study.stages:
        by_arm: dict[str, dict[int, Sequence[CapabilityRow]]] = defaultdict(dict)
        for arm in study.arms:
            if rows := study.capability.get((arm.key, stage)):
                by_arm[arm.name][arm.seed] = rows
        names = _tasks(study, stage)
        for name in names + ([ALL] if len(names) > 1 else []):
            for arm_name, runs in by_arm.items():
                if name == ALL and (stage, arm_name) in lacking:
                    continue
                means: dict[int, dict[Prompt, PromptMean]] = defaultdict(dict)
                for seed, answered in runs.items():
                    for row in answered:
                        if name in (row.benchmark, ALL):
                            place = (row.benchmark, f"{row.task}/{row.prompt_id}")
                            means[seed][place] = PromptMean(row.question, row.value, 1)
                if rate := rate_over_seeds(means):
                    yield CapabilityEstimate(stage, name, arm_name, rate)


def bits_per_byte(arm: str, seed: int, source: str, loss: float, bytes_per_token: float) -> BitsPerByte:
    return BitsPerByte(arm, seed, source, loss, bytes_per_token, loss / (math.log(2) * bytes_per_token))


def bits_estimates(measured: Iterable[BitsPerByte]) -> Iterator[BitsEstimate]:
    """The bits per byte of each arm on each source, over its training runs."""
    for (arm, source), own in grouped(measured, lambda bits: (bits.arm, bits.source)).items():
        runs = {bits.seed: bits.value for bits in own}
        mean, low, high = fmean(runs.values()), None, None
        if len(runs) > 1:
            low, high = StudentMean(mean, stdev(runs.values()) / math.sqrt(len(runs)), len(runs) - 1).interval()
            low = max(low, 0.0)
        yield BitsEstimate(arm, source, mean, low, high, len(runs), dict(sorted(runs.items())))


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """The indices of the points that no other point beats, ordered by their first value.

    A point beats another by a greater first value without a greater second one, or by a smaller second value without a smaller
    first one.
    """
    front: list[int] = []
    least = math.inf
    for place in sorted(range(len(points)), key=lambda i: (-points[i][0], points[i][1])):
        if points[place][1] < least or (front and points[place] == points[front[-1]]):
            front.append(place)
            least = points[place][1]
    return front[::-1]
