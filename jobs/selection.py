"""Which elements of a study a command acts on, and whether all that they need is there."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from curricula.errors import UsageError
from curricula.jobs.plan import Element, Job, Key, Plan


@dataclass(frozen=True)
class Selection:
    """Conditions on elements, all of which must hold; an empty one selects every element and is false."""

    stages: tuple[str, ...] = ()
    """Stages of the plan, or stages of the study after pretraining, such as instruct."""
    jobs: tuple[str, ...] = ()
    arms: tuple[str, ...] = ()
    seeds: tuple[str, ...] = ()
    points: tuple[str, ...] = ()
    start: str | None = None
    """The stage or job to start from; jobs before it are left out."""

    @classmethod
    def from_args(cls, args: argparse.Namespace) -> Selection:
        return cls(args.stages, args.jobs, args.arms, args.seeds, args.points, args.start)

    def __bool__(self) -> bool:
        return self != Selection()


def select(plan: Plan, selection: Selection, with_needs: bool = False) -> list[Key]:
    """The selected elements, in the plan's order.

    `with_needs` adds what the selected arms, seeds and points share: the trunk segments they branch from, what other points
    make for these, and elements that belong to no arm, such as the data. Raises UsageError for a name that is not in the
    study, and when nothing is left.
    """
    names, stages = [job.name for job in plan.jobs], [name for job in plan.jobs for name in job.stage_names]
    _check("stage", selection.stages, stages)
    _check("job", selection.jobs, names)
    _check("arm", selection.arms, [element.arm for _, element in plan.elements()])
    _check("seed", selection.seeds, [str(one.seed) for one in plan.study.replicates])
    _check("point", selection.points, list(plan.study.variants))
    _check("stage or job", [] if selection.start is None else [selection.start], stages, names)
    first = next((place for place, job in enumerate(plan.jobs) if _is_named(job, selection.start)), 0)
    training = _training_of(plan, selection.arms) if with_needs else set()
    of_points = {(job.name, one.label) for job, one in plan.elements() if one.variant in selection.points}
    made_for = needed_by(plan, of_points) if with_needs else set()

    def is_wanted(job: Job, element: Element) -> bool:
        if with_needs and not element.arm:
            return True
        is_of_seed = not selection.seeds or str(element.seed) in selection.seeds
        is_of_arm = not selection.arms or element.arm in selection.arms or (job.name, element.label) in training
        is_of_point = not selection.points or element.variant in selection.points or (job.name, element.label) in made_for
        return is_of_seed and is_of_arm and is_of_point

    chosen = [
        (job.name, element.label)
        for job in plan.jobs[first:]
        if not selection.jobs or job.name in selection.jobs
        if not selection.stages or any(_is_named(job, stage) for stage in selection.stages)
        for element in job.elements
        if is_wanted(job, element)
    ]
    if not chosen:
        raise UsageError("no element matches all these options together; drop one of them")
    return chosen


def check_needs(plan: Plan, chosen: Collection[Key], done: Collection[Key], live: Collection[Key]) -> None:
    """Raise UsageError when a chosen element needs one that is neither done nor `live` (queued or running) nor chosen."""
    available = {*done, *live, *chosen}
    for job, label in chosen:
        for need, must_be_ok in plan.needs[job, label]:
            if must_be_ok and need not in available:
                raise UsageError(
                    f"{job} needs {need[0]}/{need[1]}, which is not done, queued or selected; "
                    f"start earlier, with --from {need[0]}"
                )


def _is_named(job: Job, name: str | None) -> bool:
    return name in (job.name, *job.stage_names)


def _training_of(plan: Plan, arms: Sequence[str]) -> set[Key]:
    """The pretraining from which the models of `arms` come: their own branches, and the trunk up to these."""
    training = {(job.name, element.label) for job, element in plan.elements() if element.segment}
    own = [(job.name, element.label) for job, element in plan.elements() if element.arm in arms]
    return training.intersection(own) | needed_by(plan, own, training)


def needed_by(plan: Plan, keys: Iterable[Key], among: Collection[Key] | None = None) -> set[Key]:
    """All that these elements wait for, directly or through others; with `among`, through these alone."""
    found: set[Key] = set()
    todo = list(keys)
    while todo:
        new = {need for need, _ in plan.needs[todo.pop()] if among is None or need in among} - found
        found |= new
        todo += new
    return found


def _check(what: str, given: Sequence[str], *known: Sequence[str]) -> None:
    names = [name for name in dict.fromkeys(name for group in known for name in group) if name]
    for name in given:
        if name not in names:
            raise UsageError(f"{what} {name!r} is not in this study; choose one of {', '.join(names)}")
