"""What a study will do, before it does it: arms, the training tree, tokens and epochs per source, jobs and GPU-hours."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from curricula.curriculum.config import VALIDATION
from curricula.curriculum.plan import Arm, Segment, intervention_share
from curricula.curriculum.sources.registry import dataset
from curricula.curriculum.stream.blend import Blend
from curricula.curriculum.tokens.shards import read_manifest
from curricula.errors import UserError
from curricula.jobs.graph import build_graph
from curricula.jobs.study import Study
from curricula.model.memory import GIB, estimate, layout_of, what_would_fit


def plan(study: Study, shards: Path | None = None) -> dict[str, Any]:
    """The whole plan as plain values. `shards` is the run's shard folder: where it is filled, its exact sizes are used."""
    config, budget = study.model.resolve(), study.budget
    segments, arms = study.segments(), study.arms()
    sizes = {name: _source_tokens(name, study, shards) for name in study.sources}
    described = [_arm(arm, study, sizes) for arm in arms]
    shared = sum(segment.stop - segment.start for segment in segments) * budget.step_tokens
    return {
        "study": study.name,
        "model": {
            "preset": study.model.preset,
            "parameters": config.parameters(),
            "flops_per_token": config.flops_per_token(budget.sequence_length),
            **msgspec.to_builtins(config),
        },
        "budget": {
            "requested_tokens": budget.requested_tokens,
            "tokens": budget.tokens,
            "steps": budget.steps,
            "step_tokens": budget.step_tokens,
            "snap_tokens": budget.snap_tokens(1.0),
            "sequence_length": budget.sequence_length,
            "global_batch": budget.global_batch,
        },
        "arms": described,
        "warnings": _warnings(described, study),
        "segments": [
            {
                "name": s.name,
                "branch": s.branch,
                "parent": s.parent,
                "start_step": s.start,
                "stop_step": s.stop,
                "tokens": (s.stop - s.start) * budget.step_tokens,
            }
            for s in segments
        ],
        "trained_tokens": {"with_trunk_sharing": shared, "without": len(arms) * budget.tokens},
        "jobs": [
            {
                "name": job.name,
                "stage": job.stage,
                "elements": [element.label for element in job.elements],
                "needs": [{"job": edge.job, "kind": edge.kind} for edge in job.needs],
            }
            for job in build_graph(study)
        ],
        "gpu_hours": _gpu_hours(study, shared),
        "gpu_memory": _gpu_memory(study),
    }


def _arm(arm: Arm, study: Study, sizes: dict[str, int | None]) -> dict[str, Any]:
    budget = study.budget
    phases = arm.blend_phases(budget)
    blend = Blend(phases)
    counts = blend.counts(blend.total)
    described, start, before = [], 0, dict.fromkeys(blend.sources, 0)
    for phase in phases:
        now = blend.counts(phase.until)
        total = sum(phase.mix.values())
        step = phase.until // budget.global_batch
        described.append(
            {
                "start_step": start,
                "stop_step": step,
                "tokens": (step - start) * budget.step_tokens,
                "mix": {name: weight / total for name, weight in phase.mix.items() if weight},
                "samples": {name: now[name] - before[name] for name, weight in phase.mix.items() if weight},
            }
        )
        start, before = step, now
    sources = {}
    for name, samples in counts.items():
        tokens, size = samples * budget.sequence_length, sizes[name]
        sources[name] = {"samples": samples, "tokens": tokens, "epochs": tokens / size if size else None}
    return {
        "name": arm.name,
        "start": arm.start,
        "interventions": arm.interventions,
        "switch_step": budget.step_at(arm.start),
        "snap_tokens": budget.snap_tokens(arm.start),
        "phases": described,
        "sources": sources,
        "intervention_tokens": sum(
            used["tokens"] for name, used in sources.items() if not study.curriculum.safe.get(name)
        ),
    }


def _warnings(arms: list[dict[str, Any]], study: Study) -> list[str]:
    """What a reader should know before starting: sources read too often, and memory that is not there."""
    found = []
    for name, source in study.sources.items():
        epochs = {arm["name"]: arm["sources"][name]["epochs"] for arm in arms if name in arm["sources"]}
        known = {arm: count for arm, count in epochs.items() if count is not None}
        if known and max(known.values()) > source.max_epochs:
            arm = max(known, key=lambda name: known[name])
            found.append(
                f"source {name}: {known[arm]:.1f} epochs in arm {arm}, more than its max_epochs {source.max_epochs:g}; "
                "give it more documents or less weight, or raise its max_epochs"
            )
    memory = _gpu_memory(study)
    if memory["would_fit"]:
        found.append(
            f"pretraining with micro_batch {study.pretraining.micro_batch} needs about {memory['needed_gib']:.0f} GiB of each "
            f"GPU, which has {memory['available_gib']:g}; use {' or '.join(memory['would_fit'])}"
        )
    return found


def _source_tokens(name: str, study: Study, shards: Path | None) -> int | None:
    """Tokens of a source: counted in its manifests, else as published, else unknown."""
    source = study.sources[name]
    manifests = [shards / name / shard for shard in source.shard_names if shard != VALIDATION] if shards else []
    if manifests and all(path.with_name(path.name + ".json").exists() for path in manifests):
        tokens = sum(read_manifest(path)["tokens"] for path in manifests)
        if not tokens and any(mix.get(name) for arm in study.arms() for _, mix in arm.phases):
            raise UserError(f"source {name}: its shards in {shards} hold no token; give it documents or a weight of 0")
        return tokens
    return None if study.world or source.documents or source.parts else dataset(source.dataset).tokens


def _gpu_hours(study: Study, trained_tokens: int) -> dict[str, float]:
    """Pretraining by FLOPs at the expected utilisation; the other stages by their time limits, an upper bound."""
    resources = study.resources
    flops = trained_tokens * study.model.resolve().flops_per_token(study.budget.sequence_length)
    pretraining = flops / (resources.peak_tflops * 1e12 * resources.expected_mfu) / 3600
    elements = {stage: 0 for stage in ("tune", "evaluate", "merge")}
    for job in build_graph(study):
        if job.stage in elements:
            elements[job.stage] += len(job.elements)
    measured = elements["evaluate"] + (elements["merge"] if study.evaluation.judged_on_gpu else 0)
    tuning = elements["tune"] * resources.tuning.gpus * resources.tuning.hours
    evaluation = measured * resources.evaluation.gpus * resources.evaluation.hours
    return {
        "pretraining": pretraining,
        "pretraining_days_on_its_gpus": pretraining / resources.pretraining.gpus / 24,
        "tuning_at_most": tuning,
        "evaluation_at_most": evaluation,
    }


def _gpu_memory(study: Study) -> dict[str, Any]:
    """What pretraining takes of each GPU, in GiB, and what would make it fit if it does not."""
    resources, model = study.resources, study.model.resolve()
    data_parallel = max(1, resources.pretraining.gpus // resources.tensor_parallel)
    layout = layout_of(
        resources.engine,
        min(study.pretraining.micro_batch, max(1, study.budget.global_batch // data_parallel)),
        study.budget.sequence_length,
        resources.tensor_parallel,
        data_parallel,
    )
    needed, available = estimate(model, layout), resources.gpu_memory_gib * GIB
    return {
        "needed_gib": needed.total / GIB,
        "available_gib": resources.gpu_memory_gib,
        "parts_gib": {name: size / GIB for name, size in dataclasses.asdict(needed).items()},
        "would_fit": [] if needed.total <= available else what_would_fit(model, layout, available),
    }


def print_plan(value: dict[str, Any], study: Study, console: Console) -> None:
    """The plan for people."""
    budget, model, hours = value["budget"], value["model"], value["gpu_hours"]
    console.print(
        Text.assemble(
            (study.name, "bold"),
            f": {model['preset']}, {model['parameters']:,} parameters, {model['layers']} layers of {model['hidden']}; "
            f"{budget['steps']:,} steps of {budget['step_tokens']:,} tokens "
            f"({budget['global_batch']:,} sequences of {budget['sequence_length']:,}) = {_tokens(budget['tokens'])} an arm "
            f"({budget['snap_tokens']:+,} tokens to whole steps)",
        )
    )
    console.print(_tree(study), *_arm_tables(value, study), _job_table(value), sep="\n")
    for warning in value["warnings"]:
        console.print(Text.assemble(("Warning: ", "bold yellow"), warning))
    sharing = value["trained_tokens"]
    console.print(
        f"Trained tokens: {_tokens(sharing['with_trunk_sharing'])} with the shared trunk, "
        f"{_tokens(sharing['without'])} without ({sharing['with_trunk_sharing'] / sharing['without'] - 1:+.0%})."
    )
    console.print(
        f"GPU-hours: {hours['pretraining']:,.1f} pretraining (at {study.resources.expected_mfu:.0%} of "
        f"{study.resources.peak_tflops:g} TFLOP/s), up to {hours['tuning_at_most']:,.0f} tuning and "
        f"{hours['evaluation_at_most']:,.0f} evaluation by their time limits."
    )
    memory = value["gpu_memory"]
    parts = ", ".join(f"{name} {size:.1f}" for name, size in memory["parts_gib"].items())
    console.print(
        f"GPU memory in pretraining: about {memory['needed_gib']:.1f} of {memory['available_gib']:g} GiB on each ({parts})."
    )


def _tree(study: Study) -> RenderableType:
    """The training tree: which line branches from which step."""
    budget, nodes = study.budget, {"": Tree("[bold]Pretraining tree")}

    def label(segment: Segment) -> str:
        tokens = (segment.stop - segment.start) * budget.step_tokens
        return f"{segment.branch}: steps {segment.start:,} to {segment.stop:,} ({_tokens(tokens)})"

    for segment in study.segments():
        nodes[segment.name] = nodes[segment.parent or ""].add(label(segment))
    return nodes[""]


def _arm_tables(value: dict[str, Any], study: Study) -> list[RenderableType]:
    mixes = _table("Mixes: share of tokens", "source", *study.curriculum.mixes())
    for name in study.sources:
        shares = [mix.get(name, 0) / sum(mix.values()) for mix in study.curriculum.mixes().values()]
        mixes.add_row(name, *(f"{share:.1%}" if share else "–" for share in shares))
    arms = _table("Phases", "arm", "steps", "tokens", "interventions", "in all", "start snapped by")
    for arm in value["arms"]:
        once = [arm["name"], _tokens(arm["intervention_tokens"]), f"{arm['snap_tokens']:+,}" if arm["start"] else "–"]
        for phase in arm["phases"]:
            steps = f"{phase['start_step']:,} to {phase['stop_step']:,}"
            share = intervention_share(phase["mix"], study.curriculum)
            shown = f"{share:.1%}" if share else "safe only"
            arms.add_row(once[0], steps, _tokens(phase["tokens"]), shown, *once[1:])
            once = ["", "", ""]
    sources = _table("Tokens (epochs) per source", "source", *(arm["name"] for arm in value["arms"]))
    for name in study.sources:
        row = []
        for arm in value["arms"]:
            used = arm["sources"].get(name)
            epochs = f" ({used['epochs']:.1f})" if used and used["epochs"] is not None else ""
            row.append(f"{_tokens(used['tokens'])}{epochs}" if used else "–")
        sources.add_row(name, *row)
    return [mixes, arms, sources]


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=not number, overflow="fold")
    return table


def _job_table(value: dict[str, Any]) -> RenderableType:
    table = Table(title="Jobs", title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("job", no_wrap=True)
    table.add_column("elements", justify="right")
    table.add_column("after", no_wrap=True)
    for job in value["jobs"]:
        after = ""
        if job["needs"]:
            more = f" and {len(job['needs']) - 1} more" if len(job["needs"]) > 1 else ""
            after = f"{job['needs'][0]['kind']} {job['needs'][0]['job']}{more}"
        table.add_row(job["name"], f"{len(job['elements']):,}", after)
    return table


def _tokens(count: int) -> str:
    for size, unit in ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "k")):
        if count >= size:
            return f"{count / size:.4g}{unit}"
    return str(count)
