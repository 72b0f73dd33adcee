"""The check in the first seconds of a job with several processes: it finds and names a node that would ruin the job.

Every node checks itself (`node_checks.py`). Then the clocks are compared and an all-reduce over all processes is timed. All
processes reach the same verdict through a store that rank 0 serves before they open a process group. Unlike a collective, the
store can tell which processes are missing. A node that fails is recorded, and the job avoids it when it starts again.
"""

from __future__ import annotations

import contextlib
import datetime
import math
import os
import re
import socket
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec

from curricula.errors import UserError, first_line
from curricula.jobs.monitor.logs import note
from curricula.jobs.preflight.node_checks import disk_problems, job_gpu_problems, reach_problems, within
from curricula.jobs.run import Run
from curricula.jobs.slurm.commands import host_names, own_task
from curricula.jobs.slurm.profile import Preflight
from curricula.jobs.slurm.submissions import ENOUGH_NODES, BadNode, record_bad_nodes
from curricula.model.runtime.stopping import PeerLost
from curricula.settings import decode

if TYPE_CHECKING:
    import torch
    from torch.distributed import ProcessGroup, Store

    from curricula.model.runtime.distributed import Ranks

WARM_UP, TIMED = 2, 5
"""Numbers of all-reduces before the timing and during it."""
MESSAGE_BYTES = {"cuda": 256_000_000, "cpu": 4_000_000}
"""Size of the all-reduce that is timed, by device."""
GOODBYE_S = 20.0
"""How long rank 0 waits until the others have read a value. The store ends with rank 0."""
Value = TypeVar("Value")


class PreflightFailed(UserError):
    """Something is wrong that no single node causes, such as a slow fabric. It may be over when the job starts again."""

    exit_code = 76
    """Not a final code, so the batch script requeues the job."""


class UnfitNodes(PreflightFailed):
    """Nodes failed the preflight. They are recorded, and the job starts again without them if it can."""


class _Report(msgspec.Struct, frozen=True):
    """What a process reports about its node. Only the first process on a node looks for problems."""

    node: str
    own: tuple[str, ...] = ()
    """Problems of the node itself."""
    shared: tuple[str, ...] = ()
    """Problems with what the nodes share. A node is blamed for a problem of either kind unless all nodes have the same one."""


class _Verdict(msgspec.Struct, frozen=True):
    """What rank 0 concludes from the reports."""

    problems: tuple[BadNode, ...] = ()
    nodes: tuple[str, ...] = ()
    """The node of each rank."""
    failure: str = ""
    """What is wrong, if no node can be blamed."""


def preflight(run: Run, inputs: Callable[[], Sequence[Path]], ranks: Ranks, settings: Preflight) -> None:
    """Check all nodes of this job together. Every process calls this before it opens its process group.

    `inputs` returns the files that the job will read. Each node must be able to read them.

    Raises the same error in all processes: UnfitNodes if nodes failed, PreflightFailed if no node is to blame. Raises PeerLost
    if processes cannot reach each other. The job can start again after any of these.
    """
    began = time.monotonic()
    rendezvous = Rendezvous(ranks, settings.patience_s)

    def decide(name: str, judge: Callable[[], _Verdict]) -> _Verdict:
        """Let rank 0 judge, record its verdict and share it; a verdict against nodes raises in every process."""
        own = _recorded(run, judge()) if ranks.rank == 0 else None
        verdict = rendezvous.broadcast(name, _Verdict, own)
        _raise(verdict)
        return verdict

    problems = _examine(run, inputs, settings) if ranks.local_rank == 0 else ()
    rendezvous.put_own("report", _Report(_this_node(), *problems))
    nodes = decide("examined", lambda: _judge_reports(rendezvous, settings)).nodes
    decide("clocks", lambda: _compare_clocks(rendezvous, nodes, settings))
    speed = _measure(decide, rendezvous, ranks, nodes, settings)
    if ranks.rank == 0:
        took_s = time.monotonic() - began
        note(f"preflight: {len(set(nodes))} nodes, {ranks.size} processes, all-reduce {speed:.2f} GB/s, {took_s:.1f} s")


def check_gpus(run: Run) -> None:
    """Check that this node has the GPUs that a job with a single process requested. Raises as `preflight` does."""
    problems = tuple(BadNode(_this_node(), reason) for reason in job_gpu_problems(is_alone=False))
    _raise(_recorded(run, _Verdict(problems), ENOUGH_NODES))


def _this_node() -> str:
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def _recorded(run: Run, verdict: _Verdict, enough: float = math.inf) -> _Verdict:
    """The verdict, after its nodes have been recorded durably, which must happen before any process can end.

    If `enough` other nodes have had the same problem, the verdict that no node is to blame.
    """
    task = own_task() or ""
    problems = [msgspec.structs.replace(problem, task=task) for problem in verdict.problems]
    if problems and (alike := record_bad_nodes(run, problems, enough)):
        said = f"{_named(problems)}; no node is to blame, since {', '.join(alike)} had the same problem"
        return _Verdict(failure=said)
    return verdict


def _named(problems: Sequence[BadNode]) -> str:
    return "; ".join(f"node {problem.node}: {problem.reason}" for problem in problems)


def _raise(verdict: _Verdict) -> None:
    if verdict.problems:
        raise UnfitNodes(f"preflight: {_named(verdict.problems)}")
    if verdict.failure:
        raise PreflightFailed(f"preflight: {verdict.failure}")


def _examine(run: Run, inputs: Callable[[], Sequence[Path]], settings: Preflight) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The problems that this node finds by itself: its own, and those with the disks that it shares."""
    own = job_gpu_problems() + disk_problems([Path(os.environ.get("TMPDIR", "/tmp"))], settings.min_free_gb)

    def shared() -> list[str]:
        return disk_problems([run.root], settings.min_free_gb) + reach_problems(run.root, inputs())

    return tuple(own), tuple(within(min(60.0, settings.patience_s / 2), str(run.root), shared))


def _judge_reports(rendezvous: Rendezvous, settings: Preflight) -> _Verdict:
    reports = rendezvous.gather("report", _Report)
    if missing := [rank for rank in range(rendezvous.size) if rank not in reports]:
        late = f"within {settings.patience_s:g} s"
        if names := _nodes_of(missing, rendezvous.size):
            return _Verdict(tuple(BadNode(name, f"no report from its processes {late}") for name in names))
        return _Verdict(failure=f"no report from ranks {', '.join(map(str, missing))} {late}")
    nodes = tuple(reports[rank].node for rank in range(rendezvous.size))
    own = [BadNode(report.node, reason) for report in reports.values() for reason in report.own]
    shared = [BadNode(report.node, reason) for report in reports.values() for reason in report.shared]
    places: dict[str, set[str]] = {}
    for problem in (*own, *shared):
        places.setdefault(_kind(problem.reason), set()).add(problem.node)
    # A node is not to blame for a problem that every node has, since there is no better one. If there is only one node, this
    # holds only for problems with what nodes share.
    excusable = [*own, *shared] if len(set(nodes)) > 1 else shared
    common = [problem for problem in excusable if places[_kind(problem.reason)] == set(nodes)]
    blamed = tuple(problem for problem in (*own, *shared) if problem not in common)
    return _Verdict(blamed, nodes, failure=f"on every node: {common[0].reason}" if common and not blamed else "")


def _kind(reason: str) -> str:
    """A reason without its numbers, which may differ between nodes that have the same problem."""
    return re.sub(r"\d+(\.\d+)?", "", reason)


def _compare_clocks(rendezvous: Rendezvous, nodes: Sequence[str], settings: Preflight) -> _Verdict:
    """Compare the times at which the processes had the first verdict, each by its own clock."""
    clocks = rendezvous.gather("examined received", float)
    lost = [BadNode(node, "it stopped answering") for rank, node in enumerate(nodes) if rank not in clocks]
    if lost:
        return _Verdict(tuple(lost))
    # Rank 0 noted its time before it sent the verdict. Any process may have read it only now, with a clock that is right.
    largest_s = settings.max_skew_s + time.time() - clocks[0]
    clock_of_node = {node: clocks[rank] for rank, node in enumerate(nodes)}
    median = statistics.median_low(clock_of_node.values())
    skews = {node: clock - median for node, clock in clock_of_node.items() if abs(clock - median) > largest_s}
    if len(clock_of_node) == 2 and skews:  # either clock may be the wrong one
        apart = max(map(abs, skews.values()))
        return _Verdict(failure=f"the clocks of {' and '.join(clock_of_node)} are {apart:.1f} s apart; correct or exclude one")
    return _Verdict(tuple(BadNode(node, f"its clock is {skew:+.1f} s from the others'") for node, skew in skews.items()))


def _measure(
    decide: Callable[[str, Callable[[], _Verdict]], object],
    rendezvous: Rendezvous,
    ranks: Ranks,
    nodes: Sequence[str],
    settings: Preflight,
) -> float:
    """Measure the bus bandwidth of an all-reduce over all processes, in GB/s. Raises if it is below the floor."""
    import torch
    import torch.distributed as dist

    from curricula.model.runtime.distributed import group_until_end

    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", ranks.local_rank % torch.cuda.device_count()) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    message = torch.ones(MESSAGE_BYTES[device.type] // 4, dtype=torch.float32, device=device)
    dist.init_process_group(
        "nccl" if on_gpu else "gloo",
        store=dist.PrefixStore("all-reduce", rendezvous.store),
        rank=ranks.rank,
        world_size=ranks.size,
        timeout=datetime.timedelta(seconds=settings.patience_s),
    )
    with group_until_end():
        speed = rendezvous.broadcast("speed", float, _bus_bandwidth(message, None))
        floor, places = settings.min_bandwidth_gb_s, list(dict.fromkeys(nodes))
        if floor is not None and speed < floor:
            slow = _slow_pairs(message, nodes, floor, rendezvous) if len(places) > 2 else []
            decide("measured", lambda: _blame(places, slow, speed, floor))
    return speed


def _bus_bandwidth(message: torch.Tensor, group: ProcessGroup | None) -> float:
    """Measure the GB/s through the slowest link, as NCCL's tests define it: 2 (n - 1) / n times size divided by time."""
    import torch
    import torch.distributed as dist

    def once() -> float:
        began = time.perf_counter()
        dist.all_reduce(message, group=group)
        if message.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - began

    for _ in range(WARM_UP):
        once()
    seconds = statistics.median(once() for _ in range(TIMED))
    size = dist.get_world_size(group)
    return 2 * (size - 1) / size * message.numel() * message.element_size() / seconds / 1e9


def _slow_pairs(message: torch.Tensor, nodes: Sequence[str], floor: float, rendezvous: Rendezvous) -> list[tuple[str, str]]:
    """The pairs of neighbours, in a ring of all nodes, whose all-reduce is below the floor. Pairs are measured in turn."""
    import torch.distributed as dist

    places, slow = list(dict.fromkeys(nodes)), []
    for number, pair in enumerate(zip(places, [*places[1:], places[0]])):
        ranks = [rank for rank, node in enumerate(nodes) if node in pair]
        group = dist.new_group(ranks)
        if isinstance(group, dist.ProcessGroup):  # this process is in it
            speed = _bus_bandwidth(message, group)
            if rendezvous.rank == ranks[0]:
                rendezvous.put(f"pair {number}", speed)
        if rendezvous.get(f"pair {number}", float) < floor:  # waits until the pair has been measured
            slow.append(pair)
    return slow


def _blame(places: Sequence[str], slow: Sequence[tuple[str, str]], speed: float, floor: float) -> _Verdict:
    """Blame the only node or, of several, those that are slow with both neighbours, unless all of them are."""
    reason = f"all-reduce runs at {speed:.2f} GB/s, below the floor of {floor:g}"
    if len(places) == 1:
        return _Verdict((BadNode(places[0], reason),))
    blamed = [place for place in places if sum(place in pair for pair in slow) == 2]
    if blamed and len(blamed) < len(places):
        alike = f"all-reduce with either neighbour is below the floor of {floor:g} GB/s"
        return _Verdict(tuple(BadNode(place, alike) for place in blamed))
    between = " and ".join(places)
    return _Verdict(
        failure=f"{reason}, between {between}, none of which can be blamed: check the fabric, or lower min_bandwidth_gb_s"
    )


def _nodes_of(ranks: Sequence[int], size: int) -> list[str]:
    """The nodes of `ranks`, given that Slurm assigns ranks to one node after the other; empty if Slurm does not answer."""
    try:
        names = host_names(os.environ.get("SLURM_STEP_NODELIST", ""))
    except (UserError, OSError):
        return []
    return list(dict.fromkeys(names[rank * len(names) // size] for rank in ranks)) if names else []


class Rendezvous:
    """The store that rank 0 serves before there is a process group. It holds values by name, as JSON.

    Raises PeerLost if it cannot be opened or reached within `patience_s`. Another start, with another port or without that
    node, may succeed.
    """

    def __init__(self, ranks: Ranks, patience_s: float):
        from torch.distributed import TCPStore

        assert ranks.master is not None  # there are several processes
        host, _, port = ranks.master.rpartition(":")
        address = f"{host}:{int(port) + 1}"  # the training's own store needs the port itself later
        self.rank, self.size, self.patience_s = ranks.rank, ranks.size, patience_s
        patience = datetime.timedelta(seconds=patience_s)
        try:
            self.store: Store = TCPStore(host, int(port) + 1, ranks.size, ranks.rank == 0, patience, wait_for_workers=False)
        except RuntimeError as error:
            what = "opened" if ranks.rank == 0 else "reached"
            raise PeerLost(f"{address}: the store of the preflight cannot be {what} ({first_line(error)})") from None

    def put(self, name: str, value: object) -> None:
        self.store.set(name, msgspec.json.encode(value).decode())

    def get(self, name: str, kind: type[Value]) -> Value:
        """The value of this name. Waits until there is one."""
        return decode(self.store.get(name), kind)

    def put_own(self, name: str, value: object) -> None:
        """Set this rank's own value of a name for which each rank has one."""
        self.put(f"{name}/{self.rank}", value)

    def gather(self, name: str, kind: type[Value]) -> dict[int, Value]:
        """Each rank's own value. Ranks that set none within `patience_s` are left out."""
        missing = self._missing(name, self.patience_s)
        return {rank: self.get(f"{name}/{rank}", kind) for rank in range(self.size) if rank not in missing}

    def broadcast(self, name: str, kind: type[Value], value: Value | None) -> Value:
        """Return rank 0's `value` in every process. Rank 0 waits until the others have read it, or `GOODBYE_S` have passed.

        Each process records when it had the value. Raises PeerLost if rank 0 ended before it set one.
        """
        if self.rank == 0:
            assert value is not None
            self.put_own(f"{name} received", time.time())
            self.put(name, value)
            self._missing(f"{name} received", GOODBYE_S)
            return value
        try:
            self.store.wait([name], datetime.timedelta(seconds=2 * self.patience_s))
            received = self.get(name, kind)
            self.put_own(f"{name} received", time.time())
        except RuntimeError:  # includes torch's DistError
            raise PeerLost("the first process ended without a verdict; see the log of rank 0") from None
        return received

    def _missing(self, name: str, patience_s: float) -> Sequence[int]:
        """The ranks that have not set their own value of this name within `patience_s`."""
        keys = [f"{name}/{rank}" for rank in range(self.size)]
        with contextlib.suppress(RuntimeError):  # includes torch's DistError, at the end of the patience
            self.store.wait(keys, datetime.timedelta(seconds=patience_s))
        return [rank for rank, key in enumerate(keys) if not self.store.check([key])]
