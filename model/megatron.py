"""Everything this package takes from Megatron-core, imported in one place, and what lets it run without CUDA.

Versions 0.16 to 0.19 work. What is about to change in Megatron-core (`GPTModel`, checkpoint strategies) can be seen here.

Two things are switched off at import if there is no CUDA. Megatron-core decorates its fused functions with `torch.compile`,
which loads the compiler; a process on a CPU never gains back the 1.7 s that this takes. And it expects an ImportError if
Transformer Engine cannot be loaded, but without NVIDIA's driver, as on a login node or a CPU partition, it meets another error.

Megatron-core allocates with device="cuda", asks for `torch.cuda.current_device()`, waits on CUDA streams and recognises
parameters by the type name "torch.cuda.FloatTensor". On a CPU, `cuda_functions_on_cpu` and `CpuAsCuda` answer: the tensor lives
on the CPU, streams are idle, and the type name gets its "cuda".
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode


def _not_compiled(function: Any = None, **options: Any) -> Any:
    return function if function is not None else lambda decorated: decorated


def name_cuda_headers(packages: Path) -> None:
    """Tell Transformer Engine that CUDA's headers are among torch's `packages`. With fp8, it compiles kernels with them.

    It would look for a toolkit's in /usr/local/cuda, where there may be none, or some of a version that it refuses. A place
    that the user has named stays.
    """
    for header in packages.glob("nvidia/cu*/include/cuda_runtime.h"):
        os.environ.setdefault("NVTE_CUDA_INCLUDE_DIR", str(header.parent))


_has_compiler_cache = "TORCHINDUCTOR_CACHE_DIR" in os.environ
_without_compiler = (
    contextlib.nullcontext() if torch.cuda.is_available() else mock.patch.object(torch, "compile", _not_compiled)
)
with warnings.catch_warnings(), _without_compiler:
    # It warns that Transformer Engine and Apex are missing; the log's line about the backend says so.
    warnings.simplefilter("ignore")
    if torch.cuda.is_available():
        name_cuda_headers(Path(torch.__file__).parents[1])
        with contextlib.suppress(ImportError):
            import transformer_engine
    else:  # Megatron-core would call its kernels, or fail to import it without a driver
        sys.modules.setdefault("transformer_engine", None)  # type: ignore[arg-type]
    import megatron.core.optimizer
    from megatron.core import dist_checkpointing, parallel_state
    from megatron.core.dist_checkpointing import ShardedObject, ShardedTensor
    from megatron.core.dist_checkpointing.core import CheckpointingException
    from megatron.core.dist_checkpointing.mapping import ShardedTensorFactory
    from megatron.core.dist_checkpointing.strategies.async_utils import AsyncRequest
    from megatron.core.dist_checkpointing.strategies.fully_parallel import (
        FullyParallelLoadStrategyWrapper,
        FullyParallelSaveStrategyWrapper,
    )
    from megatron.core.dist_checkpointing.strategies.torch import MCoreSavePlanner, TorchDistSaveShardedStrategy
    from megatron.core.dist_checkpointing.strategies.torch import _replace_state_dict_keys_with_sharded_keys as keyed_by_shard
    from megatron.core.dist_checkpointing.strategies.torch import mcore_to_pyt_state_dict as to_torch_state
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec, get_gpt_layer_with_transformer_engine_spec
    from megatron.core.models.gpt.gpt_model import GPTModel
    from megatron.core.optimizer import OptimizerConfig as MegatronOptimizerConfig
    from megatron.core.optimizer import clip_grads as megatron_clip_grads
    from megatron.core.optimizer import distrib_optimizer, get_megatron_optimizer
    from megatron.core.packed_seq_params import PackedSeqParams
    from megatron.core.pipeline_parallel import get_forward_backward_func
    from megatron.core.tensor_parallel import layers as megatron_layers
    from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed
    from megatron.core.tensor_parallel import random as megatron_random
    from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
    from megatron.core.tensor_parallel.mappings import (
        copy_to_tensor_model_parallel_region,
        gather_from_sequence_parallel_region,
    )
    from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
    from megatron.core.transformer.transformer_config import TransformerConfig
    from megatron.core.transformer.transformer_layer import TransformerLayer

# Importing the compiler sets this variable to torch's default, which `share_compiler` would take for the user's choice.
if not _has_compiler_cache:
    os.environ.pop("TORCHINDUCTOR_CACHE_DIR", None)

# One optimizer for all backends: torch's fused AdamW. Where Transformer Engine is installed, Megatron-core would take its
# FusedAdam instead, which is no faster (a prototype's step took 26 ms with either) and keeps its state in another form.
megatron.core.optimizer.Adam = torch.optim.AdamW
megatron.core.optimizer.USING_PYTORCH_OPTIMIZER = True
distrib_optimizer.HAVE_APEX_OR_TE = False

# These log every parameter's name at every start and every save.
for _name in ("megatron", "c10d-NullHandler-dcp_logger"):
    logging.getLogger(_name).setLevel(logging.WARNING)
# Here Megatron-core 0.19 warns of things that only its developers can change.
for _name in ("models.gpt.gpt_model", "distributed.distributed_data_parallel"):
    logging.getLogger(f"megatron.core.{_name}").setLevel(logging.ERROR)

# Warnings meant for the developers of Megatron-core and torch; a user can do nothing about them.
for _message in (
    "full scope is deprecated",
    r"The \.grad attribute of a Tensor that is not a leaf",
    r"`torch\.distributed\.\w+` is deprecated",
    "`load_state_dict` is deprecated",
    "Please use DTensor instead",
    "MimoModelConfig is experimental",
    r"barrier\(\): using the device under current context",
    r"torch\.distributed is disabled, unavailable or uninitialized, assuming the intent is to load",
    "The argument order of load has been changed",
):
    warnings.filterwarnings("ignore", message=_message)


class CpuAsCuda(TorchFunctionMode):
    """While active, tensor calls that name a CUDA device act on the CPU.

    This costs about a microsecond a call, so training enters it only around the parts that need it (`Parallel.cuda_names`).
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.Tensor.cuda:
            return args[0]
        if func is torch.Tensor.type and len(args) == 1 and not kwargs:
            return func(*args).replace("torch.", "torch.cuda.")
        if "device" in kwargs and _is_cuda(kwargs["device"]):
            kwargs = {**kwargs, "device": "cpu"}
        if func is torch.Tensor.to and len(args) > 1 and _is_cuda(args[1]):
            args = (args[0], "cpu", *args[2:])
        return func(*args, **kwargs)


def _is_cuda(device: Any) -> bool:
    return isinstance(device, (str, torch.device)) and str(device).startswith("cuda")


class _Idle:
    """A stream or event on which nothing ever waits."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None


@contextlib.contextmanager
def cuda_functions_on_cpu() -> Iterator[None]:
    """Answer Megatron-core's calls to `torch.cuda` for a CPU until the block ends."""
    answers: dict[str, Any] = {
        "current_device": lambda: "cpu",
        "synchronize": lambda *args, **kwargs: None,
        "empty_cache": lambda: None,
        "is_initialized": lambda: False,
        "manual_seed": torch.manual_seed,
        "get_rng_state": lambda *args, **kwargs: torch.get_rng_state(),
        "set_rng_state": lambda state, *args, **kwargs: torch.set_rng_state(state),
        "current_stream": _Idle,
        "default_stream": _Idle,
        "Stream": _Idle,
        "Event": _Idle,
        "stream": lambda *args, **kwargs: contextlib.nullcontext(),
    }
    generators = {"_get_cuda_rng_state": answers["get_rng_state"], "_set_cuda_rng_state": answers["set_rng_state"]}
    with mock.patch.multiple(torch.cuda, **answers), mock.patch.multiple(megatron_random, **generators):
        yield
