"""One element of an evaluation: one part of it (a task on a benchmark, or a shard of one) on one model.

run_element(Part("attacks-topk", "harmbench"), model_dir, "instruct", config, data_root=None, out=..., seed=0)

writes `<out>/attacks-topk/harmbench.jsonl` (see eval/rows.py). Killed at any instant and run again it goes on after the
last finished batch and ends with the same bytes. Run again with another model or decoder it generates what is missing.
Nothing is judged here: that is done for all parts of a model together (`eval/judging/merge.py`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import msgspec

from curricula.errors import UsageError
from curricula.eval import probes
from curricula.eval.attacks import gcg
from curricula.eval.benchmarks import Prompt, load_prompts
from curricula.eval.config import EvalConfig, Gcg, ModelKind, Part, Probes
from curricula.eval.generations import Generation, run_generations
from curricula.eval.models import LoadedModel, load_model
from curricula.eval.rows import (
    GenerationRow,
    ProbeRow,
    SuffixRow,
    append_rows,
    finished_batches,
    in_order,
    row_key,
    write_rows,
)
from curricula.progress import Progress, silent

TASKS = (
    "attacks-topk",
    "attacks-safebeam",
    "attacks-greedy",
    "overrefusal-topk",
    "overrefusal-safebeam",
    "gcg",
    "probes",
)


def run_element(
    part: Part,
    model: Path | str | LoadedModel,
    model_kind: ModelKind,
    config: EvalConfig,
    *,
    data_root: Path | None,
    out: Path,
    seed: int,
    progress: Progress = silent,
    device: str | None = None,
) -> list[GenerationRow] | list[ProbeRow]:
    """Carry out `part` and return its rows in order.

    `model` is a folder, a name, or what was loaded from one; `data_root` holds the benchmark files (None: the Hugging Face
    hub).
    Raises UserError or UsageError for what the user can mend: folder, tokenizer, dataset, task.
    """
    if part.task not in TASKS:
        raise UsageError(f"evaluation task {part.task!r} is not known; choose one of {', '.join(TASKS)}")
    if part.task in ("gcg", "probes"):
        required(getattr(config, part.task), part.task)
    prompts = part_prompts(part, config, data_root) if part.task != "probes" else []

    loaded = model if isinstance(model, LoadedModel) else load_model(model, model_kind, device, config.precision)
    if part.task == "probes":
        return run_probe_task(loaded, cast(Probes, config.probes), data_root, out, seed, progress)
    path = part.path(out)
    if not prompts:  # more shards than prompts
        write_rows(path, cast("list[GenerationRow]", []))
        return []
    if part.task == "gcg":
        suffixes = path.with_name(f"{path.stem}.suffixes.jsonl")
        generations = gcg_generations(loaded, prompts, config, suffixes, seed, progress)
    else:
        generations = [Generation(loaded, config, part.task, part.task.partition("-")[2], prompts, seed)]
    return run_generations(generations, path, progress)


def required(settings: Any, name: str) -> Any:
    if settings is None:
        raise UsageError(f"task {name!r} is asked for, but evaluation.{name} is null; give it settings")
    return settings


def part_prompts(part: Part, config: EvalConfig, data_root: Path | None) -> list[Prompt]:
    """The prompts of a part: shards are runs of a benchmark's prompts, so that together they keep its order."""
    if part.task == "gcg":
        limit = config.gcg.prompts if config.gcg else None
    elif part.task.startswith("overrefusal"):
        limit = config.overrefusal_prompts
    else:
        limit = config.prompts_per_benchmark
    prompts = load_prompts(part.benchmark, data_root, limit=limit, with_copyright=config.harmbench_copyright)
    bounds = [shard * len(prompts) // part.shards for shard in (part.shard, part.shard + 1)]
    return prompts[bounds[0] : bounds[1]]


def gcg_generations(
    loaded: LoadedModel, prompts: list[Prompt], config: EvalConfig, path: Path, seed: int, progress: Progress
) -> list[Generation]:
    """Find the suffixes that `path` lacks, a prompt at a time, and return the decoding of the attacked prompts."""
    attack = cast(Gcg, config.gcg)
    settings = msgspec.to_builtins(attack)
    for field in ("benchmark", "prompts", "batch_candidates"):
        settings.pop(field)
    keys = [
        row_key(
            task="gcg",
            prompt_id=prompt.id,
            benchmark=prompt.benchmark,
            prompt=prompt.text,
            model=loaded.content_hash,
            precision=loaded.precision,
            version=gcg.VERSION,
            settings=settings,
            seed=seed,
        )
        for prompt in prompts
    ]
    done = finished_batches(path, SuffixRow, [[key] for key in keys])
    for number, (prompt, key) in enumerate(zip(prompts, keys)):
        if key in done:
            continue

        def on_step(step: int, loss: float, before: int = number) -> None:
            progress(before * attack.steps + step, len(prompts) * attack.steps, loss=round(loss, 4))

        save = gcg.Save(path.with_suffix(".step.json"), key)
        result = gcg.optimise_suffix(loaded, prompt.text, attack, (seed, prompt.benchmark, prompt.id), on_step, save)
        row = SuffixRow(
            key=key,
            model=loaded.content_hash,
            benchmark=prompt.benchmark,
            prompt_id=prompt.id,
            behavior=prompt.behavior,
            suffix=result.suffix,
            loss=result.loss,
            initial_loss=result.initial_loss,
            losses=result.losses,
            idle_steps=result.idle_steps,
            seed=seed,
        )
        append_rows(path, [row])
        save.forget()
    found = in_order(path, SuffixRow, [[key] for key in keys])
    attacked = [msgspec.structs.replace(prompt, text=prompt.text + row.suffix) for prompt, row in zip(prompts, found)]
    return [Generation(loaded, config, "gcg", f"gcg+{decoder}", attacked, seed) for decoder in ("topk", "safebeam")]


def run_probe_task(
    loaded: LoadedModel, config: Probes, data_root: Path | None, out: Path, seed: int, progress: Progress
) -> list[ProbeRow]:
    """Fit and test all probes, unless `<out>/probes.jsonl` already holds them; they are written together."""
    path = out / "probes.jsonl"
    train, test = (probes.load_texts(data_root, split, config) for split in ("train", "test"))
    total = len(config.layers) * config.seeds
    texts = row_key(train=train.texts, test=test.texts, labels=[train.unsafe.tolist(), test.unsafe.tolist()])
    settings = msgspec.to_builtins(config)
    settings.pop("batch_texts")
    keys = [
        row_key(
            task="probes",
            model=loaded.content_hash,
            precision=loaded.precision,
            texts=texts,
            version=probes.VERSION,
            settings=settings,
            seed=seed,
            layer=layer,
            draw=draw,
        )
        for draw in range(config.seeds)
        for layer in config.layers
    ]
    if not finished_batches(path, ProbeRow, [keys]):
        results = probes.run_probes(loaded, train, test, config, seed)
        append_rows(
            path,
            [
                ProbeRow(key=key, model=loaded.content_hash, model_kind=loaded.kind, **msgspec.structs.asdict(result))
                for key, result in zip(keys, results)
            ],
        )
    progress(total, total)
    return in_order(path, ProbeRow, [keys])
