"""Tokenize: one shard of one source, as a Megatron indexed dataset."""

from __future__ import annotations

from curricula.curriculum.tokens.shards import TokenizeJob, is_whole, tokenize_shard
from curricula.jobs.slurm.profile import Ask
from curricula.jobs.stages.base import Stage, Work
from curricula.jobs.study import Study
from curricula.progress import Progress


class Tokenize(Stage):
    name, section, needs_torch = "tokenize", "data", False

    def run(self, work: Work, progress: Progress) -> None:
        run, study, name = work.run, work.study, work.element.source
        job = TokenizeJob(
            name,
            study.sources[name],
            run.tokenizer,
            run.shards / name,
            run.data_root,
            study.seed,
            study.validation_documents,
        )
        tokenize_shard(job, work.element.shard, progress)

    def is_complete(self, work: Work) -> bool:
        return is_whole(work.run.shards / work.element.source / work.element.shard)

    def ask(self, study: Study) -> Ask:
        return Ask(hours=study.resources.data_hours, cpus_per_task=study.resources.data_cpus)
