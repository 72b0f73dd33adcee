"""The studies of the gallery at the size of a test: the same arms, stages and sweeps in the demo's world, on a tiny model."""

from __future__ import annotations

from typing import Any

import yaml
from paths import STUDIES
from small_studies import smaller_demo

WORLD = {**smaller_demo()["world"], "benign_items": 6, "ingredients": 10}
ROWS = {"global_batch": 4, "micro_batch": 4}


def miniature(name: str) -> dict[str, Any]:
    """The raw study NAME.yaml, shrunk: what it compares stays as it is."""
    raw = yaml.safe_load((STUDIES / f"{name}.yaml").read_text())
    raw |= {
        "world": WORLD,
        "tokenizer": {"train": 2048, "tuning": True},
        "model": {"preset": "tiny"},
        "validation_documents": 10,
    }
    raw["sources"] = {source: _source(given) for source, given in raw["sources"].items()}
    pretraining = raw["pretraining"]
    for key in ("tokens_per_parameter", "validation_interval_steps", "along"):
        pretraining.pop(key, None)
    pretraining |= {"budget_tokens": 60 * 4 * 128, **ROWS, "optimizer": {"lr": 3e-3}, "save_interval_steps": 30}
    pretraining["schedule"]["warmup_steps"] = 5
    raw["stages"] = {stage: _stage(given) for stage, given in raw["stages"].items()}
    if "sweep" in raw:  # its points are sizes
        raw["sweep"] = [{"name": point["name"], "model.tied": number == 0} for number, point in enumerate(raw["sweep"])]
    raw["evaluation"] = {
        "judge": "world",
        "benchmarks": ["harmbench"],
        "topk": {"samples": 1, "max_new_tokens": 8},
        "safebeam": {"beams": 2, "candidates": 4, "max_new_tokens": 8},
        "gcg": None,
        "probes": None,
        "tasks": {"base": ["attacks-topk"], "instruct": ["attacks-topk"], "benign": ["attacks-topk"]},
    }
    del raw["resources"]
    return raw


def _source(given: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in given.items() if key in ("dataset", "tag_rate", "loss")}
    return {**kept, "max_epochs": 1000}


def _stage(given: dict[str, Any]) -> dict[str, Any]:
    small = {**given, **ROWS, "lr": 1e-3}
    for key in ("tokens", "conversations", "epochs", "examples", "steps"):
        small.pop(key, None)
    if "along" in small:
        small["along"] = {"at": [0.5], "tasks": ["attacks-topk"]}
    return {**small, "steps": 6}
