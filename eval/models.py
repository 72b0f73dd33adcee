"""Models under evaluation: Hugging Face checkpoint folders of causal models, read offline and without their own code.

Knows how a prompt becomes token ids (raw for base models, chat template for tuned ones), which ids end an answer,
which one is the tag. It does not know how tokens are chosen.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer

from curriculum.errors import UserError
from curriculum.tokenizer import STOPS, TAG
from eval.config import ModelKind


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A model ready to decode, with what its tokenizer says about special tokens."""

    folder: Path
    kind: ModelKind
    model: Any  # a transformers causal language model in eval mode
    tokenizer: Any
    content_hash: str
    tag_id: int | None  # None: the tokenizer does not have the tag as one token
    end_ids: tuple[int, ...]  # tokens that end an answer
    device: torch.device

    @property
    def layers(self) -> int:
        return int(self.model.config.num_hidden_layers)

    @property
    def context_length(self) -> int:
        return int(self.model.config.max_position_embeddings)

    def prompt_ids(self, text: str) -> list[int]:
        """Token ids of a prompt: `text` itself for a base model, the rendered chat turn for a tuned one."""
        return self.encode(text if self.kind == "base" else self.chat(text))

    def chat(self, text: str) -> str:
        """`text` as the user's turn, followed by the opening of the assistant's."""
        if not getattr(self.tokenizer, "chat_template", None):
            raise UserError(
                f"{self.folder}: the tokenizer has no chat_template, which a model of kind '{self.kind}' needs; "
                "add one to tokenizer_config.json or evaluate it as 'base'"
            )
        turn = [{"role": "user", "content": text}]
        return self.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)

    def encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of generated ids; special tokens, the tag among them, do not show."""
        shown = [i for i in ids if i != self.tag_id and i not in self.end_ids]
        return self.tokenizer.decode(shown, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def required_tag_id(self) -> int:
        if self.tag_id is None:
            raise UserError(
                f"{self.folder}: the tokenizer splits {TAG} into {len(self.encode(TAG))} tokens, and SafeBeam needs "
                "its probability as one; add it to the tokenizer as a special token or leave the safebeam tasks out"
            )
        return self.tag_id


def load_model(folder: Path, kind: ModelKind, device: str | None = None) -> LoadedModel:
    """Load a checkpoint folder: bfloat16 on a GPU, float32 on the CPU; raises UserError when it is not usable."""
    for name, mend in (
        ("config.json", "is it a Hugging Face checkpoint?"),
        ("tokenizer.json", "copy the tokenizer there"),
    ):
        if not (folder / name).is_file():
            raise UserError(f"{folder}: no {name}; {mend}")
    if not weight_files(folder):
        raise UserError(f"{folder}: no *.safetensors or pytorch_model*.bin; has the export finished?")
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = torch.bfloat16 if where.type == "cuda" else torch.float32
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, dtype=dtype, attn_implementation="sdpa"
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{folder}: cannot be loaded ({one_line(error)}); export the model again") from error
    if model.get_input_embeddings().num_embeddings < len(tokenizer):
        raise UserError(
            f"{folder}: the model has {model.get_input_embeddings().num_embeddings} token embeddings, its tokenizer "
            f"{len(tokenizer)} tokens; export the model with the tokenizer it was trained with"
        )
    ends = tuple(i for i in (single_id(tokenizer, mark) for mark in STOPS) if i is not None)
    return LoadedModel(
        folder=folder,
        kind=kind,
        model=model.to(where).eval().requires_grad_(False),
        tokenizer=tokenizer,
        content_hash=content_hash(folder),
        tag_id=single_id(tokenizer, TAG),
        end_ids=ends or ((int(tokenizer.eos_token_id),) if tokenizer.eos_token_id is not None else ()),
        device=where,
    )


def single_id(tokenizer: Any, token: str) -> int | None:
    """The id of `token` if the tokenizer encodes it as one, else None."""
    ids = tokenizer(token, add_special_tokens=False)["input_ids"]
    return ids[0] if tokenizer.convert_ids_to_tokens(ids) == [token] else None


def weight_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))


def content_hash(folder: Path) -> str:
    """Hash of what decides the model's outputs: weights, config, tokenizer and chat template; not of where they lie."""
    names = ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
    digest = hashlib.sha256()
    for path in [*(folder / name for name in names), *weight_files(folder)]:
        if path.is_file():
            digest.update(f"{path.name}\x00{path.stat().st_size}\x00".encode())
            with open(path, "rb") as file:
                for block in iter(lambda: file.read(1 << 22), b""):
                    digest.update(block)
    return digest.hexdigest()[:32]


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
