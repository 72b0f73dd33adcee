"""The stages of the data.

Fetch: download one dataset from the Hugging Face hub into the run folder. Prepare: make what all other stages read (the
fictional world, the tokenizer, imported weights). Tokenize: write one shard of one source as a Megatron indexed dataset.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import msgspec
from tokenizers import Tokenizer

from curricula.curriculum.config import Tuning
from curricula.curriculum.sources.conversations import POOLS, read_conversations
from curricula.curriculum.sources.declared import DeclaredTable
from curricula.curriculum.sources.documents import Documents
from curricula.curriculum.sources.hub import download_model, fetch, is_fetched, require_whole
from curricula.curriculum.sources.tables import table_exists
from curricula.curriculum.tokens import tokenizer as make
from curricula.curriculum.tokens.chat import ChatEncoder
from curricula.curriculum.tokens.shards import whole_manifest
from curricula.curriculum.tokens.tokenize import Tokenization, tokenize_shard
from curricula.curriculum.tokens.tokenizer import load_tokenizer
from curricula.durable import write_json
from curricula.errors import UserError
from curricula.eval.attacks.prompts import ablation_texts, artifact_prompts, check_distortable
from curricula.eval.benchmarks import BENCHMARKS, load_prompts, own_prompts
from curricula.eval.capability.harness import local_task
from curricula.eval.judges.registry import check_judge
from curricula.eval.probes.texts import check_texts
from curricula.jobs.downloads import Wanted, check_lengths, check_pool, study_downloads, used_pools
from curricula.jobs.run import Run
from curricula.jobs.stages.base import Stage, Work, are_filled, size_of, training_behind
from curricula.model.checkpoints.folder import misfits, read_info, require_checkpoint
from curricula.model.study import Model
from curricula.packages import packaged_gguf
from curricula.progress import Progress

DRAWN_BY = ("mix", "conversations", "epochs", "steps", "examples", "loss", "refusals", "packing", "global_batch", "along")
"""The settings of a finetuning that decide which conversations it reads, how many steps they make and which are measured."""


class Fetch(Stage):
    name, section, needs_torch = "fetch", "data", False

    def run(self, work: Work, progress: Progress) -> None:
        if not work.run.data_folder:  # otherwise the user provides the data
            wanted = _wanted(work)
            fetch(wanted.download, progress, wanted.rows)

    def saved(self, work: Work) -> int:
        wanted = _wanted(work).download
        return size_of(wanted.out, f"{wanted.prefix}[0-9]*.parquet")

    def is_complete(self, work: Work, made: str | None) -> bool:
        return bool(work.run.data_folder) or is_fetched(_wanted(work).download)

    def readers(self, work: Work) -> tuple[str, ...]:
        return _wanted(work).readers


def _wanted(work: Work) -> Wanted:
    return next(item for item in study_downloads(work.study, work.run.data_root) if item.label == work.element.label)


class Prepare(Stage):
    name, section, needs_torch = "prepare", "data", False

    def run(self, work: Work, progress: Progress) -> None:
        prepare(work.run)

    def is_complete(self, work: Work, made: str | None) -> bool:
        """Whether the tokenizer and the world are there, and no damaged checkpoint of imported weights while segments have yet
        to be trained. A missing one may have been moved away."""
        run = work.run
        if not are_filled(run.tokenizer / "tokenizer.json", *([run.world / "world.json"] if run.study.world else [])):
            return False
        if not (run.initial_checkpoint / "latest").exists() or training_behind(run.initial_checkpoint):
            return True
        trained = (run.element(job.name, one.label) for job, one in work.plan.elements() if one.segment)
        return all((folder / "done.json").exists() for folder in trained)


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

    def is_complete(self, work: Work, made: str | None) -> bool:
        return made is not None

    def readers(self, work: Work) -> tuple[str, ...]:
        return ("pretrain", "midtrain")

    def made(self, work: Work) -> str | None:
        manifest = whole_manifest(work.run.shards / work.element.source / work.element.shard)
        return str(manifest["sha256"]) if manifest else None


def prepare(run: Run) -> None:
    """Make what the study needs and the run still lacks: world, tokenizer, initial checkpoint.

    Raises UserError, before hours of work are spent, if a dataset that the study reads is missing or incomplete, if a benchmark
    in the user's data folder is not the published one, if a judge could not judge, or if a finetuning could not begin.
    """
    study = run.study
    if study.world and not (run.world / "world.json").exists():  # written last
        from curricula.curriculum.world.datasets import write_world

        write_world(run.world, study.world)
    _check_judges_and_probes(run)
    _check_tables(run)
    _check_benchmarks(run)
    if not are_filled(run.tokenizer / "tokenizer.json", run.tokenizer / "tokenizer_config.json"):
        _make_tokenizer(run)
    if study.model.weights:
        _import_weights(study.model, run.initial_checkpoint)
    tokenizer = load_tokenizer(run.tokenizer)
    _check_prompts_fit(run, tokenizer)
    if study.tunings:
        try:
            ChatEncoder(tokenizer)
        except UserError as error:
            raise UserError(f"{run.tokenizer}: {error}") from None
        _check_finetuning(run)
    entries = tokenizer.get_vocab_size()
    for vocabulary in {point.model.resolve().vocabulary for point in study.variants.values()} - {entries}:
        raise UserError(f"{run.tokenizer}: {entries} entries, but model.vocabulary is {vocabulary}; make them equal")


def _check_judges_and_probes(run: Run) -> None:
    study = run.study
    for kind in sorted({task.task.judged for task in study.all_eval_tasks if task.task.judged}):
        check_judge(study.evaluation.judge_of(kind), kind, run.world if study.world else None)
    probes = study.used_probes
    if probes and not any(table.hub for table in probes.tables):  # another job fetches those on the hub
        check_texts(run.data_root if probes.texts or study.world or run.data_folder else None, probes)


def _check_tables(run: Run) -> None:
    """Check the tables of sources and tuning sets."""
    study = run.study
    pools = {name: study.tuning_sets.get(name) or POOLS[name] for name in used_pools(study)}
    needed: list[tuple[str, DeclaredTable, int | None]] = [
        *((f"sources.{name}", source, source.needed_rows) for name, source in study.sources.items()),
        *((f"tuning_sets.{name}", pool, None) for name, pool in pools.items()),
    ]
    for where, table, rows in needed:
        table.open(run.data_root, where)
        table.look(run.data_root, where)
        for stem in table.stems(run.data_root):
            require_whole(stem, rows)
    check_lengths(study, {name: check_pool(study, name, run.data_root) for name in pools})


def _check_benchmarks(run: Run) -> None:
    """Check capability tasks, the user's own prompts, artifacts, what ablation is found with, and published benchmarks in the
    user's data folder."""
    study, kinds = run.study, {task.task.kind for task in run.study.all_eval_tasks}
    for task in study.all_eval_tasks:
        if task.task.kind == "capability" and study.evaluation.capability:
            questions = () if task.benchmark in study.evaluation.prompts else None  # the user's own set is read below
            local_task(task.benchmark, study.evaluation.capability, questions)
    for name, prompts in study.evaluation.prompts.items():
        if prompts.path is not None:
            texts = own_prompts(name, prompts, None)
            if name in study.distorted:
                check_distortable(name, texts)
    attacks, root = study.evaluation.attacks, run.data_root
    if "artifacts" in kinds:
        for name, path in attacks.artifacts.items():
            artifact_prompts(name, root / path)
    here = _benchmarks_here(run)
    found_with = (attacks.ablation.harmful, attacks.ablation.harmless)
    if "ablation" in kinds and here.issuperset([*found_with, *attacks.benchmarks]):
        for name in found_with:
            ablation_texts(study.evaluation, root, name)
    if run.data_folder:  # else another job fetches the benchmarks
        for name in study.used_benchmarks:
            if name in BENCHMARKS and name in here:
                load_prompts(name, root, accept_changed=study.evaluation.accept_changed)


def _benchmarks_here(run: Run) -> set[str]:
    """Benchmarks that need no fetch, the study's own among them. Of those that another job fetches, a part may be there."""
    root = run.world if run.study.world else run.data_folder
    published = {name for name, entry in BENCHMARKS.items() if root and table_exists(entry.stem(root))}
    return published | {name for name, own in run.study.evaluation.prompts.items() if own.is_here(run.data_folder)}


def _check_prompts_fit(run: Run, tokenizer: Tokenizer) -> None:
    """Raise UserError for a prompt that fills the context of a model, even without a chat template."""
    config, here = run.study.evaluation, _benchmarks_here(run)
    points = [(task, point.budget.sequence_length) for point in run.study.variants.values() for task in point.all_eval_tasks]
    asked = [
        (task.benchmark, task.limit, length)
        for task, length in points
        if task.benchmark in here.intersection(config.benchmarks_of([task]))  # not a set of artifacts of the same name
    ]
    for name, limit, length in dict.fromkeys(asked):
        prompts = load_prompts(
            name,
            run.data_root,
            limit=limit,
            with_copyright=config.harmbench_copyright,
            accept_changed=config.accept_changed,
            own=config.prompts,
        )
        for prompt, encoding in zip(prompts, tokenizer.encode_batch([prompt.text for prompt in prompts])):
            if len(encoding) >= length:
                raise UserError(
                    f"benchmark {name}, prompt {prompt.id}: has {len(encoding):,} tokens, but model.sequence_length is "
                    f"{length:,}, so no answer could follow; leave out the prompt, or raise the length"
                )


def _check_finetuning(run: Run) -> None:
    """Begin each finetuning as the stage `tune` will, to find what its conversations lack. They are drawn by the first seed."""
    from curricula.curriculum.stream.tuning import TuningBatches

    study, begun = run.study, set()
    for point in study.variants.values():
        for arm, (name, stage) in itertools.product(point.arms, point.tree.stages.items()):
            if not isinstance(stage, Tuning) or arm.name not in point.tree.arms[name]:
                continue
            share, length = stage.tagged_share(arm.name, arm.interventions), point.budget.sequence_length
            drawn = [getattr(stage, name) for name in DRAWN_BY]
            if (key := msgspec.json.encode([drawn, share, length])) in begun:
                continue
            begun.add(key)
            where = point.place_of(name)
            steps = TuningBatches(
                stage,
                run.data_root,
                run.tokenizer,
                where=where,
                sequence_length=length,
                seed=study.first_seed,
                tagged_share=share,
                declared=study.tuning_sets,
            ).total_steps  # without keeping all conversations in memory
            try:
                if stage.along:
                    stage.along.steps(steps)
            except ValueError as error:
                raise UserError(f"{where}.{error}") from None


def _import_weights(model: Model, out: Path) -> None:
    """Make the checkpoint of step 0. Raises UserError if the weights are not those of the study's model."""
    from curricula.model.convert import import_hf

    ours = model.resolve()
    if training_behind(out) is None:
        import_hf(model_source(model.weights or ""), out, ours.sequence_length)
    if other := misfits(read_info(require_checkpoint(out)).model, ours):
        raise UserError(
            f"model.weights {model.weights}: is not the study's model ({', '.join(other)}); set these keys of model to what "
            "the weights have"
        )


def _make_tokenizer(run: Run) -> None:
    choice = run.study.tokenizer
    if choice.train:
        sources = {
            (item.place, item.text, item.parts, item.bounds, item.documents): (name, item)
            for name, item in run.study.sources.items()
        }
        read = (Documents.of(f"sources.{name}", item, run.data_root, item.documents).read() for name, item in sources.values())
        texts = (document.text for document in itertools.chain.from_iterable(read))
        pools = dict.fromkeys(name for tuning in run.study.tunings if choice.tuning for name in tuning.mix)
        turns = (
            f"{message['role']}\n{message['content']}"  # what the chat template puts between the marks of a turn
            for pool in pools
            for conversation in read_conversations(pool, run.data_root, run.study.tuning_sets)
            for message in conversation.messages
        )
        make.train_tokenizer(itertools.chain(texts, turns), choice.train, run.tokenizer)
    elif choice.folder:
        make.reserve_tag(Path(choice.folder), run.tokenizer, choice.reserve)
    elif choice.gguf:
        make.import_gguf_tokenizer(model_source(choice.gguf), run.tokenizer, choice.reserve)
    elif choice.hub:
        folder = download_model(f"tokenizer.hub {choice.hub}", choice.hub, choice.revision, ["*.json", "*.txt", "*.model"])
        write_json(run.tokenizer / "source.json", {"hub": choice.hub, "asked": choice.revision, "commit": folder.name})
        make.reserve_tag(folder, run.tokenizer, choice.reserve)


def model_source(name: str) -> Path:
    """The folder or file of this name, or the GGUF file inside the installed package of this name."""
    if Path(name).exists():
        return Path(name)
    found = packaged_gguf(name)
    if found is None:
        raise UserError(f"{name}: not a file, folder or installed package; check the path, or download the model into a folder")
    return found
