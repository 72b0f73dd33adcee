import os
import shutil
import subprocess
import sys

import pytest
import torch
from paths import ROOT
from random_batches import RandomBatches, train_job

from curricula.durable import read_jsonl
from curricula.errors import UsageError
from curricula.model.config import EngineConfig
from curricula.model.network import backends
from curricula.model.network.backends import choose_backend, describe
from curricula.model.runtime.distributed import Parallel, Ranks
from curricula.model.train import train

compiler = pytest.mark.skipif(
    shutil.which("g++") is None and shutil.which("clang++") is None, reason="no C++ compiler for torch.compile"
)


def machine(device: str = "cuda", tensor_parallel: int = 1) -> Parallel:
    precision = torch.bfloat16 if device == "cuda" else torch.float32
    return Parallel(Ranks(0, 8, 0, "host:1"), torch.device(device), precision, tensor_parallel, 8 // tensor_parallel, 0)


@pytest.fixture(params=[False, True], ids=["without packages", "with packages"])
def has_te(request, monkeypatch):
    monkeypatch.setattr(backends.importlib.util, "find_spec", lambda name: object() if request.param else None)
    return request.param


def test_the_fastest_backend_is_chosen_and_the_log_says_why(has_te):
    assert choose_backend(EngineConfig(), machine("cpu")).name == "cpu"
    for packed in (False, True):
        chosen = choose_backend(EngineConfig(), machine(), packed)
        assert chosen.name == "torch" and chosen.packed == packed
        said = describe(chosen, machine())
        assert "backend: torch (the fastest in bfloat16); bfloat16; data parallel 8, tensor parallel 1" in said
        if has_te:
            assert choose_backend(EngineConfig(fp8="delayed"), machine(), packed).name == "te"


def test_a_setting_overrides_the_choice(has_te):
    assert choose_backend(EngineConfig(backend="torch"), machine()).name == "torch"
    assert choose_backend(EngineConfig(backend="torch"), machine("cpu")).name == "torch"
    parallel = machine(tensor_parallel=2)
    assert " with sequence parallel" in describe(choose_backend(EngineConfig(), parallel), parallel)
    assert " with sequence parallel" not in describe(choose_backend(EngineConfig(sequence_parallel=False), parallel), parallel)


def test_a_backend_that_cannot_run_here_is_refused(has_te):
    with pytest.raises(UsageError, match='engine.backend is "te", but there is no CUDA device'):
        choose_backend(EngineConfig(backend="te"), machine("cpu"))
    with pytest.raises(UsageError, match='engine.backend is "cpu", but this is a GPU machine'):
        choose_backend(EngineConfig(backend="cpu"), machine())
    with pytest.raises(UsageError, match='engine.attention is "FA4", but there is no CUDA device'):
        choose_backend(EngineConfig(backend="torch", attention="FA4"), machine("cpu"))
    with pytest.raises(ValueError, match='engine.attention is "FA3", which needs engine.backend "torch", not "te"'):
        EngineConfig(backend="te", attention="FA3")
    with pytest.raises(ValueError, match='engine.fp8 is "delayed", which needs engine.backend "te"'):
        EngineConfig(backend="torch", fp8="delayed")
    if has_te:
        assert choose_backend(EngineConfig(fp8="delayed"), machine()).name == "te"
        chosen = choose_backend(EngineConfig(backend="torch", attention="FA4"), machine())
        assert "bfloat16, attention by FA4;" in describe(chosen, machine())
    else:
        with pytest.raises(UsageError, match='"FA4", but the package flash_attn.cute is not installed'):
            choose_backend(EngineConfig(backend="torch", attention="FA4"), machine())
        with pytest.raises(UsageError, match='engine.fp8 is "delayed", but transformer_engine is not installed'):
            choose_backend(EngineConfig(fp8="delayed"), machine())


def test_flash_attention_is_not_passed_over_for_another_kernel(monkeypatch):
    called = []
    monkeypatch.setattr("torch.nn.attention.activate_flash_attention_impl", called.append, raising=False)
    flags = {name: getattr(torch.backends.cuda, f"{name}_sdp_enabled") for name in ("flash", "cudnn", "mem_efficient", "math")}
    before = {name: enabled() for name, enabled in flags.items()}
    try:
        backends._order_attention_kernels("torch")
        assert flags["flash"]() and flags["math"]() and not flags["cudnn"]()
        backends._order_attention_kernels("FA4")
        assert [name for name, enabled in flags.items() if enabled()] == ["flash"]
        assert called == ["FA4"]
    finally:
        for name, enabled in before.items():
            getattr(torch.backends.cuda, f"enable_{name}_sdp")(enabled)


def test_the_log_names_the_attention_kernel_that_runs(tmp_path, caplog):
    caplog.set_level("INFO")
    train(train_job(tmp_path, stop_step=1), RandomBatches())
    assert any(f"attention: {kernel}" in caplog.text for kernel in ("FLASH_ATTENTION", "MATH"))


def losses(out, **engine) -> list[tuple[float, float]]:
    train(train_job(out, micro_batch=4, engine=EngineConfig(**engine)), RandomBatches(masked=True))
    return [(row["loss"], row["grad_norm"]) for row in read_jsonl(out / "metrics.jsonl")]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return losses(tmp_path_factory.mktemp("plain"))


def test_recomputed_layers_change_no_number(tmp_path, plain):
    assert losses(tmp_path, recompute_layers=2) == plain


@compiler
def test_the_compiled_backend_trains_like_the_plain_one_and_compiles_one_layer_for_all(tmp_path, plain):
    from torch._dynamo.utils import counters

    counters.clear()
    for ours, theirs in zip(losses(tmp_path, backend="torch"), plain):
        assert ours == pytest.approx(theirs, rel=1e-5)
    assert counters["stats"]["unique_graphs"] == 4  # a layer, the last norm, the loss's two kernels
    assert not counters["graph_break"]


def test_more_layers_to_recompute_than_there_are_is_refused(tmp_path):
    with pytest.raises(UsageError, match="engine.recompute_layers is 3; the model has 2 layers"):
        losses(tmp_path, recompute_layers=3)


def test_weight_gradients_are_added_by_the_product_wherever_megatrons_linears_make_them():
    """Our own linears, without tensor parallelism, do it themselves."""
    own = choose_backend(EngineConfig(backend="torch"), machine())
    assert [own.transformer_settings(size)["gradient_accumulation_fusion"] for size in (1, 2)] == [False, True]


def test_without_a_gpu_transformer_engine_is_not_imported_and_developers_warnings_stay_out_of_the_logs(tmp_path):
    """Where it is installed, importing it fails without a driver, and with one Megatron-core calls its kernels."""
    package = tmp_path / "transformer_engine" / "__init__.py"
    package.parent.mkdir()
    package.write_text("raise OSError('libcuda.so.1: cannot open')")
    code = "import warnings, curricula.model.megatron as m; print(m.GPTModel.__name__)"
    code += "; warnings.warn('full scope is deprecated. Use'); warnings.warn('another')"
    search = {"PYTHONPATH": f"{tmp_path}:{ROOT}", "CUDA_VISIBLE_DEVICES": ""}
    ran = subprocess.run([sys.executable, "-c", code], env={**os.environ, **search}, capture_output=True, text=True)
    assert ran.returncode == 0 and ran.stdout.split()[-1] == "GPTModel", ran.stderr
    assert "another" in ran.stderr and "UserWarning: full scope" not in ran.stderr
