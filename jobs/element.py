"""Run one element of a study's plan in this process; every launcher ends here.

    python -m curricula.jobs.element runs/demo pretrain-20 full-20

`done.json` is written last, after all outputs are durable. An interrupted element resumes where its outputs end.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import NoReturn

import msgspec

from curricula import fencing
from curricula.durable import exclusive_lock, write_json
from curricula.errors import UsageError, UserError
from curricula.fencing import Superseded
from curricula.jobs.completion import Done, Failure, is_done, marks_read, read_failure
from curricula.jobs.graph import plan_study
from curricula.jobs.monitor.logs import note
from curricula.jobs.monitor.progress import Announced, notify
from curricula.jobs.run import Run
from curricula.jobs.slurm.commands import own_task, restart_count
from curricula.jobs.slurm.profile import Profile, kept_profile
from curricula.jobs.slurm.restarts import LIMIT, GaveUp, check_restarts
from curricula.jobs.stages import STAGES, Training, Work
from curricula.model.runtime.stopping import Interrupted
from curricula.progress import silent
from curricula.secrets import without_userinfo
from curricula.terminal import guarded_output

FINAL = (UserError.exit_code, UsageError.exit_code, GaveUp.exit_code)
"""Exit codes of errors that another start cannot cure. All others lead to another start, from the last checkpoint."""
DEAD_HOLDER_S = 15.0
"""How long to wait for a lock: an earlier process of the element may need that long to notice that its launcher died."""


def run_element(root: Path, job_name: str, label: str) -> None:
    """Do the work of one element and mark it as done. Errors go to failed.json before they are raised; interrupts do not."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("curricula").setLevel(logging.INFO)
    run = Run.open(root)
    run.admit()
    try:
        plan = plan_study(run.study)
        work = Work(run, plan, *plan.find(job_name, label))
    except UserError as error:
        if _rank() == 0 and _is_final(error):  # after other errors Slurm starts the element again
            _note_failure(run, f"{job_name}/{label}", run.element(job_name, label), error, _profile(run))
        raise
    if isinstance(STAGES[work.job.stage], Training) and work.study.resources.tensor_parallel > 1:
        # Megatron-core's layers then expect kernels to start in launch order. CUDA reads this when it begins, in the preflight.
        os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    if _rank() != 0:  # only the first process marks the element
        _share(work)
        return
    with contextlib.ExitStack() as stack:
        lock = work.folder / "lock"
        stack.enter_context(exclusive_lock(lock, wait_s=DEAD_HOLDER_S))
        if is_done(work):
            return
        if shared := STAGES[work.job.stage].shared(work):
            stack.enter_context(exclusive_lock(shared / "lock", wait_s=DEAD_HOLDER_S))
        _run_first(work, stack.enter_context(fencing.generation(lock)).number)


def _run_first(work: Work, generation: int) -> None:
    stage, folder = STAGES[work.job.stage], work.folder
    (folder / "done.json").unlink(missing_ok=True)
    (folder / "failed.json").unlink(missing_ok=True)
    started, began, read = time.time(), time.monotonic(), marks_read(work)
    profile = Profile()
    try:
        profile = _profile(work.run)
        check_restarts(work)
        _check_nodes(work, profile)
        stage.run(work, Announced(folder / "progress.json", work.element.seed))
    except (Interrupted, Superseded):
        raise
    except Exception as error:
        _note_failure(work.run, work.name, folder, error, profile)
        raise
    seconds = round(time.monotonic() - began, 3)
    mark = Done(seconds=seconds, started=started, read=read, generation=generation, made=stage.made(work))
    write_json(folder / "done.json", msgspec.to_builtins(mark))
    if stage.ends_study:
        notify(profile.notify, "done", work.run.root, work.name, "")


def _share(work: Work) -> None:
    """Do the work of a process other than the first. It reports only errors that another start would meet again."""
    if is_done(work):  # the first process does nothing either
        return
    profile = _profile(work.run)
    try:
        _check_nodes(work, profile)
        STAGES[work.job.stage].run(work, silent)
    except UserError as error:
        if _is_final(error) and not (work.folder / "failed.json").exists():
            _note_failure(work.run, work.name, work.folder, error, profile)
        raise


def _profile(run: Run) -> Profile:
    """The cluster's profile; the defaults if the run was never submitted to a cluster, or if this code cannot read it."""
    try:
        return kept_profile(run.profile) if run.profile.exists() else Profile()
    except UsageError as error:  # newer code may have written it while this element waited in the queue
        note(f"preflight and notify use their defaults: {error}")
        return Profile()


def _check_nodes(work: Work, profile: Profile) -> None:
    """Run the preflight if several processes train together; else check the GPUs of the job, if it uses any."""
    processes = int(os.environ.get("WORLD_SIZE", os.environ.get("SLURM_STEP_NUM_TASKS", "1")))
    stage = STAGES[work.job.stage]
    if processes > 1 and isinstance(stage, Training):
        from curricula.jobs.preflight.preflight import preflight
        from curricula.model.runtime.distributed import read_ranks

        preflight(work.run, lambda: stage.inputs(work), read_ranks(), profile.preflight)
    elif stage.needs_torch and LIMIT in os.environ:  # started by the batch script
        from curricula.jobs.preflight.preflight import check_gpus

        check_gpus(work.run)


def _note_failure(run: Run, name: str, folder: Path, error: Exception, profile: Profile) -> None:
    """Write failed.json, and notify unless Slurm starts the element again.

    If the failure is `final`, the batch script does not requeue the job but ends with the recorded `exit_code`. It cannot use
    srun's own code, which is the highest of all processes and so that of those that srun killed.
    """
    code = error.exit_code if isinstance(error, UserError) else 1
    sentence = without_userinfo(str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}")
    task, is_final = own_task(), _is_final(error)
    with contextlib.suppress(UserError):
        if not is_final and read_failure(folder):
            return  # losing the process that noted it is what made this one fail
    failure = Failure(sentence, time.time(), is_final, task or "", restart_count())
    try:
        # Under a name of its own: all processes of a job that meet the same error write it at once.
        write_json(folder / "failed.json", {**msgspec.to_builtins(failure), "exit_code": code}, own=f".{secrets.token_hex(4)}")
    except Superseded:
        raise
    except (OSError, UserError) as problem:  # a full disk must not hide the error
        note(f"the failure could not be recorded: {problem}")
    if is_final or task is None:
        notify(profile.notify, "failed", run.root, name, sentence)


def _is_final(error: Exception) -> bool:
    return isinstance(error, UserError) and error.exit_code in FINAL


def _rank() -> int:
    """The rank of this process among those that torchrun or srun started for the element; 0 if it is the only one."""
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")))


def main(arguments: list[str]) -> int:
    """Run the element and return the exit code; errors go to standard error. A process of a group that is left open by an error
    ends here (`group_until_end` of curricula.model.runtime.distributed)."""
    if len(arguments) != 3:
        print(__doc__, file=sys.stderr)
        return 2
    root, job_name, label = arguments
    note(f"{job_name}/{label}, rank {_rank()} on {socket.gethostname()}, process {os.getpid()}")
    with guarded_output():  # to the log
        code = _exit_code(Path(root), job_name, label)
        group = sys.modules.get("torch.distributed")
        if group and group.is_available() and group.is_initialized():
            _leave(code)
        return code


def _exit_code(root: Path, job_name: str, label: str) -> int:
    try:
        run_element(root, job_name, label)
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        return stop.exit_code if _rank() == 0 else 0  # srun kills the other processes when one ends with an error
    except Exception as error:
        note("failed")
        if isinstance(error, UserError):
            print(f"curricula: {error}", file=sys.stderr)
            return error.exit_code
        traceback.print_exc()
        return 1
    return 0


def _leave(code: int) -> NoReturn:
    """End this process at once. Otherwise NCCL would first wait for processes that wait for this one. Once it is gone, srun or
    torchrun ends those."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
