"""Shared by the benchmarks of this folder: fresh processes for measurements, turns, the machine, the report."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import resource
import shlex
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:  # a peer's environment may lack it
    from rich.table import Table

ROOT = Path(__file__).resolve().parents[2]
Task = dict[str, Any]
Found = TypeVar("Found")


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options that every benchmark has, with the machine as it is now.

    From this call on, a SIGTERM removes the temporary files too.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--repeats", type=int, default=5, help="measurements of each row, each in a process of its own")
    made.add_argument("--folder", type=Path, help="where to put the temporary files (default: the system's place)")
    made.add_argument("--json", type=Path, metavar="FILE", help="write all measurements there as well")
    made.set_defaults(machine=describe())
    return made


def serve_child(measures: Mapping[str, Callable[..., Task]]) -> bool:
    """In a process that `fresh` started, carry out its task, print the result and return true."""
    if sys.argv[1:2] != ["--child"]:
        return False
    asked = json.loads(sys.argv[2])
    print(json.dumps(measures[asked.pop("measure")](**asked)))
    return True


def fresh(task: Task, python: str = sys.executable, script: str = sys.argv[0], **environment: str) -> Task:
    """The result of `task` in a new process of `script`; raises RuntimeError with the end of its output if it fails."""
    command = [python, script, "--child", json.dumps(task)]
    settings = {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONWARNINGS": "ignore", **environment}
    done = subprocess.run(command, env=settings, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{task}: exit status {done.returncode}\n{done.stderr[-8000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def in_turns(names: Sequence[str], repeats: int, measure: Callable[[str], Found]) -> dict[str, list[Found]]:
    """What `measure` finds for each name, `repeats` times, with a line of progress for each.

    The names take turns, alternately in order and in reverse, so that none always has the warmer machine.
    """
    found: dict[str, list[Found]] = {name: [] for name in names}
    for repeat in range(repeats):
        for name in names if repeat % 2 == 0 else reversed(names):
            progress(name)
            found[name].append(measure(name))
    return found


def memory(which: str) -> int:
    """Bytes of this process from /proc: VmRSS is its present size, VmHWM its peak.

    `getrusage` does not serve: its peak includes that of the process that forked this one.
    """
    found = re.search(rf"^{which}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    if found is None:  # a sandbox without this line
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return int(found[1]) * 1024


def forget_peak() -> None:
    """Reset VmHWM to the present size."""
    with contextlib.suppress(OSError):  # a sandbox without this file
        Path("/proc/self/clear_refs").write_text("5")


def free_memory() -> int:
    """Bytes that a new process can use, including those of the page cache."""
    found = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def shown(values: Sequence[float], form: str = "{:.2f}", unit: str = "") -> str:
    """The median, followed by minimum and maximum where they differ: `1.20 (1.10-1.45) s`."""
    least, middle, most = (form.format(value) for value in (min(values), statistics.median(values), max(values)))
    around = f" ({least}-{most})" if least != most else ""
    return f"{middle}{around}{unit}"


def table(title: str, *columns: str) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    made = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    for number, column in enumerate(columns):
        made.add_column(column, justify="right" if number else "left")
    return made


def describe() -> dict[str, Any]:
    """The machine, its software, and the program's command line."""
    from curricula.jobs.run import current_provenance  # a peer's environment lacks it

    made_with = current_provenance()
    model = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return {
        "command": shlex.join(["python", os.path.relpath(sys.argv[0], ROOT), *sys.argv[1:]]),
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": made_with["git"]["sha"][:8] + ("+" if made_with["git"]["changed_files"] else ""),
        "processor": model[1] if model else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "load_before": [round(load, 2) for load in os.getloadavg()],
        "system": f"{platform.system()} {platform.release()}",
        "python": made_with["python"],
        **made_with["packages"],
    }


def report(args: argparse.Namespace, tables: list[Table], notes: list[str], rows: Any) -> None:
    """Print the tables with the machine beneath, and write everything to `--json` if asked."""
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 150, highlight=False)
    for each in tables:
        console.print(each)
    for note in notes:
        console.print(note, markup=False)
    console.print("\n" + "\n".join(f"{name}: {value}" for name, value in args.machine.items()), style="dim", markup=False)
    if args.json:
        keep(args, notes, rows)


def keep(args: argparse.Namespace, notes: list[str], rows: Any) -> None:
    """Write what was measured so far to `--json`; one that is killed meanwhile leaves the file of before."""
    aside = args.json.with_name(f".{args.json.name}.aside")
    aside.write_text(json.dumps({"machine": args.machine, "notes": notes, "rows": rows}, indent=1) + "\n")
    aside.replace(args.json)


def progress(text: str) -> None:
    """Report progress on stderr."""
    print(text, file=sys.stderr, flush=True)
