"""What a study file says about its data: tokenizer, sources, the curriculum over them, and tuning sets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec

from curricula.curriculum.sources.declared import TextTable, dataset
from curricula.settings import NonNegativeNumber, Positive, PositiveNumber, Settings, Share, require_known

VALIDATION = "validation"
"""Name of the shard of held-out documents. The training shards are numbered."""
LARGEST_VOCABULARY = 2**16
"""Entries of the largest vocabulary that fits the 16-bit tokens of shards."""

RESERVED = "<empty_output>"
"""SmolLM's entry for notebook cells without output. By default it becomes the harmfulness tag."""

MOST_TOKENS = 10**17
"""Most tokens that pretraining, or a stage after it, can read in one arm."""
MOST = 10**9
"""Largest number of steps, conversations or epochs of a stage after pretraining, and of rows in one of its batches."""

Mix = dict[str, float]
"""Relative weights of sources, by name."""


class Tokenizer(Settings, frozen=True):
    """Where the tokenizer comes from: exactly one of `train`, `folder`, `hub` and `gguf`."""

    train: Positive | None = None
    """Train a byte-level BPE of this many entries on the sources."""
    tuning: bool = False
    """With `train`: train it on the tuning sets' conversations as well."""
    folder: str | None = None
    """A Hugging Face tokenizer on disk; a relative path starts at the study file's folder."""
    hub: str | None = None
    """A Hugging Face tokenizer by name."""
    revision: str | None = None
    """The commit of `hub`. Null: the newest; the plan warns of this, and `data/tokenizer/source.json` records the commit."""
    gguf: str | None = None
    """A GGUF file that holds the tokenizer, or the installed package that holds the file."""
    reserve: str = RESERVED
    """The reserved entry of a published tokenizer that becomes the harmfulness tag, unless there is a tag already."""

    def check(self) -> None:
        self.require_one("train", "folder", "hub", "gguf")
        self.allow_only_with("train", "tuning")
        self.allow_only_with("hub", "revision")
        if self.train:
            self.require_default(["reserve"], "with a published tokenizer")


class Source(TextTable, frozen=True):
    """A stream of pretraining documents."""

    tag_rate: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.0
    """Probability of the harmfulness tag before a token. The paper's is 0.05, for raw unsafe text only."""
    name_speakers: bool | None = None
    """Whether names replace "User:" and "Assistant:"; by default only in datasets of dialogues."""
    documents: Positive | None = None
    """Maximum number of documents: the first ones of each part, in proportion to the parts' sizes; null: all."""
    shards: Annotated[int, msgspec.Meta(ge=1, le=99_999)] = 1
    """Number of shards. Each is tokenised, and restarted if need be, by an element of its own."""
    loss: Literal["all", "tags", "none"] = "all"
    """Which tokens count in the pretraining loss: "all"; only the harmfulness "tags", which teaches the tag but not the text
    around it; or "none", so that the source only uses up tokens. Validation counts all tokens but the tags."""
    max_epochs: PositiveNumber = 4.0
    """Maximum number of epochs. The plan warns of pretraining that reads the source more often, and the run refuses it. Up to 4
    epochs are almost as good as new text (Muennighoff et al. 2023)."""

    def check(self) -> None:
        super().check()
        if self.loss == "tags" and not self.tag_rate:
            raise ValueError("loss is 'tags', but tag_rate is 0, so no token would count; set tag_rate, or set loss to 'none'")

    @property
    def shard_names(self) -> list[str]:
        return [VALIDATION, *(f"{number:05d}" for number in range(self.shards))]

    @property
    def needed_rows(self) -> int | None:
        """Number of leading rows that hold its documents; None if all rows are needed, as when scores select among them."""
        return None if self.score else self.documents

    @property
    def names_speakers(self) -> bool:
        is_dialogue = self.dataset is not None and dataset(self.dataset).dialogue
        return is_dialogue if self.name_speakers is None else self.name_speakers


class PhaseConfig(Settings, frozen=True):
    """One phase of an arm that the study writes out."""

    until: Annotated[float, msgspec.Meta(gt=0, le=1)]
    """Fraction of the token budget at which the phase ends."""
    mix: str | Mix
    """The mix: "safe", the name of an intervention set, or weights of sources."""
    drop: tuple[str, ...] = ()
    """Sources to leave out of the mix. The remaining sources keep their ratio, as they do with `add`."""
    replace: dict[str, str] = {}
    """Sources of the mix to replace, each with the source that takes over its weight, such as {unsafe: safeweb}."""
    add: dict[str, Share] = {}
    """Sources to mix in, each with its share of the phase's tokens, such as {refuseweb: 0.05}."""
    ramp: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 1
    """Number of equal steps in which the phase moves from the previous mix to this one; 1 switches at once."""
    cooldown: bool = False
    """For an arm's last phase: let the learning rate fall over it, not over `pretraining.schedule.decay_fraction`."""

    def applied(self, mix: Mix) -> Mix:
        """`mix` with this phase's changes; raises ValueError if they do not fit it."""
        for name in (*self.drop, *self.replace):
            if name in self.drop and name in self.replace:
                raise ValueError(f"drop and replace both name {name!r}; keep one of them")
            if not mix.get(name):
                raise ValueError(f"drop and replace can name {', '.join(mix)}, the sources of the mix, not {name!r}")
        if sum(self.add.values()) >= 1:
            raise ValueError(f"the shares in add must sum to less than 1, not to {sum(self.add.values()):g}")
        changed: Mix = {}
        for name, weight in mix.items():
            if name not in self.drop:
                changed[self.replace.get(name, name)] = changed.get(self.replace.get(name, name), 0.0) + weight
        total = sum(changed.values())
        for name, share in self.add.items():
            changed[name] = changed.get(name, 0.0) + share * total / (1 - sum(self.add.values()))
        return changed


class Curriculum(Settings, frozen=True):
    """What the arms read: safe data up to a fraction of the budget, then a blend (section 3.2).

    There is an arm for each start and intervention set. `arms` adds others of any shape: unfiltered ones, ramps, late doses,
    doses that end, cooldowns on another mix.
    """

    safe: Mix
    """The mix that arms read before their interventions start. The arm without interventions reads it to the end."""
    interventions: dict[str, Mix] = {}
    """Intervention sets by name, each the mix that arms read once their interventions start."""
    starts: tuple[Share, ...] = (0.0, 0.2, 0.6, 1.0)
    """Fractions of the token budget at which interventions start."""
    arms: dict[str, tuple[PhaseConfig, ...]] = {}
    """Further arms by name, each a list of phases."""
    exposure: Literal["natural", "matched"] = "natural"
    """With "matched", arms that read the same interventions see the same number of intervention tokens by the end: as many as
    the first of these arms, which has the earliest of `starts`. For the others, their share of each phase is scaled."""

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
            if isinstance(phase.mix, str) and phase.mix not in self.mixes():
                known = ", ".join(self.mixes())
                raise ValueError(f"arm {name}: mix {phase.mix!r} is not known; choose one of {known}, or write weights")
            if phase.cooldown and (number == 0 or number < len(phases) - 1):
                raise ValueError(f"arm {name}: phase {number} cannot be a cooldown; only the last of several phases can")
            try:
                require_weights("its mix", self.mix(phase))
            except ValueError as error:
                raise ValueError(f"arm {name}, phase {number}: {error}") from None

    def mixes(self) -> dict[str, Mix]:
        return {"safe": self.safe, **self.interventions}

    def mix(self, phase: PhaseConfig) -> Mix:
        return phase.applied(phase.mix if isinstance(phase.mix, dict) else self.mixes()[phase.mix])


class ReplicateDraws(Settings, frozen=True):
    """What each further seed of a study draws for itself. It shares all else, such as tokens and prompts, with the first."""

    init: bool = True
    """Initial weights."""
    data: bool = True
    """Order of the pretraining data."""
    tuning: bool = True
    """Order of the tuning data."""


class Along(Settings, frozen=True):
    """Measurements during a training. Its end is always measured, by the tasks of the finished model."""

    at: Annotated[tuple[float | int, ...], msgspec.Meta(min_length=1)]
    """Points to measure: fractions of the training between 0 and 1, such as 0.25, or whole steps, such as 100."""
    tasks: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)] = ("attacks-topk",)
    """Evaluation tasks, as in `evaluation.tasks`. Keep the list short: each point is a separate model."""
    prompts: Positive | None = None
    """Maximum number of prompts of each benchmark; null: as many as at the end."""

    def check(self) -> None:
        for place in self.at:
            is_within = place >= 1 if isinstance(place, int) else 0 < place < 1
            if not is_within:
                raise ValueError(
                    f"at names {place}; write a fraction between 0 and 1, such as 0.25, or a step, such as 100 (the end is "
                    "measured in any case)"
                )
        if len(set(map(point_label, self.at))) < len(self.at):  # models and elements would share a name
            raise ValueError(f"at {list(self.at)} repeats a point; name each once")

    def steps(self, total: int) -> dict[str, int]:
        """The step of each point in a training of `total` steps, by the point's label. Raises ValueError for a point outside
        the training and for two points at one step."""
        places: dict[int, float | int] = {}
        for place in self.at:
            step = place if isinstance(place, int) else round(place * total)
            if not 0 < step < total:
                raise ValueError(
                    f"along.at names {place}, which is step {step:,} of {total:,}: no checkpoint is kept there; write "
                    "fractions, or lower steps"
                )
            if step in places:
                raise ValueError(
                    f"along.at names {places[step]} and {place}, which are both step {step:,} of {total:,}; name one"
                )
            places[step] = place
        return {point_label(place): step for step, place in places.items()}


def point_label(place: float | int) -> str:
    """A point of a training as it appears in names of models and elements: 0.25 is "25", step 100 is "step100"."""
    return f"step{place}" if isinstance(place, int) else f"{100 * place:g}"


class StageConfig(Settings, frozen=True, kw_only=True):
    """Settings of every stage after pretraining: where it starts, which arms have it, and what is measured."""

    parent: str | None = msgspec.field(name="from", default=None)
    """The stage whose model it continues from; null: "base", the pretrained model."""
    at: Annotated[float, msgspec.Meta(gt=0, lt=1)] | None = None
    """With `from: base`: the fraction of the pretraining budget after which it starts; null: the end."""
    arms: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)] | None = None
    """The arms that have this stage; null: all that have the stage it continues from."""
    tasks: tuple[str, ...] | None = None
    """Evaluation tasks at its end. Null: `evaluation.tasks.benign` for the stage benign, `evaluation.tasks.base` for a model
    that has read only raw text, otherwise `evaluation.tasks.instruct`."""
    along: Along | None = None
    """Measurements during the stage; null: only at its end."""
    steps: Annotated[int, msgspec.Meta(ge=1, le=MOST)] | None = None
    """Optimizer steps. Give at most one of the keys that set how long the stage trains."""

    @property
    def total_steps(self) -> int | None:
        """Optimizer steps; None if they depend on the data."""
        return self.steps


class Tuning(StageConfig, frozen=True, kw_only=True, tag_field="kind", tag="sft"):
    """Finetuning on conversations (section 4.4 and appendix B: batch 4, learning rate 2e-5, one epoch, cosine)."""

    mix: Mix
    """Relative weights of tuning sets, counted in conversations."""
    conversations: Annotated[int, msgspec.Meta(ge=1, le=MOST)] | None = None
    """Total number of conversations; by default as many as the sets hold."""
    epochs: Annotated[float, msgspec.Meta(gt=0, le=MOST)] | None = None
    """Total number of conversations, as a multiple of what the sets hold; 1 by default."""
    examples: dict[str, Positive] = {}
    """Number of conversations to use from a tuning set, by its name. The seed draws them once; every epoch repeats them."""
    loss: dict[str, Literal["assistant", "all"]] = {}
    """Which tokens carry loss in a tuning set, by its name: the assistant's (the default) or the whole conversation's."""
    tagged_harmful: dict[str, Share] = {}
    """Share of conversations that are harmful answers with tags, by intervention set (the paper's is 0.1, for full) or by arm,
    such as safe-100. An arm's own entry takes precedence over that of its set."""
    refusals: Share | None = None
    """Share of refusals among the remaining conversations; by default as many as the mix holds."""
    packing: bool = False
    """Pack several conversations into a row, with attention only within each; otherwise a row is one padded conversation."""
    global_batch: Annotated[int, msgspec.Meta(ge=1, le=MOST)] = 4
    """Rows in one optimizer step; the paper's is 4."""
    micro_batch: Positive = 4
    """Rows in one forward and backward pass of a device; it divides the global batch."""
    lr: PositiveNumber = 2e-5
    """Peak learning rate; the paper's is 2e-5."""
    warmup_fraction: Share = 0.03
    """Share of all steps over which the learning rate rises; the paper's is 0.03."""
    decay_fraction: Share | None = None
    """Share of the steps, at the end, over which the learning rate falls linearly to 0; null: along half a cosine."""
    weight_decay: NonNegativeNumber = 0.01
    """Weight decay of AdamW. The paper does not state it for tuning; the default is its pretraining value."""

    def check(self) -> None:
        require_weights("mix", self.mix)
        require_known("examples", self.examples, self.mix)
        require_known("loss", self.loss, self.mix)
        if self.global_batch % self.micro_batch:
            raise ValueError(f"global_batch {self.global_batch} is not a multiple of micro_batch {self.micro_batch}")
        self.require_one("conversations", "epochs", "steps", or_none=True)
        if self.packing and self.steps:
            raise ValueError(
                f"steps is {self.steps}, but with packing a row holds as many conversations as fit; give conversations instead"
            )
        if self.total_steps == 0:
            raise ValueError(
                f"conversations is {self.conversations}, fewer than one batch of global_batch {self.global_batch}; raise it"
            )

    def tagged_share(self, arm: str, interventions: str) -> float:
        """Share of tagged harmful answers for `arm`, which has this intervention set."""
        return self.tagged_harmful.get(arm, self.tagged_harmful.get(interventions, 0.0))

    @property
    def total_steps(self) -> int | None:
        if self.conversations and not self.packing:
            return self.conversations // self.global_batch
        return self.steps

    def total_conversations(self, held: Mapping[str, int]) -> int:
        """Conversations of the whole stage, every repetition counted, if its tuning sets hold so many each."""
        if self.steps:
            return self.steps * self.global_batch
        used = sum(self.examples.get(name, held[name]) for name, weight in self.mix.items() if weight)
        return self.conversations or round((self.epochs or 1) * used)


class Midtrain(StageConfig, frozen=True, kw_only=True, tag_field="kind", tag="midtrain"):
    """Training on pretraining text with its own learning rate. The data stream continues where pretraining left it, so no
    sample repeats before its source is exhausted. The optimizer starts with a fresh state."""

    mix: str | Mix
    """The mix: "safe", the name of an intervention set, or its own weights of sources."""
    tokens: Annotated[int, msgspec.Meta(ge=1, le=MOST_TOKENS)] | None = None
    """Tokens to read, rounded to whole steps. Give either this or `steps`."""
    lr: PositiveNumber
    """Peak learning rate."""
    warmup_fraction: Share = 0.0
    """Share of the steps over which the learning rate rises."""
    decay_fraction: Share = 1.0
    """Share of the steps, at the end, over which the learning rate falls linearly to 0."""
    weight_decay: NonNegativeNumber | None = None
    """Weight decay of AdamW; null: as in pretraining, like every setting that is not listed here."""
    global_batch: Annotated[int, msgspec.Meta(ge=1, le=MOST)] | None = None
    """Sequences in one optimizer step; null: as in pretraining."""
    micro_batch: Positive | None = None
    """Sequences in one forward and backward pass of a device; null: as in pretraining."""

    def check(self) -> None:
        if isinstance(self.mix, dict):
            require_weights("mix", self.mix)
        self.require_one("tokens", "steps")


AnyStage = Tuning | Midtrain


def require_weights(where: str, mix: Mix) -> None:
    """Raise ValueError, naming `where`, unless the weights are non-negative, finite and not all zero."""
    if not all(weight >= 0 for weight in mix.values()) or not 0 < sum(mix.values()) < float("inf"):
        raise ValueError(f"the weights of {where} must be non-negative and not all zero, not {mix}")
