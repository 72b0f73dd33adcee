"""The same engine on a CUDA device; run with `pytest -m gpu` where there is one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from curriculum.durable import read_jsonl
from model.checkpoint_folder import latest_checkpoint
from model.config import ModelConfig

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

MODEL = ModelConfig(layers=2, hidden=256, heads=4, kv_heads=2, ffn=512, vocabulary=512, sequence_length=128)
HERE = Path(__file__).parent


def losses(out: Path, *, device: str, kill_at: int | None = None, steps: int = 12) -> list[float]:
    """Losses of a small run in a process of its own, on the GPU or with it hidden."""
    code = (
        "import json, os, signal, sys; sys.path.insert(0, sys.argv[2]); from pathlib import Path\n"
        "import logging, msgspec; logging.basicConfig(level=logging.INFO)\n"
        "from random_batches import RandomBatches; from model.config import *; from model.train import TrainJob, train\n"
        "asked = json.loads(sys.argv[1])\n"
        "job = TrainJob(out=Path(asked['out']), model=msgspec.convert(asked['model'], ModelConfig), micro_batch=8,\n"
        "    optimizer=OptimizerConfig(lr=3e-3), schedule=ScheduleConfig(warmup_steps=2), save_interval_steps=4)\n"
        "batches = RandomBatches(sequence_length=128, global_batch=16, total_steps=asked['steps'], vocabulary=512)\n"
        "def die(done, total, **figures):\n"
        "    if done == asked['kill_at']: os.kill(os.getpid(), signal.SIGKILL)\n"
        "train(job, batches, die)\n"
    )
    asked = {"out": str(out), "model": {name: getattr(MODEL, name) for name in MODEL.__struct_fields__}}
    asked |= {"kill_at": kill_at, "steps": steps}
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {}
    ran = subprocess.run(
        [sys.executable, "-c", code, json.dumps(asked), str(HERE)],
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


def test_losses_on_the_gpu_are_those_of_the_cpu_within_bf16(gpu_run, tmp_path):
    assert gpu_run[1] == pytest.approx(losses(tmp_path, device="cpu"), rel=0.02)


def test_a_killed_run_goes_on_from_its_checkpoint(gpu_run, tmp_path):
    losses(tmp_path, device="gpu", kill_at=7)
    assert losses(tmp_path, device="gpu") == pytest.approx(gpu_run[1], rel=5e-3)


def test_the_exported_model_has_the_trained_models_loss(gpu_run, tmp_path):
    from random_batches import RandomBatches
    from transformers import AutoModelForCausalLM

    from curriculum.tokenizer import train_tokenizer
    from model.convert import export_hf

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
    from curriculum.tokenizer import train_tokenizer
    from eval.config import SafeBeam, TopK
    from eval.models import load_model
    from eval.safebeam import search_safebeam
    from eval.sampling import sample_topk
    from model.convert import export_hf

    train_tokenizer(["a few words to make a tokenizer of"], 512, tmp_path / "tokenizer")
    export_hf(latest_checkpoint(gpu_run[0] / "checkpoints"), tmp_path / "hf", tmp_path / "tokenizer", {})
    loaded = load_model(tmp_path / "hf", "base")
    assert next(loaded.model.parameters()).is_cuda
    prompts = [loaded.prompt_ids("a few words"), loaded.prompt_ids("tokenizer")]
    sampled = sample_topk(loaded, prompts, [("k", 0), ("k", 1)], TopK(samples=2, max_new_tokens=8))
    searched = search_safebeam(loaded, prompts, SafeBeam(beams=4, candidates=8, max_new_tokens=8))
    assert [len(answers) for answers in sampled] == [2, 2]
    assert all(0 < answer.tokens <= 8 for answer in [*searched, *sampled[0], *sampled[1]])
