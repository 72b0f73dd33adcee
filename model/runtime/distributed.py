"""Sets up what the processes of a run share (device, process group, Megatron-core's parallel state) and takes it down again.

Ranks come from torchrun's variables (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR) or from a Slurm step (one srun task per
GPU). Without either this is a single process, which opens no port. With CUDA: NCCL and bfloat16; without: gloo and
float32, through `curricula.model.runtime.cpu`.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from curricula.errors import UsageError
from curricula.model.megatron import model_parallel_cuda_manual_seed, parallel_state
from curricula.model.runtime.cpu import CpuAsCuda, cuda_functions_on_cpu
from curricula.model.runtime.stopping import Interrupted

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process's place among all processes of the job."""

    rank: int
    size: int
    """Number of processes."""
    local_rank: int
    """Rank among the processes of this node."""
    master: str | None
    """host:port of rank 0; None for a single process."""


ALONE = Ranks(0, 1, 0, None)


@dataclass(frozen=True)
class Parallel:
    """What a training process knows about itself and the others, once `started`."""

    ranks: Ranks
    device: torch.device
    precision: torch.dtype
    """Data type of parameters and activations; gradients and optimizer state are always float32."""
    tensor_parallel: int
    data_parallel: int
    data_rank: int
    """Rank among the data-parallel processes."""

    @property
    def is_main(self) -> bool:
        return self.ranks.rank == 0

    def cuda_names(self) -> contextlib.AbstractContextManager[object]:
        """To enter around every call into Megatron-core that may name a CUDA device; does nothing where there is CUDA."""
        return contextlib.nullcontext() if self.device.type == "cuda" else CpuAsCuda()

    def sum(self, *values: float) -> list[float]:
        """Each value summed over the data-parallel ranks, in double precision."""
        if self.data_parallel == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total, group=parallel_state.get_data_parallel_group())
        return total.tolist()

    def any(self, flag: bool) -> bool:
        """Whether any process raised the flag; by this, all processes take the same decision."""
        return self.any_of(flag)[0]

    def any_of(self, *flags: bool) -> list[bool]:
        """`any` for several flags at the cost of one."""
        if self.ranks.size == 1:
            return list(flags)
        raised = torch.tensor([int(flag) for flag in flags], device=self.device)
        dist.all_reduce(raised, op=dist.ReduceOp.MAX)
        return [bool(value) for value in raised.tolist()]

    def gather(self, value: T) -> list[T]:
        """The value of every process, by rank."""
        values: list[Any] = [value] * self.ranks.size
        if self.ranks.size > 1:
            dist.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        if self.ranks.size > 1:
            dist.barrier()


def read_ranks(environment: Mapping[str, str] = os.environ) -> Ranks:
    """This process's place from torchrun's or a Slurm step's variables; without them it is alone."""
    if "RANK" in environment and "WORLD_SIZE" in environment:
        size = int(environment["WORLD_SIZE"])
        address = f"{environment.get('MASTER_ADDR', '127.0.0.1')}:{environment.get('MASTER_PORT', '29500')}"
        rank, local_rank = int(environment["RANK"]), int(environment.get("LOCAL_RANK", environment["RANK"]))
        return Ranks(rank, size, local_rank, address if size > 1 else None)
    # Only srun sets the step's variables; a plain batch script also has SLURM_PROCID but is one process.
    if "SLURM_STEP_NODELIST" in environment and int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        host = environment.get("MASTER_ADDR") or first_host(environment["SLURM_STEP_NODELIST"])
        # Jobs that share a node need different ports; job and step number are the same on all ranks.
        number = int(environment.get("SLURM_JOB_ID", "0")) * 7 + int(environment.get("SLURM_STEP_ID", "0"))
        port = environment.get("MASTER_PORT") or str(15000 + number % 15000)
        return Ranks(
            int(environment["SLURM_PROCID"]),
            int(environment["SLURM_STEP_NUM_TASKS"]),
            int(environment.get("SLURM_LOCALID", "0")),
            f"{host}:{port}",
        )
    return ALONE


def first_host(nodelist: str) -> str:
    """The first host of a Slurm node list: "gpu[003-007,9],login1" -> "gpu003"."""
    match = re.match(r"([^,\[]*)(?:\[([^\],-]+)[^\]]*\]([^,\[]*))?", nodelist.strip())
    if match is None or not match.group(0):
        raise UsageError(f'SLURM_STEP_NODELIST is "{nodelist}", which names no host; set MASTER_ADDR instead')
    return "".join(part or "" for part in match.groups())


@contextlib.contextmanager
def started(tensor_parallel: int = 1, timeout_minutes: float = 30.0, ranks: Ranks | None = None) -> Iterator[Parallel]:
    """The process group and Megatron-core's parallel state while the block lasts; may be entered again afterwards.

    It spans all processes of this job unless `ranks` says otherwise. Raises UsageError when the number of processes is not a
    multiple of `tensor_parallel`.
    """
    ranks = ranks or read_ranks()
    if ranks.size % tensor_parallel:
        raise UsageError(
            f"tensor_parallel is {tensor_parallel}, which does not divide the {ranks.size} processes of this job; "
            "change it or the number of tasks"
        )
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        device = torch.device("cuda", ranks.local_rank % torch.cuda.device_count())
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
    with contextlib.ExitStack() as stack:
        if not on_gpu:
            stack.enter_context(cuda_functions_on_cpu())
        _join(ranks, "nccl" if on_gpu else "gloo", datetime.timedelta(minutes=timeout_minutes))
        stack.enter_context(group_until_end())
        stack.enter_context(_parallel_state(tensor_parallel, timeout_minutes))
        yield _describe(ranks, device, tensor_parallel)


def _join(ranks: Ranks, backend: str, timeout: datetime.timedelta) -> None:
    if ranks.master is None:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)
    else:
        address = f"tcp://{ranks.master}"
        dist.init_process_group(backend, init_method=address, rank=ranks.rank, world_size=ranks.size, timeout=timeout)


@contextlib.contextmanager
def group_until_end() -> Iterator[None]:
    """Destroy the process group at the block's end; after an error under NCCL leave it, unless this process is alone.

    Destroying it waits there for all that was begun on the GPU, and the others may be waiting for this process in a
    collective: none would ever end, nor say why. `curricula.jobs.element` ends a process that is left with its group.
    """
    try:
        yield
    except BaseException as error:
        # All processes agree on an interrupt between two steps, so none waits for another.
        if dist.get_backend() != "nccl" or dist.get_world_size() == 1 or isinstance(error, Interrupted):
            dist.destroy_process_group()
        raise
    dist.destroy_process_group()


@contextlib.contextmanager
def _parallel_state(tensor_parallel: int, timeout_minutes: float) -> Iterator[None]:
    # Nothing uses Megatron-core's groups over gloo, which would hang where a host's name resolves to 127.0.1.1.
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=tensor_parallel,
        distributed_timeout_minutes=int(timeout_minutes),
        create_gloo_process_groups=False,
    )
    try:
        # Nothing draws from these generators (no dropout, weights by key), but Megatron-core wants them to exist.
        with contextlib.nullcontext() if torch.cuda.is_available() else CpuAsCuda():
            model_parallel_cuda_manual_seed(1)
        yield
    finally:
        parallel_state.destroy_model_parallel()


def _describe(ranks: Ranks, device: torch.device, tensor_parallel: int) -> Parallel:
    return Parallel(
        ranks=ranks,
        device=device,
        precision=torch.bfloat16 if device.type == "cuda" else torch.float32,
        tensor_parallel=tensor_parallel,
        data_parallel=parallel_state.get_data_parallel_world_size(),
        data_rank=parallel_state.get_data_parallel_rank(),
    )
