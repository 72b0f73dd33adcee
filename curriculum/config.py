"""What a study file may say about its data: sources, the curriculum over them, the token budget and the tuning sets."""

from __future__ import annotations

from typing import Annotated

import msgspec

from curriculum.conversations import POOLS
from curriculum.sources import DATASETS

Positive = Annotated[int, msgspec.Meta(ge=1)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
PositiveNumber = Annotated[float, msgspec.Meta(gt=0)]


class Strict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of the study file: immutable, and an unknown key is an error rather than a silence."""


class Tokenizer(Strict, frozen=True):
    """Where the tokenizer comes from; exactly one of `train`, `folder`, `hub` and `gguf`."""

    train: Positive | None = None  # train a byte-level BPE of this many entries on the sources
    folder: str | None = None  # a Hugging Face tokenizer on disk
    hub: str | None = None  # a Hugging Face tokenizer by name
    gguf: str | None = None  # the tokenizer inside a GGUF file, or inside the installed package of this name
    reserve: str = "<empty_output>"  # which reserved entry of a ready tokenizer becomes the harmfulness tag

    def __post_init__(self) -> None:
        if sum(value is not None for value in (self.train, self.folder, self.hub, self.gguf)) != 1:
            raise ValueError("name exactly one of train, folder, hub and gguf")


class Source(Strict, frozen=True):
    """A stream of pretraining documents."""

    dataset: str  # a short name from curriculum/sources.py
    tag_rate: float = (
        0.0  # probability of the harmfulness tag before a token; the paper's is 0.05, for raw unsafe text only
    )
    documents: Positive | None = None  # read no more than this many
    shards: Positive = 1

    def __post_init__(self) -> None:
        if self.dataset not in DATASETS:
            raise ValueError(f"dataset {self.dataset!r} is not known; choose one of {', '.join(DATASETS)}")
        if not 0 <= self.tag_rate < 1:
            raise ValueError(f"tag_rate {self.tag_rate} is not a probability below 1")


Mix = dict[str, float]  # source name -> weight; weights are relative


class Curriculum(Strict, frozen=True):
    """Safe-only data until a fraction of the budget, then a blend: an arm for each start and intervention set (section 3.2)."""

    safe: Mix
    interventions: dict[str, Mix]
    starts: tuple[float, ...] = (0.0, 0.2, 0.6, 1.0)

    def __post_init__(self) -> None:
        if not self.starts or tuple(sorted(set(self.starts))) != self.starts:
            raise ValueError(f"starts {list(self.starts)} must be distinct and in rising order")
        if self.starts[0] < 0 or self.starts[-1] > 1:
            raise ValueError(f"starts {list(self.starts)} must be fractions of the token budget, from 0 to 1")
        if not self.interventions:
            raise ValueError("interventions is empty; name at least one set")
        for where, mix in self.mixes().items():
            require_weights(where, mix)

    def mixes(self) -> dict[str, Mix]:
        return {"safe": self.safe, **self.interventions}


def require_weights(where: str, mix: Mix) -> None:
    if not all(0 <= weight < float("inf") for weight in mix.values()) or not any(mix.values()):
        raise ValueError(f"the weights of {where} must be non-negative and not all zero, not {mix}")


class Tuning(Strict, frozen=True):
    """A finetuning stage on conversations (section 4.4 and appendix B: batch 4, learning rate 2e-5, one epoch, cosine)."""

    mix: Mix  # dataset -> weight, counted in conversations
    conversations: Positive | None = None  # how many in all; by default as many as the datasets hold
    tagged_harmful: dict[
        str, Share
    ] = {}  # intervention set -> share of tag-annotated harmful completions (0.1 for full)
    global_batch: Positive = 4
    micro_batch: Positive = 4
    lr: PositiveNumber = 2e-5
    warmup_fraction: Share = 0.03
    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        require_weights("mix", self.mix)
        for name in self.mix:
            if name not in POOLS:
                raise ValueError(
                    f"the mix names tuning set {name!r}, which is not known; choose from {', '.join(POOLS)}"
                )
        if self.global_batch % self.micro_batch:
            raise ValueError(f"global_batch {self.global_batch} is not a multiple of micro_batch {self.micro_batch}")
