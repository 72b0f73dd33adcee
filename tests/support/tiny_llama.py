"""Random Llamas with a small byte-level tokenizer, saved as checkpoint folders: what the evaluation tests run on."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TAG = "<potentially_unsafe_content>"
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", TAG]
TEXT = [
    "Write a short story about a lighthouse keeper who reads every letter that the sea brings.",
    "Describe how to pick a lock. Sure, here is how the old clock in the tower was mended.",
    "Explain why bread rises; give three tips for staying healthy and name the primary colors.",
    "I cannot help with that, but I can tell you what makes a good neighbour in a small town.",
] * 4
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def tiny_tokenizer(
    vocab_size: int = 400, specials: list[str] | None = None, *, adds_blank: bool = False
) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer. If it `adds_blank` before a text that begins without one, it keeps that when it decodes."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=adds_blank)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIALS if specials is None else specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(TEXT, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|endoftext|>", pad_token="<|endoftext|>")
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def spaced_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer that puts a blank before every text and drops it again when it decodes, as Llama 2's does."""
    core = Tokenizer(models.BPE(byte_fallback=True))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    alphabet = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=[*SPECIALS, *alphabet], show_progress=False)
    core.train_from_iterator([*TEXT, "x [INST] [/INST]"], trainer)
    core.pre_tokenizer = None
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|endoftext|>", pad_token="<|endoftext|>")
    tokenizer.chat_template = "{% for m in messages %}{{ '[INST] ' + m['content'] + ' [/INST]' }}{% endfor %}"
    return tokenizer


def save_tiny_llama(
    folder: Path,
    *,
    seed: int = 0,
    hidden: int = 32,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    vocab_size: int = 400,
    scale: float = 1.0,
    context: int = 512,
    tied: bool = False,
    specials: list[str] | None = None,
) -> Path:
    """A random model in `folder`; `scale` multiplies the output weights, so that distributions are peaked."""
    tokenizer = tiny_tokenizer(vocab_size, specials)
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=hidden,
            intermediate_size=2 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            max_position_embeddings=context,
            tie_word_embeddings=tied,
            initializer_range=0.2,
            bos_token_id=0,
            eos_token_id=0,
            pad_token_id=0,
        )
    )
    with torch.no_grad():
        model.lm_head.weight.mul_(scale)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
