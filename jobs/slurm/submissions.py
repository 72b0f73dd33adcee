"""What was handed to Slurm: RUN/slurm/submissions.jsonl, one line for each sbatch, in the order they were given.

Array task i of a submission runs the element labels[i]. An element that was submitted again belongs to its latest line.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from curricula.durable import append_jsonl
from curricula.errors import UserError
from curricula.jobs.run import Run


class Submission(msgspec.Struct, frozen=True, kw_only=True):
    """One job array, as sbatch accepted it."""

    job: str
    """Its name in the study's graph."""
    job_id: str
    """Slurm's number of the array."""
    labels: tuple[str, ...]
    """The element that each array task runs."""
    submitted: float
    """Unix time."""


class Task(NamedTuple):
    """One array task: what Slurm calls `job_id`_`index`."""

    job_id: str
    number: int

    def __str__(self) -> str:
        return f"{self.job_id}_{self.number}"


def record(run: Run, submission: Submission) -> None:
    """Append the line and sync it: after this a crash cannot make the job be forgotten."""
    append_jsonl(run.submissions, [msgspec.to_builtins(submission)])


def submissions(run: Run) -> list[Submission]:
    """All that was submitted, oldest first. A last line that a kill cut short is left out.

    Raises UserError that names the file and line when a whole line is something else.
    """
    try:
        lines = run.submissions.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return []
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            found.append(msgspec.json.decode(line, type=Submission))
        except msgspec.DecodeError as error:
            raise UserError(
                f"{run.submissions}: line {number} is no submission ({error}); remove the line, and `scancel` its job "
                "if Slurm still has it"
            ) from None
    return found


def latest_tasks(submitted: list[Submission]) -> dict[tuple[str, str], Task]:
    """For each (job, element label) that was ever submitted, the array task that counts."""
    return {
        (submission.job, label): Task(submission.job_id, index)
        for submission in submitted
        for index, label in enumerate(submission.labels)
    }
