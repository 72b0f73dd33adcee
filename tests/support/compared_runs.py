"""Compares the results of two runs of a study, and finds what must never be true of a finished run."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Collection
from pathlib import Path

from curricula.durable import read_json, read_jsonl
from curricula.jobs.graph import plan_study
from curricula.jobs.run import Run
from curricula.model.checkpoints.folder import latest_checkpoint

CLOCKS = 0.05
"""Tolerance in seconds when times on one machine are compared."""

READ = ("step", "consumed_samples", "consumed_tokens", "data", "recipe")
"""Keys of a checkpoint's record that describe its past."""


def results(root: Path) -> dict[str, str]:
    """The results of a run by name: the numbers of every step, what each training run has read, the models' hashes, the answers
    with their verdicts, and the report."""
    values = {}
    for path in _metrics(root):
        rows = [{key: value for key, value in row.items() if key != "timing"} for row in read_jsonl(path)]
        values[str(path.relative_to(root))] = "\n".join(json.dumps(row, sort_keys=True) for row in rows)
        # `latest` may have been damaged after the last save, so find the checkpoint as a resumed run would.
        last = latest_checkpoint(path.parent / "checkpoints")
        record = read_json(last / "checkpoint.json") if last else dict.fromkeys(READ)
        past = {name: record[name] for name in READ}
        values[f"{path.parent.relative_to(root)}, samples read"] = json.dumps(past, sort_keys=True)
    for path in root.glob("models/*/*/*.safetensors"):
        values[str(path.relative_to(root))] = hashlib.sha256(path.read_bytes()).hexdigest()
    for path in [*root.glob("eval/**/*.jsonl"), *root.glob("report/tables/*"), *root.glob("report/summary.json")]:
        values[str(path.relative_to(root))] = path.read_text()
    return values


def _metrics(root: Path) -> list[Path]:
    return [*root.glob("pretrain/*/metrics.jsonl"), *root.glob("tune/*/*/metrics.jsonl")]


def differences(expected: dict[str, str], found: dict[str, str]) -> list[str]:
    """Sentences about the results that differ, each with the first line that does."""
    sentences = [f"{name} is missing" for name in expected if name not in found]
    sentences += [f"{name} is new" for name in found if name not in expected]
    for name in expected.keys() & found.keys():
        before, after = expected[name].splitlines(), found[name].splitlines()
        if before != after:
            place = next((i for i, (a, b) in enumerate(zip(before, after)) if a != b), min(len(before), len(after)))
            texts = [lines[place][:200] if place < len(lines) else "nothing" for lines in (before, after)]
            sentences.append(f"{name}, line {place + 1} of {len(before)}: {texts[0]!r} became {texts[1]!r}")
    return sentences


def repeated(root: Path) -> list[str]:
    """Sentences about steps that are recorded twice, and answers and verdicts that exist twice."""
    sentences = []
    for path in _metrics(root):
        steps = Counter(row["step"] for row in read_jsonl(path) if "loss" in row)
        sentences += [f"{path}: step {step} is recorded {count} times" for step, count in steps.items() if count > 1]
    for path in root.glob("eval/**/*.jsonl"):
        keys = Counter((row["key"], row.get("judge"), row.get("version")) for row in read_jsonl(path) if "key" in row)
        sentences += [f"{path}: {key} occurs {count} times" for key, count in keys.items() if count > 1]
    return sentences


def too_early(root: Path, jobs: Collection[str]) -> list[str]:
    """Sentences about elements of `jobs` that began before something they read was finished, according to their marks."""
    run = Run(root)
    plan = plan_study(run.study)
    sentences = []
    for key, needs in plan.needs.items():
        if key[0] not in jobs:
            continue
        mark = read_json(run.element(*key) / "done.json")
        for need, must_succeed in needs:
            done = run.element(*need) / "done.json"
            if not must_succeed and not done.exists():  # the report also waits for jobs that the rounds do not submit
                continue
            before = read_json(done)
            if before["started"] + before["seconds"] > mark["started"] + CLOCKS:
                sentences.append(f"{'/'.join(key)} began before {'/'.join(need)} was finished")
    return sentences
