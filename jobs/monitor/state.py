"""The state of each element of a run, from the run folder and, where the run was submitted to it, from Slurm.

The folder is the truth about what is finished and what failed; Slurm knows what is queued, where it runs and what it killed.
"""

from __future__ import annotations

import itertools
import os
import re
import socket
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeGuard

from curricula.durable import is_held
from curricula.errors import UserError
from curricula.jobs.completion import READERS, Done, is_complete, last_failure, made_again, read_done, read_failure
from curricula.jobs.monitor.logs import find_logs, first_error
from curricula.jobs.monitor.progress import Reading, read_progress
from curricula.jobs.plan import Element, Job, Key, Plan
from curricula.jobs.run import Run
from curricula.jobs.slurm.commands import Task, TaskState, on_cluster, sacct, squeue
from curricula.jobs.slurm.profile import kept_cluster
from curricula.jobs.slurm.submissions import known_tasks, latest_tasks, submissions
from curricula.jobs.stages import Work

State = Literal["done", "running", "pending", "failed", "cancelled", "interrupted", "stale", "waiting"]
ENDED_BADLY: tuple[State, ...] = ("failed", "cancelled", "interrupted")
TO_REPEAT: tuple[State, ...] = (*ENDED_BADLY, "stale")
"""States of elements that `curricula retry` runs again."""

FRESH_S = 120.0
"""A younger heartbeat means a live process, where nothing else can tell."""
LOGS_READ = 5
"""How many logs are searched for the last error of an element that was killed without leaving one."""
SLURM_PATIENCE_S = 10.0
"""How long Slurm may take to answer before the status does without."""


@dataclass(frozen=True)
class ElementStatus:
    job: str
    stage: str
    label: str
    state: State
    arm: str = ""
    """The arm that it works for, or "trunk"; empty for what all arms share."""
    seed: int | None = None
    """The seed of that training; None for what all seeds share."""
    point: str = ""
    """The point of the study's sweep; empty without one, and for what all points share."""
    progress: Reading | None = None
    seconds: float | None = None
    """How long it took, when it is done."""
    error: str = ""
    reason: str = ""
    """Slurm's word for why it waits or how it ended; of a stale element, what was made again."""
    task: str = ""
    """Slurm's name for it, such as 123_4; empty if it was never submitted."""
    nodes: str = ""
    restarts: int = 0
    """How often Slurm requeued it."""
    last_failure: str = ""
    """How its latest start failed, if it runs again or waits to."""


@dataclass(frozen=True)
class RunStatus:
    elements: list[ElementStatus]
    """In the plan's order."""
    problem: str = ""
    """One line that says why Slurm's part is missing; empty if it is not."""


@dataclass(frozen=True)
class _Facts:
    """What an element's folder says."""

    done: Done | None = None
    """Its mark, when it is done."""
    error: str = ""
    is_held: bool = False
    """Whether a live process holds its lock."""
    interrupted: str | None = None
    """Not None if it began and has to continue; the reason, if there is one to tell."""
    progress: Reading | None = None
    has_failed: bool = False
    """Whether it, or an earlier start of it, left the mark of a failure."""


def run_status(run: Run, plan: Plan) -> RunStatus:
    """The status of every element. Slurm is asked while the folder is read."""
    works = [Work(run, plan, job, element) for job, element in plan.elements()]
    submitted = submissions(run)
    tasks = latest_tasks(submitted)
    job_ids = [submission.job_id for submission in submitted]
    on_cluster(kept_cluster(run.profile) if tasks else None)
    with ThreadPoolExecutor(1) as slurm:
        listing = slurm.submit(squeue, job_ids, SLURM_PATIENCE_S) if tasks else None
        facts = _read_all(run.root, works)
    known_of: Mapping[Key, Mapping[Task, TaskState]] = {}
    problem = ""
    if listing:
        try:
            queue = listing.result()
        except UserError as error:
            problem = f"{error}; only what the run folder tells is shown"
        else:
            known_of = known_tasks(run, submitted, queue)
            unfinished = [key for key, fact in facts.items() if not fact.done and not fact.error]
            if any(key in tasks and tasks[key] not in known_of.get(key, ()) for key in unfinished):
                # A controller that was killed forgets jobs that the accounting still has as waiting or running.
                accounted = sacct(job_ids, SLURM_PATIENCE_S).items()
                ended = {task: state for task, state in accounted if not (state.is_waiting or state.is_running)}
                in_accounting = known_tasks(run, submitted, ended)
                known_of = {key: {**in_accounting.get(key, {}), **known_of.get(key, {})} for key in tasks}
    stale = _stale(plan, facts)
    found = []
    logs_to_read = LOGS_READ
    for work in works:
        job, element = work.job, work.element
        key = (job.name, element.label)
        fact, (task, known) = facts[key], _telling(tasks.get(key), known_of.get(key, {}))
        restarted = last_failure(work.folder, str(task)) if task and fact.has_failed and not fact.done else None
        status = _merged(job, element, fact, stale.get(key, ""), task, known, asked=bool(listing) and not problem)
        if restarted and status.state in ("running", "pending"):
            status = replace(status, last_failure=restarted.error, restarts=max(status.restarts, restarted.restarts))
        if task and status.state == "failed" and not fact.error and logs_to_read:  # it left no error of its own
            logs_to_read -= 1
            logged = first_error(find_logs(run, job.name, element.label, [task]))
            status = replace(status, error=f"{status.error}; {logged.message}") if logged else status
        found.append(status)
    return RunStatus(found, problem)


def _telling(latest: Task | None, known: Mapping[Task, TaskState]) -> tuple[Task | None, TaskState | None]:
    """The task of an element that tells its state, and what Slurm says of it: one that runs, else the next that will, else the
    latest. There may be several where jobs continue one another."""
    for is_so in (lambda state: state.is_running, lambda state: state.is_waiting):
        for task, state in known.items():
            if is_so(state):
                return task, state
    return latest, known.get(latest) if latest else None


def _read_all(root: Path, works: list[Work]) -> dict[Key, _Facts]:
    present = {name: _names(root / "jobs" / name) for name in _names(root / "jobs")}
    chunk = max(1, len(works) // (4 * READERS))

    def read(some: list[Work]) -> list[_Facts]:
        return [_read(work) if work.folder.name in present.get(work.job.name, ()) else _Facts() for work in some]

    chunks = [works[start : start + chunk] for start in range(0, len(works), chunk)]
    keys = [(work.job.name, work.element.label) for work in works]
    with ThreadPoolExecutor(READERS) as pool:
        return dict(zip(keys, itertools.chain.from_iterable(pool.map(read, chunks))))


def _read(work: Work) -> _Facts:
    folder = work.folder
    names = _names(folder)
    has_failed = not names.isdisjoint(("failed.json", "failed-before.json"))
    progress = read_progress(folder / "progress.json") if "progress.json" in names else None
    interrupted = "" if "progress.json" in names else None
    if interrupted is not None and progress is None:
        interrupted = f"{folder / 'progress.json'}: not an element's progress; it is rewritten when the element runs"
    try:
        done = read_done(folder) if "done.json" in names else None
        if done and is_complete(work):
            return _Facts(done=done, progress=progress)
        if done:
            interrupted = "was done, but what it made is no longer there: it will be made again"
        held = is_held(folder / "lock") if "lock" in names else False
        if held or (held is None and _beats(progress)):
            return _Facts(is_held=True, progress=progress, has_failed=has_failed)
        failure = read_failure(folder) if "failed.json" in names else None
    except UserError as error:
        return _Facts(error=str(error), progress=progress)
    error_text = (failure.error or "failed without a message") if failure else ""
    return _Facts(error=error_text, interrupted=interrupted, progress=progress, has_failed=has_failed)


def _names(folder: Path) -> set[str]:
    try:
        return set(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return set()


def _stale(plan: Plan, facts: Mapping[Key, _Facts]) -> dict[Key, str]:
    """Why elements that are done must run again, by element."""
    marks = {key: fact.done for key, fact in facts.items()}
    found: dict[Key, str] = {}
    for key, mark in marks.items():
        if mark is None:
            continue
        if again := made_again(plan, key, mark, marks):
            found[key] = f"{'/'.join(again)}, which it reads, has been made since it began"
        elif old := next((need for need, _ in plan.needs[key] if need in found), None):
            found[key] = f"{'/'.join(old)}, which it reads, is stale"
    return found


def _merged(
    job: Job, element: Element, fact: _Facts, stale: str, task: Task | None, known: TaskState | None, asked: bool
) -> ElementStatus:
    """`stale` is why a done element must run again, if it must. `known` is what Slurm knows of the element's task, if Slurm was
    `asked` and knows it at all."""
    state: State
    reason = known.reason if known else ""
    error = fact.error
    if fact.done and not stale:
        state, reason = "done", ""
    elif fact.is_held or (known and known.is_running):
        state, reason, error = "running", "", ""
    elif known and known.is_waiting:
        state, error = "pending", ""
    elif stale:
        state, reason, error = "stale", stale, ""
    elif error:
        state = "failed"
    elif known and known.state == "CANCELLED":
        state = "cancelled"
    elif known:
        state, error = "failed", _ending(known)
        reason = known.state
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
        arm=element.arm,
        seed=element.seed,
        point=element.variant,
        progress=progress,
        seconds=fact.done.seconds if fact.done else None,
        error=error,
        reason=reason,
        task=str(task) if task else "",
        nodes=(known.nodes if known else "") or (progress.host if progress and state == "running" else ""),
        restarts=max(known.restarts if known else 0, progress.restarts if progress else 0),
    )


def _beats(progress: Reading | None) -> TypeGuard[Reading]:
    return progress is not None and time.time() - progress.updated < FRESH_S


def _ending(known: TaskState) -> str:
    endings = {
        "COMPLETED": "its job ended with success, but the element left no mark that it is done",
        "TIMEOUT": "reached its time limit",
        "OUT_OF_MEMORY": "ran out of memory: ask for more, or lower the batch",
        "NODE_FAIL": f"node {known.nodes or '(unknown)'} failed",
        "PREEMPTED": "was preempted and not requeued",
        "DEADLINE": "reached its deadline",
        "BOOT_FAIL": f"node {known.nodes or '(unknown)'} did not start",
    }
    if known.state == "FAILED" and re.match(r"signal 9$|RaisedSignal:9\b", known.reason):
        return "its batch script was killed (signal 9), so it was not requeued"
    ending = endings.get(known.state, f"Slurm says {known.state}")
    how = f" ({known.reason})" if known.reason.startswith(("exit", "signal")) else ""
    return ending + how
