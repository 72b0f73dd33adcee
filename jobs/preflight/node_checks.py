"""The checks of one node: healthy GPUs, free disk space, readable data and checkpoints, a writable run folder.

Each check returns a sentence for each problem. GPUs are checked with nvidia-smi, which comes with every driver. If it is not
installed, as on a machine without GPUs, that check is skipped.
"""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from curricula.errors import UsageError, UserError
from curricula.terminal import one_line

SLOWDOWNS = ("hw_thermal_slowdown", "hw_power_brake_slowdown")
"""Reasons why a GPU counts as slowed down. hw_slowdown, which combines them, is left out: according to nvidia-smi's manual it
can also be active while a GPU merely changes its clocks."""
QUERY = (
    "index", "memory.total", "memory.used", "ecc.errors.uncorrected.volatile.total", "temperature.gpu",
    *(f"clocks_throttle_reasons.{reason}" for reason in SLOWDOWNS),
)  # fmt: skip
SMI_PATIENCE_S = 60.0
USED_SHARE = 0.05
"""Largest share of a GPU's memory that can be in use before the job begins. If more is, another program is still running."""

SIMULATED = "CURRICULA_SIMULATED_GPUS"
"""Environment variable with which a profile says that Slurm's GPUs are simulated, so that the CPU does the work."""


def job_gpu_problems(is_alone: bool = True) -> list[str]:
    """Problems of the GPUs that the job has on this node; none if it requested no GPUs. `is_alone`: as for `gpu_problems`.

    Raises UsageError if torch is built without support for GPUs, since no node is to blame for that.
    """
    expected = os.environ.get("SLURM_GPUS_ON_NODE", "")
    if not expected.isdecimal() or int(expected) == 0:
        return []
    ours = os.environ.get("SLURM_STEP_GPUS") or os.environ.get("SLURM_JOB_GPUS")
    # In a thread, because nothing can kill an nvidia-smi that waits in a driver that hangs.
    found = within(1.2 * SMI_PATIENCE_S, "nvidia-smi", lambda: gpu_problems(int(expected), ours, is_alone))
    return found or torch_problems()


def torch_problems() -> list[str]:
    """A problem if torch sees none of the GPUs that Slurm assigned to this process."""
    if not os.environ.get("CUDA_VISIBLE_DEVICES") or SIMULATED in os.environ:
        return []
    import torch

    if torch.cuda.is_available():
        return []
    seen = f"torch {torch.__version__} sees no GPU, though the job has some"  # the same text on all nodes with this problem
    if torch.version.cuda is None and getattr(torch.version, "hip", None) is None:
        raise UsageError(f"{seen}, because it is built for CPUs only; install another with env/gpu/install")
    return [f"{seen}; env/gpu/check says why"]


def gpu_problems(expected: int, ours: str | None = None, is_alone: bool = True) -> list[str]:
    """Problems of this node's GPUs. `ours`: Slurm's list of the job's GPUs, for nodes where a job sees the others' GPUs too.

    `is_alone`: whether the job has its GPUs to itself and a slow one slows the whole job. If not, only GPUs that cannot compute
    are a problem.
    """
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SMI_PATIENCE_S)
    except subprocess.TimeoutExpired:
        return [f"nvidia-smi gave no answer within {SMI_PATIENCE_S:.0f} s"]
    if done.returncode:
        return [f"nvidia-smi failed: {one_line(done.stderr or done.stdout)[:300] or f'exit code {done.returncode}'}"]
    gpus = [dict(zip(QUERY, row)) for row in csv.reader(done.stdout.splitlines(), skipinitialspace=True) if row]
    if len(gpus) > expected and (ours or not is_alone):
        gpus = [gpu for gpu in gpus if gpu["index"] in (ours or "").split(",")]
        if not gpus and not is_alone:  # it is unknown which are ours: Slurm numbers the parts of a divided GPU too
            return []
    found = [problem for gpu in gpus for problem in _gpu_problems(gpu, is_alone)]
    if len(gpus) < (expected if is_alone else 1):
        return [f"{len(gpus)} of {expected} GPUs answer", *found]
    return found


def _gpu_problems(gpu: Mapping[str, str], is_alone: bool) -> Iterable[str]:
    name = f"GPU {gpu['index']}"
    if any("lost" in value.lower() or "unknown error" in value.lower() for value in gpu.values()):
        yield f"{name} does not answer ({', '.join(gpu.values())})"
        return
    if errors := _number(gpu.get("ecc.errors.uncorrected.volatile.total", "")):
        yield f"{name} has {errors:.0f} uncorrected memory errors (ECC)"
    if not is_alone:
        return
    for reason in SLOWDOWNS:
        if gpu.get(f"clocks_throttle_reasons.{reason}", "") == "Active":
            yield f"{name} is slowed down by its hardware ({reason}, {gpu.get('temperature.gpu', '?')} C)"
    used, total = _number(gpu.get("memory.used", "")), _number(gpu.get("memory.total", ""))
    if used is not None and total and used / total > USED_SHARE:
        yield f"{name} has {used / 1024:.1f} of {total / 1024:.0f} GiB in use before the job began"


def _number(text: str) -> float | None:
    """A value as a number; None if it is missing, which nvidia-smi writes as "[N/A]"."""
    try:
        return float(text)
    except ValueError:
        return None


def disk_problems(folders: Iterable[Path], min_free_gb: float) -> list[str]:
    """Folders whose disk has too little free space. Folders that do not exist are skipped; `reach_problems` reports them."""
    free_gb = {folder: shutil.disk_usage(folder).free / 1e9 for folder in folders if folder.is_dir()}
    required = f"but {min_free_gb:g} GB are required"
    return [f"{folder}: {free:.1f} GB are free, {required}" for folder, free in free_gb.items() if free < min_free_gb]


def reach_problems(run_root: Path, needed: Iterable[Path]) -> list[str]:
    """The `needed` files that this node cannot read, and the run folder if it cannot write to it."""
    found = []
    for path in needed:
        try:
            with open(path, "rb") as file:
                file.read(1)
        except OSError as error:
            found.append(f"{path}: cannot be read from this node ({error.strerror})")
    try:
        with tempfile.TemporaryFile(dir=run_root) as probe:
            probe.write(b"x")
    except OSError as error:
        found.append(f"{run_root}: cannot be written to from this node ({error.strerror})")
    return found


def within(patience_s: float, what: str, check: Callable[[], list[str]]) -> list[str]:
    """The problems that `check` finds, or a problem if it does not end in time. A hanging file system must not hang the job."""
    found: list[list[str]] = []

    def work() -> None:
        try:
            found.append(check())
        except (OSError, UserError) as error:
            found.append([f"{what}: {error}"])

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(patience_s)
    return found[0] if found else [f"{what}: no answer within {patience_s:.0f} s"]
