"""The GPU benchmark of the training step, on a tiny model: that the program works, not what it measures."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.slow
def test_the_benchmark_trains_all_variants_on_the_same_text_and_writes_its_results(tmp_path):
    (tmp_path / "text").mkdir()
    (tmp_path / "text/story.txt").write_text("Once upon a time a model read the same story again. " * 200)
    command = [sys.executable, str(BENCHMARKS / "training_step.py"), "--smoke", "--out", str(tmp_path / "out")]
    done = subprocess.run([*command, "--text", str(tmp_path / "text")], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "out/results.json").read_text())
    rows = {row["name"]: row for row in found["rows"]}
    peer, bare, loop = (rows[name] for name in ("LitGPT fp32", "ours cpu fp32", "ours cpu fp32, whole loop"))
    assert loop["losses"] == pytest.approx(bare["losses"], abs=1e-5)
    if "failed" in peer:
        assert peer["failed"] == "litgpt is not installed"
    else:
        assert peer["losses"] == pytest.approx(bare["losses"], abs=1e-4)
    assert "1 files under" in found["notes"][0] and "(bytes)" in found["notes"][0]
    assert "ours cpu fp32" in done.stdout
    assert (tmp_path / "out/losses.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("nvjet_tst_128x256_64x4_2x1_v_bz_coopA_NTN", "matrix products"),
        ("void pytorch_flash::flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel", "attention"),
        ("swiglu_gradient_kernel", "SwiGLU"),
        ("triton_poi_fused_add_mul_3", "other fused elementwise"),
        ("Memcpy DtoD (Device -> Device)", "copies, fills"),
        ("ncclDevKernel_ReduceScatter_Sum_f32_RING_LL", "communication"),
        ("something_else", "rest"),
    ],
)
def test_kernels_are_put_into_classes(monkeypatch, name, expected):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from training_measure import kernel_class

    assert kernel_class(name) == expected
