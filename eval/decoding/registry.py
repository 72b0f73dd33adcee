"""The table of decoders: name, titles, version and implementation of each.

docs/architecture.md says how to add a decoder, docs/evaluation.md how an installed package adds one. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from curricula.errors import UserError
from curricula.eval.decoding.settings import Together
from curricula.packages import load_plugin, plugins
from curricula.settings import Positive, Settings

if TYPE_CHECKING:
    from curricula.eval.decoding.answers import Answer
    from curricula.eval.models import LoadedModel

Draws = Sequence[tuple[object, ...]]
"""For each prompt, the values that seed its random draws."""

PLUGINS = "curricula.decoders"
"""The entry point group of decoders from other packages."""


class PluginSettings(Settings, frozen=True):
    """The settings that every decoder from another package has; a subclass adds its own."""

    batch_prompts: Together = 16
    """Prompts that are decoded and stored together."""
    samples: Positive = 1
    """Answers to each prompt."""


@dataclass(frozen=True)
class Decoder:
    name: str
    """Name in studies, in rows and on the command line; also the field of `EvalConfig` with the decoder's settings."""
    title: str
    """Name in headings of the report."""
    short: str
    """Name in the middle of a heading."""
    version: int
    """Version of the algorithm, part of every row's key. Raise it when answers change, so that they are generated again."""
    answer: Callable[[LoadedModel, Sequence[Sequence[int]], Draws, Any], list[Answer]]
    """answer(loaded, prompts as token ids, draws, settings) -> all answers, those to one prompt together."""
    settings: type[PluginSettings] = PluginSettings
    """Type of the settings, for a decoder from another package; those of the others are fields of `EvalConfig`."""
    problem: str = ""
    """Why a decoder from another package cannot be used; "" if it can."""


def _topk(loaded: LoadedModel, prompts: Sequence[Sequence[int]], draws: Draws, settings: Any) -> list[Answer]:
    from curricula.eval.decoding.sampling import sample_topk

    return sample_topk(loaded, prompts, draws, settings)


def _safebeam(loaded: LoadedModel, prompts: Sequence[Sequence[int]], draws: Draws, settings: Any) -> list[Answer]:
    from curricula.eval.decoding.safebeam import search_safebeam

    return search_safebeam(loaded, prompts, settings)


def _greedy(loaded: LoadedModel, prompts: Sequence[Sequence[int]], draws: Draws, settings: Any) -> list[Answer]:
    from curricula.eval.decoding.sampling import search_greedy

    return search_greedy(loaded, prompts, settings)


_ROWS = (
    Decoder("topk", "Top-k sampling", "top-k", 2, _topk),
    Decoder("safebeam", "SafeBeam", "SafeBeam", 3, _safebeam),
    Decoder("greedy", "Greedy", "greedy", 1, _greedy),
)


def _plugin(name: str) -> Decoder:
    """A decoder from another package. A broken one is an error only for a study that uses it."""
    try:
        found = load_plugin(PLUGINS, name, f"decoder {name!r}")
        if isinstance(found, Decoder) and found.name == name and name.isidentifier():
            return found
        problem = f"decoder {name!r}: its entry point must name a Decoder of that name; correct the package"
    except UserError as error:
        problem = str(error)
    return Decoder(name, name, name, 0, _broken, problem=problem)


def _broken(loaded: LoadedModel, prompts: Sequence[Sequence[int]], draws: Draws, settings: Any) -> list[Answer]:
    raise AssertionError("a broken decoder is refused before it answers")


OWN = tuple(decoder.name for decoder in _ROWS)
"""The decoders that come with the suite."""
DECODERS = {decoder.name: decoder for decoder in _ROWS}
DECODERS |= {name: _plugin(name) for name in sorted(plugins(PLUGINS)) if name not in OWN}
