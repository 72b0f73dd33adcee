"""What a study file may say about its data: sources, the curriculum over them, the token budget and the tuning sets."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from curricula.curriculum.sources.conversations import POOLS
from curricula.curriculum.sources.registry import DATASETS
from curricula.settings import Positive, PositiveNumber, Settings, Share


class Tokenizer(Settings, frozen=True):
    """Where the tokenizer comes from; exactly one of `train`, `folder`, `hub` and `gguf`."""

    train: Positive | None = None  # train a byte-level BPE of this many entries on the sources
    folder: str | None = None  # a Hugging Face tokenizer on disk
    hub: str | None = None  # a Hugging Face tokenizer by name
    gguf: str | None = None  # the tokenizer inside a GGUF file, or inside the installed package of this name
    reserve: str = "<empty_output>"  # which reserved entry of a ready tokenizer becomes the harmfulness tag

    def check(self) -> None:
        if sum(value is not None for value in (self.train, self.folder, self.hub, self.gguf)) != 1:
            raise ValueError("name exactly one of train, folder, hub and gguf")


VALIDATION = "validation"  # the shard of held-out documents, beside the numbered ones


class Source(Settings, frozen=True):
    """A stream of pretraining documents."""

    dataset: str  # a short name from curriculum/sources/registry.py
    parts: tuple[str, ...] = ()  # only these parts of the dataset, such as [score_4, score_5]; all by default
    tag_rate: float = (
        0.0  # probability of the harmfulness tag before a token; the paper's is 0.05, for raw unsafe text only
    )
    name_speakers: bool | None = (
        None  # "User:" and "Assistant:" become names; by default where the dataset is dialogues
    )
    documents: Positive | None = None  # read no more than this many
    shards: Annotated[int, msgspec.Meta(ge=1, le=99_999)] = 1
    max_epochs: PositiveNumber = 4.0  # warn beyond; up to 4 are almost as good as new text (Muennighoff et al. 2023)

    def check(self) -> None:
        if self.dataset not in DATASETS:
            raise ValueError(f"dataset {self.dataset!r} is not known; choose one of {', '.join(DATASETS)}")
        known = DATASETS[self.dataset].parts
        for part in self.parts:
            if part not in known:
                raise ValueError(
                    f"part {part!r} is not in dataset {self.dataset}; it has {', '.join(known) or 'no parts'}"
                )
        if len(set(self.parts)) < len(self.parts):
            raise ValueError(f"parts {list(self.parts)} name one twice; name each once")
        if not 0 <= self.tag_rate < 1:
            raise ValueError(f"tag_rate {self.tag_rate} is not a probability below 1")

    @property
    def shard_names(self) -> list[str]:
        return [VALIDATION, *(f"{number:05d}" for number in range(self.shards))]

    @property
    def names_speakers(self) -> bool:
        return DATASETS[self.dataset].dialogue if self.name_speakers is None else self.name_speakers


Mix = dict[str, float]  # source name -> weight; weights are relative


class PhaseConfig(Settings, frozen=True):
    """A phase of an arm that is written out by hand: up to the fraction `until` of the budget, data by `mix`."""

    until: Annotated[float, msgspec.Meta(gt=0, le=1)]
    mix: str | Mix  # "safe", the name of an intervention set, or weights
    # Come from the mix before to this one in so many equal steps along the phase; 1: at once.
    ramp: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 1


class Curriculum(Settings, frozen=True):
    """Safe-only data until a fraction of the budget, then a blend: an arm for each start and intervention set (section 3.2).

    `arms` are further ones of any shape: ramps, late doses, doses that end.
    """

    safe: Mix
    interventions: dict[str, Mix] = {}
    starts: tuple[float, ...] = (0.0, 0.2, 0.6, 1.0)
    arms: dict[str, tuple[PhaseConfig, ...]] = {}
    # matched: late arms get more of the interventions, so that all arms of a set see as much of them by the end.
    exposure: Literal["natural", "matched"] = "natural"

    def check(self) -> None:
        if tuple(sorted(set(self.starts))) != self.starts:
            raise ValueError(f"starts {list(self.starts)} must be distinct and in rising order")
        if self.starts and not 0 <= self.starts[0] <= self.starts[-1] <= 1:
            raise ValueError(f"starts {list(self.starts)} must be fractions of the token budget, from 0 to 1")
        if not self.starts and not self.arms:
            raise ValueError("starts is empty and there are no arms; name at least one of them")
        if not self.interventions and self.starts not in ((), (1.0,)):
            raise ValueError("interventions is empty; name at least one set")
        for where, mix in self.mixes().items():
            require_weights(where, mix)
        for name, phases in self.arms.items():
            self._check_arm(name, phases)

    def _check_arm(self, name: str, phases: tuple[PhaseConfig, ...]) -> None:
        ends = [phase.until for phase in phases]
        if not ends or ends != sorted(set(ends)) or ends[-1] != 1:
            raise ValueError(f"arm {name}: `until` must rise from phase to phase and end at 1, but is {ends}")
        for number, phase in enumerate(phases):
            if isinstance(phase.mix, dict):
                require_weights(f"arm {name}, phase {number}", phase.mix)
            elif phase.mix not in self.mixes():
                known = ", ".join(self.mixes())
                raise ValueError(f"arm {name}: mix {phase.mix!r} is not known; choose one of {known}, or write weights")

    def mixes(self) -> dict[str, Mix]:
        return {"safe": self.safe, **self.interventions}

    def mix(self, phase: PhaseConfig) -> Mix:
        return phase.mix if isinstance(phase.mix, dict) else self.mixes()[phase.mix]


def require_weights(where: str, mix: Mix) -> None:
    if not all(weight >= 0 for weight in mix.values()) or not 0 < sum(mix.values()) < float("inf"):
        raise ValueError(f"the weights of {where} must be non-negative and not all zero, not {mix}")


class Tuning(Settings, frozen=True):
    """A finetuning stage on conversations (section 4.4 and appendix B: batch 4, learning rate 2e-5, one epoch, cosine)."""

    mix: Mix  # dataset -> weight, counted in conversations
    conversations: Positive | None = None  # how many in all; by default as many as the datasets hold
    tagged_harmful: dict[
        str, Share
    ] = {}  # intervention set -> share of tag-annotated harmful completions (0.1 for full)
    refusals: Share | None = None  # share of refusals among the others; by default as many as the mix happens to hold
    packing: bool = False  # several conversations a row, attention within each; else one a row, padded
    global_batch: Positive = 4
    micro_batch: Positive = 4
    lr: PositiveNumber = 2e-5
    warmup_fraction: Share = 0.03
    weight_decay: float = 0.01

    def check(self) -> None:
        require_weights("mix", self.mix)
        for name in self.mix:
            if name not in POOLS:
                raise ValueError(
                    f"the mix names tuning set {name!r}, which is not known; choose from {', '.join(POOLS)}"
                )
        if self.global_batch % self.micro_batch:
            raise ValueError(f"global_batch {self.global_batch} is not a multiple of micro_batch {self.micro_batch}")
