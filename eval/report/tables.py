"""The tables of a report: as CSV and JSON beside the page, and as rows of the page, where each training run has one.

What is estimated over training seeds is in `eval/report/over_seeds.py`.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curricula import durable
from curricula.eval.analysis.claim_tests import ClaimTest
from curricula.eval.analysis.differences import ArmDifference
from curricula.eval.analysis.metrics import ALL, AttackMetrics, OverrefusalMetrics, StudyMetrics
from curricula.eval.analysis.study_rows import ArmInfo
from curricula.eval.report.wording import DECODERS, STAGES, arm_labels
from curricula.eval.tasks import judged_tasks

FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""How a cell begins that a spreadsheet would compute."""


def write_tables(
    out: Path,
    metrics: StudyMetrics,
    claim_tests: Sequence[ClaimTest],
    differences: Sequence[ArmDifference],
    over_seeds: Mapping[str, Sequence[Any]],
    arms: Sequence[ArmInfo],
) -> None:
    """Write `tables/*.csv` and `summary.json`: the same bytes for the same rows."""
    tables = {
        "attacks": [plain(entry) for entry in metrics.attacks],
        "overrefusal": [plain(entry) for entry in metrics.overrefusals],
        "probes": [plain(entry) for entry in metrics.probes],
        "pruning": [plain(entry) for entry in metrics.pruning],
        "trends": [plain(test) for test in claim_tests],
        "differences": [plain(gap) for gap in differences],
        **{name: [plain(row) for row in rows] for name, rows in over_seeds.items()},
    }
    for name, records in tables.items():
        table = [{**row, **row.pop("shares", {})} for row in map(dict, records)]
        text = io.StringIO()
        columns = dict.fromkeys(key for row in table for key in row)
        writer = csv.DictWriter(text, list(columns), lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: cell(value) for key, value in row.items()} for row in table)
        with durable.open_atomically(out / "tables" / f"{name}.csv") as file:
            file.write(text.getvalue().encode())
    durable.write_json(out / "summary.json", {"arms": [dataclasses.asdict(arm) for arm in arms], **tables})


def cell(value: Any) -> Any:
    """`value` in a table, with an apostrophe before a text that a spreadsheet would take for a formula."""
    if not isinstance(value, str) or not value.startswith(FORMULA):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


def plain(record: Any) -> dict[str, Any]:
    """The fields of a dataclass with floats rounded to six decimals: beyond those, processors may differ."""
    return json.loads(json.dumps(dataclasses.asdict(record)), parse_float=lambda text: round(float(text), 6))


@dataclass(frozen=True)
class AttackTable:
    """Attack success of all arms at one stage under one decoder."""

    stage: str
    decoder: str
    benchmarks: list[str]
    """The columns; the last is the main one, the average if there are several benchmarks."""
    rows: list[tuple[str, list[AttackMetrics | None]]]
    """Label and metrics of each arm, in the order of `benchmarks`; None if not evaluated yet."""

    @property
    def main(self) -> list[AttackMetrics]:
        return [row[-1] for _, row in self.rows if row[-1] is not None]

    @property
    def several(self) -> bool:
        """Whether prompts were answered more than once."""
        return any(entry.samples > 1 for entry in self.main)

    @property
    def corrected(self) -> bool:
        """Whether the judge's errors are known."""
        return any(entry.corrected is not None for entry in self.main)

    @property
    def lossy(self) -> bool:
        """Whether rows are unparsed or missing."""
        return any(entry.unparsed + entry.missing > 0 for entry in self.main)


def attack_tables(metrics: StudyMetrics, arms: Sequence[ArmInfo]) -> Iterator[AttackTable]:
    labels = arm_labels(arms)
    for stage in STAGES:
        for decoder in DECODERS:
            entries = metrics.attacks_by(stage, decoder)
            found = {(entry.arm, entry.seed, entry.benchmark): entry for entry in entries}
            benchmarks = sorted({entry.benchmark for entry in entries} - {ALL})
            columns = benchmarks + ([ALL] if len(benchmarks) > 1 else [])
            if columns:
                rows = [(labels[arm.key], [found.get((arm.name, arm.seed, name)) for name in columns]) for arm in arms]
                yield AttackTable(stage, decoder, columns, rows)


def overrefusal_tables(
    metrics: StudyMetrics, arms: Sequence[ArmInfo]
) -> Iterator[tuple[str, str, str, list[tuple[str, OverrefusalMetrics | None]]]]:
    """For each stage, decoder and set of requests: the label and metrics of each arm, None if not evaluated yet."""
    labels = arm_labels(arms)
    for stage in STAGES:
        for decoder in dict.fromkeys(task.decoders[0] for task in judged_tasks("overrefusal")):
            entries = [entry for entry in metrics.overrefusals if (entry.stage, entry.decoder) == (stage, decoder)]
            for name in dict.fromkeys(entry.benchmark for entry in entries):
                found = {(entry.arm, entry.seed): entry for entry in entries if entry.benchmark == name}
                yield stage, decoder, name, [(labels[arm.key], found.get((arm.name, arm.seed))) for arm in arms]
