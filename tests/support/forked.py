"""Processes that tests start, forked from one that has imported what they need; each by itself would take seconds for it."""

from __future__ import annotations

import functools
import multiprocessing
import multiprocessing.forkserver
import os
import runpy
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any
from unittest import mock

from paths import ROOT, SUPPORT

PROMPT_S = 120.0
"""Until a process has ended: far more than any of these takes, and far less than torch's own timeouts."""
PRELOADED = ["evaluating_child", "preflight_ranks", "random_batches", "curricula.jobs.preload"]


@functools.cache
def forkserver() -> ForkServerContext:
    """The one server of this test process."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    # Before Python 3.14 the server looks for modules in this variable's folders only, not in this process's sys.path.
    search = os.pathsep.join([str(SUPPORT), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    with mock.patch.dict(os.environ, {"PYTHONPATH": search, "OMP_NUM_THREADS": "1"}):
        multiprocessing.forkserver.ensure_running()
    return context


def started(function: Callable[..., Any], *args: Any) -> ForkServerProcess:
    process = forkserver().Process(target=function, args=args)
    process.start()
    return process


def curricula(*words: object) -> ForkServerProcess:
    """The command line, in this process's environment."""
    return started(_curricula, [*map(str, words)], dict(os.environ))


class Program:
    """A program of tests/support that runs in a process of its own, with `folder` as its working directory."""

    def __init__(self, script: str, argument: str, folder: Path, environment: Mapping[str, str] = {}) -> None:
        self._said = tempfile.NamedTemporaryFile()  # noqa: SIM115 (it lives as long as this object)
        variables = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        self._process = started(_run, SUPPORT / script, argument, folder, variables, self._said.name)

    def kill(self) -> None:
        self._process.kill()

    def ended(self, timeout_s: float = PROMPT_S) -> tuple[int, str]:
        """Its exit status, negative for a signal, and what it wrote to standard error. Fails if it does not end in time."""
        self._process.join(timeout_s)
        status = self._process.exitcode
        if status is None:  # whatever is left would hold up this process's own end
            self._process.kill()
            self._process.join()
        assert status is not None, f"{self._process} had not ended after {timeout_s} s"
        return status, Path(self._said.name).read_text()


def ended(programs: list[Program], timeout_s: float = PROMPT_S) -> list[tuple[int, str]]:
    """`Program.ended` of each; none outlives this call."""
    deadline = time.monotonic() + timeout_s
    try:
        return [program.ended(max(1.0, deadline - time.monotonic())) for program in programs]
    finally:
        for program in programs:
            program.kill()


def ranks(script: str, argument: str, folder: Path, size: int, port: int) -> list[Program]:
    """The `size` processes of one distributed job."""
    places = [
        {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_PORT": str(port)} for rank in range(size)
    ]
    return [Program(script, argument, folder, place) for place in places]


def _curricula(words: list[str], variables: dict[str, str]) -> None:
    from curricula.jobs.cli.main import main

    os.environ.clear()
    os.environ.update(variables)
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    sys.exit(main(words))


def _run(script: Path, argument: str, folder: Path, variables: dict[str, str], said: str) -> None:
    os.environ.clear()
    os.environ.update(variables)
    os.dup2(os.open(said, os.O_WRONLY | os.O_APPEND), 2)
    os.chdir(folder)
    sys.argv = [str(script), argument]
    runpy.run_path(str(script), run_name="__main__")
