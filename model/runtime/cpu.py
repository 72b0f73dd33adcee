"""Runs Megatron-core, which knows only CUDA, on a machine without it.

Megatron-core allocates with device="cuda", asks for `torch.cuda.current_device()`, waits on CUDA streams and recognises
parameters by the type name "torch.cuda.FloatTensor". On a CPU each of these has an obvious answer: the tensor lives on the
CPU, streams are idle, and the type name gets its "cuda". Two things give these answers without changing Megatron-core:

- `cuda_functions_on_cpu()` replaces the few functions of `torch.cuda` that Megatron-core calls, and restores them.
- `CpuAsCuda` is a mode that redirects tensor calls. It costs about a microsecond a call, so training enters it only around
  the parts that need it (see `Parallel.cuda_names`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode

from curricula.model.megatron import megatron_random


class CpuAsCuda(TorchFunctionMode):
    """While active, tensor calls that name a CUDA device act on the CPU."""

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
    """Answer Megatron-core's calls of `torch.cuda` for a CPU, until the block ends."""

    def generator_state(*args: Any, **kwargs: Any) -> torch.Tensor:
        return torch.get_rng_state()

    def set_generator_state(state: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        torch.set_rng_state(state)

    answers = {
        "current_device": lambda: "cpu",
        "synchronize": lambda *args, **kwargs: None,
        "empty_cache": lambda: None,
        "is_initialized": lambda: False,
        "manual_seed": torch.manual_seed,
        "get_rng_state": generator_state,
        "set_rng_state": set_generator_state,
        "current_stream": _Idle,
        "default_stream": _Idle,
        "Stream": _Idle,
        "Event": _Idle,
        "stream": lambda *args, **kwargs: contextlib.nullcontext(),
    }
    with contextlib.ExitStack() as stack:
        for name, answer in answers.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, answer))
        stack.enter_context(mock.patch.object(megatron_random, "_get_cuda_rng_state", generator_state))
        stack.enter_context(mock.patch.object(megatron_random, "_set_cuda_rng_state", set_generator_state))
        yield
