"""One element of an evaluation: one task on one model, from prompts to judged rows on disk.

run_element("attacks-topk", model_dir, "instruct", config, data_root=None, world_root=None, out=..., seed=0)

writes `<out>/<task>.jsonl` (see eval/rows.py). Killed at any instant and run again it goes on after the last finished
batch and ends with the same bytes. Run again with another judge it judges the stored answers and generates nothing.
Run again with another model or decoder it generates what is missing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from curriculum.errors import UsageError
from curriculum.progress import Progress, silent
from eval import gcg, probes
from eval.benchmarks import Prompt, load_prompts
from eval.config import Evaluation, Gcg, ModelKind, Probes, tasks_for
from eval.generations import Generation, run_generations
from eval.judges import load_judge
from eval.models import LoadedModel, load_model
from eval.rows import GenerationRow, ProbeRow, SuffixRow, append_rows, finished_batches, in_order, row_key

TASKS = (
    "attacks-topk",
    "attacks-safebeam",
    "attacks-greedy",
    "overrefusal-topk",
    "overrefusal-safebeam",
    "gcg",
    "probes",
)

__all__ = ["TASKS", "run_element", "tasks_for"]


def run_element(
    task: str,
    model_dir: Path,
    model_kind: ModelKind,
    config: Evaluation,
    *,
    data_root: Path | None,
    world_root: Path | None,
    out: Path,
    seed: int,
    progress: Progress = silent,
    device: str | None = None,
) -> list[GenerationRow] | list[ProbeRow]:
    """Carry out `task` and return its rows in order.

    `data_root` holds the benchmark files (None: the Hugging Face hub), `world_root` the fictional world for its judge.
    Raises UserError or UsageError for what the user can mend: folder, tokenizer, dataset, judge, task.
    """
    if task not in TASKS:
        raise UsageError(f"evaluation task {task!r} is not known; choose one of {', '.join(TASKS)}")
    if task == "probes":
        settings = required(config.probes, "probes")
        loaded = load_model(model_dir, model_kind, device)
        return run_probe_task(loaded, settings, data_root, out, seed, progress)
    judge = load_judge(config.judge, world_root)
    if task == "gcg":
        attack = required(config.gcg, "gcg")
        loaded = load_model(model_dir, model_kind, device)
        generations = gcg_generations(loaded, config, attack, data_root, out, seed, progress)
    else:
        prompts = task_prompts(task, model_kind, config, data_root)
        loaded = load_model(model_dir, model_kind, device)
        generations = [Generation(loaded, config, task, task.partition("-")[2], prompts, seed)]
    return run_generations(generations, judge, out / f"{task}.jsonl", progress)


def required(settings: Any, name: str) -> Any:
    if settings is None:
        raise UsageError(f"task {name!r} is asked for, but evaluation.{name} is null; give it settings")
    return settings


def task_prompts(task: str, model_kind: ModelKind, config: Evaluation, data_root: Path | None) -> list[Prompt]:
    """The prompts of an attacks or overrefusal task, benchmark after benchmark."""
    if task.startswith("overrefusal"):
        return load_prompts(config.overrefusal_benchmark, data_root, limit=config.overrefusal_prompts)
    names = (config.base_benchmark,) if model_kind == "base" else config.benchmarks
    return [
        prompt
        for name in names
        for prompt in load_prompts(
            name, data_root, limit=config.prompts_per_benchmark, with_copyright=config.harmbench_copyright
        )
    ]


def gcg_generations(
    loaded: LoadedModel,
    config: Evaluation,
    attack: Gcg,
    data_root: Path | None,
    out: Path,
    seed: int,
    progress: Progress,
) -> list[Generation]:
    """Find the missing suffixes, a prompt at a time, and return the decoding of the attacked prompts."""
    prompts = load_prompts(attack.benchmark, data_root, limit=attack.prompts)
    path = out / "gcg.suffixes.jsonl"
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
