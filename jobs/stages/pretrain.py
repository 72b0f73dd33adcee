"""Pretrain: one segment of the training tree, from its own last checkpoint or from the end of its parent.

If a profile names `node_scratch`, shards are read from copies on each node's own disk, so that random reads do not burden the
shared one. One process of each node copies while the others wait.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import shutil
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from curricula.curriculum.stream.blend import Phase, sources_of
from curricula.curriculum.tokens.shards import source_shards
from curricula.curriculum.tree import Segment
from curricula.durable import disk_full_explained, exclusive_lock, make_folder, require_ours
from curricula.errors import StorageError, UserError
from curricula.jobs.estimates import check_epochs, gpu_hours_of
from curricula.jobs.plan import Element
from curricula.jobs.run import Run
from curricula.jobs.slurm.profile import Request
from curricula.jobs.stages.base import Training, Work, checkpoint_to_resume
from curricula.jobs.study import Study
from curricula.model import TrainJob
from curricula.model.checkpoints.folder import INFO_FILE, require_checkpoint, step_folder
from curricula.progress import Progress

if TYPE_CHECKING:
    from curricula.curriculum.stream.pretraining import PretrainingBatches, ValidationBatches

SCRATCH = "CURRICULA_NODE_SCRATCH"
"""The environment variable with the profile's `node_scratch`, set by the batch script. Variables in it are expanded here, on
the node."""
SPARE = 1.05
"""Free space that copying requires, as a multiple of what is copied."""
COPY_S = 20 * 60.0
"""How long a start can spend on copying: the processes of other nodes wait only half an hour for it."""
UNUSED_S = 30 * 24 * 3600.0
"""Copies of another run are deleted when no start on the node has used them for this long. No start lasts longer."""

log = logging.getLogger(__name__)


class Pretrain(Training):
    name, section = "pretrain", "pretraining"

    def run(self, work: Work, progress: Progress) -> None:
        """Train the segment. Raises UserError before its first step if any arm of the study reads a source too often."""
        from curricula.model.train import train

        run, study, segment = work.run, work.study, work.plan.segments[work.element.segment]
        check_epochs(work.plan, run.shards)
        budget, replicate = study.budget, segment.arm.replicate
        batches = batches_of(run, study, segment.arm.blend_phases(budget), budget.global_batch, replicate.data_seed)
        chain = work.plan.study.training_tree.chain(segment.branch)
        before = chain[: chain.index(segment)]  # the segments that lead to this one
        along = study.pretraining.along
        points = {step for step in along.steps(budget.steps).values() if segment.start < step} if along else set()
        validates = points or segment.stop == budget.steps or study.pretraining.validation_interval_steps
        ends = {other.stop for other in chain if other.branch == segment.branch}
        train(
            TrainJob(
                out=work.training,
                model=study.model.resolve(),
                config=study.pretraining_of(segment.arm),
                execution=study.resources,
                tracking=study.tracking,
                seed=replicate.init_seed,
                stop_step=segment.stop,
                keep_steps=tuple(sorted(ends | study.kept_steps(segment.branch))),
                validate_steps=tuple(sorted(points)),
                init_from=_last_checkpoint(run, before[-1]) if before else None,
                earlier_branch_points=tuple(_last_checkpoint(run, one) for one in reversed(before[:-1])),
                init_weights=require_checkpoint(run.initial_checkpoint) if study.model.weights else None,
                compiled=run.compiled,
            ),
            batches,
            progress,
            validation=validation_batches(run, study) if validates else {},
        )

    def global_batch(self, study: Study, element: Element) -> int:
        return study.budget.global_batch

    def stop(self, work: Work) -> int:
        return work.plan.segments[work.element.segment].stop

    def shared(self, work: Work) -> Path:
        """The branch's folder. If a lost branch point is made again while a later segment trains, each would take the other's
        checkpoints for leftovers."""
        return work.training

    def inputs(self, work: Work) -> list[Path]:
        """The tokenizer, the first shard of each source, and the checkpoint that the segment continues from."""
        run, segment = work.run, work.plan.segments[work.element.segment]
        files = [run.tokenizer / "tokenizer.json", *shard_files(run, segment.arm.blend_phases(work.study.budget))]
        start = checkpoint_to_resume(work.training)
        if start is None and segment.parent:
            start = _last_checkpoint(run, work.plan.segments[segment.parent])
        return [*files, start / INFO_FILE] if start else files

    def flops(self, study: Study, element: Element) -> float:
        return _tokens(study, element) * study.model.resolve().flops_per_token(study.budget.sequence_length)

    def gpu_hours(self, study: Study, element: Element, request: Request) -> float:
        return gpu_hours_of(study, _tokens(study, element))


def _tokens(study: Study, element: Element) -> int:
    segment = next(segment for segment in study.segments if segment.name == element.segment)
    return (segment.stop - segment.start) * study.budget.step_tokens


def batches_of(run: Run, study: Study, phases: list[Phase], rows: int, seed: int, begin: int = 0) -> PretrainingBatches:
    """Batches of `rows` samples from the stream of these phases, from sample `begin` on, in the order that `seed` draws."""
    from curricula.curriculum.stream.pretraining import PretrainingBatches

    shards, length = near(run.shards, sources_of(phases)), study.budget.sequence_length
    loss = {name: source.loss for name, source in run.study.sources.items() if source.loss != "all"}
    vocabulary, tag = study.model.resolve().vocabulary, run.tag if loss else None
    return PretrainingBatches(phases, shards, length, rows, seed, vocabulary, begin, loss=loss, tag=tag)


def shard_files(run: Run, phases: Sequence[Phase]) -> list[Path]:
    return [run.shards / name / f"00000{suffix}" for name in sources_of(phases) for suffix in (".idx", ".bin")]


def _last_checkpoint(run: Run, segment: Segment) -> Path:
    return step_folder(run.branch(segment.branch) / "checkpoints", segment.stop)


def validation_batches(run: Run, study: Study) -> dict[str, ValidationBatches]:
    """The validation batches of each source with enough held-out text for one."""
    from curricula.curriculum.stream.pretraining import ValidationBatches

    budget, vocabulary = study.budget, study.model.resolve().vocabulary
    found = {}
    for name in study.sources:
        source_shards(run.shards / name)
        batches = ValidationBatches(run.shards / name, budget.sequence_length, budget.global_batch, vocabulary, run.tag)
        if batches.total_steps:
            found[name] = batches
    return found


def near(shards: Path, sources: Iterable[str]) -> Path:
    """The folder from which this node reads the shards of `sources`: a copy on its own disk, or `shards` if no scratch folder
    is named or it has too little free space. Raises UserError if that is missing, or its copies are another user's."""
    named = os.environ.get(SCRATCH)
    if not named:
        return shards
    scratch = Path(os.path.expandvars(named))
    if not scratch.is_dir():
        raise UserError(f"node_scratch: {scratch} is not a folder on {os.uname().nodename}; name one, or leave the key out")
    try:
        with disk_full_explained(scratch):
            return _copied(shards, sources, scratch)
    except StorageError as full:  # no space for a folder or a lock, or others have filled the disk meanwhile
        log.warning("node_scratch: %s; this node reads the shared shards", full)
        return shards


def _copied(shards: Path, sources: Iterable[str], scratch: Path) -> Path:
    copies = scratch / f"curricula-{os.geteuid()}" / hashlib.sha256(os.fsencode(shards.resolve())).hexdigest()[:16]
    names = [name for name in sources if (shards / name).is_dir()]
    files = {copies / name / file.name: file for name in names for file in sorted((shards / name).iterdir()) if file.is_file()}
    make_folder(copies.parent)
    require_ours(copies.parent)
    _drop_unused(copies)  # first, to make room on a full disk
    began = time.monotonic()
    with exclusive_lock(copies / "lock", 2 * COPY_S):
        missing = {copy: file for copy, file in files.items() if not _is_copied(file, copy)}
        needed, free = sum(file.stat().st_size for file in missing.values()), shutil.disk_usage(copies).free
        if needed * SPARE > free:
            log.warning(
                "node_scratch: %s has %.1f GB free, but %.1f GB of shards must be copied; this node reads the shared ones",
                scratch, free / 1e9, needed / 1e9,
            )  # fmt: skip
            return shards
        for copy in [copy for name in names for copy in (copies / name).glob("*") if copy not in files]:
            copy.unlink()  # its source has been tokenised again, into fewer shards
        if missing:
            log.info("copying %.1f GB of shards to %s", needed / 1e9, copies)
        for copy, file in missing.items():
            if time.monotonic() - began > COPY_S:
                log.warning(
                    "node_scratch: %.0f minutes were too short to copy all shards; this start reads the shared ones, and the "
                    "next continues to copy",
                    COPY_S / 60,
                )
                return shards
            _copy(file, copy)
    return copies


def _drop_unused(copies: Path) -> None:
    """Delete the copies of other runs that nothing reads any more: each start writes to the lock of the copies it uses."""
    for lock in copies.parent.glob("*/lock"):
        with contextlib.suppress(OSError):  # another process holds the lock, or has already deleted it
            if lock.parent != copies and time.time() - lock.stat().st_mtime > UNUSED_S:
                with open(lock, "r+") as held:  # `exclusive_lock` would write to it, and the disk may be full
                    fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(lock.parent, ignore_errors=True)


def _is_copied(file: Path, copy: Path) -> bool:
    if not copy.is_file():
        return False
    original, found = file.stat(), copy.stat()
    times_ns = original.st_mtime_ns, original.st_mtime_ns // 10**9 * 10**9  # some file systems store only seconds
    return original.st_size == found.st_size and found.st_mtime_ns in times_ns


def _copy(file: Path, copy: Path) -> None:
    """Copy `file` with its times to `copy`, which appears only when it is complete."""
    make_folder(copy.parent)
    partial = copy.with_name(f".{copy.name}.partial")
    try:
        shutil.copyfile(file, partial)
    except OSError:  # on a full disk the partial copy would keep it full
        partial.unlink(missing_ok=True)
        raise
    shutil.copystat(file, partial)
    os.replace(partial, copy)
