"""Answers to lists of prompts, generated a batch at a time into a file of rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from curricula.errors import UserError
from curricula.eval.benchmarks import Prompt
from curricula.eval.config import EvalConfig
from curricula.eval.decoding import registry as decoders
from curricula.eval.decoding.answers import Answer
from curricula.eval.decoding.batch import room_after
from curricula.eval.models import LoadedModel
from curricula.eval.rows import GenerationRow, append_rows, finished_batches, in_order, row_key
from curricula.progress import Progress


@dataclasses.dataclass
class Generation:
    """Answers of one model to one list of prompts with one decoder, in batches fixed by the order of the prompts."""

    loaded: LoadedModel
    config: EvalConfig
    task: str
    decoder: str  # of eval.decoders.DECODERS, after "gcg+" for attacked prompts
    prompts: list[Prompt]
    seed: int

    @property
    def name(self) -> str:
        return self.decoder.rpartition("+")[2]

    @property
    def settings(self) -> Any:
        return getattr(self.config, self.name)

    @property
    def samples(self) -> int:
        return getattr(self.settings, "samples", 1)

    def batches(self) -> Iterator[list[Prompt]]:
        size = self.settings.batch_prompts
        for start in range(0, len(self.prompts), size):
            yield self.prompts[start : start + size]

    def keys(self, prompts: Sequence[Prompt]) -> list[str]:
        settings = msgspec.to_builtins(self.settings)
        for field in decoders.NEUTRAL:
            settings.pop(field, None)
        return [
            row_key(
                task=self.task,
                prompt_id=prompt.id,
                benchmark=prompt.benchmark,
                prompt=prompt.text,
                model=self.loaded.content_hash,
                model_kind=self.loaded.kind,
                precision=self.loaded.precision,
                decoder=self.decoder,
                version=decoders.DECODERS[self.name].version,
                settings=settings,
                seed=self.seed,
                sample=sample,
            )
            for prompt in prompts
            for sample in range(self.samples)
        ]

    def answers(self, prompts: Sequence[Prompt]) -> list[Answer]:
        """Answers to one batch, all samples of a prompt together."""
        ids = [self.loaded.prompt_ids(prompt.text) for prompt in prompts]
        draws = [(self.seed, prompt.benchmark, prompt.id) for prompt in prompts]
        return decoders.DECODERS[self.name].answer(self.loaded, ids, draws, self.settings)

    def rows(self, prompts: Sequence[Prompt]) -> list[GenerationRow]:
        rows = []
        for place, (key, answer) in enumerate(zip(self.keys(prompts), self.answers(prompts))):
            prompt, sample = prompts[place // self.samples], place % self.samples
            rows.append(
                GenerationRow(
                    key=key,
                    task=self.task,
                    model=self.loaded.content_hash,
                    model_kind=self.loaded.kind,
                    precision=self.loaded.precision,
                    benchmark=prompt.benchmark,
                    prompt_id=prompt.id,
                    category=prompt.category,
                    behavior=prompt.behavior,
                    prompt=prompt.text,
                    decoder=self.decoder,
                    sample=sample,
                    seed=self.seed,
                    context=prompt.context,
                    cluster=prompt.cluster,
                    response=answer.text,
                    completion=answer.completion,
                    tokens=answer.tokens,
                    finish=answer.finish,
                    shortcircuit=answer.shortcircuit,
                )
            )
        return rows


def check_lengths(loaded: LoadedModel, prompts: Sequence[Prompt]) -> None:
    """Raise UserError, which names benchmark and prompt, for one that is empty or fills the model's context."""
    for prompt in prompts:
        try:
            room_after(loaded, loaded.prompt_ids(prompt.text), 1)
        except UserError as error:
            raise UserError(f"{prompt.benchmark}, prompt {prompt.id}: {error}") from None


def run_generations(generations: Sequence[Generation], path: Path, progress: Progress) -> list[GenerationRow]:
    """Generate what `path` lacks, a batch at a time; returns all rows."""
    for generation in generations:
        check_lengths(generation.loaded, generation.prompts)
    work = [(generation, batch) for generation in generations for batch in generation.batches()]
    keys = [generation.keys(batch) for generation, batch in work]
    total = sum(map(len, keys))
    done = finished_batches(path, GenerationRow, keys)
    finished = len(done)
    progress(finished, total)
    for (generation, batch), batch_keys in zip(work, keys):
        if batch_keys[0] not in done:
            append_rows(path, generation.rows(batch))
            finished += len(batch_keys)
            progress(finished, total, benchmark=batch[0].benchmark)
    return in_order(path, GenerationRow, keys)
