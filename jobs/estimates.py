"""What a plan costs: tokens and epochs of each source, GPU-hours and GPU memory."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import msgspec

from curricula.curriculum.config import VALIDATION, AnyStage, Midtrain, Tuning, point_label
from curricula.curriculum.plan import Arm
from curricula.curriculum.sources.declared import dataset, declared_in
from curricula.curriculum.sources.registry import local_root
from curricula.curriculum.sources.tables import table_exists
from curricula.curriculum.stages import BASE, samples_of
from curricula.curriculum.stream.blend import Blend, Phase, sources_of
from curricula.curriculum.sweep import points_of
from curricula.curriculum.tokens.shards import read_manifest
from curricula.errors import UserError
from curricula.eval.benchmarks import BENCHMARKS, read_for
from curricula.eval.capability.settings import PUBLISHED, Published
from curricula.eval.probes.texts import NOT_FETCHED
from curricula.eval.tasks import EvalTask
from curricula.jobs.downloads import study_downloads, used_pools
from curricula.jobs.plan import Element, Key, Plan
from curricula.jobs.study import Study
from curricula.model.config import decay_start, warmup_steps
from curricula.model.memory import GIB, Layout, step_memory, what_would_fit

READING = 0.3
"""Share of the peak FLOP/s that a forward pass over whole texts reaches."""
STEP_S = 0.03
"""Shortest duration of a generation step, in which Python launches the model's kernels."""
BYTES_PER_S = 1.7e12
"""Rate at which weights are read: half of an H100's memory bandwidth."""
GCG_TOKENS = 16
"""Tokens of a GCG candidate that follow what it shares with the current suffix."""
PROMPT_TOKENS = 60
"""Assumed length of a prompt."""
PROBE_TOKENS = 4 * 1_000 * 400
"""Tokens of the probes' training and test texts."""
ABLATION_CANDIDATES = 100
"""Directions that ablation compares: one for each pair of a layer and a token of the chat template."""
UNKNOWN_QUESTIONS = 500
"""Assumed number of questions of a capability task whose size is not known in advance."""

ELEMENT_S = 2.5
"""Time that an element takes on this machine besides its arithmetic, for starting, loading and writing."""
CPU_FLOPS = 5e10
"""FLOP/s of one core, in training and in decoding; measured with SmolLM2-135M and with the demo's model."""

LEAST_LEFT = 0.9
"""Share of the peak learning rate that must be left at the end of a warm-up, else `plan` warns. It is below 1 because
midtraining's rate falls over all steps by default, even during a short warm-up."""
MOST_HERE = 24 * 60.0
"""Minutes on this machine beyond which a study is meant for GPUs."""


def seconds_here(plan: Plan) -> dict[Key, float]:
    """Roughly how long each element takes on this machine's CPU while `resources.workers` elements run at a time."""
    cores = max(1, (os.cpu_count() or 1) // plan.study.resources.workers)
    return {key: ELEMENT_S + element.flops / (CPU_FLOPS * cores) for key, (_, element) in plan.by_key.items()}


def minutes_here(plan: Plan, keys: Collection[Key] | None = None) -> float:
    """Roughly how long the elements `keys`, or all, take together on this machine's CPU."""
    seconds = seconds_here(plan)
    return sum(seconds.values() if keys is None else map(seconds.__getitem__, keys)) / plan.study.resources.workers / 60


def about(minutes: float) -> str:
    """An estimate in words, in whole days, hours or minutes."""
    for size, unit in ((1440, "days"), (60, "hours")):
        if minutes >= 2 * size:
            return f"about {minutes / size:,.0f} {unit}"
    return f"about {math.ceil(minutes)} minute{'s' if minutes > 1 else ''}"


def gpu_hours_of(study: Study, tokens: int) -> float:
    """The GPU-hours of training on this many tokens, at the utilisation that the study expects."""
    resources = study.resources
    flops = tokens * study.model.resolve().flops_per_token(study.budget.sequence_length)
    return flops / (resources.peak_tflops * 1e12 * resources.expected_mfu) / 3600


def describe(plan: Plan, shards: Path | None = None) -> dict[str, Any]:
    """The plan and its costs as plain values; sources have the sizes that `_source_size` finds."""
    study, segments = plan.study, plan.segments.values()
    sizes_and_origins = {name: _source_size(name, study, shards) for name in study.sources}
    sizes = {name: tokens for name, (tokens, _) in sizes_and_origins.items()}
    seeds = list(dict.fromkeys(replicate.seed for replicate in study.replicates))
    tokens = {s.name: (s.stop - s.start) * study.of(s.arm).budget.step_tokens for s in segments}
    longest = max(gpu_hours_of(point, point.budget.tokens) for point in study.variants.values())  # the trunk included
    gpus, hours = study.resources.pretraining.gpus, plan.gpu_hours()
    return {
        "study": study.name,
        "seeds": seeds,
        **described_size(study),
        "points": _points(plan) if study.sweep is not None else [],
        "arms": [_arm(arm, study.of(arm), sizes) for arm in study.arms],
        "source_sizes": {name: {"tokens": size, "origin": origin} for name, (size, origin) in sizes_and_origins.items()},
        "warnings": [
            *_too_many_epochs(study, sizes),
            *_unknown_sizes(study, sizes),
            *dict.fromkeys(line for variant in study.variants.values() for line in _unfit(variant)),
            *_unused(study),
            *_overlaps(study),
            *_not_here(study),
        ],
        "segments": [
            {
                "name": s.name,
                "branch": s.branch,
                "parent": s.parent,
                "seed": s.arm.replicate.seed,
                "start_step": s.start,
                "stop_step": s.stop,
                "tokens": tokens[s.name],
            }
            for s in segments
        ],
        "stages": [_stage(name, study) for name in study.tree.stages],
        "trained_tokens": {
            "with_trunk_sharing": sum(tokens.values()),
            "without": sum(study.of(arm).budget.tokens for arm in study.trainings),
            "midtraining": _midtraining_tokens(study.variants.values()),
        },
        "jobs": [
            {
                "name": job.name,
                "stage": job.stage,
                "stage_names": job.stage_names,
                "gpu_hours": sum(element.gpu_hours for element in job.elements),
                "elements": [element.label for element in job.elements],
                "needs": [dataclasses.asdict(edge) for edge in job.needs],
            }
            for job in plan.jobs
        ],
        "minutes_on_this_machine": minutes_here(plan),
        "gpu_hours": {
            "pretraining": hours["pretraining"],
            "pretraining_days_an_arm": longest / gpus / 24,
            "pretraining_days_on_its_gpus": hours["pretraining"] / gpus / 24,
            "tuning_at_most": hours["tuning"],
            "evaluation_at_most": hours["evaluation"],
        },
        "gpu_hours_by_seed": _hours_by(plan, map(str, seeds), lambda element: str(element.seed)),
        "evaluation_gpu_hours": _evaluation_hours(plan),
        "gpu_memory": max(map(_gpu_memory, study.variants.values()), key=lambda memory: memory["needed_gib"]),
    }


def _midtraining_tokens(variants: Iterable[Study]) -> int:
    """The tokens of all midtraining; a training that several models share counts once."""
    tokens = {
        (point.whole.owners[arm.key, name], name): samples_of(stage) * point.budget.sequence_length
        for point in variants
        for name, stage in point.tree.stages.items()
        for arm in point.trainings
        if isinstance(stage, Midtrain) and arm.name in point.tree.arms[name]
    }
    return sum(tokens.values())


def describe_point(plan: Plan, point: Study, shards: Path | None = None) -> dict[str, Any]:
    """`describe` for one point of a sweep: with its arms, and all training that they need, whether shared or not."""
    described = {**describe(plan, shards), **described_size(point)}
    arms, path = {arm.key for arm in point.trainings}, [segment for arm in point.trainings for segment in point.path(arm)]
    names, branches = {segment.name for segment in path}, {segment.branch for segment in path}
    tokens = sum(segment["tokens"] for segment in described["segments"] if segment["name"] in names)
    return {
        **described,
        "arms": [arm for arm in described["arms"] if arm["name"] in arms],
        "segments": [segment for segment in described["segments"] if segment["branch"] in branches],
        "trained_tokens": {"with_trunk_sharing": tokens, "midtraining": _midtraining_tokens([point])},
    }


def described_size(study: Study) -> dict[str, Any]:
    """The model and the budget of a study, or of a point of its sweep, as plain values."""
    config, budget = study.model.resolve(), study.budget
    return {
        "model": {
            "preset": study.model.preset,
            "name": study.model.name,
            "parameters": config.parameters,
            "flops_per_token": config.flops_per_token(budget.sequence_length),
            **msgspec.to_builtins(config),
        },
        "budget": {
            **dataclasses.asdict(budget),
            "tokens": budget.tokens,
            "steps": budget.steps,
            "step_tokens": budget.step_tokens,
            "snap_tokens": budget.snap_tokens(1.0),
        },
    }


def _points(plan: Plan) -> list[dict[str, Any]]:
    """The points of a sweep, each with the GPU-hours that it adds to those of the points before it."""
    hours = _hours_by(plan, plan.study.variants, lambda element: element.variant)
    settings = points_of(plan.study.sweep or [])
    return [
        {
            "name": name,
            "settings": settings[name],
            "preset": point.model.preset,
            "model": point.model.name,
            "parameters": point.model.resolve().parameters,
            "tokens": point.budget.tokens,
            "steps": point.budget.steps,
            "gpu_hours": hours[name],
        }
        for name, point in plan.study.variants.items()
    ]


def check_epochs(plan: Plan, shards: Path) -> None:
    """Raise UserError if an arm reads a source for more than its `max_epochs`, by the sizes in the manifests."""
    sizes = {name: _source_size(name, plan.study, shards)[0] for name in plan.study.sources}
    for problem in _too_many_epochs(plan.study, sizes):
        raise UserError(problem)


def _arm(arm: Arm, study: Study, sizes: Mapping[str, int | None]) -> dict[str, Any]:
    budget = study.budget
    phases = arm.blend_phases(budget)
    blend = Blend(phases)
    counts = blend.counts(blend.total)
    described_phases = []
    for begin, phase in zip([0, *(phase.until for phase in phases)], phases):
        before, after, total = blend.counts(begin), blend.counts(phase.until), sum(phase.mix.values())
        described_phases.append(
            {
                "start_step": begin // budget.global_batch,
                "stop_step": phase.until // budget.global_batch,
                "tokens": (phase.until - begin) * budget.sequence_length,
                "mix": {name: weight / total for name, weight in phase.mix.items() if weight},
                "samples": {name: after[name] - before[name] for name, weight in phase.mix.items() if weight},
            }
        )
    sources = _sources(counts, study, sizes)
    added = [name for name, samples in counts.items() if samples and not study.curriculum.safe.get(name)]
    return {
        "name": arm.key,
        "start": arm.start,
        "end": arm.end,
        "interventions": arm.interventions,
        "switch_step": budget.step_at(arm.start),
        "snap_tokens": budget.snap_tokens(arm.start),
        "phases": described_phases,
        "sources": sources,
        "intervention_sources": added,
        "intervention_tokens": sum(sources[name]["tokens"] for name in added),
    }


def _sources(counts: Mapping[str, int], study: Study, sizes: Mapping[str, int | None]) -> dict[str, dict[str, Any]]:
    sources = {}
    for name, samples in counts.items():
        tokens, size = samples * study.budget.sequence_length, sizes[name]
        sources[name] = {"samples": samples, "tokens": tokens, "epochs": tokens / size if size else None}
    return sources


def _texts(study: Study) -> Iterator[tuple[Study, str, Arm, list[Phase]]]:
    """What each arm has read by the end of pretraining and of each later stage: the study of its point, the stage, the arm, and
    the stream of text."""
    for point in study.variants.values():
        for stage, names in point.tree.arms.items():
            for arm in point.arms:
                if arm.name in names:
                    yield point, stage, arm, point.tree.stream(stage, arm, point.budget)


def read_sources(study: Study) -> set[str]:
    """The sources that arms read in pretraining or in a later stage."""
    return {name for *_, phases in _texts(study) for name in sources_of(phases)}


def _stage(name: str, study: Study) -> dict[str, Any]:
    """A stage after pretraining as plain values; its steps are None if they depend on its data."""
    stage, tree = study.tree.stages[name], study.tree
    plain = msgspec.to_builtins(stage)
    return {
        "name": name,
        "kind": plain["kind"],
        "from": tree.parent(name),
        "at": stage.at,
        "arms": tree.arms[name],
        "steps": stage.total_steps,
        "lr": plain["lr"],
        "mix": plain["mix"],
        "tasks": study.tasks_of(name),
        "along": [point_label(place) for place in stage.along.at] if stage.along else [],
    }


def _too_many_epochs(study: Study, sizes: Mapping[str, int | None]) -> Iterator[str]:
    """A sentence for each source that an arm reads for more than its `max_epochs` by the end of pretraining or later."""
    read_by: dict[str, dict[str, dict[str, Any]]] = {}
    for point, stage, arm, phases in _texts(study):
        blend = Blend(phases)
        reader = arm.key if stage == BASE else f"{arm.key} by {stage}"
        read_by[reader] = _sources(blend.counts(blend.total), point, sizes)
    for name, source in study.sources.items():
        epochs = {reader: sources[name]["epochs"] or 0.0 for reader, sources in read_by.items() if name in sources}
        reader = max(epochs, key=lambda reader: epochs[reader], default="")
        if reader and epochs[reader] > source.max_epochs:
            yield (
                f"source {name}: {epochs[reader]:.1f} epochs in arm {reader}, more than its max_epochs {source.max_epochs:g}; "
                "give it more documents or less weight, or raise its max_epochs"
            )


def _unknown_sizes(study: Study, sizes: Mapping[str, int | None]) -> Iterator[str]:
    read = read_sources(study)
    if unknown := [name for name, size in sizes.items() if size is None and name in read]:
        yield f"size unknown: {', '.join(unknown)}; their epochs are checked when pretraining starts"


def _unfit(study: Study) -> Iterator[str]:
    """A sentence for each batch too large for the GPUs, and each warm-up that is cut off or reaches far into the decay."""
    stages: dict[str, AnyStage | None] = {"pretraining": None, **study.tree.stages}
    for name, stage in stages.items():
        memory = _gpu_memory(study, stage)
        if memory["would_fit"]:
            micro_batch = (stage or study.pretraining).micro_batch
            yield (
                f"{name} with micro_batch {micro_batch} needs about {memory['needed_gib']:.0f} GiB of each GPU, which has "
                f"{memory['available_gib']:g}; use {' or '.join(memory['would_fit'])}"
            )
        if stage and stage.decay_fraction and (left := (1 - stage.warmup_fraction) / stage.decay_fraction) < LEAST_LEFT:
            yield (
                f"{name}'s learning rate drops to {left:.0%} of its peak at the end of the warm-up, because the decay begins "
                f"earlier; lower its warmup_fraction or decay_fraction"
            )
    steps, schedule = study.budget.steps, study.pretraining.schedule
    warmup, end = warmup_steps(steps, schedule), decay_start(steps, schedule)
    if warmup > end:
        yield (
            f"pretraining's learning rate rises for {warmup:,} steps, but only {end:,} of {steps:,} steps precede the decay or "
            "the end; lower pretraining.schedule.warmup_steps or its fractions"
        )


def _source_size(name: str, study: Study, shards: Path | None) -> tuple[int | None, str]:
    """The tokens of a source and where the number is from: its manifests, else the publisher, else nowhere (None)."""
    source = study.sources[name]
    names = [shard for shard in source.shard_names if shard != VALIDATION]
    tokens: int | None = None
    if shards:
        with contextlib.suppress(UserError):  # a shard that is missing or damaged has yet to be made
            tokens = sum(read_manifest(shards / name / shard)["tokens"] for shard in names)
    if tokens is not None:
        if not tokens and name in read_sources(study):
            raise UserError(f"source {name}: its shards in {shards} hold no tokens; give it documents or a weight of 0")
        return tokens, "manifests"
    entry = dataset(source.dataset) if source.dataset else None
    if study.world or entry is None or not (entry.tokens and entry.documents):
        return None, "unknown"
    if source.parts and {*source.parts} != {*entry.parts}:  # only their total is published
        return None, "unknown"
    if source.documents is None:
        return entry.tokens, "published"
    share = min(1.0, source.documents / entry.documents)
    return round(entry.tokens * share), "published, scaled to its documents"


def _unused(study: Study) -> Iterator[str]:
    """A sentence for each key that defines something unused. Every source is used: its held-out text is always measured."""
    config, tasks = study.evaluation, study.all_eval_tasks
    asked = [*study.used_benchmarks, *(task.benchmark for task in tasks)]
    uses: dict[str, tuple[Iterable[str], list[str]]] = {
        "tuning_sets": (study.tuning_sets, used_pools(study)),
        "evaluation.prompts": (config.prompts, asked),
        "evaluation.attacks.artifacts": (config.attacks.artifacts, asked),
        "evaluation.attacks.suffixes_of": (config.attacks.suffixes_of, asked),
        "evaluation.shards": (config.shards, [task.task.name for task in tasks]),
    }
    for key, (names, used) in uses.items():
        if unused := [name for name in names if name not in used]:
            yield f"{key}: no stage and no task uses {', '.join(unused)}; name it where it should be used, or remove it"


def _not_here(study: Study) -> Iterator[str]:
    """A sentence for each thing that must be fetched and cannot be, or whose commit is not named, so that it can change."""
    if study.tokenizer.hub and not study.tokenizer.revision:
        yield f"tokenizer {study.tokenizer.hub}: no tokenizer.revision, so the newest commit is read; the run records which"
    root, probes = local_root(), study.used_probes
    if root is None and not study.world:
        for name in study.used_benchmarks:
            entry = BENCHMARKS.get(name)
            if entry and not entry.hub_revision and not entry.texts:
                yield f"benchmark {name}: no commit of {entry.hub} is known, so the newest is read; the fetch records which"
        for key, table in declared_in(study):
            if table.hub and not table.revision:
                yield f"{key}: no revision of {table.hub}, so the newest commit is read; the fetch records which"
        if gated := [item.label for item in study_downloads(study, Path()) if item.download.gated]:
            from huggingface_hub import get_token

            if not get_token():
                yield f"{', '.join(gated)}: gated, and there is no token; accept the licences on the hub and set HF_TOKEN"
    for name in study.used_benchmarks:
        if root is None or study.world or name not in BENCHMARKS:
            continue
        if not table_exists(BENCHMARKS[read_for(name, root)].stem(root)):
            yield f"benchmark {name}: {root} lacks it, so no model can be asked its prompts; fetch it there"
    is_here = root is not None and all(table_exists(root / "probes" / split) for split in ("train", "test"))
    if probes and not (probes.texts or study.world or is_here):
        yield f"probes: {NOT_FETCHED}"


def _overlaps(study: Study) -> Iterator[str]:
    """A sentence for each pair of sources that may read the same rows, if that repeats documents or spoils held-out text."""
    read = [(arm.name, {*sources_of(phases)}) for _, _, arm, phases in _texts(study)]
    for (name, source), (other_name, other) in combinations(study.sources.items(), 2):
        with contextlib.suppress(UserError):  # files can be moved away once they are tokenised
            if not source.overlaps(other):
                continue
            if readers := dict.fromkeys(arm for arm, sources in read if {name, other_name} <= sources):
                yield f"{name} and {other_name} may read the same rows: documents repeat in {', '.join(readers)}"
            choice, other_choice = ((it.dataset, it.parts, it.documents, it.bounds) for it in (source, other))
            if study.validation_documents and choice != other_choice:
                yield (
                    f"{name} and {other_name} may read the same rows, but choose among them differently: what one holds out, "
                    "the other may train on, so their held-out losses can be too low"
                )


def _hours_by(plan: Plan, groups: Iterable[str], of: Callable[[Element], str]) -> dict[str, dict[str, float]]:
    """The GPU-hours of each group, whose elements are those for which `of` gives its name."""
    hours = {name: {"pretraining": 0.0, "other_at_most": 0.0} for name in groups}
    for job, element in plan.elements():
        if of(element) in hours:
            part = "pretraining" if job.request.section == "pretraining" else "other_at_most"
            hours[of(element)][part] += element.gpu_hours
    return hours


def _evaluation_hours(plan: Plan) -> dict[str, float]:
    """The estimated GPU-hours of each evaluation task, by name."""
    hours: dict[str, float] = defaultdict(float)
    for _, element in plan.elements():
        if (task := element.eval_task) is not None:
            hours[task.task.name] += _task_gpu_hours(task, plan.study.at(element.variant))
    return dict(hours)


def answers_of(task: EvalTask, study: Study) -> Iterator[tuple[float, float, float]]:
    """What one element generates with each decoder of its task: the number of answers (each beam counts as one), the number in
    a batch, and the tokens of each, as if every answer had its full length."""
    prompts, attempts = _asked(task, study)
    for settings in study.evaluation.decoder_settings(task.task):
        count = prompts * (attempts or getattr(settings, "samples", 1)) * getattr(settings, "candidates", 1)
        yield count, getattr(settings, "rows", 64), getattr(settings, "max_new_tokens", 256)


def gcg_tokens(task: EvalTask, study: Study) -> float:
    """The tokens of all candidates in one element's GCG searches; 0 for any other task."""
    config = study.evaluation.gcg
    if task.task.kind != "gcg" or config is None:
        return 0.0
    prompts, _ = _asked(task, study)
    return prompts * config.steps * config.search_width * GCG_TOKENS


def _asked(task: EvalTask, study: Study) -> tuple[float, int]:
    """The prompts of one element, and the best-of-n attempts at each; 0 attempts for any other task."""
    attempts = study.evaluation.attacks.best_of_n.attempts if task.task.kind == "best-of-n" else 0
    return study.prompts_in(task.benchmark, task.limit) / task.shards, attempts


def _task_gpu_hours(task: EvalTask, study: Study) -> float:
    """The GPU-hours of one element of the study's evaluation, estimated from counts of tokens."""
    config, parameters = study.evaluation, study.model.resolve().parameters

    def reading(tokens: float) -> float:
        return 2 * parameters * tokens / (study.resources.peak_tflops * 1e12 * READING)

    def generating(answers: float, rows: float, steps: float) -> float:  # each step reads the weights once
        return -(-answers // rows) * steps * max(STEP_S, 2 * parameters / BYTES_PER_S)

    kind = task.task.kind
    if kind == "probes":
        return reading(PROBE_TOKENS) / 3600
    if kind == "capability" and config.capability:
        own = study.whole.evaluation.own_sets.get(task.benchmark, UNKNOWN_QUESTIONS)
        known = PUBLISHED.get(task.benchmark, Published("", "", "", own, 4, PROMPT_TOKENS))
        questions = min(known.questions, config.capability.limit or known.questions)
        seconds = reading(questions * known.requests * known.prompt_tokens)
        if known.answer_tokens:
            seconds += generating(questions, config.capability.batch, known.answer_tokens)
        return seconds / 3600
    prompts, attempts = _asked(task, study)
    seconds = 0.0
    for answers in answers_of(task, study):
        seconds += reading(prompts * max(attempts, 1) * PROMPT_TOKENS) + generating(*answers)
    if kind == "ablation":
        seconds += reading(ABLATION_CANDIDATES * 3 * config.attacks.ablation.validation * PROMPT_TOKENS)
    if kind == "gcg" and config.gcg:
        seconds += reading(gcg_tokens(task, study)) + prompts * config.gcg.steps * 2 * STEP_S
    return seconds / 3600


def _gpu_memory(study: Study, stage: AnyStage | None = None) -> dict[str, Any]:
    """The memory in GiB that pretraining, or a later `stage`, needs on each GPU, and what would make it fit if it does not."""
    resources, model = study.resources, study.model.resolve()
    gpus = (resources.tuning if isinstance(stage, Tuning) else resources.pretraining).gpus
    data_parallel = max(1, gpus // resources.tensor_parallel)
    pretraining, own = study.pretraining, stage or study.pretraining
    micro_batch = own.micro_batch or pretraining.micro_batch
    global_batch = own.global_batch or pretraining.global_batch
    layout = Layout(
        min(micro_batch, max(1, global_batch // data_parallel)),
        study.budget.sequence_length,
        resources.tensor_parallel,
        data_parallel,
        resources.engine,
    )
    needed, available = step_memory(model, layout), resources.gpu_memory_gib * GIB
    return {
        "needed_gib": needed.total / GIB,
        "available_gib": resources.gpu_memory_gib,
        "parts_gib": {name: size / GIB for name, size in dataclasses.asdict(needed).items()},
        "would_fit": [] if needed.total <= available else what_would_fit(model, layout, available),
    }
