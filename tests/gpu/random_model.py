"""Writes a Hugging Face folder with random weights of SmolLM2-1.7B's shape, to time decoders where no weights can be had.

python tests/gpu/random_model.py FOLDER --tokenizer TOKENIZER
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from curricula.curriculum.tokens.tokenizer import train_tokenizer
from curricula.model.config import PRESETS


def options() -> argparse.ArgumentParser:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("folder", type=Path)
    asked.add_argument("--tokenizer", type=Path, help="the folder of a tokenizer; default: a tiny one of 512 entries")
    asked.add_argument("--tiny", action="store_true", help="the shape of the preset tiny")
    return asked


def main() -> None:
    args = options().parse_args()
    if args.tokenizer:
        shutil.copytree(args.tokenizer, args.folder, dirs_exist_ok=True)
    else:
        train_tokenizer(["a few words to make a tokenizer of"], 512, args.folder)
    shape = PRESETS["tiny" if args.tiny else "smollm2-1.7b"]
    config = LlamaConfig(
        vocab_size=len(PreTrainedTokenizerFast.from_pretrained(args.folder)),
        hidden_size=shape.hidden,
        intermediate_size=shape.ffn,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(args.folder)


if __name__ == "__main__":
    main()
