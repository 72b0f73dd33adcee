"""Ablation of the refusal direction (Arditi et al. 2024): the residual stream without the direction that carries refusal.

    direction = find_direction(loaded, EvalConfig(), data_root, out / "refusal-direction.json", out / "scores.jsonl")
    with without_direction(loaded.model, direction.vector):
        ...  # the model runs without that direction

docs/evaluation.md says how the direction is chosen.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch

from curricula import durable
from curricula.errors import UserError
from curricula.eval.attacks.prompts import ablation_texts
from curricula.eval.config import Ablation, EvalConfig
from curricula.eval.models import LoadedModel
from curricula.eval.rows import row_key, write_rows
from curricula.progress import Progress, silent
from curricula.settings import decode

log = logging.getLogger(__name__)

VERSION = 1
"""Version of the procedure, part of the direction's key."""
BATCH_PROMPTS = 32
MOST_LEFT = 0.1
"""Largest share of a direction that may remain in the residual stream. Rounding leaves less in any precision."""
ATTENTION = ("self_attn", "attn", "attention", "self_attention")
FEED_FORWARD = ("mlp", "feed_forward", "block_sparse_moe")
"""Names that published models give to the two parts of a block that write to the residual stream."""
NORMS_BEHIND = (("post_self_attn_layernorm", "post_attention_layernorm"), ("post_feedforward_layernorm", "post_mlp_layernorm"))
"""Names of the norms after these parts. In blocks without a norm after the feed-forward part, as in Llama,
post_attention_layernorm is the norm before that part."""


class Score(msgspec.Struct, frozen=True):
    """The scores of one candidate."""

    key: str
    """Hash of model, prompts and settings."""
    position: int
    """Token at which the direction was found, counted back from the end of the rendered prompt: -1 is the last."""
    layer: int
    """Block at whose input the direction was found, counted from 0."""
    refusal: float
    """Mean log-odds of a refusal on harmful prompts with the direction ablated."""
    induced: float
    """Mean log-odds of a refusal on harmless prompts with the direction added."""
    divergence: float
    """KL divergence in nats that ablation causes on harmless prompts."""


class Direction(Score, frozen=True, kw_only=True):
    """The chosen direction, as stored in `refusal-direction.json`."""

    refusal_before: float
    """Mean log-odds of a refusal on harmful prompts without ablation."""
    prompts_filtered: bool
    """Whether the direction was found with harmful prompts that are refused and harmless ones that are not."""
    thresholds_met: bool
    """Whether the direction meets `most_divergence` and `least_induced`."""
    vector: list[float]
    """The difference of means, not normalised."""


@dataclass(frozen=True)
class Sets:
    """Harmful and harmless prompts as token ids."""

    harmful: list[list[int]]
    harmless: list[list[int]]


def find_direction(
    loaded: LoadedModel, config: EvalConfig, data_root: Path | None, path: Path, scores: Path, progress: Progress = silent
) -> Direction:
    """The refusal direction of this model, read from `path` or found now. It is the same for every task and prompt.

    `scores` is a file that no other element writes: several can search for the same direction at the same time.
    """
    settings = config.attacks.ablation
    texts = {name: ablation_texts(config, data_root, name) for name in (settings.harmful, settings.harmless)}
    key = row_key(
        task="ablation",
        version=VERSION,
        model=loaded.content_hash,
        kind=loaded.kind,
        precision=loaded.precision,
        settings=msgspec.to_builtins(settings),
        texts=texts,
        if_set={"raw": loaded.raw},
    )
    with contextlib.suppress(FileNotFoundError, ValueError):
        stored = decode(path.read_bytes(), Direction)
        if stored.key == key:
            return stored
    ids = [[loaded.prompt_ids(text) for text in texts[name]] for name in (settings.harmful, settings.harmless)]
    train, validation = (Sets(*(of[start:stop] for of in ids)) for start, stop in ((0, settings.train), (settings.train, None)))
    direction = Search(loaded, settings, key).run(train, validation, scores, progress)
    with durable.exclusive_lock(path.with_name(f".{path.stem}.lock"), wait_s=60):
        durable.write_text(path, msgspec.json.encode(direction).decode())
    return direction


class Search:
    """The search for a model's refusal direction."""

    def __init__(self, loaded: LoadedModel, settings: Ablation, key: str) -> None:
        self.loaded, self.settings, self.key = loaded, settings, key
        self.blocks = blocks_of(loaded.model)
        words = [f" {word.lstrip()}" if loaded.raw else word for word in settings.refusal_words]
        self.refusals = sorted({loaded.answer_ids(word)[0] for word in words})
        closing = [] if loaded.raw else loaded.encode(loaded.around_turn()[1])
        self.positions = range(-max(1, len(closing)), 0)

    def run(self, train: Sets, validation: Sets, path: Path, progress: Progress) -> Direction:
        """Compute the candidates on `train`, compare them on `validation`, and write their scores to `path`."""
        self.check_blocks(train.harmful[0])
        train, train_filtered = self.filtered(train)
        validation, validation_filtered = self.filtered(validation)
        harmful, harmless = (self.mean_states(prompts) for prompts in (train.harmful, train.harmless))
        directions = harmful - harmless
        refusal_before = self.scores(validation.harmful).mean().item()
        # Where all prompts have the same states, as at the template's tokens before the first block, means differ by rounding.
        differ = directions.norm(dim=-1) > 1e-6 * harmless.norm(dim=-1)
        scores = self.candidate_scores(directions, differ, validation, progress)
        write_rows(path, scores)
        best, thresholds_met = self.best(scores)
        prompts_filtered = train_filtered and validation_filtered
        if not (thresholds_met and prompts_filtered):
            log.warning("%s: found no clear direction of refusal; does the model refuse at all?", self.loaded.name)
        return Direction(
            **msgspec.structs.asdict(best),
            refusal_before=refusal_before,
            prompts_filtered=prompts_filtered,
            thresholds_met=thresholds_met,
            vector=directions[best.position, best.layer].tolist(),
        )

    def candidate_scores(
        self, directions: torch.Tensor, differ: torch.Tensor, validation: Sets, progress: Progress
    ) -> list[Score]:
        """The scores of all candidates, those of `directions` [positions, blocks, hidden] for which `differ` is true."""
        layers = range(int(len(self.blocks) * (1 - self.settings.pruned_layers)))
        places = [(position, layer) for position in self.positions for layer in layers if differ[position, layer]]
        if not places:
            raise UserError(
                f"{self.loaded.name}: the states of its first {len(layers)} layers do not depend on the prompt; lower "
                f"attacks.ablation.pruned_layers, which is {self.settings.pruned_layers:g}"
            )
        usual = self.logits(validation.harmless)
        scores: list[Score] = []
        for position, layer in places:
            compared = self.compare(directions[position, layer], layer, validation, usual)
            scores.append(Score(self.key, position, layer, *compared))
            progress(len(scores), len(places), candidates=len(places))
        return scores

    def best(self, scores: Sequence[Score]) -> tuple[Score, bool]:
        """The candidate with the lowest log-odds of a refusal, and whether it meets the thresholds. If any candidates do, only
        these are considered."""
        finite = [score for score in scores if math.isfinite(score.refusal + score.induced + score.divergence)]
        if not finite:
            raise UserError(f"{self.loaded.name}: no direction has scores that are numbers; did its training diverge?")
        most, least = self.settings.most_divergence, self.settings.least_induced
        passing = [score for score in finite if score.divergence <= most and score.induced >= least]
        return min(passing or finite, key=lambda score: score.refusal), bool(passing)

    @torch.inference_mode()
    def check_blocks(self, prompt: Sequence[int]) -> None:
        """Raise UserError if the blocks write to the residual stream through other parts than those known here."""
        model = self.loaded.model
        vector = torch.randn(model.config.hidden_size, generator=torch.Generator().manual_seed(0)).to(model.device)

        def largest() -> float:
            projections: list[float] = []

            def note(states: torch.Tensor) -> torch.Tensor:
                projections.append(float((states.float() @ vector).abs().max()))
                return states

            with hooked([], self.blocks, note):
                model(input_ids=torch.tensor([list(prompt)], device=model.device), use_cache=False)
            return max(projections)

        before = largest()
        with without_direction(model, vector.tolist()):
            after = largest()
        if after > MOST_LEFT * before:
            raise UserError(
                f"{self.loaded.name}: a direction cannot be removed from the residual stream of {type(model).__name__}, whose "
                "blocks do more than add attention and MLP to it; leave the task ablation out for this model"
            )

    def filtered(self, sets: Sets) -> tuple[Sets, bool]:
        """The harmful prompts that are refused and the harmless ones that are not, and True; all prompts and False if either
        would be empty."""
        refused = [ids for ids, score in zip(sets.harmful, self.scores(sets.harmful).tolist()) if score > 0]
        answered = [ids for ids, score in zip(sets.harmless, self.scores(sets.harmless).tolist()) if score < 0]
        return (Sets(refused, answered), True) if refused and answered else (sets, False)

    def compare(self, vector: torch.Tensor, layer: int, validation: Sets, usual: torch.Tensor) -> tuple[float, float, float]:
        """Log-odds of a refusal with the candidate ablated and with it added, and the KL divergence that ablation causes."""
        with without_direction(self.loaded.model, vector.tolist()):
            refusal = self.scores(validation.harmful).mean().item()
            divergence = kl_divergence(usual, self.logits(validation.harmless)).mean().item()
        with hooked([self.blocks[layer]], [], lambda states: states + vector.to(states)):
            induced = self.scores(validation.harmless).mean().item()
        return refusal, induced, divergence

    @torch.inference_mode()
    def mean_states(self, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
        """Mean states at the input of each block, float64 [positions, blocks, hidden], in the order of `positions`."""
        total = torch.zeros((), dtype=torch.float64)
        for output, ends in self.read(prompts, output_hidden_states=True):
            places = ends[:, None] + torch.tensor(self.positions, device=ends.device) + 1
            rows = torch.arange(len(ends), device=ends.device)[:, None]
            # hidden_states[i] is the input of block i, counted from 0; the last entry is the output of the last block.
            states = torch.stack([hidden[rows, places] for hidden in output.hidden_states[:-1]], dim=2)
            self.loaded.require_finite(states, "hidden states")
            total = total + states.double().sum(0).cpu()
        return total / len(prompts)

    @torch.inference_mode()
    def logits(self, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
        """Logits of the first token of each answer, float64 [prompts, vocabulary]."""
        rows = torch.arange(BATCH_PROMPTS, device=self.loaded.device)
        return torch.cat([output.logits[rows[: len(ends)], ends].double() for output, ends in self.read(prompts)])

    def scores(self, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
        """Log-odds that the answer to each prompt begins as a refusal, float64 [prompts]."""
        refusing = self.logits(prompts).softmax(-1)[:, self.refusals].sum(-1)
        return torch.log(refusing + 1e-8) - torch.log(1 - refusing + 1e-8)

    def read(self, prompts: Sequence[Sequence[int]], **options: Any) -> Iterator[tuple[Any, torch.Tensor]]:
        """The model's output for each batch of prompts, and the places of their last tokens in it."""
        for start in range(0, len(prompts), BATCH_PROMPTS):
            batch = prompts[start : start + BATCH_PROMPTS]
            ends = torch.tensor([len(ids) - 1 for ids in batch], device=self.loaded.device)
            yield self.loaded.model(input_ids=self.loaded.padded(batch), use_cache=False, **options), ends


def kl_divergence(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """KL divergence in nats of each row of logits `after` from `before`, float64 [rows, vocabulary]."""
    p, q = before.softmax(-1), after.softmax(-1)
    return (p * (torch.log(p + 1e-6) - torch.log(q + 1e-6))).sum(-1)


@contextlib.contextmanager
def without_direction(model: Any, vector: Sequence[float]) -> Iterator[None]:
    """Within the context, nothing writes along `vector` to the model's residual stream: no embedding, attention or MLP."""
    direction = torch.tensor(vector, dtype=torch.float64)
    unit = (direction / (direction.norm() + 1e-8)).to(device=model.device, dtype=model.dtype)

    def ablated(states: torch.Tensor) -> torch.Tensor:
        return states - (states @ unit)[..., None] * unit

    blocks = blocks_of(model)
    with hooked(blocks, [part for block in blocks for part in parts_of(block)], ablated):
        yield


@contextlib.contextmanager
def hooked(inputs: Sequence[Any], outputs: Sequence[Any], change: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """Within the context, `change` is applied to the states that the modules `inputs` read and that `outputs` return."""

    def before(_: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        if arguments:
            return (change(arguments[0]), *arguments[1:]), named
        return arguments, {**named, "hidden_states": change(named["hidden_states"])}

    def after(_: Any, __: Any, output: Any) -> Any:
        return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

    handles = [module.register_forward_pre_hook(before, with_kwargs=True) for module in inputs]
    handles += [module.register_forward_hook(after) for module in outputs]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def blocks_of(model: Any) -> list[Any]:
    """The model's transformer blocks, in order. Raises UserError if their parts are not known here."""
    count = model.config.num_hidden_layers
    lists = [part for part in model.modules() if isinstance(part, torch.nn.ModuleList) and len(part) == count]
    blocks = next((list(part) for part in lists if all(parts_of(block) for block in part)), None)
    if blocks is None:
        raise UserError(
            f"{type(model).__name__}: its blocks have no parts called {' or '.join(ATTENTION)} and "
            f"{' or '.join(FEED_FORWARD)}; leave the task ablation out for this model"
        )
    return blocks


def parts_of(block: Any) -> list[Any]:
    """The parts of a block that write to the residual stream; empty for a module that is not such a block."""

    def first(names: Sequence[str]) -> Any:
        return next((part for name in names if (part := getattr(block, name, None)) is not None), None)

    # If a norm follows the feed-forward part, as in OLMo 2, one also follows attention, and these norms write to the stream.
    norms = [first(names) for names in NORMS_BEHIND]
    parts = [first(names) for names in (ATTENTION, FEED_FORWARD)]
    if None in parts:
        return []
    return parts if norms[1] is None else norms
