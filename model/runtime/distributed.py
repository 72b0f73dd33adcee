"""The processes of a run: what they share (process group, Megatron-core's parallel state, compiled kernels), and which of them
are slow (`Stragglers`).

Ranks come from torchrun's variables (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR) or from a Slurm step (one srun task per GPU).
Without either, this is a single process, which opens no port. With CUDA, processes use NCCL and bfloat16; without it, gloo and
float32, through `CpuAsCuda`.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import itertools
import logging
import os
import re
import socket
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from curricula.errors import UsageError
from curricula.model.megatron import CpuAsCuda, cuda_functions_on_cpu, model_parallel_cuda_manual_seed, parallel_state
from curricula.model.runtime.stopping import Interrupted

log = logging.getLogger(__name__)

T = TypeVar("T")
TIMEOUT = datetime.timedelta(minutes=30)
"""How long a collective may wait for another process."""
MOST_THREADS = 8
"""Largest number of compiling processes for each training process: one layer has too few kernels to keep more busy."""
COMPILERS_S = 15.0
"""How long to wait until the compiling processes run; they usually need a few seconds."""
INTERVAL_S = 30.0
"""Time between two comparisons of how long each process takes."""
FACTOR = 1.2
"""A process is slow if its own part takes longer than this many times the median process's."""
INTERVALS = 3
"""Consecutive comparisons after which a slow process is named: a single one can coincide with a passing disturbance."""


@dataclass(frozen=True)
class Ranks:
    """This process's place among all processes of the job."""

    rank: int
    size: int
    local_rank: int
    """Rank among the processes of this node."""
    master: str | None
    """host:port of rank 0; None for a single process."""


ALONE = Ranks(0, 1, 0, None)
_groups = itertools.count()
"""Numbers the process groups of several processes that this one has been part of."""


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

    @property
    def is_main(self) -> bool:
        return self.ranks.rank == 0

    def cuda_names(self) -> contextlib.AbstractContextManager[object]:
        """A context for every call into Megatron-core that can name a CUDA device. It does nothing if there is CUDA."""
        return contextlib.nullcontext() if self.device.type == "cuda" else CpuAsCuda()

    def sum(self, *values: float) -> list[float]:
        """Each value summed over the data-parallel ranks, in double precision."""
        if self.data_parallel == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total, group=parallel_state.get_data_parallel_group())
        return total.tolist()

    def any(self, flag: bool) -> bool:
        """Whether any process raised the flag. All processes get the same answer, and so take the same decision."""
        return self.any_of(flag)[0]

    def any_of(self, *flags: bool) -> list[bool]:
        """`any` for several flags, at the cost of one."""
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


def read_ranks(environment: Mapping[str, str] = os.environ) -> Ranks:
    """This process's place, from the variables of torchrun or a Slurm step; without them it is alone."""
    if "RANK" in environment and "WORLD_SIZE" in environment:
        size = int(environment["WORLD_SIZE"])
        address = f"{environment.get('MASTER_ADDR', '127.0.0.1')}:{environment.get('MASTER_PORT', '29500')}"
        rank, local_rank = int(environment["RANK"]), int(environment.get("LOCAL_RANK", environment["RANK"]))
        return Ranks(rank, size, local_rank, address if size > 1 else None)
    # Only srun sets the step's variables; a plain batch script also has SLURM_PROCID but is one process.
    if "SLURM_STEP_NODELIST" in environment and int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        host = environment.get("MASTER_ADDR") or first_host(environment["SLURM_STEP_NODELIST"])
        # Jobs that share a node need different ports, and so does a start if processes of the one before still live. All ranks
        # compute the same port.
        job, step, restarts = (int(environment.get(f"SLURM_{it}", "0")) for it in ("JOB_ID", "STEP_ID", "RESTART_COUNT"))
        number = job * 7 + step + restarts * 1009
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
    assert match is not None  # any text does
    return "".join(part or "" for part in match.groups())


@contextlib.contextmanager
def started(tensor_parallel: int = 1, ranks: Ranks | None = None, may_use_gpu: bool = True) -> Iterator[Parallel]:
    """Set up the process group and Megatron-core's parallel state until the block ends.

    The group spans all processes of this job unless `ranks` says otherwise. Raises UsageError if the number of processes is not
    a multiple of `tensor_parallel`.
    """
    ranks = ranks or read_ranks()
    if ranks.size % tensor_parallel:
        raise UsageError(
            f"tensor_parallel is {tensor_parallel}, which does not divide the {ranks.size} processes of this job; "
            "change it or the number of tasks"
        )
    on_gpu = may_use_gpu and torch.cuda.is_available()
    if on_gpu:
        device = torch.device("cuda", ranks.local_rank % torch.cuda.device_count())
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
    with contextlib.ExitStack() as stack:
        stack.callback(await_compilers)
        if not on_gpu:
            stack.enter_context(cuda_functions_on_cpu())
        store: dist.Store = dist.HashStore()
        if ranks.master:  # each group has a part of the store to itself: it must not find what an earlier one left there
            store = dist.PrefixStore(f"group {next(_groups)}", _shared_store(ranks))
        backend = "nccl" if on_gpu else "gloo"
        dist.init_process_group(backend, rank=ranks.rank, world_size=ranks.size, timeout=TIMEOUT, store=store)
        stack.enter_context(group_until_end())
        # Nothing uses Megatron-core's gloo groups, and they would hang if a host's name resolves to 127.0.1.1.
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=tensor_parallel,
            distributed_timeout_minutes=TIMEOUT // datetime.timedelta(minutes=1),
            create_gloo_process_groups=False,
        )
        stack.callback(parallel_state.destroy_model_parallel)
        parallel = Parallel(
            ranks=ranks,
            device=device,
            precision=torch.bfloat16 if on_gpu else torch.float32,
            tensor_parallel=tensor_parallel,
            data_parallel=parallel_state.get_data_parallel_world_size(),
            data_rank=parallel_state.get_data_parallel_rank(),
        )
        # Nothing draws from these generators (no dropout, weights by key), but Megatron-core wants them to exist.
        with parallel.cuda_names():
            model_parallel_cuda_manual_seed(1)
        yield parallel


@functools.cache
def _shared_store(ranks: Ranks) -> dist.Store:
    """The store through which the processes of a job meet. It exists until this process ends: the first one serves it."""
    store, _, _ = next(rendezvous(f"tcp://{ranks.master}", ranks.rank, ranks.size, timeout=TIMEOUT))
    return store


@contextlib.contextmanager
def group_until_end() -> Iterator[None]:
    """Destroy the process group at the block's end. After an error under NCCL, leave it unless this process is alone.

    Under NCCL, destroying the group waits for all pending work of the GPU. If the others wait for this process in a collective,
    no process would ever end or report the error. `curricula.jobs.element` ends a process that is left with its group.
    """
    try:
        yield
    except BaseException as error:
        # All processes agree on an interrupt, so none waits for another.
        if dist.get_backend() != "nccl" or dist.get_world_size() == 1 or isinstance(error, Interrupted):
            dist.destroy_process_group()
        raise
    dist.destroy_process_group()


def share_compiler(cache: Path | None) -> None:
    """Keep compiled code in a folder of `cache` for this node, and compile with this GPU's share of the node's cores.

    By default each process of a node starts 32 others to compile, and keeps the result in a temporary folder that a restart
    does not find. Environment variables that are already set stay as they are. Call this before the first compilation.
    """
    if cache is not None:
        cache = cache / socket.gethostname()  # compilers of several nodes would race on a shared file system
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache / "inductor"))
        os.environ.setdefault("TRITON_CACHE_DIR", str(cache / "triton"))
    share = (os.cpu_count() or 1) // torch.cuda.device_count()
    threads = os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", str(max(1, min(MOST_THREADS, share))))
    if compiler := sys.modules.get("torch._inductor.config"):  # it read the environment when it was imported
        compiler.compile_threads = int(threads)  # type: ignore[attr-defined]


def await_compilers() -> None:
    """Wait until the compiling processes that torch is starting, if any, are running.

    With torch 2.11 or 2.12 and Python 3.12 or later, these processes can hang if they are asked to end as soon as they run.
    Torch asks them when this process exits, and then waits five minutes. A short training can end that early. Torch 2.13 ends
    them otherwise (pytorch/pytorch#184038).
    """
    if dist.is_initialized():  # left after an error: this process ends without asking them
        return
    with contextlib.suppress(Exception):  # torch starts none, or they do not run: then it compiles in this process
        sys.modules["torch._inductor.async_compile"].AsyncCompile._ready_future.result(timeout=COMPILERS_S)


class Stragglers:
    """Finds processes that hold up all others. Each process has one of these; when it `is_due`, all call `compare` together.

    A process's own part of a step lasts from the request for the batch (`step_begins`) to the end of the last backward pass
    (`part_ends`), before it waits for other processes' gradients. On a GPU it is measured by events on its stream, without
    waiting for them. Processes that split matrices among them (tensor parallelism) wait for each other during this part, so a
    slow one makes its whole group slow.
    """

    def __init__(self, parallel: Parallel) -> None:
        self._parallel = parallel
        on_gpu = parallel.device.type == "cuda"
        self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if on_gpu else []
        self._times = [0.0, 0.0]
        self._own: list[float] = []
        self._compared_at = time.monotonic()
        self._times_slow = Counter[int]()
        """For each slow rank, the number of comparisons in a row in which it was slow."""
        self._statistics: dict[str, float] = {}
        self.named = ""
        """The stragglers in a sentence, on the first rank; empty while there is none."""

    def step_begins(self) -> None:
        self._mark(0)

    def part_ends(self) -> None:
        self._mark(1)

    def _mark(self, number: int) -> None:
        if self._events:
            self._events[number].record()
        else:
            self._times[number] = time.perf_counter()

    def step_ended(self) -> None:
        """Record this process's time for the step. Call it once the loss is known: the stream has then passed both events."""
        if self._parallel.ranks.size > 1:
            began, ended = self._times
            self._own.append(self._events[0].elapsed_time(self._events[1]) / 1000 if self._events else ended - began)

    @property
    def is_due(self) -> bool:
        return bool(self._own) and time.monotonic() - self._compared_at > INTERVAL_S

    def compare(self) -> None:
        seconds, places = zip(*self._parallel.gather((statistics.median(self._own), self._place())))
        self._own.clear()
        self._compared_at = time.monotonic()
        if not self._parallel.is_main:
            return
        median = statistics.median_low(seconds)  # of two ranks, the faster
        self._statistics = {
            "median_s": round(median, 4),
            "slowest_s": round(max(seconds), 4),
            "slowest": seconds.index(max(seconds)),
        }
        slow = [rank for rank, own in enumerate(seconds) if own > FACTOR * median]
        self._times_slow = Counter({rank: self._times_slow[rank] + 1 for rank in slow})
        self.named = "; ".join(
            f"rank {rank} ({places[rank]}) takes {seconds[rank] / median:.2f} times as long as the median rank"
            for rank in slow
            if self._times_slow[rank] >= INTERVALS
        )
        if self.named:
            log.warning("%s for its own part of a step, and all others wait for it", self.named)

    def _place(self) -> str:
        host, device = os.environ.get("SLURMD_NODENAME") or socket.gethostname(), self._parallel.device
        if device.type != "cuda":
            return host
        uuid = getattr(torch.cuda.get_device_properties(device), "uuid", "")
        return f"{host}, GPU {device.index}" + (f", GPU-{uuid}" if uuid else "")

    def take_statistics(self) -> dict[str, dict[str, float]]:
        """The metrics' entry about the last comparison, on the first rank; each comparison is returned once."""
        latest, self._statistics = self._statistics, {}
        return {"ranks": latest} if latest else {}
