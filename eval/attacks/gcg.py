"""GCG: an adversarial suffix for one prompt, found by greedy coordinate gradient (Zou et al. 2023; paper appendix B).

At every step the gradient of the target's loss with respect to the one-hot suffix names the `topk` most promising
replacements at each position; `search_width` candidates replace one token each, at a random position by a random one
of these; the candidate of lowest loss is taken even if it is worse than the current suffix, and the result is the
suffix of lowest loss over all steps. This is nanoGCG with its defaults (no buffer, one replacement), except that a
candidate counts only if the whole prompt, not the suffix alone, tokenises to the same ids: the attack is then what
the text says.

The suffix follows the request after a space. The attack does not know SafeBeam. Everything before the suffix is read
once, and each candidate is a forward pass over suffix, template end and all but the last target token, with logits of
the target's places only ("Sure" is one token in SmolLM2: the last place). The state after every few steps is saved, so
that a kill loses no suffix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from curricula import durable
from curricula.errors import UserError
from curricula.eval.config import Gcg
from curricula.eval.models import LoadedModel
from curricula.randomness import keyed_rng

VERSION = 2  # of the algorithm; part of every row's key
SAVE_INTERVAL_STEPS = 10
MARK = "\u2063SUFFIX\u2063"  # stands for the suffix while the chat template is rendered


class GcgResult(msgspec.Struct, frozen=True, kw_only=True):
    suffix: str  # of lowest loss over all steps, with its leading space: the attacked prompt is request + suffix
    loss: float  # mean cross-entropy of the target, nats a token
    initial_loss: float
    losses: list[float]  # of the suffix taken at each step
    idle_steps: int  # steps at which no candidate kept its tokens, so that the suffix stayed


class State(msgspec.Struct, kw_only=True):
    """Where an attack stands after some steps."""

    step: int
    current: list[int]  # the suffix taken last
    loss: float
    initial_loss: float
    best: list[int]
    best_loss: float
    losses: list[float]
    idle_steps: int = 0


class SavedState(msgspec.Struct, frozen=True):
    key: str
    state: State


@dataclass(frozen=True)
class Save:
    """A file for the state of the attack whose row has this key."""

    path: Path
    key: str

    def write(self, state: State) -> None:
        durable.write_text(self.path, msgspec.json.encode(SavedState(self.key, state)).decode())

    def read(self) -> State | None:
        """The state of this attack; None if there is none, or only another attack's."""
        try:
            saved = msgspec.json.decode(self.path.read_bytes(), type=SavedState)
        except (FileNotFoundError, msgspec.DecodeError):
            return None
        return saved.state if saved.key == self.key else None

    def forget(self) -> None:
        self.path.unlink(missing_ok=True)


class PrefixLayer(DynamicLayer):
    """Keys and values of a beginning, [1, heads, tokens, head size], before those of whatever rows come."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__()
        self.beginning = keys, values
        self.is_initialized = True

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any) -> Any:
        keys, values = (part.expand(len(key_states), -1, -1, -1) for part in self.beginning)
        return torch.cat([keys, key_states], dim=2), torch.cat([values, value_states], dim=2)

    def get_seq_length(self, *_: Any) -> int:
        return self.beginning[0].shape[2]


class Attack:
    """One prompt under attack: its fixed tokens, the cache of what comes before the suffix, and losses of suffixes."""

    def __init__(self, loaded: LoadedModel, request: str, config: Gcg) -> None:
        self.loaded, self.config = loaded, config
        self.request = request.strip()
        rendered = loaded.chat(f"{self.request}{MARK}")
        self.before, self.after = rendered.split(MARK)
        self.before_ids, self.after_ids = loaded.encode(self.before), loaded.encode(self.after)
        self.target_ids = loaded.encode(config.target)
        self.initial_ids = loaded.encode(" " + config.suffix.strip())
        if not self.keeps_tokens([self.initial_ids])[0]:
            raise UserError(
                f"gcg.suffix {config.suffix!r} does not keep its tokens after the request {self.request[:60]!r} in the "
                f"tokenizer of {loaded.folder}; choose another initial suffix"
            )
        self.embed = loaded.model.get_input_embeddings()
        self.prefix = self.read_prefix()

    @torch.no_grad()
    def read_prefix(self) -> Cache:
        """A cache that begins with the fixed beginning, for any number of rows and any number of passes."""
        read = DynamicCache()
        ids = torch.tensor([self.before_ids], device=self.loaded.device)
        self.loaded.read(read, input_ids=ids, logits_to_keep=1)
        layers: list[Any] = read.layers
        return Cache(layers=[PrefixLayer(layer.keys, layer.values) for layer in layers])

    def target_loss(self, suffix_embeds: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy of the target after each suffix: embeddings [rows, length, hidden] to float32 [rows]."""
        rows = len(suffix_embeds)
        fixed = torch.tensor([self.after_ids + self.target_ids[:-1]], device=self.loaded.device)
        embeds = torch.cat([suffix_embeds, self.embed(fixed).expand(rows, -1, -1).to(suffix_embeds.dtype)], dim=1)
        output = self.loaded.read(self.prefix, inputs_embeds=embeds, logits_to_keep=len(self.target_ids))
        logits = output.logits.float()
        self.loaded.require_distribution(logits)
        target = torch.tensor([self.target_ids], device=self.loaded.device).expand(rows, -1)
        return torch.nn.functional.cross_entropy(logits.transpose(1, 2), target, reduction="none").mean(1)

    def gradient(self, suffix_ids: Sequence[int]) -> torch.Tensor:
        """Gradient of the target's loss with respect to the one-hot suffix, [length, vocabulary]."""
        # Through the embeddings: the loss sees the one-hot rows as rows of the embedding matrix, by the chain rule.
        weights = self.embed.weight
        embeds = weights[torch.tensor(list(suffix_ids), device=self.loaded.device)].detach().requires_grad_()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(self.target_loss(embeds[None]).sum(), [embeds])
        return (gradient @ weights.T).float()

    @torch.no_grad()
    def losses(self, suffixes: Sequence[Sequence[int]]) -> list[float]:
        """Loss of each suffix, given as token ids of equal length."""
        width = self.config.batch_candidates
        found: list[float] = []
        for start in range(0, len(suffixes), width):
            ids = torch.tensor([list(row) for row in suffixes[start : start + width]], device=self.loaded.device)
            found += self.target_loss(self.embed(ids)).tolist()
        return found

    def keeps_tokens(self, suffixes: Sequence[Sequence[int]]) -> list[bool]:
        """Whether the whole prompt with each suffix, as text, has exactly the tokens it was optimised with."""
        tokenizer = self.loaded.tokenizer
        texts = tokenizer.batch_decode(
            [list(row) for row in suffixes], skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        # The tokenizer's own batch call: the one of transformers spends several times as long on wrapping the result.
        whole = tokenizer.backend_tokenizer.encode_batch_fast(
            [f"{self.before}{text}{self.after}" for text in texts], add_special_tokens=False
        )
        return [
            text.startswith(" ") and encoding.ids == [*self.before_ids, *suffix, *self.after_ids]
            for text, encoding, suffix in zip(texts, whole, suffixes)
        ]


def optimise_suffix(
    loaded: LoadedModel,
    request: str,
    config: Gcg,
    draw_key: tuple[object, ...],
    on_step: Any = None,
    save: Save | None = None,
) -> GcgResult:
    """Run the attack on one request; `draw_key` seeds its draws, `on_step(step, loss)` is told of every step.

    With `save` it goes on where a killed run stood. Raises UserError if the initial suffix does not keep its tokens in
    this prompt.
    """
    attack = Attack(loaded, request, config)
    barred = barred_tokens(loaded)
    at = (save.read() if save else None) or begin(attack)
    while at.step < config.steps:
        replacements = promising(attack.gradient(at.current), barred, config.topk)
        rng = keyed_rng("gcg", *draw_key, at.step)
        candidates = draw_candidates(at.current, replacements, config.search_width, rng)
        candidates = [row for row, kept in zip(candidates, attack.keeps_tokens(candidates)) if kept]
        if candidates:
            losses = attack.losses(candidates)
            place = int(np.argmin(losses))
            at.current, at.loss = candidates[place], losses[place]
        else:
            at.idle_steps += 1
        if at.loss < at.best_loss:
            at.best, at.best_loss = at.current, at.loss
        at.losses.append(at.loss)
        at.step += 1
        if save is not None and (at.step % SAVE_INTERVAL_STEPS == 0 or at.step == config.steps):
            save.write(at)
        if on_step is not None:
            on_step(at.step, at.loss)
    return GcgResult(
        suffix=text_of(loaded, at.best),
        loss=at.best_loss,
        initial_loss=at.initial_loss,
        losses=at.losses,
        idle_steps=at.idle_steps,
    )


def begin(attack: Attack) -> State:
    ids = list(attack.initial_ids)
    (loss,) = attack.losses([ids])
    return State(step=0, current=ids, loss=loss, initial_loss=loss, best=ids, best_loss=loss, losses=[])


def text_of(loaded: LoadedModel, ids: Sequence[int]) -> str:
    return loaded.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)


def barred_tokens(loaded: LoadedModel) -> torch.Tensor:
    """Bool [vocabulary]: what a suffix may not hold, which is special and added tokens and all but printable ASCII."""
    size = loaded.model.get_input_embeddings().num_embeddings
    texts = loaded.tokenizer.batch_decode(
        [[i] for i in range(len(loaded.tokenizer))], clean_up_tokenization_spaces=False
    )
    barred = [not (text and text.isascii() and text.isprintable()) for text in texts]
    for token in {*loaded.tokenizer.all_special_ids, *loaded.tokenizer.get_added_vocab().values()}:
        barred[token] = True
    barred += [True] * (size - len(barred))
    return torch.tensor(barred, device=loaded.device)


def promising(gradient: torch.Tensor, barred: torch.Tensor, topk: int) -> np.ndarray:
    """Token ids [length, topk] whose exchange lowers the loss most by the gradient, the best first."""
    allowed = int((~barred).sum())
    return gradient.masked_fill(barred, torch.inf).neg().topk(min(topk, allowed), dim=-1).indices.cpu().numpy()


def draw_candidates(
    current: Sequence[int], replacements: np.ndarray, width: int, rng: np.random.Generator
) -> list[list[int]]:
    """`width` copies of the suffix, each with one token exchanged at a random position for a random promising one."""
    positions = rng.integers(len(current), size=width)
    choices = rng.integers(replacements.shape[1], size=width)
    candidates = np.tile(np.asarray(current), (width, 1))
    candidates[np.arange(width), positions] = replacements[positions, choices]
    return candidates.tolist()
