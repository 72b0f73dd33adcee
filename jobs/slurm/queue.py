"""What Slurm has of a run: which elements are queued or running, and jobs that a killed submission did not come to record."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import tenacity

from curriculum.errors import UserError
from jobs.run import Run
from jobs.slurm.script import contents_of
from jobs.submissions import Submission, Task, latest_tasks, record, submissions

PATIENCE_S = 300.0
"""How long a controller that restarts is waited for."""
AWAY = re.compile(
    r"Unable to contact slurm controller|Socket timed out|Zero Bytes were transmitted|Connection refused|Connection timed out|"
    r"Slurm backup controller|Slurmctld.*(down|not running)|Transport endpoint|Slurm temporarily unable",
    re.IGNORECASE,
)
Key = tuple[str, str]  # job name, element label


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
    script: str

    @property
    def is_hopeless(self) -> bool:
        """Whether it waits for what can never come."""
        return self.state == "PENDING" and self.reason == "DependencyNeverSatisfied"


def queued_tasks() -> list[Queued]:
    """All array tasks of this user in the queue, by one call of squeue."""
    try:
        asked = subprocess.run(
            ["squeue", "--me", "--array", "--noheader", "--format=%F|%K|%T|%r|%o"],
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
    for line in asked.stdout.splitlines():
        job_id, number, state, reason, script = line.split("|", 4)
        if number.isdecimal():  # others are no arrays, so not ours
            found.append(Queued(Task(job_id, int(number)), state, reason, script))
    return found


def recover(run: Run, queued: list[Queued]) -> list[Submission]:
    """Record jobs of this run that Slurm took from a submission that was killed before it could, by whatever command."""
    known = {submission.job_id for submission in submissions(run)}
    found = []
    root = str(run.root.resolve())
    for job_id, script in sorted({(one.task.job_id, one.script) for one in queued if one.task.job_id not in known}):
        # submitit renames a script once sbatch has returned; Slurm goes on calling it by its old name.
        ours = contents_of(Path(script)) or contents_of(run.slurm / f"{job_id}_submission.sh")
        if ours and ours.run == root:
            found.append(Submission(job=ours.job, job_id=job_id, labels=ours.labels, submitted=time.time()))
            record(run, found[-1])
    return found


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
