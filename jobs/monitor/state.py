"""What each element of a run has come to: what the run folder says, and what Slurm says where the run was submitted to it.

The folder is the truth about what is finished and what failed; Slurm knows what is queued, where it runs and what it killed.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import socket
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeGuard

from curricula.errors import UserError
from curricula.jobs.graph import Element, Job
from curricula.jobs.marks import read_done, read_failure
from curricula.jobs.monitor.logs import find_logs, first_error
from curricula.jobs.monitor.progress import Reading, read_progress
from curricula.jobs.run import Run
from curricula.jobs.slurm.squeue import Query, TaskState
from curricula.jobs.slurm.submissions import Task, latest_tasks, submissions
from curricula.jobs.stages.stages import is_intact

State = Literal["done", "running", "pending", "failed", "cancelled", "interrupted", "waiting"]
ENDED_BADLY: tuple[State, ...] = ("failed", "cancelled", "interrupted")

FRESH_S = 120.0
"""A heartbeat younger than this is a live process's, where nothing else can tell."""
LOGS_READ = 5
"""Elements that were killed without a word whose logs are looked into for the last error."""
READERS = 16
"""Threads that read the folder: a cluster's file system takes its time for each file, but not for many at once."""


@dataclass(frozen=True)
class ElementStatus:
    job: str
    stage: str
    label: str
    state: State
    progress: Reading | None = None
    seconds: float | None = None
    """How long it took, when it is done."""
    error: str = ""
    reason: str = ""
    """Slurm's word for why it waits or how it ended."""
    task: str = ""
    """Slurm's name of it, such as 123_4; empty when it was never submitted."""
    nodes: str = ""
    restarts: int = 0
    """How often Slurm put it back into the queue."""


@dataclass(frozen=True)
class RunStatus:
    elements: list[ElementStatus]
    problem: str = ""
    """One line that says why Slurm's part is missing; empty when it is not."""


@dataclass(frozen=True)
class _Facts:
    """What an element's folder tells."""

    seconds: float | None = None
    error: str = ""
    is_held: bool = False
    interrupted: str | None = None
    """Not None when it began once and has to go on; what there is to say of that, if anything."""
    progress: Reading | None = None


def run_status(run: Run, jobs: Sequence[Job]) -> RunStatus:
    """The status of every element, in the graph's order. Slurm is asked while the folder is read."""
    tasks = latest_tasks(submissions(run))
    query = Query(task.job_id for task in tasks.values()) if tasks else None
    elements = [(job, element) for job in jobs for element in job.elements]
    facts = list(_read_all(run, elements))
    told: dict[Task, TaskState] = {}
    problem = ""
    if query:
        open_ = [fact.seconds is None and not fact.error for fact in facts]
        keys = [(job.name, element.label) for job, element in elements]
        answer = query.answer(tasks[key] for key, is_open in zip(keys, open_) if is_open and key in tasks)
        told, problem = answer.tasks, answer.problem
    found = []
    logs_to_read = LOGS_READ
    for (job, element), fact in zip(elements, facts):
        task = tasks.get((job.name, element.label))
        known = told.get(task) if task else None
        status = _merged(job, element, fact, task, known, asked=bool(query) and not problem)
        if task and status.state == "failed" and not fact.error and logs_to_read:  # it could not say why
            logs_to_read -= 1
            logged = first_error(find_logs(run, job.name, element.label, [task]))
            status = replace(status, error=f"{status.error}; {logged.message}") if logged else status
        found.append(status)
    return RunStatus(found, problem)


def _read_all(run: Run, elements: list[tuple[Job, Element]]) -> Iterator[_Facts]:
    folders = _names(run.root / "jobs")
    present = {name: _names(run.root / "jobs" / name) for name in folders}
    chunk = max(1, len(elements) // (4 * READERS))

    def read(part: list[tuple[Job, Element]]) -> list[_Facts]:
        facts = []
        for job, element in part:
            folder = run.element(job.name, element.label)
            facts.append(_read(run, job, element, folder) if folder.name in present.get(job.name, ()) else _Facts())
        return facts

    parts = [elements[start : start + chunk] for start in range(0, len(elements), chunk)]
    with ThreadPoolExecutor(READERS) as pool:
        yield from itertools.chain.from_iterable(pool.map(read, parts))


def _read(run: Run, job: Job, element: Element, folder: Path) -> _Facts:
    names = _names(folder)
    progress = read_progress(folder / "progress.json") if "progress.json" in names else None
    interrupted = "" if "progress.json" in names else None
    if interrupted is not None and progress is None:
        interrupted = f"{folder / 'progress.json'}: not an element's progress; it is written anew when the element runs"
    try:
        done = read_done(folder) if "done.json" in names else None
        if done and is_intact(run, job, element):
            return _Facts(seconds=done.seconds, progress=progress)
        if done:
            interrupted = "was done, but what it made is no longer there: it will be made again"
        if "lock" in names and _is_held(folder / "lock"):
            return _Facts(is_held=True, progress=progress)
        failure = read_failure(folder) if "failed.json" in names else None
    except UserError as error:
        return _Facts(error=str(error), progress=progress)
    said = (failure.error or "failed without a word") if failure else ""
    return _Facts(error=said, interrupted=interrupted, progress=progress)


def _names(folder: Path) -> set[str]:
    try:
        return set(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return set()


def _is_held(lock: Path) -> bool:
    """Whether a live process has the element's lock, as far as this machine can see."""
    try:
        with open(lock) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _merged(
    job: Job, element: Element, fact: _Facts, task: Task | None, told: TaskState | None, asked: bool
) -> ElementStatus:
    """`told` is what Slurm says, if it was `asked` and knows the task."""
    state: State
    reason = told.reason if told else ""
    error = fact.error
    if fact.seconds is not None:
        state, reason = "done", ""
    elif fact.is_held or (told and told.is_running):
        state, reason, error = "running", "", ""
    elif told and told.is_waiting:
        state, error = "pending", ""
    elif error:
        state = "failed"
    elif told and told.state == "CANCELLED":
        state = "cancelled"
    elif told:
        state, error = "failed", _how_it_ended(told)
        reason = told.state
    elif task and not asked:  # Slurm cannot be asked
        state = "running" if _beats(fact.progress) else "pending" if fact.interrupted is None else "interrupted"
    elif task:
        state, error = "interrupted", fact.interrupted or f"Slurm no longer knows task {task}, which left no mark"
    elif _beats(fact.progress) and fact.progress.host != socket.gethostname():  # its lock may not be seen from here
        state = "running"
    else:
        state, error = ("waiting", "") if fact.interrupted is None else ("interrupted", fact.interrupted)
    progress = fact.progress
    return ElementStatus(
        job=job.name,
        stage=job.stage,
        label=element.label,
        state=state,
        progress=progress,
        seconds=fact.seconds,
        error=error,
        reason=reason,
        task=str(task) if task else "",
        nodes=(told.nodes if told else "") or (progress.host if progress and state == "running" else ""),
        restarts=max(told.restarts if told else 0, progress.restarts if progress else 0),
    )


def _beats(progress: Reading | None) -> TypeGuard[Reading]:
    return progress is not None and time.time() - progress.updated < FRESH_S


def _how_it_ended(told: TaskState) -> str:
    words = {
        "COMPLETED": "its job ended well, but the element left no mark that it is done",
        "TIMEOUT": "reached its time limit",
        "OUT_OF_MEMORY": "ran out of memory: ask for more, or lower the batch",
        "NODE_FAIL": f"node {told.nodes or '(unknown)'} failed",
        "PREEMPTED": "was preempted and not put back into the queue",
        "DEADLINE": "reached its deadline",
        "BOOT_FAIL": f"node {told.nodes or '(unknown)'} did not start",
    }
    said = words.get(told.state, f"Slurm says {told.state}")
    how = f" ({told.reason})" if told.reason.startswith(("exit", "signal")) else ""
    return said + how
