"""What has to run again after a failure: the elements that ended badly, and those that need them."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from curricula.jobs.monitor.state import ENDED_BADLY, ElementStatus
from curricula.jobs.plan import Key, Plan


def to_run_again(plan: Plan, elements: Sequence[ElementStatus], chosen: Collection[Key] | None = None) -> list[Key]:
    """In the plan's order, the elements that ended badly (only those in `chosen`, if given) and those that need them.

    Running elements are left alone. Done ones run again only if they ran in spite of the failure, as a report does. Of a run
    on Slurm, only elements that were submitted before run again.
    """
    on_slurm = any(element.task for element in elements)
    outside = {(element.job, element.label) for element in elements if on_slurm and not element.task}
    state = {(element.job, element.label): element.state for element in elements}
    again: dict[Key, None] = {}
    for key, needs in plan.needs.items():  # each after those it needs
        ended_badly = state[key] in ENDED_BADLY and (chosen is None or key in chosen)
        follows = any(need in again for need, _ in needs) and state[key] != "running"
        is_stale = state[key] != "done" or any(need in again and not must_be_ok for need, must_be_ok in needs)
        if key not in outside and (ended_badly or (follows and is_stale)):
            again[key] = None
    return list(again)
