"""The backend that a machine gets, and the network as built: its size, initial weights, constants and optimizer."""

import logging
import math
import os
import runpy
import subprocess
import sys
import types
import warnings
from pathlib import Path

import msgspec
import pytest
import torch
from compilers import needs_compiler
from paths import ROOT
from random_batches import SMALL, RandomBatches, train_job

from curricula.durable import read_jsonl
from curricula.errors import UsageError
from curricula.model import megatron
from curricula.model.config import PRESETS, EngineConfig, ModelConfig, OptimizerConfig
from curricula.model.network import build
from curricula.model.network.build import build_network, build_optimizer, choose_backend, describe, initialize, wrap
from curricula.model.runtime.distributed import Parallel, Ranks, started
from curricula.model.train import train

WIDE = ModelConfig(layers=8, hidden=256, heads=8, kv_heads=4, ffn=512, vocabulary=1024, sequence_length=64)


def machine(device: str = "cuda", tensor_parallel: int = 1) -> Parallel:
    precision = torch.bfloat16 if device == "cuda" else torch.float32
    return Parallel(Ranks(0, 8, 0, "host:1"), torch.device(device), precision, tensor_parallel, 8 // tensor_parallel, 0)


GOOD, OLD_CARD, OLD_CUDA = (True, ""), (False, "Compute capability 8.9 or higher required."), (False, "CUDA 12.9 is required.")


def install_packages(monkeypatch, any_fp8: tuple[bool, str] = GOOD, blockwise: tuple[bool, str] = GOOD) -> None:
    """As if every package were installed; Transformer Engine answers thus about the card."""
    monkeypatch.setattr(build.importlib.util, "find_spec", lambda name: object())
    support = types.ModuleType("quantization")
    support.check_fp8_support, support.check_fp8_block_scaling_support = lambda: any_fp8, lambda: blockwise
    for name in ("transformer_engine", "transformer_engine.pytorch"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "transformer_engine.pytorch.quantization", support)


@pytest.fixture(params=[False, True], ids=["without packages", "with packages"])
def has_te(request, monkeypatch):
    if request.param:
        install_packages(monkeypatch)
    else:
        monkeypatch.setattr(build.importlib.util, "find_spec", lambda name: None)
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
        with pytest.raises(UsageError, match='engine.fp8 is "delayed", but the package transformer_engine is not installed'):
            choose_backend(EngineConfig(fp8="delayed"), machine())


@pytest.mark.parametrize(
    ("any_fp8", "blockwise", "refused"),
    [
        (GOOD, GOOD, {}),
        (GOOD, OLD_CUDA, {"blockwise": 'CUDA 12.9 is required; use "tensorwise"'}),
        (OLD_CARD, OLD_CARD, dict.fromkeys(["delayed", "blockwise"], "Compute capability 8.9 or higher required; leave the")),
    ],
)
def test_fp8_is_refused_where_the_card_or_cuda_lacks_it(monkeypatch, any_fp8, blockwise, refused):
    install_packages(monkeypatch, any_fp8, blockwise)
    for recipe in ("delayed", "blockwise"):
        if reason := refused.get(recipe):
            with pytest.raises(UsageError, match=f'engine.fp8 is "{recipe}": {reason}'):
                choose_backend(EngineConfig(fp8=recipe), machine())
        else:
            assert choose_backend(EngineConfig(fp8=recipe), machine()).name == "te"


@pytest.mark.parametrize("folder", ["cu13", "cuda_runtime"])
def test_transformer_engine_compiles_with_the_headers_that_come_with_torch(monkeypatch, tmp_path, folder):
    """With none of a toolkit's in /usr/local/cuda, a step in fp8 would fail."""
    headers = tmp_path / "nvidia" / folder / "include"
    headers.mkdir(parents=True)
    (headers / "cuda_runtime.h").touch()
    for given, used in ({}, str(headers)), ({"NVTE_CUDA_INCLUDE_DIR": "elsewhere"}, "elsewhere"):
        monkeypatch.setattr(os, "environ", given)
        megatron.name_cuda_headers(tmp_path)
        assert given["NVTE_CUDA_INCLUDE_DIR"] == used


def test_flash_attention_is_not_passed_over_for_another_kernel(monkeypatch):
    called = []
    monkeypatch.setattr("torch.nn.attention.activate_flash_attention_impl", called.append, raising=False)
    flags = {name: getattr(torch.backends.cuda, f"{name}_sdp_enabled") for name in ("flash", "cudnn", "mem_efficient", "math")}
    before = {name: enabled() for name, enabled in flags.items()}
    try:
        build._order_attention_kernels("torch")
        assert flags["flash"]() and flags["math"]() and not flags["cudnn"]()
        build._order_attention_kernels("FA4")
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
    train(train_job(out, micro_batch=4, engine=EngineConfig(**engine), stop_step=4), RandomBatches(masked=True))
    return [(row["loss"], row["grad_norm"]) for row in read_jsonl(out / "metrics.jsonl")]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return losses(tmp_path_factory.mktemp("plain"))


def test_recomputed_layers_change_no_number(tmp_path, plain):
    assert losses(tmp_path, recompute_layers=2) == plain


@needs_compiler
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
    configs = [build.transformer_config(WIDE, machine(tensor_parallel=size), own) for size in (1, 2)]
    assert [config.gradient_accumulation_fusion for config in configs] == [False, True]


@pytest.fixture
def te_without_driver(tmp_path):
    """A folder with a Transformer Engine that cannot be imported."""
    package = tmp_path / "transformer_engine" / "__init__.py"
    package.parent.mkdir()
    package.write_text("raise OSError('libcuda.so.1: cannot open')")
    return tmp_path


def test_without_a_gpu_transformer_engine_is_not_imported_and_warnings_for_developers_are_filtered(
    te_without_driver, monkeypatch, caplog
):
    """As the module is executed, with Megatron-core itself there already."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.syspath_prepend(te_without_driver)
    monkeypatch.delitem(sys.modules, "transformer_engine", raising=False)
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        runpy.run_path(megatron.__file__)
        for developers in (
            "full scope is deprecated. Use",
            "MimoModelConfig is experimental and still under active development.",
            "barrier(): using the device under current context. You can specify `device_id`",
            "torch.distributed is disabled, unavailable or uninitialized, assuming the intent is to load in a single process.",
            "The argument order of load has been changed. Please check the document",
        ):
            warnings.warn(developers, stacklevel=1)
        warnings.warn("another", stacklevel=1)
        logging.getLogger("megatron.core.models.gpt.gpt_model").warning("GPTModel IS DEPRECATED")
    assert sys.modules["transformer_engine"] is None
    said = [str(warning.message) for warning in shown if warning.category is not ResourceWarning]  # of what earlier tests left
    assert said == ["another"] and "DEPRECATED" not in caplog.text


@pytest.mark.slow
def test_without_a_gpu_a_process_imports_no_transformer_engine_and_developers_warnings_stay_out_of_the_logs(te_without_driver):
    """Where it is installed, importing it fails without a driver, and with one Megatron-core calls its kernels."""
    code = "import warnings, curricula.model.megatron as m; print(m.GPTModel.__name__)"
    code += "; warnings.warn('full scope is deprecated. Use'); warnings.warn('another')"
    search = {"PYTHONPATH": f"{te_without_driver}:{ROOT}", "CUDA_VISIBLE_DEVICES": ""}
    ran = subprocess.run([sys.executable, "-c", code], env={**os.environ, **search}, capture_output=True, text=True)
    assert ran.returncode == 0 and ran.stdout.split()[-1] == "GPTModel", ran.stderr
    assert "another" in ran.stderr and "UserWarning: full scope" not in ran.stderr


def built(model: ModelConfig, seed: int = 0):
    with started() as parallel:
        network = build_network(model, parallel)
        initialize(network, model, seed)
    return network


@pytest.mark.parametrize(
    "model",
    [
        SMALL,
        msgspec.structs.replace(SMALL, tied=False),
        PRESETS["tiny"],
        msgspec.structs.replace(PRESETS["smollm2-135m"], layers=2, vocabulary=1024),
    ],
    ids=["small", "untied", "tiny", "two layers of the 135M"],
)
def test_a_network_has_as_many_parameters_as_its_configuration_says(model):
    assert sum(parameter.numel() for parameter in built(model).parameters()) == model.parameters


def test_initial_weights_have_the_stated_spread_and_less_into_the_residual_stream():
    weights = dict(built(WIDE).named_parameters())
    for name, weight in weights.items():
        if weight.dim() == 1:
            assert torch.equal(weight, torch.ones_like(weight))
            continue
        into_residual = name.endswith(("linear_proj.weight", "linear_fc2.weight"))
        expected = 0.02 / math.sqrt(2 * 8) if into_residual else 0.02
        assert weight.std().item() == pytest.approx(expected, rel=0.02)
        assert abs(weight.mean().item()) < 0.05 * expected


def test_initial_weights_are_drawn_by_seed_and_name():
    one, same, other = (built(WIDE, seed).state_dict() for seed in (0, 0, 1))
    name = "decoder.layers.3.mlp.linear_fc1.weight"
    assert torch.equal(one[name], same[name])
    assert not torch.equal(one[name], other[name])
    assert not torch.equal(one[name], one["decoder.layers.4.mlp.linear_fc1.weight"])


@pytest.mark.parametrize("base", [10_000.0, 130_000.0], ids=["pretraining", "released"])
def test_positions_turn_by_powers_of_the_rope_base(base):
    assert {preset.rope_base for preset in PRESETS.values()} == {10_000.0}
    with started() as parallel:
        network = build_network(msgspec.structs.replace(WIDE, rope_base=base), parallel)
        with parallel.cuda_names():
            angles = network.rotary_pos_emb(5).squeeze()
    pairs = torch.arange(WIDE.head_size // 2)
    expected = torch.arange(5)[:, None] * base ** (-2 * pairs / WIDE.head_size)
    assert torch.allclose(angles, torch.cat([expected, expected], dim=-1), rtol=1e-5)


def test_norms_have_the_published_epsilon():
    network = built(SMALL)
    layer = network.decoder.layers[0]
    assert {layer.input_layernorm.eps, layer.pre_mlp_layernorm.eps, network.decoder.final_layernorm.eps} == {1e-5}


def test_the_optimizer_decays_all_weights_alike_as_torchs_adamw_does():
    """As the paper's did: weights whose gradients are 0 shrink by the rate times the decay, those of norms too."""
    optimizer = OptimizerConfig(lr=0.5, weight_decay=0.1)
    with started() as parallel:
        network = build_network(SMALL, parallel)
        initialize(network, SMALL, 0)
        adamw = build_optimizer(wrap(network, parallel), optimizer, parallel)
        before = {name: weight.clone() for name, weight in network.named_parameters()}
        with parallel.cuda_names():
            adamw.step()
        for name, weight in network.named_parameters():
            assert torch.allclose(weight, before[name] * 0.95), name


@pytest.mark.parametrize("scale", [0.01, 3.0], ids=["below the limit", "above it"])
def test_two_steps_with_gradients_on_either_side_of_the_limit_equal_torchs_adamw(scale):
    ours = OptimizerConfig(lr=0.1, beta1=0.6, beta2=0.7, eps=0.02, weight_decay=0.2, clip_grad=0.5)
    generator = torch.Generator().manual_seed(0)
    with started() as parallel:
        network = build_network(SMALL, parallel)
        initialize(network, SMALL, 0)
        adamw = build_optimizer(wrap(network, parallel), ours, parallel)
        copies = [weight.detach().clone().requires_grad_() for weight in network.parameters()]
        theirs = torch.optim.AdamW(copies, lr=0.1, betas=(0.6, 0.7), eps=0.02, weight_decay=0.2)
        for _ in range(2):
            drawn = [torch.randn(copy.shape, generator=generator) for copy in copies]
            whole = torch.cat([gradient.flatten() for gradient in drawn]).norm()
            for weight, copy, gradient in zip(network.parameters(), copies, drawn):
                copy.grad = gradient * (scale * ours.clip_grad / whole)
                weight.main_grad.copy_(copy.grad)
            with parallel.cuda_names():
                _, norm, _ = adamw.step()
            assert float(norm) == pytest.approx(scale * ours.clip_grad, rel=1e-4)
            torch.nn.utils.clip_grad_norm_(copies, ours.clip_grad)
            theirs.step()
        for (name, weight), copy in zip(network.named_parameters(), copies):
            assert torch.allclose(weight, copy, rtol=1e-4, atol=1e-6), name


def test_tensor_parallelism_that_does_not_divide_the_model_is_refused():
    with pytest.raises(UsageError, match="tensor_parallel is 3, which does not divide model.kv_heads 2"):
        train_job(Path("run"), tensor_parallel=3)
