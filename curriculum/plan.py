"""From a token budget to steps: arms, the tree of training lines they share, and where their phases switch.

Until its start every arm reads the same safe-only stream, so pretraining is a tree: one trunk, and a branch for each arm
that leaves it at its start. The trunk run to the end is itself the safe-only arm (start 1.0).
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

from curricula.curriculum.config import Curriculum, Mix
from curricula.curriculum.stream.blend import Phase

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
    """One curriculum: safe-only until `start` (a fraction of the budget), then what `phases` say."""

    name: str
    start: float
    interventions: str  # the intervention set, or the arm's own name, or "none" where only safe data is read
    phases: tuple[tuple[float, Mix], ...]  # (until, as a fraction of the budget; weights)

    def blend_phases(self, budget: Budget) -> list[Phase]:
        """The arm's phases, ending at sample indices that are whole steps."""
        phases: list[Phase] = []
        for until, mix in self.phases:
            end = budget.step_at(until) * budget.global_batch
            if phases and _same(phases[-1].mix, mix):
                phases[-1] = Phase(end, phases[-1].mix)
            elif end > (phases[-1].until if phases else 0):
                phases.append(Phase(end, mix))
            elif until > self.start:
                raise ValueError(
                    f"arm {self.name}: its phase until {until:g} rounds to no step of {budget.steps}; make it longer"
                )
        return phases


@dataclass(frozen=True)
class Segment:
    """A phase of one training line: steps `start` to `stop`, beginning from the end of segment `parent`, if any.

    `arm` gives the phases; the trunk's segments carry the safe-only arm whether or not the study asks for its models.
    """

    branch: str
    start: int
    stop: int
    arm: Arm
    parent: str | None

    @property
    def name(self) -> str:
        return f"{self.branch}@{self.stop}"


def arms_of(curriculum: Curriculum, budget: Budget) -> list[Arm]:
    """The arms of a study, earliest start first. At start 1.0 every intervention set is the same arm.

    Raises ValueError where matched exposure is impossible or an arm does not differ from safe-only data.
    """
    arms = []
    for start in curriculum.starts:
        if start == 1.0:
            arms.append(safe_only_arm(curriculum))
            continue
        for name, mix in curriculum.interventions.items():
            if curriculum.exposure == "matched":
                mix = _matched(curriculum, name, start, budget)
            arms.append(Arm(f"{name}-{percent(start)}", start, name, ((start, curriculum.safe), (1.0, mix))))
    arms += [_written_arm(name, curriculum) for name in curriculum.arms]
    return sorted(arms, key=lambda arm: arm.start)  # a stable sort: arms that start together keep their order


def safe_only_arm(curriculum: Curriculum) -> Arm:
    return Arm("safe-100", 1.0, "none", ((1.0, curriculum.safe),))


def _written_arm(name: str, curriculum: Curriculum) -> Arm:
    """An arm that the study writes out: ramps become phases of their own, at the middle of each step of the ramp."""
    parts: list[tuple[float, Mix]] = []
    begin, before = 0.0, curriculum.safe
    for phase in curriculum.arms[name]:
        after = curriculum.mix(phase)
        for step in range(phase.ramp):
            mix = _between(before, after, (step + 0.5) / phase.ramp) if phase.ramp > 1 else after
            parts.append((begin + (phase.until - begin) * (step + 1) / phase.ramp, mix))
        begin, before = phase.until, after
    safe = list(itertools.takewhile(lambda part: _same(part[1], curriculum.safe), parts))
    if len(safe) == len(parts):
        raise ValueError(f"arm {name} reads safe data alone; that is what the start 1 in starts does")
    # Exactly the safe mix, so that the arm can branch from the trunk.
    parts[: len(safe)] = [(until, curriculum.safe) for until, _ in safe]
    return Arm(name, safe[-1][0] if safe else 0.0, name, tuple(parts))


def _shares(mix: Mix) -> dict[str, float]:
    total = sum(mix.values())
    return {name: weight / total for name, weight in mix.items() if weight}


def _same(one: Mix, other: Mix) -> bool:
    old, new = _shares(one), _shares(other)
    return old.keys() == new.keys() and all(math.isclose(old[name], new[name], rel_tol=1e-12) for name in old)


def _between(before: Mix, after: Mix, share: float) -> Mix:
    old, new = _shares(before), _shares(after)
    return {name: (1 - share) * old.get(name, 0.0) + share * new.get(name, 0.0) for name in {**old, **new}}


def intervention_share(mix: Mix, curriculum: Curriculum) -> float:
    """Share of a mix that comes from sources which the safe mix lacks: what the study intervenes with."""
    return sum(share for name, share in _shares(mix).items() if not curriculum.safe.get(name))


def _matched(curriculum: Curriculum, name: str, start: float, budget: Budget) -> Mix:
    """The mix of set `name` for an arm that starts at `start`, with the interventions that its earliest arm sees by the end.

    The interventions keep their ratio to one another, and so do the other sources.
    """
    mix = curriculum.interventions[name]
    share = intervention_share(mix, curriculum)
    left, most = (budget.steps - budget.step_at(begin) for begin in (start, curriculum.starts[0]))
    if left == most:
        return mix  # the arm that sets the measure
    if not share:
        raise ValueError(
            f"exposure: matched has nothing to match in set {name}: all its sources are in the safe mix too"
        )
    if share * most > left * (1 + 1e-9):
        raise ValueError(
            f"exposure: matched is impossible for {name}-{percent(start)}: its set sees "
            f"{round(share * most) * budget.step_tokens:,} intervention tokens from start {curriculum.starts[0]:g}, and after "
            f"start {start:g} only {left * budget.step_tokens:,} tokens are left; lower the set's weights or drop that start"
        )
    grown = min(1.0, share * most / left)
    rest = (1 - grown) / (1 - share) if share < 1 else 0.0
    return {name: own * (rest if curriculum.safe.get(name) else grown / share) for name, own in _shares(mix).items()}


def percent(start: float) -> str:
    """A start fraction as names of arms and jobs have it: 0.2 is "20"."""
    return f"{100 * start:g}"


def branch_of(arm: Arm) -> str:
    """The training line whose last checkpoint is the arm's base model."""
    return TRUNK if arm.start == 1.0 else arm.name


def segments_of(arms: list[Arm], curriculum: Curriculum, budget: Budget) -> list[Segment]:
    """The training tree, parents before children: trunk segments up to each later start, then the branches."""
    stops = sorted({budget.step_at(arm.start) for arm in arms} - {0})
    trunk: list[Segment] = []
    start = 0
    for stop in stops:
        trunk.append(Segment(TRUNK, start, stop, safe_only_arm(curriculum), trunk[-1].name if trunk else None))
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
