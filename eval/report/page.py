"""The report of a study: one self-contained page, its tables as CSV and LaTeX, and all its numbers as JSON.

    curricula report runs/demo          # writes runs/demo/report/index.html

Generated text is untrusted: it is embedded compressed and set as text, never as markup, and its invisible characters are
spelled out. `summary.json` and `tables/` depend on the rows alone (no dates, no paths), so those of an interrupted and an
uninterrupted study can be compared byte by byte.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from curricula import durable
from curricula.eval.analysis.along import curve_points
from curricula.eval.analysis.capability import (
    bits_estimates,
    bits_per_byte,
    capability_estimates,
    lacking_tasks,
    study_capability,
)
from curricula.eval.analysis.claims import AUC, TOPK, run_claim_tests
from curricula.eval.analysis.metrics import ALL, AttackMetrics, OverrefusalMetrics, StudyMetrics
from curricula.eval.analysis.representations import representations
from curricula.eval.analysis.runs import (
    Runs,
    arm_changes,
    arm_differences,
    probe_estimates,
    runs_of,
    study_metrics,
    variance_parts,
)
from curricula.eval.analysis.study_rows import ArmInfo, StudyRows, read_study_rows
from curricula.eval.analysis.worst_case import attack_strengths, attacks_met
from curricula.eval.judges.caveats import COARSE, caveats, vague
from curricula.eval.report import page_tables, wording
from curricula.eval.report.figures import draw_figures, remove_stale
from curricula.eval.report.points import Shown, comparable_estimates, judges_points
from curricula.eval.report.tables import write_each, write_tables
from curricula.eval.report.training import Training, cost_rows, read_training, training_rows
from curricula.eval.report.web.data import embedded_json, hashes, head, packed_answers, page_figures, study_data
from curricula.eval.rows import MODEL_KINDS
from curricula.progress import Progress, silent
from curricula.terminal import fixed

MARKS = {"reproduced": "✓", "not reproduced": "✗", "inconclusive": "~", "single run": "1", "not measured": "–"}


def write_report(
    run: Path, arms: Sequence[ArmInfo], study: Mapping[str, Any], out: Path, progress: Progress = silent, is_live: bool = False
) -> Path:
    """Write the report of `run` to `out` and return the page's path. Missing evaluations are shown as missing.

    A page that `is_live` keeps asking its server for a newer version. Every key of `study` is optional:

    - "plan": the plan, as `jobs/estimates.py: describe_point` returns it
    - "provenance", "hashes": shown as they are
    - "sweep": the `Training` of all points of a sweep, whose costs are added up
    - "tasks": the planned tasks of each stage, in order; those without rows are shown as missing
    - "having": the arms that have each stage
    - "parents": the stage that each stage continues from, if the models of both are prompted in the same form
    - "papers": the paper's stages; its claims are tested on these only
    - "courses": what is measured along the trainings
    - "judges": by kind, the judges of answers that are not merged yet
    - "unfinished": what runs or waits
    - "changed": how benchmarks differ from the published ones
    - "contamination": how many prompts of each benchmark occur in the training text
    - "bits_per_byte": the losses of base models on held-out text; "bits_missing": why there are none
    - "tagged": whether arms are tuned with different shares of tagged conversations
    - "cooled": whether the arms' learning rates start to fall at different steps
    """
    steps = len(arms) + 4
    stages = tuple(study.get("tasks") or MODEL_KINDS)
    rows = read_study_rows(run, arms, lambda count: progress(count, steps), stages, study.get("judges") or {})
    runs = runs_of(rows, study.get("having", {}))
    shown = shown_of(run, runs, study)
    progress(len(arms) + 1, steps)
    tables = tables_of(run, runs, shown, study)
    progress(len(arms) + 2, steps)
    pictures = draw_figures(shown, out / "figures")
    figures = list(page_figures(shown, pictures))
    remove_stale(out / "figures", pictures.values())
    progress(len(arms) + 3, steps)
    write_tables(out, tables, arms)
    spent = study.get("sweep") or shown.training
    record: dict[str, Sequence[Any]] = {"training": training_rows(shown.training), "cost": list(cost_rows(spent))}
    write_each(out / "record", record)  # times and restarts differ from run to run
    blocks, answers = packed_answers(rows)
    page = template("report.html.j2").render(
        **head(is_live=is_live),
        is_live=is_live,
        is_swept=spent is not shown.training,
        data=embedded_json(study_data(shown, tables["points"], answers)),
        blocks=[Markup(block) for block in blocks],
        count=answers["count"],
        figures=figures,
        shown=shown,
        tables=tables,
        study=study,
        **record,
        **_page_values(run, rows, shown, tables, study),
    )
    durable.write_text(out / "index.html", page)
    progress(steps, steps)
    return out / "index.html"


def shown_of(run: Path, runs: Runs, study: Mapping[str, Any]) -> Shown:
    metrics = study_metrics(runs)
    tuned = {f"{arm.holder(stage)}/{stage}" for arm in runs.study.arms for stage in runs.study.stages}
    return Shown(
        arms=runs.arms,
        seeds=runs.study.seeds,
        metrics=metrics,
        estimates=list(comparable_estimates(runs, metrics)),
        probes=list(probe_estimates(runs)),
        planned=study.get("tasks") or {},
        training=read_training(run, study.get("plan") or {}, tuned),
        differences=list(arm_differences(runs)),
        curves=curve_points(run, study.get("courses", ())),
        capability=list(capability_estimates(runs.study)),
        met=list(attacks_met(runs)),
    )


def tables_of(run: Path, runs: Runs, shown: Shown, study: Mapping[str, Any]) -> dict[str, Sequence[Any]]:
    """The tables by name. They depend on the rows alone."""
    rows, metrics = runs.study, shown.metrics
    bits = [bits_per_byte(**row) for row in study.get("bits_per_byte", ())]
    return {
        "attacks": metrics.attacks,
        "overrefusal": metrics.overrefusals,
        "probes": metrics.probes,
        "pruning": metrics.pruning,
        "trends": run_claim_tests(runs, stages=study.get("papers", MODEL_KINDS)),
        "differences": shown.differences,
        "changes": list(arm_changes(runs, study.get("parents", {}))),
        "estimates": shown.estimates,
        "probe-estimates": shown.probes,
        "variance": list(variance_parts(runs)),
        "points": [*shown.points, *judges_points(runs)],
        # The published rates are for real requests.
        "published": [] if is_fictional(run) else page_tables.published_rows(shown),
        "worst-case": list(attack_strengths(shown.met)),
        "representations": list(representations(run, rows)),
        "capability": study_capability(rows),
        "capability-estimates": shown.capability,
        "bits-per-byte": bits,
        "bits-estimates": list(bits_estimates(bits)),
        "along": shown.curves,
    }


def is_fictional(run: Path) -> bool:
    return (run / "world").exists()


def _page_values(
    run: Path, rows: StudyRows, shown: Shown, tables: Mapping[str, Sequence[Any]], study: Mapping[str, Any]
) -> dict[str, Any]:
    """The variables of the page's template, except its figures, records and scripts."""
    metrics, arms, tasks, plan = shown.metrics, shown.arms, shown.planned, study.get("plan") or {}
    labels = {arm.name: wording.arm_label(arm) for arm in arms}
    interventions = {arm["name"]: ", ".join(arm["intervention_sources"]) or "none" for arm in plan.get("arms", ())}
    measured = {name for names in (*tasks.values(), *(course.tasks for course in study.get("courses", ()))) for name in names}
    shares = [one.rate for one in shown.estimates] + [one.auc for one in shown.probes] + [one.value for one in shown.capability]
    of_judges = caveats(wording.judge_names(metrics.attacks), wording.judge_names(metrics.overrefusals))
    corrected = (
        (f"{one.place} on {'average' if one.benchmark == ALL else one.benchmark}", one.corrected_low, one.corrected_high)
        for one in metrics.attacks
    )
    frozen = run / "study.yaml"
    return {
        "name": plan.get("study") or run.resolve().name,
        "fictional": is_fictional(run),
        # False if the study measures only capability.
        "of_safety": any(not name.startswith("capability") for name in measured) or not tasks,
        "verdict": wording.verdict(tables["trends"]),
        "basis": wording.basis(shown.seeds, arms, metrics, plan),
        "arms": [(arm, labels[arm.name], interventions.get(arm.key, arm.interventions)) for arm in arms],
        "outcomes": {outcome: sum(test.outcome == outcome for test in tables["trends"]) for outcome in MARKS},
        "change_tables": list(page_tables.change_tables(tables["changes"], arms)),
        "estimate_tables": list(page_tables.estimate_tables(shown)) if shown.several else [],
        "variance": list(page_tables.variance_rows(tables["variance"], arms)),
        # Whether any arm has several runs yet; `shown.several` says whether it is to have them.
        "replicated": any(len(share.runs) > 1 for share in shares),
        "incoherent": {entry.place: entry.competence for entry in metrics.attacks if entry.incoherent},
        "margins": {"rate": TOPK, "auc": AUC},
        "labels": labels,
        "attack_tables": list(page_tables.attack_tables(metrics, rows.arms)),
        "strength_tables": list(page_tables.strength_tables(tables["worst-case"], shown.met, arms)),
        "overrefusal_tables": list(page_tables.overrefusal_tables(metrics, rows.arms)),
        "coarse": "" if all(entry.tells_helpful for entry in metrics.overrefusals) else COARSE,
        "baselines": [name for name in ("words_auc", "untrained_auc") if any(getattr(entry, name) for entry in metrics.probes)],
        "representation_tables": list(page_tables.representation_tables(tables["representations"], arms)),
        "capability_tables": list(page_tables.capability_tables(arms, tables["capability-estimates"], lacking_tasks(rows))),
        "bits_table": page_tables.bits_table(arms, tables["bits-estimates"]),
        "losses": list(losses(shown.training)),
        "on_cpus": str((study.get("provenance") or {}).get("packages", {}).get("torch")).endswith("+cpu"),
        "not_evaluated": not_evaluated(rows, tasks, study.get("having", {})),
        "partial": [" ".join(place) for place in sorted(rows.partial)],
        "incomplete": incomplete(metrics),
        "planned": " ".join(name for names in tasks.values() for name in names),
        "contamination": {row["benchmark"]: row for row in study.get("contamination") or ()},
        "rewritten": sum(row.changed for answers in rows.generations.values() for row in answers),
        "caveats": " ".join(filter(None, (of_judges, vague(corrected)))),
        "stages": {name: wording.stage_title(name) for name in dict.fromkeys((*wording.STAGES, *tasks))},
        "provenance": list(wording.flattened(study.get("provenance") or {})),
        "hashes": [*(study.get("hashes") or []), *hashes(rows)],
        "study_text": frozen.read_text(encoding="utf-8") if frozen.exists() else "",
    }


@functools.cache
def template(name: str) -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    forms = ("number", "amount", "percent", "visible", "points", "p_value")
    environment.filters.update({form: getattr(wording, form) for form in forms}, start=wording.start_label, fixed=fixed)
    environment.globals.update(decoders=wording.DECODERS, categories=wording.CATEGORIES, marks=MARKS)
    return environment.get_template(name)


def not_evaluated(study: StudyRows, tasks: Mapping[str, Sequence[str]], having: Mapping[str, Sequence[str]]) -> list[str]:
    """The planned `tasks` (by stage) that have no rows yet, as "arm stage task", such as "full-0 base capability mmlu".

    Only the arms that `having` lists have a stage; all arms have a stage that it does not list.
    """
    evaluated = set(study.generations) - study.partial | {(arm, stage, "probes") for arm, stage in study.probes}
    evaluated |= {(*place, f"capability {row.benchmark}") for place, rows in study.capability.items() for row in rows}
    return [
        f"{arm.key} {stage} {task}"
        for arm in study.arms
        for stage in study.stages
        for task in (tasks.get(stage, ()) if arm.name in having.get(stage, (arm.name,)) else ())
        if (arm.key, stage, task) not in evaluated
    ]


def losses(training: Training) -> Iterator[tuple[str, str, list[dict[str, Any]], list[str]]]:
    """The tables of the latest losses: id, caption, rows, and the validation sources that have columns."""
    rows = list(zip(training.branches, training_rows(training), strict=True))
    pretrained = "The latest step of each pretraining run; branches leave the trunk where their interventions start."
    tuned = "The latest step of each stage after pretraining."
    for name, caption, is_tuning in (("t-losses", pretrained, False), ("t-tuning", tuned, True)):
        own = [(branch, row) for branch, row in rows if bool(branch.later_stage) is is_tuning]
        sources = sorted({source for branch, _ in own for source in branch.validation})
        words = " Validation losses are on held-out documents, in nats per token." if sources else ""
        yield name, caption + words, [row for _, row in own], sources


def incomplete(metrics: StudyMetrics) -> list[AttackMetrics | OverrefusalMetrics]:
    """Metrics with unparsed or missing rows, without the averages over benchmarks, which only repeat their parts."""
    entries: list[AttackMetrics | OverrefusalMetrics] = [*metrics.attacks, *metrics.overrefusals]
    return [entry for entry in entries if entry.benchmark != ALL and (entry.unparsed or entry.missing)]
