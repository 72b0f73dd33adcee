"""Reads Hugging Face models and checks them; makes config.json and the model card of an export.

Models come from elsewhere and can be damaged, partly fetched or of another kind. Each case raises an error that names the file.
Imports torch only to read weights.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from curricula.errors import StorageError, UserError, first_line
from curricula.model.checkpoints.folder import CheckpointInfo
from curricula.model.config import ModelConfig

if TYPE_CHECKING:
    import torch

INDEX = "model.safetensors.index.json"
"""File of a model in several parts that says which part holds which tensor."""
PLAIN_TYPES = ("torch.bfloat16", "torch.float16", "torch.float32", "torch.float64")
LARGEST_ROPE_BASE = 1e12
CARD = "A language model trained by Curricula to study when safety data should enter pretraining."
"""Sentence in the card of every exported model."""
LAYER = re.compile(r"model\.layers\.(\d+)\.")
GGUF_TENSOR = re.compile(
    r"(token_embd|output_norm|output|blk\.\d+\.(attn_(norm|q|k|v|output)|ffn_(norm|gate|up|down)))\.weight"
)
"""Matches the tensors of a plain Llama. Others are biases, experts, or the frequencies of scaled rotary positions."""


def read_model(source: Path, sequence_length: int | None = None) -> tuple[ModelConfig, dict[str, torch.Tensor]]:
    """Read the Llama model `source`, a Hugging Face folder or a GGUF file: its sizes, and its tensors by Hugging Face's names.

    Raises UserError if something is missing, damaged or of the wrong shape, or if the model is not a plain Llama.
    """
    config, weights = _read_gguf(source) if source.suffix == ".gguf" else _read_folder(source)
    model = model_config(source, config, weights, sequence_length)
    for name, shape in tensor_shapes(model):  # one by one: config.json may claim any number of layers
        if name not in weights:
            raise UserError(f"{source}: lacks the tensor {name}; fetch the model again")
        actual = tuple(weights[name].shape)
        if actual != shape:
            raise UserError(
                f"{source}: the tensor {name} has the shape {actual}, but config.json makes it {shape}; fetch the model again"
            )
        if str(weights[name].dtype) not in PLAIN_TYPES:
            raise UserError(
                f"{source}: the tensor {name} holds {weights[name].dtype}, not plain numbers; import an unquantised model"
            )
        if not weights[name].float().isfinite().all():
            raise UserError(f"{source}: the tensor {name} holds NaN or infinity in float32; fetch the model again")
    beyond = next((name for name in weights if (layer := LAYER.match(name)) and int(layer[1]) >= model.layers), None)
    if beyond is not None:
        raise UserError(
            f"{source}: holds the tensor {beyond}, but config.json has {model.layers} layers; fetch the model again"
        )
    return model, weights


def tensor_shapes(model: ModelConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The tensors of a Llama model: their names on Hugging Face, and their shapes."""
    hidden, kv = model.hidden, model.kv_heads * model.head_size
    yield "model.embed_tokens.weight", (model.vocabulary, hidden)
    yield "model.norm.weight", (hidden,)
    if not model.tied:
        yield "lm_head.weight", (model.vocabulary, hidden)
    for layer in range(model.layers):
        for name, shape in {
            "input_layernorm": (hidden,),
            "self_attn.q_proj": (hidden, hidden),
            "self_attn.k_proj": (kv, hidden),
            "self_attn.v_proj": (kv, hidden),
            "self_attn.o_proj": (hidden, hidden),
            "post_attention_layernorm": (hidden,),
            "mlp.gate_proj": (model.ffn, hidden),
            "mlp.up_proj": (model.ffn, hidden),
            "mlp.down_proj": (hidden, model.ffn),
        }.items():
            yield f"model.layers.{layer}.{name}.weight", shape


def hugging_face_config(info: CheckpointInfo) -> dict[str, Any]:
    """The config.json of a Llama model, with the older form of the RoPE entry, which all versions of transformers read."""
    model = info.model
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": model.vocabulary,
        "hidden_size": model.hidden,
        "intermediate_size": model.ffn,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.kv_heads,
        "head_dim": model.head_size,
        "hidden_act": "silu",
        "max_position_embeddings": model.sequence_length,
        "rms_norm_eps": model.rms_norm_eps,
        "rope_theta": model.rope_base,
        "tie_word_embeddings": model.tied,
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": model.init_std,
        "torch_dtype": info.precision,
        "use_cache": True,  # no pad_token_id: transformers would exempt its embedding from finetuning
    }


def read_config(source: Path) -> ModelConfig:
    """The ModelConfig from config.json in the Hugging Face folder `source`. Raises UserError unless it is a plain Llama."""
    return model_config(source, _read_json(source / "config.json"))


def model_config(
    source: Path, config: dict[str, Any], weights: dict[str, torch.Tensor] | None = None, sequence_length: int | None = None
) -> ModelConfig:
    """The ModelConfig of a Hugging Face config.json, old or new. Raises UserError unless it is a plain Llama.

    If `weights` are given, they say how large the vocabulary is and whether the output projection is tied to the embeddings.
    """
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}  # transformers prefers rope_scaling
    if not isinstance(rope, dict):
        raise UserError(f"{source}: config.json cannot be used (its RoPE entry is {rope!r}); fetch the model again")
    _require_plain(source, config, rope)
    rope_base = rope.get("rope_theta", config.get("rope_theta"))
    tied = bool(config.get("tie_word_embeddings")) if weights is None else "lm_head.weight" not in weights
    if tied and not config.get("tie_word_embeddings"):
        raise UserError(
            f"{source}: the weights lack 'lm_head.weight', though config.json does not tie it; fetch the model again"
        )
    kv_heads = "num_attention_heads" if config.get("num_key_value_heads") is None else "num_key_value_heads"
    try:
        model = ModelConfig(
            layers=config["num_hidden_layers"],
            hidden=config["hidden_size"],
            heads=config["num_attention_heads"],
            kv_heads=config[kv_heads],
            ffn=config["intermediate_size"],
            vocabulary=config["vocab_size"] if weights is None else weights["model.embed_tokens.weight"].shape[0],
            sequence_length=sequence_length or config["max_position_embeddings"],
            rope_base=10000.0 if rope_base is None else float(rope_base),
            rms_norm_eps=float(f"{float(config['rms_norm_eps']):.6g}"),  # GGUF keeps 1e-05 as 9.99999975e-06
            tied=tied,
            init_std=float(config.get("initializer_range", 0.02)),
        )
        if not 1 <= model.rope_base <= LARGEST_ROPE_BASE:
            raise ValueError(f"rope_base is {model.rope_base}, not between 1 and {LARGEST_ROPE_BASE:g}")
        if (size := config.get("head_dim")) not in (None, model.head_size):
            why = f"head_dim is {size!r}, not hidden_size / num_attention_heads"
            raise UserError(f"{source}: not a plain Llama model ({why}); import one that is")
        return model
    except KeyError as missing:
        where = "the weights lack" if "weight" in str(missing) else "config.json lacks"
        raise UserError(f"{source}: {where} {missing}; fetch the model again") from None
    except (TypeError, ValueError, IndexError, OverflowError) as error:
        raise UserError(f"{source}: config.json cannot be used ({error!s:.200}); fetch the model again") from None


def _require_plain(source: Path, config: dict[str, Any], rope: dict[str, Any]) -> None:
    """Raise UserError if config.json, with the RoPE entry `rope`, asks for anything that a plain Llama does not have."""
    unsupported = [
        f"{key} is {value!r}"
        for key, value, plain in (
            ("model_type", config.get("model_type"), "llama"),
            ("rope type", rope.get("rope_type", rope.get("type", "default")), "default"),
            ("hidden_act", config.get("hidden_act", "silu"), "silu"),
            ("attention_bias", bool(config.get("attention_bias")), False),
            ("mlp_bias", bool(config.get("mlp_bias")), False),
            ("is_causal", bool(config.get("is_causal", True)), True),
            ("quantization_config", bool(config.get("quantization_config")), False),
        )
        if value != plain
    ]
    if unsupported:
        raise UserError(f"{source}: not a plain Llama model ({', '.join(unsupported)}); import one that is")


def _read_folder(source: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    from safetensors.torch import load_file

    config_file, whole, index_file = source / "config.json", source / "model.safetensors", source / INDEX
    if whole.exists():  # transformers then reads this file and no other
        files = [whole]
    elif index_file.exists():
        place_of = _read_json(index_file).get("weight_map")
        files = sorted({source / Path(str(name)).name for name in place_of.values()}) if isinstance(place_of, dict) else []
    else:
        files = sorted(source.glob("*.safetensors"))
    if not config_file.exists() or not files:
        raise UserError(f"{source}: no Hugging Face model (config.json and *.safetensors); name its folder")
    weights: dict[str, torch.Tensor] = {}
    for file in files:
        with _damage_named(file):
            file.open("rb").close()  # safetensors calls a file missing, whatever keeps it from being opened
            weights.update(load_file(file))
    config = _read_json(config_file)
    if config.get("tie_word_embeddings") and (output := weights.pop("lm_head.weight", None)) is not None:
        embedding = weights.get("model.embed_tokens.weight")
        if embedding is not None and not embedding.equal(output):  # transformers 5 leaves them untied, transformers 4 ties them
            raise UserError(f"{source}: config.json ties lm_head.weight to the embeddings, but they differ; correct either")
    return config, weights


def _read_json(path: Path) -> dict[str, Any]:
    with _damage_named(path):
        value = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds no JSON object; fetch the model again")
    return value


@contextlib.contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """Turn errors from reading `path` into a UserError, or a StorageError if the disk says nothing about the file."""
    try:
        yield
    except (FileNotFoundError, PermissionError, ValueError, RecursionError, SafetensorError) as error:
        mend = "correct its permissions" if isinstance(error, PermissionError) else "fetch the model again"
        raise UserError(f"{path}: cannot be read ({error}); {mend}") from error
    except OSError as error:
        raise StorageError(f"{path}: cannot be read ({error}); fix the cause and run it again") from error


def _read_gguf(source: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    if not source.exists():
        raise UserError(f"{source}: no such file; name a GGUF file or a Hugging Face folder")
    try:
        import accelerate  # noqa: F401 (transformers needs it)
        import gguf
    except ImportError as error:
        raise UserError(f"{source}: reading GGUF needs the package {error.name}; pip install safety-curricula[gguf]") from None
    import torch
    from transformers import AutoModelForCausalLM

    try:
        read: Any = AutoModelForCausalLM.from_pretrained(
            source.parent, gguf_file=source.name, dtype=torch.float32, output_loading_info=True
        )
        loaded, report = read
        reader = gguf.GGUFReader(source)
        scaling = reader.get_field("llama.rope.scaling.type")
        is_scaled = any(reader.get_field(f"llama.rope.{key}") for key in ("scaling.factor", "scale_linear"))
        # A factor without a type means linear scaling to llama.cpp, which writes such files.
        rope_type = bytes(scaling.parts[-1]).decode() if scaling else "linear" if is_scaled else "none"
    except Exception as error:  # the parser trusts its file: damage can raise anything
        raise UserError(f"{source}: cannot be read ({first_line(error):.200}); fetch the model again") from error
    # transformers ignores what follows.
    strange = next((tensor.name for tensor in reader.tensors if not GGUF_TENSOR.fullmatch(tensor.name)), None)
    if strange or rope_type != "none":
        why = f"it holds the tensor {strange}" if strange else f"its rope type is {rope_type!r}"
        raise UserError(f"{source}: not a plain Llama model ({why}); import one that is")
    drawn = report["missing_keys"]  # drawn at random by transformers, for example if the file is one part of several
    weights = {name: weight for name, weight in loaded.state_dict().items() if name not in drawn}
    if loaded.config.tie_word_embeddings:
        weights.pop("lm_head.weight", None)
    return loaded.config.to_dict() | {"quantization_config": None}, weights  # they are plain numbers now


def is_exported(folder: Path) -> bool:
    """Whether `folder` holds a model that was exported there: its card still has the sentence that `model_card` wrote."""
    card = folder / "README.md"
    return card.is_file() and CARD in card.read_text(encoding="utf-8", errors="replace")


def model_card(name: str, info: CheckpointInfo, provenance: dict[str, Any]) -> str:
    title = "/".join(str(provenance[key]) for key in ("study", "arm", "model") if key in provenance) or name
    if isinstance(git := provenance.get("git"), dict):
        changed = f", with {len(git['changed_files'])} changed files" if git.get("changed_files") else ""
        provenance = {**provenance, "git": f"{git.get('sha') or 'unknown'}{changed}"}
    facts = {
        "parameters": f"{info.model.parameters:,}",
        "training steps": f"{info.step:,}",
        "training tokens": f"{info.consumed_tokens:,}",
        "precision": info.precision,
        **provenance,
        **{f"{package} version": version for package, version in info.versions.items()},
    }
    rows = "\n".join(f"| {key} | {_cell(value)} |" for key, value in facts.items())
    return (
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\n---\n\n"
        f"# {title}\n\n{CARD}\n\n"
        f"| | |\n| --- | --- |\n{rows}\n"
    )


def _cell(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
    return text.replace("|", "\\|").replace("\n", " ")
