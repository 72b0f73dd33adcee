"""Which elements of a study a command is about: all, or those of a job, a stage or an arm."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from curricula.errors import UsageError

if TYPE_CHECKING:  # a command's help does not need the graph
    from curricula.jobs.graph import Element, Job


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--stage", metavar="STAGE", help="only jobs of this stage, such as pretrain or evaluate")
    parser.add_argument("--arm", metavar="ARM", help="only elements of this arm, such as full-20; trunk for the trunk")


def select(
    jobs: Sequence[Job],
    job: str | None = None,
    element: str | None = None,
    stage: str | None = None,
    arm: str | None = None,
) -> list[tuple[Job, Element]]:
    """The elements for which all that is given holds, in the graph's order.

    Raises UsageError when a name is none of the study's, or when nothing is left.
    """
    _check("job", job, [one.name for one in jobs])
    _check("stage", stage, [one.stage for one in jobs])
    _check("arm", arm, [arm_of(item) for one in jobs for item in one.elements])
    of_jobs = [one for one in jobs if job in (None, one.name) and stage in (None, one.stage)]
    if element is not None:
        _check(f"element of {job}", element, [item.label for one in of_jobs for item in one.elements])
    chosen = [
        (one, item)
        for one in of_jobs
        for item in one.elements
        if element in (None, item.label) and arm in (None, arm_of(item))
    ]
    if not chosen:
        given = [
            f"{name} {value}" for name, value in (("job", job), ("stage", stage), ("arm", arm)) if value is not None
        ]
        raise UsageError(f"no element is of {' and '.join(given)} at once; leave one of them out")
    return chosen


def arm_of(element: Element) -> str:
    """The arm an element works for, or "trunk"; empty for data, which all arms read."""
    return element.arm or (element.label if element.segment else "")


def _check(what: str, given: str | None, known: Sequence[str]) -> None:
    names = [name for name in dict.fromkeys(known) if name]
    if given is not None and given not in names:
        raise UsageError(f"{what} {given!r} is not in this study; choose one of {', '.join(names)}")
