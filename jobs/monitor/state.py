"""The state of each element of a run, from the run folder and, if the run was submitted to Slurm, from Slurm.

The folder decides what is finished and what has failed. Slurm knows what is queued, where it runs and what was killed.
"""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from curricula.durable import is_held, names_in
from curricula.errors import StorageError, UserError
from curricula.jobs.completion import (
    READERS,
    Done,
    is_complete,
    last_failure,
    made_again,
    read_done,
    read_failure,
    readers_of_lost,
    without_needed,
)
from curricula.jobs.monitor.logs import find_logs, first_error, of_latest
from curricula.jobs.monitor.progress import Reading, read_progress
from curricula.jobs.plan import Key, Plan
from curricula.jobs.run import Run
from curricula.jobs.slurm.commands import Task, TaskState, on_cluster, sacct
from curricula.jobs.slurm.profile import kept_cluster
from curricula.jobs.slurm.submissions import Queue, Submission, known_tasks, latest_tasks, listed, submissions
from curricula.jobs.stages import STAGES, Work

State = Literal["done", "running", "pending", "failed", "cancelled", "interrupted", "stale", "waiting"]
ENDED_BADLY: tuple[State, ...] = ("failed", "cancelled", "interrupted")
TO_REPEAT: tuple[State, ...] = (*ENDED_BADLY, "stale")
"""States of elements that `curricula retry` runs again."""

FRESH_S = 120.0
"""Age in seconds up to which a heartbeat counts as that of a live process, if nothing else can tell."""
LOGS_READ = 5
"""For how many elements that were killed without leaving an error the logs are searched for one."""
SLURM_PATIENCE_S = 10.0
"""How long to wait for Slurm's answer before the status does without it."""


@dataclass(frozen=True)
class ElementStatus:
    job: str
    stage: str
    label: str
    state: State
    arm: str = ""
    """Empty if all arms share the element. Likewise, `seed` and `point` (of a sweep) are empty if all seeds or points do."""
    seed: int | None = None
    point: str = ""
    progress: Reading | None = None
    seconds: float | None = None
    """How long the element took, if it is done."""
    error: str = ""
    reason: str = ""
    """Slurm's reason why it waits or how it ended; for a stale element, what was made again."""
    task: str = ""
    nodes: str = ""
    restarts: int = 0
    last_failure: str = ""
    """How the element's latest start failed, if it runs again or waits to do so."""

    @property
    def key(self) -> Key:
        return self.job, self.label


@dataclass(frozen=True)
class RunStatus:
    elements: list[ElementStatus]
    """In the plan's order."""
    problem: str = ""
    """One line that says what is missing and why: Slurm's answer, or a mark that cannot be read. Empty if nothing is."""


@dataclass(frozen=True)
class _Facts:
    """What an element's folder says."""

    done: Done | None = None
    error: str = ""
    is_readable: bool = True
    """Whether the marks could be read."""
    is_held: bool = False
    """Whether a live process holds the element's lock."""
    has_begun: bool = False
    """Whether it has reported progress."""
    why: str = ""
    """Why it must run again; empty if it was not done."""
    progress: Reading | None = None
    has_failed: bool = False
    """Whether this or an earlier start left the mark of a failure."""

    @property
    def has_heartbeat(self) -> bool:
        return self.progress is not None and time.time() - self.progress.updated < FRESH_S


def run_status(run: Run, plan: Plan) -> RunStatus:
    """The status of every element. Slurm is asked while the folder is read."""
    works = {(job.name, element.label): Work(run, plan, job, element) for job, element in plan.elements()}
    submitted = submissions(run)
    latest = latest_tasks(submitted)
    on_cluster(kept_cluster(run.profile) if latest else None)
    with ThreadPoolExecutor(1) as pool:
        listing = pool.submit(listed, run, [array.job_id for array in submitted], SLURM_PATIENCE_S) if latest else None
        facts = _without_needed(plan, _read_all(run.root, works), works)
    known: Mapping[Key, Mapping[Task, TaskState]] = {}
    lost, problem = "", next((fact.error for fact in facts.values() if not fact.is_readable), "")
    try:
        if listing:
            unfinished = [key for key in latest if key in facts and not facts[key].done and not facts[key].error]
            known, lost = _known(run, submitted, listing.result(), unfinished)
    except UserError as error:
        problem = f"{error}; the status shown is from the run folder alone"
    stale, elements, logs_to_read = _stale(plan, facts), [], LOGS_READ
    for key, work in works.items():
        of_key = known.get(key, {})
        task = _deciding_task(latest.get(key), of_key)
        status = _status(work, facts[key], stale.get(key, ""), task, of_key.get(task) if task else None, lost)
        left_no_error = status.state == "failed" and not facts[key].error
        if task and left_no_error and logs_to_read:
            logs_to_read -= 1
            if logged := first_error(of_latest(find_logs(run, {key: [task]})[key], [task])):
                status = replace(status, error=f"{status.error}; {logged.message}")
        elements.append(status)
    return RunStatus(elements, problem)


def _known(
    run: Run, submitted: list[Submission], queue: Queue, unfinished: Iterable[Key]
) -> tuple[Mapping[Key, Mapping[Task, TaskState]], str]:
    """What Slurm knows about each element's tasks, and what to report about a task that it does not know.

    The accounting is asked only if the queue has forgotten the latest task of an `unfinished` element.
    """
    known, latest = known_tasks(run, submitted, queue), latest_tasks(submitted)
    lost = "is not in Slurm's queue and left no mark"
    if all(latest[key] in known.get(key, ()) for key in unfinished):
        return known, lost
    try:
        accounted = sacct([array.job_id for array in submitted], SLURM_PATIENCE_S)
    except UserError as error:
        return known, f"{lost}, and the accounting did not answer ({error})"
    # A controller that was killed forgets jobs, and the accounting goes on listing them as waiting or running.
    ended = {task: state for task, state in accounted.items() if not (state.is_waiting or state.is_running)}
    in_accounting = known_tasks(run, submitted, ended)
    return {key: {**in_accounting.get(key, {}), **known.get(key, {})} for key in latest}, lost


def _deciding_task(latest: Task | None, known: Mapping[Task, TaskState]) -> Task | None:
    """The task that decides an element's state; None if it was never submitted.

    There can be several tasks if jobs continue one another. A running task comes first, then the next one to run, then the
    latest.
    """
    running = [task for task, state in known.items() if state.is_running]
    waiting = [task for task, state in known.items() if state.is_waiting]
    return next(iter([*running, *waiting]), latest)


def _read_all(root: Path, works: Mapping[Key, Work]) -> dict[Key, _Facts]:
    present = {name: set(names_in(root / "jobs" / name)) for name in names_in(root / "jobs")}

    def read(work: Work) -> _Facts:
        return _read(work) if work.folder.name in present.get(work.job.name, ()) else _Facts()

    with ThreadPoolExecutor(READERS) as pool:
        return dict(zip(works, pool.map(read, works.values())))


def _read(work: Work) -> _Facts:
    folder = work.folder
    names = set(names_in(folder))
    facts = _Facts(
        has_begun="progress.json" in names,
        progress=read_progress(folder / "progress.json") if "progress.json" in names else None,
        has_failed=not names.isdisjoint(("failed.json", "failed-before.json")),
    )
    try:
        done = read_done(folder) if "done.json" in names else None
        if done and is_complete(work, done):
            return _Facts(done=done, progress=facts.progress)
        if done:
            why = f"was done, but {STAGES[work.job.stage].lost}: it will be made again"
            facts = replace(facts, done=done if readers_of_lost(work) else None, why=why)
        held = is_held(folder / "lock") if "lock" in names else False
        if held or (held is None and facts.has_heartbeat):
            return replace(facts, is_held=True)
        failure = read_failure(folder) if "failed.json" in names else None
    except UserError as error:
        return _Facts(error=str(error), is_readable=not isinstance(error, StorageError), progress=facts.progress)
    return replace(facts, error=failure.error or "failed without a message") if failure else facts


def _without_needed(plan: Plan, facts: dict[Key, _Facts], works: Mapping[Key, Work]) -> dict[Key, _Facts]:
    """The facts, where elements are done even if their outputs are lost, unless these have yet to be read."""
    lost = {key: readers_of_lost(works[key]) for key, fact in facts.items() if fact.done and fact.why}
    marks = without_needed(plan, {key: fact.done for key, fact in facts.items()}, lost)
    return facts | {key: replace(facts[key], done=marks[key]) for key in lost}


def _stale(plan: Plan, facts: Mapping[Key, _Facts]) -> dict[Key, str]:
    """For each element that is done but must run again, the reason."""
    marks = {key: fact.done for key, fact in facts.items()}
    reasons: dict[Key, str] = {}
    for key, mark in marks.items():
        if mark is None:
            continue
        if again := made_again(plan, key, mark, marks):
            reasons[key] = f"{'/'.join(again)}, which it reads, has been made since it began"
        elif old := next((need for need in mark.rests_on(plan, key) if need in reasons), None):
            reasons[key] = f"{'/'.join(old)}, which it reads, is stale"
    return reasons


def _status(work: Work, fact: _Facts, stale: str, task: Task | None, known: TaskState | None, lost: str) -> ElementStatus:
    """The status of an element.

    `stale`: why it must run again although it is done; empty if it need not. `task`: the one that decides its state. `known`:
    what Slurm says about that; None if it does not know it. `lost`: what to report then; empty if Slurm did not answer.
    """
    element, progress = work.element, fact.progress
    state, reason, error = _state(fact, stale, task, known, lost)
    starts_again = task and fact.has_failed and state in ("running", "pending")
    failure = last_failure(work.folder, str(task)) if starts_again else None
    return ElementStatus(
        job=work.job.name,
        stage=work.job.stage,
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
        restarts=max(source.restarts if source else 0 for source in (known, progress, failure)),
        last_failure=failure.error if failure else "",
    )


def _state(fact: _Facts, stale: str, task: Task | None, known: TaskState | None, lost: str) -> tuple[State, str, str]:
    """The element's state, the reason for it, and the error."""
    reason = known.reason if known else ""
    if fact.done and not stale:
        return "done", "", ""
    if fact.is_held or (known and known.is_running):
        return "running", "", ""
    if known and known.is_waiting:
        return "pending", reason, ""
    if stale:
        return "stale", stale, ""
    if fact.error:
        return "failed", reason, fact.error
    if fact.why:  # its last start ended well, so how that task ended explains nothing
        return "interrupted", "", fact.why
    if known and known.state == "CANCELLED":
        return "cancelled", reason, ""
    if known:
        return "failed", known.state, _ending(known)
    if task and lost:
        return "interrupted", "", f"task {task} {lost}"
    is_elsewhere = fact.progress and fact.progress.host != socket.gethostname()  # this machine may not see its lock
    if fact.has_heartbeat and (task or is_elsewhere):
        return "running", "", ""
    if not fact.has_begun:
        return "pending" if task else "waiting", "", ""
    return "interrupted", "", ""


def _ending(known: TaskState) -> str:
    endings = {
        "COMPLETED": "its job succeeded, but the element left no mark that it is done",
        "TIMEOUT": "reached its time limit",
        "OUT_OF_MEMORY": "ran out of memory: ask for more, or lower the batch",
        "NODE_FAIL": f"node {known.nodes or '(unknown)'} failed",
        "PREEMPTED": "was preempted and not requeued",
    }
    if known.state == "FAILED" and re.match(r"signal 9$|RaisedSignal:9\b", known.reason):
        return "its batch script was killed (signal 9), so it was not requeued"
    ending = endings.get(known.state, f"Slurm says {known.state}")
    how = f" ({known.reason})" if known.reason.startswith(("exit", "signal")) else ""
    return ending + how
