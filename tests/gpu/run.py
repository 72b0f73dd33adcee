"""Runs all that needs a GPU, part by part. A part takes up to ten minutes on one card, without a network.

    python tests/gpu/run.py engine --out RESULTS                       # the first part; `--list` names all
    python tests/gpu/run.py step-bf16 --out RESULTS --text FOLDER --litgpt-python ENVIRONMENT/bin/python
    python tests/gpu/run.py decoding --out RESULTS --tokenizer FOLDER  # needs CURRICULA_DATA for the prompts
    python tests/gpu/run.py engine --out RESULTS --smoke               # the program itself, without a card

A part is a list of commands, which run tests of tests/gpu and programs of tests/benchmarks. It writes RESULTS/PART.json. The
files of its commands are in RESULTS/PART/, with their output in output-N.txt. RESULTS/table.md shows all parts that have run.
Both are rewritten after each command, so they hold what was measured even if the card is taken away. What is not installed
(Transformer Engine, LitGPT, vLLM) is skipped and named. If there is no card, or a package that the part needs is missing or
broken, it says so in a sentence and runs nothing. The exit code is 0 if every command of the part ends with 0.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TESTS, BENCHMARKS = ROOT / "tests" / "gpu", ROOT / "tests" / "benchmarks"
LIMIT_S = 560.0
"""Time limit of a part. A borrowed card is often lent for ten minutes at a time, and stopping a command takes some seconds."""
GRACE_S = 10.0
"""Time between the request to end and the kill."""
SHOWN_LINES = 40
"""Number of a command's last output lines that the JSON holds."""
PROBE = """
import importlib, sys, torch
smoke, *modules = sys.argv[1:]
if torch.cuda.is_available():
    device = f"{torch.cuda.get_device_name()}; torch {torch.__version__}, CUDA {torch.version.cuda}"
elif smoke:
    device = f"no CUDA device; torch {torch.__version__}"
else:
    sys.exit(f"torch {torch.__version__} sees no CUDA device; --smoke tries the program without one")
for module in modules:
    importlib.import_module(module)
print(device)
"""
"""Names the device and imports the modules that a part needs. A process of its own, which keeps none of the card's memory."""


@dataclass(frozen=True)
class Part:
    title: str
    tests: str = ""
    """Which tests of tests/gpu to run, as an expression for pytest's -m."""
    variants: str = ""
    """Which rows of tests/benchmarks/training_step.py to run, by parts of their names."""
    steps: int = 10
    """Number of steps whose losses each variant reports."""
    sweep: bool = False
    decoders: str = ""
    """Which tables of tests/benchmarks/decoding.py to run; tests/benchmarks/gcg.py follows, on the same model."""


PARTS = {
    "engine": Part("torch backend, kernels, packed rows, a killed run, preflight", tests="gpu and not te"),
    "step-bf16": Part("a step in bf16, compared with LitGPT", variants="LitGPT,ours torch bf16"),
    "te": Part("Transformer Engine and fp8: losses, change of backend, memory", tests="gpu and te"),
    "step-te": Part("a step with Transformer Engine, bf16 and fp8", variants="ours te"),
    "sizes": Part("a step by micro-batch and sequence length", variants="nothing else", sweep=True),
    "ablations": Part("a step without one part of the torch backend at a time", variants="ablation"),
    "compilations": Part("a step as one graph, and with products chosen by trial", variants="compilation"),
    "fusions": Part("a step in fp8, with and without fused operations", variants="fusion"),
    "losses-bf16": Part("300 steps in bf16", variants="ours te bf16", steps=300),
    "losses-fp8": Part("300 steps in fp8", variants="ours te fp8 delayed", steps=300),
    "decoding": Part(
        "SafeBeam, top-k and GCG with a model of 1.7B's shape, compared with transformers", decoders="beams,topk,refill"
    ),
}


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=PARTS)
    parser.add_argument("--list", action="store_true", help="name the parts and stop")
    parser.add_argument("--out", type=absolute, default="gpu-results")
    parser.add_argument("--text", type=absolute, help="folder of real text for the losses (default: CURRICULA_DATA)")
    parser.add_argument("--tokenizer", type=absolute, help="decoding: the folder of a tokenizer of 49,152 entries")
    parser.add_argument(
        "--litgpt-python", type=interpreter, default=sys.executable, help="python of an environment with LitGPT"
    )
    parser.add_argument("--smoke", action="store_true", help="collect the tests, run the benchmarks tiny and on the CPU")
    return parser


def main() -> int:
    args = options().parse_args()
    if args.list or args.part is None:
        print("\n".join(f"{name:12}  {part.title}" for name, part in PARTS.items()))
        return 0 if args.list else 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that commands end with this program
    signal.signal(signal.SIGINT, signal.default_int_handler)  # after a shell's `&`, SIGINT is ignored, by commands too
    folder = args.out / args.part
    folder.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + LIMIT_S
    records: list[dict[str, Any]] = []
    results = {"part": args.part, "title": PARTS[args.part].title, "device": device(args), "commands": records}
    with tempfile.TemporaryDirectory() as scratch:  # for a model that is too large to copy back
        for number, command in enumerate(commands(PARTS[args.part], args, folder, Path(scratch)), 1):
            records.append(run(command, deadline, folder / f"output-{number}.txt"))
            (args.out / f"{args.part}.json").write_text(json.dumps(results, indent=1) + "\n")
            (args.out / "table.md").write_text(table(args.out))
    print(table(args.out))
    return 0 if all(record["code"] == 0 for record in records) else 1


def absolute(text: str) -> Path:
    """An absolute path, since commands run in the repository's root. Links are kept: an environment's python is one."""
    return Path(text).absolute()


def interpreter(text: str) -> str:
    return str(absolute(text)) if os.sep in text else text  # otherwise a name on PATH


def commands(part: Part, args: argparse.Namespace, folder: Path, scratch: Path) -> list[list[str]]:
    result: list[list[str]] = []
    if part.tests:
        dry = ["--collect-only"] if args.smoke else []
        result.append(["-m", "pytest", str(TESTS), "-vv", "-m", part.tests, *dry, "--junitxml", str(folder / "tests.xml")])
    if part.variants:
        step = [str(BENCHMARKS / "training_step.py"), "--out", str(folder), "--steps", str(part.steps)]
        step += ["--json", str(folder / "results.json"), "--litgpt-python", args.litgpt_python, *_given("--text", args.text)]
        step += ["--smoke"] if args.smoke else ["--only", part.variants]
        result.append(step + (["--sweep", "--timed", "3"] if part.sweep else []))
    if part.decoders:
        model = scratch / "model"
        shape = ["--tiny"] if args.smoke else []
        result.append([str(TESTS / "random_model.py"), str(model), *_given("--tokenizer", args.tokenizer), *shape])
        common = ["--model", str(model), "--repeats", "1", "--json"]
        size = ["--tokens", "4", "--rows", "2", "--prompts", "1"] if args.smoke else []
        result.append([
            str(BENCHMARKS / "decoding.py"), *common, str(folder / "results.json"),
            "--only", "topk" if args.smoke else part.decoders, *size,
        ])  # fmt: skip
        size = ["--width", "4", "--steps", "1", "--behaviours", "1"] if args.smoke else ["--device", "cuda"]
        result.append([str(BENCHMARKS / "gcg.py"), *common, str(folder / "gcg.json"), *size])
    return result


def _given(option: str, value: Path | None) -> list[str]:
    return [option, str(value)] if value else []


def run(words: list[str], deadline: float, output: Path) -> dict[str, Any]:
    """Run a command with this interpreter and return its record. At the part's deadline it is ended, with code 124."""
    command = [sys.executable, *words]
    print(f"$ {shlex.join(command)}", flush=True)
    results = results_of(words)
    if results:
        results.unlink(missing_ok=True)  # left by an earlier call
    began = time.monotonic()
    code = run_limited(command, max(1.0, deadline - began), output)
    text = output.read_text(errors="replace")
    print(text, flush=True)
    record = {"command": shlex.join(words), "code": code, "seconds": round(time.monotonic() - began, 1)}
    if results and results.exists():  # even if the command was ended
        record |= {"tests": outcomes(results)} if "pytest" in words else {"results": json.loads(results.read_text())}
    return record | {"output": text.splitlines()[-SHOWN_LINES:]}


def results_of(words: list[str]) -> Path | None:
    """The file to which a command writes its results."""
    paths = [Path(value) for option, value in zip(words, words[1:]) if option in ("--junitxml", "--json")]
    return paths[0] if paths else None


def run_limited(command: list[str], limit_s: float, output: Path) -> int:
    """Run the command, with its output in a file, and return its exit code. After `limit_s`, end it and return 124."""
    with open(output, "wb") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, cwd=ROOT, env=environment(), start_new_session=True
        )
    try:
        return process.wait(limit_s)
    except subprocess.TimeoutExpired:
        return 124
    finally:
        end_group(process)


def environment() -> dict[str, str]:
    """Of commands: the suite need not be installed."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])}


def end_group(process: subprocess.Popen[bytes]) -> None:
    """End all processes of the command. A process that stayed alive would keep the card's memory.

    pytest is interrupted first, so that it writes the outcomes of the tests that have ended.
    """
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def outcomes(file: Path) -> dict[str, str]:
    """Each test of a JUnit file, with "passed" or with how else it ended and why."""
    outcome_of = {}
    for case in ElementTree.parse(file).getroot().iter("testcase"):
        other = next((child for child in case if child.tag in ("failure", "error", "skipped")), None)
        message = "" if other is None else (other.get("message") or "").partition("\n")[0]
        outcome_of[str(case.get("name"))] = "passed" if other is None else f"{other.tag}: {message[:200]}"
    return outcome_of


def device(args: argparse.Namespace) -> str:
    """The device and its software. Ends this program with a sentence if the part cannot run with them."""
    command = [sys.executable, "-c", PROBE, "smoke" if args.smoke else "", *needed(PARTS[args.part], args.smoke)]
    probe = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    if probe.returncode:
        said = probe.stderr.strip().splitlines() or [f"the probe ended with code {probe.returncode}"]
        sys.exit(f"{args.part} was not run by {sys.executable}: {said[-1]}")
    return probe.stdout.splitlines()[-1]


def needed(part: Part, smoke: bool) -> list[str]:
    """The modules without which the part's commands would fail, one after another."""
    modules = ["curricula.model.train"] if part.tests or part.variants else []
    modules += ["pytest", "hypothesis", "transformers"] if part.tests else ["rich"]
    modules += ["matplotlib"] if part.variants else []
    modules += ["curricula.eval.attacks.gcg"] if part.decoders else []
    if not (part.decoders or smoke) and importlib.util.find_spec("transformer_engine"):  # Megatron-core would load it
        modules.append("transformer_engine.pytorch")
    return modules


def table(out: Path) -> str:
    """All parts that have run, with the outcomes of their commands, as Markdown."""
    lines = ["| part | device | what | outcome |", "|---|---|---|---|"]
    for name in PARTS:
        if not (out / f"{name}.json").exists():
            continue
        part = json.loads((out / f"{name}.json").read_text())
        for record in part["commands"]:
            for what, outcome in summary(record):
                lines.append(f"| {name} | {part['device']} | {what} | {outcome} |")
    return "\n".join(lines) + "\n"


def summary(record: dict[str, Any]) -> list[tuple[str, str]]:
    """Rows of the table for one command: its error, if it failed, and its outcomes."""
    rows = details(record)
    if record["code"]:
        last = record["output"][-1] if record["output"] else ""
        early = f"code {record['code']} after {record['seconds']} s: {last[:120]}"
        return [(f"`{record['command'][:60]}`", early), *rows]
    return rows or [(f"`{Path(record['command'].split()[0]).name}`", f"{record['seconds']} s")]


def details(record: dict[str, Any]) -> list[tuple[str, str]]:
    """The outcomes of a command: counts for a test suite, the time of each variant for a training benchmark."""
    if "tests" in record:
        ways = [outcome.partition(":")[0] for outcome in record["tests"].values()]
        return [("tests", ", ".join(f"{ways.count(way)} {way}" for way in sorted(set(ways))) or "none")]
    rows = record.get("results", {}).get("rows")
    if isinstance(rows, list):
        return [(row["name"], row.get("failed") or f"{1000 * row['median_seconds']:,.0f} ms a step") for row in rows]
    return []


if __name__ == "__main__":
    sys.exit(main())
