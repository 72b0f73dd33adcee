"""What has to run again: the elements that ended badly or are stale, and those that need them."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from curricula.jobs.monitor.state import TO_REPEAT, ElementStatus
from curricula.jobs.plan import Key, Plan


def to_run_again(plan: Plan, elements: Sequence[ElementStatus], chosen: Collection[Key] | None = None) -> list[Key]:
    """In the plan's order, the elements that ended badly or are stale (only those in `chosen`, if given), and those that
    need them.

    Running elements are left alone; those among them that need what runs again will be stale (`overtaken`), and so will done
    ones, unless they ran in spite of the failure, as a report does: these run again at once. Of a run on Slurm, only elements
    that were submitted before run again.
    """
    on_slurm = any(element.task for element in elements)
    outside = {(element.job, element.label) for element in elements if on_slurm and not element.task}
    state = {(element.job, element.label): element.state for element in elements}
    # Whole arrays wait for whole arrays, so an element can wait in vain for one that it does not need.
    in_vain = {(item.job, item.label) for item in elements if item.reason == "DependencyNeverSatisfied"}
    again: dict[Key, None] = {}
    for key, needs in plan.needs.items():  # each after those it needs
        must_repeat = (state[key] in TO_REPEAT or key in in_vain) and (chosen is None or key in chosen)
        follows = any(need in again for need, _ in needs) and state[key] != "running"
        is_open = state[key] != "done" or any(need in again and not must_be_ok for need, must_be_ok in needs)
        if key not in outside and (must_repeat or (follows and is_open)):
            again[key] = None
    return list(again)


def overtaken(plan: Plan, elements: Sequence[ElementStatus], again: Collection[Key]) -> list[Key]:
    """The running elements that need one of `again`: they read what is there now, and will be stale when they are done."""
    running = [(element.job, element.label) for element in elements if element.state == "running"]
    return [key for key in running if any(need in again for need, _ in plan.needs[key])]
