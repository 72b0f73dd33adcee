"""The verb `curricula logs`: finds and merges the logs of elements, and shows the first error before all else."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
import time
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from curricula.durable import end_of_lines
from curricula.errors import UsageError
from curricula.jobs.completion import last_failure
from curricula.jobs.graph import plan_study
from curricula.jobs.monitor.logs import LogFile, clean, find_logs, first_error, merged, of_latest
from curricula.jobs.monitor.state import ENDED_BADLY, run_status
from curricula.jobs.plan import Key
from curricula.jobs.run import Run, newest_run
from curricula.jobs.selection import Selection, select
from curricula.jobs.slurm.commands import Task
from curricula.jobs.slurm.submissions import elements_by_task, submissions
from curricula.terminal import one_line, plural

LOOK_EVERY_S = 0.5
FIND_EVERY_S = 5.0
"""How often to look for new files while following."""
LINES = 20
"""Lines shown of each element if there are several, or before following."""
Logs = Sequence[tuple[str, Sequence[LogFile]]]
"""For each element, the prefix of its lines and its log files."""


def show_logs(args: argparse.Namespace) -> int:
    rank, pattern = _rank(args.rank), _pattern(args.grep)
    run = _run(args)
    chosen = _chosen(run, args)
    if not chosen:
        print("(nothing has failed and nothing is running; name a JOB, or --stage or --arm)")
        return 0
    tasks: dict[Key, list[Task]] = {key: [] for key in chosen}
    for task, key in elements_by_task(submissions(run)).items():
        if key in tasks:
            tasks[key].append(task)

    def prefix(job: str, label: str) -> str:
        return "" if len(chosen) == 1 else f"{label}: " if args.job else f"{job}/{label}: "

    def find() -> Logs:
        return [(prefix(*key), files) for key, files in find_logs(run, tasks).items()]

    logs = find()
    for ((job, label), ran), (name, files) in zip(tasks.items(), logs):
        if error := first_error(of_latest(files, ran)):  # of all ranks: any of them may have failed first
            when = f" at {error.time}" if error.time else ""
            print(f"=== {name}first error: rank {error.rank}{when}, {error.path}")
            print(*(f"    {line}" for line in error.lines), sep="\n", end="\n\n")
        folder = run.element(job, label)
        if ran and not (folder / "done.json").exists() and (failure := last_failure(folder, str(ran[-1]))):
            print(f"=== {job}/{label}: last failure, after {plural(failure.restarts, 'restart')}: {one_line(failure.error)}\n")
    shown = [(name, [file for file in files if rank in (None, file.rank)]) for name, files in logs]
    if not any(files for _, files in shown):
        ranks = sorted({file.rank for _, files in logs for file in files})
        print(f"(no log of rank {rank}; there are ranks {ranks})" if ranks else "(no log yet: none of this has started)")
    ends = defaultdict[Path, int](int)
    for path in (file.path for _, files in shown for file in files if args.follow):
        with open(path, "rb") as opened:
            ends[path] = end_of_lines(opened)  # what comes after it is printed once, by `_follow`
    last = args.lines or (LINES if args.follow or len(chosen) > 1 else None)
    _print_logs(shown, ends, pattern, last, show_rank=rank is None)
    if args.follow:
        with contextlib.suppress(KeyboardInterrupt):
            _follow(find, ends, rank, pattern)
    return 0


def _run(args: argparse.Namespace) -> Run:
    """The run that `args` names. If they name none, it is the newest, and their words are moved to its job and element."""
    if args.run is None:
        return Run.open(newest_run())
    if args.element is None and not (args.run / "study.yaml").exists() and any(Path("runs").glob("*/study.yaml")):
        newest = Run.open(newest_run())
        if str(args.run) in plan_study(newest.study).by_name:
            args.job, args.element = str(args.run), args.job
            return newest
    return Run.open(args.run)


def _chosen(run: Run, args: argparse.Namespace) -> Sequence[Key]:
    """The selected elements; by default those that failed, are running or start again after a failure."""
    selection = Selection.from_args(args)
    if args.job is not None:
        selection = replace(selection, jobs=(*selection.jobs, args.job))
    plan = plan_study(run.study)
    chosen = select(plan, selection)
    if args.element is not None:
        key = args.job, args.element
        plan.find(*key)
        if key not in chosen:
            raise UsageError(f"{'/'.join(key)} is not among the elements that the other options choose; drop them")
        return [key]
    if selection:
        return chosen
    status = {element.key: element for element in run_status(run, plan).elements}
    return [key for key in chosen if status[key].state in (*ENDED_BADLY, "running") or status[key].last_failure]


def _rank(text: str) -> int | None:
    """The rank to show; None for all."""
    if text == "all":
        return None
    if not re.fullmatch("[0-9]{1,9}", text):
        raise UsageError(f"--rank {text}: give a number from 0 on, or all")
    return int(text)


def _pattern(expression: str | None) -> re.Pattern[str] | None:
    try:
        return None if expression is None else re.compile(expression)
    except re.error as error:
        raise UsageError(f"--grep {expression!r}: not a regular expression ({error})") from None


def _print_logs(
    logs: Logs, ends: Mapping[Path, int], pattern: re.Pattern[str] | None, last: int | None, show_rank: bool
) -> None:
    """Print the lines of one element after those of another, and those of an element's processes in order of time."""
    for prefix, files in logs:
        lines = (
            _shown(prefix, file.rank if show_rank else None, line.text)
            for file, line in merged(files, None if pattern else last, ends)
            if pattern is None or pattern.search(line.text)
        )
        for line in lines if last is None else deque(lines, maxlen=min(last, sys.maxsize)):
            print(line)
    sys.stdout.flush()


def _follow(find: Callable[[], Logs], ends: defaultdict[Path, int], rank: int | None, pattern: re.Pattern[str] | None) -> None:
    """Print what is added to the logs after byte `ends`, and new logs from their beginning, until interrupted."""
    logs, found_at = find(), time.monotonic()
    while True:
        for prefix, file in ((prefix, file) for prefix, files in logs for file in files if rank in (None, file.rank)):
            if not file.path.exists():
                ends[file.path] = 0  # if it comes again, from its beginning
            with contextlib.suppress(FileNotFoundError), open(file.path, "rb") as stream:
                if stream.seek(0, os.SEEK_END) < ends[file.path]:
                    ends[file.path] = 0  # emptied, and begun anew
                stream.seek(ends[file.path])
                for raw in stream:
                    if not raw.endswith(b"\n"):  # still being written
                        break
                    ends[file.path] += len(raw)
                    text = clean(raw)
                    if pattern is None or pattern.search(text):
                        print(_shown(prefix, file.rank if rank is None else None, text), flush=True)
        time.sleep(LOOK_EVERY_S)
        if time.monotonic() - found_at > FIND_EVERY_S:
            logs, found_at = find(), time.monotonic()


def _shown(prefix: str, rank: int | None, text: str) -> str:
    return f"{prefix}{text}" if rank is None else f"{prefix}[{rank}] {text}"
