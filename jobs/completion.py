"""Which elements are done, by their marks (done.json and failed.json) and by whether their outputs are there and up to date.

An element's done.json records the marks of the elements it needs, as they were when it began. If one of those elements has run
again since, this one is stale and must run again. Marks are compared for equality, not by age: the clocks of nodes differ.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping
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
"""Threads that read the run folder: a cluster's file system answers each request slowly, but many at a time."""


class Done(msgspec.Struct, frozen=True):
    """The mark of a finished element, in done.json."""

    seconds: float
    """How long the process that finished it took."""
    started: float = 0.0
    """Unix time at which that process started. It identifies the mark: an element that runs again gets another."""
    read: dict[str, float] | None = None
    """By JOB/LABEL, `started` of each element that this one needed when that process began; 0 for one that was not done. None
    in marks of earlier versions, which did not record it."""
    generation: int = 0
    """Which of the element's starts that was (`curricula.fencing`); 0 in marks of earlier versions."""
    made: str | None = None
    """What `Stage.made` returned when the element finished; None in marks of earlier versions."""

    def rests_on(self, plan: Plan, key: Key) -> list[Key]:
        """The plan's elements that the element `key`, whose mark this is, has read or should have read.

        Elements that it has come to need since, because the study grew, are left out: a trunk that was trained past a new
        arm's start stays as it is. Those it waits for by `afterany` are not left out: an element with such an edge, like the
        report, collects what is there, so it must collect new results too.
        """
        needs = [need for need, must_be_ok in plan.needs[key] if self.read is None or not must_be_ok]
        names = (name.partition("/") for name in self.read or ())
        return list(dict.fromkeys([*((job, label) for job, _, label in names if (job, label) in plan.needs), *needs]))


class Failure(msgspec.Struct, frozen=True):
    """The mark of an element whose last process ended with an error, in failed.json."""

    error: str
    """One sentence, or the exception's name and text."""
    time: float = 0.0
    """Unix time of the failure."""
    final: bool = False
    """Whether another start would fail in the same way."""
    task: str = ""
    """Slurm's name for the task that failed; empty outside Slurm."""
    restarts: int = 0
    """How often Slurm had requeued that task by then."""


Mark = TypeVar("Mark", Done, Failure)


def read_done(folder: Path) -> Done | None:
    return _read(folder / "done.json", Done)


def read_failure(folder: Path, name: str = "failed.json") -> Failure | None:
    return _read(folder / name, Failure)


def last_failure(folder: Path, task: str) -> Failure | None:
    """The latest failure, if it was one of this Slurm task that the task's next start could cure; else None."""
    for name in ("failed.json", "failed-before.json"):  # the batch script renames it at the next start
        with contextlib.suppress(UserError):
            if failure := read_failure(folder, name):
                return failure if failure.task == task and not failure.final else None
    return None


def _read(path: Path, kind: type[Mark]) -> Mark | None:
    """The mark in `path`; None if there is no such file. Raises UserError if it holds anything else, and StorageError if it
    cannot be read now, since it may hold a mark."""
    try:
        return decode(path.read_bytes(), kind)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"{path}: cannot be read ({error.strerror}); run the same command again when it can be") from None
    except ValueError as error:
        raise UserError(f"{path}: not an element's mark ({error}); delete it and run the same command again") from None


def is_complete(work: Work, mark: Done) -> bool:
    """Whether the outputs of the element that has this `mark` are still there, and are the ones it made."""
    stage = STAGES[work.job.stage]
    made = stage.made(work)
    return stage.is_complete(work, made) and (mark.made is None or made in (None, mark.made))


def is_done(work: Work) -> bool:
    """Whether the element is marked as done, its outputs are still there, and nothing it read has been made again since."""
    mark = whole_mark(work.folder)
    if mark is None or not is_complete(work, mark):
        return False
    marks = {need: whole_mark(work.run.element(*need)) for need in mark.rests_on(work.plan, work.place)}
    return made_again(work.plan, work.place, mark, marks) is None


def marks_read(work: Work) -> dict[str, float]:
    """The `Done.read` of an element that begins now."""
    marks = {need: whole_mark(work.run.element(*need)) for need, _ in work.plan.needs[work.place]}
    return {"/".join(need): mark.started if mark else 0.0 for need, mark in marks.items()}


def made_again(plan: Plan, key: Key, mark: Done, marks: Mapping[Key, Done | None]) -> Key | None:
    """The first of the elements that `key`, whose mark is `mark`, rests on to have been made again since `key` began; None if
    none has. `marks` has those of all elements that it rests on."""
    for need in mark.rests_on(plan, key):
        now = marks.get(need)
        if now is None:
            continue
        if mark.read is None:
            if now.read is not None:  # a mark of a later version, so it is newer than this one
                return need
        elif mark.read.get("/".join(need)) != now.started:
            return need
    return None


def done_elements(run: Run, plan: Plan) -> set[Key]:
    """The elements that need not run again. Not among them are stale elements, those that need one that is not done, such as
    the report on a run with failures, and those whose outputs were lost before all had read them."""
    works = {key: Work(run, plan, *plan.by_key[key]) for key in plan.by_key}
    with ThreadPoolExecutor(READERS) as pool:
        found = zip(works, pool.map(lambda work: whole_mark(work.folder), works.values()))
        marks = {key: mark for key, mark in found if mark}
        complete = dict(zip(marks, pool.map(lambda key: is_complete(works[key], marks[key]), marks)))
    lost = {key: readers for key in marks if not complete[key] and (readers := readers_of_lost(works[key]))}
    kept = {key: mark if complete[key] or key in lost else None for key, mark in marks.items()}
    return _current(plan, without_needed(plan, kept, lost))


def readers_of_lost(work: Work) -> tuple[str, ...]:
    """The stages whose elements decide whether an element that is not complete must run again. None if it must in any case, as
    when its outputs are not gone but others are in their place."""
    stage = STAGES[work.job.stage]
    readers = stage.readers(work)
    return readers if readers and stage.made(work) is None else ()


def without_needed(plan: Plan, marks: Mapping[Key, Done | None], lost: Mapping[Key, Collection[str]]) -> dict[Key, Done | None]:
    """The marks without those of `lost` elements, given with the stages that read them, whose outputs have yet to be read."""
    marks, needed = dict(marks), list(lost)
    while needed:  # one that runs again reads others' outputs, which may be lost, too: a shard is made from a download
        done = _current(plan, marks)
        to_run = {plan.by_key[key][0].stage for key in plan.by_key if key not in done}
        needed = [key for key, readers in lost.items() if marks[key] and to_run.intersection(readers)]
        marks |= dict.fromkeys(needed)
    return marks


def _current(plan: Plan, marks: Mapping[Key, Done | None]) -> set[Key]:
    """The marked elements that have read what there is now."""
    done: set[Key] = set()
    for key in plan.by_key:  # each after the elements that it needs
        mark = marks.get(key)
        if mark and not made_again(plan, key, mark, marks) and done.issuperset(mark.rests_on(plan, key)):
            done.add(key)
    return done


def whole_mark(folder: Path) -> Done | None:
    """The element's `Done`, or None. A damaged mark counts as none, so that the element runs again and replaces it."""
    try:
        return read_done(folder)
    except StorageError:
        raise
    except UserError:
        return None
