"""A whole evaluation of one model, as a process that a test kills."""

from __future__ import annotations

from pathlib import Path

import msgspec
import torch._dynamo  # noqa: F401  (imported here once, for all the processes that are forked with this module)
import transformers.models.llama.modeling_llama  # noqa: F401
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: F401

import curricula.eval.judges.served  # noqa: F401
from curricula.eval.config import EvalConfig
from curricula.eval.judging.merge import Merge
from curricula.eval.runner import run_element


def evaluate(model: Path, data: Path, out: Path, config_json: bytes) -> None:
    config = msgspec.json.decode(config_json, type=EvalConfig)
    for task in config.eval_tasks("instruct"):
        run_element(task, model, "instruct", config, data_root=data, out=out, seed=1, device="cpu")
    Merge(out, "instruct", config, None).judge()
