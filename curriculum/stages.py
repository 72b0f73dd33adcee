"""The stages after pretraining, as a tree: what each continues from, which arms have it, and which text its model has read.

    base ── instruct ── benign
      │        └────── harmful
      └── mt ── instruct-mt

"base" is the pretrained model; every other name is a stage of the study. A midtraining stage continues the data stream of the
pretraining before it, so the blend's invariants hold across both (`curriculum/stream/blend.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from curricula.curriculum.config import MOST_TOKENS, AnyStage, Midtrain, Mix, Tuning
from curricula.curriculum.plan import Arm, Budget
from curricula.curriculum.stream.blend import Phase

BASE = "base"


def model_name(stage: str, point: str = "") -> str:
    """The folder of a model within its arm's folder: the stage's name, with "@" and the point if it is not the end."""
    return f"{stage}@{point}" if point else stage


@dataclass(frozen=True)
class StageTree:
    """The stages by name, each after the one it continues from."""

    stages: Mapping[str, AnyStage]
    arms: Mapping[str, tuple[str, ...]]
    """The arms that have each stage (also "base"), in the order of the study."""

    def parent(self, name: str) -> str:
        return self.stages[name].parent or BASE

    def is_raw(self, name: str) -> bool:
        """Whether the stage's model has only read raw text, so that it gets prompts without a chat template."""
        return name == BASE or (isinstance(self.stages[name], Midtrain) and self.is_raw(self.parent(name)))

    @property
    def papers(self) -> list[str]:
        """The paper's stages (base, instruct, benign) that the study has, while they follow one another as in the paper."""
        present = [BASE]
        for name, parent in (("instruct", BASE), ("benign", "instruct")):
            stage = self.stages.get(name)
            if isinstance(stage, Tuning) and stage.at is None and self.parent(name) == parent and parent in present:
                present.append(name)
        return present

    def stream(self, name: str, arm: Arm, budget: Budget) -> list[Phase]:
        """The phases of pretraining text that `arm` has read by the end of stage `name`, midtraining included."""
        if name == BASE:
            return arm.blend_phases(budget)
        stage, phases = self.stages[name], self.stream(self.parent(name), arm, budget)
        if stage.at is not None:
            phases = _up_to(phases, budget.step_at(stage.at) * budget.global_batch)
        if isinstance(stage, Midtrain):
            assert isinstance(stage.mix, dict)
            phases = [*phases, Phase(phases[-1].until + samples_of(stage), stage.mix)]
        return phases


def samples_of(stage: Midtrain) -> int:
    """Number of sequences that a midtraining stage reads."""
    assert stage.steps and stage.global_batch, "the study writes out both"
    return stage.steps * stage.global_batch


def _up_to(phases: Sequence[Phase], end: int) -> list[Phase]:
    kept = [phase for phase in phases if phase.until < end]
    return [*kept, Phase(end, phases[len(kept)].mix)]


def stage_tree(stages: Mapping[str, AnyStage], arms: Sequence[str], place: Mapping[str, str]) -> StageTree:
    """The tree of `stages`. `arms` are all arms of the study; `place` is each stage's key in the study, for messages.

    Raises ValueError for a circle, an unknown stage or arm, and `at` on a stage that does not continue from base.
    """
    ordered: dict[str, AnyStage] = {}
    arms_of: dict[str, tuple[str, ...]] = {BASE: tuple(arms)}

    def add(name: str, path: tuple[str, ...]) -> None:
        stage = stages[name]
        parent = stage.parent or BASE
        if parent in (path := (*path, name)):
            circle = " from ".join([*path[path.index(parent) :], parent])
            raise ValueError(f"{place[name]}: the stages form a circle ({circle}); start one of them from base")
        if parent != BASE and parent not in stages:
            known = ", ".join([BASE, *stages])
            raise ValueError(f"{place[name]}.from is {parent!r}, which is not a stage; choose one of {known}")
        if parent not in arms_of:
            add(parent, path)
        if stage.at is not None and parent != BASE:
            raise ValueError(f"{place[name]}.at is {stage.at:g}, but it is from {parent}; only `from: base` can have it")
        for arm in stage.arms or ():
            if arm not in arms_of[parent]:
                raise ValueError(
                    f"{place[name]}.arms names {arm!r}, which is not an arm that has {parent}; choose from "
                    f"{', '.join(arms_of[parent])}"
                )
        ordered[name] = stage
        arms_of[name] = tuple(arm for arm in arms_of[parent] if stage.arms is None or arm in stage.arms)

    for name in stages:
        add(name, ())
    return StageTree(ordered, arms_of)


def written_out(
    name: str, stage: AnyStage, global_batch: int, micro_batch: int, sequence_length: int, mixes: Mapping[str, Mix]
) -> AnyStage:
    """The stage with its defaults filled in: batches as in pretraining, steps for tokens, weights for the name of a mix.

    Raises ValueError, naming the key, if the result cannot be trained.
    """
    if not isinstance(stage, Midtrain):
        return stage
    batch = stage.global_batch or global_batch
    micro = stage.micro_batch or min(batch, micro_batch)
    if batch % micro:
        raise ValueError(f"stages.{name}: global_batch {batch} is not a multiple of micro_batch {micro}")
    steps = stage.steps or round((stage.tokens or 0) / (batch * sequence_length))
    if not steps:
        raise ValueError(f"stages.{name}.tokens {stage.tokens} is less than one step; raise it")
    if (tokens := steps * batch * sequence_length) > MOST_TOKENS:
        raise ValueError(f"stages.{name} would read {tokens:.1e} tokens, more than {MOST_TOKENS:.0e}; give it fewer steps")
    if isinstance(stage.mix, str) and stage.mix not in mixes:
        raise ValueError(f"stages.{name}.mix is {stage.mix!r}; choose from {', '.join(mixes)}, or write weights")
    mix = mixes[stage.mix] if isinstance(stage.mix, str) else stage.mix
    return msgspec.structs.replace(stage, tokens=None, steps=steps, global_batch=batch, micro_batch=micro, mix=mix)
