"""The report of a study: one self-contained page, its tables as CSV and all its numbers as JSON.

    curricula report runs/demo          # writes runs/demo/report/index.html

From rows to page: `read_study_rows` reads the evaluations, `study_metrics`, `run_claim_tests` and `arm_differences`
(`eval/analysis`) make the numbers, `draw_figures` (`eval/report/figures.py`) draws them, and `eval/report/report.html.j2`
sets them. The page also shows the losses and the frozen study, if the run has them. Generated text is untrusted: it is
escaped, and invisible characters are spelled out.

`summary.json` and the CSV files depend on the rows alone (no dates, no paths), so an interrupted and an uninterrupted
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
from curricula.eval.analysis.claim_tests import ClaimTest, run_claim_tests
from curricula.eval.analysis.differences import ArmDifference, arm_differences
from curricula.eval.analysis.estimates import arm_estimates, variance_parts
from curricula.eval.analysis.metrics import ALL, AttackMetrics, OverrefusalMetrics, StudyMetrics, study_metrics
from curricula.eval.analysis.runs import runs_of
from curricula.eval.analysis.study_rows import ArmInfo, StudyRows, read_study_rows
from curricula.eval.judges.settings import caveats
from curricula.eval.report.figures import FIGURES, draw_figures
from curricula.eval.report.wording import (
    CATEGORIES,
    DECODERS,
    INTERVENTIONS,
    STAGES,
    arm_label,
    arm_labels,
    facts,
    flattened,
    judge_names,
    number,
    p_value,
    percent,
    points,
    samples,
    visible,
)
from curricula.eval.tasks import judged_tasks
from curricula.progress import Progress, silent

FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""How a cell begins that a spreadsheet would compute."""
MARKS = {"reproduced": "✓", "not reproduced": "✗", "inconclusive": "~", "single run": "1", "not measured": "–"}


def write_report(
    run: Path, arms: Sequence[ArmInfo], study: Mapping[str, Any], out: Path, progress: Progress = silent
) -> Path:
    """Write the report of `run` to `out` and return the page's path. Missing evaluations are shown as missing.

    `study` may hold "plan" (with "study", "model", "budget", "trained_tokens") and "provenance", which are only shown, and
    "tasks", the planned tasks of each stage, from which the page knows what is still missing; and "changed", how benchmarks
    differ from the published ones.
    Raises UserError for a damaged file of rows, and for rows of another model, stage or task than their place says.
    """
    steps = len(arms) + 4
    rows = read_study_rows(run, arms, lambda count: progress(count, steps))
    metrics = study_metrics(rows)
    progress(len(arms) + 1, steps)
    runs = runs_of(rows)
    claim_tests = run_claim_tests(runs)
    progress(len(arms) + 2, steps)
    drawn, first = metrics.of_seed(rows.seeds[0]), rows.of_seed(rows.seeds[0]).arms
    pictures = draw_figures(drawn, first, out / "figures")
    progress(len(arms) + 3, steps)
    differences, estimates = list(arm_differences(runs)), list(arm_estimates(runs))
    over_seeds: dict[str, list[Any]] = {"estimates": estimates, "variance": list(variance_parts(runs))}
    write_tables(out, metrics, claim_tests, differences, over_seeds, arms)
    plan = study.get("plan") or {}
    frozen = run / "study.yaml"
    losses = final_losses(run)
    labels = arm_labels(arms)
    page = _template().render(
        name=plan.get("study") or run.resolve().name,
        facts=facts(plan, metrics),
        fictional=(run / "world").exists(),
        seeds=rows.seeds,
        arms=[(arm, labels[arm.key], INTERVENTIONS.get(arm.interventions, arm.interventions)) for arm in arms],
        claim_tests=claim_tests,
        outcomes={outcome: sum(test.outcome == outcome for test in claim_tests) for outcome in MARKS},
        marks=MARKS,
        figures=[
            (figure, embedded(path), figure.caption(drawn)) for figure, path in zip(FIGURES, pictures, strict=True)
        ],
        differences=differences,
        estimates=[row for row in estimates if row.seeds > 1],
        incoherent=[entry for entry in metrics.attacks if entry.incoherent],
        labels={arm.name: arm_label(arm) for arm in arms},
        attack_tables=list(attack_tables(metrics, arms)),
        overrefusal_tables=list(overrefusal_tables(metrics, arms)),
        categories=CATEGORIES,
        probes=metrics.probes,
        losses=losses,
        validated=sorted({name for segment in losses for name in segment["validation"]}),
        not_evaluated=not_evaluated(rows, study.get("tasks", {})),
        incomplete=incomplete(metrics),
        changed=study.get("changed") or {},
        rewritten=sum(row.changed for answers in rows.generations.values() for row in answers),
        caveats=caveats(judge_names([*metrics.attacks, *metrics.overrefusals])),
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


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=number, percent=percent, visible=visible, points=points, p_value=p_value)
    return environment.get_template("report.html.j2")


def not_evaluated(study: StudyRows, tasks: Mapping[str, Sequence[str]]) -> list[str]:
    """The planned `tasks` (by stage) that have no rows yet, as "arm stage task"."""
    evaluated = set(study.generations) | {(arm, stage, "probes") for arm, stage in study.probes}
    return [
        f"{arm.key} {stage} {task}"
        for arm in study.arms
        for stage in STAGES
        for task in tasks.get(stage, ())
        if (arm.key, stage, task) not in evaluated
    ]


def incomplete(metrics: StudyMetrics) -> list[AttackMetrics | OverrefusalMetrics]:
    """Metrics with unparsed or missing rows, without the averages over benchmarks, which only repeat their parts."""
    entries: list[AttackMetrics | OverrefusalMetrics] = [entry for entry in metrics.attacks if entry.benchmark != ALL]
    return [entry for entry in entries + metrics.overrefusals if entry.unparsed or entry.missing]


# Tables and JSON ------------------------------------------------------------------------------------------------------


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
) -> Iterator[tuple[str, str, list[tuple[str, OverrefusalMetrics | None]]]]:
    """For each stage and decoder: the label and metrics of each arm, None if not evaluated yet."""
    labels = arm_labels(arms)
    for stage in STAGES:
        for decoder in dict.fromkeys(task.decoders[0] for task in judged_tasks("overrefusal")):
            if found := {(entry.arm, entry.seed): entry for entry in metrics.overrefusals_by(stage, decoder)}:
                yield stage, decoder, [(labels[arm.key], found.get((arm.name, arm.seed))) for arm in arms]


def final_losses(run: Path) -> list[dict[str, Any]]:
    """The last training step and last validation of each pretraining segment: segment, step, tokens, loss, validation."""
    segments = []
    for path in sorted(run.glob("pretrain/*/metrics.jsonl")):
        rows = durable.read_jsonl(path)
        trained = [row for row in rows if "loss" in row]
        validated = [row["validation"] for row in rows if isinstance(row.get("validation"), dict)]
        if trained:
            last = {key: trained[-1].get(key) for key in ("step", "tokens", "loss")}
            segments.append({"segment": path.parent.name, **last, "validation": validated[-1] if validated else {}})
    return segments


def embedded(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
