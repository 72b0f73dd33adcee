"""The verb `curricula plan`: what a study will do, as JSON or in words and tables."""

from __future__ import annotations

import argparse
import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from curricula.curriculum.config import Mix
from curricula.curriculum.plan import intervention_share
from curricula.curriculum.stages import BASE
from curricula.errors import UsageError
from curricula.jobs.cli.local import run_root
from curricula.jobs.downloads import read_study
from curricula.jobs.estimates import MOST_HERE, about, describe
from curricula.jobs.graph import plan_study
from curricula.jobs.run import Run
from curricula.jobs.study import Study
from curricula.settings import in_yaml
from curricula.terminal import count, json_text, plural

AFTER = {"afterok": "{}", "aftercorr": "{}, each after its own", "afterany": "the end of {}"}
"""How a job's dependencies are worded, without Slurm's terms: studies also run on this machine."""


def plan(args: argparse.Namespace) -> int:
    study = read_study(args.study, args.set)
    planned, run = plan_study(study), Run(run_root(study, args.run))
    if args.run and not run.root.is_dir():  # its sizes would be missing without a word
        raise UsageError(f"{run.root}: no such run folder; name the one to take sizes from, or leave --run out")
    value = describe(planned, run.shards)
    if args.power:
        from curricula.jobs.power import power_lines, study_power

        value["power"] = study_power(planned, run.report / "summary.json")
    if args.json:
        print(json_text(value))
    else:
        print_plan(value, study, Console())
        if args.power:
            Console(highlight=False, markup=False, soft_wrap=True).print(*power_lines(value["power"]), sep="\n")
    return 0


def print_plan(value: dict[str, Any], study: Study, console: Console) -> None:
    budget, model = value["budget"], value["model"]
    console.print(
        Text.assemble(
            (study.name, "bold"),
            f": {model['name']}, {model['parameters']:,} parameters, {model['layers']} layers of {model['hidden']}; "
            f"{budget['steps']:,} steps of {budget['step_tokens']:,} tokens "
            f"({budget['global_batch']:,} sequences of {budget['sequence_length']:,}) = {count(budget['tokens'])} an arm "
            f"({budget['snap_tokens']:+,} tokens to whole steps)",
        )
    )
    stages = [_stages(value, study)] if value["stages"] else []
    console.print(_tree(value, study), *stages, sep="\n")
    _print_arms(value, study, console)
    _print_jobs(value["jobs"], [point["name"] for point in value["points"]], console)
    for warning in value["warnings"]:
        console.print(Text.assemble(("Warning: ", "bold yellow"), warning))
    is_small = value["minutes_on_this_machine"] < MOST_HERE
    for point in value["points"]:
        added, other = (f"{point['gpu_hours'][part]:,.0f}" for part in ("pretraining", "other_at_most"))
        adds = "" if is_small else f"; it adds {added} GPU-hours of pretraining and up to {other} of all else"
        settings = ", ".join(f"{key}: {in_yaml(setting)}" for key, setting in point["settings"].items())
        console.print(
            f"Point {point['name']} ({settings}): {point['model']}, {point['parameters']:,} parameters, "
            f"{count(point['tokens'])} tokens an arm{adds}"
        )
    sharing = value["trained_tokens"]
    console.print(
        f"Tokens of pretraining: {count(sharing['with_trunk_sharing'])} with the shared trunk, "
        f"{count(sharing['without'])} without ({sharing['with_trunk_sharing'] / sharing['without'] - 1:+.0%})."
        + (f" Of midtraining: {count(sharing['midtraining'])}." if sharing["midtraining"] else "")
    )
    if is_small:
        console.print(
            f"On this machine: {about(value['minutes_on_this_machine'])}, {plural(study.resources.workers, 'element')} at once."
        )
    else:
        _print_gpus(value, study, console)


def _print_gpus(value: dict[str, Any], study: Study, console: Console) -> None:
    hours, asked = value["gpu_hours"], study.resources.pretraining
    console.print(
        f"GPU-hours: {hours['pretraining']:,.1f} pretraining (at {study.resources.expected_mfu:.0%} of "
        f"{study.resources.peak_tflops:g} TFLOP/s), up to {hours['tuning_at_most']:,.0f} tuning and "
        f"{hours['evaluation_at_most']:,.0f} evaluation by their time limits."
    )
    console.print(
        f"Pretraining on {plural(asked.nodes, 'node')} of {plural(asked.gpus_per_node, 'GPU')}: "
        f"{'up to ' if value['points'] else ''}{hours['pretraining_days_an_arm']:,.1f} days an arm from first to last token, "
        f"{hours['pretraining_days_on_its_gpus']:,.1f} days for all arms one after another."
    )
    if study.seeds:
        for seed, of_seed in value["gpu_hours_by_seed"].items():
            console.print(
                f"  seed {seed}: {of_seed['pretraining']:,.1f} pretraining, up to {of_seed['other_at_most']:,.0f} for all else"
            )
    if tasks := value["evaluation_gpu_hours"]:
        each = ", ".join(f"{name} {spent:,.1f}" for name, spent in tasks.items())
        console.print(f"GPU-hours of evaluation, estimated: {sum(tasks.values()):,.0f} ({each}).")
    memory = value["gpu_memory"]
    parts = ", ".join(f"{name} {size:.1f}" for name, size in memory["parts_gib"].items())
    console.print(
        f"GPU memory, pretraining: about {memory['needed_gib']:.1f} of {memory['available_gib']:g} GiB on each ({parts})."
    )


def _tree(value: dict[str, Any], study: Study) -> RenderableType:
    seeds = ", ".join(map(str, study.seeds or ()))
    title = "Pretraining tree" if study.seeds is None else f"Pretraining tree, once for each of seeds {seeds}"
    if not value["points"]:  # those of a sweep can differ in both; their settings are shown below
        title += f"; lr {study.pretraining.optimizer.lr:g}, {study.pretraining.schedule.kind}"
    nodes = {None: Tree(f"[bold]{title}")}
    for segment in value["segments"]:
        if segment["seed"] == study.first_seed:
            steps = f"steps {segment['start_step']:,} to {segment['stop_step']:,}"
            label = f"{segment['branch']}: {steps} ({count(segment['tokens'])})"
            nodes[segment["name"]] = nodes[segment["parent"]].add(label)
    return nodes[None]


def _stages(value: dict[str, Any], study: Study) -> RenderableType:
    """The stages after pretraining: which continues from which, for how long, and for which arms."""
    nodes = {BASE: Tree("[bold]Stages after pretraining")}
    for stage in value["stages"]:
        parts = [stage["kind"], f"lr {stage['lr']:g}"]
        if stage["at"]:
            parts.append(f"from {100 * stage['at']:g}% of pretraining")
        if stage["steps"]:
            parts.append(f"{stage['steps']:,} steps")
        if len(stage["arms"]) < len(study.arms):
            parts.append(", ".join(stage["arms"]))
        if stage["along"]:
            parts.append(f"measured at {', '.join(stage['along'])}")
        nodes[stage["name"]] = nodes[stage["from"]].add(f"{stage['name']}: {'; '.join(parts)}")
    return nodes[BASE]


def print_table(
    console: Console, title: str, headings: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int] = (0,)
) -> None:
    """Print a table without breaking its cells. If the console is too narrow, further tables repeat the first column and
    show the remaining ones. Columns in `left` hold text, the others numbers."""
    widths = [max(map(cell_len, column)) + 3 for column in zip(headings, *rows)]
    tables = [[0]]  # the columns of each
    for column in range(1, len(widths)):
        is_full = sum(widths[other] for other in (*tables[-1], column)) > console.width + 1
        if is_full and len(tables[-1]) > 1:
            tables.append([0])
        tables[-1].append(column)
    for columns in tables:
        table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
        for column in columns:
            table.add_column(headings[column], justify="left" if column in left else "right", no_wrap=True)
        for row in rows:
            table.add_row(*(row[column] for column in columns))
        width = max(console.width, sum(widths[column] for column in columns))
        Console(file=console.file, width=width, markup=False, highlight=False).print(table)


def _mixes(study: Study) -> dict[str, Mix]:
    """The mixes by name. If the points of a sweep have different mixes of a name, each is called NAME.POINT."""
    mixes = {}
    for point, variant in study.variants.items():
        for name, mix in variant.curriculum.mixes().items():
            is_common = all(other.curriculum.mixes().get(name) == mix for other in study.variants.values())
            mixes[name if is_common else f"{name}.{point}"] = mix
    return mixes


def _print_arms(value: dict[str, Any], study: Study, console: Console) -> None:
    """Print what the arms read: the mixes, the phases, and how much of each source."""
    named, arms = _mixes(study), value["arms"]
    mixes, phases, sources = [], [], []
    for name in study.sources:
        shares = [mix.get(name, 0) / sum(mix.values()) for mix in named.values()]
        mixes.append((name, *(f"{share:.1%}" if share else "–" for share in shares)))
    for arm in arms:
        of_arm = [arm["name"], count(arm["intervention_tokens"])]
        for phase in arm["phases"]:
            steps = f"{phase['start_step']:,} to {phase['stop_step']:,}"
            share = intervention_share(phase["mix"], study.curriculum)
            shown = f"{share:.1%}" if share else "safe only"
            phases.append((of_arm[0], steps, count(phase["tokens"]), shown, *of_arm[1:]))
            of_arm = ["", ""]  # only in the arm's first row
    unknown = {name for name, size in value["source_sizes"].items() if size["tokens"] is None}
    for name in study.sources:
        row = [f"{name} *" if name in unknown else name]
        for arm in arms:
            used = arm["sources"].get(name)
            epochs = f" ({used['epochs']:.1f})" if used and used["epochs"] is not None else ""
            row.append(f"{count(used['tokens'])}{epochs}" if used else "–")
        sources.append(row)
    title = "Tokens (epochs) per source in pretraining" + ("; *: size unknown, so without epochs" if unknown else "")
    print_table(console, "Mixes: share of tokens", ("source", *named), mixes)
    print_table(console, "Phases", ("arm", "steps", "tokens", "interventions", "in all"), phases)
    if moved := max(abs(arm["snap_tokens"]) for arm in arms):
        console.print(f"Interventions start at whole steps, at most {moved:,} tokens from where the study puts them.\n")
    print_table(console, title, ("source", *(arm["name"] for arm in arms)), sources)


def _print_jobs(jobs: list[dict[str, Any]], points: Sequence[str], console: Console) -> None:
    """Print the jobs in order. Those that a sweep has for several points share a row."""
    alike: dict[tuple[str, str], list[tuple[str, str, int]]] = defaultdict(list)
    for job in jobs:
        name, needs = job["name"], job["needs"]
        after = AFTER[needs[0]["kind"]].format(needs[0]["job"]) if needs else ""
        after += f" and {len(needs) - 1} more" if len(needs) > 1 else ""
        point = next((point for point in points if name.endswith(f".{point}")), None)
        key = (name, after) if point is None else (_starred(name, point), _starred(after, point))
        alike[key].append((name, after, len(job["elements"])))
    rows = []
    for starred, group in alike.items():
        name, after = starred if len(group) > 1 else group[0][:2]
        rows.append((name, f"{sum(elements for *_, elements in group):,}", after))
    title = "Jobs; *: for each point" if len(rows) < len(jobs) else "Jobs"
    print_table(console, title, ("job", "elements", "after"), rows, left=(0, 2))


def _starred(text: str, point: str) -> str:
    """`text` with a star for the point at the end of the names of jobs."""
    return re.sub(rf"\.{re.escape(point)}(?=\W|$)", ".*", text)
