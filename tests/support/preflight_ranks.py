"""Preflights of several processes on this machine, each playing a node of its own."""

from __future__ import annotations

import os
import re
import time
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import patch

from forked import forkserver, started

from curricula.errors import UserError
from curricula.jobs.graph import plan_study
from curricula.jobs.preflight.preflight import Preflight, UnfitNodes, preflight
from curricula.jobs.run import Run
from curricula.jobs.stages import STAGES, Work
from curricula.model.runtime.distributed import Ranks


def preflights(
    root: Path, port: int, nodes: list[str], settings: Preflight, *, job: str = "pretrain-20", label: str = "full-20",
    absent: tuple[int, ...] = (), skew_s: dict[int, float] | None = None, slow: tuple[str, ...] = (),
    blind: tuple[str, ...] = (), path: str = "", like_nccl: bool = False,
) -> list[tuple]:  # fmt: skip
    """The outcome in each process: ("fit",), ("unfit", nodes, sentence) or ("error", sentence)."""
    answers = forkserver().Queue()
    children = []
    for rank, node in enumerate(nodes):
        if rank in absent:
            continue
        ranks = Ranks(rank, len(nodes), nodes[:rank].count(node), f"127.0.0.1:{port}")
        environment = {
            "SLURM_STEP_NODELIST": ",".join(nodes),
            "SLURMD_NODENAME": node,
            "SLURM_GPUS_ON_NODE": "2",
            "SLURM_JOB_ID": "70",
        }
        arguments = (
            root,
            job,
            label,
            ranks,
            settings,
            environment,
            (skew_s or {}).get(rank, 0.0),
            node in slow,
            node in blind,
            path,
            like_nccl,
        )
        children.append(started(_rank, answers, *arguments))
    outcomes = dict(answers.get(timeout=120) for _ in children)
    for child in children:
        child.join(timeout=60)
    assert all(child.exitcode == 0 for child in children)
    return [outcomes[rank] for rank in sorted(outcomes)]


def _rank(answers, root, job, label, ranks, settings, environment, skew_s, is_slow, is_blind, path, like_nccl) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    os.environ.update(environment, PATH=path or os.environ["PATH"])
    run = Run.open(root)
    plan = plan_study(run.study)
    work = Work(run, plan, *plan.find(job, label))
    true_time, true_reduce, clock_s = time.time, dist.all_reduce, [0.0]

    def timed_reduce(tensor, group=None):
        """All wait for the slowest, by a clock that a busy machine does not move."""
        true_reduce(tensor, group=group)
        slowest_s = torch.tensor(0.4 if is_slow else 0.001)
        true_reduce(slowest_s, dist.ReduceOp.MAX, group=group)
        clock_s[0] += slowest_s.item()

    sight = (
        patch("curricula.jobs.preflight.preflight.reach_problems", lambda *_: ["the data cannot be seen"])
        if is_blind
        else nullcontext()
    )
    hanging = patch.multiple(
        "torch.distributed", get_backend=lambda *_: "nccl", destroy_process_group=lambda *_: time.sleep(3600)
    )  # where one process failed, the end of NCCL's group waits for ever
    with (
        sight,
        hanging if like_nccl else nullcontext(),
        patch("curricula.jobs.preflight.preflight.time.time", lambda: true_time() + skew_s),
        patch("curricula.jobs.preflight.preflight.time.perf_counter", lambda: clock_s[0]),
        patch("torch.distributed.all_reduce", timed_reduce),
    ):
        try:
            preflight(run, lambda: STAGES[work.job.stage].inputs(work), ranks, settings)
            outcome: tuple = ("fit",)
        except UnfitNodes as error:
            outcome = ("unfit", tuple(dict.fromkeys(re.findall(r"node (\w+): ", str(error)))), str(error))
        except UserError as error:
            outcome = ("error", str(error))
    answers.put((ranks.rank, outcome))
