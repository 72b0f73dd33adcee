"""Tokenize: one shard of one source, as a Megatron indexed dataset."""

from __future__ import annotations

from curricula.curriculum.tokens.shards import is_whole
from curricula.curriculum.tokens.tokenize import Tokenization, tokenize_shard
from curricula.jobs.stages.base import Stage, Work
from curricula.progress import Progress


class Tokenize(Stage):
    name, section, needs_torch = "tokenize", "data", False

    def run(self, work: Work, progress: Progress) -> None:
        run, study, name = work.run, work.study, work.element.source
        tokenization = Tokenization(
            name=name,
            source=study.sources[name],
            tokenizer=run.tokenizer,
            folder=run.shards / name,
            data_root=run.data_root,
            seed=study.first_seed,
            validation_documents=study.validation_documents,
        )
        tokenize_shard(tokenization, work.element.shard, progress)

    def is_complete(self, work: Work) -> bool:
        return is_whole(work.run.shards / work.element.source / work.element.shard)
