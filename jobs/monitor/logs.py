"""The logs of an element's processes: where they are, their lines in order of time, and the first error.

On one machine, an element has one log, RUN/jobs/JOB/ELEMENT/log.txt. Under Slurm, each task has its own files in RUN/slurm,
named by array, index and rank. An element that starts again appends to its log. Each start begins with a line `--- TIME ...`.
"""

from __future__ import annotations

import contextlib
import heapq
import os
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from curricula.jobs.plan import Key
from curricula.jobs.run import Run
from curricula.jobs.slurm.commands import Task
from curricula.terminal import ESCAPES, printable

ERROR_TAIL_BYTES = 4 << 20
"""How much of the end of a log is searched for errors."""
TAIL_BYTES = 1 << 20
"""How much of a log is read at a time, backwards from its end, to find its last lines."""
LONGEST_BLOCK = 200
"""Number of a traceback's last lines that are kept."""

_NAME = re.compile(r"(\d+_\d+)_(\d+)_log\.out")
"""The name of a log under Slurm: the array task and the rank."""
_TIME = re.compile(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(?:[.,]\d+)?")
_START = re.compile(r"^--- \d{4}-\d\d-\d\d \d\d:\d\d:\d\d.* process \d+")
_TRACEBACK = "Traceback (most recent call last):"
_ERROR = re.compile(
    r"^curricula: |^\S*slurmstepd: error|^srun: error|^--- killed by|CUDA error|CUDA out of memory|Segmentation fault|"
    r"Fatal Python error|Bus error|^Killed\b|terminate called|oom.kill|No space left on device"
)
_FALLOUT = re.compile(
    r"NCCL|ncclRemoteError|ncclSystemError|ProcessGroup|[Gg]loo|DistBackendError|DistNetworkError|DistStoreError|TCPStore|"
    r"Connection (?:closed|reset|refused)|Broken pipe|watchdog|collective operation|STEP .* CANCELLED|[Tt]erminated|"
    r"killed by SIG|Exited with exit code|monitoredBarrier|resource_tracker|^srun: "
)
"""Messages of processes that fail only because another one has ended."""


class LogLine(NamedTuple):
    time: str
    """Latest time stamp in the file up to this line. Time stamps sort as text."""
    text: str
    """The line without its end and without control characters."""


@dataclass(frozen=True)
class LogFile:
    path: Path
    rank: int
    """Rank of the process that wrote it; 0 if all share one file."""


@dataclass(frozen=True)
class FirstError:
    """The error from which the others follow."""

    rank: int
    path: Path
    time: str
    lines: tuple[str, ...]

    @property
    def message(self) -> str:
        """The last line; in a traceback this is the message."""
        return self.lines[-1]


def note(text: str) -> None:
    """Add a line with the time to this process's log. It dates lines without a time that follow, such as a traceback."""
    with contextlib.suppress(OSError):  # if the disk is full, the work itself reports it
        print(f"--- {datetime.now().isoformat(' ', 'milliseconds')} {text}", file=sys.stderr, flush=True)


def find_logs(run: Run, tasks: Mapping[Key, Sequence[Task]]) -> dict[Key, list[LogFile]]:
    """The log files of elements, by rank. `tasks`: the array tasks that ran each of them, oldest first."""
    of_task: dict[str, list[LogFile]] = defaultdict(list)
    for path in run.slurm.rglob("*_log.out"):
        if name := _NAME.fullmatch(path.name):
            of_task[name[1]].append(LogFile(path, int(name[2])))
    logs_of = {}
    for key, ran in tasks.items():
        own = run.element(*key) / "log.txt"
        logs = [LogFile(own, 0)] if own.exists() else []
        logs += [log for task in ran for log in of_task.get(str(task), ())]
        logs_of[key] = sorted(logs, key=lambda log: log.rank)
    return logs_of


def of_latest(logs: Sequence[LogFile], tasks: Sequence[Task]) -> list[LogFile]:
    """The logs of the latest of an element's `tasks` that has any; all `logs` if none has, as on a single machine."""
    for task in reversed(tasks):
        if own := [log for log in logs if log.path.name.startswith(f"{task}_")]:
            return own
    return list(logs)


def read_lines(path: Path, start: int = 0, end: int | None = None) -> Iterator[LogLine]:
    """The lines of a log from byte `start` on. If `end` is given, only those that end by that byte."""
    time = ""
    with open(path, "rb") as file:
        file.seek(start)
        for raw in file:
            if end is not None and file.tell() > end:
                return
            text = clean(raw)
            stamp = _TIME.search(text[:80])
            time = stamp[0].replace("T", " ").replace(",", ".") if stamp else time
            yield LogLine(time, text)


def clean(raw: bytes) -> str:
    """One line in a form fit to be shown: without text that a progress bar overwrote, colours and control characters."""
    text = raw.decode(errors="replace").rstrip("\r\n").rsplit("\r", 1)[-1]
    return printable(ESCAPES.sub("", text))


def merged(
    logs: Iterable[LogFile], last: int | None = None, ends: Mapping[Path, int] | None = None
) -> Iterator[tuple[LogFile, LogLine]]:
    """The lines of all logs by time stamp, or at least the `last` ones. The lines of each log stay in order.

    `ends`: the byte up to which a log is read; without one, to its end.
    """
    files, ends = list(logs), ends or {}

    def numbered(log: LogFile) -> Iterator[tuple[str, int, LogFile, LogLine]]:
        latest = ""
        start = 0 if last is None else _tail(log.path, last, is_timed=len(files) == 1)
        for line in read_lines(log.path, start, ends.get(log.path)):
            latest = max(latest, line.time)  # the clock may have been set back
            yield latest, log.rank, log, line

    for _, _, log, line in heapq.merge(*map(numbered, files), key=lambda item: item[:2]):
        yield log, line


def _tail(path: Path, lines: int, is_timed: bool) -> int:
    """The byte at which to begin reading a log for its last `lines` lines. Some lines before these are included.

    Unless `is_timed`, they include one with a time stamp, if there is any, so that the last lines can be sorted in among the
    lines of other logs.
    """
    with open(path, "rb") as file:
        start, count = file.seek(0, os.SEEK_END), 0
        while start and (count <= lines or not is_timed):
            end, start = start, file.seek(max(0, start - TAIL_BYTES))
            part = file.read(end - start).decode("latin-1").split("\n")
            count += len(part) - 1
            before = part[: max(0, count - lines)]
            is_timed = is_timed or any(_TIME.search(line[:80]) for line in before)
    return start


def first_error(logs: Iterable[LogFile]) -> FirstError | None:
    """The earliest error in the last start of each log that did not follow from another; if there is none, the earliest one."""
    errors = [error for log in logs for error in _errors(log)]
    return min(errors, key=lambda error: (bool(_FALLOUT.search(error.message)), error.time or "~", error.rank), default=None)


def _errors(log: LogFile) -> Iterator[FirstError]:
    """The errors of the last start, in the order of the log."""
    lines = list(read_lines(log.path, max(0, log.path.stat().st_size - ERROR_TAIL_BYTES)))
    start = max((number for number, line in enumerate(lines) if _START.match(line.text)), default=0)
    while start < len(lines):
        line = lines[start]
        is_traceback = line.text.endswith(_TRACEBACK)
        end = _traceback_end(lines, start) if is_traceback else start + 1
        if is_traceback or _ERROR.search(line.text):
            texts = tuple(item.text for item in lines[start:end])
            yield FirstError(log.rank, log.path, line.time, texts[-LONGEST_BLOCK:])
        start = end


def _traceback_end(lines: list[LogLine], start: int) -> int:
    """Index of the line after the traceback that begins at `start`, including tracebacks chained to it."""
    prefix = len(lines[start].text) - len(_TRACEBACK)  # such as "[rank3]: "
    end = start + 1
    while end < len(lines):
        text = lines[end].text[prefix:]
        end += 1
        if text and not text[0].isspace():
            rest = [line.text[prefix:] for line in lines[end : end + 4]]
            if any("exception was the direct cause" in line or "another exception occurred" in line for line in rest):
                chained = next((place for place in range(end, len(lines)) if lines[place].text.endswith(_TRACEBACK)), None)
                return _traceback_end(lines, chained) if chained is not None else end
            return end
    return end
