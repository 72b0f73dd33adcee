"""Sources that both sides read, and Megatron-core's own dataset over them, set up as its pretraining script does.

Documents have log-normal lengths with a mean of 1,000 tokens, as web text has, so that a sample of 2,048 tokens spans three of
them on average.
"""

from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from curricula.curriculum.tokens.shards import HEADER, MAGIC, UINT16

MEAN_DOCUMENT = 1000
VOCABULARY = 49_152
SEED = 1234


def document_lengths(tokens: int, seed: int) -> np.ndarray:
    """Lengths of documents that hold `tokens` tokens in all (int32)."""
    sigma = 1.0
    random = np.random.default_rng(seed)
    drawn = random.lognormal(np.log(MEAN_DOCUMENT) - sigma**2 / 2, sigma, int(tokens / MEAN_DOCUMENT * 1.1) + 100)
    lengths = np.clip(drawn, 16, 100_000).astype("<i4")
    ends = np.cumsum(lengths, dtype=np.int64)
    last = int(ends.searchsorted(tokens))
    kept = lengths[: last + 1]
    kept[-1] -= int(ends[last]) - tokens
    return kept


def write_index(prefix: Path, lengths: np.ndarray) -> None:
    """`prefix`.idx of a shard whose documents have these lengths."""
    offsets = (np.cumsum(lengths, dtype="<i8") - lengths) * 2
    with open(prefix.with_suffix(".idx"), "wb") as file:
        file.write(HEADER.pack(MAGIC, 1, UINT16, len(lengths), len(lengths) + 1))
        for part in (lengths, offsets, np.arange(len(lengths) + 1, dtype="<i8")):
            file.write(part.data)


def write_manifest(prefix: Path, shards: int, tokens: int) -> None:
    """The manifest that `curricula data tokenize` would write, as far as training reads it."""
    manifest = {"shards": shards, "tokens": tokens, "tokenizer": "t", "sha256": f"{prefix.parent.name}/{prefix.name}"}
    prefix.with_suffix(".json").write_text(json.dumps(manifest))


class Tokenizer:
    """What GPTDataset asks of a tokenizer; the ids are SmolLM2's."""

    vocab_size = VOCABULARY
    eod = 0
    pad = 2
    unique_identifiers = {"name": "benchmark"}


def import_megatron() -> None:
    """Import what Megatron-core's data path needs, and open the process group that its BlendedDataset asks for its rank."""
    warnings.simplefilter("ignore")
    import torch.distributed
    from megatron.core.datasets import blended_megatron_dataset_builder, gpt_dataset, helpers_cpp  # noqa: F401

    logging.getLogger("megatron").setLevel(logging.ERROR)
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)


def blended(prefixes: list[str], weights: list[float], samples: int, sequence_length: int, cache: Path) -> Any:
    """Megatron-core's training dataset: every option as `pretrain_gpt.py` sets it by default, but no attention mask.

    That is `--no-create-attention-mask-in-dataloader`, which real runs set: the mask has 4 million entries a sample.
    """
    from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig

    config = GPTDatasetConfig(
        random_seed=SEED,
        sequence_length=sequence_length,
        blend_per_split=[(prefixes, weights), None, None],
        path_to_cache=str(cache),
        tokenizer=Tokenizer(),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
    )
    return BlendedMegatronDatasetBuilder(GPTDataset, [samples, None, None], lambda: True, config).build()[0]
