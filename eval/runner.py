"""One element of an evaluation: a task on one benchmark, or on a shard of it, carried out on one model.

    eval_task = EvalTask(TASKS["attacks-topk"], "harmbench")
    run_element(eval_task, load_model(model_dir, "instruct"), EvalConfig(), data_root=None, out=out, seed=0)

writes `<out>/attacks-topk/harmbench.jsonl` (see eval/rows.py). Batches that are already there are kept.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec

from curricula.errors import UsageError, UserError
from curricula.eval.attacks.ablation import find_direction, without_direction
from curricula.eval.attacks.gcg import attacked_prompts
from curricula.eval.attacks.prompts import artifact_prompts, check_distortable, rewritten, suffixed_prompts
from curricula.eval.benchmarks import Prompt, limited, load_prompts, own_prompts
from curricula.eval.config import EvalConfig
from curricula.eval.decoding.answers import room_after
from curricula.eval.decoding.registry import Decoder
from curricula.eval.decoding.settings import together
from curricula.eval.models import LoadedModel
from curricula.eval.probes.probing import probe_rows
from curricula.eval.rows import (
    CapabilityRow,
    GenerationRow,
    ProbeRow,
    append_rows,
    finished_batches,
    in_order,
    row_key,
    write_rows,
)
from curricula.eval.tasks import EvalTask, Task
from curricula.progress import Progress, silent

log = logging.getLogger(__name__)


def run_element(
    eval_task: EvalTask,
    loaded: LoadedModel,
    config: EvalConfig,
    *,
    data_root: Path | None,
    out: Path,
    seed: int,
    probe_seed: int | None = None,
    rows_of: Callable[[str], Path] = Path,
    progress: Progress = silent,
) -> list[GenerationRow] | list[ProbeRow] | list[CapabilityRow]:
    """Carry out `eval_task` and return its rows in order.

    `seed` seeds the draws of answers and suffixes; `probe_seed`, by default the same, seeds those of the probes' texts.
    `data_root` is the folder of benchmark files; None fetches them from the Hugging Face hub. `rows_of` gives the folder with
    the rows of another arm's model, from which the task transfer takes suffixes.
    """
    task, path = eval_task.task, eval_task.path(out)
    if config.leaves_out(task):
        raise UsageError(f"task {task.name!r} is asked for, but evaluation.{task.kind} is null; give it settings")
    prompts = task_prompts(eval_task, config, data_root, rows_of)
    if config.probes and task.kind == "probes":
        return probe_rows(loaded, config.probes, data_root, path, seed if probe_seed is None else probe_seed, progress)
    if config.capability and task.kind == "capability":
        from curricula.eval.capability.harness import capability_rows

        return capability_rows(loaded, eval_task.benchmark, config.capability, path, prompts or None, progress)
    if not prompts:  # more shards than prompts
        write_rows(path, [])
        return []
    if config.gcg and task.kind == "gcg":
        prompts = attacked_prompts(loaded, prompts, config.gcg, path, seed, progress)
    if task.kind == "ablation":
        scores = path.with_name(f"{path.stem}.scores.jsonl")
        direction = find_direction(loaded, config, data_root, out / "refusal-direction.json", scores, progress)
        with without_direction(loaded.model, direction.vector):
            return generate_rows(loaded, prompts, task, config, path, seed, progress, attack=direction.key)
    prompts = rewritten(task.kind, prompts, loaded, config.attacks, seed)
    return generate_rows(loaded, prompts, task, config, path, seed, progress)


def task_prompts(
    eval_task: EvalTask, config: EvalConfig, data_root: Path | None, rows_of: Callable[[str], Path] = Path
) -> list[Prompt]:
    """The prompts of `eval_task`; for a capability task on an own set, all questions of the set.

    A shard is a contiguous run of the benchmark's prompts, so shards joined in order keep the benchmark's order.
    """
    name = eval_task.benchmark
    if not eval_task.has_prompts:
        return own_prompts(name, config.prompts[name], data_root) if name in config.prompts else []
    if eval_task.task.kind == "artifacts":
        path = Path(data_root or "", config.attacks.artifacts[name])
        prompts = limited(artifact_prompts(name, path), name, eval_task.limit)
    else:
        suffixed_benchmark = config.gcg.benchmark if eval_task.task.kind == "transfer" and config.gcg else ""
        prompts = load_prompts(
            suffixed_benchmark or name,
            data_root,
            own=config.prompts,
            limit=eval_task.limit,
            with_copyright=config.harmbench_copyright,
            accept_changed=config.accept_changed,
        )
        if suffixed_benchmark:
            prompts = suffixed_prompts(name, rows_of(name), prompts)
    if eval_task.task.kind == "best-of-n":
        check_distortable(name, prompts)
    if eval_task.shards > 1:
        shard_of = row_key(prompts=[[prompt.id, prompt.text, prompt.behavior] for prompt in prompts])
        prompts = [msgspec.structs.replace(prompt, shard_of=shard_of) for prompt in prompts]
    start, stop = (shard * len(prompts) // eval_task.shards for shard in (eval_task.shard, eval_task.shard + 1))
    return prompts[start:stop]


def check_lengths(loaded: LoadedModel, prompts: Sequence[Prompt]) -> None:
    """Raise UserError, naming benchmark and prompt, for a prompt that is empty or fills the model's context."""
    for prompt in prompts:
        try:
            room_after(loaded, prompt_ids(loaded, prompt), 1)
        except UserError as error:
            raise UserError(f"{prompt.benchmark}, prompt {prompt.id}: {error}") from None


def prompt_ids(loaded: LoadedModel, prompt: Prompt) -> list[int]:
    """Token ids that the model reads: the prompt and the prefilled beginning of its answer, if any."""
    ids = loaded.raw_ids(prompt.text) if prompt.raw else loaded.prompt_ids(prompt.text)
    return ids + loaded.encode_turn("", prompt.prefill, "") if prompt.prefill else ids


def generate_rows(
    loaded: LoadedModel,
    prompts: list[Prompt],
    task: Task,
    config: EvalConfig,
    path: Path,
    seed: int,
    progress: Progress = silent,
    attack: str = "",
) -> list[GenerationRow]:
    """Answer `prompts` with each decoder of `task`, append the rows to `path` a batch at a time, and return all rows.

    Answers that are already in `path` are kept, but take over the `description` of the current prompts. A changed `behavior`
    makes their verdicts stale, because the judge is asked about it. `attack` identifies what an attack did to the model and
    becomes part of the rows' keys.
    """
    check_lengths(loaded, prompts)
    quoted = [count for prompt in prompts if (count := loaded.plain_text.quotes(prompt.text))]
    if quoted:
        log.info("%s: %d prompts quote %d control tokens, which are read as text", task.name, len(quoted), sum(quoted))
    batches: list[Batch] = []
    are_attempts = any(prompt.attempt is not None for prompt in prompts)
    for (label, decoder), settings in zip(task.labelled_decoders(), config.decoder_settings(task)):
        if are_attempts:  # each attempt is one sample
            settings = msgspec.structs.replace(settings, samples=1)
        size = settings.batch_prompts
        parts = [prompts[start : start + size] for start in range(0, len(prompts), size)]
        batches += [Batch(loaded, task.name, label, decoder, settings, part, seed, attack) for part in parts]
    keys = [batch.keys for batch in batches]
    total = sum(map(len, keys))
    done = finished_batches(path, GenerationRow, keys)
    finished = len(done)
    progress(finished, total)
    for batch in batches:
        if batch.keys[0] not in done:
            append_rows(path, batch.rows())
            finished += len(batch.keys)
            progress(finished, total, benchmark=batch.prompts[0].benchmark)
    descriptions = {(prompt.benchmark, prompt.id): description(prompt) for prompt in prompts}

    def refresh(row: GenerationRow) -> GenerationRow:
        return msgspec.structs.replace(row, **descriptions[row.benchmark, row.prompt_id])

    return in_order(path, GenerationRow, keys, refresh)


def description(prompt: Prompt) -> dict[str, Any]:
    """The fields of a row that describe its prompt. They are in no key, so that correcting them keeps the answers."""
    return {name: getattr(prompt, name) for name in ("category", "behavior", "context", "cluster", "shard_of")}


@dataclasses.dataclass(frozen=True)
class Batch:
    """Prompts that one decoder answers together. The order of prompts in the element decides which ones."""

    loaded: LoadedModel
    task: str
    label: str
    decoder: Decoder
    settings: Any
    prompts: Sequence[Prompt]
    seed: int
    attack: str = ""

    @cached_property
    def asked(self) -> list[tuple[Prompt, int]]:
        """The prompt and the sample number of each answer, with all samples of a prompt together."""
        samples = range(getattr(self.settings, "samples", 1))
        return [(prompt, sample if prompt.attempt is None else prompt.attempt) for prompt in self.prompts for sample in samples]

    @cached_property
    def keys(self) -> list[str]:
        neutral: set[str] = set()  # settings that do not change an answer
        if self.loaded.deterministic or self.loaded.is_exact:
            neutral = {"batch_prompts", "samples"}
        if self.loaded.is_exact and not self.loaded.deterministic:
            neutral |= together(type(self.settings))
        settings = {name: value for name, value in msgspec.to_builtins(self.settings).items() if name not in neutral}
        return [
            row_key(
                task=self.task,
                prompt_id=prompt.id,
                benchmark=prompt.benchmark,
                prompt=prompt.text,
                model=self.loaded.content_hash,
                model_kind=self.loaded.kind,
                precision=self.loaded.precision,
                decoder=self.label,
                version=self.decoder.version,
                settings=settings,
                seed=self.seed,
                sample=sample,
                if_set={"prefill": prompt.prefill, "attack": self.attack, "deterministic": self.loaded.deterministic},
            )
            for prompt, sample in self.asked
        ]

    def rows(self) -> list[GenerationRow]:
        ids = [prompt_ids(self.loaded, prompt) for prompt in self.prompts]
        draws = [
            (self.seed, prompt.benchmark, prompt.id, *(() if prompt.attempt is None else (prompt.attempt,)))
            for prompt in self.prompts
        ]
        answers = self.decoder.answer(self.loaded, ids, draws, self.settings)
        if len(answers) != len(self.keys):
            raise UserError(
                f"decoder {self.decoder.name}: gave {len(answers)} answers to {len(self.prompts)} prompts, but "
                f"{len(self.keys)} were asked for; correct its package"
            )
        return [
            GenerationRow(
                key=key,
                task=self.task,
                **self.loaded.row_fields,
                raw=self.loaded.raw,
                precision=self.loaded.precision,
                benchmark=prompt.benchmark,
                prompt_id=prompt.id,
                prompt=prompt.text,
                **description(prompt),
                decoder=self.label,
                sample=sample,
                seed=self.seed,
                prefill=prompt.prefill,
                response=prompt.prefill + answer.blank + answer.text if prompt.prefill else answer.text,
                completion=answer.completion,
                tokens=answer.tokens,
                finish=answer.finish,
                shortcircuit=answer.shortcircuit,
                pruning=answer.pruning,
            )
            for (prompt, sample), key, answer in zip(self.asked, self.keys, answers)
        ]
