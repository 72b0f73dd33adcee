"""Which elements of a study a command acts on, and whether everything that they need is there."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from curricula.errors import UsageError
from curricula.jobs.plan import Element, Key, Plan


@dataclass(frozen=True)
class Selection:
    """Conditions on elements, all of which must hold; false as a bool if there are none."""

    stages: tuple[str, ...] = ()
    """Stages of the plan, or the study's own stages after pretraining, such as instruct."""
    jobs: tuple[str, ...] = ()
    arms: tuple[str, ...] = ()
    seeds: tuple[str, ...] = ()
    points: tuple[str, ...] = ()
    start: str | None = None
    """The stage or job to start from: jobs before it are left out."""

    @classmethod
    def from_args(cls, args: argparse.Namespace) -> Selection:
        return cls(args.stages, args.jobs, args.arms, args.seeds, args.points, args.start)

    def __bool__(self) -> bool:
        return self != Selection()


def select(plan: Plan, selection: Selection, with_needs: bool = False) -> list[Key]:
    """The selected elements, in the plan's order.

    `with_needs` adds what the selected arms, seeds and points share with others: the trunk segments they branch from, what
    other points make for them, and elements of no arm, such as those of the data. Raises UsageError if a name is not in the
    study, or if no element is selected.
    """
    _check_names(plan, selection)
    first = next((place for place, job in enumerate(plan.jobs) if selection.start in (job.name, *job.stage_names)), 0)
    jobs = {
        job.name
        for job in plan.jobs[first:]
        if not selection.jobs or job.name in selection.jobs
        if not selection.stages or {*job.stage_names} & {*selection.stages}
    }
    training = {key for key, (_, element) in plan.by_key.items() if element.segment}
    of_arms = {key for key, (_, element) in plan.by_key.items() if element.arm in selection.arms}
    of_points = {key for key, (_, element) in plan.by_key.items() if element.variant in selection.points}
    if with_needs:  # for an arm, the training that it continues: its branches and the trunk up to them
        of_arms |= needed_by(plan, of_arms, training)
        of_points |= needed_by(plan, of_points)

    def is_wanted(key: Key, element: Element) -> bool:
        if with_needs and not element.arm:
            return True
        is_of_seed = not selection.seeds or str(element.seed) in selection.seeds
        return is_of_seed and (not selection.arms or key in of_arms) and (not selection.points or key in of_points)

    chosen = [key for key, (job, element) in plan.by_key.items() if job.name in jobs and is_wanted(key, element)]
    if not chosen:
        raise UsageError("no element matches all these options together; drop one of them")
    return chosen


def _check_names(plan: Plan, selection: Selection) -> None:
    jobs, stages = [job.name for job in plan.jobs], [name for job in plan.jobs for name in job.stage_names]
    for what, names, known in (
        ("stage", selection.stages, stages),
        ("job", selection.jobs, jobs),
        ("arm", selection.arms, [element.arm for _, element in plan.elements()]),
        ("seed", selection.seeds, [str(replicate.seed) for replicate in plan.study.replicates]),
        ("point", selection.points, list(plan.study.variants)),
        ("stage or job", () if selection.start is None else (selection.start,), [*stages, *jobs]),
    ):
        for name in names:
            if name not in known:
                choices = ", ".join(filter(None, dict.fromkeys(known)))
                raise UsageError(f"{what} {name!r} is not in this study; choose one of {choices}")


def check_needs(plan: Plan, chosen: Collection[Key], done: Collection[Key], live: Collection[Key]) -> None:
    """Raise UsageError if a chosen element needs one that is neither done nor `live` (queued or running) nor chosen."""
    available = {*done, *live, *chosen}
    for job, label in chosen:
        for need, must_be_ok in plan.needs[job, label]:
            if must_be_ok and need not in available:
                raise UsageError(
                    f"{job} needs {need[0]}/{need[1]}, which is not done, queued or selected; "
                    f"select {need[0]} too, or give --from {need[0]} alone"
                )


def needed_by(plan: Plan, keys: Iterable[Key], among: Collection[Key] | None = None) -> set[Key]:
    """All elements that `keys` wait for, directly or through others. With `among`, only its elements are found and followed."""
    found: set[Key] = set()
    todo = list(keys)
    while todo:
        new = {need for need, _ in plan.needs[todo.pop()] if among is None or need in among} - found
        found |= new
        todo += new
    return found
