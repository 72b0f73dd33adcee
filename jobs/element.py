"""Run one element of a study's graph in this process; every launcher ends here.

    python -m curricula.jobs.element runs/demo pretrain-20 full-20

An element is done when its done.json is there, which is written last, after everything the element made is durable. Running a
done element again does nothing; running an interrupted one goes on where its outputs end.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import time
from pathlib import Path

from curricula.durable import exclusive_lock, write_json
from curricula.errors import UsageError, UserError
from curricula.jobs.graph import Element, Job
from curricula.jobs.monitor.logs import note
from curricula.jobs.monitor.notifications import announced, notify
from curricula.jobs.monitor.progress import ProgressFile
from curricula.jobs.run import Run
from curricula.jobs.slurm.profile import TRAINING, Profile, profile_of
from curricula.jobs.slurm.restarts import GaveUp, check_restarts
from curricula.jobs.stages.stages import STAGES, is_intact
from curricula.model.runtime.signals import Interrupted
from curricula.progress import silent

FINAL = (UserError.exit_code, UsageError.exit_code, GaveUp.exit_code)
"""Exit codes of what starting again cannot mend. All others lead to another start, from the last checkpoint."""
DEAD_HOLDER_S = 15.0  # how long a predecessor may take to notice that its launcher died


def run_element(root: Path, job_name: str, label: str) -> None:
    """Do the work of one element and mark it done; raises whatever stopped it, after noting it in failed.json."""
    _log_to_stderr()
    run = Run.open(root)
    job, element = find_element(run, job_name, label)
    folder = run.element(job_name, label)
    if not _is_first_process():  # the first marks the element; the others only do their share
        _share(run, job, element)
        return
    with exclusive_lock(folder / "lock", wait_s=DEAD_HOLDER_S):
        if is_done(run, job, element):
            return
        (folder / "done.json").unlink(missing_ok=True)
        (folder / "failed.json").unlink(missing_ok=True)
        started = time.time()
        profile = Profile()
        try:
            check_restarts(run, job, element)
            profile = _profile(run)
            _check_nodes(run, job, element, profile)
            STAGES[job.stage](run, job, element, announced(ProgressFile(folder / "progress.json")))
        except Interrupted:
            raise
        except Exception as error:
            _note_failure(folder, error)
            notify(profile.notify, "failed", root, f"{job_name}/{label}", _sentence(error))
            raise
        write_json(folder / "done.json", {"started": started, "seconds": round(time.time() - started, 3)})
        if job.stage == "report":  # the last of all
            notify(profile.notify, "done", root, f"{job_name}/{label}", "")


def _share(run: Run, job: Job, element: Element) -> None:
    """What the processes beside the first do. They say only what nobody else can know: that starting again is of no use."""
    if is_done(run, job, element):  # the first will not begin either
        return
    try:
        _check_nodes(run, job, element, _profile(run))
        STAGES[job.stage](run, job, element, silent)
    except UserError as error:
        folder = run.element(job.name, element.label)
        if _is_final(error) and not (folder / "failed.json").exists():
            _note_failure(folder, error)
        raise


def _profile(run: Run) -> Profile:
    """The cluster's profile; that of no cluster in particular where the run was not submitted to one."""
    return profile_of(run) if run.profile.exists() else Profile()


def _check_nodes(run: Run, job: Job, element: Element, profile: Profile) -> None:
    """The preflight, where several processes train together."""
    processes = int(os.environ.get("WORLD_SIZE", os.environ.get("SLURM_STEP_NUM_TASKS", "1")))
    if processes > 1 and job.stage in TRAINING:
        from curricula.jobs.preflight.preflight import preflight
        from curricula.model.runtime.distributed import read_ranks

        preflight(run, job, element, read_ranks(), profile.preflight)


def _note_failure(folder: Path, error: Exception) -> None:
    """Leave failed.json; `final` says that the same would happen again, so that the batch script does not requeue it but ends
    with `exit_code`. Of many processes srun tells the highest code only, which is that of those it ended."""
    code = error.exit_code if isinstance(error, UserError) else 1
    failed = {"error": _sentence(error), "time": time.time(), "final": _is_final(error), "exit_code": code}
    write_json(folder / "failed.json", failed)


def _sentence(error: Exception) -> str:
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"


def _is_final(error: Exception) -> bool:
    return isinstance(error, UserError) and error.exit_code in FINAL


def _log_to_stderr() -> None:
    """What the suite's own packages have to say goes to the element's log, other packages' warnings too."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
    for package in ("curriculum", "model", "eval", "jobs"):
        logging.getLogger(package).setLevel(logging.INFO)


def is_done(run: Run, job: Job, element: Element) -> bool:
    """Whether the element's mark is there and so is what it stands for."""
    mark = run.element(job.name, element.label) / "done.json"
    return mark.exists() and is_intact(run, job, element)


def _is_first_process() -> bool:
    """Whether this is the only or the first of the processes that torchrun or srun started for one element."""
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))) == 0


def find_element(run: Run, job_name: str, label: str) -> tuple[Job, Element]:
    jobs = {job.name: job for job in run.jobs}
    if job_name not in jobs:
        raise UsageError(f"job {job_name!r} is not in this study; its jobs are {', '.join(jobs)}")
    elements = {element.label: element for element in jobs[job_name].elements}
    if label not in elements:
        raise UsageError(f"job {job_name} has no element {label!r}; it has {', '.join(elements)}")
    return jobs[job_name], elements[label]


def main(arguments: list[str]) -> int:
    if len(arguments) != 3:
        print(__doc__, file=sys.stderr)
        return 2
    rank = os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))
    note(f"{arguments[1]}/{arguments[2]}, rank {rank} on {socket.gethostname()}, process {os.getpid()}")
    try:
        run_element(Path(arguments[0]), arguments[1], arguments[2])
    except UserError as error:
        note("failed")
        print(f"curricula: {error}", file=sys.stderr)
        return error.exit_code
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        return stop.exit_code if _is_first_process() else 0  # srun ends the others when one leaves with an error
    except Exception:
        note("failed")
        raise
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
