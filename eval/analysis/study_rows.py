"""The rows of a study: every judged answer and every probe, by trained arm and stage.

An arm that was trained with several seeds is in `StudyRows.arms` once for each, under one name. The rows come from
`<run>/eval/<arm's key>/<stage>/<task>.jsonl`. Each file must hold what its place says, as `eval/rows.py` checks. What the rows
measure is in `eval/analysis/metrics.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

from curricula.errors import UserError
from curricula.eval.identity import recorded_hash
from curricula.eval.judges.question import Judge
from curricula.eval.rows import (
    MODEL_KINDS,
    CapabilityRow,
    GenerationRow,
    JudgedRow,
    ModelRows,
    ProbeRow,
    read_rows,
    require_different,
)
from curricula.eval.tasks import TASKS, judged_tasks, row_files
from curricula.eval.verdicts import judged, judged_now, kind_of, read_judges

ATTACK_TASKS = tuple(task.name for task in judged_tasks("attack"))
OVERREFUSAL_TASKS = tuple(task.name for task in judged_tasks("overrefusal"))

PLAIN = ("attack", "overrefusal")
"""Kinds of tasks that give every model the same prompts."""


@dataclass(frozen=True)
class ArmInfo:
    """One pretrained model of the study: an arm, trained with one seed."""

    name: str
    """The arm's name, which its replicates share."""
    start: float
    """Share of the training tokens after which interventions start, in 0..1; 1 for never."""
    interventions: str
    """The intervention set: "data", "full" or "none"; the arm's own name if the study spells out its phases."""

    seed: int = 0
    key: str = ""
    """The name of its folders, and of its rows in `StudyRows`; by default the arm's name."""
    shared: tuple[tuple[str, str], ...] = ()
    """Stages whose model belongs to another training, each with the key of that training, whose folders hold it."""
    end: float = 1.0
    """Share of the training tokens after which interventions end; 1 for never."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", self.key or self.name)

    def holder(self, stage: str) -> str:
        """The key that names the folders of its model after a stage."""
        return dict(self.shared).get(stage, self.key)

    @property
    def is_custom(self) -> bool:
        """Whether the study spells out the arm's phases, so that the arm is an intervention set of its own."""
        return self.name == self.interventions


@dataclass(frozen=True)
class StudyRows:
    """All rows of a study. A missing key means that the evaluation has no rows yet."""

    arms: tuple[ArmInfo, ...]
    """All trainings, seed by seed, each seed with the arms in the same order."""
    generations: dict[tuple[str, str, str], list[JudgedRow]]
    """Judged answers by (arm's key, stage, task)."""
    probes: dict[tuple[str, str], list[ProbeRow]]
    """Probes by (arm's key, stage)."""
    stages: tuple[str, ...] = MODEL_KINDS
    """The stages of the study, each after the one it continues from."""
    capability: dict[tuple[str, str], list[CapabilityRow]] = field(default_factory=dict)
    """Answers to the questions of capability tasks by (arm's key, stage)."""
    others: dict[str, dict[tuple[str, str, str], list[JudgedRow]]] = field(default_factory=dict)
    """The answers with the verdicts of each judge other than the study's own, by its name and version."""
    partial: set[tuple[str, str, str]] = field(default_factory=set)
    """The keys of `generations` whose answers are from parts that have not been merged yet."""

    @property
    def seeds(self) -> list[int]:
        """The training seeds, the study's first one first."""
        return list(dict.fromkeys(arm.seed for arm in self.arms))

    def of_judge(self, judge: str) -> StudyRows:
        """The study with another judge's verdicts on its answers, as if they were its own."""
        return replace(self, generations=self.others[judge], probes={})


def read_study_rows(
    run: Path,
    arms: Sequence[ArmInfo],
    on_arm_read: Callable[[int], None] = lambda count: None,
    stages: Sequence[str] = MODEL_KINDS,
    judges: Mapping[str, Judge] = MappingProxyType({}),
) -> StudyRows:
    """Read all rows under `run`/eval; `on_arm_read` receives the number of arms read so far.

    Parts that have not been merged yet are read as they are. `judges` has, by kind, judges that decide by rules, which judge
    such parts here. Without a judge, the answers in parts are unparsed.
    """
    study = StudyRows(tuple(arms), {}, {}, tuple(stages))
    models: list[ModelRows] = []
    answer_files: list[tuple[Path, list[JudgedRow]]] = []
    probe_files: list[tuple[Path, list[ProbeRow]]] = []
    for count, arm in enumerate(arms, start=1):
        for stage in stages:
            folder = run / "eval" / arm.holder(stage) / stage
            model = ModelRows(stage, recorded_hash(run / "models" / arm.holder(stage) / stage))
            models.append(model)
            for task in (*ATTACK_TASKS, *OVERREFUSAL_TASKS):
                path = folder / f"{task}.jsonl"
                place = (arm.key, stage, task)
                answers, by_others = read_judges(path)
                if answers:
                    model.add(path, answers, task, TASKS[task].labels)
                elif parts := model.read_answers(row_files(folder, TASKS[task]), task, TASKS[task].labels):
                    study.partial.add(place)
                    judge = judges.get(kind_of(task))
                    answers = judged_now(parts, judge) if judge else [judged(row, None) for row in parts]
                if answers:
                    study.generations[place] = answers
                    answer_files.append((path, answers))
                for judge_name, rows in by_others.items():
                    study.others.setdefault(judge_name, {})[place] = rows
            path = folder / "probes.jsonl"
            if probe_rows := read_rows(path, ProbeRow):
                model.add(path, probe_rows)
                study.probes[arm.key, stage] = probe_rows
                probe_files.append((path, probe_rows))
            for path in row_files(folder, TASKS["capability"]):
                answered = read_rows(path, CapabilityRow)
                model.add(path, answered)
                study.capability.setdefault((arm.key, stage), []).extend(answered)
        on_arm_read(count)
    require_different(models)
    require_same_texts(probe_files)
    require_same_requests(answer_files)  # of all stages together: a stage is compared with the one it continues from
    return study


def require_same_requests(files: Iterable[tuple[Path, Sequence[GenerationRow]]]) -> None:
    """Raise UserError if two files have different requests under one prompt id, by which rows are paired.

    An attack can change what each model is given, so the requests that the judge is asked about are compared.
    """
    requests: dict[tuple[str, str, str], tuple[tuple[str, str, str], Path]] = {}
    for path, rows in files:
        for row in rows:
            request = (row.behavior, row.context, row.prompt if TASKS[row.task].kind in PLAIN else "")
            first, file = requests.setdefault((row.task, row.benchmark, row.prompt_id), (request, path))
            if request != first:
                raise UserError(
                    f"{path}: prompt {row.prompt_id} of {row.benchmark} is a different request from that in {file}; remove "
                    f"{row.benchmark}*.jsonl in {path.with_suffix('')} or in {file.with_suffix('')}, whichever has the older "
                    "prompts, and run the study again"
                )


def require_same_texts(files: Iterable[tuple[Path, Sequence[ProbeRow]]]) -> None:
    """Raise UserError if two files have probes of different texts. Rows of earlier versions name no texts, and always pass."""
    by_texts = {row.texts: path for path, rows in files for row in rows if row.texts}
    if len(by_texts) > 1:
        first, second, *_ = by_texts.values()
        raise UserError(
            f"{second}: its probes read other texts than those in {first}; remove whichever file has the older texts, and "
            "run the study again"
        )
