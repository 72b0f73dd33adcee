"""Each benchmark program at a small size, so that one that is rarely run does not stop working unnoticed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from curricula.curriculum.sources.registry import local_root

PROGRAMS = Path(__file__).parent / "benchmarks"
SMALLEST = {
    "blender_start": ["--samples", "100k"],
    "sample_reads": ["--samples", "2048"],
    "tokenization": ["--documents", "60"],
    "training_loop": ["--model", "tiny", "--steps", "4"],
    "training_step": ["--smoke", "--out", "results"],
    "judge_pipeline": ["--limits", "50", "--seconds", "1.5"],
    "jobs_speed": [],
    "coverage": ["--studies", "2"],
    "seed_coverage": ["--studies", "2", "--seeds", "2", "--null", "1"],
    "null_runs": ["--runs", "1", "--tokens", "2048"],
    "decoding": ["--only", "beams,topk,refill", "--prompts", "1", "--tokens", "4", "--longest", "6", "--rows", "4",
                 "--answers", "8"],
    "gcg": ["--width", "4", "--steps", "1", "--behaviours", "1,2"],
}  # fmt: skip
NEEDS_DATA = ("tokenization", "decoding", "gcg", "training_step")


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALLEST)
def test_a_benchmark_runs_and_keeps_its_measurements(name, tmp_path):
    if name in NEEDS_DATA and local_root() is None:
        pytest.skip("set CURRICULA_DATA to the folder of public datasets")
    kept = tmp_path / "measurements.json"
    words = [sys.executable, PROGRAMS / f"{name}.py", "--repeats", "1", "--folder", tmp_path, "--json", kept]
    done = subprocess.run(
        [*words, *SMALLEST[name]],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert "command: python tests/benchmarks/" in done.stdout and json.loads(kept.read_text())


def test_every_benchmark_is_run():
    helpers = {
        "machine",
        "megatron_peer",
        "tokenization_measures",
        "training_changes",
        "training_litgpt",
        "training_measure",
        "training_ours",
    }
    assert {path.stem for path in PROGRAMS.glob("*.py")} - helpers == set(SMALLEST)
