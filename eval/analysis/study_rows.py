"""The rows of a study: every judged answer and every probe, by trained arm and stage.

An arm that was trained with several seeds is in `StudyRows.arms` once for each, under one name. Reads
`<run>/eval/<arm's key>/<stage>/<task>.jsonl`, and checks that each file holds what its place says (`eval/identity.py`). What
the rows measure is in `eval/analysis/metrics.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from curricula.eval.contents import recorded_hash
from curricula.eval.identity import ModelRows, require_different
from curricula.eval.judging.verdicts import read_judged
from curricula.eval.rows import MODEL_KINDS, CapabilityRow, JudgedRow, ProbeRow, read_rows
from curricula.eval.tasks import TASKS, judged_tasks, row_files

ATTACK_TASKS = tuple(task.name for task in judged_tasks("attack"))
OVERREFUSAL_TASKS = tuple(task.name for task in judged_tasks("overrefusal"))


@dataclass(frozen=True)
class ArmInfo:
    """One pretrained model of the study: an arm, trained with one seed."""

    name: str
    """Of the arm; its replicates share it."""
    start: float
    """Share of the training tokens after which interventions start, in 0..1; 1 for never."""
    interventions: str
    """The intervention set: "data", "full" or "none"; the arm's own name where the study spells out its phases."""

    seed: int = 0
    """The seed of this training."""
    key: str = ""
    """Names its folders, and its rows in `StudyRows`; by default the arm's name."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", self.key or self.name)

    @property
    def is_custom(self) -> bool:
        """Whether the study spells out the arm's phases, so that the arm is an intervention set of its own."""
        return self.name == self.interventions


@dataclass(frozen=True)
class StudyRows:
    """All rows of a study. A missing key means that the evaluation has no rows yet."""

    arms: tuple[ArmInfo, ...]
    """One seed after another, each with the arms in the same order."""
    generations: dict[tuple[str, str, str], list[JudgedRow]]
    """Judged answers by (arm's key, stage, task)."""
    probes: dict[tuple[str, str], list[ProbeRow]]
    """Probes by (arm's key, stage)."""
    capability: dict[tuple[str, str], list[CapabilityRow]] = field(default_factory=dict)
    """Answers to the questions of capability tasks by (arm's key, stage)."""

    @property
    def seeds(self) -> list[int]:
        """The training seeds, the study's first one first."""
        return list(dict.fromkeys(arm.seed for arm in self.arms))

    def of_seed(self, seed: int) -> StudyRows:
        """The study as if only the arms of this seed had been trained."""
        return replace(self, arms=tuple(arm for arm in self.arms if arm.seed == seed))

    def answers(self, arm: ArmInfo, stage: str, task: str, decoder: str | None = None) -> list[JudgedRow]:
        """The judged answers of one task, of one decoder or of all; empty if there are none yet."""
        rows = self.generations.get((arm.key, stage, task), [])
        return rows if decoder is None else [row for row in rows if row.decoder == decoder]


def read_study_rows(
    run: Path, arms: Sequence[ArmInfo], on_arm_read: Callable[[int], None] = lambda count: None
) -> StudyRows:
    """Read all rows under `run`/eval; `on_arm_read` receives the number of arms read so far.

    Raises UserError for a damaged file of rows, and for rows of another model, stage or task than their place says.
    """
    generations: dict[tuple[str, str, str], list[JudgedRow]] = {}
    probes: dict[tuple[str, str], list[ProbeRow]] = {}
    capability: dict[tuple[str, str], list[CapabilityRow]] = {}
    models: list[ModelRows] = []
    for count, arm in enumerate(arms, start=1):
        for stage in MODEL_KINDS:
            folder = run / "eval" / arm.key / stage
            model = ModelRows(stage, recorded_hash(run / "models" / arm.key / stage))
            models.append(model)
            for task in (*ATTACK_TASKS, *OVERREFUSAL_TASKS):
                path = folder / f"{task}.jsonl"
                if answers := read_judged(path):
                    model.add_answers(path, answers, TASKS[task])
                    generations[arm.key, stage, task] = answers
            path = folder / "probes.jsonl"
            if probe_rows := read_rows(path, ProbeRow):
                model.add_probes(path, probe_rows)
                probes[arm.key, stage] = probe_rows
            for path in row_files(folder, TASKS["capability"]):
                answered = read_rows(path, CapabilityRow)
                model.add_capability(path, answered)
                capability.setdefault((arm.key, stage), []).extend(answered)
        on_arm_read(count)
    require_different(models)
    return StudyRows(tuple(arms), generations, probes, capability)
