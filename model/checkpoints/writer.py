"""Saves checkpoints in the background, each complete or not at all.

A checkpoint is written to a folder aside, verified and renamed; only then does `latest` move. A failed save (no space, a dead
disk) leaves earlier checkpoints untouched. Each process forks a child that writes its part while training continues.

The fork is the snapshot. On a CPU the child writes the tensors as they were at the fork, whatever training does to them
afterwards; on a GPU they are copied to the host first. The child dies with its parent, so that no orphan writes into the files
of a restarted run, and it never touches CUDA.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import logging
import multiprocessing
import os
import shutil
import signal
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch.distributed.checkpoint import CheckpointException, FileSystemWriter, SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult
from torch.distributed.checkpoint.utils import _DistWrapper as Group

from curricula import fencing
from curricula.errors import StorageError, UserError
from curricula.model.checkpoints.checkpoint import LAYOUT, errors_behind, sharded_state
from curricula.model.checkpoints.folder import CheckpointInfo, StoredFile, publish, stored_file
from curricula.model.megatron import (
    AsyncRequest,
    FullyParallelSaveStrategyWrapper,
    GPTModel,
    MCoreSavePlanner,
    TorchDistSaveShardedStrategy,
    dist_checkpointing,
    keyed_by_shard,
    parallel_state,
    to_torch_state,
)
from curricula.model.runtime.distributed import Parallel
from curricula.model.runtime.stopping import signals_blocked

log = logging.getLogger(__name__)

DIE_WITH_PARENT = 1
"""PR_SET_PDEATHSIG, an option of Linux's prctl."""
STARTS = 5
"""Attempts to start a writing process."""
BEGIN_S = 30.0
"""How long a writing process may take to begin; it usually takes milliseconds."""
NICENESS = 5
"""Niceness of the writing process, which yields to training if they share cores."""


def save_weights(folder: Path, network: GPTModel, info: CheckpointInfo, parallel: Parallel) -> None:
    """Write the checkpoint `folder`, of weights only, and wait until it is complete; see `Saver`."""
    saver = Saver(network, None, parallel)
    saver.start(folder, info)
    saver.finish()


class Saver:
    """Saves one checkpoint at a time, in the background. All processes call each method together."""

    def __init__(self, network: GPTModel, optimizer: Any | None, parallel: Parallel) -> None:
        self._network, self._optimizer, self._parallel = network, optimizer, parallel
        self._group = Group(None, True, 0)
        self._strategy = BackgroundSave("torch_dist", 1)
        self._distributed: Any = self._strategy
        if parallel.data_parallel > 1:  # ranks that hold the same data share the writing
            data_ranks = parallel_state.get_data_parallel_group()
            self._distributed = FullyParallelSaveStrategyWrapper(self._strategy, data_ranks, do_cache_distribution=True)
        self._saved_before = False
        self._request: AsyncRequest | None = None

    def start(self, folder: Path, info: CheckpointInfo) -> None:
        """Begin to write the current state as the checkpoint `folder`. Any earlier save must have been finished.

        Returns as soon as the state may change again. Raises UserError if the files cannot be written.
        """
        self._folder, self._info, self._aside = folder, info, folder.with_name(f".{folder.name}.aside")
        with self._unwritable_reported():
            self._aside = self._group.broadcast("begin", lambda: _make_empty(self._aside))
            with self._parallel.cuda_names():
                self._request = dist_checkpointing.save(
                    sharded_state(self._network, self._optimizer, generators=True),
                    str(self._aside),
                    sharded_strategy=self._distributed,
                    validate_access_integrity=not self._saved_before,  # once: ranks exchange lists of all they hold
                    async_sharded_save=True,
                    content_metadata=dict(LAYOUT),
                )
        self._saved_before = True

    @property
    def is_writing(self) -> bool:
        """Whether this process is still writing its part. If not, `finish` hardly waits."""
        return self._request is not None and self._strategy.is_writing

    @property
    def is_unfinished(self) -> bool:
        """Whether a save was started and not yet finished; the same on all processes."""
        return self._request is not None

    def finish(self) -> None:
        """Wait until the save that was started, if any, is complete, and point `latest` at it.

        Raises UserError if the files could not be written; nothing is left behind then.
        """
        if self._request is None:
            return
        request, self._request = self._request, None
        with self._unwritable_reported(), self._parallel.cuda_names():
            for finalize in request.finalize_fns:
                finalize()
            self._group.broadcast("publish", lambda: publish(self._aside, self._folder, self._info, self._strategy.files))

    def abandon(self) -> None:
        """Drop the save that was started, if any, without telling the other processes."""
        if self._request is not None:
            self._strategy.abandon()

    @contextlib.contextmanager
    def _unwritable_reported(self) -> Any:
        try:
            yield
        except (Exception, CheckpointException) as error:  # CheckpointException is a bare BaseException
            if self._parallel.is_main:
                shutil.rmtree(self._aside, ignore_errors=True)
            for cause in errors_behind(error):
                if isinstance(cause, fencing.Superseded):
                    raise cause from None
            reason = writing_failure(error)
            if reason is None:
                raise
            raise StorageError(
                f"{self._folder}: the checkpoint could not be written ({reason}); earlier ones are kept: fix the cause and "
                "run it again"
            ) from error


def _make_empty(folder: Path) -> Path:
    """Make an empty folder with the generation in its name: an earlier generation that wakes up then writes elsewhere."""
    if number := fencing.current_generation():
        folder = folder.with_name(f"{folder.name}-{number}")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


class BackgroundSave(TorchDistSaveShardedStrategy):
    """Megatron-core's format and its translation into torch's state dict, with a writer of our own.

    A save is planned by all ranks together, written by a child of each, and finished by all together. Megatron-core's writer
    starts a queue server and a process for every save, which for small models takes longer than the training between two saves;
    and version 0.19 deprecates it in favour of nvidia-resiliency-ext.
    """

    files: dict[str, StoredFile]
    """The files that all ranks wrote, by name; set by `finish`."""

    def async_save(self, sharded_state_dict: Any, checkpoint_dir: Any, *async_strategy: str) -> AsyncRequest:
        """Plan the save and start to write. The caller can then change the tensors."""
        by_shard, _, _ = keyed_by_shard(sharded_state_dict, self.keep_only_main_replica)
        state, folder = to_torch_state(by_shard, False), Path(checkpoint_dir)
        self._group = group = Group(None, True, 0)
        self._writer = writer = FileSystemWriter(folder, sync_files=True, per_thread_copy_ahead=0)  # copying ahead calls CUDA
        planner = MCoreSavePlanner(dedup_replicated_tensors=False, flatten_state_dict=False)

        def plan_own() -> SavePlan:
            planner.set_up_planner(state, is_coordinator=group.is_coordinator)
            writer.set_up_storage_writer(group.is_coordinator)
            return writer.prepare_local_plan(planner.create_local_plan())

        def join_plans(plans: list[SavePlan]) -> list[SavePlan]:
            plans, self._metadata = planner.create_global_plan(plans)
            return writer.prepare_global_plan(plans)

        plan = planner.finish_plan(group.reduce_scatter("plan", plan_own, join_plans))
        self._process, self._answers = _fork(writer, plan, _on_host(plan, planner), folder)
        return AsyncRequest(None, (), [self.finish])

    @property
    def is_writing(self) -> bool:
        return not self._answers.poll()  # one that has ended is at the end of its answers

    def finish(self) -> None:
        """Wait for the writers of all ranks and complete the folder. Raises the first failure of any rank."""
        self.files = self._group.all_reduce("write", self._answer, self._complete)

    def _answer(self) -> tuple[list[WriteResult], dict[str, StoredFile]]:
        try:
            answer = self._answers.recv()
        except EOFError:
            self._process.join()
            code = self._process.exitcode or 0
            how = signal.Signals(-code).name if code < 0 else f"exit status {code}"
            raise OSError(f"the process that wrote it was ended by {how}; was memory short?") from None
        self._process.join()
        if isinstance(answer, OSError):
            raise answer
        return answer

    def _complete(self, answers: list[tuple[list[WriteResult], dict[str, StoredFile]]]) -> dict[str, StoredFile]:
        self._writer.finish(self._metadata, [results for results, _ in answers])
        return {name: file for _, files in answers for name, file in files.items()}

    def abandon(self) -> None:
        """End the child without waiting for its work."""
        self._process.kill()
        self._process.join()


def _on_host(plan: SavePlan, planner: SavePlanner) -> Any:
    """The planner for the writing process: torch asks it only for the planned items, which it holds on the host."""
    resolved = {item.index: planner.resolve_data(item) for item in plan.items}
    items = {index: data.cpu() if torch.is_tensor(data) else data for index, data in resolved.items()}
    return SimpleNamespace(resolve_data=lambda item: items[item.index])


def _fork(
    writer: FileSystemWriter, plan: SavePlan, items: Any, folder: Path
) -> tuple[multiprocessing.process.BaseProcess, Connection]:
    """Start the writing process. Returns it and the connection through which it answers.

    If other threads run during a fork, the child can wait for ever for a lock that one of them held. So a child that does not
    begin is replaced, while training waits.
    """
    for _ in range(STARTS):
        answers, sender = multiprocessing.Pipe(duplex=False)
        child = (os.getpid(), writer, plan, items, folder, sender)
        process = multiprocessing.get_context("fork").Process(target=_write, args=child, daemon=True)
        with signals_blocked():
            process.start()
        sender.close()
        if answers.poll(BEGIN_S):
            with contextlib.suppress(EOFError):  # it has ended already: `_answer` says how
                answers.recv()
            return process, answers
        log.warning("the process that writes %s did not begin within %g s; starting another", folder.name, BEGIN_S)
        process.kill()
        process.join()
        answers.close()
    raise OSError(f"no process to write it began in {STARTS} attempts")


def _write(parent: int, writer: FileSystemWriter, plan: SavePlan, items: Any, folder: Path, answers: Connection) -> None:
    """Run in the child: report the start, write the planned items, hash each file, and send the results or the error."""
    answers.send("begun")
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)
    if os.getppid() != parent:  # the parent died before the call above
        return
    gc.disable()  # collecting the parent's objects could call CUDA
    torch.set_num_threads(1)  # the parent's threads do not exist here
    os.nice(NICENESS)
    answer: Any
    try:
        results = writer.write_data(plan, items).wait() if plan.items else []
        names = {result.storage_data.relative_path for result in results}
        answer = results, {name: stored_file(folder / name) for name in sorted(names)}
    except BaseException as error:
        answer = OSError(writing_failure(error) or f"{type(error).__name__}: {error}")
    answers.send(answer)


def writing_failure(error: BaseException) -> str | None:
    """What the operating system, or a check of ours, says if `error` comes from writing files; None for other errors."""
    causes = list(errors_behind(error))
    for cause in causes:
        if isinstance(cause, OSError):
            return cause.strerror or str(cause)
    for cause in causes:
        if isinstance(cause, UserError):
            return str(cause)
        if isinstance(cause, RuntimeError) and any(sign in str(cause) for sign in ("StreamWriter", "iostream", "container")):
            return "the file system accepts no more data"
    return None
