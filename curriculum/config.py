"""What a study file says about its data: tokenizer, sources, the curriculum over them, and tuning sets."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from curricula.curriculum.sources.conversations import POOLS
from curricula.curriculum.sources.registry import DATASETS
from curricula.settings import Positive, PositiveNumber, Settings, Share

VALIDATION = "validation"
"""The shard of held-out documents, beside the numbered ones."""

Mix = dict[str, float]
"""Relative weights of sources, by name."""


class Tokenizer(Settings, frozen=True):
    """Where the tokenizer comes from: exactly one of `train`, `folder`, `hub` and `gguf`."""

    train: Positive | None = None
    """Train a byte-level BPE of this many entries on the sources."""
    tuning: bool = False
    """With `train`: train it on the tuning sets' conversations as well."""
    folder: str | None = None
    """A Hugging Face tokenizer on disk."""
    hub: str | None = None
    """A Hugging Face tokenizer by name."""
    revision: str | None = None
    """The commit of `hub`. Without one the newest is read, which the plan warns of and `data/tokenizer/source.json` records."""
    gguf: str | None = None
    """A GGUF file that holds the tokenizer, or the installed package that holds the file."""
    reserve: str = "<empty_output>"
    """The reserved entry of a published tokenizer that becomes the harmfulness tag."""

    def check(self) -> None:
        if sum(value is not None for value in (self.train, self.folder, self.hub, self.gguf)) != 1:
            raise ValueError("name exactly one of train, folder, hub and gguf")
        if self.tuning and self.train is None:
            raise ValueError("tuning is true, which only a tokenizer that `train` makes can be; leave it out")
        if self.revision is not None and self.hub is None:
            raise ValueError(f"revision is {self.revision!r}, which only a tokenizer of `hub` has; leave it out")


class Source(Settings, frozen=True):
    """A stream of pretraining documents."""

    dataset: str
    """A short name from curriculum/sources/registry.py."""
    parts: tuple[str, ...] = ()
    """Parts of the dataset to read, such as [score_4, score_5]; all by default."""
    tag_rate: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.0
    """Probability of the harmfulness tag before a token. The paper's is 0.05, for raw unsafe text only."""
    name_speakers: bool | None = None
    """Whether "User:" and "Assistant:" become names; by default only in datasets of dialogues."""
    documents: Positive | None = None
    """Read at most this many: the first ones of each part, in proportion to the parts' sizes."""
    shards: Annotated[int, msgspec.Meta(ge=1, le=99_999)] = 1
    """Pieces that are tokenised and restarted on their own, each an element of an array."""
    max_epochs: PositiveNumber = 4.0
    """Pretraining that reads the source more often is refused, and the plan warns of it. Up to 4 epochs are almost as good as
    new text (Muennighoff et al. 2023)."""

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
            raise ValueError(f"parts {list(self.parts)} repeat a name; name each part once")

    @property
    def shard_names(self) -> list[str]:
        return [VALIDATION, *(f"{number:05d}" for number in range(self.shards))]

    @property
    def names_speakers(self) -> bool:
        return DATASETS[self.dataset].dialogue if self.name_speakers is None else self.name_speakers


class PhaseConfig(Settings, frozen=True):
    """One phase of an arm that the study writes out."""

    until: Annotated[float, msgspec.Meta(gt=0, le=1)]
    """Fraction of the token budget at which the phase ends."""
    mix: str | Mix
    """The name "safe", that of an intervention set, or weights."""
    ramp: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 1
    """Move from the previous mix to this one in so many equal steps along the phase; 1 switches at once."""


class Curriculum(Settings, frozen=True):
    """What arms read: safe data up to a fraction of the budget, then a blend (section 3.2).

    There is an arm for each start and intervention set. `arms` adds others of any shape: ramps, late doses, doses that end.
    """

    safe: Mix
    """What arms read before the interventions start, and what the arm without them reads to the end."""
    interventions: dict[str, Mix] = {}
    """Intervention sets by name."""
    starts: tuple[Share, ...] = (0.0, 0.2, 0.6, 1.0)
    """Fractions of the token budget at which interventions start."""
    arms: dict[str, tuple[PhaseConfig, ...]] = {}
    """Further arms by name, each a list of phases."""
    exposure: Literal["natural", "matched"] = "natural"
    """With "matched", late arms get more of the interventions, so that all arms of a set see the same amount by the end."""

    def check(self) -> None:
        if tuple(sorted(set(self.starts))) != self.starts:
            raise ValueError(f"starts {list(self.starts)} must be distinct and in rising order")
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


class ReplicateDraws(Settings, frozen=True):
    """What each further seed of a study draws anew. All else, such as tokenised data and prompts, is the first seed's."""

    init: bool = True
    """Initial weights."""
    data: bool = True
    """Order of the pretraining data."""
    tuning: bool = True
    """Order of the tuning data."""


class Tuning(Settings, frozen=True):
    """A finetuning stage on conversations (section 4.4 and appendix B: batch 4, learning rate 2e-5, one epoch, cosine)."""

    mix: Mix
    """Relative weights of tuning sets, counted in conversations."""
    conversations: Positive | None = None
    """Conversations in total; by default as many as the sets hold."""
    tagged_harmful: dict[str, Share] = {}
    """Share of harmful answers with tags, by intervention set (the paper's is 0.1, for full)."""
    refusals: Share | None = None
    """Share of refusals among the other conversations; by default as many as the mix holds."""
    packing: bool = False
    """Put several conversations in a row, with attention within each; otherwise a row is one padded conversation."""
    global_batch: Positive = 4
    """Rows in one optimizer step; the paper's is 4."""
    micro_batch: Positive = 4
    """Rows in one forward and backward pass of a device; it divides the global batch."""
    lr: PositiveNumber = 2e-5
    """Peak learning rate; the paper's is 2e-5."""
    warmup_fraction: Share = 0.03
    """Share of all steps over which the learning rate rises; the paper's is 0.03."""
    weight_decay: float = 0.01
    """Of AdamW. Not given for the paper's tuning; that of its pretraining."""

    def check(self) -> None:
        require_weights("mix", self.mix)
        for name in self.mix:
            if name not in POOLS:
                raise ValueError(f"the mix names unknown tuning set {name!r}; choose from {', '.join(POOLS)}")
        if self.global_batch % self.micro_batch:
            raise ValueError(f"global_batch {self.global_batch} is not a multiple of micro_batch {self.micro_batch}")


def require_weights(where: str, mix: Mix) -> None:
    """Raise ValueError, naming `where`, unless the weights are non-negative, finite and not all zero."""
    if not all(weight >= 0 for weight in mix.values()) or not 0 < sum(mix.values()) < float("inf"):
        raise ValueError(f"the weights of {where} must be non-negative and not all zero, not {mix}")
