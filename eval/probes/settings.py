"""The settings of the probes; the defaults are the paper's (section 4.3, appendix B). Imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from curricula.curriculum.sources.declared import TextTable
from curricula.settings import Positive, Settings

Layer = Literal["first", "middle", "last", "all"] | Positive
Baseline = Literal["words", "untrained"]


class ProbeTexts(Settings, frozen=True):
    """Texts of your own, which are divided into training and test texts by their hash, so that equal texts stay together."""

    safe: TextTable
    """The safe ones. The same file can hold both: give it twice, with `score` and bounds on it."""
    unsafe: TextTable
    """The unsafe ones."""
    test_share: Annotated[float, msgspec.Meta(gt=0, lt=1)] = 0.5
    """Share of the texts that test the probes."""


class Probes(Settings, frozen=True):
    """Linear probes for safe against unsafe text on the hidden state of the last token (section 4.3)."""

    train_per_class: Positive = 500
    """Training texts of each class, safe and unsafe; the paper's is 500."""
    seeds: Positive = 5
    """Training subsets, each drawn anew and with a probe of its own."""
    layers: Annotated[tuple[Layer, ...], msgspec.Meta(min_length=1)] = ("first", "middle", "last")
    """Blocks whose output is probed, by number from 1, or "first" (1), "middle" (layers // 2 + 1, the 13th of the paper's 24)
    and "last"; "all" is these three and every other."""
    texts: ProbeTexts | None = None
    """Texts of your own; null takes the tables probes/train and probes/test of the data folder."""
    unsafe_score: Positive = 1
    """In the data folder's tables, texts with at least this safety score are unsafe, those with score 0 safe; the threshold is
    not given."""
    max_tokens: Positive = 512
    """Longer texts keep their first tokens; not given."""
    match_length: bool = False
    """Whether safe and unsafe texts are drawn in pairs of about equal length in tokens, so that length tells nothing. Not in
    the paper."""
    baselines: tuple[Baseline, ...] = ()
    """Further baselines beside text length: the same probe on counts of the text's words ("words"), and on the states of the
    network before training ("untrained"). Not in the paper."""

    def check(self) -> None:
        for name in ("layers", "baselines"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise ValueError(f"probes.{name} {list(getattr(self, name))} repeats one; give each once")
