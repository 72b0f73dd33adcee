"""The contents of a checkpoint, as a Megatron-core distributed checkpoint, and how they are read; `writer` saves them.

A checkpoint holds a run's whole state, or only its weights. Megatron-core's distributed optimizer gives each data-parallel
rank a range of every flattened parameter. Its own reshardable layout first gathers the whole state on each rank: 20.5 GB for
the 1.7B model, eight times on a node. Here a rank names the same tensors, in the shapes of the parameters, and contributes its
own range, cut into rectangles. So a save copies only what the rank holds, a load reads only what it needs, and any number of
processes, tensor-parallel size and backend can read what another wrote.
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
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

import torch
import torch.distributed.checkpoint as torch_checkpoint

from curricula import __version__
from curricula.errors import StorageError, UserError
from curricula.model.checkpoints.folder import (
    CheckpointInfo,
    OtherVersion,
    checkpoints_to_resume,
    damaged_file,
    point_at,
    read_info,
    set_aside,
    step_folder,
)
from curricula.model.checkpoints.read_as_data import EXTRA_STATE, ForbiddenName, check_layer_states, read_as_data
from curricula.model.megatron import (
    CheckpointingException,
    FullyParallelLoadStrategyWrapper,
    GPTModel,
    ShardedObject,
    ShardedTensor,
    ShardedTensorFactory,
    dist_checkpointing,
    megatron_random,
    parallel_state,
)
from curricula.model.runtime.distributed import Parallel
from curricula.model.runtime.stopping import lost_peers_named
from curricula.provenance import running_commit

log = logging.getLogger(__name__)

T = TypeVar("T")
LAYOUT = {"distrib_optim_sharding_type": "fully_reshardable", "chained_optim_avoid_prefix": True}
"""Megatron-core's name for optimizer state in the shape of the parameters, which `_optimizer_state` writes."""
STATES = ("param", "exp_avg", "exp_avg_sq")
"""The float32 master weight and AdamW's two moments. AdamW's state also holds the step, which is saved separately."""
READS_CHECKED_STATES = {"NVTE_ALLOW_UNSAFE_PICKLE_EXTRA_STATE": "1"}
"""Without this variable, Transformer Engine 2.17 refuses a layer's pickled state. `check_layer_states` has checked ours."""
UNREADABLE = (
    CheckpointingException, torch_checkpoint.CheckpointException, EOFError, KeyError, RuntimeError, pickle.UnpicklingError,
)  # fmt: skip
"""Errors that the readers of Megatron-core and torch raise for damaged files."""


def newest_whole(
    checkpoints: Path, parallel: Parallel, kept_step: int | None, is_usable: Callable[[Path], bool]
) -> tuple[Path | None, bool]:
    """The checkpoint to train from, and whether training only fills a gap before the latest.

    There is a gap if the branch point at `kept_step`, the end of this training (None if that step is not kept), was lost or
    damaged after the run had continued; `latest` then stays where it is. Older checkpoints are tried only if `is_usable`
    accepts them on the main process. Raises UserError if all are damaged, and StorageError if one cannot be read.
    """

    def usable_here() -> list[Path]:
        newest_first = checkpoints_to_resume(checkpoints) if parallel.is_main else []
        return [*newest_first[:1], *filter(is_usable, newest_first[1:])]

    ordered, *_ = _read_by_each(checkpoints, parallel, usable_here)
    newest = _newest_whole(ordered, parallel)
    if newest is None or kept_step is None or newest <= (end := step_folder(checkpoints, kept_step)):
        return newest, False
    problem = problem_of(end, parallel)
    if problem is None:
        return end, True
    if parallel.is_main:
        log.warning("%s; training up to step %d again", problem if end.exists() else f"{end}: not there", kept_step)
        if end.exists():
            set_aside(end)
    return next((path for path in ordered if path < end and problem_of(path, parallel) is None), None), True


def _newest_whole(ordered: Sequence[Path], parallel: Parallel) -> Path | None:
    """The first undamaged checkpoint of `ordered`, with every byte checked; None if there are no checkpoints.

    Falling back to a later one sets `latest` back and the damaged ones aside. Raises UserError if all are damaged.
    """
    problems: dict[Path, str] = {}
    for folder in ordered:
        problem = problem_of(folder, parallel)
        if problem is None:
            if problems and parallel.is_main:
                log.warning("%s; continuing from %s", next(iter(problems.values())), folder.name)
                point_at(folder)
                for damaged in problems:
                    set_aside(damaged)
            return folder
        problems[folder] = problem
    if problems:
        raise UserError(next(iter(problems.values())))
    return None


def problem_of(folder: Path, parallel: Parallel) -> str | None:
    """A sentence about what is damaged in a checkpoint, or None; the same on all processes. Each reads its share of the files.

    Raises StorageError if one of them cannot read its share, and OtherVersion: neither means that the checkpoint is damaged.
    """

    def problem_here() -> str | None:
        try:
            return damaged_file(folder, read_info(folder), parallel.ranks.rank, parallel.ranks.size)
        except (StorageError, OtherVersion):
            raise
        except UserError as error:
            return str(error)

    return next(filter(None, _read_by_each(folder, parallel, problem_here)), None)


def _read_by_each(place: Path, parallel: Parallel, read: Callable[[], T]) -> list[T]:
    """What `read` returns on each process, by rank. An error of one of them, such as a failing disk, is raised on all."""
    value: T | None = None
    problem: UserError | None = None
    try:
        with _disk_errors_named(place):
            value = read()
    except UserError as error:
        problem = error
    values, problems = zip(*parallel.gather((value, problem)))
    for one in filter(None, problems):
        raise one
    return list(values)


@contextlib.contextmanager
def _disk_errors_named(place: Path) -> Iterator[None]:
    """Turn a system error while reading `place` into a StorageError: it does not mean that a checkpoint is damaged."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{error.filename or place}: cannot be read ({error.strerror or error}); fix the cause and run it again"
        ) from None


def load(folder: Path, network: GPTModel, optimizer: Any | None, parallel: Parallel, is_checked: bool = False) -> None:
    """Fill `network` and, unless None, `optimizer` from the checkpoint `folder`. Nothing in it is executed (`read_as_data`).

    Without `optimizer` only weights are read, from checkpoints of either kind. With it, torch's random generators are restored
    too, if the tensor-parallel size and the precision, which depends on the kind of device, are the same. All bytes are checked
    first unless `is_checked`. Raises UserError if a file is missing, truncated or damaged, or if the checkpoint lacks the
    optimizer's state. A checkpoint with damaged bytes is set aside, so that the run that made it makes it again.
    """
    if not is_checked and (problem := problem_of(folder, parallel)):
        if parallel.is_main:
            with contextlib.suppress(OSError):  # another process was faster, or the folder is another user's
                set_aside(folder)
        raise UserError(problem)
    info = read_info(folder)
    if optimizer is not None and not info.full:
        raise UserError(f"{folder}: holds weights only, so training cannot continue from it; use it as init_weights")
    layout = parallel.tensor_parallel, str(parallel.precision).removeprefix("torch.")
    generators = optimizer is not None and (info.tensor_parallel, info.precision) == layout
    with _disk_errors_named(folder), parallel.cuda_names(), read_as_data(folder) as metadata:
        state = sharded_state(network, optimizer, generators, stored=metadata.state_dict_metadata.keys())
        loaded = _read_state(folder, info, state, parallel)
        check_layer_states(folder, loaded["model"])
        with mock.patch.dict(os.environ, READS_CHECKED_STATES):
            missing, unexpected = network.load_state_dict(loaded["model"], strict=False)
        if lacking := [name for name in (*missing, *unexpected) if not name.endswith(EXTRA_STATE)]:
            raise UserError(f"{folder}: its weights are not those of this network ({lacking[0]}); keep it, and report this")
        if optimizer is not None:
            _load_optimizer(optimizer, state["optimizer"], loaded["optimizer"])
        if generators:
            torch.set_rng_state(loaded["generators"]["torch"])
            megatron_random.get_cuda_rng_tracker().set_states(loaded["generators"]["megatron"])


def _read_state(folder: Path, info: CheckpointInfo, state: dict[str, Any], parallel: Parallel) -> dict[str, Any]:
    """Read the sharded `state` from the checkpoint `folder`.

    Raises the system's error or ForbiddenName if one is behind a failure. Otherwise raises UserError: the bytes are as they
    were written, so the checkpoint may be good, and only the software may differ.
    """
    strategy = None
    if parallel.data_parallel > 1:  # each rank reads a share of what all need, then they exchange the shares
        reader = dist_checkpointing.serialization.get_default_load_sharded_strategy(str(folder))
        strategy = FullyParallelLoadStrategyWrapper(reader, parallel_state.get_data_parallel_group())
    try:
        with lost_peers_named(parallel.ranks.rank, parallel.ranks.size):
            return dist_checkpointing.load(state, str(folder), sharded_strategy=strategy)
    except UNREADABLE as error:
        for cause in errors_behind(error):
            # Other versions look for files that this checkpoint never had.
            never_had = isinstance(cause, FileNotFoundError) and Path(str(cause.filename)).name not in info.files
            if isinstance(cause, ForbiddenName | OSError) and not never_had:
                raise cause from None
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1][:200]
        wrote = ", ".join(f"{name} {version}" for name, version in info.versions.items() if version)
        raise UserError(
            f"{folder}: its files are intact but cannot be read here ({reason}); keep it, and use the versions that wrote it: "
            f"{wrote or 'not recorded'}"
        ) from error


def errors_behind(error: BaseException) -> Iterator[BaseException]:
    """`error` and all errors that caused it, on any process, however torch wrapped them."""
    yield error
    failures = error.failures.values() if isinstance(error, torch_checkpoint.CheckpointException) else ()
    for cause in (error.__cause__ or error.__context__, *(failure for failure, _ in failures)):
        if cause is not None:
            yield from errors_behind(cause)


def sharded_state(network: GPTModel, optimizer: Any | None, generators: bool, stored: Set[str] | None = None) -> dict[str, Any]:
    """The state to save or, if `stored` holds the names in a checkpoint, the state to load from it."""
    model_state = network.sharded_state_dict(metadata=dict(LAYOUT))  # a copy: Megatron-core adds to it
    # Extra state is needed only for delayed fp8 scaling: it holds the history of maxima. Other layers have empty extra states,
    # whose names depend on the backend. If no history is stored, fp8 begins a new one.
    has_history = network.backend.engine.fp8 == "delayed"
    needed = {
        name: entry
        for name, entry in model_state.items()
        if not name.endswith(EXTRA_STATE) or (has_history and (stored is None or entry.unique_key in stored))
    }
    if optimizer is None:
        return {"model": needed}
    state = {"model": needed, "optimizer": _optimizer_state(optimizer, model_state)}
    if generators:
        # One set for each tensor-parallel rank. No step draws from them today (no dropout; data and weights are drawn by key).
        state["generators"] = ShardedObject(
            "generators",
            {"torch": torch.get_rng_state(), "megatron": megatron_random.get_cuda_rng_tracker().get_states()},
            (parallel_state.get_tensor_model_parallel_world_size(),),
            (parallel_state.get_tensor_model_parallel_rank(),),
            replica_id=parallel_state.get_data_parallel_rank(),
        )
    return state


def _optimizer_state(optimizer: Any, model_state: Mapping[str, Any]) -> dict[str, Any]:
    """The state of `optimizer` to save, or the tensors to load it into, for the parameters in the sharded `model_state`."""
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
    """Copy what was `loaded` into `places`; both have the names that `_optimizer_state` gives.

    Only the state comes from the checkpoint. The settings of the parameter groups stay those of this optimizer.
    """
    for name, place in places["param_state"].items():
        place.data.copy_(loaded["param_state"][name])  # most readers have filled it already
    step = float(loaded["step"] if "step" in loaded else _step_in_groups(loaded))
    for part in _parts(optimizer):
        for state in part.optimizer.state.values():
            state["step"].fill_(step)


def _step_in_groups(loaded: Mapping[Any, Any]) -> float:
    """The step in a checkpoint with Megatron-core's own layout: one optimizer, or several by number."""
    states = [loaded] if "optimizer" in loaded else [state for state in loaded.values() if "optimizer" in state]
    return max(group.get("step") or 0 for state in states for group in state["optimizer"]["param_groups"])


def _parts(optimizer: Any) -> list[Any]:
    return getattr(optimizer, "chained_optimizers", [optimizer])


def _held(part: Any) -> Iterator[tuple[torch.nn.Parameter, dict[str, torch.Tensor], int]]:
    """For each parameter of which this rank holds a range: the parameter, the flat tensors held, and the range's start."""
    buckets = itertools.chain.from_iterable(buckets for by_type in part.gbuf_ranges for buckets in by_type.values())
    for bucket in buckets:
        for parameter, ranges in bucket["param_map"].items():
            group, place = part.model_param_group_index_map[parameter]
            main = part.optimizer.param_groups[group]["params"][place]
            tensors = {"param": main, **part.optimizer.state[main]}
            yield parameter, {name: tensors[name].detach() for name in STATES}, ranges["param"].start


def _pieces(entry: Any) -> Iterator[tuple[ShardedTensor, int]]:
    """The tensors that store a parameter, and where each begins in the flattened parameter.

    There is one, except for gate and up: they are one parameter, but tensor parallelism splits each half separately.
    """
    offset = 0
    for piece in entry.build() if isinstance(entry, ShardedTensorFactory) else [entry]:
        yield piece, offset
        offset += math.prod(piece.local_shape)


def _rectangles(piece: ShardedTensor, flat: torch.Tensor, start: int, key: str) -> Iterator[ShardedTensor]:
    """The part of `piece` that `flat` holds, as up to three rectangles. `flat` begins at `start` of the flattened piece.

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
    """Cut the range [begin, end) of a flattened matrix at row borders: the end of a row, whole rows, the beginning of a row."""
    first_row, last_row = -(-begin // width) * width, end // width * width
    borders = sorted({begin, end, *(border for border in (first_row, last_row) if begin < border < end)})
    yield from itertools.pairwise(borders)


@functools.lru_cache(maxsize=1)
def versions() -> dict[str, str]:
    """Versions of the software that the numbers depend on; `curricula` is the git commit of this code, or its version."""
    import megatron.core

    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "megatron-core": str(megatron.core.__version__),
        "curricula": running_commit() or __version__,
    }
