"""From a token budget to steps: arms, the steps at which their phases switch, and the training tree they share.

Until its start every arm reads the same safe-only stream, so pretraining is a tree: one trunk, and a branch for each arm
that leaves it at its start. The trunk trained to the end is itself the safe-only arm (start 1.0). Each seed of a study is a
replicate, with a tree of its own.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from curricula.curriculum.config import Curriculum, Mix, ReplicateDraws
from curricula.curriculum.stream.blend import Phase

TRUNK = "trunk"
DEFAULT_SEED = 42


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
        """The whole step nearest to `fraction` of the requested tokens, to which a phase boundary snaps."""
        return round(fraction * self.requested_tokens / self.step_tokens)

    def snap_tokens(self, fraction: float) -> int:
        """The number of tokens by which snapping moves the boundary at `fraction`; negative means earlier."""
        return self.step_at(fraction) * self.step_tokens - round(fraction * self.requested_tokens)


class ArmPhase(NamedTuple):
    """A phase of an arm before the budget is cut into steps."""

    until: float
    """Fraction of the budget at which the phase ends."""
    mix: Mix


@dataclass(frozen=True)
class Replicate:
    """One training of every arm: the seeds of its draws, and the end of its names."""

    seed: int = DEFAULT_SEED
    """The study's seed that it stands for; evaluation draws by it."""
    init_seed: int = DEFAULT_SEED
    """Of the initial weights."""
    data_seed: int = DEFAULT_SEED
    """Of the order of pretraining data."""
    tuning_seed: int = DEFAULT_SEED
    """Of the order of tuning data."""
    suffix: str = ""
    """Empty for the first replicate."""

    def named(self, name: str) -> str:
        """The name of an arm or of the trunk in this replicate's elements and folders."""
        return name + self.suffix


def replicates_of(seeds: Sequence[int], anew: ReplicateDraws) -> tuple[Replicate, ...]:
    first, *others = seeds
    further = (
        Replicate(
            seed,
            init_seed=seed if anew.init else first,
            data_seed=seed if anew.data else first,
            tuning_seed=seed if anew.tuning else first,
            suffix=f"-s{seed}",
        )
        for seed in others
    )
    return (Replicate(first, first, first, first), *further)


@dataclass(frozen=True)
class Arm:
    """One curriculum: safe data until `start`, then interventions. Each replicate trains it once."""

    name: str
    start: float
    """Fraction of the budget at which the arm leaves the trunk."""
    interventions: str
    """The intervention set; the arm's own name where the study writes it out; "none" for the safe-only arm."""
    phases: tuple[ArmPhase, ...]
    replicate: Replicate = Replicate()

    @property
    def key(self) -> str:
        """Unique among the trainings of a study: names the arm's elements and folders."""
        return self.replicate.named(self.name)

    @property
    def sources(self) -> set[str]:
        """What it reads in some phase."""
        return {name for _, mix in self.phases for name, weight in mix.items() if weight}

    def blend_phases(self, budget: Budget) -> list[Phase]:
        """The arm's phases in samples, each ending at a whole step."""
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
    """A piece of one branch of the training tree: steps `start` to `stop`."""

    branch: str
    start: int
    stop: int
    arm: Arm
    """What the segment reads. The trunk's segments carry the safe-only arm whether or not the study asks for its models."""
    parent: str | None
    """The segment from whose end this one starts; None at the root."""

    @property
    def name(self) -> str:
        return f"{self.branch}@{self.stop}"

    @property
    def is_trunk(self) -> bool:
        return self.arm.start == 1.0


def arms_of(curriculum: Curriculum, budget: Budget) -> list[Arm]:
    """The arms of a study, earliest start first. At start 1.0 all intervention sets are the same arm.

    Raises ValueError when matched exposure is impossible, or when an arm reads nothing but safe data.
    """
    arms = []
    for start in curriculum.starts:
        if start == 1.0:
            arms.append(safe_only_arm(curriculum))
            continue
        for name, mix in curriculum.interventions.items():
            if curriculum.exposure == "matched":
                mix = _matched(curriculum, name, start, budget)
            phases = (ArmPhase(start, curriculum.safe), ArmPhase(1.0, mix))
            arms.append(Arm(f"{name}-{percent(start)}", start, name, phases))
    arms += [_written_arm(name, curriculum) for name in curriculum.arms]
    return sorted(arms, key=lambda arm: arm.start)  # a stable sort: arms that start together keep their order


def safe_only_arm(curriculum: Curriculum, replicate: Replicate = Replicate()) -> Arm:
    return Arm("safe-100", 1.0, "none", (ArmPhase(1.0, curriculum.safe),), replicate)


def _written_arm(name: str, curriculum: Curriculum) -> Arm:
    """An arm that the study writes out. Each step of a ramp becomes a phase, with the mix at the middle of the step."""
    phases: list[ArmPhase] = []
    start, old = 0.0, curriculum.safe
    for written in curriculum.arms[name]:
        new = curriculum.mix(written)
        for step in range(written.ramp):
            mix = _between(old, new, (step + 0.5) / written.ramp) if written.ramp > 1 else new
            phases.append(ArmPhase(start + (written.until - start) * (step + 1) / written.ramp, mix))
        start, old = written.until, new
    safe = list(itertools.takewhile(lambda phase: _same(phase.mix, curriculum.safe), phases))
    if len(safe) == len(phases):
        raise ValueError(f"arm {name} reads only safe data; put 1 in starts for that")
    # Exactly the trunk's weights, so that the arm can branch from the trunk.
    phases[: len(safe)] = [ArmPhase(phase.until, curriculum.safe) for phase in safe]
    return Arm(name, safe[-1].until if safe else 0.0, name, tuple(phases))


def _shares(mix: Mix) -> dict[str, float]:
    total = sum(mix.values())
    return {name: weight / total for name, weight in mix.items() if weight}


def _same(one: Mix, other: Mix) -> bool:
    ours, theirs = _shares(one), _shares(other)
    return ours.keys() == theirs.keys() and all(math.isclose(ours[name], theirs[name], rel_tol=1e-12) for name in ours)


def _between(old: Mix, new: Mix, share: float) -> Mix:
    old, new = _shares(old), _shares(new)
    return {name: (1 - share) * old.get(name, 0.0) + share * new.get(name, 0.0) for name in {**old, **new}}


def intervention_share(mix: Mix, curriculum: Curriculum) -> float:
    """Share of a mix that comes from interventions: sources that the safe mix lacks."""
    return sum(share for name, share in _shares(mix).items() if not curriculum.safe.get(name))


def _matched(curriculum: Curriculum, name: str, start: float, budget: Budget) -> Mix:
    """The mix of set `name` for an arm that starts at `start`: by the end it sees as much of the set as the earliest arm.

    The interventions keep their ratio to one another, and so do the other sources.
    """
    mix = curriculum.interventions[name]
    share = intervention_share(mix, curriculum)
    left, most = (budget.steps - budget.step_at(fraction) for fraction in (start, curriculum.starts[0]))
    if left == most:
        return mix  # the earliest arm
    if not share:
        raise ValueError(
            f"exposure: matched has nothing to match in set {name}: the safe mix has all its sources; add an intervention"
        )
    if share * most > left * (1 + 1e-9):
        raise ValueError(
            f"exposure: matched is impossible for {name}-{percent(start)}: its set sees "
            f"{round(share * most) * budget.step_tokens:,} intervention tokens from start {curriculum.starts[0]:g}, and after "
            f"start {start:g} only {left * budget.step_tokens:,} tokens are left; lower the set's weights or drop that start"
        )
    grown = min(1.0, share * most / left)
    rest = (1 - grown) / (1 - share) if share < 1 else 0.0
    return {
        source: own * (rest if curriculum.safe.get(source) else grown / share) for source, own in _shares(mix).items()
    }


def percent(start: float) -> str:
    """A start fraction as it appears in names of arms and jobs: 0.2 is "20"."""
    return f"{100 * start:g}"


def branch_of(arm: Arm) -> str:
    """The branch of the training tree whose last checkpoint is the arm's base model."""
    return arm.replicate.named(TRUNK) if arm.start == 1.0 else arm.key


def segments_of(arms: Sequence[Arm], curriculum: Curriculum, budget: Budget) -> list[Segment]:
    """The training tree of each replicate, parents before children: a trunk segment up to each start, then the branches."""
    replicates = dict.fromkeys(arm.replicate for arm in arms)
    trees = (
        _tree([arm for arm in arms if arm.replicate == replicate], replicate, curriculum, budget)
        for replicate in replicates
    )
    return list(itertools.chain.from_iterable(trees))


def _tree(arms: Sequence[Arm], replicate: Replicate, curriculum: Curriculum, budget: Budget) -> list[Segment]:
    safe_only = safe_only_arm(curriculum, replicate)
    stops = sorted({budget.step_at(arm.start) for arm in arms} - {0})
    trunk: list[Segment] = []
    start = 0
    for stop in stops:
        trunk.append(Segment(branch_of(safe_only), start, stop, safe_only, trunk[-1].name if trunk else None))
        start = stop
    ends = {segment.stop: segment.name for segment in trunk}
    branches = []
    for arm in arms:
        if arm.start < 1.0:
            switch = budget.step_at(arm.start)
            if switch >= budget.steps:
                raise ValueError(
                    f"start {arm.start} snaps to step {switch} of {budget.steps}, which leaves no step for interventions; "
                    "raise budget_tokens or lower global_batch"
                )
            branches.append(Segment(arm.key, switch, budget.steps, arm, ends.get(switch)))
    return trunk + branches
