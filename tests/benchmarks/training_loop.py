"""What the training loop adds to bare steps on a CPU, and how long saving a checkpoint holds training up.

    python tests/benchmarks/training_loop.py
    python tests/benchmarks/training_loop.py --repeats 3 --steps 40 --model tiny --json loop.json

Loop: the same network and optimizer alternate between a step of `model/train.py` with everything around it (reading the batch,
Megatron-core's schedule, metrics line, TensorBoard, watchdog, checks for signals and saves) and a bare one: forward, backward
and optimizer step on a batch in memory. The overhead is the ratio of the medians, of CPU time (which other work on the
machine hardly affects) and of wall time. The models are the demo's (8 sequences of 128 tokens) and SmolLM2-135M (1 of 128).

Save: the whole state of a model with its optimizer, 12 bytes a parameter and the weights, written to `--folder` in four ways.
A stall is the time in which no step can begin; durable is the time until the checkpoint is complete, synced and pointed at.
Training steps continue during our background save and Megatron-core's; the table shows how much they slow down.

ours                 `writer.Saver`: planned, forked, written and hashed in the child, then verified and published
ours, waited for     the same with nothing done meanwhile
Megatron-core        `dist_checkpointing.save` with its own strategy, waited for; no hashes
Megatron-core, async the same in the background by its `AsyncCallsQueue`

Each measurement is a fresh process; one save precedes it as a warm-up (it starts Megatron-core's queue server).
"""

from __future__ import annotations

import gc
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import machine
import numpy as np
import torch

from curricula.curriculum.stream.pretraining import Rows
from curricula.model.checkpoints import checkpoint
from curricula.model.checkpoints.folder import CheckpointInfo, step_folder
from curricula.model.config import PRESETS, TrackingConfig, TrainConfig, TrainJob
from curricula.model.megatron import dist_checkpointing
from curricula.model.runtime.distributed import started
from curricula.model.runtime.stopping import Watchdog
from curricula.model.train import Trainer
from curricula.progress import silent

SEQUENCE, WARM_UP = 128, 5
BATCH = {"tiny": 8, "smollm2-135m": 1}
SAVE_EVERY_S = 1800


class InMemory:
    """The same random batch at every step."""

    sequence_length, total_steps = SEQUENCE, 10**6

    def __init__(self, global_batch: int, vocabulary: int) -> None:
        self.global_batch = global_batch
        random = np.random.default_rng(0)
        self.tokens = random.integers(vocabulary, size=(global_batch, SEQUENCE + 1), dtype=np.int64)

    def rows(self, step: int, start: int, stop: int) -> Rows:
        return Rows(self.tokens[start:stop])

    def sample_ids(self, start: int, stop: int) -> list[tuple[str, int, int]]:
        return [("memory", 0, sample) for sample in range(start, stop)]

    def fingerprint(self, step: int) -> dict[str, Any]:
        return {}

    def describe(self, step: int) -> dict[str, Any]:
        return {"phase": 0, "mix": {"memory": 1.0}}


def with_trainer(name: str, folder: str, action: Callable[[Trainer, InMemory], machine.Task]) -> machine.Task:
    """What `action` measures on a trainer of the model `name`, ready to train."""
    torch.set_num_threads(1)
    model, batches = PRESETS[name], InMemory(BATCH[name], PRESETS[name].vocabulary)
    job = TrainJob(
        out=Path(folder) / "run",
        model=model,
        config=TrainConfig(save_interval_steps=10**6, save_interval_minutes=None),
        tracking=TrackingConfig(),
    )
    watchdog = Watchdog(job.execution.hang_minutes)
    with watchdog.on_duty(), started() as parallel:
        trainer = Trainer(job, batches, {}, parallel, [], watchdog)
        gc.collect()
        gc.freeze()  # Megatron-core's own background save calls the collector
        try:
            return action(trainer, batches)
        finally:
            trainer.close()


def bare_step(trainer: Trainer, tokens: torch.Tensor) -> None:
    """Forward, backward and optimizer step of the trainer's network, without its loop."""
    trainer.wrapped.zero_grad_buffer()
    trainer.optimizer.zero_grad()
    with trainer.parallel.cuda_names():
        losses = trainer.wrapped(tokens[:, :-1], labels=tokens[:, 1:])
        (losses.sum() / losses.numel()).backward()
        trainer.wrapped.finish_grad_sync()
        trainer.optimizer.step()


def loop(model: str, folder: str, steps: int) -> machine.Task:
    def measure(trainer: Trainer, batches: InMemory) -> machine.Task:
        tokens = torch.from_numpy(batches.tokens)
        found: dict[str, list[float]] = {"ours_cpu": [], "ours_wall": [], "bare_cpu": [], "bare_wall": []}
        for number in range(steps + WARM_UP):
            for who, step in (("ours", lambda: trainer.advance(silent)), ("bare", lambda: bare_step(trainer, tokens))):
                cpu, wall = time.process_time(), time.perf_counter()
                step()
                if number >= WARM_UP:
                    found[f"{who}_cpu"].append(time.process_time() - cpu)
                    found[f"{who}_wall"].append(time.perf_counter() - wall)
        return {name: statistics.median(values) for name, values in found.items()}

    return with_trainer(model, folder, measure)


def save(model: str, folder: str, way: str) -> machine.Task:
    def measure(trainer: Trainer, batches: InMemory) -> machine.Task:
        tokens = torch.from_numpy(batches.tokens)
        for _ in range(2):
            bare_step(trainer, tokens)
        alone = [timed(lambda: bare_step(trainer, tokens)) for _ in range(5)]
        SAVERS[way](trainer, 1, lambda: None)
        meanwhile: list[float] = []
        stall, durable = SAVERS[way](trainer, 2, lambda: meanwhile.append(timed(lambda: bare_step(trainer, tokens))))
        written = step_folder(trainer.checkpoints, 2)
        return {
            "stall_s": stall,
            "durable_s": durable,
            "bytes": machine.folder_bytes(written),
            "step_s": statistics.median(alone),
            "step_beside_s": statistics.median(meanwhile) if meanwhile else None,
        }

    return with_trainer(model, folder, measure)


def timed(action: Callable[[], Any]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def start_save(trainer: Trainer, number: int) -> None:
    info = CheckpointInfo(
        step=number, consumed_samples=0, consumed_tokens=0, model=trainer.job.model, precision="float32", full=True
    )
    trainer.saver.start(step_folder(trainer.checkpoints, number), info)


def ours(trainer: Trainer, number: int, meanwhile: Callable[[], None]) -> tuple[float, float]:
    """Seconds that training stood still, and until the checkpoint was durable."""
    began = time.perf_counter()
    stall = timed(lambda: start_save(trainer, number))
    while trainer.saver.is_writing:
        meanwhile()
    stall += timed(trainer.saver.finish)
    return stall, time.perf_counter() - began


def ours_waited_for(trainer: Trainer, number: int, meanwhile: Callable[[], None]) -> tuple[float, float]:
    def whole() -> None:
        start_save(trainer, number)
        trainer.saver.finish()

    seconds = timed(whole)
    return seconds, seconds


def megatron(trainer: Trainer, number: int, meanwhile: Callable[[], None]) -> tuple[float, float]:
    seconds = timed(lambda: megatron_request(trainer, number, in_background=False))
    return seconds, seconds


def megatron_async(trainer: Trainer, number: int, meanwhile: Callable[[], None]) -> tuple[float, float]:
    from megatron.core.dist_checkpointing.strategies.async_utils import AsyncCallsQueue

    began = time.perf_counter()
    queue = AsyncCallsQueue()

    def schedule() -> None:
        request = megatron_request(trainer, number, in_background=True)
        with trainer.parallel.cuda_names():
            queue.schedule_async_request(request)

    def finish() -> None:
        with trainer.parallel.cuda_names():
            queue.maybe_finalize_async_calls()

    stall = timed(schedule)
    while queue.get_num_unfinalized_calls():
        meanwhile()
        stall += timed(finish)
    return stall, time.perf_counter() - began


def megatron_request(trainer: Trainer, number: int, in_background: bool) -> Any:
    from megatron.core.dist_checkpointing.strategies.torch import TorchDistSaveShardedStrategy

    folder = step_folder(trainer.checkpoints, number)
    folder.mkdir(parents=True)
    with trainer.parallel.cuda_names():
        layout = dict(checkpoint.LAYOUT)
        network = trainer.wrapped.module.sharded_state_dict(metadata=layout)
        optimizer = trainer.optimizer.sharded_state_dict(network, is_loading=False, metadata=layout)
        return dist_checkpointing.save(
            {"model": network, "optimizer": optimizer},
            str(folder),
            sharded_strategy=TorchDistSaveShardedStrategy("torch_dist", 1),
            async_sharded_save=in_background,
            content_metadata=dict(checkpoint.LAYOUT),
        )


SAVERS = {"ours": ours, "ours, waited for": ours_waited_for, "Megatron-core": megatron, "Megatron-core, async": megatron_async}


def main() -> None:
    parser = machine.parser(__doc__)
    parser.add_argument("--steps", type=int, default=60, help="steps of each kind in a measurement of the loop")
    parser.add_argument("--model", default="smollm2-135m", choices=list(BATCH), help="whose state is saved")
    args = parser.parse_args()

    def fresh(**task: Any) -> machine.Task:
        with tempfile.TemporaryDirectory(dir=args.folder, prefix="training-loop-") as folder:
            return machine.fresh({**task, "folder": folder})

    steps = {"tiny": args.steps, "smollm2-135m": max(4, args.steps // 10)}
    loops = machine.in_turns(list(BATCH), args.repeats, lambda name: fresh(measure="loop", model=name, steps=steps[name]))
    saves = machine.in_turns(list(SAVERS), args.repeats, lambda way: fresh(measure="save", model=args.model, way=way))
    report(args, loops, saves)


def report(args: Any, loops: dict[str, Any], saves: dict[str, Any]) -> None:
    overhead = machine.table(
        "A step of the loop against a bare one (target: less than 5% more)",
        "model", "bare, ms CPU", "ours, ms CPU", "overhead, CPU", "overhead, wall",
    )  # fmt: skip
    for name, runs in loops.items():
        cpu, wall = ([100 * (run[f"ours_{clock}"] / run[f"bare_{clock}"] - 1) for run in runs] for clock in ("cpu", "wall"))
        bare, ours = ([1e3 * run[f"{who}_cpu"] for run in runs] for who in ("bare", "ours"))
        cells = [machine.shown(bare), machine.shown(ours), machine.shown(cpu, "{:.1f}", "%")]
        overhead.add_row(name, *cells, machine.shown(wall, "{:.1f}", "%"))
    stalls = machine.table(
        f"Saving the state of {args.model}, {saves['ours'][0]['bytes'] / 1e9:.2f} GB",
        "way", "stall, s", "of Megatron-core's", "durable after, s", "steps beside it", f"stall every {SAVE_EVERY_S // 60} min",
    )  # fmt: skip
    theirs = statistics.median(run["stall_s"] for run in saves["Megatron-core"])
    for way, runs in saves.items():
        stall = [run["stall_s"] for run in runs]
        median = statistics.median(stall)
        slower = [run["step_beside_s"] / run["step_s"] for run in runs if run["step_beside_s"]]
        stalls.add_row(
            way, machine.shown(stall), f"{median / theirs:.2f}x", machine.shown([run["durable_s"] for run in runs]),
            machine.shown(slower, "{:.2f}", "x") if slower else "", f"{100 * median / SAVE_EVERY_S:.3f}%",
        )  # fmt: skip
    machine.report(args, [overhead, stalls], [], {"loop": loops, "save": saves})


if __name__ == "__main__" and not machine.serve_child({"loop": loop, "save": save}):
    main()
