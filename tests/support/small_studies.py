"""The full demo trained once, as it is and smaller still: a whole study in a minute or two."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import yaml
from paths import STUDIES

from curricula.jobs.plan import Key, Plan


def demo() -> dict:
    """demo-full.yaml with one seed, under the name demo: every arm, stage and attack."""
    raw = yaml.safe_load((STUDIES / "demo-full.yaml").read_text())
    del raw["seeds"]
    return {**raw, "name": "demo", "seed": 42}


def demo_file(folder: Path) -> Path:
    path = folder / "demo.yaml"
    path.write_text(yaml.safe_dump(demo(), sort_keys=False))
    return path


def smaller_demo() -> dict:
    """The demo with less of everything: one delayed arm, its trunk and every stage."""
    raw = demo()
    raw["world"].update(
        web_documents=600, stories=150, math_problems=150, unsafe_documents=60, chats=100, wildguard_rows=60,
        wildjailbreak_rows=60, gsm8k_train=60, gsm8k_test=20, prompts_per_benchmark=3, alpaca_prompts=4, probes_per_score=10,
        validation_documents=20,
    )  # fmt: skip
    raw["validation_documents"] = 10
    raw["curriculum"]["starts"] = [0.5, 1]
    del raw["curriculum"]["interventions"]["data"]
    for stage in ("instruct", "benign"):
        raw["tuning"][stage].update(conversations=24, global_batch=4, micro_batch=4)
    raw["evaluation"].update(
        benchmarks=["harmbench", "jailbreakbench"],
        topk={"samples": 2, "max_new_tokens": 8},
        safebeam={"beams": 2, "candidates": 4, "max_new_tokens": 8},
        gcg={"steps": 2, "search_width": 8, "topk": 8, "suffix": "x x", "prompts": 1},
        probes={"train_per_class": 20, "seeds": 2},
    )
    return raw


FOR_32_GPUS = ("--set", "pretraining.global_batch=32", "--set", "pretraining.budget_tokens=2048000")
"""The demo's as many steps, of a batch that a cluster's GPUs can share."""


def small_study(folder: Path, **changes) -> Path:
    """Write the smaller demo with `changes` at its top level."""
    raw = smaller_demo()
    raw["pretraining"].update(budget_tokens=24 * 4 * 128, global_batch=4, micro_batch=4, save_interval_steps=5)
    raw.update(changes)
    if raw["world"] is None:
        raw["evaluation"]["judge"] = "refusal-phrases"
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


def without_tuning(raw: dict) -> dict:
    """A study's base models under one attack: few arrays, for tests to which it does not matter which."""
    return {**raw, "tuning": None, "evaluation": {**raw["evaluation"], "gcg": None, "tasks": {"base": ["attacks-topk"]}}}


def tree_study(**changes) -> dict:
    """The smaller demo with stages of every kind: midtraining from a branch point, children of one stage, points on the way."""
    raw = smaller_demo()
    del raw["tuning"]
    raw["pretraining"].update(budget_tokens=24 * 4 * 128, global_batch=4, micro_batch=4, save_interval_steps=5)
    raw["pretraining"]["along"] = {"at": [0.25, 0.75], "tasks": ["attacks-topk", "probes"], "prompts": 2}
    chats = {"kind": "sft", "mix": {"ultrachat": 1}, "global_batch": 4, "lr": 1e-3, "tasks": ["attacks-topk"]}
    raw["stages"] = {
        "instruct": {**chats, "conversations": 16},
        "mt": {"kind": "midtrain", "at": 0.75, "mix": "full", "tokens": 8 * 4 * 128, "lr": 3e-3, "along": {"at": [0.5]}},
        "mt-instruct": {**chats, "from": "mt", "steps": 4},
        "harmful": {
            **{**chats, "from": "instruct", "arms": ["full-50"], "mix": {"wildguardmix-harmful": 1}},
            **{"examples": {"wildguardmix-harmful": 4}, "epochs": 4, "along": {"at": [0.25, 2], "prompts": 2}},
        },
    }
    raw["evaluation"].update(gcg=None, tasks={"base": ["attacks-topk"], "instruct": ["attacks-topk"]})
    return {**raw, **changes}


def write_study(folder: Path, raw: dict) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(raw, sort_keys=False))
    return path


def of_jobs(plan: Plan, *names: str) -> list[Key]:
    """All elements of these jobs."""
    return [key for key in plan.needs if key[0] in names]


def by_job(keys: Iterable[Key]) -> dict[str, list[str]]:
    """The labels of elements by the names of their jobs."""
    found: dict[str, list[str]] = {}
    for job, label in keys:
        found.setdefault(job, []).append(label)
    return found
