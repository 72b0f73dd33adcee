"""The settings of every decoder. The defaults are the paper's (section 4, appendix B).

A docstring says so if the paper does not give a value. Imports no torch: studies are read on login nodes.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from curricula.settings import Positive, Settings

Pool = Literal["all", "beam"]
Together = Annotated[Positive, "together"]
"""Type of a setting that says how much is computed in one batch. It changes answers only by rounding, so a run that has begun
may change it (`together`)."""

SAFE_COMPLETIONS = (
    "I can't help with that.",
    "I won't continue with this. I can help with something else.",
    "This touches on something harmful, so I will stop here.",
    "I'm not able to answer that safely, so I won't.",
)
"""Texts shown instead of an answer that is cut at the tag. They are ours, since the paper gives none."""


class AnswerSettings(Settings, frozen=True):
    """What the suite's decoders have in common."""

    max_new_tokens: Positive = 256
    """Longest answer in tokens; the paper's is 256."""
    stop_at_tag: bool = False
    """Whether the tag ends an answer (short-circuit), as in a deployed system; in standard inference it continues."""
    safe_completions: tuple[str, ...] = SAFE_COMPLETIONS
    """Texts shown instead of answers that the tag ended; each of these answers gets one."""
    batch_prompts: Together = 128
    """Prompts that are decoded, with all their samples, and stored together."""
    rows: Together = 64
    """Answers in one forward pass; finished answers make room for waiting ones."""


class TopK(AnswerSettings, frozen=True):
    """Standard inference: sampling from the k likeliest tokens."""

    k: Positive = 10
    """Tokens to sample from; the paper's is 10."""
    temperature: Annotated[float, msgspec.Meta(gt=0, le=1000)] = 1.0
    """Sampling temperature. The paper does not give it."""
    samples: Positive = 5
    """Answers per prompt, each with its own random draws."""
    batch_prompts: Together = 32
    rows: Together = 80
    backend: Literal["transformers", "vllm"] = "transformers"
    """Library that generates the answers; vLLM needs the extra `vllm` and a GPU."""


class Greedy(AnswerSettings, frozen=True):
    """The likeliest token at every step; not in the paper."""


class SafeBeam(AnswerSettings, frozen=True):
    """Safety-aware inference: beam search that drops the candidates likeliest to be followed by the tag.

    Algorithm 1 of Maini et al. leaves several things open; docs/decoding.md says what each choice means.
    """

    beams: Positive = 10
    """Texts kept at each step; the paper's is 10."""
    candidates: Positive = 20
    """Extensions considered before pruning. The paper does not give the number; ours is 2 x beams, of which half is dropped."""
    pool: Pool = "all"
    """Whether candidates are the likeliest extensions over all beams (all), or equally many of each beam (beam)."""
    drop: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.5
    """Share of the candidates dropped, those with the highest P(tag); 0 is plain beam search."""
    ended_risk: Literal["before", "after", "none"] = "before"
    """P(tag) of a text that has ended: that before its last token, that after it, or 0 (none). The paper does not say which."""
    tag: Literal["one-token", "product", "first-token"] = "one-token"
    """P(tag) if the tokenizer splits the tag: not allowed (one-token), the product over its tokens, or that of its first."""
    stop_at_tag: bool = True
    """Whether the tag ends a text; the answer is then a short-circuit."""
    batch_prompts: Together = 16
    rows: Together = 320
    """Candidates of all prompts in one forward pass; a finished prompt makes room for the next."""

    def check(self) -> None:
        kept = self.candidates - int(self.drop * self.candidates + 1e-9)
        if kept < self.beams:
            raise ValueError(
                f"safebeam.candidates {self.candidates} with drop {self.drop} leaves {kept}, fewer than the "
                f"{self.beams} beams; raise candidates to at least {int((self.beams - 1) / (1 - self.drop) + 1e-9) + 1}"
            )
        if self.pool == "beam" and self.candidates % self.beams:
            raise ValueError(
                f"safebeam.candidates {self.candidates} is not a multiple of the {self.beams} beams, but pool 'beam' takes "
                f"equally many of each; choose {self.candidates // self.beams * self.beams + self.beams}"
            )


def together(kind: type[msgspec.Struct]) -> set[str]:
    """The settings of a `kind` that only say how much is computed in one batch."""
    return {field.name for field in msgspec.structs.fields(kind) if field.type == Together}
