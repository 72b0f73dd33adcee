"""What Slurm has of a run: which elements are queued or running, and jobs that a killed submission did not come to record."""

from __future__ import annotations

import itertools
import re
import shutil
import subprocess
import time
from dataclasses import dataclass

import tenacity

from curricula.errors import UserError
from curricula.jobs.plan import Key
from curricula.jobs.run import Run
from curricula.jobs.slurm.script import Contents, contents_in
from curricula.jobs.slurm.submissions import Submission, Task, latest_tasks, record, submissions

PATIENCE_S = 300.0
"""How long a controller that restarts is waited for."""
AWAY = re.compile(
    r"Unable to contact slurm controller|Socket timed out|Zero Bytes were transmitted|Connection refused|Connection timed out|"
    r"Slurm backup controller|Slurmctld.*(down|not running)|Transport endpoint|Slurm temporarily unable",
    re.IGNORECASE,
)
COLUMNS = (("ArrayJobID", 24), ("ArrayTaskID", 24), ("State", 24), ("Reason", 96), ("STDOUT", 4096))


class ControllerAway(UserError):
    """Slurm's controller does not answer, for now."""


def is_away(said: str) -> bool:
    return AWAY.search(said) is not None


def require_slurm() -> None:
    if shutil.which("sbatch") is None:
        raise UserError(
            "sbatch is not on this machine's PATH; give the command on a login node, or use --cluster local"
        )


def patiently(say: object = None) -> tenacity.Retrying:
    """Tries again while the controller is away, up to PATIENCE_S; then raises ControllerAway."""

    def tell(state: tenacity.RetryCallState) -> None:
        if state.attempt_number == 1 and callable(say):
            say("Slurm's controller does not answer; waiting for it …")

    return tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(ControllerAway),
        stop=tenacity.stop_after_delay(PATIENCE_S),
        wait=tenacity.wait_exponential(multiplier=0.5, max=10),
        before_sleep=tell,
        reraise=True,
    )


@dataclass(frozen=True)
class Queued:
    """One array task that Slurm has in its queue."""

    task: Task
    state: str
    reason: str
    output: str
    """Where its log goes: by this, each run's jobs are known."""

    @property
    def is_hopeless(self) -> bool:
        """Whether it waits for what can never come."""
        return self.state == "PENDING" and self.reason == "DependencyNeverSatisfied"


def queued_tasks() -> list[Queued]:
    """All array tasks of this user in the queue, by one call of squeue."""
    layout = ",".join(f"{name}:{size}" for name, size in COLUMNS)
    try:
        asked = subprocess.run(
            ["squeue", "--me", "--array", "--noheader", f"--Format={layout}"],
            capture_output=True,
            text=True,
            timeout=60,
        )
    except subprocess.TimeoutExpired:
        raise ControllerAway("squeue gave no answer within 60 s") from None
    if asked.returncode:
        said = " ".join(asked.stderr.split()) or f"exit code {asked.returncode}"
        raise (ControllerAway if is_away(said) else UserError)(f"squeue: {said}")
    found = []
    ends = list(itertools.accumulate(size for _, size in COLUMNS))
    for line in asked.stdout.splitlines():
        job_id, number, state, reason, output = (line[a:b].strip() for a, b in zip([0, *ends], ends))
        if job_id.isdecimal() and number.isdecimal():  # others are no arrays, so not ours
            found.append(Queued(Task(job_id, int(number)), state, reason, output))
    return found


def recover(run: Run, queued: list[Queued]) -> list[Submission]:
    """Record jobs of this run that Slurm took from a submission that was killed before it could, by whatever command.

    One that would hide a task which is recorded and alive is left alone: somebody gave part of an array to sbatch by hand.
    """
    known = {submission.job_id for submission in submissions(run)}
    folder = f"{run.slurm.resolve()}/"
    places: dict[str, set[int]] = {}
    for one in queued:
        if one.task.job_id not in known and one.output.startswith(folder):
            places.setdefault(one.task.job_id, set()).add(one.task.number)
    alive, found = live_elements(run, queued), []
    for job_id in sorted(places, key=int):
        runs = contents_of(job_id)
        if runs is None:
            continue
        elsewhere = {label for number, label in enumerate(runs.labels) if number not in places[job_id]}
        if not any((runs.job, label) in alive for label in elsewhere):
            found.append(Submission(job=runs.job, job_id=job_id, labels=runs.labels, submitted=time.time()))
            record(run, found[-1])
    return found


def contents_of(job_id: str) -> Contents | None:
    """What an array of this suite runs, by the script that Slurm has of it; None for another's, or one that has just ended.

    Raises ControllerAway when Slurm cannot be asked.
    """
    words = ["scontrol", "write", "batch_script", job_id, "-"]
    try:
        asked = subprocess.run(words, capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired:
        raise ControllerAway("scontrol gave no answer within 60 s") from None
    if asked.returncode and is_away(asked.stderr):  # not to know whose job it is must not lead to a second one
        raise ControllerAway(f"scontrol: {' '.join(asked.stderr.split())}")
    return contents_in(asked.stdout)


def live_elements(run: Run, queued: list[Queued]) -> dict[Key, Task]:
    """The elements that Slurm will still run, or runs, by the array task that does."""
    alive = {one.task for one in queued if not one.is_hopeless}
    return {key: task for key, task in latest_tasks(submissions(run)).items() if task in alive}


def cancel_hopeless(run: Run, queued: list[Queued]) -> None:
    """Take out of the queue what waits for a job that failed; elements that are submitted anew must not be there twice."""
    ours = set(latest_tasks(submissions(run)).values())
    hopeless = [str(one.task) for one in queued if one.is_hopeless and one.task in ours]
    for start in range(0, len(hopeless), 500):  # the length of a command line is limited
        subprocess.run(["scancel", *hopeless[start : start + 500]], check=False, timeout=60)
