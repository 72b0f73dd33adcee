"""The first seconds of a job of many processes: find the node that would ruin it, and say its name.

Every node looks at itself (`node_checks.py`); then clocks are compared and an all-reduce over all processes is timed. All
come to the same verdict (`rendezvous.py`, where who stays silent is found too). A node that failed is recorded
(`nodes.py`), and the job avoids it when it starts again.
"""

from __future__ import annotations

import datetime
import os
import socket
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from curricula.errors import UserError
from curricula.jobs.monitor.logs import note
from curricula.jobs.preflight.node_checks import disk_problems, gpu_problems, reach_problems, temporary_folders, within
from curricula.jobs.preflight.nodes import BadNode, record_bad_nodes
from curricula.jobs.preflight.rendezvous import Rendezvous
from curricula.jobs.run import Run
from curricula.jobs.slurm.commands import own_task
from curricula.jobs.slurm.profile import Preflight

if TYPE_CHECKING:
    import torch
    from torch.distributed import ProcessGroup

    from curricula.model.runtime.distributed import Ranks

WARM_UP, TIMED = 2, 5
"""All-reduces before and while the clock runs."""


class Problem(msgspec.Struct, frozen=True):
    node: str
    reason: str


class PreflightFailed(UserError):
    """Something is wrong that no node is to blame for, such as a slow fabric; it may have passed when the job starts again."""

    exit_code = 76
    """Not among the final ones: the batch script puts the job back into the queue."""


class UnfitNodes(PreflightFailed):
    """Nodes failed the preflight; they are recorded, and the job should start again without them."""

    def __init__(self, problems: Sequence[Problem]):
        super().__init__("preflight: " + "; ".join(f"node {problem.node}: {problem.reason}" for problem in problems))
        self.nodes = tuple(dict.fromkeys(problem.node for problem in problems))


class _Report(msgspec.Struct, frozen=True):
    """What a process says of its node; only the first process of a node looks for problems."""

    node: str
    own: tuple[str, ...] = ()
    """Problems that are the node's alone."""
    shared: tuple[str, ...] = ()
    """Problems with what all nodes share: of the node if the others do not have them."""


class _Verdict(msgspec.Struct, frozen=True):
    """What the first process makes of what it heard."""

    problems: tuple[Problem, ...] = ()
    nodes: tuple[str, ...] = ()
    """The node of each rank."""
    failure: str = ""
    """What is wrong when no node can be blamed."""
    find_pair: bool = False
    """Whether to time pairs of nodes, to find the slow one."""


def preflight(
    run: Run,
    inputs: Callable[[], Sequence[Path]],
    ranks: Ranks,
    settings: Preflight,
    environment: Mapping[str, str] = os.environ,
) -> None:
    """Check all nodes of this job together; every process calls it, before it opens its process group.

    `inputs` names the files that the job will read, which each node must be able to see.

    Raises UnfitNodes, the same in all processes, when nodes failed; PreflightFailed when no node is to blame; PeerLost when
    the processes do not find each other. After all of these the job may start again.
    """
    began = time.monotonic()
    meeting = Rendezvous(ranks, settings.patience_s)
    decide = _Judge(run, meeting, own_task(environment) or "")
    node = environment.get("SLURMD_NODENAME") or socket.gethostname()
    report = _Report(node)
    if ranks.local_rank == 0:
        report = _Report(node, *examine(run, inputs, settings, environment))
    meeting.say_own("report", report)
    nodes = decide("examined", lambda: _hear_reports(meeting, settings, environment)).nodes
    meeting.say_own("clock", time.time())  # all heard that at the same instant
    decide("clocks", lambda: _compare_clocks(meeting, nodes, settings))
    speed = _measure(decide, ranks, nodes, settings)
    if ranks.rank == 0:
        took_s = time.monotonic() - began
        note(f"preflight: {len(set(nodes))} nodes, {ranks.size} processes, all-reduce {speed:.2f} GB/s, {took_s:.1f} s")


class _Judge:
    """Calls on rank 0 to decide and on all to obey: a verdict against nodes is recorded, then raised in every process."""

    def __init__(self, run: Run, meeting: Rendezvous, task: str):
        self.run, self.meeting, self.task = run, meeting, task

    def __call__(self, name: str, verdict: Callable[[], _Verdict]) -> _Verdict:
        own = verdict() if self.meeting.rank == 0 else None
        if own and own.problems:  # durable before anyone can leave
            found = [BadNode(node=p.node, reason=p.reason, time=time.time(), task=self.task) for p in own.problems]
            record_bad_nodes(self.run, found)
        heard = self.meeting.announced(name, _Verdict, own)
        if heard.problems:
            raise UnfitNodes(heard.problems)
        if heard.failure:
            raise PreflightFailed(f"preflight: {heard.failure}")
        return heard


def examine(
    run: Run, inputs: Callable[[], Sequence[Path]], settings: Preflight, environment: Mapping[str, str] = os.environ
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What is wrong with this node, as far as it can tell alone: with itself, and with the disks it shares."""
    expected = environment.get("SLURM_GPUS_ON_NODE", "")
    ours = environment.get("SLURM_STEP_GPUS") or environment.get("SLURM_JOB_GPUS")
    own = gpu_problems(int(expected), ours) if expected.isdecimal() else []
    own += disk_problems(temporary_folders(), settings.min_free_gb)

    def shared() -> list[str]:
        full = disk_problems([run.root], settings.min_free_gb)
        return full + reach_problems(run.root, inputs())

    return tuple(own), tuple(within(min(60.0, settings.patience_s / 2), str(run.root), shared))


def _hear_reports(meeting: Rendezvous, settings: Preflight, environment: Mapping[str, str]) -> _Verdict:
    reports = meeting.of_all("report", _Report)
    silent = [rank for rank in range(meeting.size) if rank not in reports]
    if silent:
        reason = f"nothing was heard within {settings.patience_s:g} s"
        names = _nodes_of(silent, meeting.size, environment)
        if not names:
            return _Verdict(failure=f"of ranks {', '.join(map(str, silent))} {reason}")
        return _Verdict(tuple(Problem(name, f"of its processes {reason}") for name in names))
    nodes = tuple(reports[rank].node for rank in range(meeting.size))
    own = [Problem(report.node, reason) for report in reports.values() for reason in report.own]
    shared = [Problem(report.node, reason) for report in reports.values() for reason in report.shared]
    if len({problem.node for problem in shared}) == len(set(nodes)):  # all see it: it is no node's fault
        return _Verdict(tuple(own), nodes, failure=shared[0].reason if not own else "")
    return _Verdict((*own, *shared), nodes)


def _compare_clocks(meeting: Rendezvous, nodes: Sequence[str], settings: Preflight) -> _Verdict:
    clocks = meeting.of_all("clock", float)
    lost = [Problem(node, "it fell silent") for rank, node in enumerate(nodes) if rank not in clocks]
    if lost:
        return _Verdict(tuple(lost))
    of_node = {node: clocks[rank] for rank, node in reversed(list(enumerate(nodes)))}
    most = statistics.median_low(of_node.values())
    skews = {node: clock - most for node, clock in of_node.items() if abs(clock - most) > settings.max_skew_s}
    if len(of_node) == 2 and skews:  # which of them is wrong nobody can say
        apart = max(map(abs, skews.values()))
        return _Verdict(
            failure=f"the clocks of {' and '.join(of_node)} are {apart:.1f} s apart; set them, or exclude one"
        )
    return _Verdict(
        tuple(Problem(node, f"its clock is {skew:+.1f} s from the others'") for node, skew in skews.items())
    )


def _measure(decide: _Judge, ranks: Ranks, nodes: Sequence[str], settings: Preflight) -> float:
    """Bus bandwidth of an all-reduce over all processes, in GB/s; raises when it is below the floor."""
    import torch
    import torch.distributed as dist

    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", ranks.local_rank % torch.cuda.device_count()) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    elements = int((settings.message_mb or (256 if on_gpu else 4)) * 1e6 / 4)
    message = torch.ones(elements, dtype=torch.float32, device=device)
    dist.init_process_group(
        "nccl" if on_gpu else "gloo",
        store=dist.PrefixStore("all-reduce", decide.meeting.store),
        rank=ranks.rank,
        world_size=ranks.size,
        timeout=datetime.timedelta(seconds=settings.patience_s),
    )
    try:
        speed, floor = _bus_bandwidth(message, None), settings.min_bandwidth_gb_s
        places = list(dict.fromkeys(nodes))
        verdict = decide("measured", lambda: _judge_speed(speed, floor, places))
        if verdict.find_pair and floor is not None:
            slow = _slow_pairs(message, nodes, floor, decide.meeting)
            decide("pairs", lambda: _blame(places, slow, speed, floor))
        return speed
    finally:
        dist.destroy_process_group()


def _bus_bandwidth(message: torch.Tensor, group: ProcessGroup | None) -> float:
    """GB/s through the slowest link, as NCCL's tests state it: 2 (n - 1) / n times size over time."""
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
    message.fill_(1.0)
    dist.barrier(group=group)
    seconds = statistics.median(once() for _ in range(TIMED))
    size = dist.get_world_size(group)
    return 2 * (size - 1) / size * message.numel() * message.element_size() / seconds / 1e9


def _judge_speed(speed: float, floor: float | None, places: Sequence[str]) -> _Verdict:
    if floor is None or speed >= floor:
        return _Verdict()
    if len(places) > 2:
        return _Verdict(find_pair=True)
    reason = f"all-reduce runs at {speed:.2f} GB/s, below the floor of {floor:g}"
    if len(places) == 1:
        return _Verdict((Problem(places[0], reason),))
    return _Verdict(
        failure=f"{reason}, between {' and '.join(places)}: look at the fabric, or lower min_bandwidth_gb_s"
    )


def _slow_pairs(
    message: torch.Tensor, nodes: Sequence[str], floor: float, meeting: Rendezvous
) -> list[tuple[str, str]]:
    """The neighbours in a ring of nodes between which an all-reduce is below the floor. Pairs take turns."""
    import torch.distributed as dist

    places = list(dict.fromkeys(nodes))
    pairs = [(place, places[(number + 1) % len(places)]) for number, place in enumerate(places)]
    slow = []
    for number, pair in enumerate(pairs):
        ranks = [rank for rank, node in enumerate(nodes) if node in pair]
        group = dist.new_group(ranks)
        if meeting.rank in ranks:
            speed = _bus_bandwidth(message, group)
            if meeting.rank == ranks[0]:
                meeting.say(f"pair {number}", speed)
        if meeting.said(f"pair {number}", float) < floor:  # waits for it
            slow.append(pair)
    return slow


def _blame(places: Sequence[str], slow: Sequence[tuple[str, str]], speed: float, floor: float) -> _Verdict:
    """The nodes that are slow with both their neighbours, unless that is so of all."""
    blamed = [place for place in places if sum(place in pair for pair in slow) == 2]
    if blamed and len(blamed) < len(places):
        reason = f"all-reduce with either neighbour is below the floor of {floor:g} GB/s"
        return _Verdict(tuple(Problem(place, reason) for place in blamed))
    return _Verdict(
        failure=f"all-reduce over {', '.join(places)} runs at {speed:.2f} GB/s, below the floor of {floor:g}, and no "
        "single node is to blame: look at the fabric, or lower min_bandwidth_gb_s"
    )


def _nodes_of(ranks: Sequence[int], size: int, environment: Mapping[str, str]) -> list[str]:
    """The nodes that Slurm put `ranks` on, tasks filling one node after the other; none where Slurm cannot be asked."""
    words = ["scontrol", "show", "hostnames", environment.get("SLURM_STEP_NODELIST", "")]
    try:
        names = subprocess.run(words, capture_output=True, text=True, timeout=20, check=True).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return []
    return list(dict.fromkeys(names[rank * len(names) // size] for rank in ranks)) if names else []
