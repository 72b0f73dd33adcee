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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from curricula import durable
from curricula.eval.analysis.capability import bits_estimates, bits_per_byte, capability_estimates, study_capability
from curricula.eval.analysis.claim_tests import run_claim_tests
from curricula.eval.analysis.differences import arm_differences
from curricula.eval.analysis.estimates import arm_estimates, probe_estimates, variance_parts
from curricula.eval.analysis.metrics import ALL, AttackMetrics, OverrefusalMetrics, StudyMetrics, study_metrics
from curricula.eval.analysis.runs import runs_of
from curricula.eval.analysis.study_rows import ArmInfo, StudyRows, read_study_rows
from curricula.eval.attacks.worst_case import attack_strengths
from curricula.eval.judges.settings import caveats, vague
from curricula.eval.probes.representations import representations
from curricula.eval.report.capability import bits_table, capability_tables, draw_capability
from curricula.eval.report.figures import FIGURES, draw_figures
from curricula.eval.report.over_seeds import estimate_tables, strength_tables, variance_rows
from curricula.eval.report.points import Shown
from curricula.eval.report.representations import draw_layers, representation_tables
from curricula.eval.report.tables import attack_tables, overrefusal_tables, write_tables
from curricula.eval.report.verdict import basis, verdict
from curricula.eval.report.wording import (
    CATEGORIES,
    DECODERS,
    INTERVENTIONS,
    STAGES,
    arm_label,
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
from curricula.progress import Progress, silent

MARKS = {"reproduced": "✓", "not reproduced": "✗", "inconclusive": "~", "single run": "1", "not measured": "–"}


def write_report(
    run: Path, arms: Sequence[ArmInfo], study: Mapping[str, Any], out: Path, progress: Progress = silent
) -> Path:
    """Write the report of `run` to `out` and return the page's path. Missing evaluations are shown as missing.

    `study` may hold "plan" (with "study", "model", "budget", "trained_tokens") and "provenance", which are only shown, and
    "tasks", the planned tasks of each stage, from which the page knows what is still missing; and "changed", how benchmarks
    differ from the published ones; "bits_per_byte", the losses of base models on held-out text.
    "tasks", the planned tasks of each stage, from which the page knows what is still missing; "changed", how benchmarks
    differ from the published ones; and "contamination", how many prompts of each occur in the training text.
    Raises UserError for a damaged file of rows, and for rows of another model, stage or task than their place says.
    """
    steps = len(arms) + 4
    rows = read_study_rows(run, arms, lambda count: progress(count, steps))
    metrics = study_metrics(rows)
    progress(len(arms) + 1, steps)
    runs = runs_of(rows)
    claim_tests, differences = run_claim_tests(runs), list(arm_differences(runs))
    estimates, probes, variance = list(arm_estimates(runs)), list(probe_estimates(runs)), list(variance_parts(runs))
    capability, bits = (
        list(capability_estimates(rows)),
        [bits_per_byte(**one) for one in study.get("bits_per_byte", ())],
    )
    bits_over_seeds = list(bits_estimates(bits))
    progress(len(arms) + 2, steps)
    shown = Shown(runs.arms, rows.seeds, metrics, estimates, probes)
    pictures = draw_figures(shown, out / "figures")
    progress(len(arms) + 3, steps)
    costs = draw_capability(shown, capability, out / "figures")
    layers = draw_layers(shown, out / "figures")
    strengths, alike = list(attack_strengths(runs)), list(representations(run, rows))
    over_seeds: dict[str, Sequence[Any]] = {"estimates": estimates, "probe-estimates": probes, "variance": variance}
    over_seeds |= {"worst-case": strengths, "representations": alike}
    over_seeds |= {"capability": study_capability(rows), "capability-estimates": capability}
    over_seeds |= {"bits-per-byte": bits, "bits-estimates": bits_over_seeds}
    write_tables(out, metrics, claim_tests, differences, over_seeds, arms)
    plan = study.get("plan") or {}
    frozen = run / "study.yaml"
    losses = final_losses(run)
    labels = {arm.name: arm_label(arm) for arm in arms}
    page = _template().render(
        name=plan.get("study") or run.resolve().name,
        facts=facts(plan, metrics),
        fictional=(run / "world").exists(),
        seeds=rows.seeds,
        verdict=verdict(claim_tests),
        basis=basis(rows.seeds, runs.arms, metrics),
        arms=[(arm, labels[arm.name], INTERVENTIONS.get(arm.interventions, arm.interventions)) for arm in runs.arms],
        claim_tests=claim_tests,
        outcomes={outcome: sum(test.outcome == outcome for test in claim_tests) for outcome in MARKS},
        marks=MARKS,
        figures=[
            (figure, embedded(path), figure.caption(shown)) for figure, path in zip(FIGURES, pictures, strict=True)
        ],
        differences=differences,
        estimate_tables=list(estimate_tables(shown)) if shown.several else [],
        variance=list(variance_rows(variance, runs.arms)),
        incoherent=[entry for entry in metrics.attacks if entry.incoherent],
        labels=labels,
        attack_tables=list(attack_tables(metrics, arms)),
        strength_tables=list(strength_tables(strengths, runs.arms)),
        overrefusal_tables=list(overrefusal_tables(metrics, arms)),
        categories=CATEGORIES,
        probes=metrics.probes,
        baselines=[
            name for name in ("words_auc", "untrained_auc") if any(getattr(one, name) for one in metrics.probes)
        ],
        layers_figure=(embedded(layers[0]), layers[1]) if layers else None,
        representation_tables=list(representation_tables(alike, runs.arms)),
        capability_figure=(embedded(costs[0]), costs[1]) if costs else None,
        capability_tables=list(capability_tables(runs.arms, capability)),
        bits_table=bits_table(runs.arms, bits_over_seeds),
        losses=losses,
        validated=sorted({name for segment in losses for name in segment["validation"]}),
        not_evaluated=not_evaluated(rows, study.get("tasks", {})),
        incomplete=incomplete(metrics),
        changed=study.get("changed") or {},
        contamination={row["benchmark"]: row for row in study.get("contamination") or ()},
        rewritten=sum(row.changed for answers in rows.generations.values() for row in answers),
        caveats=" ".join(
            [
                caveats(judge_names([*metrics.attacks, *metrics.overrefusals])),
                *filter(None, (vague(one.place, one.corrected_low, one.corrected_high) for one in metrics.attacks)),
            ]
        ).strip(),
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
    evaluated |= {(arm, stage, "capability") for arm, stage in study.capability}
    return [
        f"{arm.key} {stage} {task}"
        for arm in study.arms
        for stage in STAGES
        for task in tasks.get(stage, ())
        if (arm.key, stage, task) not in evaluated
    ]


def incomplete(metrics: StudyMetrics) -> list[AttackMetrics | OverrefusalMetrics]:
    """Metrics with unparsed or missing rows, without the averages over benchmarks, which only repeat their parts."""
    entries: list[AttackMetrics | OverrefusalMetrics] = [*metrics.attacks, *metrics.overrefusals]
    return [entry for entry in entries if entry.benchmark != ALL and (entry.unparsed or entry.missing)]


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
