"""Evaluations of one model, each a process that a test kills."""

from __future__ import annotations

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
from curricula.eval.judging.verdicts import MergeAndJudge
from curricula.eval.models import load_model
from curricula.eval.runner import run_element
from curricula.eval.tasks import EvalTask
from curricula.progress import silent


def evaluate(model: Path, data: Path, out: Path, config_json: bytes) -> None:
    config = msgspec.json.decode(config_json, type=EvalConfig)
    loaded = load_model(model, "instruct", "cpu")
    for task in config.eval_tasks("instruct"):
        run_element(task, loaded, config, data_root=data, out=out, seed=1)
    MergeAndJudge(out, "instruct", config, None).judge()


def evaluate_slowly(task: EvalTask, model: Path, data: Path, out: Path, config_json: bytes) -> None:
    """One element, with a pause after each step."""
    config = msgspec.json.decode(config_json, type=EvalConfig)
    run_element(
        task, load_model(model, "instruct", "cpu"), config, data_root=data, out=out, seed=1,
        progress=lambda done, total, **figures: time.sleep(0.15),
    )  # fmt: skip


def attack_prompts(model: Path, requests: Sequence[str], out: Path, config_json: bytes) -> None:
    """GCG on `requests`, with the suffixes in `out`."""
    prompts = [
        Prompt(benchmark="b", id=str(number), text=text, behavior=text, category="") for number, text in enumerate(requests)
    ]
    config = msgspec.json.decode(config_json, type=Gcg)
    attacked_prompts(load_model(model, "instruct", "cpu"), prompts, config, out / "b.jsonl", 0, silent)
