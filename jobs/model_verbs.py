"""The verbs about one model: export, import, eval."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from curriculum.errors import UsageError
from curriculum.sources import local_root


def export(words: argparse.Namespace) -> int:
    from jobs.run import provenance
    from jobs.stages import latest
    from model.convert import export_hf

    folder = words.checkpoint
    export_hf(latest(folder) if (folder / "latest").exists() else folder, words.out, words.tokenizer, provenance())
    print(f"Hugging Face model: {words.out}")
    return 0


def import_(words: argparse.Namespace) -> int:
    from jobs.stages import model_source
    from model.convert import import_hf

    print(f"Megatron checkpoint: {import_hf(model_source(words.source), words.out)}")
    return 0


def evaluate(words: argparse.Namespace) -> int:
    """Rows of each decoder go to OUT/attacks-DECODER.jsonl, so that the same command resumes."""
    from eval.cells import attack_cells, row_id
    from eval.config import Evaluation, SafeBeam, TopK
    from eval.element import run_element

    decoders = words.decoder.split(",")
    if unknown := sorted(set(decoders) - {"topk", "safebeam"}):
        raise UsageError(f"--decoder {','.join(unknown)}: not known; choose from topk, safebeam")
    benchmarks = words.benchmark.split(",")
    try:
        config = msgspec.convert(
            {
                "benchmarks": benchmarks,
                "base_benchmark": benchmarks[0],
                "judge": words.judge,
                "prompts_per_benchmark": words.prompts,
                "topk": TopK(max_new_tokens=words.max_new_tokens),
                "safebeam": SafeBeam(max_new_tokens=words.max_new_tokens),
            },
            Evaluation,
        )
    except (msgspec.ValidationError, ValueError) as error:
        raise UsageError(f"eval: {error}") from None
    if words.kind == "base" and len(benchmarks) > 1:
        raise UsageError(
            f"--benchmark {words.benchmark}: base models take one benchmark of beginnings, such as jb_completions"
        )
    root = words.data or local_root()
    out = words.out or Path("evaluations") / "-".join(words.model.resolve().parts[-3:])
    cells = []
    with Bar(console=Console(stderr=True)) as bar:
        for decoder in decoders:
            task = bar.add_task(decoder, total=None)

            def report(done: int, total: int, task: Any = task, **_: Any) -> None:
                bar.update(task, completed=done, total=total)

            rows: Any = run_element(
                f"attacks-{decoder}",
                words.model,
                words.kind,
                config,
                data_root=root,
                world_root=root if words.judge == "world" else None,
                out=out,
                seed=words.seed,
                progress=report,
            )
            cells += attack_cells(rows, words.model.name, words.kind, set(map(row_id, rows)))
    if words.json:
        print(json.dumps(msgspec.to_builtins(cells), indent=1))
        return 0
    _print_cells(cells)
    print(f"Rows: {out}")
    return 0


def _print_cells(cells: list[Any]) -> None:
    judges = {cell.judges for cell in cells}
    table = Table(title=Text(f"Attack success rate by {', '.join(sorted(judges))}"), title_justify="left")
    for column in ("decoder", "benchmark", "prompts", "rate", "95% interval", "std over samples", "unparsed"):
        table.add_column(column, justify="left" if column in ("decoder", "benchmark") else "right")
    for cell in cells:
        rate = "–" if cell.rate is None else f"{cell.rate:.1%}"
        interval = "–" if cell.rate is None else f"{cell.low:.1%} to {cell.high:.1%}"
        std = "–" if cell.std is None else f"{cell.std:.1%}"
        table.add_row(cell.decoder, cell.benchmark, str(cell.prompts), rate, interval, std, str(cell.unparsed))
    Console().print(table)
