"""Saves and loads a run's whole state, or only its weights, as a Megatron-core distributed checkpoint.

The checkpoint does not depend on the number of processes that wrote it. It is written in the background to a folder aside,
verified and renamed; only then does `latest` move. A failed save (no space, a dead disk) leaves earlier checkpoints untouched.

Megatron-core's distributed optimizer gives each data-parallel rank a range of every flattened parameter. Its own reshardable
layout first gathers the whole state on each rank: 20.5 GB for the 1.7B model, eight times on a node. Here a rank names the
same tensors, in the shapes of the parameters, and contributes its own range, cut into rectangles. So a save copies only what
the rank holds, a load reads only what it needs, and any number of processes, tensor-parallel size and backend can read what
another wrote.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import math
import os
import pickle
import platform
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed.checkpoint as torch_checkpoint
from torch.distributed.checkpoint.utils import _DistWrapper as Group

from curricula import fencing
from curricula.errors import StorageError, UserError
from curricula.model.checkpoints.folder import (
    CheckpointInfo,
    checkpoints_to_resume,
    damaged_file,
    point_at,
    publish,
    read_info,
    retire,
    set_aside,
    step_folder,
)
from curricula.model.checkpoints.pickles import check_layer_states, forbidden_name, read_as_data
from curricula.model.checkpoints.writer import BackgroundSave, writing_failure
from curricula.model.megatron import (
    AsyncRequest,
    CheckpointingException,
    FullyParallelLoadStrategyWrapper,
    FullyParallelSaveStrategyWrapper,
    GPTModel,
    ShardedObject,
    ShardedTensor,
    ShardedTensorFactory,
    dist_checkpointing,
    megatron_random,
    parallel_state,
)
from curricula.model.runtime.distributed import Parallel
from curricula.provenance import running_commit

log = logging.getLogger(__name__)

LAYOUT = {"distrib_optim_sharding_type": "fully_reshardable", "chained_optim_avoid_prefix": True}
"""Megatron-core's name for optimizer state in the shape of the parameters, which `_optimizer_state` writes."""
STATES = ("param", "exp_avg", "exp_avg_sq")
"""The float32 master weight and AdamW's two moments; in AdamW's state they lie next to the step."""
READS_CHECKED_STATES = {"NVTE_ALLOW_UNSAFE_PICKLE_EXTRA_STATE": "1"}
"""Without this, Transformer Engine 2.17 reads no pickled state of a layer. Ours name only what `check_layer_states` allows."""
EXTRA_STATE = "_extra_state"
"""Ends the name of what a layer keeps beside its weights."""
UNREADABLE = (
    CheckpointingException, torch_checkpoint.CheckpointException, EOFError, KeyError, RuntimeError, pickle.UnpicklingError,
)  # fmt: skip
"""What the readers of Megatron-core and torch raise for damaged files."""


class Saver:
    """Saves one checkpoint at a time, in the background. All processes call each method together."""

    def __init__(self, network: GPTModel, optimizer: Any | None, parallel: Parallel) -> None:
        """Saves `network` and, unless None, `optimizer`."""
        self._network, self._optimizer, self._parallel = network, optimizer, parallel
        self._group = Group(None, True, 0)
        self._strategy = BackgroundSave()
        self._distributed: Any = self._strategy
        if parallel.data_parallel > 1:  # ranks that hold the same data share the writing
            data_ranks = parallel_state.get_data_parallel_group()
            self._distributed = FullyParallelSaveStrategyWrapper(self._strategy, data_ranks, do_cache_distribution=True)
        self._saved_before = False
        self._request: AsyncRequest | None = None

    def start(self, folder: Path, info: CheckpointInfo) -> None:
        """Begin to write the current state as the checkpoint `folder`, after finishing an earlier save.

        Returns as soon as the state may change again. Raises UserError when the files cannot be written.
        """
        self.finish()
        self._folder, self._info, self._aside = folder, info, folder.with_name(f".{folder.name}.aside")
        with self._unwritable_reported():
            self._aside = self._group.broadcast("begin", lambda: _make_empty(self._aside))
            with self._parallel.cuda_names():
                self._request = dist_checkpointing.save(
                    _sharded_state(self._network, self._optimizer, generators=True),
                    str(self._aside),
                    sharded_strategy=self._distributed,
                    validate_access_integrity=not self._saved_before,  # ranks exchange all they hold: once
                    async_sharded_save=True,
                    content_metadata=dict(LAYOUT),
                )
        self._saved_before = True

    @property
    def is_writing(self) -> bool:
        """Whether this process is still writing its part; if not, `finish` hardly waits."""
        return self._request is not None and self._strategy.write.is_writing

    @property
    def is_unfinished(self) -> bool:
        """Whether a save was started and is not finished yet: the same on all processes."""
        return self._request is not None

    def finish(self) -> None:
        """Wait until the save that was started, if any, is complete, and point `latest` at it.

        Raises UserError when the files could not be written, and then leaves nothing behind.
        """
        if self._request is None:
            return
        request, self._request = self._request, None
        with self._unwritable_reported(), self._parallel.cuda_names():
            for finalize in request.finalize_fns:
                finalize()
            written = self._strategy.write.files
            self._group.broadcast("publish", lambda: publish(self._aside, self._folder, self._info, written))

    def abandon(self) -> None:
        """Drop the save that was started, if any, without telling the other processes."""
        if self._request is not None:
            self._strategy.write.abandon()

    @contextlib.contextmanager
    def _unwritable_reported(self) -> Any:
        try:
            yield
        except (Exception, torch_checkpoint.CheckpointException) as error:  # the latter is a bare BaseException
            if self._parallel.is_main:
                shutil.rmtree(self._aside, ignore_errors=True)
            failures = getattr(error, "failures", {}).values()
            superseded = next((failure[0] for failure in failures if isinstance(failure[0], fencing.Superseded)), None)
            if superseded:
                raise superseded from None
            reason = writing_failure(error)
            if reason is None:
                raise
            raise StorageError(
                f"{self._folder}: the checkpoint could not be written ({reason}); earlier ones are kept: fix that and "
                "run it again"
            ) from error


def _make_empty(folder: Path) -> Path:
    """An empty folder of this generation's own: an earlier one may wake up while it writes."""
    fencing.check_fences()
    if number := fencing.current_generation():
        folder = folder.with_name(f"{folder.name}-{number}")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def save(folder: Path, network: GPTModel, optimizer: Any | None, info: CheckpointInfo, parallel: Parallel) -> None:
    """Write the checkpoint `folder` and wait for it; see `Saver`."""
    saver = Saver(network, optimizer, parallel)
    saver.start(folder, info)
    saver.finish()


def newest_whole(
    checkpoints: Path, parallel: Parallel, kept_step: int | None, is_usable: Callable[[Path], bool] = lambda folder: True
) -> tuple[Path | None, bool]:
    """The checkpoint to train from, and whether training only fills a gap before the latest.

    A gap is a branch point at `kept_step`, the end of this training (None if that step is not kept), that was lost or damaged
    after the run had gone on; `latest` then stays where it is. Older checkpoints are tried only if `is_usable` accepts them on
    the main process. Raises UserError as `_newest_whole` does, StorageError on all processes when the main one cannot
    read the folder.
    """

    ordered, unread = [], None
    if parallel.is_main:
        try:
            found = checkpoints_to_resume(checkpoints)
            ordered = [*found[:1], *filter(is_usable, found[1:])]
        except StorageError as error:
            unread = str(error)
        except OSError as error:
            unread = _unread(error, checkpoints)
    ordered, unread = Group(None, True, 0).broadcast_object((ordered, unread))
    if unread:
        raise StorageError(unread)
    own = _newest_whole(ordered, parallel)
    if own is None or kept_step is None or own <= (end := step_folder(checkpoints, kept_step)):
        return own, False
    problem = problem_of(end, parallel)
    if problem is None:
        return end, True
    if parallel.is_main:
        log.warning("%s; training up to step %d again", problem, kept_step)
        if end.exists():
            set_aside(end)
    return next((path for path in ordered if path < end and problem_of(path, parallel) is None), None), True


def _newest_whole(ordered: Sequence[Path], parallel: Parallel) -> Path | None:
    """The checkpoint to continue from, every byte of it checked: the first of these, or the next undamaged one.

    Falling back sets `latest` back and the damaged ones aside. Raises UserError when all checkpoints are damaged.
    """
    problems: dict[Path, str] = {}
    for folder in ordered:
        problem = problem_of(folder, parallel)
        if problem is None:
            if problems and parallel.is_main:
                log.warning("%s; going on from %s", next(iter(problems.values())), folder.name)
                point_at(folder)
                for damaged in problems:
                    set_aside(damaged)
            return folder
        problems[folder] = problem
    if problems:
        raise UserError(next(iter(problems.values())))
    return None


def problem_of(folder: Path, parallel: Parallel) -> str | None:
    """What is damaged in a checkpoint, in a sentence, the same on all processes; each reads its share of the files.

    Raises StorageError on all processes when one cannot read its share: that says nothing about the checkpoint.
    """
    unread = None
    found = None
    try:
        found = damaged_file(folder, read_info(folder), parallel.ranks.rank, parallel.ranks.size)
    except FileNotFoundError as error:
        found = f"{error.filename}: missing; delete {folder.name} and run what trained it again"
    except StorageError as error:
        unread = str(error)
    except UserError as error:
        found = str(error)
    except OSError as error:
        unread = _unread(error, folder)
    answers = Group(None, True, 0).all_gather_object((unread, found))
    for unread, _ in answers:
        if unread:
            raise StorageError(unread)
    return next((found for _, found in answers if found), None)


def _unread(error: OSError, folder: Path) -> str:
    return f"{error.filename or folder}: cannot be read ({error.strerror}); fix the cause and run it again"


def load(
    folder: Path, network: GPTModel, optimizer: Any | None, parallel: Parallel, is_checked: bool = False
) -> CheckpointInfo:
    """Fill `network` and, unless None, `optimizer` from the checkpoint `folder`; returns what it holds.

    Without `optimizer` only weights are read, from checkpoints of either kind. With it, torch's random generators are set
    too, if the tensor-parallel size is the same. All bytes are checked first unless `is_checked`. Nothing in the checkpoint
    is run. Raises UserError when a file is missing, truncated or damaged, or when the checkpoint lacks the optimizer's state.
    A checkpoint with damaged bytes is set aside, so that the run that made it makes it again.
    """
    if not is_checked and (problem := problem_of(folder, parallel)):
        if parallel.is_main:
            retire(folder)
        raise UserError(problem)
    info = read_info(folder)
    if optimizer is not None and not info.full:
        raise UserError(f"{folder}: holds weights only, so training cannot continue from it; use it as init_weights")
    generators = optimizer is not None and info.tensor_parallel == parallel.tensor_parallel
    with parallel.cuda_names(), read_as_data(folder):
        state = _sharded_state(network, optimizer, generators, stored=_stored_names(folder))
        strategy = None
        if parallel.data_parallel > 1:  # each rank reads a share of what all need, then they exchange
            reader = dist_checkpointing.serialization.get_default_load_sharded_strategy(str(folder))
            strategy = FullyParallelLoadStrategyWrapper(reader, parallel_state.get_data_parallel_group())
        try:
            loaded = dist_checkpointing.load(state, str(folder), sharded_strategy=strategy)
        except UNREADABLE as error:
            if refusal := forbidden_name(error):
                raise refusal from None
            raise UserError(_intact_but_unreadable(folder, info, error)) from error
        check_layer_states(folder, loaded["model"])
        with mock.patch.dict(os.environ, READS_CHECKED_STATES):
            missing, unexpected = network.load_state_dict(loaded["model"], strict=False)
        if lacking := [name for name in (*missing, *unexpected) if not name.endswith(EXTRA_STATE)]:
            raise UserError(f"{folder}: its weights are not those of this network ({lacking[0]}); keep it, and report this")
        if optimizer is not None:
            _load_optimizer(optimizer, state["optimizer"], loaded["optimizer"])
        if generators:
            _set_generators(loaded["generators"])
    return info


def _intact_but_unreadable(folder: Path, info: CheckpointInfo, error: BaseException) -> str:
    """All bytes are those that were written, so the checkpoint may be good, and what differs is the software."""
    reason = (str(error).strip().splitlines() or [type(error).__name__])[-1][:200]
    wrote = ", ".join(f"{name} {version}" for name, version in info.versions.items() if version)
    return (
        f"{folder}: its files are intact but cannot be read here ({reason}); keep it, and use the versions that wrote it: "
        f"{wrote or 'not recorded'}"
    )


def _sharded_state(
    network: GPTModel, optimizer: Any | None, generators: bool, stored: Set[str] | None = None
) -> dict[str, Any]:
    """What to save, or, if `stored` names what a checkpoint holds, what to load from it."""
    model_state = network.sharded_state_dict(metadata=dict(LAYOUT))  # Megatron-core puts process groups into it
    state: dict[str, Any] = {
        "model": {name: entry for name, entry in model_state.items() if _is_needed(name, entry, network, stored)}
    }
    if optimizer is not None:
        state["optimizer"] = _optimizer_state(optimizer, model_state)
        if generators:
            state["generators"] = _generators()
    return state


def _is_needed(name: str, entry: Any, network: GPTModel, stored: Set[str] | None) -> bool:
    """Every weight, but extra state only for delayed fp8 scaling, whose history of maxima it holds.

    Layers of other backends have extra states that are empty, each at other places. Without a stored history, fp8 begins
    a new one.
    """
    if not name.endswith(EXTRA_STATE):
        return True
    return network.backend.keeps_history and (stored is None or entry.unique_key in stored)


def _stored_names(folder: Path) -> Set[str]:
    """The names of the tensors and objects in the checkpoint `folder`. To be called within `read_as_data`."""
    return torch_checkpoint.FileSystemReader(folder).read_metadata().state_dict_metadata.keys()


def _generators() -> ShardedObject:
    """The states of torch's random generators: one set for each tensor-parallel rank.

    No step draws from them today (no dropout; data and weights are keyed); a model with dropout would.
    """
    return ShardedObject(
        "generators",
        {"torch": torch.get_rng_state(), "megatron": megatron_random.get_cuda_rng_tracker().get_states()},
        (parallel_state.get_tensor_model_parallel_world_size(),),
        (parallel_state.get_tensor_model_parallel_rank(),),
        replica_id=parallel_state.get_data_parallel_rank(),
    )


def _set_generators(states: dict[str, Any]) -> None:
    torch.set_rng_state(states["torch"])
    megatron_random.get_cuda_rng_tracker().set_states(states["megatron"])


def _optimizer_state(optimizer: Any, model_state: Mapping[str, Any]) -> dict[str, Any]:
    """What to save of `optimizer`, or the places to load it into, for the parameters in the sharded `model_state`."""
    tensors = (entry for entry in model_state.values() if isinstance(entry, ShardedTensor | ShardedTensorFactory))
    places = {id(entry.data): entry for entry in tensors}
    parts: dict[str, ShardedTensor] = {}
    for part in _parts(optimizer):
        for parameter, held, start in _held(part):
            for piece, offset in _pieces(places[id(parameter)]):
                for state, tensor in held.items():
                    for shard in _rectangles(piece, tensor, start - offset, f"optimizer.state.{state}.{piece.key}"):
                        parts[f"{state}.{len(parts)}"] = shard
    states = (state for part in _parts(optimizer) for state in part.optimizer.state.values())
    return {"param_state": parts, "step": float(next(states)["step"])}  # it is the same for all parameters


def _load_optimizer(optimizer: Any, places: Mapping[str, Any], loaded: Mapping[str, Any]) -> None:
    """Take over what was `loaded` into `places`, both as `_optimizer_state` names them.

    Only the state comes from the checkpoint. The groups' settings stay those of this optimizer.
    """
    for name, place in places["param_state"].items():
        found = loaded["param_state"][name]
        if found.data_ptr() != place.data.data_ptr():  # most readers fill the place itself
            place.data.copy_(found)
    step = float(loaded["step"] if "step" in loaded else _step_in_groups(loaded))
    for part in _parts(optimizer):
        for state in part.optimizer.state.values():
            state["step"].fill_(step)


def _step_in_groups(loaded: Mapping[Any, Any]) -> float:
    """The step in a checkpoint that Megatron-core laid out: one optimizer, or several by number."""
    states = [loaded] if "optimizer" in loaded else [state for state in loaded.values() if "optimizer" in state]
    return max(group.get("step") or 0 for state in states for group in state["optimizer"]["param_groups"])


def _parts(optimizer: Any) -> list[Any]:
    return getattr(optimizer, "chained_optimizers", [optimizer])


def _held(part: Any) -> Iterator[tuple[torch.nn.Parameter, dict[str, torch.Tensor], int]]:
    """Each parameter of which this rank holds a range, the flat tensors that it holds, and where the range begins."""
    buckets = itertools.chain.from_iterable(buckets for by_type in part.gbuf_ranges for buckets in by_type.values())
    for bucket in buckets:
        for parameter, ranges in bucket["param_map"].items():
            group, place = part.model_param_group_index_map[parameter]
            main = part.optimizer.param_groups[group]["params"][place]
            tensors = {"param": main, **part.optimizer.state[main]}
            yield parameter, {name: tensors[name].detach() for name in STATES}, ranges["param"].start


def _pieces(entry: Any) -> Iterator[tuple[ShardedTensor, int]]:
    """The tensors as which a parameter is stored, and where each begins in the flattened parameter.

    One, but for gate and up: they are one parameter, whose halves tensor parallelism splits separately.
    """
    offset = 0
    for piece in entry.build() if isinstance(entry, ShardedTensorFactory) else [entry]:
        yield piece, offset
        offset += math.prod(piece.local_shape)


def _rectangles(piece: ShardedTensor, flat: torch.Tensor, start: int, key: str) -> Iterator[ShardedTensor]:
    """The part of `piece` that lies in `flat`, which begins at `start` of the flattened piece, as up to three rectangles.

    A piece is a vector or a matrix.
    """
    rows, width = piece.local_shape[0], math.prod(piece.local_shape[1:])
    prepended = (1,) * piece.prepend_axis_num
    *dp_replica, _ = piece.replica_id
    begin, end = max(start, 0), min(start + flat.numel(), rows * width)
    for first, last in _cuts(begin, end, width) if begin < end else ():
        row, column = divmod(first, width)
        shape = (1, last - first) if last - first < width else ((last - first) // width, width)
        local, corner = (shape, (row, column)) if len(piece.local_shape) > 1 else ((last - first,), (first,))
        offset = [*piece.global_offset]
        for axis, distance in enumerate(corner, piece.prepend_axis_num):
            offset[axis] += distance
        yield ShardedTensor(
            key,
            flat[first - start : last - start].view(*prepended, *local),
            flat.dtype,
            (*prepended, *local),
            piece.global_shape,
            tuple(offset),
            None,  # no regular grid
            replica_id=(*dp_replica, 0),  # no other data-parallel rank holds this range
        )


def _cuts(begin: int, end: int, width: int) -> Iterator[tuple[int, int]]:
    """[begin, end) of a flattened matrix cut at row borders: the end of a row, whole rows, the beginning of a row."""
    first_row, last_row = -(-begin // width) * width, end // width * width
    borders = sorted({begin, end, *(border for border in (first_row, last_row) if begin < border < end)})
    yield from itertools.pairwise(borders)


@functools.lru_cache(maxsize=1)
def versions() -> dict[str, str]:
    """Versions of what the numbers depend on; `curricula` is the git commit of this code, "" when unknown."""
    import megatron.core

    found = {"torch": torch.__version__, "megatron-core": megatron.core.__version__, "curricula": running_commit()}
    return {"python": platform.python_version(), **{name: str(version) for name, version in found.items()}}
