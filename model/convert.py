"""Converts our checkpoints to Hugging Face Llama folders (`export_hf`), and back (`import_hf`).

Evaluation knows only Hugging Face models, so that ours and published ones are measured by the same code. Weights are copied,
never computed. `_parts` maps the names of tensors that are the same on both sides. The other two are joined in Megatron-core:
linear_fc1 is gate over up, and linear_qkv holds, for each key-value head, the query heads of its group, the key and the value.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError

from curricula.curriculum.tokens.tokenizer import STOPS, load_tokenizer
from curricula.durable import sync_folder
from curricula.errors import StorageError, UserError
from curricula.fencing import check_fences
from curricula.model.checkpoints import checkpoint
from curricula.model.checkpoints.folder import CheckpointInfo, read_info, step_folder
from curricula.model.checkpoints.writer import save_weights
from curricula.model.config import ModelConfig
from curricula.model.hugging_face import hugging_face_config, is_exported, model_card, read_model, tensor_shapes
from curricula.model.network.build import Backend, build_network
from curricula.model.runtime.distributed import ALONE, started
from curricula.progress import Progress, silent

OWN_LAYERS = Backend("cpu", "its layers have the names of `_parts`, and nothing is compiled where nothing is computed")
SAME_IN_LAYERS = {
    "input_layernorm": "input_layernorm",
    "self_attn.o_proj": "self_attention.linear_proj",
    "post_attention_layernorm": "pre_mlp_layernorm",
    "mlp.down_proj": "mlp.linear_fc2",
}
SHARD_BYTES = 5_000_000_000
"""Largest size of one safetensors file."""
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


def export_hf(folder: Path, out: Path, tokenizer: Path, provenance: dict[str, Any], progress: Progress = silent) -> None:
    """Write the checkpoint `folder` as the Hugging Face model `out`, complete or not at all.

    The tokenizer's files are copied from the folder `tokenizer`; `provenance` goes into the model card. `progress` counts three
    steps: read, written, in place. Raises UserError if the checkpoint or the tokenizer cannot be read.
    """
    info = read_info(folder)
    out = out.absolute()
    if out.exists() and not is_exported(out) and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: exists and is not a model that was exported there; name a new folder")
    entries = load_tokenizer(tokenizer)
    document_end, turn_end = (entries.token_to_id(mark) for mark in STOPS)
    with started(ranks=ALONE, may_use_gpu=False) as parallel:
        network = build_network(info.model, parallel, OWN_LAYERS)
        checkpoint.load(folder, network, None, parallel)
        progress(1, 3)
        weights = to_hugging_face(network.state_dict(), info.model)
    dtype = getattr(torch, info.precision)
    weights = {name: weight.to(dtype=dtype, device="cpu", copy=True) for name, weight in weights.items()}
    aside = out.with_name(f".{out.name}.aside")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        save_torch_state_dict(weights, aside, max_shard_size=SHARD_BYTES)
        for file in aside.glob("*.safetensors"):
            # Recent versions of safetensors make files that only their owner can read, whatever the umask.
            file.chmod(aside.stat().st_mode & 0o666)
        progress(2, 3)
        _write_json(
            aside / "config.json", hugging_face_config(info) | {"bos_token_id": document_end, "eos_token_id": document_end}
        )
        ends = {"bos_token_id": document_end, "eos_token_id": [document_end, turn_end], "pad_token_id": document_end}
        _write_json(aside / "generation_config.json", ends)
        for name in TOKENIZER_FILES:
            if (tokenizer / name).exists():
                shutil.copyfile(tokenizer / name, aside / name)
        (aside / "README.md").write_text(model_card(out.name, info, provenance), encoding="utf-8")
        _replace(aside, out)
        progress(3, 3)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise StorageError(f"{out}: the model could not be written ({error}); fix the cause and run it again") from error


def import_hf(source: Path, out: Path, sequence_length: int | None = None) -> Path:
    """Write the Llama model `source`, a Hugging Face folder or a GGUF file, as a checkpoint of step 0 under `out`.

    Returns the checkpoint's folder, for use as `TrainJob.init_weights`. The checkpoint records `sequence_length` as the
    training length, by default the model's own maximum. Raises UserError for models that are damaged or not a plain Llama.
    """
    if any(folder != step_folder(out, 0) for folder in out.glob("step_[0-9]*")):
        raise UserError(f"{out}: holds the checkpoints of a training run; name a new folder")
    model, weights = read_model(source, sequence_length)
    with started(ranks=ALONE, may_use_gpu=False) as parallel:
        network = build_network(model, parallel, OWN_LAYERS)
        network.load_state_dict(from_hugging_face(weights, model), strict=False)  # not strict: it also has empty extra states
        info = CheckpointInfo(
            step=0,
            consumed_samples=0,
            consumed_tokens=0,
            model=model,
            precision=str(parallel.precision).removeprefix("torch."),
            full=False,
            recipe={"imported from": source.name, "weights": _hash(weights, model)},
            versions=checkpoint.versions(),
        )
        folder = step_folder(out, 0)
        save_weights(folder, network, info, parallel)
    return folder


def _hash(weights: dict[str, torch.Tensor], model: ModelConfig) -> str:
    """A hash that distinguishes the model from others of the same name and sizes, such as a later one in its place."""
    digest = hashlib.sha256()
    for name, _ in tensor_shapes(model):
        digest.update(weights[name].contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def to_hugging_face(state: dict[str, torch.Tensor], model: ModelConfig) -> dict[str, torch.Tensor]:
    """The tensors of Megatron-core's `state` by Hugging Face's names."""
    weights = {hf_name: state[megatron_name] for hf_name, megatron_name in _parts(model).items()}
    group = model.heads // model.kv_heads
    for layer in range(model.layers):
        hf, megatron = f"model.layers.{layer}.", f"decoder.layers.{layer}."
        qkv = state[megatron + "self_attention.linear_qkv.weight"]
        groups = qkv.view(model.kv_heads, group + 2, model.head_size, model.hidden)
        weights[hf + "self_attn.q_proj.weight"] = groups[:, :group].reshape(-1, model.hidden)
        weights[hf + "self_attn.k_proj.weight"] = groups[:, group].reshape(-1, model.hidden)
        weights[hf + "self_attn.v_proj.weight"] = groups[:, group + 1].reshape(-1, model.hidden)
        gate, up = state[megatron + "mlp.linear_fc1.weight"].chunk(2)
        weights[hf + "mlp.gate_proj.weight"], weights[hf + "mlp.up_proj.weight"] = gate, up
    return weights


def from_hugging_face(weights: dict[str, torch.Tensor], model: ModelConfig) -> dict[str, torch.Tensor]:
    """The tensors of Hugging Face's `weights` by Megatron-core's names."""
    state = {megatron_name: weights[hf_name] for hf_name, megatron_name in _parts(model).items()}
    for layer in range(model.layers):
        hf, megatron = f"model.layers.{layer}.", f"decoder.layers.{layer}."
        q, k, v = (
            weights[hf + f"self_attn.{name}_proj.weight"].view(model.kv_heads, -1, model.head_size, model.hidden)
            for name in "qkv"
        )
        state[megatron + "self_attention.linear_qkv.weight"] = torch.cat([q, k, v], dim=1).reshape(-1, model.hidden)
        gate_up = [weights[hf + f"mlp.{name}_proj.weight"] for name in ("gate", "up")]
        state[megatron + "mlp.linear_fc1.weight"] = torch.cat(gate_up)
    return state


def _parts(model: ModelConfig) -> dict[str, str]:
    """Hugging Face's name -> Megatron-core's name, for the tensors that are the same on both sides."""
    output = {} if model.tied else {"lm_head.weight": "output_layer.weight"}
    return {
        "model.embed_tokens.weight": "embedding.word_embeddings.weight",
        "model.norm.weight": "decoder.final_layernorm.weight",
        **output,
        **{
            f"model.layers.{layer}.{hf_name}.weight": f"decoder.layers.{layer}.{megatron_name}.weight"
            for layer in range(model.layers)
            for hf_name, megatron_name in SAME_IN_LAYERS.items()
        },
    }


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")


def _replace(aside: Path, out: Path) -> None:
    """Replace `out` by the finished folder `aside`."""
    for path in aside.iterdir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    check_fences()
    old = out.with_name(f".{out.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        os.rename(out, old)
    os.rename(aside, out)
    sync_folder(out.parent)
    shutil.rmtree(old, ignore_errors=True)
