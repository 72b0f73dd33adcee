"""Slurm's commands that change something: cancelling tasks, a job's comment, the nodes it avoids."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Mapping

from curricula.errors import UserError
from curricula.jobs.slurm.submissions import Task
from curricula.terminal import one_line

PATIENCE_S = 60.0


def scancel(tasks: Iterable[Task]) -> None:
    """Cancel exactly these array tasks, with one word for each array; raises UserError with what scancel says against it."""
    numbers: dict[str, list[int]] = {}
    for task in tasks:
        numbers.setdefault(task.job_id, []).append(task.number)
    if numbers:
        call("scancel", *(f"{job_id}_[{_ranges(of_job)}]" for job_id, of_job in numbers.items()))


def call(*words: str) -> str:
    """What the command prints; raises UserError when it cannot be run, takes too long or fails."""
    try:
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE_S)
    except FileNotFoundError:
        raise UserError(f"{words[0]}: not on this machine's PATH; go where Slurm's commands are") from None
    except subprocess.TimeoutExpired:
        raise UserError(
            f"{words[0]}: no answer within {PATIENCE_S:.0f} s; look at `scontrol ping` and repeat"
        ) from None
    if done.returncode:
        raise UserError(f"{words[0]}: {one_line(done.stderr) or f'exit code {done.returncode}'}; mend that and repeat")
    return done.stdout


def own_task(environment: Mapping[str, str]) -> str | None:
    """Slurm's name of the task this process belongs to, or None outside of Slurm.

    Not SLURM_JOB_ID alone: one task of an array has the array's own number, which would name them all.
    """
    array, number = environment.get("SLURM_ARRAY_JOB_ID"), environment.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{number}" if array and number else environment.get("SLURM_JOB_ID")


def _ranges(numbers: Iterable[int]) -> str:
    """Numbers as Slurm writes them: 0-3,7."""
    parts: list[list[int]] = []
    for number in sorted(set(numbers)):
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)
