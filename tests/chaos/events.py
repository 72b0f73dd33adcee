"""What goes wrong on a cluster, as events. Each kind of event waits for its moment in a run and strikes an element."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any

import slurm_studies as studies
from paths import LAB_SCRIPTS, ROOT

JOBS = ("pretrain-trunk-8", "pretrain-50", "instruct-50", "evaluate-instruct-50", "merge-50", "report")
"""Jobs of the study that its report needs: all except those of base models and of the benign tuning."""
BEGINS = {"pretrain-trunk-8": 0, "pretrain-50": 8}
"""The step at which each job of pretraining begins."""
PATIENCE_S, POLL_S = 600.0, 0.1
Key = tuple[str, str]


class Missed(Exception):
    """The run was finished before the event could strike."""


@dataclass
class Disturbed:
    """A run on a lab, with all that events need to disturb it."""

    lab: Any
    root: Path
    study: Path
    profile: Path
    random: random.Random
    notes: list[str] = field(default_factory=list)
    """What events and the simulated user have done to the run."""

    @property
    def submission(self) -> list[str]:
        """The command that submits the study."""
        words = [sys.executable, "-m", "curricula.jobs.cli.main", "submit", self.study, "--cluster", "slurm", "--yes"]
        return list(map(str, [*words, "--profile", self.profile, "--run", self.root, "--job", ",".join(JOBS)]))

    def submit(self) -> str:
        return self.lab.run(*self.submission, check=False, stdin=subprocess.DEVNULL, cwd=ROOT)

    def queue(self) -> list[str]:
        """The run's tasks in the lab's queue, a line each. If the controller does not answer, its error counts as a line.

        Jobs of earlier rounds are left out: a killed controller can come back with some, although their folders are gone.
        """
        lines = self.lab.run("squeue", "--noheader", "--array", "--format=%F_%K %T %r|%o", check=False).splitlines()
        parts = [line.partition("|") for line in lines]
        return [line for line, mark, script in parts if not mark or script.startswith(f"{self.root}/")]

    def processes(self, program: str = "python") -> dict[Key, list[int]]:
        """The processes of each element: its ranks, or its launchers (`srun`)."""
        found: dict[Key, list[int]] = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
                if len(words) > 3 and words[-3] == str(self.root) and program in Path(words[0]).name:
                    found.setdefault((words[-2], words[-1]), []).append(int(folder.name))
        return {key: sorted(found[key]) for key in sorted(found)}

    def task(self, key: Key) -> str:
        return studies.task_of(self.root, *key)

    def restore(self) -> None:
        """Bring back what is down. A second try helps if a controller that forgot a start has drained the node of that job."""
        with contextlib.suppress(AssertionError):
            return self.lab.up()
        self.lab.up()

    def clear(self) -> None:
        """Restore the lab: no jobs, no processes, all daemons and nodes up."""
        self.restore()
        self.lab.run("scancel", "--user=root", check=False)
        for program in ("srun", "python"):
            for pid in sum(self.processes(program).values(), []):
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + 60
        while self.queue() and time.monotonic() < deadline:
            time.sleep(0.5)
        self.restore()


Moment = Callable[[Disturbed], Key]


@dataclass(frozen=True)
class Event:
    title: str
    moment: Moment | None
    """Waits for the element to strike, or raises Missed. None if the event submits the study itself."""
    hit: Callable[..., str | None]
    """Strikes the element. Returns what to note, or None if the element has just ended."""
    ranks: tuple[int, ...] = (1, 2)
    """The numbers of ranks with which the event is possible."""

    def strike(self, run: Disturbed) -> str:
        """Strike at the event's moment, or at a later one if that is missed, and return what was hit. Raises Missed."""
        if self.moment is None:
            return self.hit(run) or ""
        for _ in range(6):
            key = self.moment(run)
            with contextlib.suppress(OSError, IndexError, KeyError):
                note = self.hit(run, key)
                if note is not None:
                    return f"{'/'.join(key)} {note}".strip()
            time.sleep(POLL_S)
        raise Missed


def _moment(run: Disturbed, stages: tuple[str, ...], ready: Callable[[Key], bool] = lambda key: True) -> Key:
    """Wait until an element of one of `stages` runs and is `ready`."""
    deadline = time.monotonic() + PATIENCE_S
    asked = 0.0
    while time.monotonic() < deadline:
        running = run.processes()
        if found := [key for key in running if key[0].startswith(stages) and ready(key)]:
            return run.random.choice(found)
        if time.monotonic() > asked + 2:
            asked = time.monotonic()
            if not running and not run.queue():
                raise Missed
        time.sleep(POLL_S)
    raise Missed


def any_moment(run: Disturbed) -> Key:
    """Wait for an element of a random stage, and then a random time. If it has ended by then, wait for one of any stage."""
    stages = ("pretrain", "instruct", "evaluate", "merge", "report")
    key = _moment(run, stages[run.random.choice([0, 0, 0, 1, 2, 2, 4]) :])
    time.sleep(run.random.uniform(0, 5))
    return key if key in run.processes() else _moment(run, stages)


def _saves(run: Disturbed, key: Key) -> int:
    """How many steps of its own an element of pretraining has saved."""
    return max(0, studies.saved_step(run.root, key[1]) - BEGINS[key[0]])


def before_a_save(run: Disturbed) -> Key:
    return _moment(run, ("pretrain",), lambda key: _saves(run, key) == 0)


def after_a_save(run: Disturbed) -> Key:
    steps = 2 * run.random.randint(1, 3)
    return _moment(run, ("pretrain",), lambda key: steps <= _saves(run, key) < 8)


def _above(pid: int, program: str) -> int:
    """The nearest ancestor of a process that runs `program`."""
    while pid > 1:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        if Path(f"/proc/{pid}/comm").read_text().strip() == program:
            return pid
    raise ProcessLookupError(program)


def kill(which: str, run: Disturbed, key: Key) -> str:
    """Kill one of the processes of an element with SIGKILL."""
    ranks, launchers = run.processes()[key], run.processes("srun")[key]
    if which == "daemon":
        which = run.random.choice(["daemon of the ranks", "daemon of the script"])
    pids = {
        "rank": lambda: [run.random.choice(ranks)],
        "srun": lambda: launchers,
        "script": lambda: [_above(launchers[0], "slurm_script")],
        "daemon of the ranks": lambda: [_above(ranks[0], "slurmstepd")],
        "daemon of the script": lambda: [_above(launchers[0], "slurmstepd")],
    }[which]()
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    if which.startswith("daemon"):
        time.sleep(run.random.uniform(0, 10))
        run.lab.report()
    return which


def lose_node(run: Disturbed, key: Key) -> str:
    run.lab.run(LAB_SCRIPTS / "kill-node", studies.show(run.lab, run.task(key))["BatchHost"])
    return _back(run, 8)


def _back(run: Disturbed, most_s: float) -> str:
    """Restore the lab after a random time, and return how long it was."""
    away_s = run.random.uniform(0, most_s)
    time.sleep(away_s)
    run.restore()
    return f"for {away_s:.0f} s"


def requeue(run: Disturbed, key: Key) -> str | None:
    return None if run.lab.run("scontrol", "requeue", run.task(key), check=False).strip() else ""


def preempt(run: Disturbed, key: Key) -> str | None:
    return "" if run.lab.preempt(run.task(key)) else None


def damage(what: str, run: Disturbed, key: Key) -> str | None:
    """Requeue the element. When its ranks have ended and before it starts again, damage what it has saved."""
    if requeue(run, key) is None:
        return None
    while key in run.processes():
        time.sleep(POLL_S)
    checkpoints = run.root / "pretrain" / key[1] / "checkpoints"
    newest = max(checkpoints.glob("step_*"))
    weights = run.random.choice(sorted(newest.glob("*.distcp")))
    content = bytearray(weights.read_bytes())
    place = run.random.randrange(len(content))
    garbage = run.random.choice([b"", b"\0" * 14, b"step_\xff\xfe", b"step_00000002step_00000004\n", b"../../trunk"])
    if what == "pointer":
        (checkpoints / "latest").write_bytes(garbage)
        return repr(garbage)
    if what == "record":
        (newest / "checkpoint.json").unlink()
    elif what == "length":
        weights.write_bytes(content[:place])
    else:
        content[place] ^= 1 << run.random.randrange(8)
        weights.write_bytes(content)
    return f"{newest.name}, byte {place}"


def fill_disk(run: Disturbed, key: Key) -> str | None:
    """Fill the small file system of the run folder, and free it again.

    At first, space for some lines is left, until a writer has reported the full disk.
    """
    filler, began, reports = run.root / "filler", time.monotonic(), 0
    with open(filler, "wb", buffering=0) as file:
        _fill(file)
        os.truncate(filler, filler.stat().st_size - (1 << 18))
        while not reports and time.monotonic() < began + 60 and run.processes():
            time.sleep(POLL_S)
            written = [*run.root.glob("slurm/*_log.out"), *run.root.glob("jobs/*/*/failed*.json")]
            reports = sum("o space left" in path.read_text(errors="replace") for path in written)
        _fill(file)
        time.sleep(run.random.uniform(0, 5))
    filler.unlink()
    return f"for {time.monotonic() - began:.0f} s; {reports} files say so" if reports else None


def _fill(file: IO[bytes]) -> None:
    with contextlib.suppress(OSError):
        file.seek(0, os.SEEK_END)
        while file.write(bytes(1 << 16)):
            pass


def restart_controller(run: Disturbed, key: Key) -> str:
    number = run.random.choice([signal.SIGTERM, signal.SIGKILL])
    os.kill(run.lab.pid("slurmctld"), number)
    return f"{number.name} {_back(run, 6)}"


def forbid_requeue(run: Disturbed, key: Key) -> str | None:
    if run.lab.run("scontrol", "update", f"JobId={run.task(key)}", "Requeue=0", check=False).strip():
        return None
    strike: Callable[..., str | None] = run.random.choice([partial(kill, "rank"), preempt, lose_node])
    note = strike(run, key)
    return None if note is None else note or "preempted"


def hang(run: Disturbed, key: Key) -> str:
    os.kill(run.random.choice(run.processes()[key]), signal.SIGSTOP)
    return ""


def _half_submitted(run: Disturbed) -> subprocess.Popen:
    """A `submit` that is in the middle of its arrays."""
    how = {"cwd": ROOT, "env": run.lab.environment, "stdin": subprocess.DEVNULL}
    child = subprocess.Popen(run.submission, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **how)
    record, count = run.root / "slurm" / "submissions.jsonl", run.random.randint(0, len(JOBS) - 1)
    while child.poll() is None and count and not (record.exists() and record.read_bytes().count(b"\n") >= count):
        time.sleep(0.01)
    time.sleep(run.random.uniform(0, 0.4 if count else 1.5))
    return child


def lose_controller(run: Disturbed) -> str:
    child = _half_submitted(run)
    os.kill(run.lab.pid("slurmctld"), signal.SIGKILL)
    _back(run, 5)
    lines = child.communicate(timeout=400)[0].strip().splitlines()
    return f"it ended with {child.returncode}" + (f": {lines[-1][-200:]}" if child.returncode and lines else "")


def kill_submit(run: Disturbed) -> str:
    child = _half_submitted(run)
    child.kill()
    return f"after {child.communicate()[0].count(': array ')} arrays"


def retry_during_report(run: Disturbed, key: Key) -> str:
    run.lab.run("scancel", run.task(key))
    _moment(run, ("report",))
    time.sleep(run.random.uniform(0, 4))
    lines = studies.curricula(run.lab, "retry", run.root, check=False).strip().splitlines()
    return f"cancelled; retry said: {lines[-1].replace(str(run.root), 'RUN')[:160] if lines else ''}"


EVALUATION: Key = ("evaluate-instruct-50", "full-50/attacks-topk/tdc")
EVENTS = {
    "kill-rank": Event("a rank killed (`kill -9`)", any_moment, partial(kill, "rank")),
    "kill-srun": Event("`srun` killed", any_moment, partial(kill, "srun")),
    "kill-script": Event("the batch script killed", any_moment, partial(kill, "script")),
    "kill-stepd": Event("slurmstepd killed, of the ranks or of the script", any_moment, partial(kill, "daemon")),
    "node-loss": Event("a node lost, and back", any_moment, lose_node),
    "requeue": Event("`scontrol requeue`", any_moment, requeue),
    "preempt-early": Event("preempted before the first save", before_a_save, preempt),
    "preempt-late": Event("preempted after a save", after_a_save, preempt),
    "truncated": Event("newest checkpoint truncated", after_a_save, partial(damage, "length")),
    "bit-flip": Event("a bit of the newest checkpoint flipped", after_a_save, partial(damage, "bit")),
    "no-record": Event("`checkpoint.json` of the newest lost", after_a_save, partial(damage, "record")),
    "pointer": Event("`latest` holds garbage", after_a_save, partial(damage, "pointer")),
    "disk-full": Event("the disk full for a while", any_moment, fill_disk, ranks=(1,)),
    "controller": Event("slurmctld restarted or killed", any_moment, restart_controller),
    "no-requeue": Event("requeue forbidden, then an end", any_moment, forbid_requeue),
    "hang": Event("a rank stopped (SIGSTOP)", after_a_save, hang, ranks=(2,)),
    "retry-report": Event("`retry` while the report runs", lambda run: EVALUATION, retry_during_report),
    "controller-submit": Event("slurmctld killed during `submit`", None, lose_controller),
    "kill-submit": Event("`curricula submit` killed", None, kill_submit),
}
