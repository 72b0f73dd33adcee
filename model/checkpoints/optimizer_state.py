"""The optimizer's state as parts of tensors that have the shapes of the parameters.

Megatron-core's distributed optimizer gives each data-parallel rank a range of every flattened parameter. Its own reshardable
layout first gathers the whole state on each rank: 20.5 GB for the 1.7B model, eight times on a node. Here a rank names the
same tensors and contributes its own range, cut into rectangles. So a save copies only what the rank holds, a load reads only
what it needs, and any number of processes, tensor-parallel size and backend can read what another wrote.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from curricula.model.megatron import ShardedTensor, ShardedTensorFactory

STATES = ("param", "exp_avg", "exp_avg_sq")
"""The float32 master weight and AdamW's two moments; in AdamW's state they lie next to the step."""


def sharded_state(optimizer: Any, model_state: Mapping[str, Any]) -> dict[str, Any]:
    """What to save of `optimizer`, or the places to load it into, for the parameters in the sharded `model_state`."""
    places = {id(entry.data): entry for entry in model_state.values() if not _is_object(entry)}
    parts: dict[str, ShardedTensor] = {}
    for part in _parts(optimizer):
        for parameter, held, start in _held(part):
            for piece, offset in _pieces(places[id(parameter)]):
                for state, tensor in held.items():
                    for shard in _rectangles(piece, tensor, start - offset, f"optimizer.state.{state}.{piece.key}"):
                        parts[f"{state}.{len(parts)}"] = shard
    return {"param_state": parts, "step": step_of(optimizer)}


def load_state(optimizer: Any, places: Mapping[str, Any], loaded: Mapping[str, Any]) -> None:
    """Take over what was `loaded` into `places`, both as `sharded_state` names them.

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


def step_of(optimizer: Any) -> float:
    """The number of updates so far, which is the same for all parameters."""
    states = (state for part in _parts(optimizer) for state in part.optimizer.state.values())
    return float(next(states)["step"])


def _step_in_groups(loaded: Mapping[Any, Any]) -> float:
    """The step in a checkpoint that Megatron-core laid out: one optimizer, or several by number."""
    states = [loaded] if "optimizer" in loaded else [state for state in loaded.values() if "optimizer" in state]
    return max(group.get("step") or 0 for state in states for group in state["optimizer"]["param_groups"])


def _parts(optimizer: Any) -> list[Any]:
    return getattr(optimizer, "chained_optimizers", [optimizer])


def _is_object(entry: Any) -> bool:
    return not isinstance(entry, ShardedTensor | ShardedTensorFactory)


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
