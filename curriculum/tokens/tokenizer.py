"""The tokenizer of a run: trained on the demo's text, or a published one with a reserved entry turned into the tag.

A tokenizer is a folder that `transformers.AutoTokenizer` loads offline: tokenizer.json, and tokenizer_config.json with the
ChatML template. `<|endoftext|>` (id 0) ends documents. `<|im_end|>` (id 2) ends a turn and is the `eos_token`, as in
SmolLM2-Instruct, so that chats stop by default. Base models stop at `<|endoftext|>`, so generation stops at both. There is no
`bos_token` (nothing is ever put before a text) and no `unk_token` (bytes cover all text).

The tag is a single entry of the vocabulary, so SafeBeam reads its probability from one logit. Published vocabularies keep
their size: the tag replaces a special entry that their text never uses.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from curricula.curriculum.config import RESERVED
from curricula.curriculum.tokens.chat import CHAT_TEMPLATE, EOS, TURN_END, TURN_START
from curricula.durable import read_json, write_json, write_text
from curricula.errors import UserError

TAG = "<potentially_unsafe_content>"
SPECIALS = (EOS, TURN_START, TURN_END, TAG)
STOPS = (EOS, TURN_END)
"""Entries at which generation ends."""
_NO_LIMIT = 10**30
"""The value that transformers writes for "no maximum length"."""
_MISSING = "name a folder with a tokenizer, or run the job that makes it"


def _pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    """SmolLM's pre-tokenizer: single digits, then GPT-2's words."""
    return pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )


def train_tokenizer(texts: Iterable[str], vocabulary: int, out: Path) -> None:
    """Train a byte-level BPE of exactly `vocabulary` entries on `texts` and write its folder.

    Ids 0 to 3 are SPECIALS. If the text is too small for that many merges, reserved entries fill the vocabulary. Raises
    UserError if the vocabulary has no room for all bytes.
    """
    least = len(SPECIALS) + 256
    if vocabulary < least:
        raise UserError(f"tokenizer.train is {vocabulary}; a byte-level vocabulary needs at least {least} entries")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = _pre_tokenizer()
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIALS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    missing = vocabulary - tokenizer.get_vocab_size()
    tokenizer.add_special_tokens([f"<|reserved_{number}|>" for number in range(missing)])
    _write_folder(json.loads(tokenizer.to_str()), out)


def _write_folder(content: dict[str, Any], out: Path) -> None:
    """Write tokenizer.json, then tokenizer_config.json, whose presence marks the folder as complete."""
    write_text(out / "tokenizer.json", json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    config = {
        # This class takes tokenizer.json as it is; GPT2Tokenizer would rebuild it without splitting digits.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": TURN_END,
        "pad_token": EOS,
        "additional_special_tokens": [TURN_START, TAG],
        "model_max_length": _NO_LIMIT,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    write_json(out / "tokenizer_config.json", config)


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer in `folder`; raises UserError when there is none, or when it lacks a special entry the suite needs."""
    path = folder / "tokenizer.json"
    content = json.dumps(read_json(path, _MISSING))
    try:
        tokenizer = Tokenizer.from_str(content)
    except Exception as error:  # the Rust side raises nothing more precise
        raise UserError(f"{path}: no tokenizer ({error}); name a tokenizer folder, or make or fetch it again") from error
    for special in SPECIALS:
        if tokenizer.token_to_id(special) is None:
            advice = "reserve an entry for it" if special == TAG else "the suite needs SmolLM2's special entries"
            raise UserError(f"{path}: no entry {special}; {advice}")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def special_ids(tokenizer: Tokenizer) -> tuple[int, int]:
    """The ids of the end-of-document token and of the harmfulness tag; `load_tokenizer` has checked that both exist."""
    end, tag = tokenizer.token_to_id(EOS), tokenizer.token_to_id(TAG)
    assert end is not None and tag is not None
    return end, tag


def token_bytes(tokenizer: Tokenizer) -> np.ndarray | None:
    """UTF-8 bytes that each entry spells, int64 [entries]; special entries, such as end marks and the tag, spell none.

    None for a tokenizer whose entries are not made of bytes.
    """
    decoder = json.loads(tokenizer.to_str()).get("decoder") or {}
    if "ByteLevel" not in [decoder.get("type"), *(one.get("type") for one in decoder.get("decoders", []))]:
        return None
    added = tokenizer.get_added_tokens_decoder()
    sizes = np.zeros(max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1, np.int64)
    for text, place in tokenizer.get_vocab(with_added_tokens=True).items():
        if place not in added:
            sizes[place] = len(text)  # such a tokenizer writes each byte as one character
        elif not added[place].special and added[place].content != TAG:
            sizes[place] = len(added[place].content.encode())
    return sizes


def tokenizer_hash(tokenizer: Tokenizer) -> str:
    """A sha256 of everything that determines a text's ids. It does not change when another program saves the tokenizer."""
    content = json.loads(tokenizer.to_str())
    decisive = [content[key] for key in ("model", "added_tokens", "normalizer", "pre_tokenizer")]
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def reserve_tag(source: Path, out: Path, reserved: str = RESERVED) -> None:
    """Write to `out` the published tokenizer in folder `source`, with its entry `reserved` turned into the tag if it has none.

    Ids and vocabulary size stay the same. A post-processor that adds tokens to texts is dropped, and so is a default system
    prompt. Raises UserError when there is no tokenizer or no such entry, or when conversations use the entry.
    """
    path = source / "tokenizer.json"
    content = read_json(path, _MISSING)
    try:
        vocabulary, added = content["model"]["vocab"], content["added_tokens"]
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: no tokenizer ({error!r}); name a folder with a tokenizer.json, or fetch it again") from error
    specials = {entry["content"]: entry for entry in added if entry["special"]}
    if TAG not in specials:  # otherwise it is an export of this suite or a model trained with tags
        spare = sorted(set(specials) - {EOS, TURN_START, TURN_END})
        if reserved not in spare:
            advice = f"choose one of {', '.join(spare)}" if spare else "it has none: add one, and a row to the embedding"
            raise UserError(f"{path}: {reserved} is not a reserved entry that conversations leave free; {advice}")
        if TAG in vocabulary or any(entry["content"] == TAG for entry in added):
            raise UserError(f"{path}: has {TAG} as a plain entry; mark it as special there")
        # Edited in place, so that entries keep their ids and the file keeps its order.
        content["model"]["vocab"] = {TAG if entry == reserved else entry: number for entry, number in vocabulary.items()}
        specials[reserved]["content"] = TAG
    content["post_processor"] = None
    content["truncation"] = content["padding"] = None
    _write_folder(content, out)
    load_tokenizer(out)


def import_gguf_tokenizer(gguf: Path, out: Path, reserved: str = RESERVED) -> None:
    """Write the SmolLM2 tokenizer inside a GGUF file as a plain folder with the tag. Needs `transformers` and `gguf`.

    GGUF records the entries and merges but not the splitting of digits, which is restored here. It also records
    `<|im_start|>` as the start of every text, which is dropped: nothing is ever put before a text.
    """
    from transformers import AutoTokenizer

    try:
        loaded = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise UserError(f"{gguf}: no tokenizer can be read from it ({type(error).__name__}: {error})") from error
    tokenizer = Tokenizer.from_str(loaded.backend_tokenizer.to_str())
    tokenizer.pre_tokenizer = _pre_tokenizer()
    with tempfile.TemporaryDirectory() as aside:
        tokenizer.save(f"{aside}/tokenizer.json")
        reserve_tag(Path(aside), out, reserved)
