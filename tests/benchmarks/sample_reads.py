"""Samples per second from tokenised shards, by our readers and Megatron-core's, in one process and through a DataLoader.

    python tests/benchmarks/sample_reads.py
    python tests/benchmarks/sample_reads.py --samples 32768 --json reads.json

Both read the same files: 4 sources of 4 shards with 32 MB of random tokens each, documents of 1,000 tokens on average, samples
of 2,048 tokens, micro-batches of 8, in the order of training. Except for d, all files are read once beforehand, so that they
are in the page cache: this measures look-up and copying, not the disk. Compare rows of the same letter:

a   one process without torch's loader: `PretrainingBatches.rows` in micro-batches, and `BlendedDataset.__getitem__` by sample
b   batches of tensors in the training process: `read_micro_batches` without workers, and torch's DataLoader over Megatron's
    dataset with its default collation
c   the same with 2 workers
d   like a, for the first 32 samples with no token in the page cache, as when the data are larger than memory; and how much was
    read from the disk for each sample, which has 4 kB (the system's read-ahead decides; this needs a disk, not a tmpfs)

Our reader gives one tensor of 2,049 tokens a sample, which training slices into inputs and labels on the device. Megatron's
makes tokens, labels, loss mask and position ids. "b, five tensors" makes these from ours too, so that the work is the same.

A measurement is a fresh process that reads 512 samples to warm up (d: none) and then the given number. Excluded: imports,
opening, building Megatron's index (see blender_start.py) and starting the workers. "Of what 8 H100s read" is against what
training consumes: a model of 1.7B parameters at 40k tokens/s a GPU reads 160 samples a second.
"""

from __future__ import annotations

import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import machine
import megatron_peer as peer
import numpy as np

SEQUENCE, MICRO_BATCH, GLOBAL_BATCH, WARM_UP, COLD = 2048, 8, 512, 512, 32
WEIGHTS = {"source0": 0.4, "source1": 0.3, "source2": 0.2, "source3": 0.1}
SHARDS, SHARD_BYTES = 4, 32 << 20
NEEDED = 160
"""Samples/s that a model of 1.7B parameters reads on 8 H100s: 8 x 40,000 tokens/s / 2,048."""
OURS, THEIRS = "ours", "Megatron"
ROWS: dict[str, tuple[str, str, int | None]] = {
    "ours: rows()": ("a", OURS, None),
    "Megatron: __getitem__": ("a", THEIRS, None),
    "ours: read_micro_batches(), 0 workers": ("b", OURS, 0),
    "ours: read_micro_batches(), 0 workers, five tensors": ("b", "five", 0),
    "Megatron: DataLoader, 0 workers": ("b", THEIRS, 0),
    "ours: read_micro_batches(), 2 workers": ("c", OURS, 2),
    "Megatron: DataLoader, 2 workers": ("c", THEIRS, 2),
    "ours: rows(), cold": ("d", OURS, None),
    "Megatron: __getitem__, cold": ("d", THEIRS, None),
}
"""The letter, the reader and the number of workers (None: no loader) of each row, by its name."""


def timed(reads: Iterator[int], samples: int) -> machine.Task:
    """Samples per second of `reads`, whose items are numbers of samples read."""
    done = 0
    while done < WARM_UP and samples > COLD:
        done += next(reads)
    done, disk, began = 0, from_disk(), time.perf_counter()
    while done < samples:
        done += next(reads)
    seconds = time.perf_counter() - began
    return {"samples_per_s": done / seconds, "disk_bytes": (from_disk() - disk) / done, "peak": machine.memory("VmHWM")}


def from_disk() -> int:
    return int(Path("/proc/self/io").read_text().split("\nread_bytes: ")[1].split("\n")[0])


def ours(folder: str, samples: int, workers: int | None, tensors: int) -> machine.Task:
    from curricula.curriculum.stream.blend import Phase
    from curricula.curriculum.stream.pretraining import PretrainingBatches

    steps = (samples + 2 * WARM_UP) // GLOBAL_BATCH + 8  # a little more, so that workers never run dry
    switch = steps // 5 * GLOBAL_BATCH
    phases = [Phase(switch, {"source0": 0.6, "source1": 0.4}), Phase(steps * GLOBAL_BATCH, WEIGHTS)]
    batches = PretrainingBatches(phases, Path(folder), SEQUENCE, GLOBAL_BATCH, peer.SEED, peer.VOCABULARY)
    if workers is None:
        places = itertools.product(range(steps), range(0, GLOBAL_BATCH, MICRO_BATCH))
        return timed((len(batches.rows(step, at, at + MICRO_BATCH)[0]) for step, at in places), samples)
    import torch

    from curricula.model.runtime.loading import MicroBatches, read_micro_batches

    torch.set_num_threads(1)
    loaded = read_micro_batches(MicroBatches(batches, MICRO_BATCH), 0, steps, workers, torch.device("cpu"))
    positions = torch.arange(SEQUENCE)

    def as_megatron(tokens: torch.Tensor) -> dict[str, torch.Tensor]:
        return {
            "tokens": tokens[:, :-1].contiguous(),
            "labels": tokens[:, 1:].contiguous(),
            "loss_mask": torch.ones(len(tokens), SEQUENCE),
            "position_ids": positions.expand(len(tokens), -1).contiguous(),
            "dataset_id": torch.zeros(len(tokens), dtype=torch.int64),
        }

    if tensors == 5:
        return timed((len(as_megatron(batch.tokens)["tokens"]) for batch in loaded), samples)
    return timed((len(batch.tokens) for batch in loaded), samples)


def megatron(folder: str, samples: int, workers: int | None, tensors: int) -> machine.Task:
    peer.import_megatron()
    import torch
    from torch.utils.data import DataLoader

    torch.set_num_threads(1)
    prefixes = [str(Path(folder, name, f"{shard:05d}")) for name in WEIGHTS for shard in range(SHARDS)]
    weights = [weight / SHARDS for weight in WEIGHTS.values() for _ in range(SHARDS)]
    count = samples + 2 * WARM_UP + 8 * GLOBAL_BATCH
    with tempfile.TemporaryDirectory(dir=folder) as cache:
        dataset = peer.blended(prefixes, weights, count, SEQUENCE, Path(cache))
        if workers is None:
            return timed((1 for number in range(count) if dataset[number]["tokens"].numel() == SEQUENCE), samples)
        batches = [list(range(start, start + MICRO_BATCH)) for start in range(0, count - MICRO_BATCH + 1, MICRO_BATCH)]
        context = "fork" if workers else None
        loader = DataLoader(dataset, batch_sampler=batches, num_workers=workers, multiprocessing_context=context)
        return timed((len(batch["tokens"]) for batch in loader), samples)


def write_sources(folder: Path) -> None:
    random = np.random.default_rng(peer.SEED)
    for name in WEIGHTS:
        (folder / name).mkdir()
        for shard in range(SHARDS):
            prefix, tokens = folder / name / f"{shard:05d}", SHARD_BYTES // 2
            random.integers(3, peer.VOCABULARY, tokens, dtype="<u2").tofile(prefix.with_suffix(".bin"))
            peer.write_index(prefix, peer.document_lengths(tokens, int(random.integers(2**31))))
            peer.write_manifest(prefix, SHARDS, tokens)


def page_cache(folder: Path, filled: bool) -> None:
    """Bring every token into the page cache, or remove all from it."""
    for path in folder.rglob("*.bin"):
        with open(path, "rb") as file:
            if filled:
                file.read()
            else:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main() -> None:
    parser = machine.parser(__doc__)
    parser.add_argument("--samples", type=int, default=32768, help="samples read in a measurement")
    args = parser.parse_args()
    capacity = SHARDS * SHARD_BYTES // 2 // SEQUENCE / WEIGHTS["source0"]
    if args.samples > 0.7 * capacity:
        parser.error(f"--samples: at most {0.7 * capacity:.0f}, within one epoch of the largest source")
    with tempfile.TemporaryDirectory(dir=args.folder, prefix="sample-reads-") as base:
        write_sources(Path(base))

        def measure(name: str) -> machine.Task:
            letter, who, workers = ROWS[name]
            page_cache(Path(base), filled=letter != "d")
            task: dict[str, Any] = {"folder": base, "samples": COLD if letter == "d" else args.samples, "workers": workers}
            task |= {"measure": THEIRS if who == THEIRS else OURS, "tensors": 5 if who == "five" else 1}
            return machine.fresh(task)

        runs = machine.in_turns(list(ROWS), args.repeats, measure)
    rates = {name: [run["samples_per_s"] for run in taken] for name, taken in runs.items()}
    middle = {name: statistics.median(values) for name, values in rates.items()}
    table = machine.table(
        f"Samples of {SEQUENCE} tokens a second, page cache warm but for d (target: 16,000 in one process)",
        "",
        "reader",
        "samples/s",
        "of Megatron's",
        "of what 8 H100s read",
        "from disk, kB a sample",
    )
    for name, (letter, _, _) in ROWS.items():
        alike = next(middle[other] for other, row in ROWS.items() if row[0] == letter and row[1] == THEIRS)
        cells = [machine.shown(rates[name], "{:,.0f}"), f"{middle[name] / alike:.2f}x", f"{middle[name] / NEEDED:.1f}x"]
        cells.append(machine.shown([run["disk_bytes"] / 1e3 for run in runs[name]], "{:,.0f}") if letter == "d" else "")
        table.add_row(letter, name, *cells)
    machine.report(args, [table], [], runs)


if __name__ == "__main__" and not machine.serve_child({OURS: ours, THEIRS: megatron}):
    main()
