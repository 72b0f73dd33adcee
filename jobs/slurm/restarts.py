"""How often an element was put back into the queue without getting on: a job that never will must not come back for ever.

Slurm counts restarts; beside the element lies what it had saved, and Slurm's count, when it last had something new.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import msgspec

from curricula.durable import read_json, write_json
from curricula.errors import UserError
from curricula.jobs.stages import STAGES, Work

LIMIT = "CURRICULA_RESTARTS_WITHOUT_PROGRESS"


class GaveUp(UserError):
    """The element was restarted too often without progress."""

    exit_code = 93
    """As NVIDIA's resiliency extension has it: do not start this job again."""


class Standstill(msgspec.Struct, frozen=True):
    """What restarts.json holds."""

    saved: int
    """How much the element had saved when that last grew: steps of the latest checkpoint, or bytes of rows."""
    restarts: int
    """Slurm's count of restarts then."""
    task: str
    """The array task whose count that is."""


def check_restarts(work: Work, environment: Mapping[str, str] = os.environ) -> None:
    """Note this start; raises GaveUp when the last ones saved nothing new, as many as the environment allows.

    Does nothing outside of Slurm.
    """
    limit, job_id = environment.get(LIMIT), environment.get("SLURM_ARRAY_JOB_ID")
    if not limit or not job_id:
        return
    path, stage = work.folder / "restarts.json", STAGES[work.job.stage]
    now = Standstill(
        saved=stage.saved(work),
        restarts=int(environment.get("SLURM_RESTART_COUNT", "0")),
        task=f"{job_id}_{environment.get('SLURM_ARRAY_TASK_ID', '0')}",
    )
    before = _read(path)
    if before is None or before.task != now.task or now.saved > before.saved:
        write_json(path, msgspec.to_builtins(now))
    elif now.restarts - before.restarts >= int(limit):
        raise GaveUp(
            f"{work.name}: restarted {now.restarts - before.restarts} times without progress (still at "
            f"{now.saved} saved {stage.unit}), so it is not started again and what waits for it is cancelled; mend the cause "
            f"and submit again. The last error: {_last_error(path.parent)}"
        )


def _last_error(folder: Path) -> str:
    """What the start before this one ended with; the batch script puts it aside."""
    try:
        return str(read_json(folder / "failed-before.json")["error"])
    except (UserError, KeyError, TypeError):
        return "none was noted; see its log"


def _read(path: Path) -> Standstill | None:
    """What the file holds; None where there is none, or where someone else wrote it: counting then begins anew."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Standstill)
    except (FileNotFoundError, msgspec.DecodeError):
        return None
