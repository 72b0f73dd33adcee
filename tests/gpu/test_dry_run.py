"""A step without a GPU, by `dry_run.py`: its memory, what is compiled, and what it waits for."""

from __future__ import annotations

import json
import os
import subprocess

import pytest
from paths import ROOT

PYTHON = os.environ.get("CURRICULA_GPU_PYTHON", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON, reason="set CURRICULA_GPU_PYTHON to the python of an environment made by env/gpu/install"),
]


@pytest.mark.parametrize(
    "options",
    [
        "--layers 4",
        "--layers 4 --packed",
        "",
        "--layers 4 --backend te",
        "--layers 4 --fp8 delayed",
        "--layers 4 --fp8 tensorwise",
        "--layers 4 --fp8 blockwise",
    ],
)
def test_a_step_needs_the_estimated_memory_compiles_once_and_waits_twice(tmp_path, options):
    command = [PYTHON, ROOT / "tests" / "gpu" / "dry_run.py", *options.split(), "--json", tmp_path / "found.json"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    assert ran.returncode == 0, ran.stdout + ran.stderr[-3000:]
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["peak_gib"] == pytest.approx(found["estimated_peak_gib"], rel=0.03)
    # What the allocator holds beyond the peak it can give back, so that a little more than the estimate does not matter.
    assert found["reserved_gib"] < 1.03 * found["estimate_gib"]
    assert found["graphs"] > 0 and found["graph_breaks"] == 0 and found["recompiles"] == []
    assert found["kernels"] and not [each for each in found["kernels"] if each["spilled_bytes"]]
    assert sum(found["waits"].values()) <= 2
