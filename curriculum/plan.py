"""From a token budget to steps: the arms of a study, and the steps at which their phases switch.

The safe-only arm (start 1.0) is the trunk of the training tree (`curriculum/tree.py`). Each seed of a study is a replicate,
which trains all arms.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
        """The whole step nearest to `fraction` of the requested tokens. Phase boundaries snap to it."""
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
    """One training of every arm: the seeds of its draws, and the suffix of its names."""

    seed: int = DEFAULT_SEED
    """The study's seed that the replicate belongs to. Evaluation draws by it."""
    init_seed: int = DEFAULT_SEED
    """Seed of the initial weights."""
    data_seed: int = DEFAULT_SEED
    """Seed of the order of pretraining data."""
    tuning_seed: int = DEFAULT_SEED
    """Seed of the order of tuning data."""
    suffix: str = ""
    """Suffix of names; empty for the first replicate of a study without a sweep."""
    variant: str = ""
    """The point of the study's sweep; empty without one."""

    def named(self, name: str) -> str:
        """The name of an arm or of the trunk in this replicate's elements and folders."""
        return name + self.suffix


def replicates_of(seeds: Sequence[int], draws: ReplicateDraws, variant: str = "") -> tuple[Replicate, ...]:
    """A replicate for each seed. What `draws` does not include is drawn by the first seed for all of them."""
    first = seeds[0]
    point = f".{variant}" if variant else ""
    return tuple(
        Replicate(
            seed,
            init_seed=seed if draws.init else first,
            data_seed=seed if draws.data else first,
            tuning_seed=seed if draws.tuning else first,
            suffix=point if seed == first else f"{point}-s{seed}",
            variant=variant,
        )
        for seed in seeds
    )


@dataclass(frozen=True)
class Arm:
    """One curriculum: safe data until `start`, then interventions. Each replicate trains it once."""

    name: str
    start: float
    """Fraction of the budget up to which it reads safe data alone."""
    interventions: str
    """The intervention set; the arm's own name if the study writes out its phases; "none" for the safe-only arm."""
    phases: tuple[ArmPhase, ...]
    replicate: Replicate = Replicate()
    cooldown: float | None = None
    """Fraction of the budget at which the learning rate begins to fall; None: as the study's schedule says."""
    end: float = 1.0
    """Fraction of the budget from which on it reads safe data alone again; 1 for never."""

    @property
    def key(self) -> str:
        """The name of the arm's elements and folders, unique among the trainings of a study."""
        return self.replicate.named(self.name)

    @property
    def sources(self) -> set[str]:
        return {name for _, mix in self.phases for name, weight in mix.items() if weight}

    def blend_phases(self, budget: Budget) -> list[Phase]:
        """The arm's phases in samples, each ending at a whole step. Raises ValueError if interventions round to no step."""
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
            phases = (ArmPhase(start, curriculum.safe), ArmPhase(1.0, mix))
            arms.append(Arm(f"{name}-{percent(start)}", start, name, phases))
    arms += [_written_arm(name, curriculum) for name in curriculum.arms]
    if curriculum.exposure == "matched":
        arms = _matched(arms, curriculum, budget)
    return sorted(arms, key=lambda arm: arm.start)  # a stable sort: arms that start together keep their order


def safe_only_arm(curriculum: Curriculum, replicate: Replicate = Replicate()) -> Arm:
    return Arm("safe-100", 1.0, "none", (ArmPhase(1.0, curriculum.safe),), replicate)


def _written_arm(name: str, curriculum: Curriculum) -> Arm:
    """An arm whose phases the study writes out. Each step of a ramp becomes a phase with the mix at the middle of the step."""
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
        raise ValueError(f"arm {name} reads only safe data; add 1 to starts instead")
    # Exactly the trunk's weights, so that the arm can branch from the trunk.
    phases[: len(safe)] = [ArmPhase(phase.until, curriculum.safe) for phase in safe]
    *earlier, last = curriculum.arms[name]
    cooldown = earlier[-1].until if last.cooldown else None
    end = [phase.until for phase in phases if not _same(phase.mix, curriculum.safe)][-1]
    end = round(end, 12)  # a ramp's last step can end just beside 1
    return Arm(name, safe[-1].until if safe else 0.0, name, tuple(phases), cooldown=cooldown, end=end)


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


def _matched(arms: list[Arm], curriculum: Curriculum, budget: Budget) -> list[Arm]:
    """The arms, each scaled to as many intervention tokens as the first arm that reads the same interventions.

    Within a phase, the interventions keep their ratio to one another, and so do the other sources.
    """
    targets: dict[str | frozenset[str], float] = {}
    matched = []
    for arm in arms:
        interventions = _interventions_of(arm, curriculum)
        is_written = arm.name in curriculum.arms
        if not is_written and not interventions and 1.0 > arm.start > curriculum.starts[0]:
            raise ValueError(
                f"exposure: matched has nothing to match in set {arm.interventions}: the safe mix has all its sources; add "
                "an intervention"
            )
        shares = [intervention_share(mix, curriculum) for _, mix in arm.phases]
        ends = [0, *(budget.step_at(until) for until, _ in arm.phases)]
        lengths = [stop - start for start, stop in itertools.pairwise(ends)]
        largest = max(shares)
        # In units of the largest share, so that arms of one phase get exactly the weights that they need.
        room_steps = sum(share / largest * length for share, length in zip(shares, lengths)) if largest else 0.0
        own_steps = largest * room_steps
        target_steps = targets.setdefault(interventions, own_steps)
        if target_steps == own_steps:
            matched.append(arm)
        elif target_steps > room_steps * (1 + 1e-9):
            wanted, room = (f"{round(steps) * budget.step_tokens:,}" for steps in (target_steps, room_steps))
            raise ValueError(
                f"exposure: matched is impossible for {arm.name}: the first arm with its interventions sees {wanted} tokens of "
                f"them, but its own phases have room for only {room}; lower the weights of the first, or leave {arm.name} out"
            )
        else:
            scaled = [min(1.0, share / largest * target_steps / room_steps) for share in shares]
            phases = tuple(
                ArmPhase(phase.until, _with_share(phase.mix, share, curriculum) if share else phase.mix)
                for phase, share in zip(arm.phases, scaled)
            )
            matched.append(replace(arm, phases=phases))
    return matched


def _interventions_of(arm: Arm, curriculum: Curriculum) -> str | frozenset[str]:
    """The key by which arms are matched: the one intervention set that the arm names or whose sources it reads. If there is
    no such set, the arm's intervention sources."""
    if arm.name not in curriculum.arms:
        return arm.interventions if intervention_share(arm.phases[-1].mix, curriculum) else frozenset()

    def added(*mixes: Mix) -> frozenset[str]:
        return frozenset(name for mix in mixes for name in _shares(mix) if not curriculum.safe.get(name))

    sources = added(*(mix for _, mix in arm.phases))
    named = {phase.mix for phase in curriculum.arms[arm.name] if isinstance(phase.mix, str)} - {"safe"}
    if len(named) == 1 and sources:
        return str(*named)
    return next((name for name, mix in curriculum.interventions.items() if added(mix) == sources), sources)


def _with_share(mix: Mix, share: float, curriculum: Curriculum) -> Mix:
    """`mix` rescaled to a `share` of interventions. The rest goes to its other sources or, if it has none, to the safe mix."""
    before = intervention_share(mix, curriculum)
    if math.isclose(before, 1):  # the shares of three sources can sum to a little less
        interventions = {source: own * (share / before) for source, own in _shares(mix).items()}
        return interventions | {source: own * (1 - share) for source, own in _shares(curriculum.safe).items()}
    rest = (1 - share) / (1 - before)
    return {source: own * (rest if curriculum.safe.get(source) else share / before) for source, own in _shares(mix).items()}


def percent(start: float) -> str:
    """A start fraction as it appears in names of arms and jobs: 0.2 is "20"."""
    return f"{100 * start:g}"
