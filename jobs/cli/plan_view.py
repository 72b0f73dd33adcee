"""The plan as a person reads it: arms, the training tree, tokens and epochs per source, jobs and costs."""

from __future__ import annotations

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from curricula.curriculum.plan import Segment, intervention_share
from curricula.jobs.study import Study


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

    for segment in study.segments:
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
