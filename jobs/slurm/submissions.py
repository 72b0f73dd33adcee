"""What RUN/slurm records: the submissions, which of them Slurm still has, and the nodes that failed a check.

An element can have several tasks, because it was submitted again or because later tasks continue one that Slurm does not
requeue.

A number does not identify a job: a controller that lost its state assigns it again, to anyone's job. A job therefore counts as
this run's only if the path of its log, or the command that submitted it, contains RUN/slurm. If two lines record the same
number, the later one counts.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import msgspec

from curricula.durable import append_jsonl, exclusive_lock, read_jsonl, team, write_text
from curricula.errors import UserError
from curricula.jobs.plan import Key
from curricula.jobs.run import Run
from curricula.jobs.slurm.commands import PATIENCE_S, Task, TaskState, batch_script, patiently, scancel, squeue
from curricula.settings import decode

Queue = Mapping[Task, TaskState]
"""Array tasks in Slurm's queue, as `commands.squeue()` lists them."""

CONTENTS = "# runs "
"""Prefix of the line in a batch script that says what the script runs: a `Contents` as JSON."""
REMEMBERED_S = 7 * 86400.0
"""How long a node that failed is avoided. After a week it may have been repaired."""
ENOUGH_NODES = 3
"""Number of nodes on which something must fail before no node is blamed for it."""


class Submission(msgspec.Struct, frozen=True, kw_only=True):
    """One job array, as sbatch accepted it."""

    job: str
    """Name of the job in the study's plan."""
    job_id: str
    """Slurm's number of the array."""
    labels: tuple[str, ...]
    """The element that each array task runs."""
    submitted: float
    """Unix time."""

    @property
    def keys(self) -> list[Key]:
        return [(self.job, label) for label in self.labels]


def record(run: Run, submission: Submission) -> None:
    """Append the submission and sync the file; after that no crash can lose it."""
    append_jsonl(run.submissions, [msgspec.to_builtins(submission)])


def submissions(run: Run) -> list[Submission]:
    """All submissions, oldest first."""
    mend = "remove the line, and `scancel` its job if Slurm still has it"
    return read_jsonl(run.submissions, lambda line: decode(line, Submission), "a submission", mend)


def latest_tasks(submitted: list[Submission]) -> dict[Key, Task]:
    """The latest array task of every element that was ever submitted."""
    return {key: Task(array.job_id, number) for array in submitted for number, key in enumerate(array.keys)}


def listed(run: Run, job_ids: Iterable[str] | None = None, patience_s: float = PATIENCE_S) -> dict[Task, TaskState]:
    """The array tasks in Slurm's queue, with enough of their logs' paths to tell which ones are the run's."""
    return squeue(job_ids, patience_s, len(os.fsencode(_logs(run))))


def queued(run: Run) -> dict[Task, TaskState]:
    """This user's array tasks in Slurm's queue; if a team shares the run, also those of the run that colleagues submitted."""
    own = listed(run)
    if team() is None:
        return own
    others = {array.job_id for array in submissions(run)} - {task.job_id for task in own}
    theirs = listed(run, sorted(others)) if others else {}  # includes tasks that have ended
    return {**{task: state for task, state in theirs.items() if state.is_running or state.is_waiting}, **own}


class Contents(msgspec.Struct, frozen=True):
    """What a batch script runs: array task i runs the element labels[i]. This identifies jobs that were never recorded."""

    job: str
    labels: tuple[str, ...]


def contents_line(job: str, labels: Sequence[str]) -> str:
    return CONTENTS + json.dumps({"job": job, "labels": list(labels)})


def contents_in(script: str) -> Contents | None:
    """What a batch script runs; None if it is not one of the suite's."""
    for line in script.splitlines():
        if line.startswith(CONTENTS):
            with contextlib.suppress(msgspec.DecodeError):
                return decode(line.removeprefix(CONTENTS), Contents)
    return None


def unrecorded(run: Run, queue: Queue, may_repeat: bool = False) -> list[Submission]:
    """Jobs of this run that Slurm accepted from a submission that was killed before it could record them.

    An array is left out if recording it would hide a live task that is on record: then someone submitted part of it by hand.
    With `may_repeat`, jobs whose numbers are on record are examined too, in case Slurm has assigned a number again.
    """
    recorded = {array.job_id: Contents(array.job, array.labels) for array in submissions(run)}
    numbers: dict[str, set[int]] = {}
    for task in of_run(run, queue):
        if may_repeat or task.job_id not in recorded:
            numbers.setdefault(task.job_id, set()).add(task.number)
    alive, lost = live_elements(run, queue), []
    for job_id in sorted(numbers, key=int):
        contents = contents_in(batch_script(job_id))
        if contents in (None, recorded.get(job_id)):  # not the suite's, just ended, or on record
            continue
        gone = [label for number, label in enumerate(contents.labels) if number not in numbers[job_id]]
        hidden = [task for label in gone for task in alive.get((contents.job, label), ()) if task.job_id != job_id]
        if not hidden:
            lost.append(Submission(job=contents.job, job_id=job_id, labels=contents.labels, submitted=time.time()))
    return lost


def recover(run: Run, queue: Queue, may_repeat: bool = False) -> list[Submission]:
    """Record the `unrecorded` jobs."""
    lost = unrecorded(run, queue, may_repeat)
    for submission in lost:
        record(run, submission)
    return lost


def of_run(run: Run, queue: Queue) -> Queue:
    """The tasks in the queue that belong to this run."""
    logs = _logs(run)
    return {task: state for task, state in queue.items() if logs in state.output}


def _logs(run: Run) -> str:
    """Prefix of the paths of all the run's logs."""
    return f"{run.slurm.resolve()}/"


def elements_by_task(submitted: list[Submission]) -> dict[Task, Key]:
    """The element of every array task that was ever submitted, in the order of submission."""
    latest = {array.job_id: array for array in submitted}
    arrays = [array for array in submitted if latest[array.job_id] is array]
    return {Task(array.job_id, number): key for array in arrays for number, key in enumerate(array.keys)}


def known_tasks(run: Run, submitted: list[Submission], queue: Queue) -> dict[Key, dict[Task, TaskState]]:
    """The tasks of each element that Slurm still knows, in the order of submission."""
    known: dict[Key, dict[Task, TaskState]] = {}
    own = of_run(run, queue)
    for task, key in elements_by_task(submitted).items():
        if task in own:
            known.setdefault(key, {})[task] = own[task]
    return known


def live_elements(run: Run, queue: Queue) -> dict[Key, tuple[Task, ...]]:
    """The elements that Slurm runs or will run, with their array tasks in the order in which these start."""
    known = known_tasks(run, submissions(run), queue)
    alive = {key: tuple(task for task, state in tasks.items() if not state.is_hopeless) for key, tasks in known.items()}
    return {key: tasks for key, tasks in alive.items() if tasks}


def cancel_hopeless(run: Run, queue: Queue) -> None:
    """Cancel tasks that wait for a failed job. An element that is submitted again must not be in the queue twice."""
    known = known_tasks(run, submissions(run), queue)
    with contextlib.suppress(UserError):  # some may have left the queue in the meantime
        scancel(task for tasks in known.values() for task, state in tasks.items() if state.is_hopeless)


def cancel_waiting(run: Run, tasks: Collection[Task], say: Callable[[str], object]) -> None:
    """Cancel, in this order, those of `tasks` that still wait. Tasks that have started in the meantime keep running."""
    try:
        queue = of_run(run, patiently(say)(queued, run))
        scancel(task for task in tasks if task in queue and queue[task].is_waiting)
    except UserError as error:  # some have left the queue in the meantime, or are a colleague's
        say(f"{error}; cancel yourself what still waits of arrays {', '.join(dict.fromkeys(task.job_id for task in tasks))}")


class BadNode(msgspec.Struct, frozen=True):
    """A failure of a node. The batch script reads these lines with sed, so `node` must come first, `time` and `task` last."""

    node: str
    reason: str
    time: float = msgspec.field(default_factory=time.time)
    """Unix time."""
    task: str = ""
    """The array task that found the problem."""


def record_bad_nodes(run: Run, failures: Sequence[BadNode], enough: float = math.inf) -> list[str]:
    """Append failures to the file that the batch script reads when it requeues the job.

    If `enough` other nodes are on record for one of the same reasons, no node is to blame: delete all failures for these
    reasons from the file instead, and return the names of those nodes.
    """
    nodes, reasons = {bad.node for bad in failures}, {bad.reason for bad in failures}
    with exclusive_lock(run.slurm / "bad-nodes.lock", wait_s=60):  # several jobs may record failures at once
        known = bad_nodes(run)
        alike = {bad.node for bad in known if bad.reason in reasons} - nodes
        if len(alike) >= enough:
            others = [json.dumps(msgspec.to_builtins(bad), ensure_ascii=False) for bad in known if bad.reason not in reasons]
            write_text(run.bad_nodes, "".join(f"{line}\n" for line in others))
            return sorted(alike)
        append_jsonl(run.bad_nodes, map(msgspec.to_builtins, failures))
    return []


def bad_nodes(run: Run) -> list[BadNode]:
    """The failures of the last week, oldest first."""
    since = time.time() - REMEMBERED_S
    kept = read_jsonl(run.bad_nodes, lambda line: decode(line, BadNode), "a failure of a node", "remove the line")
    return [bad for bad in kept if bad.time > since]


def exclusion(run: Run) -> str:
    """The nodes to avoid, in the notation of sbatch's --exclude and scontrol's ExcNodeList; empty if there are none."""
    return ",".join(sorted({bad.node for bad in bad_nodes(run)}))
