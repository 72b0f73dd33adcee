"""Which elements are done: their marks (done.json and failed.json), and whether their outputs are still there.

Marks are written whole, but people and other tools can change them. A file that holds anything else is an error that names it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import msgspec

from curricula.errors import UserError
from curricula.jobs.plan import Key, Plan
from curricula.jobs.run import Run
from curricula.jobs.stages import STAGES, Work


class Done(msgspec.Struct, frozen=True):
    """The element is finished."""

    seconds: float
    """How long its last process took."""
    started: float = 0.0
    """Unix time."""


class Failure(msgspec.Struct, frozen=True):
    """The element's last process ended with an error."""

    error: str
    time: float = 0.0
    """Unix time."""


Mark = TypeVar("Mark", Done, Failure)


def read_done(folder: Path) -> Done | None:
    return _read(folder / "done.json", Done)


def read_failure(folder: Path) -> Failure | None:
    return _read(folder / "failed.json", Failure)


def _read(path: Path, kind: type[Mark]) -> Mark | None:
    """The mark in `path`, or None without one; raises UserError when the file holds anything else."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not an element's mark ({error}); delete it and give the same command again") from None


def is_complete(work: Work) -> bool:
    """Whether the element's outputs are still there."""
    return STAGES[work.job.stage].is_complete(work)


def is_done(work: Work) -> bool:
    """Whether the element is marked as done and its outputs are still there."""
    return (work.folder / "done.json").exists() and is_complete(work)


def done_elements(run: Run, plan: Plan) -> set[Key]:
    """The elements that need not run again.

    A done element that needs one that is not done has to run again, such as a report on a run with failures.
    """
    done: set[Key] = set()
    for job, element in plan.elements():
        key = (job.name, element.label)
        if is_done(Work(run, plan, job, element)) and all(other in done for other, _ in plan.needs[key]):
            done.add(key)
    return done
