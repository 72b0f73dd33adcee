"""The verbs that take a study file: plan, submit, render."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from curricula.curriculum.config import Mix
from curricula.curriculum.plan import intervention_share
from curricula.curriculum.stages import BASE
from curricula.errors import UsageError, UserError
from curricula.jobs.cli.local import run_here, run_root
from curricula.jobs.cli.options import confirm
from curricula.jobs.completion import done_elements
from curricula.jobs.downloads import read_study
from curricula.jobs.estimates import MOST_HERE, about, describe
from curricula.jobs.graph import check_batches, plan_study
from curricula.jobs.plan import Key, Plan
from curricula.jobs.run import Run, cut_branches
from curricula.jobs.selection import Selection, check_needs, select
from curricula.jobs.slurm.commands import (
    STARTS,
    DependencyLost,
    Task,
    batch_script,
    ignored_explained,
    partition_minutes,
    qos_minutes,
    require_slurm,
    tested,
    too_long,
)
from curricula.jobs.slurm.profile import Profile, keep_profile, kept_profile, load_profile
from curricula.jobs.slurm.script import check_root, write_resubmit
from curricula.jobs.slurm.script import render as write_scripts
from curricula.jobs.slurm.snapshot import planned_snapshot
from curricula.jobs.slurm.submissions import latest_tasks, live_elements, queued, submissions
from curricula.jobs.study import STUDIES, Study, load_study
from curricula.terminal import count, json_text, plural

if TYPE_CHECKING:
    from curricula.jobs.slurm.submit import Standing

AFTER = {"afterok": "{}", "aftercorr": "{}, each after its own", "afterany": "the end of {}"}
"""How a job's dependencies are worded, without Slurm's terms: studies also run on this machine."""


def demo(args: argparse.Namespace) -> int:
    study = load_study(STUDIES / ("demo-full.yaml" if args.full else "demo.yaml"))
    planned = plan_study(study)
    run_here(run_root(study, None), planned, list(planned.needs))
    return 0


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


def submit(args: argparse.Namespace) -> int:
    """Run the study, or the selected part of it, here or on Slurm."""
    if args.cluster == "local":
        for option, given in (("--profile", args.profile), ("--dry-run", args.dry_run)):
            if given:
                raise UsageError(f"{option} needs --cluster slurm; `curricula plan` shows what a study will do here")
    study = read_study(args.study, args.set)
    if args.cluster == "slurm" and args.profile is None:
        raise UsageError("--cluster slurm needs --profile; copy one of env/profiles/ and change its marked lines")
    profile = load_profile(args.profile) if args.profile else None
    plan = plan_study(study, profile)
    chosen = select(plan, Selection.from_args(args), with_needs=True)
    if profile is None:
        run_here(run_root(study, args.run), plan, chosen, args.yes)
        return 0
    root = check_root(args.run or profile.run_root(study.name))
    console = Console(highlight=False, markup=False, soft_wrap=True)
    if args.dry_run:
        _print_dry_run(plan, chosen, profile, root, console)
    else:
        _submit_to_slurm(plan, chosen, profile, root, args.yes, console)
    return 0


def _submit_to_slurm(plan: Plan, chosen: Collection[Key], profile: Profile, root: Path, yes: bool, console: Console) -> None:
    from curricula.jobs.slurm.submit import submit_plan

    require_slurm()
    if not (root / "study.yaml").exists():  # ask before anything is written
        _confirm(plan, chosen, profile, yes)
    elif not yes and _gpu_hours(plan, chosen) > profile.gpu_hours_limit:  # what is left to do may stay below the limit
        with Run.locked(root):  # released before the user is asked
            to_submit = _standing(Run.open(root), plan, profile, console).open(chosen)
        _confirm(plan, to_submit, profile, yes)
    with Run.locked(root):
        run = Run.open(root) if (root / "study.yaml").exists() else Run.create(root, plan.study)
        now = _standing(run, plan, profile, console)
        before = len(submissions(run))
        if plan.study != run.study:  # a change that `_standing` accepts
            console.print(f"{root}: its study has changed; elements that start from now on read the new one.")
        run = Run.create(root, plan.study)
        now.done.intersection_update(done_elements(run, plan))  # with another data folder, fewer may count as done
        to_submit = now.open(chosen)
        if not to_submit:
            live = sum(key in now.live for key in chosen)
            console.print(f"{root}: nothing to submit; {plural(live, 'element')} queued or running, the others done.")
            return
        hours = _gpu_hours(plan, to_submit)
        console.print(f"Up to {hours:,.0f} GPU-hours (the profile asks above {profile.gpu_hours_limit:g}).")
        try:
            submit_plan(run, plan, to_submit, profile, now, console.print)
        except DependencyLost:
            console.print("Slurm has forgotten jobs of this run; submitting again what is missing.")
            now = _standing(run, plan, profile, console)
            submit_plan(run, plan, now.open(chosen), profile, now, console.print)
        arrays = submissions(run)[before:]
    elements = plural(len({key for array in arrays for key in array.keys}), "element")  # some arrays may continue others
    what = f"{elements} in {plural(len(arrays), 'array')}"
    console.print(f"{what}. Watch them with `curricula status {root}` or `squeue --me`.")


def _standing(run: Run, plan: Plan, profile: Profile, console: Console) -> Standing:
    """The run's done and live elements. Raises UserError if the run cannot continue, or not yet, with the plan's study."""
    from curricula.jobs.slurm.submit import standing

    run.check(plan.study)
    now = standing(run, plan, profile, console.print)
    _refuse_conflicts(run, plan, now.live)
    return now


def _refuse_conflicts(run: Run, plan: Plan, live: Mapping[Key, tuple[Task, ...]]) -> None:
    """Raise UserError if `live` elements conflict with a change of the study."""
    conflict = next(_conflicts(run, plan, live), None) if live and plan.study != run.study else None
    if conflict:
        raise UserError(f"{run.root}: {conflict}; submit again when that has ended, or `curricula cancel` it first")


def _conflicts(run: Run, plan: Plan, live: Mapping[Key, tuple[Task, ...]]) -> Iterator[str]:
    """Why `live` elements, which began with the run's study, cannot go on with that of the plan."""
    cut = cut_branches(run.study, plan.study)
    for key in sorted(live.keys() & plan.by_key.keys()):
        _, element = plan.by_key[key]
        if element.segment and plan.segments[element.segment].branch in cut:  # two elements would write to its folder
            yield f"{'/'.join(key)} is queued or running, and new arms would branch off before its end"
    # An older version might refuse keys that this one writes, and a job that cannot read its study fails for good.
    code = f"/code/{planned_snapshot(run.root).folder.name}"
    for job_id in sorted({task.job_id for tasks in live.values() for task in tasks}, key=int):
        kept = run.slurm / f"{job_id}_submission.sh"
        script = kept.read_text(encoding="utf-8") if os.access(kept, os.R_OK) else batch_script(job_id)
        if script and code not in script:
            yield (
                f"array {job_id} is queued or running with another version of the code, which might be unable to read the "
                "changed study"
            )
    # Jobs keep the nodes and GPUs that they were submitted with, and the changed work might not divide among these.
    try:
        old = plan_study(run.study, kept_profile(run.profile))
    except UsageError:  # an earlier version wrote a profile that this one refuses
        return
    for job in sorted({job for job, _ in live} & old.by_name.keys() & plan.by_name.keys()):
        requests = (old.by_name[job].request, plan.by_name[job].request)
        had, asked = (f"{plural(request.nodes, 'node')} of {plural(request.gpus_per_node, 'GPU')}" for request in requests)
        if had != asked:
            yield f"{job} is queued or running, and the changed study or the profile asks for {asked} instead of {had}"


def _gpu_hours(plan: Plan, chosen: Collection[Key]) -> float:
    return sum(plan.gpu_hours(chosen).values())


def _confirm(plan: Plan, chosen: Collection[Key], profile: Profile, yes: bool) -> None:
    """Ask before exceeding the profile's limit of GPU-hours. Raises UserError if the answer is no or nobody can answer."""
    hours, limit = _gpu_hours(plan, chosen), f"the profile's gpu_hours_limit of {profile.gpu_hours_limit:g}"
    if hours <= profile.gpu_hours_limit or yes:
        return
    unattended = UserError(
        f"{hours:,.0f} GPU-hours are more than {limit}; select less with --stage, --arm or --seeds, or give --yes"
    )
    confirm(f"Submit up to {hours:,.0f} GPU-hours, more than {limit}?", unattended, UserError("nothing was submitted"))


def _print_dry_run(plan: Plan, chosen: Collection[Key], profile: Profile, root: Path, console: Console) -> None:
    """Print every sbatch script, Slurm's answer to it if Slurm is installed, and a table of the arrays. Writes nothing."""
    from curricula.jobs.slurm.submit import preview, use_cluster

    if explained := ignored_explained(os.environ):
        console.print(explained)
    has_slurm, run = shutil.which("sbatch") is not None, Run(root)
    use_cluster(run, profile)
    if (root / "study.yaml").exists():
        run.check(plan.study)
    submitted = submissions(run)
    live = live_elements(run, queued(run)) if submitted and has_slurm else {}
    _refuse_conflicts(run, plan, live)
    check_needs(plan, chosen, done_elements(run, plan), live if has_slurm else latest_tasks(submitted))
    check_batches(plan, chosen)
    previews = preview(plan, chosen, profile, root)
    limits = (partition_minutes(), qos_minutes()) if has_slurm else ({}, {})
    refused = defaultdict[str, list[str]](list)
    rows = []
    for shown in previews:
        console.rule(f"{shown.job}: {plural(len(shown.array.labels), 'element')}", characters="─", align="left")
        console.print(shown.script)
        if has_slurm:
            answer = tested(shown.script)
            console.print(f"sbatch --test-only: {answer}\n")
            if STARTS not in answer:
                refused[answer].append(shown.job)
        first, *others = shown.waits.split(",")
        waits = first + (f" and {len(others)} more" if others else "")
        request = shown.array.job.request
        rows.append((shown.job, str(len(shown.array.labels)), str(request.nodes), str(request.gpus),
                     f"{request.minutes // 60}:{request.minutes % 60:02d}", waits))  # fmt: skip
    _print_table(console, "Arrays", ("job", "elements", "nodes", "GPUs", "time limit", "waits for"), rows, left=(0, 5))
    for shown in previews:
        if why := too_long(shown.array.job.request, *limits):
            console.print(f"\n{shown.job}: {why}")
    for answer, jobs in refused.items():
        console.print(f"\n{', '.join(jobs)}: Slurm names no start ({answer or 'no answer'})")
    calls, hours = plural(len(previews), "sbatch call"), _gpu_hours(plan, chosen)
    console.print(f"\n{calls}; up to {hours:,.0f} GPU-hours. Run folder: {root}. Nothing was submitted.")
    if not has_slurm:
        console.print("sbatch is not on this machine's PATH, so Slurm was not asked about them.")


def render(args: argparse.Namespace) -> int:
    study, profile = read_study(args.study, args.set), load_profile(args.profile)
    plan = plan_study(study, profile)
    check_batches(plan, plan.needs)
    root = check_root(args.run or profile.run_root(study.name))
    args.out.mkdir(parents=True, exist_ok=True)  # first: if this fails, no run folder must be left behind
    with Run.locked(root):
        run = Run.create(root, study)
        scripts = write_scripts(run, plan, profile, args.out)
        if not submissions(run):  # otherwise its jobs keep the profile that they were submitted with
            keep_profile(run.profile, profile)
            write_resubmit(run, plan, profile, list(plan.needs))
    print(f"{plural(len(scripts) - 1, 'job array')}. Submit all with {shlex.quote(str(scripts[-1]))}")
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
    _print_jobs(value["jobs"], console)
    for warning in value["warnings"]:
        console.print(Text.assemble(("Warning: ", "bold yellow"), warning))
    is_small = value["minutes_on_this_machine"] < MOST_HERE
    for point in value["points"]:
        added, other = (f"{point['gpu_hours'][part]:,.0f}" for part in ("pretraining", "other_at_most"))
        adds = "" if is_small else f"; it adds {added} GPU-hours of pretraining and up to {other} of all else"
        console.print(
            f"Point {point['name']}: {point['model']}, {point['parameters']:,} parameters, {count(point['tokens'])} "
            f"tokens an arm{adds}"
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


def _print_table(
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
        of_arm = [arm["name"], count(arm["intervention_tokens"]), f"{arm['snap_tokens']:+,}" if arm["start"] else "–"]
        for phase in arm["phases"]:
            steps = f"{phase['start_step']:,} to {phase['stop_step']:,}"
            share = intervention_share(phase["mix"], study.curriculum)
            shown = f"{share:.1%}" if share else "safe only"
            phases.append((of_arm[0], steps, count(phase["tokens"]), shown, *of_arm[1:]))
            of_arm = ["", "", ""]  # only in the arm's first row
    unknown = {name for name, size in value["source_sizes"].items() if size["tokens"] is None}
    for name in study.sources:
        row = [f"{name} *" if name in unknown else name]
        for arm in arms:
            used = arm["sources"].get(name)
            epochs = f" ({used['epochs']:.1f})" if used and used["epochs"] is not None else ""
            row.append(f"{count(used['tokens'])}{epochs}" if used else "–")
        sources.append(row)
    title = "Tokens (epochs) per source in pretraining" + ("; *: size unknown, so without epochs" if unknown else "")
    _print_table(console, "Mixes: share of tokens", ("source", *named), mixes)
    _print_table(console, "Phases", ("arm", "steps", "tokens", "interventions", "in all", "snapped by"), phases)
    _print_table(console, title, ("source", *(arm["name"] for arm in arms)), sources)


def _print_jobs(jobs: list[dict[str, Any]], console: Console) -> None:
    rows = []
    for job in jobs:
        needs = job["needs"]
        after = AFTER[needs[0]["kind"]].format(needs[0]["job"]) if needs else ""
        more = f" and {len(needs) - 1} more" if len(needs) > 1 else ""
        rows.append((job["name"], f"{len(job['elements']):,}", after + more))
    _print_table(console, "Jobs", ("job", "elements", "after"), rows, left=(0, 2))
