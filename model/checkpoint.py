"""Saves and loads a run's whole state, or only its weights, as a Megatron-core distributed checkpoint.

The checkpoint does not depend on the number of processes that wrote it. It is written aside, verified, renamed; only
then does `latest` move. A failed save (no space, a dead disk) leaves the earlier checkpoints as they were.
"""

from __future__ import annotations

import contextlib
import functools
import platform
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed.checkpoint as torch_checkpoint

from curriculum.errors import UserError
from model.checkpoint_folder import CheckpointInfo, publish, read_info
from model.distributed import Parallel
from model.megatron import (
    CheckpointingException,
    GPTModel,
    MCoreSavePlanner,
    TorchDistSaveShardedStrategy,
    dist_checkpointing,
    keyed_by_shard,
    to_torch_state,
)

# The optimizer's state in the shape of the parameters: any number of processes can read what another number wrote.
LAYOUT = {"distrib_optim_sharding_type": "fully_reshardable", "chained_optim_avoid_prefix": True}

# What the readers of Megatron-core and torch raise for damaged files.
UNREADABLE = (CheckpointingException, torch_checkpoint.CheckpointException, EOFError, KeyError, RuntimeError)


class InProcessSave(TorchDistSaveShardedStrategy):
    """Megatron-core's format, written by torch's own writer in this process.

    Megatron-core's writer starts a queue server and a writer process for every save, which for small models takes
    longer than the training between two saves.
    """

    def __init__(self) -> None:
        super().__init__("torch_dist", 1)

    def save(self, sharded_state_dict: Any, checkpoint_dir: Any) -> None:
        by_shard, _, _ = keyed_by_shard(sharded_state_dict, self.keep_only_main_replica)
        torch_checkpoint.save(
            to_torch_state(by_shard, False),
            storage_writer=torch_checkpoint.FileSystemWriter(checkpoint_dir, sync_files=True),
            planner=MCoreSavePlanner(dedup_replicated_tensors=False, flatten_state_dict=False),
        )


def save(folder: Path, network: GPTModel, optimizer: Any | None, info: CheckpointInfo, parallel: Parallel) -> None:
    """Write the state of `network` and, unless None, `optimizer` as the checkpoint `folder`, and point `latest` at it.

    All processes call it together. Raises UserError when the files cannot be written; nothing is left behind then.
    """
    aside = folder.with_name(f".{folder.name}.aside")
    try:
        if parallel.is_main:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
        parallel.barrier()
        with parallel.cuda_names():
            state = _sharded_state(network, optimizer, is_loading=False)
            dist_checkpointing.save(
                state,
                str(aside),
                sharded_strategy=InProcessSave(),
                async_sharded_save=False,
                content_metadata=LAYOUT,
            )
        if parallel.is_main:
            publish(aside, folder, info)
        parallel.barrier()
    except (Exception, torch_checkpoint.CheckpointException) as error:  # the latter is a bare BaseException
        reason = _writing_failure(error)
        if parallel.is_main:
            shutil.rmtree(aside, ignore_errors=True)
        if reason is None:
            raise
        raise UserError(
            f"{folder}: the checkpoint could not be written ({reason}); earlier ones are kept, so free some space and "
            "run it again"
        ) from error


def _writing_failure(error: BaseException) -> str | None:
    """The operating system's words if `error` comes from writing files, through the wrappings of torch's writers."""
    if isinstance(error, torch_checkpoint.CheckpointException):
        reasons = [_writing_failure(failure[0]) for failure in error.failures.values()]
        return next((reason for reason in reasons if reason), None)
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if isinstance(error, RuntimeError) and ("PytorchStreamWriter" in str(error) or "iostream" in str(error)):
        return "the file system accepts no more data"
    return None


def load(folder: Path, network: GPTModel, optimizer: Any | None, parallel: Parallel) -> CheckpointInfo:
    """Fill `network` and, unless None, `optimizer` from the checkpoint `folder`; returns what it holds.

    With `optimizer` None only weights are read, from checkpoints of either kind. Raises UserError when a file is
    missing, cut short or damaged, or when the state is not there.
    """
    info = read_info(folder)
    if optimizer is not None and not info.full:
        raise UserError(f"{folder}: holds weights only, so training cannot go on from it; use it as init_weights")
    with parallel.cuda_names():
        state = _sharded_state(network, optimizer, is_loading=True)
        try:
            loaded = dist_checkpointing.load(state, str(folder))
        except UNREADABLE as error:
            reason = str(error).strip().splitlines()[-1][:200]
            raise UserError(f"{folder}: cannot be read ({reason}); delete it and use an earlier one") from error
        network.load_state_dict(loaded["model"])
        if optimizer is not None:
            _load_optimizer(optimizer, loaded["optimizer"])
    return info


def _sharded_state(network: GPTModel, optimizer: Any | None, is_loading: bool) -> dict[str, Any]:
    model_state = network.sharded_state_dict(metadata=LAYOUT)
    state: dict[str, Any] = {"model": model_state}
    if optimizer is not None:
        state["optimizer"] = optimizer.sharded_state_dict(model_state, is_loading=is_loading, metadata=LAYOUT)
    return state


def _load_optimizer(optimizer: Any, state: dict[str, Any]) -> None:
    """`optimizer.load_state_dict`, with two slips of Megatron-core around torch's own AdamW made good.

    It stores one step count for all parameters. Loading then looks for a count per parameter, which is not there; and
    it puts one shared tensor into all states, which would count once per parameter and spoil the bias correction.
    """
    with contextlib.ExitStack() as stack:
        parts = getattr(optimizer, "chained_optimizers", [optimizer])
        for part in parts:
            stack.enter_context(mock.patch.object(part, SET_STATE, functools.partial(_set_state_but_step, part)))
        optimizer.load_state_dict(state)
    for part in parts:
        for parameter_state in part.optimizer.state.values():
            if isinstance(parameter_state.get("step"), torch.Tensor):
                parameter_state["step"] = parameter_state["step"].clone()


SET_STATE = "_set_main_param_and_optimizer_states"


def _set_state_but_step(part: Any, parameter: torch.Tensor, tensors: dict[str, torch.Tensor]) -> None:
    has = part._get_main_param_and_optimizer_states(parameter)
    getattr(type(part), SET_STATE)(part, parameter, {"step": has["step"], **tensors} if "step" in has else tensors)


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    import megatron.core

    found = {"torch": torch.__version__, "megatron-core": megatron.core.__version__}
    return {"python": platform.python_version(), **{name: str(version) for name, version in found.items()}}
