"""The engine on a CUDA device: `pytest -m gpu`."""

import importlib.util
import json
import os
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from msgspec.structs import replace
from packaging.version import Version
from paths import BENCHMARKS, ROOT, SUPPORT

from curricula.durable import read_jsonl
from curricula.errors import UserError
from curricula.model.checkpoints.folder import latest_checkpoint
from curricula.model.config import ModelConfig

PATH = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
"""Of child processes: the suite and its packages need not be installed."""

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

KILL_AT = 9
"""A step after the save of step 8 began, which finishes that of step 4."""
MODEL = ModelConfig(layers=2, hidden=256, heads=4, kv_heads=2, ffn=512, vocabulary=512, sequence_length=128)


def child(out: Path, batches: str = "random", kill_at: int | None = None, steps: int = 12, **engine) -> list[str]:
    """The words after `python` that train a small run in `out`; `engine` as in EngineConfig, or the `model`."""
    model = engine.pop("model", MODEL)
    asked = {"out": str(out), "model": {name: getattr(model, name) for name in model.__struct_fields__}}
    asked |= {"batches": batches, "kill_at": kill_at, "steps": steps, "engine": engine}
    return [str(SUPPORT / "engine_in_child.py"), json.dumps(asked)]


def several(processes: int) -> list[str]:
    return ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]


def ran(words: list, code: int = 0, timeout: float = 300, **variables: str) -> str:
    """What Python prints with these words, in a process of its own that has to end with `code`."""
    environment = {**os.environ, "PYTHONPATH": PATH, **variables}
    ended = subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True, timeout=timeout)
    assert ended.returncode == code, ended.stderr[-3000:]
    return ended.stdout


def trained(out: Path, *, device: str = "gpu", processes: int = 1, **wanted) -> list[dict]:
    """The metrics of a run of `child` on one or several GPUs, or with them hidden."""
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {}
    words = [*(several(processes) if processes > 1 else []), *child(out, **wanted)]
    ran(words, code=-9 if wanted.get("kill_at") else 0, **hidden)
    return [row for row in read_jsonl(out / "metrics.jsonl") if "loss" in row]


def losses(out: Path, **wanted) -> list[float]:
    return [row["loss"] for row in trained(out, **wanted)]


def resumed_losses(out: Path, **wanted) -> list[float]:
    """Losses of a run that was killed before, which has to go on from the checkpoint of step 4 or a later one."""
    found = losses(out, **wanted)
    assert read_jsonl(out / "starts.jsonl")[-1]["resumed_step"] >= 4
    return found


@pytest.fixture(scope="module")
def gpu_run(tmp_path_factory):
    out = tmp_path_factory.mktemp("gpu")
    return out, losses(out)


def test_losses_on_the_gpu_are_those_of_the_cpu_within_bfloat16_rounding(gpu_run, tmp_path):
    assert gpu_run[1] == pytest.approx(losses(tmp_path, device="cpu"), rel=0.02)


no_te = pytest.mark.skipif(importlib.util.find_spec("transformer_engine") is None, reason="no transformer_engine")
needs_te = (pytest.mark.te, no_te)


@pytest.mark.parametrize(
    ("engine", "tolerance"),
    [
        ({"backend": "torch"}, 0.02),
        ({"backend": "torch", "recompute_layers": 1}, 0.02),
        pytest.param({"backend": "te"}, 0.02, marks=needs_te),
        pytest.param({"backend": "te", "recompute_layers": 1}, 0.02, marks=needs_te),
        pytest.param({"backend": "te", "fp8": "delayed"}, 0.1, marks=needs_te),
        pytest.param({"backend": "te", "fp8": "tensorwise"}, 0.1, marks=needs_te),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_all_backends_give_the_same_losses(gpu_run, tmp_path, engine, tolerance):
    assert losses(tmp_path, **engine) == pytest.approx(gpu_run[1], rel=tolerance)


@pytest.mark.te
@no_te
@pytest.mark.parametrize("engines", [("torch", "te"), ("te", "torch")], ids="-to-".join)
def test_a_run_continues_with_another_backend(gpu_run, tmp_path, engines):
    losses(tmp_path, backend=engines[0], kill_at=KILL_AT)
    assert resumed_losses(tmp_path, backend=engines[1]) == pytest.approx(gpu_run[1], rel=0.02)


@pytest.mark.te
@no_te
@pytest.mark.parametrize("recipe", ["delayed", "tensorwise"])
def test_an_mlp_of_operations_has_the_gradients_of_a_plain_one(recipe):
    """Both round to 8 bits, which alone moves a gradient by up to half of its norm, but they round almost the same numbers."""
    if recipe == "delayed" and Version(version("transformer_engine")) < Version("2.17.1"):
        pytest.skip("the fused SwiGLU of earlier versions, at least of 2.11, leaves its output's transpose unfilled")
    differences = json.loads(ran([SUPPORT / "changed_gradients.py", "MLP of operations", recipe]).splitlines()[-1])
    assert all(value is not None and value < 0.3 for value in differences.values()), differences


def test_attention_between_borders_is_attention_under_the_mask():
    from curricula.model.network.transformer import attend, crossing_mask, steadied, turns_of, varlen_attn
    from curricula.model.runtime.loading import borders

    assert varlen_attn is not None, "this torch computes packed rows under a mask: slower"
    marks = borders(np.tile(np.arange(256) // 50, (2, 1))).cuda()
    angles = torch.randn(256, 1, 1, 64, device="cuda")
    mixed = torch.randn(2, 256, 2 * 4 * 64, device="cuda", dtype=torch.bfloat16)
    results = []
    for mask in (crossing_mask(marks, 2, 256), steadied(marks, 512)):
        wanted = mixed.clone().requires_grad_()
        context = attend(wanted, turns_of(angles), groups=2, queries=2, mask=mask)
        context.float().square().sum().backward()
        results.append((context, wanted.grad))
    for masked, other in zip(*results):
        assert torch.allclose(masked, other, rtol=2e-2, atol=5e-2)


def test_the_swiglu_kernel_computes_the_formula():
    from curricula.model.network.swiglu import swiglu

    for width in (7, 2048, 8192):
        narrow = torch.randn(64, 2 * width, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        d_output = torch.randn(64, width, device="cuda", dtype=torch.bfloat16)
        swiglu(narrow).backward(d_output)
        exact = narrow.detach().double().cpu().requires_grad_()
        swiglu(exact).backward(d_output.double().cpu())
        assert torch.allclose(narrow.grad.double().cpu(), exact.grad, rtol=1e-2, atol=1e-2)


def test_weight_gradients_are_summed_in_float32():
    from curricula.model.network.fused_linear import _adds_in_float32, accumulate

    sink = torch.zeros(256, 512, device="cuda")
    x, d_output = (torch.randn(1024, n, device="cuda", dtype=torch.bfloat16) for n in (512, 256))
    for _ in range(4):
        accumulate(sink, d_output, x)
    assert torch.allclose(sink, 4 * d_output.t().float() @ x.float(), rtol=1e-3, atol=0.1)
    assert _adds_in_float32(), "this torch writes each gradient in bfloat16 first: slower, and rounded"


def test_the_compiled_loss_is_cross_entropy():
    from curricula.model.network.linear_cross_entropy import linear_cross_entropy

    hidden = torch.randn(1000, 256, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(49152, 256, device="cuda", dtype=torch.bfloat16).mul_(0.05).requires_grad_()
    targets = torch.randint(49152, (1000,), device="cuda")
    ours = linear_cross_entropy(hidden, weight, targets, compiled=True, chunk=256)
    ours.sum().backward()
    again = hidden.detach().double().requires_grad_()
    exact = torch.nn.functional.cross_entropy(again @ weight.detach().double().t(), targets, reduction="none")
    exact.sum().backward()
    assert torch.allclose(ours.double(), exact, atol=0.05)
    assert (hidden.grad.double() - again.grad).norm() < 0.02 * again.grad.norm()


@pytest.mark.parametrize("backend", ["torch", pytest.param("te", marks=needs_te)])
def test_the_memory_estimate_is_within_fifteen_percent(tmp_path, backend):
    """With a model large enough to measure: eight layers of the 1.7B shape, micro-batch 8 of 2,048 tokens."""
    code = (
        "import sys, torch; sys.path.insert(0, sys.argv[1])\n"
        "import msgspec; from curricula.model.config import *; from curricula.model.memory import Layout, step_memory\n"
        "from training_ours import make_step; from curricula.model.runtime.distributed import started\n"
        "model = msgspec.structs.replace(PRESETS['smollm2-1.7b'], layers=8)\n"
        "with started() as parallel:\n"
        "    step = make_step(model, EngineConfig(backend=sys.argv[2]), 8, parallel)\n"
        "    for _ in range(3): step(torch.randint(49152, (16, 2049), device='cuda'), 1e-4)\n"
        "needed = step_memory(model, Layout(8, 2048, engine=EngineConfig(backend=sys.argv[2]))).total\n"
        "print(torch.cuda.max_memory_allocated() / needed)\n"
    )
    assert 0.85 < float(ran(["-c", code, BENCHMARKS, backend], timeout=600).split()[-1]) < 1.15


@pytest.mark.parametrize(
    ("engine", "tolerance"),
    [({}, 5e-3), pytest.param({"backend": "te", "fp8": "delayed"}, 0.02, marks=needs_te)],
    ids=lambda value: ("-".join(value.values()) or "default") if isinstance(value, dict) else "",
)
def test_a_killed_run_continues_from_its_checkpoint(gpu_run, tmp_path, engine, tolerance):
    """Kernels that add in any order make equal runs differ. In fp8, 1e-5 of a gradient is 0.4% of the loss ten steps later."""
    whole = losses(tmp_path / "whole", **engine) if engine else gpu_run[1]
    losses(tmp_path / "killed", kill_at=KILL_AT, **engine)
    assert resumed_losses(tmp_path / "killed", **engine) == pytest.approx(whole, rel=tolerance)


def test_packed_rows_train_as_on_the_cpu_where_a_mask_keeps_their_texts_apart(tmp_path):
    """With weights so large that attention matters: gradients differ by a tenth where it crosses borders."""
    runs = {"gpu": ("gpu", "packed"), "cpu": ("cpu", "packed"), "crossing": ("gpu", "crossing")}
    rows = {
        name: trained(tmp_path / name, device=device, batches=batches, steps=3, model=replace(MODEL, init_std=0.1))
        for name, (device, batches) in runs.items()
    }
    gpu, cpu, crossing = ([row["grad_norm"] for row in rows[name]] for name in runs)
    assert [row["loss"] for row in rows["gpu"]] == pytest.approx([row["loss"] for row in rows["cpu"]], rel=5e-3)
    assert gpu == pytest.approx(cpu, rel=0.03)
    assert crossing != pytest.approx(cpu, rel=0.06)


def test_a_process_times_its_own_part_of_a_step_on_the_gpu_without_waiting_for_it():
    """As if another process had reported the same; several GPUs are not needed."""
    from curricula.model.runtime.distributed import Parallel, Ranks, Stragglers

    class Pair(Parallel):
        def gather(self, value):
            return [value, value]

    stragglers = Stragglers(Pair(Ranks(0, 2, 0, "host:1"), torch.device("cuda", 0), torch.bfloat16, 1, 2, 0))
    torch.cuda.synchronize()
    began = time.perf_counter()
    stragglers.step_begins()
    torch.cuda._sleep(10**9)  # cycles: half a second or so
    stragglers.part_ends()
    launched_s = time.perf_counter() - began
    torch.cuda.synchronize()
    took_s = time.perf_counter() - began
    stragglers.step_ended()
    stragglers.compare()
    assert launched_s < took_s / 2
    assert stragglers.take_statistics()["ranks"]["median_s"] == pytest.approx(took_s, rel=0.2)


two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two GPUs")


@two_gpus
@pytest.mark.parametrize("backend", ["torch", pytest.param("te", marks=needs_te)])
def test_two_gpus_train_like_one(gpu_run, tmp_path, backend):
    assert losses(tmp_path, processes=2, backend=backend) == pytest.approx(gpu_run[1], rel=0.02)


@two_gpus
def test_a_slow_process_does_not_make_the_other_one_look_slow_too(tmp_path):
    asked = {"out": str(tmp_path), "fault": {"kind": "slow", "rank": 1, "seconds": 0.2}, "compare_every_step": True}
    ran([*several(2), SUPPORT / "faulty_child.py", json.dumps(asked)])
    compared = read_jsonl(tmp_path / "metrics.jsonl")[-1]["timing"]["ranks"]
    assert compared["slowest"] == 1 and compared["slowest_s"] > compared["median_s"] + 0.15


@two_gpus
def test_an_error_on_one_gpu_ends_its_process_while_the_other_waits_for_it(tmp_path, free_port):
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port), "PYTHONPATH": PATH}
    other, failed = (
        subprocess.Popen(
            [sys.executable, *child(tmp_path, batches="failing")],
            env={**os.environ, **place, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    )
    try:
        said = failed.communicate(timeout=180)[1]
        assert failed.returncode == UserError.exit_code and said.endswith("the shard is gone\n")
    finally:
        for process in (other, failed):
            process.kill()
            process.communicate()


def test_the_exported_model_has_the_trained_models_loss(gpu_run, tmp_path):
    from random_batches import RandomBatches
    from transformers import AutoModelForCausalLM

    from curricula.curriculum.tokens.tokenizer import train_tokenizer
    from curricula.model.convert import export_hf

    out, history = gpu_run
    train_tokenizer(["a few words to make a tokenizer of"], 512, tmp_path / "tokenizer")
    export_hf(latest_checkpoint(out / "checkpoints"), tmp_path / "hf", tmp_path / "tokenizer", {})
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf").cuda()
    batches = RandomBatches(sequence_length=128, global_batch=16, total_steps=12, vocabulary=512)
    tokens = torch.from_numpy(batches.rows(11, 0, 16)[0]).cuda()
    logits = model(tokens[:, :-1]).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())
    assert float(loss) == pytest.approx(history[-1], rel=0.05)


def test_both_decoders_answer_on_the_gpu(gpu_run, tmp_path):
    from curricula.curriculum.tokens.tokenizer import train_tokenizer
    from curricula.eval.decoding.safebeam import search_safebeam
    from curricula.eval.decoding.sampling import sample_topk
    from curricula.eval.decoding.settings import SafeBeam, TopK
    from curricula.eval.models import load_model
    from curricula.model.convert import export_hf

    train_tokenizer(["a few words to make a tokenizer of"], 512, tmp_path / "tokenizer")
    export_hf(latest_checkpoint(gpu_run[0] / "checkpoints"), tmp_path / "hf", tmp_path / "tokenizer", {})
    loaded = load_model(tmp_path / "hf", "base")
    assert next(loaded.model.parameters()).is_cuda
    prompts = [loaded.prompt_ids("a few words"), loaded.prompt_ids("tokenizer")]
    sampled = sample_topk(loaded, prompts, [("k", 0), ("k", 1)], TopK(samples=2, max_new_tokens=8))
    searched = search_safebeam(loaded, prompts, SafeBeam(beams=4, candidates=8, max_new_tokens=8))
    assert (len(sampled), len(searched)) == (4, 2)
    assert all(0 < answer.tokens <= 8 for answer in [*searched, *sampled])
