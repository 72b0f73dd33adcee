"""Run a graph on this machine: each element in a process of its own, in dependency order, a few at a time.

Elements are forked from a server that has already imported torch and Megatron-core (multiprocessing's forkserver with a
preload), since those imports cost more than most elements of a small study. They run the same `run_element` as on a cluster.
When this process dies, by Ctrl-C or kill -9, its elements end too; the next call goes on from what they left.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Protocol

from curricula.errors import UserError
from curricula.jobs.element import is_done, run_element
from curricula.jobs.graph import LIGHT_STAGES, Job
from curricula.jobs.monitor.logs import note
from curricula.jobs.run import Run
from curricula.model.runtime.signals import Interrupted

Key = tuple[str, str]  # job name, element label
TERM_GRACE_S = 20.0  # how long elements may take to save after an interrupt


class Watcher(Protocol):
    """What the launcher tells while it runs; called a few times a second and at each change."""

    def update(self, running: list[Key], finished: Key | None = None) -> None: ...


@dataclass
class Outcome:
    """Which elements ended how; `skipped` were not started because something they need failed."""

    done: list[Key] = field(default_factory=list)
    failed: list[Key] = field(default_factory=list)
    skipped: list[Key] = field(default_factory=list)


def run_graph(
    run: Run, jobs: list[Job], watcher: Watcher, workers: int | None = None, chosen: Collection[Key] | None = None
) -> Outcome:
    """Run the `chosen` elements, or all, that are not done yet, `workers` at a time (the study's number by default).

    Returns when nothing more can start. Elements that are neither done nor chosen are not waited for.
    """
    workers = workers or run.study.resources.workers
    outcome = Outcome()
    waiting: list[Key] = []
    needs = element_needs(jobs)
    done = done_elements(run, jobs)
    for key in needs:
        if key not in done and (chosen is None or key in chosen):
            (run.element(*key) / "done.json").unlink(missing_ok=True)
            waiting.append(key)
    coming = done.union(waiting)
    needs = {key: [need for need in needs[key] if need[0] in coming] for key in needs}
    outcome.done += done
    if not waiting:
        return outcome
    to_start = {name for name, _ in waiting}
    context = _forkserver(workers, preload=any(job.stage not in LIGHT_STAGES for job in jobs if job.name in to_start))
    running: dict[Key, ForkServerProcess] = {}
    try:
        while waiting or running:
            _start_ready(run, context, workers, waiting, running, needs, outcome)
            if not running:
                outcome.skipped += waiting
                break
            wait([process.sentinel for process in running.values()], timeout=0.2)
            for key in [key for key, process in running.items() if process.exitcode is not None]:
                process = running.pop(key)
                if process.exitcode != 0:
                    _note_death(run.element(*key), process.exitcode or 0)
                (outcome.done if process.exitcode == 0 else outcome.failed).append(key)
                watcher.update(list(running), key)
            watcher.update(list(running))
    finally:
        _stop(list(running.values()))
    return outcome


def done_elements(run: Run, jobs: list[Job]) -> set[Key]:
    """The elements that need not be run.

    Not among them is what was done before something it needs was done anew, such as a report on a failed run.
    """
    needs = element_needs(jobs)
    done: set[Key] = set()
    for job in jobs:
        for element in job.elements:
            key = (job.name, element.label)
            if is_done(run, job, element) and all(other in done for other, _ in needs[key]):
                done.add(key)
    return done


def element_needs(jobs: list[Job]) -> dict[Key, list[tuple[Key, bool]]]:
    """For each element the elements it waits for, each with whether that one must have ended well."""
    by_name = {job.name: job for job in jobs}
    needs: dict[Key, list[tuple[Key, bool]]] = {}
    for job in jobs:
        for index, element in enumerate(job.elements):
            needs[job.name, element.label] = [
                ((edge.job, other.label), edge.kind != "afterany")
                for edge in job.needs
                for place, other in enumerate(by_name[edge.job].elements)
                if edge.kind != "aftercorr" or place == index
            ]
    return needs


def _start_ready(
    run: Run,
    context: multiprocessing.context.ForkServerContext,
    workers: int,
    waiting: list[Key],
    running: dict[Key, ForkServerProcess],
    needs: dict[Key, list[tuple[Key, bool]]],
    outcome: Outcome,
) -> None:
    """Start waiting elements whose needs are met, in graph order, while there are free workers."""
    done, ended = set(outcome.done), {*outcome.done, *outcome.failed, *outcome.skipped}
    for key in list(waiting):
        if any(must_be_ok and other in ended and other not in done for other, must_be_ok in needs[key]):
            waiting.remove(key)
            outcome.skipped.append(key)
            ended.add(key)
            continue
        if len(running) < workers and all(other in (done if must_be_ok else ended) for other, must_be_ok in needs[key]):
            waiting.remove(key)
            folder = run.element(*key)
            folder.mkdir(parents=True, exist_ok=True)
            running[key] = context.Process(target=_element_process, args=(run.root, *key), name="/".join(key))
            running[key].start()


def _forkserver(workers: int, preload: bool) -> multiprocessing.context.ForkServerContext:
    threads = max(1, (os.cpu_count() or 1) // workers)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    os.environ.setdefault("RAYON_NUM_THREADS", str(threads))  # of the tokenizer
    # Looking for a GPU while preloading must not initialise CUDA, which does not survive a fork.
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["curricula.jobs.preload"] if preload else ["curricula.jobs.element"])
    return context


def _element_process(root: Path, job: str, label: str) -> None:
    """The forked process: its own log, no terminal signals, ends with the launcher."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the launcher sends SIGTERM
    threading.Thread(target=_end_with_launcher, daemon=True).start()
    log = os.open(Path(Run(root).element(job, label), "log.txt"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    note(f"{job}/{label}, process {os.getpid()}")
    try:
        run_element(root, job, label)
    except UserError as error:
        note("failed")
        print(f"curricula: {error}", flush=True)
        sys.exit(1)
    except Interrupted as stop:
        print(stop, flush=True)
        sys.exit(os.EX_TEMPFAIL)
    except Exception:
        note("failed")
        raise


def _end_with_launcher() -> None:
    """End this process at once when the launcher is gone; the fork server lives on while any of its children does."""
    launcher = multiprocessing.parent_process()
    assert launcher is not None
    launcher.join()
    os._exit(1)


def _note_death(folder: Path, exit_code: int) -> None:
    """A killed process could not say so itself."""
    if exit_code < 0:
        with open(folder / "log.txt", "a") as log:
            log.write(f"--- killed by {signal.Signals(-exit_code).name}\n")


def _stop(processes: list[ForkServerProcess]) -> None:
    """Ask elements to save and end; kill those that do not."""
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + TERM_GRACE_S
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.exitcode is None:
            process.kill()
            process.join()
