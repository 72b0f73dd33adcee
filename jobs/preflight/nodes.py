"""Nodes that failed a check: RUN/slurm/bad-nodes.jsonl, one line each time. Jobs of the run that start again avoid them."""

from __future__ import annotations

import time
from collections.abc import Iterable

import msgspec

from curricula.durable import append_jsonl, read_jsonl, write_text
from curricula.errors import UserError
from curricula.jobs.run import Run

REMEMBERED_S = 7 * 86400.0
"""After a week a node may have been mended."""


class BadNode(msgspec.Struct, frozen=True, kw_only=True):
    node: str
    reason: str
    time: float
    """Unix time."""
    task: str = ""
    """The array task that found it."""


def record_bad_nodes(run: Run, found: Iterable[BadNode]) -> None:
    """Append them, and leave the names where the batch script reads them when it puts the job back into the queue."""
    append_jsonl(run.bad_nodes, map(msgspec.to_builtins, found))
    write_text(run.slurm / "exclude", exclusion(run))


def bad_nodes(run: Run) -> list[BadNode]:
    """What failed within the last week, oldest first; raises UserError that names the file when it holds something else."""
    try:
        found = msgspec.convert(read_jsonl(run.bad_nodes), list[BadNode])
    except msgspec.ValidationError as error:
        raise UserError(f"{run.bad_nodes}: holds something else ({error}); remove those lines") from None
    since = time.time() - REMEMBERED_S
    return [bad for bad in found if bad.time > since]


def exclusion(run: Run) -> str:
    """The nodes to avoid as sbatch's --exclude and scontrol's ExcNodeList take them; empty when there are none."""
    return ",".join(sorted({bad.node for bad in bad_nodes(run)}))
