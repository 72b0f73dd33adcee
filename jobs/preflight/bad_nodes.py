"""The record of nodes that failed a check, RUN/slurm/bad-nodes.jsonl: one line for each failure.

Jobs of the run avoid these nodes when they start again.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

import msgspec

from curricula.durable import append_jsonl, read_jsonl, write_text
from curricula.errors import UserError
from curricula.jobs.run import Run
from curricula.settings import convert

REMEMBERED_S = 7 * 86400.0
"""After a week a node may have been repaired."""


class BadNode(msgspec.Struct, frozen=True, kw_only=True):
    node: str
    reason: str
    time: float
    """Unix time."""
    task: str = ""
    """The array task that found the problem."""


def record_bad_nodes(run: Run, found: Iterable[BadNode]) -> None:
    """Append them, and write the names to RUN/slurm/exclude, which the batch script reads when it requeues the job."""
    append_jsonl(run.bad_nodes, map(msgspec.to_builtins, found))
    write_text(run.slurm / "exclude", exclusion(run))


def bad_nodes(run: Run) -> list[BadNode]:
    """The failures of the last week, oldest first; raises UserError if the file holds something else."""
    try:
        found = convert(read_jsonl(run.bad_nodes), list[BadNode])
    except msgspec.ValidationError as error:
        raise UserError(f"{run.bad_nodes}: holds something else ({error}); remove those lines") from None
    since = time.time() - REMEMBERED_S
    return [bad for bad in found if bad.time > since]


def exclusion(run: Run) -> str:
    """The nodes to avoid, as sbatch's --exclude and scontrol's ExcNodeList take them; empty if there are none."""
    return ",".join(sorted({bad.node for bad in bad_nodes(run)}))
