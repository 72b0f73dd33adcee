"""Cold start: from nothing to the first batch of a pretraining run, ours and Megatron-core's, in seconds and bytes.

    python tests/benchmarks/blender_start.py
    python tests/benchmarks/blender_start.py --samples 1M,10M,100M --json start.json

First table: ours at the paper's scale. 600B tokens, 10 sources of 100 shards, global batch 1,024 of 2,048 tokens, two phases
with the switch at 20%; from `PretrainingBatches(...)` to its first micro-batch of 8 rows, and to all 1,024 rows of the global
batch (more than a data-parallel rank ever reads of it), at step 0 and at a random late step, as after a resume. The files are
sparse but have their true sizes: each of the 1,000 shards holds 600M tokens (1.2 GB) in 600,000 documents (index of 12 MB). Our
reader reads an index's header and last entries, not its lengths. Sparse tokens cost no disk access, only the kernel's pages.

Second table: ours and Megatron-core's `BlendedMegatronDatasetBuilder` over the same files, 10 sources of one shard each
(Megatron's best case: its blending takes time in proportion to samples times shards) with real indices, at several
numbers of samples. Megatron is measured twice: "cold" builds the index files, as a run's first start does, "warm" finds
them in its cache, as a resume does. Each time ends when 8 samples have been read.

Each measurement is a fresh process. Excluded from the seconds: Python's imports (given beside them), and for Megatron making
the process group. "Peak" is of the whole process, imports included; "added" is the peak less what was in use after the
imports. "Open files" are those at the end: many systems allow a process 1,024 (`ulimit -n`). Index files are in the page
cache; on a network file system, opening files takes longer than here.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import machine
import megatron_peer as peer
import numpy as np

SEQUENCE, GLOBAL_BATCH, MICRO_BATCH, SOURCES, SHARDS, TOKENS = 2048, 1024, 8, 10, 100, 600_000_000_000
SWITCH = 0.2
NEEDED = 120
"""Bytes of memory and of disk that Megatron needs for a sample, with a margin."""
UNITS = {"k": 10**3, "M": 10**6, "G": 10**9}


def measured(began: float, imported: float, baseline: int, import_peak: int, parts: dict[str, float]) -> machine.Task:
    peak = max(import_peak, machine.memory("VmHWM"))
    files = len(os.listdir("/proc/self/fd"))
    return {"import_s": imported - began, **parts, "peak": peak, "added": machine.memory("VmHWM") - baseline, "files": files}


def ours(folder: str, samples: int, late: int | None, rows: int) -> machine.Task:
    """Construct, read a micro-batch and then `rows` rows: of step 0, or of one in the last tenth drawn by the seed `late`."""
    began = time.perf_counter()
    from curricula.curriculum.stream.blend import Phase
    from curricula.curriculum.stream.pretraining import PretrainingBatches

    imported, import_peak, baseline = time.perf_counter(), machine.memory("VmHWM"), machine.memory("VmRSS")
    machine.forget_peak()
    steps = max(2, samples // GLOBAL_BATCH)
    names = [f"source{number}" for number in range(SOURCES)]
    safe = {name: weight for name, weight in zip(names, (0.35, 0.2, 0.15, 0.1, 0.1, 0.05, 0.03, 0.02))}
    mixed = {**{name: weight * 0.7 for name, weight in safe.items()}, names[8]: 0.2, names[9]: 0.1}
    phases = [Phase(max(1, round(steps * SWITCH)) * GLOBAL_BATCH, safe), Phase(steps * GLOBAL_BATCH, mixed)]
    start = time.perf_counter()
    batches = PretrainingBatches(phases, Path(folder), SEQUENCE, GLOBAL_BATCH, peer.SEED, peer.VOCABULARY)
    made = time.perf_counter()
    step = 0 if late is None else random.Random(late).randrange(int(steps * 0.9), steps)
    batches.rows(step, 0, MICRO_BATCH)
    first = time.perf_counter()
    if rows > MICRO_BATCH:
        tokens = batches.rows(step, 0, rows).tokens
        assert tokens.shape == (rows, SEQUENCE + 1)
    parts = {"open_s": made - start, "first_s": first - made, "s": first - start, "all_s": time.perf_counter() - start}
    return measured(began, imported, baseline, import_peak, parts)


def megatron(folder: str, samples: int, cache: str) -> machine.Task:
    """Build the blended dataset, or load it if its cache is there, and read a micro-batch."""
    began = time.perf_counter()
    peer.import_megatron()
    imported, import_peak, baseline = time.perf_counter(), machine.memory("VmHWM"), machine.memory("VmRSS")
    machine.forget_peak()
    prefixes = [str(Path(folder, f"source{number}", "00000")) for number in range(SOURCES)]
    start = time.perf_counter()
    dataset = peer.blended(prefixes, [1 / SOURCES] * SOURCES, samples, SEQUENCE, Path(cache))
    made = time.perf_counter()
    read = [dataset[number] for number in range(MICRO_BATCH)]
    end = time.perf_counter()
    assert len(dataset) >= samples and read[0]["tokens"].shape == (SEQUENCE,)
    parts = {"open_s": made - start, "first_s": end - made, "s": end - start}
    return measured(began, imported, baseline, import_peak, parts)


def sparse_bin(prefix: Path, tokens: int) -> None:
    with open(prefix.with_suffix(".bin"), "wb") as file:
        file.truncate(2 * tokens)


def write_sparse_source(folder: Path, shards: int, tokens: int) -> None:
    """Shards of `tokens` tokens each, of true size on paper and a few blocks on disk; documents of the mean length."""
    folder.mkdir(parents=True)
    count = tokens // peer.MEAN_DOCUMENT
    for number in range(shards):
        prefix = folder / f"{number:05d}"
        sparse_bin(prefix, tokens)
        with open(prefix.with_suffix(".idx"), "wb") as file:
            file.write(peer.HEADER.pack(peer.MAGIC, 1, peer.UINT16, count, count + 1))
            file.seek(peer.HEADER.size + 4 * (count - 1))
            file.write(np.array(peer.MEAN_DOCUMENT, "<i4").tobytes())
            file.seek(peer.HEADER.size + 12 * count - 8)
            file.write(np.array(2 * peer.MEAN_DOCUMENT * (count - 1), "<i8").tobytes())
            file.seek(peer.HEADER.size + 12 * count + 8 * count)
            file.write(np.array(count, "<i8").tobytes())
        peer.write_manifest(prefix, shards, tokens)


def write_indexed_source(folder: Path, tokens: int, seed: int) -> None:
    """One shard with a complete index and sparse tokens."""
    folder.mkdir(parents=True)
    prefix = folder / "00000"
    peer.write_index(prefix, peer.document_lengths(tokens, seed))
    sparse_bin(prefix, tokens)
    peer.write_manifest(prefix, 1, tokens)


def paper_scale(base: Path, repeats: int, rows: dict[str, Any]) -> Any:
    folder, samples = base / "paper", TOKENS // SEQUENCE
    for number in range(SOURCES):
        write_sparse_source(folder / f"source{number}", SHARDS, TOKENS // SOURCES // SHARDS)
    apparent = machine.folder_bytes(folder)
    on_disk = sum(path.stat().st_blocks * 512 for path in folder.rglob("*"))
    machine.progress(
        f"{SOURCES} sources of {SHARDS} shards: {apparent / 1e9:,.0f} GB, of which on disk {on_disk / 1e6:,.0f} MB"
    )
    seeds = itertools.count()

    def measure(name: str) -> machine.Task:
        late = None if name == "first step" else next(seeds)
        return machine.fresh(dict(measure="ours", folder=str(folder), samples=samples, late=late, rows=GLOBAL_BATCH))

    runs = machine.in_turns(["first step", "random late step"], repeats, measure)
    shutil.rmtree(folder)
    rows["paper"] = runs
    title = f"Ours at the paper's scale: 600B tokens, {SOURCES} x {SHARDS} shards (target: under 2 s and 200 MB)"
    table = machine.table(
        title, "start at", "open s", "first 8 rows s", "together s", "all 1,024 rows s", "imports s", "peak MB", "added MB"
    )
    for name, taken in runs.items():
        table.add_row(
            name,
            *cells(taken, ("open_s", "first_s", "s", "all_s", "import_s")),
            *megabytes(taken),
            machine.shown([run["files"] for run in taken], "{:,.0f}"),
        )
    return table


def cells(taken: list[machine.Task], keys: tuple[str, ...]) -> list[str]:
    return [machine.shown([run[key] for run in taken], "{:.3g}") for key in keys]


def megabytes(taken: list[machine.Task]) -> list[str]:
    return [machine.shown([run[key] / 1e6 for run in taken], "{:,.0f}") for key in ("peak", "added")]


def curve(base: Path, sizes: list[int], repeats: int, rows: dict[str, Any], notes: list[str]) -> Any:
    title = f"The same sources by both: {SOURCES} x 1 shard, sequence {SEQUENCE}"
    table = machine.table(title, "samples", "who", "seconds", "ours is faster", "peak MB", "added MB", "cache files MB")
    per_sample: list[float] = []
    folder, cache = base / "curve", base / "cache"
    for samples in sizes:
        disk, ram = shutil.disk_usage(base).free, machine.free_memory()
        if min(disk, ram) < NEEDED * samples:
            notes.append(
                f"SKIPPED {samples:,} samples: they need {NEEDED * samples / 1e9:.0f} GB of memory and of disk, free are "
                f"{ram / 1e9:.0f} and {disk / 1e9:.0f}"
            )
            continue
        machine.progress(f"{samples:,} samples: writing indices of {samples * SEQUENCE / peer.MEAN_DOCUMENT:,.0f} documents")
        for number in range(SOURCES):
            write_indexed_source(folder / f"source{number}", int(samples / SOURCES * 1.02 + 2) * SEQUENCE, number)
        common = dict(folder=str(folder), samples=samples)

        def measure(name: str, common: machine.Task = common) -> machine.Task:
            if name == "ours":
                return machine.fresh({"measure": "ours", **common, "late": None, "rows": MICRO_BATCH})
            if name == "Megatron cold":  # its cache serves the warm start, which comes next or first in the next turn
                shutil.rmtree(cache, ignore_errors=True)
            return machine.fresh({"measure": "megatron", **common, "cache": str(cache)})

        runs = machine.in_turns(["ours", "Megatron cold", "Megatron warm"], repeats, measure)
        cached = machine.folder_bytes(cache)
        shutil.rmtree(folder)
        shutil.rmtree(cache)
        fast = statistics.median(run["s"] for run in runs["ours"])
        for name, taken in runs.items():
            seconds = statistics.median(run["s"] for run in taken)
            files = "0" if name == "ours" else f"{cached / 1e6:,.0f}"
            ratio = "" if name == "ours" else f"{seconds / fast:,.1f}x"
            table.add_row(f"{samples:,}", name, *cells(taken, ("s",)), ratio, *megabytes(taken), files)
        rows[str(samples)] = {**runs, "cache_bytes": cached}
        cold = statistics.median(run["s"] for run in runs["Megatron cold"])
        per_sample = [cold / samples, cached / samples]
    if per_sample:
        all_ = TOKENS // SEQUENCE
        notes.append(
            f"EXTRAPOLATED, not measured: at the largest size's rates, Megatron's first start of the paper's {all_:,} samples "
            f"takes {per_sample[0] * all_:,.0f} s and {per_sample[1] * all_ / 1e9:,.1f} GB of cache files, for one blend."
        )
    return table


def number(text: str) -> int:
    return int(float(text[:-1]) * UNITS[text[-1]]) if text[-1] in UNITS else int(text)


def main() -> None:
    parser = machine.parser(__doc__)
    parser.add_argument("--samples", default="1M,10M", help="sizes of the comparison, such as 1M,10M,100M")
    args = parser.parse_args()
    rows: dict[str, Any] = {}
    notes: list[str] = []
    with tempfile.TemporaryDirectory(dir=args.folder, prefix="blender-start-") as base:
        tables = [paper_scale(Path(base), args.repeats, rows)]
        tables.append(curve(Path(base), [number(size) for size in args.samples.split(",")], args.repeats, rows, notes))
    machine.report(args, tables, notes, rows)


if __name__ == "__main__" and not machine.serve_child({"ours": ours, "megatron": megatron}):
    main()
