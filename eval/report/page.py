"""The report of a study: one self-contained page, its tables as CSV and all its numbers as JSON.

    curricula report runs/demo          # writes runs/demo/report/index.html

Reads `<run>/eval/<arm>/<stage>/<task>.jsonl`, and the metrics and the frozen study where they are there. How numbers
come about is in `eval/analysis/metrics.py` and `eval/analysis/claim_tests.py`; figures, wording
and page are in `eval/report/figures.py`, `eval/report/wording.py` and `eval/report/report.html.j2`. Generated text is
untrusted: it is escaped, control characters spelt out.

`summary.json` and the CSV files depend on the rows alone (no dates, no paths): an interrupted and an uninterrupted
study can be compared byte by byte.
"""

from __future__ import annotations

import base64
import csv
import dataclasses
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from curricula import durable
from curricula.eval.analysis.claim_tests import StudyRows, Trend, judge_claims
from curricula.eval.analysis.claims import AUC, ArmInfo
from curricula.eval.analysis.differences import ArmDifference, arm_differences
from curricula.eval.analysis.metrics import (
    ALL,
    AttackCell,
    Cells,
    OverrefusalCell,
    RowId,
    attack_cells,
    overrefusal_cell,
    probe_cells,
    row_id,
)
from curricula.eval.judging.verdicts import read_judged
from curricula.eval.report.figures import FIGURES, STAGES, draw_figures
from curricula.eval.report.panels import CATEGORIES, arm_label
from curricula.eval.report.wording import (
    DECODERS,
    described,
    facts,
    flattened,
    number,
    p_value,
    percent,
    points,
    samples,
    visible,
)
from curricula.eval.rows import JudgedRow, ProbeRow, read_rows
from curricula.eval.tasks import judged_tasks
from curricula.progress import Progress, silent

__all__ = ["ArmInfo", "write_report", "read_evaluations", "cells_of"]

ATTACK_TASKS = tuple(task.name for task in judged_tasks("attack"))
OVERREFUSAL_TASKS = {task.name: task.decoders[0] for task in judged_tasks("overrefusal")}
ARM_WORDS = {
    "data": "rephrasing, refusals, moral education",
    "full": "the same, and tagged unsafe text",
    "none": "none",
}
MARKS = {"reproduced": "✓", "not reproduced": "✗", "inconclusive": "~", "not measured": "–"}


def write_report(
    run: Path, arms: Sequence[ArmInfo], study: Mapping[str, Any], out: Path, progress: Progress = silent
) -> Path:
    """Build the report of `run` in `out` and return the page's path. Missing evaluations are shown as missing.

    `study` may hold "plan" (with "study", "model", "budget", "trained_tokens") and "provenance", which are only shown, and
    "tasks", the planned tasks of each stage, by which the page knows what is still missing.
    Raises UserError for a row file that is damaged.
    """
    steps = len(arms) + 4
    rows = read_evaluations(run, arms, lambda done: progress(done, steps))
    cells = cells_of(rows)
    progress(len(arms) + 1, steps)
    trends = judge_claims(rows)
    progress(len(arms) + 2, steps)
    pictures = draw_figures(cells, arms, out / "figures")
    progress(len(arms) + 3, steps)
    differences = list(arm_differences(arms, rows.generations))
    write_tables(out, cells, trends, differences, arms)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=number, percent=percent, visible=visible, points=points, p_value=p_value)
    plan = study.get("plan") or {}
    frozen = run / "study.yaml"
    page = environment.get_template("report.html.j2").render(
        name=plan.get("study") or run.resolve().name,
        facts=facts(plan, cells),
        fictional=(run / "world").exists(),
        arms=[(arm, arm_label(arm), ARM_WORDS.get(arm.interventions, arm.interventions)) for arm in arms],
        trends=trends,
        outcomes={result: sum(trend.outcome == result for trend in trends) for result in MARKS},
        marks=MARKS,
        auc=AUC.name,
        figures=[
            (figure, embedded(path), described(figure, cells)) for figure, path in zip(FIGURES, pictures, strict=True)
        ],
        differences=differences,
        labels={arm.name: arm_label(arm) for arm in arms},
        attack_tables=list(attack_tables(cells, arms)),
        overrefusal_tables=list(overrefusal_tables(cells, arms)),
        categories=[label for label, _, _ in CATEGORIES],
        probes=cells.probes,
        losses=(lines := losses(run)),
        validated=sorted({name for line in lines for name in line["validation"]}),
        absent=absences(rows, study.get("tasks", {})),
        incomplete=list(incomplete(cells)),
        samples=list(samples(rows)),
        stages=STAGES,
        decoders=DECODERS,
        provenance=list(flattened(study.get("provenance") or {})),
        study_text=frozen.read_text() if frozen.exists() else "",
    )
    with durable.open_atomically(out / "index.html") as file:
        file.write(page.encode())
    progress(steps, steps)
    return out / "index.html"


def read_evaluations(run: Path, arms: Sequence[ArmInfo], after_arm: Any = lambda done: None) -> StudyRows:
    """All rows under `run`/eval; what is not there is left out."""
    generations: dict[tuple[str, str, str], list[JudgedRow]] = {}
    probes: dict[tuple[str, str], list[ProbeRow]] = {}
    for done, arm in enumerate(arms, start=1):
        for stage in STAGES:
            folder = run / "eval" / arm.name / stage
            for task in (*ATTACK_TASKS, *OVERREFUSAL_TASKS):
                if found := read_judged(folder / f"{task}.jsonl"):
                    generations[arm.name, stage, task] = found
            if measured := read_rows(folder / "probes.jsonl", ProbeRow):
                probes[arm.name, stage] = measured
        after_arm(done)
    return StudyRows(tuple(arms), generations, probes)


def cells_of(study: StudyRows) -> Cells:
    """Every cell of the study, in the order of its arms; a row that any arm has is expected of all."""
    expected: dict[tuple[str, str], set[RowId]] = {}
    for (_, stage, task), rows in study.generations.items():
        expected.setdefault((stage, task), set()).update(map(row_id, rows))
    cells = Cells([], [], [])
    for arm in study.arms:
        for stage in STAGES:
            for task in ATTACK_TASKS:
                if rows := study.generations.get((arm.name, stage, task), []):
                    cells.attacks.extend(attack_cells(rows, arm.name, stage, expected[stage, task]))
            for task, decoder in OVERREFUSAL_TASKS.items():
                if rows := study.generations.get((arm.name, stage, task), []):
                    cell = overrefusal_cell(rows, arm.name, stage, decoder, expected[stage, task])
                    cells.overrefusals.append(cell)
            cells.probes.extend(probe_cells(study.probes.get((arm.name, stage), []), arm.name, stage))
    return cells


def absences(study: StudyRows, tasks: Mapping[str, Sequence[str]]) -> list[str]:
    """Which of the planned `tasks` (stage -> tasks) have no rows yet, as "arm stage task"."""
    have = set(study.generations) | {(arm, stage, "probes") for arm, stage in study.probes}
    return [
        f"{arm.name} {stage} {task}"
        for arm in study.arms
        for stage in STAGES
        for task in tasks.get(stage, ())
        if (arm.name, stage, task) not in have
    ]


def incomplete(cells: Cells) -> Iterator[AttackCell | OverrefusalCell]:
    """Cells with rows that are unparsed or missing; the average over benchmarks only repeats its parts."""
    every: list[AttackCell | OverrefusalCell] = [cell for cell in cells.attacks if cell.benchmark != ALL]
    yield from (cell for cell in [*every, *cells.overrefusals] if cell.unparsed or cell.missing)


# Tables and JSON ------------------------------------------------------------------------------------------------------


def write_tables(
    out: Path,
    cells: Cells,
    trends: Sequence[Trend],
    differences: Sequence[ArmDifference],
    arms: Sequence[ArmInfo],
) -> None:
    """`tables/*.csv` and `summary.json`, the same bytes for the same rows."""
    summary = {
        "arms": [dataclasses.asdict(arm) for arm in arms],
        "attacks": [plain(cell) for cell in cells.attacks],
        "overrefusal": [plain(cell) for cell in cells.overrefusals],
        "probes": [plain(cell) for cell in cells.probes],
        "trends": [plain(trend) for trend in trends],
        "differences": [plain(difference) for difference in differences],
    }
    for name in ("attacks", "overrefusal", "probes", "trends", "differences"):
        table = [{**row, **row.pop("shares", {})} for row in map(dict, summary[name])]
        text = io.StringIO()
        columns = dict.fromkeys(key for row in table for key in row)
        writer = csv.DictWriter(text, list(columns), lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
        with durable.open_atomically(out / "tables" / f"{name}.csv") as file:
            file.write(text.getvalue().encode())
    durable.write_json(out / "summary.json", summary)


def plain(record: Any) -> dict[str, Any]:
    """The fields of a dataclass with floats to six decimals: beyond those, another processor may differ."""
    return json.loads(json.dumps(dataclasses.asdict(record)), parse_float=lambda text: round(float(text), 6))


@dataclass(frozen=True)
class AttackTable:
    """One stage and decoder: a row per arm of (label, main cell or None, cells in the order of `benchmarks`)."""

    stage: str
    decoder: str
    benchmarks: list[str]
    rows: list[tuple[str, AttackCell | None, list[AttackCell | None]]]

    @property
    def several(self) -> bool:
        """Whether prompts were answered more than once."""
        return any(main is not None and main.samples > 1 for _, main, _ in self.rows)

    @property
    def corrected(self) -> bool:
        """Whether the judge's errors are known."""
        return any(main is not None and main.corrected is not None for _, main, _ in self.rows)

    @property
    def lossy(self) -> bool:
        """Whether rows are unparsed or missing."""
        return any(main is not None and main.unparsed + main.missing > 0 for _, main, _ in self.rows)


def attack_tables(cells: Cells, arms: Sequence[ArmInfo]) -> Iterator[AttackTable]:
    for stage in STAGES:
        for decoder in DECODERS:
            of = {(c.arm, c.benchmark): c for c in cells.attacks if (c.stage, c.decoder) == (stage, decoder)}
            names = sorted({benchmark for _, benchmark in of} - {ALL})
            columns = names + ([ALL] if len(names) > 1 else [])
            if columns:
                rows = [(arm_label(arm), [of.get((arm.name, name)) for name in columns]) for arm in arms]
                yield AttackTable(stage, decoder, columns, [(label, line[-1], line) for label, line in rows])


def overrefusal_tables(
    cells: Cells, arms: Sequence[ArmInfo]
) -> Iterator[tuple[str, str, list[tuple[str, OverrefusalCell | None]]]]:
    for stage in STAGES:
        for decoder in OVERREFUSAL_TASKS.values():
            of = {c.arm: c for c in cells.overrefusals if (c.stage, c.decoder) == (stage, decoder)}
            if of:
                yield stage, decoder, [(arm_label(arm), of.get(arm.name)) for arm in arms]


def losses(run: Path) -> list[dict[str, Any]]:
    """The last training step and the last validation of every pretraining line: step, tokens, loss, validation."""
    lines = []
    for path in sorted(run.glob("pretrain/*/metrics.jsonl")):
        rows = durable.read_jsonl(path)
        trained = [row for row in rows if "loss" in row]
        validated = [row["validation"] for row in rows if isinstance(row.get("validation"), dict)]
        if trained:
            last = {key: trained[-1].get(key) for key in ("step", "tokens", "loss")}
            lines.append({"line": path.parent.name, **last, "validation": validated[-1] if validated else {}})
    return lines


def embedded(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
