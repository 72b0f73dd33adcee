"""What needs a GPU, part by part: each within ten minutes on one card, without a network, as JSON and as one table.

    python tests/gpu/run.py engine --out RESULTS                       # the first part; `--list` names all
    python tests/gpu/run.py step-bf16 --out RESULTS --text FOLDER --litgpt-python ENVIRONMENT/bin/python
    python tests/gpu/run.py decoding --out RESULTS --tokenizer FOLDER  # needs CURRICULA_DATA for the prompts
    python tests/gpu/run.py engine --out RESULTS --smoke               # the program itself, without a card

A part is a list of commands: tests of tests/gpu and programs of tests/benchmarks. It writes RESULTS/PART.json, and what its
commands write to RESULTS/PART/. Each call writes RESULTS/table.md anew, from all parts that are there. What is not installed
(Transformer Engine, LitGPT, vLLM) is skipped and named. The exit code is 0 if every command of the part ended with 0.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TESTS, BENCHMARKS = ROOT / "tests" / "gpu", ROOT / "tests" / "benchmarks"
LIMIT_S = 590.0
"""Of a part: a borrowed card is often given for ten minutes at a time."""
SHOWN_LINES = 40
"""Of a command's output, in the JSON."""


@dataclass(frozen=True)
class Part:
    title: str
    tests: str = ""
    """Tests of tests/gpu to run, as an expression for pytest's -m."""
    variants: str = ""
    """Rows of tests/benchmarks/training_step.py, by parts of their names."""
    steps: int = 10
    """Of each variant's losses."""
    sweep: bool = False
    decoders: str = ""
    """Tables of tests/benchmarks/decoding.py."""


PARTS = {
    "engine": Part("torch backend, kernels, a killed run, preflight", tests="gpu and not te"),
    "step-bf16": Part("a step in bf16 beside LitGPT", variants="LitGPT,ours torch bf16"),
    "te": Part("Transformer Engine and fp8: losses, change of backend, memory", tests="gpu and te"),
    "step-te": Part("a step with Transformer Engine, bf16 and fp8", variants="ours te"),
    "sizes": Part("a step by micro-batch and sequence length", variants="nothing else", sweep=True),
    "losses-bf16": Part("300 steps in bf16", variants="ours te bf16", steps=300),
    "losses-fp8": Part("300 steps in fp8", variants="ours te fp8 delayed", steps=300),
    "decoding": Part(
        "SafeBeam, top-k and GCG of a model of 1.7B's shape beside transformers", decoders="beams,topk,gcg"
    ),
}


def main() -> int:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("part", nargs="?", choices=PARTS)
    asked.add_argument("--list", action="store_true", help="name the parts and stop")
    asked.add_argument("--out", type=Path, default=Path("gpu-results"))
    asked.add_argument("--text", type=Path, help="folder of real text for the losses (default: CURRICULA_DATA)")
    asked.add_argument("--tokenizer", type=Path, help="decoding: the folder of a tokenizer of 49,152 entries")
    asked.add_argument("--litgpt-python", default=sys.executable, help="interpreter of an environment with LitGPT")
    asked.add_argument("--smoke", action="store_true", help="collect the tests, run the benchmarks tiny and on the CPU")
    args = asked.parse_args()
    if args.list or args.part is None:
        print("\n".join(f"{name:12}  {part.title}" for name, part in PARTS.items()))
        return 0 if args.list else 2
    folder = args.out / args.part
    folder.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + LIMIT_S
    ran = [run(command, deadline, folder) for command in commands(PARTS[args.part], args, folder)]
    found = {"part": args.part, "title": PARTS[args.part].title, "device": device(), "commands": ran}
    (args.out / f"{args.part}.json").write_text(json.dumps(found, indent=1) + "\n")
    text = table(args.out)
    (args.out / "table.md").write_text(text)
    print(text)
    return 0 if all(one["code"] == 0 for one in ran) else 1


def commands(part: Part, args: argparse.Namespace, folder: Path) -> list[list[str]]:
    made: list[list[str]] = []
    if part.tests:
        dry = ["--collect-only"] if args.smoke else []
        made.append(["-m", "pytest", str(TESTS), "-q", "-m", part.tests, *dry, f"--junitxml={folder / 'tests.xml'}"])
    if part.variants:
        step = [str(BENCHMARKS / "training_step.py"), "--out", str(folder), "--steps", str(part.steps)]
        step += ["--litgpt-python", args.litgpt_python, *(["--text", str(args.text)] if args.text else [])]
        step += ["--smoke"] if args.smoke else ["--only", part.variants]
        made.append(step + (["--sweep", "--timed", "3"] if part.sweep else []))
    if part.decoders:
        model = folder / "model"
        shape = ["--tiny"] if args.smoke else []
        made.append([str(TESTS / "random_model.py"), str(model), *_given("--tokenizer", args.tokenizer), *shape])
        size = ["--tokens", "4", "--rows", "2", "--candidates", "4", "--prompts", "1"] if args.smoke else []
        made.append([
            str(BENCHMARKS / "decoding.py"), "--model", str(model), "--only", "topk" if args.smoke else part.decoders,
            "--repeats", "1", "--json", str(folder / "results.json"), *size,
        ])  # fmt: skip
    return made


def _given(option: str, value: Path | None) -> list[str]:
    return [option, str(value)] if value else []


def run(words: list[str], deadline: float, folder: Path) -> dict[str, Any]:
    """A command with this interpreter, as a record; one that would outlast the part is ended, with code 124."""
    command = [sys.executable, *words]
    print(f"$ {shlex.join(command)}", flush=True)
    began = time.monotonic()
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT,
            timeout=max(1.0, deadline - began),
        )  # fmt: skip
        code, said = done.returncode, done.stdout
    except subprocess.TimeoutExpired as ended:
        code, said = 124, ended.stdout.decode(errors="replace") if ended.stdout else ""
    print(said, flush=True)
    record = {"command": shlex.join(words), "code": code, "seconds": round(time.monotonic() - began, 1)}
    tests = folder / "tests.xml"
    if "pytest" in words and tests.exists():
        record["tests"] = outcomes(tests)
    results = folder / "results.json"
    if results.exists() and str(BENCHMARKS) in words[0]:
        record["results"] = json.loads(results.read_text())
    return record | {"output": said.splitlines()[-SHOWN_LINES:]}


def outcomes(file: Path) -> dict[str, str]:
    """Each test of a JUnit file with "passed", or how else it ended and why."""
    found = {}
    for case in ElementTree.parse(file).getroot().iter("testcase"):
        other = next((child for child in case if child.tag in ("failure", "error", "skipped")), None)
        ended = "passed" if other is None else f"{other.tag}: {(other.get('message') or '').splitlines()[0][:200]}"
        found[str(case.get("name"))] = ended
    return found


def device() -> str:
    import torch

    if not torch.cuda.is_available():
        return f"no CUDA device; torch {torch.__version__}"
    return f"{torch.cuda.get_device_name()}; torch {torch.__version__}, CUDA {torch.version.cuda}"


def table(out: Path) -> str:
    """All parts that ran, with what their commands came to, as Markdown."""
    lines = ["| part | device | what | outcome |", "|---|---|---|---|"]
    for name in PARTS:
        if not (out / f"{name}.json").exists():
            continue
        part = json.loads((out / f"{name}.json").read_text())
        for one in part["commands"]:
            for what, outcome in summary(one):
                lines.append(f"| {name} | {part['device']} | {what} | {outcome} |")
    return "\n".join(lines) + "\n"


def summary(record: dict[str, Any]) -> list[tuple[str, str]]:
    """Rows of the table for one command: a test suite in counts, a training benchmark by variant."""
    if record["code"]:
        last = record["output"][-1] if record["output"] else ""
        return [(f"`{record['command'][:60]}`", f"code {record['code']} after {record['seconds']} s: {last[:120]}")]
    if "tests" in record:
        ended = [outcome.partition(":")[0] for outcome in record["tests"].values()]
        return [("tests", ", ".join(f"{ended.count(how)} {how}" for how in sorted(set(ended))) or "none")]
    rows = record.get("results", {}).get("rows")
    if isinstance(rows, list):
        return [(row["name"], row.get("failed") or f"{1000 * row['median_seconds']:,.0f} ms a step") for row in rows]
    return [(f"`{Path(record['command'].split()[0]).name}`", f"{record['seconds']} s")]


if __name__ == "__main__":
    sys.exit(main())
