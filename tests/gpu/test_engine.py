"""The engine on a CUDA device: `pytest -m gpu`."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from paths import BENCHMARKS, SUPPORT

from curricula.durable import read_jsonl
from curricula.model.checkpoints.folder import latest_checkpoint
from curricula.model.config import ModelConfig

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

MODEL = ModelConfig(layers=2, hidden=256, heads=4, kv_heads=2, ffn=512, vocabulary=512, sequence_length=128)


def losses(out: Path, *, device: str, kill_at: int | None = None, steps: int = 12, **engine) -> list[float]:
    """Losses of a small run in a process of its own, on the GPU or with the GPU hidden; `engine` as in EngineConfig."""
    code = (
        "import json, os, signal, sys; sys.path.insert(0, sys.argv[2]); from pathlib import Path\n"
        "import logging, msgspec; logging.basicConfig(level=logging.INFO)\n"
        "from random_batches import RandomBatches, train_job; from curricula.model.config import *\n"
        "from curricula.model.train import train\n"
        "asked = json.loads(sys.argv[1])\n"
        "job = train_job(Path(asked['out']), model=msgspec.convert(asked['model'], ModelConfig), micro_batch=8,\n"
        "    engine=EngineConfig(**asked['engine']),\n"
        "    optimizer=OptimizerConfig(lr=3e-3), schedule=ScheduleConfig(warmup_steps=2), save_interval_steps=4)\n"
        "batches = RandomBatches(sequence_length=128, global_batch=16, total_steps=asked['steps'], vocabulary=512)\n"
        "def die(done, total, **figures):\n"
        "    if done == asked['kill_at']: os.kill(os.getpid(), signal.SIGKILL)\n"
        "train(job, batches, die)\n"
    )
    asked = {"out": str(out), "model": {name: getattr(MODEL, name) for name in MODEL.__struct_fields__}}
    asked |= {"kill_at": kill_at, "steps": steps, "engine": engine}
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {}
    ran = subprocess.run(
        [sys.executable, "-c", code, json.dumps(asked), str(SUPPORT)],
        env={**os.environ, **hidden},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == (0 if kill_at is None else -9), ran.stderr[-3000:]
    return [row["loss"] for row in read_jsonl(out / "metrics.jsonl") if "loss" in row]


@pytest.fixture(scope="module")
def gpu_run(tmp_path_factory):
    out = tmp_path_factory.mktemp("gpu")
    return out, losses(out, device="gpu")


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
    assert losses(tmp_path, device="gpu", **engine) == pytest.approx(gpu_run[1], rel=tolerance)


@pytest.mark.te
@no_te
@pytest.mark.parametrize("engines", [("torch", "te"), ("te", "torch")], ids="-to-".join)
def test_a_run_continues_with_another_backend(gpu_run, tmp_path, engines):
    losses(tmp_path, device="gpu", backend=engines[0], kill_at=7)
    assert losses(tmp_path, device="gpu", backend=engines[1]) == pytest.approx(gpu_run[1], rel=0.02)


def test_attention_between_borders_is_attention_under_the_mask():
    from curricula.model.network.transformer import attend, borders, crossing_mask, has_kernel_for_borders

    documents = torch.arange(256, device="cuda").div(50, rounding_mode="floor").expand(2, 256)
    assert has_kernel_for_borders(documents), "this torch computes packed rows under a mask: slower"
    angles = torch.randn(256, 1, 1, 64, device="cuda")
    mixed = torch.randn(2, 256, 2 * 4 * 64, device="cuda", dtype=torch.bfloat16)
    results = []
    for mask in (crossing_mask(documents), borders(documents, steady=True)):
        wanted = mixed.clone().requires_grad_()
        context = attend(wanted, angles, groups=2, queries=2, mask=mask)
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
        "import msgspec; from curricula.model.config import *; from curricula.model.memory import Layout, estimate\n"
        "from training_ours import make_step; from curricula.model.runtime.distributed import started\n"
        "model = msgspec.structs.replace(PRESETS['smollm2-1.7b'], layers=8)\n"
        "with started() as parallel:\n"
        "    step = make_step(model, EngineConfig(backend=sys.argv[2]), 8, parallel)\n"
        "    for _ in range(3): step(torch.randint(49152, (16, 2049), device='cuda'), 1e-4)\n"
        "needed = estimate(model, Layout(8, 2048, backend=sys.argv[2])).total\n"
        "print(torch.cuda.max_memory_allocated() / needed)\n"
    )
    command = [sys.executable, "-c", code, str(BENCHMARKS), backend]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert 0.85 < float(ran.stdout.split()[-1]) < 1.15


def test_a_killed_run_continues_from_its_checkpoint(gpu_run, tmp_path):
    losses(tmp_path, device="gpu", kill_at=7)
    assert losses(tmp_path, device="gpu") == pytest.approx(gpu_run[1], rel=5e-3)


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
    assert [len(answers) for answers in sampled] == [2, 2]
    assert all(0 < answer.tokens <= 8 for answer in [*searched, *sampled[0], *sampled[1]])
