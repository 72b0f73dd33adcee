"""Stops an element that keeps restarting without progress.

The batch script writes a line to the element's `own-ends` for each start that ends by the element's own doing, such as an
error or the time limit, not for those that Slurm ends (preemption, a lost node, a requeue). The element's restarts.json holds
the amount of saved work. If that has grown, or a submission has deleted restarts.json, `own-ends` is deleted.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

from curricula.durable import write_json
from curricula.errors import UserError
from curricula.jobs.completion import read_failure
from curricula.jobs.stages import STAGES, Work

LIMIT = "CURRICULA_RESTARTS_WITHOUT_PROGRESS"
"""Environment variable in which the batch script passes on the profile's `restarts_without_progress`."""


class GaveUp(UserError):
    """The element was restarted too often without progress."""

    exit_code = 93
    """NVIDIA's resiliency extension uses 93 with the same meaning: do not start this job again."""


def check_restarts(work: Work) -> None:
    """Raise GaveUp if as many starts as the environment allows saved nothing new. Does nothing outside Slurm."""
    limit = os.environ.get(LIMIT)
    if not limit:
        return
    path, stage = work.folder / "restarts.json", STAGES[work.job.stage]
    ends, saved, before = work.folder / "own-ends", stage.saved(work), _saved_before(path)
    if before is None or saved > before:
        ends.unlink(missing_ok=True)
        write_json(path, {"saved": saved})
        return
    count = len(ends.read_bytes().splitlines()) if ends.exists() else 0
    if count >= int(limit):
        last = None
        with contextlib.suppress(UserError):  # a damaged mark must not hide that the element gives up
            last = read_failure(work.folder, "failed-before.json")  # the batch script sets aside that of the previous start
        raise GaveUp(
            f"restarted {count} times without progress (still at {saved} saved {stage.unit}), so it is not "
            "started again and jobs that wait for it are cancelled; fix the cause and submit again. The last error: "
            f"{last.error if last else 'none was recorded; see its log'}"
        )


def _saved_before(path: Path) -> int | None:
    """The amount of saved work in restarts.json; None if there is no such file, or if it holds something else."""
    try:
        return int(json.loads(path.read_bytes())["saved"])
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None
