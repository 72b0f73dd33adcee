"""What each element of a run has come to, read from the run folder alone."""

from __future__ import annotations

import fcntl
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from curriculum.durable import read_json
from jobs.element import is_done
from jobs.graph import Element, Job
from jobs.progress import Reading, read_progress
from jobs.run import Run

State = Literal["done", "running", "failed", "interrupted", "waiting"]


@dataclass(frozen=True)
class ElementStatus:
    job: str
    stage: str
    label: str
    state: State
    progress: Reading | None
    seconds: float | None  # how long it took, when it is done
    error: str


def run_status(run: Run, jobs: list[Job]) -> list[ElementStatus]:
    return [element_status(run, job, element) for job in jobs for element in job.elements]


def element_status(run: Run, job: Job, element: Element) -> ElementStatus:
    folder = run.element(job.name, element.label)
    seconds, error = None, ""
    state: State = "waiting"
    if is_done(run, job, element):
        state, seconds = "done", read_json(folder / "done.json")["seconds"]
    elif _is_held(folder / "lock"):
        state = "running"
    elif (folder / "failed.json").exists():
        state, error = "failed", read_json(folder / "failed.json")["error"]
    elif (folder / "progress.json").exists():
        state = "interrupted"
    return ElementStatus(
        job.name, job.stage, element.label, state, read_progress(folder / "progress.json"), seconds, error
    )


def _is_held(lock: Path) -> bool:
    """Whether a live process has the element's lock."""
    try:
        with open(lock) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
