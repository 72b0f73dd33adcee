"""Run a plan on this machine: each element in a process of its own, in dependency order, a few at a time.

Elements are forked from a server that has already imported torch and Megatron-core, since those imports take longer than most
elements of a small study. Each runs jobs/element.py, as on a cluster. When this process dies, by Ctrl-C or kill -9, its
elements end too; the next call resumes from what they left.

If the study has several training seeds, the elements of the first seed go first. When these are done, an early report gives a
first look at the figures; the final report replaces it.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from types import FrameType
from typing import Protocol

from curricula.durable import team
from curricula.errors import UserError
from curricula.jobs.element import main
from curricula.jobs.graph import plan_study
from curricula.jobs.plan import Key, Plan
from curricula.jobs.run import Run
from curricula.jobs.slurm.commands import ignored
from curricula.jobs.stages import STAGES
from curricula.jobs.stages.report import report
from curricula.model.runtime.stopping import signals_blocked

TERM_GRACE_S = 20.0
"""How long elements can take to save after an interrupt before they are killed."""


class Watcher(Protocol):
    """Receives what is running: a few times a second, and whenever an element ends."""

    def update(self, running: list[Key], finished: Key | None = None) -> None: ...

    def first_look(self, page: Path) -> None:
        """Receive the page of the first seed's report when it has been written."""


@dataclass
class Outcome:
    done: list[Key] = field(default_factory=list)
    """Includes elements that were done before and not chosen."""
    failed: list[Key] = field(default_factory=list)
    skipped: list[Key] = field(default_factory=list)
    """Elements that were not started because something they need failed."""


def stop_on_signals() -> None:
    """Make TERM, and HUP unless it is ignored as by nohup, save and stop the run as Ctrl-C does."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        signal.signal(signal.SIGHUP, _hung_up)


def _hung_up(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)  # a closed terminal and its shell both send it; a second one would end the saving
    raise KeyboardInterrupt


def run_plan(run: Run, plan: Plan, watcher: Watcher, chosen: Sequence[Key], done: Set[Key], workers: int) -> Outcome:
    """Run the `chosen` elements (in the plan's order) that are not `done` yet, `workers` at a time, until nothing more can
    start. Elements that are neither done nor chosen are not waited for."""
    local_run = _LocalRun(run, plan, chosen, done, workers)
    if local_run.waiting:
        local_run.finish(watcher)
    return local_run.outcome


class _LocalRun:
    """The elements of one call of `run_plan`: those waiting, those running, and those that have ended."""

    def __init__(self, run: Run, plan: Plan, chosen: Sequence[Key], done: Set[Key], workers: int):
        self.run, self.workers = run, workers
        self.outcome = Outcome(done=[key for key in plan.needs if key in done])
        self.waiting = [key for key in chosen if key not in done]
        self.later = {key for key in self.waiting if plan.by_key[key][1].seed not in (None, plan.study.first_seed)}
        """The elements of training seeds other than the first."""
        for key in self.waiting:
            (run.element(*key) / "done.json").unlink(missing_ok=True)
        awaited = set(self.waiting)
        self.needs = {key: [need for need in plan.needs[key] if need[0] in awaited] for key in self.waiting}
        self.running: dict[Key, ForkServerProcess] = {}
        self.last = {key for key in self.waiting if STAGES[plan.by_name[key[0]].stage].ends_study}
        """The element that writes the final report, if it waits."""
        self.look: ForkServerProcess | None = None
        """The process that writes the early report."""
        self.may_look = bool(self.last) and not run.study.tracking.wandb_project
        self.needs_torch = any(STAGES[plan.by_name[job].stage].needs_torch for job, _ in self.waiting)

    def finish(self, watcher: Watcher) -> None:
        """Run the waiting elements until nothing more can start; on an error or interrupt, end those that run."""
        context = _forkserver(self.workers, self.needs_torch, self.run.root / "imports.log")
        try:
            while self.waiting or self.running:
                self._start_ready(context)
                self._look_early(context, watcher)
                looking = [self.look.sentinel] if self.look else []  # the report waits for the first look to end
                wait([*looking, *(process.sentinel for process in self.running.values())], timeout=0.2)
                for key in [key for key, process in self.running.items() if process.exitcode is not None]:
                    self._note_end(key)
                    watcher.update(list(self.running), key)
                watcher.update(list(self.running))
        finally:
            _stop([*self.running.values(), *([self.look] if self.look else [])])

    def _look_early(self, context: multiprocessing.context.ForkServerContext, watcher: Watcher) -> None:
        """Start the early report once only later seeds are left to run, and tell the watcher when it is written."""
        left = {*self.waiting, *self.running} - self.last  # without any, the final report has begun
        if self.may_look and left and left <= self.later and not self.outcome.failed:
            self.may_look = False
            last = next(iter(self.last))
            self.run.element(*last).mkdir(parents=True, exist_ok=True)
            self.look = context.Process(target=_first_look, args=(self.run.root, *last), name="first look")
            self.look.start()
        if self.look and self.look.exitcode is not None:
            if self.look.exitcode == 0:
                watcher.first_look(self.run.report / "index.html")
            self.look = None

    def _start_ready(self, context: multiprocessing.context.ForkServerContext) -> None:
        """Skip waiting elements that need a failed one, and start those whose needs are met while workers are free."""
        lost = {*self.outcome.failed, *self.outcome.skipped}
        for key in list(self.waiting):
            if any(must_be_ok and other in lost for other, must_be_ok in self.needs[key]):
                self.waiting.remove(key)
                self.outcome.skipped.append(key)
                lost.add(key)
        ended = {*self.outcome.done, *lost}
        for key in sorted(self.waiting, key=lambda key: key in self.later):
            is_free = len(self.running) < self.workers and not (self.look and key in self.last)
            if is_free and all(other in ended for other, _ in self.needs[key]):
                self.waiting.remove(key)
                self.run.element(*key).mkdir(parents=True, exist_ok=True)
                process = context.Process(target=_element_process, args=(self.run.root, *key), name="/".join(key))
                try:
                    process.start()  # waits for the server's imports; an interrupt can come before there is a process to end
                except (EOFError, ConnectionError):
                    log = self.run.root / "imports.log"
                    raise UserError(f"the server that starts elements ended; {log} says why, if it was not killed") from None
                self.running[key] = process

    def _note_end(self, key: Key) -> None:
        exit_code = self.running.pop(key).exitcode or 0
        if exit_code < 0:  # killed, so it could not write this itself
            with open(self.run.element(*key) / "log.txt", "a", encoding="utf-8") as log:
                log.write(f"--- killed by {signal.Signals(-exit_code).name}\n")
        (self.outcome.failed if exit_code else self.outcome.done).append(key)


def _forkserver(workers: int, preload: bool, log: Path) -> multiprocessing.context.ForkServerContext:
    """Start the server. What libraries print while it imports them goes to `log`, so that no live display is disturbed."""
    threads = max(1, (os.cpu_count() or 1) // workers)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    os.environ.setdefault("RAYON_NUM_THREADS", str(threads))  # of the tokenizer
    for name in ignored():  # set by an allocation or another job, but elements here are not Slurm's tasks
        del os.environ[name]
    # Looking for a GPU while preloading must not initialise CUDA, which does not survive a fork.
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    if not {"", os.getcwd()} & set(sys.path):  # `python -c`, as which the server starts, looks for modules here first
        os.environ["PYTHONSAFEPATH"] = "1"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["curricula.jobs.preload"] if preload else ["curricula.jobs.element"])
    kept = os.dup(2)
    try:
        with open(log, "w", encoding="utf-8") as file:
            os.dup2(file.fileno(), 2)
        multiprocessing.resource_tracker.ensure_running()  # here, because it unblocks signals
        with signals_blocked():  # one to the whole group would end the server, and then elements before they have saved
            multiprocessing.forkserver.ensure_running()
    finally:
        os.dup2(kept, 2)
        os.close(kept)
    return context


def _element_process(root: Path, job: str, label: str) -> None:
    """Run an element in this forked process."""
    _begin(root, job, label)
    sys.exit(main([str(root), job, label]))


def _first_look(root: Path, job: str, label: str) -> None:
    """Write the early report in this forked process. Its log is that of the element that writes the final report."""
    _begin(root, job, label)
    run = Run(root)
    report(run, plan_study(run.study))


def _begin(root: Path, job: str, label: str) -> None:
    """Make this forked process log to the element's log, ignore the terminal's signals, and end when the launcher does."""
    # CUDA can be initialised here. Only that shows whether the driver is new enough for it: NVML merely counts cards.
    os.environ.pop("PYTORCH_NVML_BASED_CUDA_CHECK", None)
    for number in (signal.SIGINT, signal.SIGHUP):  # Ctrl-C reaches the whole group; the launcher sends SIGTERM
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # the server blocks them
    threading.Thread(target=_end_with_launcher, daemon=True).start()
    mode = 0o600 if team() is None else 0o660  # so that a colleague's start can append to it
    log = os.open(Path(Run(root).element(job, label), "log.txt"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, mode)
    os.dup2(log, 1)
    os.dup2(log, 2)


def _end_with_launcher() -> None:
    """End this process as soon as the launcher is gone; the fork server, its parent, lives as long as any of its children."""
    launcher = multiprocessing.parent_process()
    assert launcher is not None
    launcher.join()
    os._exit(1)


def _stop(processes: list[ForkServerProcess]) -> None:
    """Ask elements to save and end; kill those that take too long."""
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + TERM_GRACE_S
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.exitcode is None:
            process.kill()
            process.join()
