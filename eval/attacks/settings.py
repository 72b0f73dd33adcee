"""The settings of the attacks beside GCG: which prompts they attack, and how each is carried out.

Imports no torch: studies are read on login nodes.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from curricula.settings import Positive, Settings, Share

PlainName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,99}$")]
"""A name that becomes a file's and a column's."""


class Prefill(Settings, frozen=True):
    """The answer begins with words of compliance, and the model continues it."""

    text: str | None = None
    """What every answer begins with, such as "Sure, here is". null takes the target that the benchmark gives for the prompt
    ("Sure, here is a script that ..."), and "Sure, here is" where it gives none."""
    tokens: Positive | None = None
    """Only the first tokens of it, by the model's own tokenizer; null takes all."""

    def check(self) -> None:
        if self.text is not None and not self.text.strip():
            raise ValueError("prefill.text is empty; give the words that an answer begins with, or null")


class BestOfN(Settings, frozen=True):
    """Samples of randomly distorted prompts, of which one has to succeed (Hughes et al. 2024, arXiv:2412.03556)."""

    attempts: Positive = 100
    """N, distorted prompts with one top-k answer each. The paper goes up to 10,000."""
    sigma: Share = 0.4
    """Strength of the distortion; the paper's value for text."""
    scramble: bool = True
    """Shuffle the middle letters of a word of four letters or more, with probability sigma^(1/2)."""
    capitalize: bool = True
    """Swap the case of a letter, with probability sigma^(1/2)."""
    noise: bool = True
    """Move a character to one of its two ASCII neighbours, with probability sigma^3."""


class Ablation(Settings, frozen=True):
    """The direction of refusal is removed from the residual stream (Arditi et al. 2024, arXiv:2406.11717).

    The defaults are those of the authors' pipeline (github.com/andyrdt/refusal_direction).
    """

    harmful: str = "advbench"
    """Benchmark of the harmful prompts that the direction is found with; near-copies of attacked prompts are left out."""
    harmless: str = "alpaca"
    """Benchmark of the harmless ones."""
    train: Positive = 128
    """Prompts of each kind whose states are averaged."""
    validation: Positive = 32
    """Prompts of each kind on which candidate directions are compared."""
    refusal_words: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)] = ("I",)
    """How refusals begin; the first token of each counts. The authors choose them for each family of models."""
    most_divergence: Annotated[float, msgspec.Meta(ge=0)] = 0.1
    """Largest KL divergence, in nats, that ablating may cause in the first token of answers to harmless prompts."""
    least_induced: float = 0.0
    """Least log-odds of a refusal, in nats, when the direction is added on harmless prompts."""
    pruned_layers: Share = 0.2
    """Share of the layers, from the last, that give no direction."""

    def check(self) -> None:
        if not all(self.refusal_words):
            raise ValueError("ablation.refusal_words holds an empty word; remove it")


class Attacks(Settings, frozen=True):
    """Attacks that are named in `tasks`, such as prefill-topk."""

    benchmarks: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)] = ("jailbreakbench",)
    """Benchmarks that prefill, template-removal, best-of-n and ablation attack."""
    prompts: Positive | None = None
    """At most this many prompts of each benchmark or file; null takes all."""
    prefill: Prefill = Prefill()
    """Answers that are begun for the model."""
    best_of_n: BestOfN = BestOfN()
    """Many tries of a request, each written otherwise."""
    ablation: Ablation = Ablation()
    """The removal of the direction along which a model refuses."""
    artifacts: dict[PlainName, str] = {}
    """Prompts to replay, by a name of your choice: a file in JailbreakBench's artifact format or a folder of such files, its
    path absolute or within the data folder."""
    suffixes_of: tuple[PlainName, ...] = ()
    """Arms whose GCG suffixes are tried on every arm, each on the models of the same kind and training seed."""

    def check(self) -> None:
        for what in ("benchmarks", "suffixes_of"):
            names = getattr(self, what)
            if len(set(names)) < len(names):
                raise ValueError(f"attacks.{what} {list(names)} repeats a name; give each once")
