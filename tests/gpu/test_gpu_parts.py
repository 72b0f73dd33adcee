"""The program that runs the GPU checks part by part, on this machine: its plumbing, not what it measures."""

import json
import os
import subprocess
import sys

import pytest
from paths import ROOT

PROGRAM = ROOT / "tests" / "gpu" / "run.py"


def run(*words):
    return subprocess.run([sys.executable, PROGRAM, *map(str, words)], capture_output=True, text=True)


def test_every_part_is_named():
    listed = run("--list").stdout
    assert [line.split()[0] for line in listed.splitlines()] == [
        "engine", "step-bf16", "te", "step-te", "sizes", "losses-bf16", "losses-fp8", "decoding",
    ]  # fmt: skip


needs_data = pytest.mark.skipif("CURRICULA_DATA" not in os.environ, reason="no CURRICULA_DATA")


@pytest.mark.slow
@pytest.mark.parametrize("part", ["engine", "step-bf16", "sizes", pytest.param("decoding", marks=needs_data)])
def test_a_part_leaves_its_record_and_a_row_in_the_table(tmp_path, part):
    ran = run(part, "--out", tmp_path, "--smoke")
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-3000:]
    record = json.loads((tmp_path / f"{part}.json").read_text())
    assert record["part"] == part and all(one["code"] == 0 for one in record["commands"])
    assert f"| {part} | " in (tmp_path / "table.md").read_text()
