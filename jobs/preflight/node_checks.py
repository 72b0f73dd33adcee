"""The checks of one node: healthy GPUs, free disk space, readable data and checkpoints, a writable run folder.

Each check returns a sentence for each problem. GPUs are checked with nvidia-smi, which comes with every driver; where there is
none, as on a CPU, they are not checked.
"""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import threading
import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from curricula.errors import UserError
from curricula.terminal import one_line

QUERY = (
    "index", "memory.total", "memory.used", "ecc.errors.uncorrected.volatile.total", "temperature.gpu",
    "clocks_throttle_reasons.hw_slowdown", "clocks_throttle_reasons.hw_thermal_slowdown",
)  # fmt: skip
SMI_PATIENCE_S = 60.0
USED_SHARE = 0.05
"""A GPU with a larger share of its memory in use before the job begins still runs another program."""


def gpu_problems(expected: int, ours: str | None = None) -> list[str]:
    """Problems of this node's GPUs. `ours`: Slurm's list of the job's GPUs, for nodes that show a job the other GPUs too."""
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
    if len(gpus) > expected and ours:
        gpus = [gpu for gpu in gpus if gpu["index"] in ours.split(",")]
    if len(gpus) < expected:
        return [f"{len(gpus)} of {expected} GPUs answer", *(problem for gpu in gpus for problem in _gpu(gpu))]
    return [problem for gpu in gpus for problem in _gpu(gpu)]


def _gpu(gpu: Mapping[str, str]) -> Iterable[str]:
    name = f"GPU {gpu['index']}"
    if any("lost" in value.lower() or "unknown error" in value.lower() for value in gpu.values()):
        yield f"{name} does not answer ({', '.join(gpu.values())})"
        return
    errors = _number(gpu.get("ecc.errors.uncorrected.volatile.total", ""))
    if errors:
        yield f"{name} has {errors:.0f} uncorrected memory errors (ECC)"
    for reason in ("hw_slowdown", "hw_thermal_slowdown"):
        if gpu.get(f"clocks_throttle_reasons.{reason}", "") == "Active":
            yield f"{name} is slowed down by its hardware ({reason}, {gpu.get('temperature.gpu', '?')} C)"
    used, total = _number(gpu.get("memory.used", "")), _number(gpu.get("memory.total", ""))
    if used is not None and total and used / total > USED_SHARE:
        yield f"{name} has {used / 1024:.1f} of {total / 1024:.0f} GiB in use before the job began"


def _number(text: str) -> float | None:
    """None for a missing value, which nvidia-smi writes as "[N/A]"."""
    try:
        return float(text)
    except ValueError:
        return None


def disk_problems(folders: Iterable[Path], min_free_gb: float) -> list[str]:
    """Folders whose disk has too little space; `reach_problems` reports those that do not exist."""
    found = []
    for folder in folders:
        if folder.is_dir():
            free_gb = shutil.disk_usage(folder).free / 1e9
            if free_gb < min_free_gb:
                found.append(f"{folder}: {free_gb:.1f} GB are free, but {min_free_gb:g} GB are required")
    return found


def reach_problems(run_root: Path, needed: Iterable[Path]) -> list[str]:
    """Files that this node cannot read, and a run folder that it cannot write to."""
    found = []
    for path in needed:
        try:
            with open(path, "rb") as file:
                file.read(1)
        except OSError as error:
            found.append(f"{path}: cannot be read from this node ({error.strerror})")
    probe = run_root / f".preflight-{uuid.uuid4().hex}"
    try:
        probe.write_bytes(b"x")
        probe.unlink()
    except OSError as error:
        found.append(f"{run_root}: cannot be written to from this node ({error.strerror})")
    return found


def within(patience_s: float, what: str, check: Callable[[], list[str]]) -> list[str]:
    """The problems that `check` finds, or that it did not end in time: a file system that hangs would hang the job."""
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


def temporary_folders() -> list[Path]:
    return [Path(os.environ.get("TMPDIR", "/tmp"))]
