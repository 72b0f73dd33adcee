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
from curricula.jobs.graph import Element, Job
from curricula.jobs.run import Run

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


def check_restarts(run: Run, job: Job, element: Element, environment: Mapping[str, str] = os.environ) -> None:
    """Note this start; raises GaveUp when the last ones saved nothing new, as many as the environment allows.

    Does nothing outside of Slurm.
    """
    limit, job_id = environment.get(LIMIT), environment.get("SLURM_ARRAY_JOB_ID")
    if not limit or not job_id:
        return
    path = run.element(job.name, element.label) / "restarts.json"
    now = Standstill(
        saved=saved(run, job, element),
        restarts=int(environment.get("SLURM_RESTART_COUNT", "0")),
        task=f"{job_id}_{environment.get('SLURM_ARRAY_TASK_ID', '0')}",
    )
    before = _read(path)
    if before is None or before.task != now.task or now.saved > before.saved:
        write_json(path, msgspec.to_builtins(now))
    elif now.restarts - before.restarts >= int(limit):
        unit = "steps" if job.stage in ("pretrain", "tune") else "bytes of results"
        raise GaveUp(
            f"{job.name}/{element.label}: restarted {now.restarts - before.restarts} times without progress (still at "
            f"{now.saved} saved {unit}), so it is not started again and what waits for it is cancelled; mend the cause and "
            f"submit again. The last error: {_last_error(path.parent)}"
        )


def saved(run: Run, job: Job, element: Element) -> int:
    """How much of an element's work would outlive this process: checkpointed steps, or bytes of rows; 0 where it is all or
    nothing."""
    if job.stage == "pretrain":
        return _latest_step(run.branch(element.segment.rpartition("@")[0]))
    if job.stage == "tune":
        return _latest_step(run.tuning(element.arm, element.kind))
    if job.stage == "evaluate":
        folder = run.evaluation(element.arm, element.kind)
        return sum(path.stat().st_size for path in folder.rglob("*.jsonl")) if folder.is_dir() else 0
    return 0


def _latest_step(line: Path) -> int:
    from curricula.model.checkpoints.folder import latest_checkpoint

    latest = latest_checkpoint(line / "checkpoints")
    return int(latest.name.rpartition("_")[2]) if latest else 0


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
