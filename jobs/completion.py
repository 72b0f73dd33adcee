"""What is done: the marks of elements (done.json and failed.json) and whether what they stand for is still there.

Marks are written whole, but people and other tools can touch them too. Anything else that is found there is an error that
names the file.
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
    """The mark in `path`, or None without one; raises UserError when it is something else."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not an element's mark ({error}); delete it and give the same command again") from None


def is_complete(work: Work) -> bool:
    """Whether what the element made is still there."""
    return STAGES[work.job.stage].is_complete(work)


def is_done(work: Work) -> bool:
    """Whether the element's mark is there and so is what it stands for."""
    return (work.folder / "done.json").exists() and is_complete(work)


def done_elements(run: Run, plan: Plan) -> set[Key]:
    """The elements that need not be run.

    An element that was done before something it needs was done anew is not among them, such as a report on a failed run.
    """
    done: set[Key] = set()
    for job, element in plan.elements():
        key = (job.name, element.label)
        if is_done(Work(run, plan, job, element)) and all(other in done for other, _ in plan.needs[key]):
            done.add(key)
    return done
