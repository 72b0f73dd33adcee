"""Which elements are done: their marks (done.json and failed.json), whether their outputs are still there and up to date.

An element's done.json names the marks of the elements it needs as they were when it began. If one of these has been made
again since, the element is stale and must run again. Marks are compared by identity, not by time: clocks of nodes differ.

Marks are written whole, but people and other tools can change them. A file that holds anything else is an error that names it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import msgspec

from curricula.errors import StorageError, UserError
from curricula.jobs.plan import Key, Plan
from curricula.jobs.run import Run
from curricula.jobs.stages import STAGES, Work
from curricula.settings import decode

READERS = 16
"""Threads that read the folder: a cluster's file system is slow for each file, but not for many at once."""


class Done(msgspec.Struct, frozen=True):
    """The element is finished."""

    seconds: float
    """How long its last process took."""
    started: float = 0.0
    """When that process started, in Unix time. It identifies the mark: an element that is made again has another."""
    read: dict[str, float] | None = None
    """`started` of each element that was needed when that process began, by JOB/LABEL; 0 if it was not done then. None in
    marks of earlier versions, which recorded none."""
    generation: int = 0
    """Which start of the element it was (`curricula.fencing`); 0 in marks of earlier versions."""
    made: str | None = None
    """What `Stage.made` said at its end; None in marks of earlier versions."""

    def rests_on(self, plan: Plan, key: Key) -> list[Key]:
        """Of the plan's elements those that the one with this mark, `key`, has read or should have.

        Not those that it came to need only later, when its study grew: a trunk that was trained past a new arm's start stays as
        it is. What waits for elements to end, whether they succeed or fail, collects them, so it does need new ones.
        """
        needs = [need for need, must_be_ok in plan.needs[key] if self.read is None or not must_be_ok]
        names = (name.partition("/") for name in self.read or ())
        return list(dict.fromkeys([*((job, label) for job, _, label in names if (job, label) in plan.needs), *needs]))


class Failure(msgspec.Struct, frozen=True):
    """The element's last process ended with an error."""

    error: str
    """One sentence, or the exception's name and text."""
    time: float = 0.0
    """Unix time."""
    final: bool = False
    """Whether another start cannot cure it."""
    task: str = ""
    """Slurm's name for the task that failed; empty outside Slurm."""
    restarts: int = 0
    """How often Slurm had requeued that task."""


Mark = TypeVar("Mark", Done, Failure)


def read_done(folder: Path) -> Done | None:
    return _read(folder / "done.json", Done)


def read_failure(folder: Path) -> Failure | None:
    return _read(folder / "failed.json", Failure)


def last_failure(folder: Path, task: str) -> Failure | None:
    """How the latest start of a Slurm task failed that is to start again, or has: the batch script sets the failure aside."""
    for name in ("failed.json", "failed-before.json"):
        with contextlib.suppress(UserError):
            failure = _read(folder / name, Failure)
            if failure:
                return failure if failure.task == task and not failure.final else None
    return None


def _read(path: Path, kind: type[Mark]) -> Mark | None:
    """The mark in `path`, or None without one; raises UserError when the file holds anything else, and StorageError when it
    cannot be read now: it may be whole."""
    try:
        return decode(path.read_bytes(), kind)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise StorageError(f"{path}: cannot be read ({error.strerror}); give the same command again when it can be") from None
    except ValueError as error:
        raise UserError(f"{path}: not an element's mark ({error}); delete it and give the same command again") from None


def is_complete(work: Work, mark: Done) -> bool:
    """Whether the outputs of the element with `mark` are still there, and are those that it made."""
    stage = STAGES[work.job.stage]
    made = stage.made(work)
    return stage.is_complete(work, made) and (mark.made is None or made in (None, mark.made))


def is_done(work: Work) -> bool:
    """Whether the element is marked as done, its outputs are still there, and none of what it read has been made again."""
    mark = whole_mark(work.folder)
    if mark is None or not is_complete(work, mark):
        return False
    marks = _marks_of(work.run, mark.rests_on(work.plan, work.place))
    return made_again(work.plan, work.place, mark, marks) is None


def marks_read(work: Work) -> dict[str, float]:
    """What the element's `Done.read` will say if the element begins now."""
    marks = _marks_of(work.run, (need for need, _ in work.plan.needs[work.place]))
    return {"/".join(need): mark.started if mark else 0.0 for need, mark in marks.items()}


def made_again(plan: Plan, key: Key, mark: Done, marks: Mapping[Key, Done | None]) -> Key | None:
    """The first of what the element with `mark` rests on that has been made since it began; `marks` are those of all of it."""
    for need in mark.rests_on(plan, key):
        now = marks.get(need)
        # Marks of earlier versions name nothing; what a later version made came after them.
        if now and (now.read is not None if mark.read is None else mark.read.get("/".join(need)) != now.started):
            return need
    return None


def done_elements(run: Run, plan: Plan) -> set[Key]:
    """The elements that need not run again.

    A done element runs again if what it read has been made again since it began, or if it needs an element that is not done,
    such as a report on a run with failures.
    """
    with ThreadPoolExecutor(READERS) as pool:
        marks = dict(zip(plan.by_key, pool.map(lambda key: whole_mark(run.element(*key)), plan.by_key)))
        marked = {key: mark for key, mark in marks.items() if mark}
        complete = pool.map(lambda key: is_complete(Work(run, plan, *plan.by_key[key]), marked[key]), marked)
    done: set[Key] = set()
    for (key, mark), has_all in zip(marked.items(), complete):
        if has_all and not made_again(plan, key, mark, marks) and done.issuperset(mark.rests_on(plan, key)):
            done.add(key)
    return done


def _marks_of(run: Run, keys: Iterable[Key]) -> dict[Key, Done | None]:
    return {key: whole_mark(run.element(*key)) for key in keys}


def whole_mark(folder: Path) -> Done | None:
    """The element's mark of being done; a damaged one counts as none, so that the element runs again and replaces it."""
    try:
        return read_done(folder)
    except StorageError:
        raise
    except UserError:
        return None
