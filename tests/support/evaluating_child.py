"""Evaluations of one model, each a process that a test kills."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import torch._dynamo  # noqa: F401  (imported here once, for all the processes that are forked with this module)
import transformers.models.llama.modeling_llama  # noqa: F401
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: F401

import curricula.eval.judges.served  # noqa: F401
from curricula.eval.attacks.gcg import attacked_prompts
from curricula.eval.benchmarks import Prompt
from curricula.eval.config import EvalConfig, Gcg
from curricula.eval.models import load_model
from curricula.eval.runner import run_element
from curricula.eval.verdicts import MergeAndJudge
from curricula.progress import Progress, silent


def evaluate(model: Path, data: Path, out: Path, config_json: bytes) -> None:
    os.fsync = lambda descriptor: None  # a kill loses nothing that was written, and answers come in while a slow disk writes
    config = msgspec.json.decode(config_json, type=EvalConfig)
    loaded = load_model(model, "instruct", "cpu")
    for task in config.eval_tasks("instruct"):
        run_element(task, loaded, config, data_root=data, out=out, seed=1)
    MergeAndJudge(out, "instruct", config, None).judge()


def identity(path: Path) -> tuple[int, int] | None:
    """Of a file with something in it."""
    status = path.stat() if path.exists() else None
    return (status.st_ino, status.st_mtime_ns) if status and status.st_size else None


def halting(watched: Path, steps: int) -> Progress:
    """Waits to be killed when `watched` has been written and then `steps` steps were taken."""
    before, left = identity(watched), [steps]

    def progress(done: int, total: int, **figures: object) -> None:
        if identity(watched) not in (before, None):
            left[0] -= 1
            if left[0] < 0:
                time.sleep(600)

    return progress


def attack_prompts(model: Path, requests: Sequence[str], out: Path, config_json: bytes, steps: int | None = None) -> None:
    """GCG on `requests`, with the suffixes in `out`. It goes no further so many `steps` after it has saved its state."""
    prompts = [
        Prompt(benchmark="b", id=str(number), text=text, behavior=text, category="") for number, text in enumerate(requests)
    ]
    config = msgspec.json.decode(config_json, type=Gcg)
    progress = silent if steps is None else halting(out / "b.suffixes.step.json", steps)
    attacked_prompts(load_model(model, "instruct", "cpu"), prompts, config, out / "b.jsonl", 0, progress)
