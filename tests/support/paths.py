"""Paths of the checkout that tests use."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
STUDIES = ROOT / "jobs" / "studies"
LAB_SCRIPTS = ROOT / "env" / "slurm-lab"
SUPPORT = Path(__file__).parent
BENCHMARKS = ROOT / "tests" / "benchmarks"
