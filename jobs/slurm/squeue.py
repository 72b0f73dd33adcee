"""What Slurm says of a study's array tasks: one call of squeue, and one of sacct where there is accounting.

Neither is needed: without them the run folder still tells what was finished, and `Answer.problem` says what is missing. The
commands run while the caller reads the folder.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field

from curricula.jobs.slurm.submissions import Task
from curricula.terminal import one_line

PATIENCE_S = 10.0
"""How long Slurm may take to answer before its answer is done without."""
COLUMNS = (("ArrayJobID", 24), ("ArrayTaskID", 24), ("State", 24), ("RestartCnt", 12), ("Reason", 96))
ACTIVE = {"RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "STOPPED", "RESIZING", "SIGNALING", "STAGE_OUT"}
WAITING = {"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD"}

REASONS = {
    "Priority": "others are ahead in the queue",
    "Resources": "waits for free nodes",
    "Dependency": "waits for jobs it needs",
    "DependencyNeverSatisfied": "a job it needs failed or was cancelled: mend that, then `curricula retry`",
    "JobArrayTaskLimit": "the array's limit of tasks at a time",
    "BeginTime": "was requeued and starts again soon",
    "JobHeldUser": "held: `scontrol release` lets it go",
    "JobHeldAdmin": "held by an administrator",
    "JobHoldMaxRequeue": "requeued too often: `scontrol release` lets it go on",
    "launch failed requeued held": "its node could not start it: `scontrol release` lets it go on elsewhere",
    "ReqNodeNotAvail": "nodes it asks for are down, drained or reserved",
    "PartitionTimeLimit": "asks for more time than the partition gives",
    "PartitionNodeLimit": "asks for more nodes than the partition gives",
    "BadConstraints": "no node can ever fulfil what it asks for",
    "QOSMaxJobsPerUserLimit": "your limit of running jobs is reached",
    "AssocGrpGRES": "your account's limit of GPUs is reached",
}
"""Slurm's reasons for waiting, in words that say what to do."""


@dataclass(frozen=True)
class TaskState:
    """What Slurm says of one array task. `state` is Slurm's own word, without its additions."""

    state: str
    reason: str = ""
    """Why it waits, or how it ended: exit code or signal."""
    nodes: str = ""
    restarts: int = 0

    @property
    def is_running(self) -> bool:
        return self.state in ACTIVE

    @property
    def is_waiting(self) -> bool:
        return self.state in WAITING


@dataclass(frozen=True)
class Answer:
    tasks: dict[Task, TaskState] = field(default_factory=dict)
    problem: str = ""
    """One line that says what could not be asked; empty when all was."""


class Query:
    """Asks about arrays `job_ids`: squeue at once, sacct only if `answer` finds that squeue does not know of some."""

    def __init__(self, job_ids: Iterable[str]):
        self.ids = ",".join(dict.fromkeys(job_ids))
        layout = ",".join(f"{name}:{size}" for name, size in (*COLUMNS, ("NodeList", 256)))
        self._squeue = _start(
            "squeue", "--array", "--noheader", "--states=all", f"--jobs={self.ids}", f"--Format={layout}"
        )

    def answer(self, wanted: Iterable[Task]) -> Answer:
        """The state of the `wanted` tasks, as far as Slurm knows them."""
        if isinstance(self._squeue, str):
            return Answer(problem=f"{self._squeue}: shown is what the run folder tells")
        lines, problem = _finish(self._squeue)
        if "Invalid job id specified" in problem:  # all of them ended a while ago
            problem = ""
        if problem:
            return Answer(problem=f"squeue: {problem}: shown is what the run folder tells")
        tasks = dict(_squeue_row(line) for line in lines)
        if all(task in tasks for task in wanted):
            return Answer(tasks)
        sacct = _start(
            "sacct", "--allocations", "--array", "--noheader", "--parsable2", f"--jobs={self.ids}",
            "--format=JobID,State,ExitCode,NodeList",
        )  # fmt: skip
        if isinstance(sacct, str):
            return Answer(tasks)
        lines, problem = _finish(sacct)
        if problem:  # a cluster without accounting answers so; what squeue forgot is told by the folder
            return Answer(tasks)
        return Answer({**dict(filter(None, map(_sacct_row, lines))), **tasks})


def explained(reason: str) -> str:
    """Slurm's reason with what it means, where that is known."""
    meaning = REASONS.get(reason) or next((text for name, text in REASONS.items() if reason.startswith(name)), "")
    return f"{reason} ({meaning})" if meaning else reason


def _start(*words: str) -> subprocess.Popen[str] | str:
    """The command, running; or one line that says why it does not."""
    if shutil.which(words[0]) is None:
        return f"{words[0]} is not on this machine's PATH"
    return subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _finish(process: subprocess.Popen[str]) -> tuple[list[str], str]:
    """Its output, and one line that says why there is none, if so."""
    try:
        out, said = process.communicate(timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return [], f"no answer within {PATIENCE_S:.0f} s"
    if process.returncode:
        return [], one_line(said) or f"exit code {process.returncode}"
    return out.splitlines(), ""


def _squeue_row(line: str) -> tuple[Task, TaskState]:
    fields, at = {}, 0
    for name, size in COLUMNS:
        fields[name] = line[at : at + size].strip()
        at += size
    index = int(fields["ArrayTaskID"]) if fields["ArrayTaskID"].isdecimal() else 0  # N/A where it is no array
    restarts = int(fields["RestartCnt"]) if fields["RestartCnt"].isdecimal() else 0
    reason = "" if fields["Reason"] == "None" else fields["Reason"]
    return Task(fields["ArrayJobID"], index), TaskState(fields["State"], reason, line[at:].strip(), restarts)


def _sacct_row(line: str) -> tuple[Task, TaskState] | None:
    name, state, code, nodes = (line.split("|") + ["", "", ""])[:4]
    job_id, _, index = name.partition("_")
    if index and not index.isdecimal():  # tasks that were never told apart
        return None
    word = state.split()[0] if state.split() else ""  # "CANCELLED by 1000"
    exit_code, _, number = code.partition(":")
    how = (
        f"signal {number}"
        if number not in ("", "0")
        else f"exit code {exit_code}"
        if exit_code not in ("", "0")
        else ""
    )
    return Task(job_id, int(index or 0)), TaskState(word, how, "" if nodes == "None assigned" else nodes)
