"""From a token budget to steps: arms, the tree of training lines they share, and where their phases switch.

Until its start every arm reads the same safe-only stream, so pretraining is a tree: one trunk, and a branch for each arm
that leaves it at its start. The trunk run to the end is itself the safe-only arm (start 1.0).
"""

from __future__ import annotations

from dataclasses import dataclass

from curriculum.blend import Phase
from curriculum.config import Curriculum

TRUNK = "trunk"


@dataclass(frozen=True)
class Budget:
    """A token budget cut into whole steps of `global_batch` sequences of `sequence_length` tokens."""

    requested_tokens: int
    sequence_length: int
    global_batch: int

    @property
    def step_tokens(self) -> int:
        return self.sequence_length * self.global_batch

    @property
    def steps(self) -> int:
        return self.step_at(1.0)

    @property
    def tokens(self) -> int:
        return self.steps * self.step_tokens

    def step_at(self, fraction: float) -> int:
        """The whole step nearest to `fraction` of the requested tokens: where a phase boundary snaps to."""
        return round(fraction * self.requested_tokens / self.step_tokens)

    def snap_tokens(self, fraction: float) -> int:
        """By how many tokens snapping moves the boundary at `fraction` (negative: earlier)."""
        return self.step_at(fraction) * self.step_tokens - round(fraction * self.requested_tokens)


@dataclass(frozen=True)
class Arm:
    """One curriculum: safe-only until `start` (a fraction of the budget), then the blend of an intervention set."""

    name: str
    start: float
    interventions: str  # "none" for the arm that never leaves the safe-only data

    def phases(self, curriculum: Curriculum, budget: Budget) -> list[Phase]:
        """The arm's phases, ending at sample indices."""
        switch, end = (budget.step_at(share) * budget.global_batch for share in (self.start, 1.0))
        phases = [Phase(switch, curriculum.safe)] if switch else []
        if switch < end:
            phases.append(Phase(end, curriculum.interventions[self.interventions]))
        return phases


@dataclass(frozen=True)
class Segment:
    """A stretch of one training line: steps `start` to `stop`, beginning from the end of segment `parent`, if any.

    `arm` gives the phases; the trunk's segments carry the safe-only arm whether or not the study asks for its models.
    """

    line: str
    start: int
    stop: int
    arm: Arm
    parent: str | None

    @property
    def name(self) -> str:
        return f"{self.line}@{self.stop}"


def arms_of(curriculum: Curriculum) -> list[Arm]:
    """The arms of a study, earliest start first. At start 1.0 every intervention set is the same arm."""
    arms = []
    for start in curriculum.starts:
        if start == 1.0:
            arms.append(safe_only_arm())
        else:
            arms += [Arm(f"{name}-{percent(start)}", start, name) for name in curriculum.interventions]
    return arms


def safe_only_arm() -> Arm:
    return Arm("safe-100", 1.0, "none")


def percent(start: float) -> str:
    """A start fraction as names of arms and jobs have it: 0.2 is "20"."""
    return f"{100 * start:g}"


def line_of(arm: Arm) -> str:
    """The training line whose last checkpoint is the arm's base model."""
    return TRUNK if arm.start == 1.0 else arm.name


def segments_of(arms: list[Arm], budget: Budget) -> list[Segment]:
    """The training tree, parents before children: trunk segments up to each later start, then the branches."""
    stops = sorted({budget.step_at(arm.start) for arm in arms} - {0})
    trunk: list[Segment] = []
    start = 0
    for stop in stops:
        trunk.append(Segment(TRUNK, start, stop, safe_only_arm(), trunk[-1].name if trunk else None))
        start = stop
    ends = {segment.stop: segment.name for segment in trunk}
    branches = []
    for arm in arms:
        if arm.start < 1.0:
            switch = budget.step_at(arm.start)
            if switch >= budget.steps:
                raise ValueError(
                    f"start {arm.start} snaps to step {switch} of {budget.steps}, which leaves its interventions no step; "
                    "raise budget_tokens or lower global_batch"
                )
            branches.append(Segment(arm.name, switch, budget.steps, arm, ends.get(switch)))
    return trunk + branches
