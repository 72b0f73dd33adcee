"""The verb `curricula logs`: the logs of elements, found and merged, with the first error before all else."""

from __future__ import annotations

import argparse
import contextlib
import re
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from curricula.errors import UsageError
from curricula.jobs.cli.help_text import HelpFormatter
from curricula.jobs.cli.selection import add_options, select

if TYPE_CHECKING:
    from curricula.jobs.monitor.logs import FirstError, LogFile

LOOK_EVERY_S = 0.5
FIND_EVERY_S = 5.0
"""How often new files are looked for while following."""
LINES = 20
"""Lines shown of each log when several elements are asked for."""


def add_parser(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "logs",
        help="print or follow the logs of elements, the first error first",
        description="Print the logs of elements. The error that came first among all processes is printed before the lines; "
        "without JOB, --stage or --arm only what failed or is running is shown.",
        usage="curricula logs RUN [JOB [ELEMENT]] [options]",
        epilog="examples:\n  curricula logs runs/demo\n  curricula logs runs/demo pretrain-20 full-20 -f\n"
        "  curricula logs runs/demo --arm full-20 --grep 'loss|error'\n  curricula logs runs/demo pretrain-0 full-0 --rank all",
        formatter_class=HelpFormatter,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a run folder")
    parser.add_argument("job", metavar="JOB", nargs="?", help="a job name, as `curricula status` shows it")
    parser.add_argument("element", metavar="ELEMENT", nargs="?", help="one element; by default all of the job")
    add_options(parser)
    parser.add_argument("--rank", default="0", metavar="N", help="the process to read, or all (default: 0)")
    parser.add_argument("--grep", metavar="RE", help="only lines in which this regular expression is found")
    parser.add_argument(
        "-n", "--lines", type=int, metavar="N", help=f"only the last N lines (default: all, or {LINES} of each)"
    )
    parser.add_argument("-f", "--follow", action="store_true", help="keep printing what is added, until Ctrl-C")
    parser.set_defaults(verb=show_logs)


class _Log(NamedTuple):
    prefix: str
    file: LogFile


def show_logs(words: argparse.Namespace) -> int:
    from curricula.jobs.monitor.logs import find_logs, first_error
    from curricula.jobs.monitor.state import ENDED_BADLY, run_status
    from curricula.jobs.run import Run
    from curricula.jobs.slurm.submissions import Task, submissions

    rank, pattern = _rank(words.rank), _pattern(words.grep)
    if words.lines is not None and words.lines < 1:
        raise UsageError(f"--lines {words.lines}: give at least 1")
    run = Run.open(words.run)
    jobs = run.jobs
    chosen = select(jobs, words.job, words.element, words.stage, words.arm)
    if words.job is None and words.stage is None and words.arm is None:
        states = {(element.job, element.label): element.state for element in run_status(run, jobs).elements}
        loud = [(job, item) for job, item in chosen if states[job.name, item.label] in (*ENDED_BADLY, "running")]
        if not loud:
            print("(nothing has failed and nothing is running; name a JOB, or --stage or --arm)")
            return 0
        chosen = loud
    ran: dict[tuple[str, str], list[Task]] = {}
    for submission in submissions(run):
        for index, label in enumerate(submission.labels):
            ran.setdefault((submission.job, label), []).append(Task(submission.job_id, index))

    def find() -> list[_Log]:
        found = []
        for job, item in chosen:
            of_element = find_logs(run, job.name, item.label, ran.get((job.name, item.label), ()))
            name = "" if len(chosen) == 1 else f"{item.label}: " if words.job else f"{job.name}/{item.label}: "
            found += [_Log(name, log) for log in of_element]
        return found

    logs = find()
    for name in dict.fromkeys(log.prefix for log in logs):  # all ranks: any of them may have been the first to fail
        error = first_error(log.file for log in logs if log.prefix == name)
        if error:
            _print_error(name, error)
    asked = [log for log in logs if rank in (None, log.file.rank)]
    if not asked:
        ranks = sorted({log.file.rank for log in logs})
        print(
            f"(no log of rank {rank}; there are ranks {ranks})"
            if ranks
            else "(no log yet: nothing of this has started)"
        )
    ends = {log.file.path: _whole_lines(log.file.path) for log in asked}
    last = words.lines or (LINES if words.follow or len(chosen) > 1 else None)
    _print_logs(asked, pattern, last, show_rank=rank is None)
    if words.follow:
        with contextlib.suppress(KeyboardInterrupt):
            _follow(find, ends, rank, pattern)
    return 0


def _rank(word: str) -> int | None:
    """The rank asked for; None for all."""
    if word == "all":
        return None
    if not word.isdecimal():
        raise UsageError(f"--rank {word}: give a number from 0 on, or all")
    return int(word)


def _pattern(expression: str | None) -> re.Pattern[str] | None:
    try:
        return None if expression is None else re.compile(expression)
    except re.error as error:
        raise UsageError(f"--grep {expression!r}: not a regular expression ({error})") from None


def _whole_lines(path: Path) -> int:
    """Where the log's last whole line ends, in bytes."""
    with open(path, "rb") as file:
        size = file.seek(0, 2)
        start = max(0, size - 65536)
        file.seek(start)
        newline = file.read(size - start).rfind(b"\n")
    return start + newline + 1 if newline >= 0 else size


def _print_error(prefix: str, error: FirstError) -> None:
    when = f" at {error.time}" if error.time else ""
    print(f"=== {prefix}first error: rank {error.rank}{when}, {error.path}")
    for line in error.lines:
        print(f"    {line}")
    print()


def _print_logs(logs: list[_Log], pattern: re.Pattern[str] | None, last: int | None, show_rank: bool) -> None:
    """The lines of one element after the other's; those of an element's processes in order of time."""
    from curricula.jobs.monitor.logs import merged

    for prefix in dict.fromkeys(log.prefix for log in logs):
        lines = (
            _shown(prefix, file.rank if show_rank else None, line.text)
            for file, line in merged(log.file for log in logs if log.prefix == prefix)
            if pattern is None or pattern.search(line.text)
        )
        for line in lines if last is None else deque(lines, maxlen=last):
            print(line)
    sys.stdout.flush()


def _follow(
    find: Callable[[], list[_Log]], ends: dict[Path, int], rank: int | None, pattern: re.Pattern[str] | None
) -> None:
    """Print what is added to the logs behind `ends`, and new logs from their beginning, until interrupted."""
    from curricula.jobs.monitor.logs import clean

    logs, found_at = find(), time.monotonic()
    while True:
        for prefix, file in logs:
            if rank not in (None, file.rank):
                continue
            with contextlib.suppress(FileNotFoundError), open(file.path, "rb") as stream:
                stream.seek(ends.get(file.path, 0))
                for raw in stream:
                    if not raw.endswith(b"\n"):  # still being written
                        break
                    ends[file.path] = ends.get(file.path, 0) + len(raw)
                    text = clean(raw)
                    if pattern is None or pattern.search(text):
                        print(_shown(prefix, file.rank if rank is None else None, text), flush=True)
        time.sleep(LOOK_EVERY_S)
        if time.monotonic() - found_at > FIND_EVERY_S:
            logs, found_at = find(), time.monotonic()


def _shown(prefix: str, rank: int | None, text: str) -> str:
    return f"{prefix}{text}" if rank is None else f"{prefix}[{rank}] {text}"
