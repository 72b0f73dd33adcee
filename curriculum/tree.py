"""The training tree: how the arms of a study are trained without training anything twice.

Until its start every arm reads the same safe-only stream, so pretraining is a tree: one trunk, and a branch for each arm
that leaves it at its start. The trunk trained to the end is itself the safe-only arm. Arms can share more than safe data, such
as a blend that ends in different cooldowns; then one arm branches from the other. Each seed has a tree of its own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from curricula.curriculum.config import Curriculum
from curricula.curriculum.plan import TRUNK, Arm, Budget, safe_only_arm
from curricula.curriculum.stream.blend import exact_shares


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


def branch_of(arm: Arm) -> str:
    """The branch of the training tree whose last checkpoint is the arm's base model."""
    return arm.replicate.named(TRUNK) if arm.start == 1.0 else arm.key


@dataclass(frozen=True)
class Line:
    """The training of one arm from its first step to its last, with all that decides which steps it shares with others."""

    arm: Arm
    phases: tuple[tuple[int, dict[str, int]], ...]
    """For each phase, the sample at which it ends and the exact shares of its sources."""
    steps: int
    decays_at: int
    """The step from which the learning rate depends on where the run ends."""
    sequences: int
    """Sequences in one step."""
    is_wanted: bool = True
    """Whether the study uses the model at its end. If not, it is trained only as far as others branch from it."""
    recipe: Hashable = None
    """Everything else that the weights depend on and that differs between the points of a sweep."""

    @property
    def beginning(self) -> Hashable:
        """A key that is equal for lines that begin with the same weights and order of data, and train alike."""
        replicate = self.arm.replicate
        return replicate.seed, replicate.init_seed, replicate.data_seed, self.sequences, self.recipe

    def shared_steps(self, other: Line) -> int:
        """Number of leading steps that are the same in both lines. Their `beginning` must be equal."""
        shared = self._shared_samples(other) // self.sequences
        is_same_schedule = (self.decays_at, self.steps) == (other.decays_at, other.steps)
        return shared if is_same_schedule else min(shared, self.decays_at, other.decays_at)

    def _shared_samples(self, other: Line) -> int:
        shared = 0
        for (until, mix), (other_until, other_mix) in zip(self.phases, other.phases):
            if mix != other_mix:
                break
            shared = min(until, other_until)
            if until != other_until:
                break
        return shared


def lines_of(
    arms: Sequence[Arm], curriculum: Curriculum, budget: Budget, decays_at: int, recipe: Hashable = None
) -> list[Line]:
    """A line for each arm, preceded by one for the trunk of each replicate. `decays_at` is the step from which the study's
    learning rate falls."""
    lines = []
    for replicate in dict.fromkeys(arm.replicate for arm in arms):
        own = [arm for arm in arms if arm.replicate == replicate]
        trunk = safe_only_arm(curriculum, replicate)
        for arm in (trunk, *(arm for arm in own if arm.start < 1.0)):
            falls_at = decays_at if arm.cooldown is None else budget.step_at(arm.cooldown)
            phases = tuple((phase.until, exact_shares(phase.mix)) for phase in arm.blend_phases(budget))
            is_wanted = arm is not trunk or trunk in own
            lines.append(Line(arm, phases, budget.steps, falls_at, budget.global_batch, is_wanted, recipe))
    return lines


@dataclass(frozen=True)
class TrainingTree:
    """The segments that train all lines without training anything twice."""

    segments: tuple[Segment, ...]
    """Parents before children."""
    branches: Mapping[str, str]
    """The branch whose last checkpoint is an arm's base model, by the arm's key."""

    def chain(self, branch: str) -> list[Segment]:
        """The segments from the root to the end of a branch, in order."""
        segments = [self._by_name[branch]]
        while segments[0].parent:
            segments.insert(0, self._by_name[segments[0].parent])
        return segments

    @cached_property
    def _by_name(self) -> dict[str, Segment]:
        """Every segment, and the last one of each branch under the branch's name."""
        return {name: segment for segment in self.segments for name in (segment.branch, segment.name)}


@dataclass(frozen=True, eq=False)
class _Branch:
    """The steps trained for one line alone: those from `start` on, where it leaves its `host`."""

    line: Line
    host: _Branch | None
    start: int
    cuts: set[int] = field(default_factory=set)
    """Steps at which a segment ends: a model is made there, or another branch begins."""

    @property
    def name(self) -> str:
        return branch_of(self.line.arm)

    @property
    def last(self) -> _Branch:
        """The branch that trains the line's last step: the host, if the two never part."""
        return self.host if self.host and self.start == self.line.steps else self


def training_tree(lines: Sequence[Line]) -> TrainingTree:
    """The training tree: for each line, the part that no earlier line trains, split where later lines branch off.

    Raises ValueError if two arms of one study are the same.
    """
    branches: list[_Branch] = []
    alike: dict[Hashable, list[_Branch]] = defaultdict(list)
    for line in lines:
        branches.append(_branch(line, alike[line.beginning]))
        alike[line.beginning].append(branches[-1])
    for branch in reversed(branches):  # backwards, since a host comes before the branches that cut it
        if branch.line.is_wanted:
            branch.last.cuts.add(branch.line.steps)
        if branch.host and branch.cuts:
            branch.host.cuts.add(branch.start)
    segments: list[Segment] = []
    for branch in branches:
        start, parent = branch.start, f"{branch.host.name}@{branch.start}" if branch.host else None
        for stop in sorted(branch.cuts):
            segments.append(Segment(branch.name, start, stop, branch.line.arm, parent))
            start, parent = stop, segments[-1].name
    ends = {branch.line.arm.key: branch.last.name for branch in branches if branch.line.is_wanted}
    return TrainingTree(tuple(segments), ends)


def _branch(line: Line, earlier: Sequence[_Branch]) -> _Branch:
    """The branch of a line. Its host is the branch with which it shares the most steps (on a tie, the first), among the
    `earlier` ones with the same beginning."""
    host = max(earlier, key=lambda other: line.shared_steps(other.line), default=None)
    start = line.shared_steps(host.line) if host else 0
    if host and start == line.steps and host.line.arm.replicate == line.arm.replicate:
        raise ValueError(f"arms {host.line.arm.name} and {line.arm.name} read the same to the end; leave one of them out")
    return _Branch(line, host if start else None, start)
