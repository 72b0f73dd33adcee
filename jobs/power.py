"""What a study can detect, before it costs anything: `curricula plan --power`."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from curricula import durable
from curricula.curriculum.stages import BASE
from curricula.errors import UsageError
from curricula.eval.analysis.claims import CLAIMS
from curricula.eval.analysis.power import ASSUMED, POWER, Design, averaged, equal_prompts, table
from curricula.eval.analysis.seeds import Components
from curricula.eval.benchmarks import BENCHMARKS
from curricula.jobs.estimates import MOST_HERE, minutes_here
from curricula.jobs.plan import Plan
from curricula.jobs.study import Study
from curricula.terminal import folded


def study_power(plan: Plan, summary: Path) -> dict[str, Any]:
    """The smallest detectable differences in attack success under top-k, for the study's number of seeds and for one and two
    more, as plain values. Without variance components in an earlier report's `summary`, they are assumed."""
    study = plan.study
    seeds = len(study.replicates) // len(study.variants)
    prompts = prompts_of(study)
    design = Design(seeds, equal_prompts(prompts.values()), study.evaluation.topk.samples)
    measured = averaged(_measured(summary))
    components = measured or ASSUMED
    rows = table(design, sum(plan.gpu_hours().values()) / seeds, len(CLAIMS), components)
    return {
        "seeds": seeds,
        "prompts": sum(prompts.values()),
        "equal_prompts": design.prompts,
        "samples": design.samples,
        "prompts_assumed": {
            name: number for name, number in prompts.items() if name not in {*BENCHMARKS, *study.evaluation.own_sets}
        },
        "claims": len(CLAIMS),
        "components": {"source": str(summary) if measured else "assumed", **dataclasses.asdict(components)},
        "minutes_a_seed": minutes_here(plan) / seeds,
        "table": [dataclasses.asdict(row) for row in rows],
    }


def prompts_of(study: Study) -> dict[str, int]:
    """The approximate number of prompts of each benchmark that attack a model under top-k, near-duplicates included; if kinds
    of models have different prompts, those of the kind that is measured least precisely. Raises UsageError if no model is
    attacked under top-k."""
    models = [point.eval_tasks(name) for point in study.variants.values() for name in (BASE, *point.tree.stages)]
    attacks = [[task for task in tasks if task.task.name == "attacks-topk"] for tasks in models]
    by_model = [{task.benchmark: study.prompts_in(task.benchmark, task.limit) for task in tasks} for tasks in attacks if tasks]
    if not by_model:
        raise UsageError(
            f"--power is about attack success, but no model of {study.name} has the task attacks-topk; leave --power out"
        )
    return min(by_model, key=lambda prompts: equal_prompts(prompts.values()))


def _measured(summary: Path) -> Iterator[Components]:
    """The variance components of each difference between arms under top-k that a report has measured."""
    for row in durable.read_json(summary).get("variance", ()) if summary.exists() else ():
        if row["reference"] and row["task"] == "attacks-topk":
            parts = (row["seed"], row["prompt"], row["interaction"], row["sample"] or 0.0)
            yield Components(*(part**2 for part in parts))


def power_lines(value: dict[str, Any]) -> Iterator[str]:
    """The values of `study_power` as lines to print."""
    components = value["components"]
    parts = ", ".join(f"{name} {100 * components[name] ** 0.5:.1f}" for name in ("seed", "prompt", "interaction", "sample"))
    is_assumed = components["source"] == "assumed"
    source = "assumed from the demo's base models" if is_assumed else f"measured in {components['source']}"
    assumed = "".join(f", {number:,} of {name} assumed" for name, number in value["prompts_assumed"].items())
    total, equal = value["prompts"], round(value["equal_prompts"])
    counted = f", which count as {equal:,} because all benchmarks have the same weight" if equal < total else ""
    yield "\n" + folded(
        f"Smallest difference in attack success between two arms that is found with {POWER:.0%} probability, in points "
        f"({total:,} prompts{counted}{assumed}, {value['samples']} samples; two-sided):",
        sys.__stdout__,
    )
    is_here = value["minutes_a_seed"] * value["seeds"] < MOST_HERE
    cost = "minutes on this machine" if is_here else "GPU-hours at most"
    yield f"  seeds  one test at 0.05  first of {value['claims']} claims (Holm)  {cost}"
    for row in value["table"]:
        one, holm = ("none" if row[name] is None else f"{100 * row[name]:.0f}" for name in ("unadjusted", "holm"))
        spent = value["minutes_a_seed"] * row["seeds"] if is_here else row["gpu_hours"]
        yield f"  {row['seeds']:5}  {one:>16}  {holm:>25}  {spent:>{len(cost)},.0f}"
    yield folded(
        f"Standard deviations of a difference between arms, {source}, in points: {parts}. See docs/statistics.md.",
        sys.__stdout__,
    )
