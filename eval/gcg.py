"""GCG: an adversarial suffix for one prompt, found by greedy coordinate gradient (Zou et al. 2023; paper appendix B).

At every step the gradient of the target's loss with respect to the one-hot suffix names the `topk` most promising
replacements at each position; `search_width` candidates replace one token each, at a random position by a random one
of these; the candidate of lowest loss is taken even if it is worse than the current suffix, and the result is the
suffix of lowest loss over all steps. This is nanoGCG with its defaults (no buffer, one replacement), except that a
candidate counts only if the whole prompt, not the suffix alone, tokenises to the same ids: the attack is then what
the text says.

The suffix follows the request after a space. The attack does not know SafeBeam. Everything before the suffix is read
once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import torch
from transformers.cache_utils import DynamicCache

from curriculum.errors import UserError
from curriculum.randomness import keyed_rng
from eval.config import Gcg
from eval.models import LoadedModel

VERSION = 1  # of the algorithm; part of every row's key
MARK = "\u2063SUFFIX\u2063"  # stands for the suffix while the chat template is rendered


class GcgResult(msgspec.Struct, frozen=True, kw_only=True):
    suffix: str  # of lowest loss over all steps, with its leading space: the attacked prompt is request + suffix
    loss: float  # mean cross-entropy of the target, nats a token
    initial_loss: float
    losses: list[float]  # of the suffix taken at each step
    idle_steps: int  # steps at which no candidate kept its tokens, so that the suffix stayed


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

    @torch.inference_mode()
    def read_prefix(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Keys and values of the fixed beginning, [1, heads, tokens, head size] for each layer."""
        cache = DynamicCache()
        ids = torch.tensor([self.before_ids], device=self.loaded.device)
        self.loaded.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        layers: list[Any] = cache.layers
        return [(layer.keys, layer.values) for layer in layers]

    def cache_for(self, rows: int) -> DynamicCache:
        cache = DynamicCache()
        for number, (keys, values) in enumerate(self.prefix):
            cache.update(keys.expand(rows, -1, -1, -1).clone(), values.expand(rows, -1, -1, -1).clone(), number)
        return cache

    def target_loss(self, suffix_embeds: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy of the target after each suffix: embeddings [rows, length, hidden] to float32 [rows]."""
        rows = len(suffix_embeds)
        fixed = torch.tensor([self.after_ids + self.target_ids[:-1]], device=self.loaded.device)
        embeds = torch.cat([suffix_embeds, self.embed(fixed).expand(rows, -1, -1).to(suffix_embeds.dtype)], dim=1)
        logits = self.loaded.model(
            inputs_embeds=embeds,
            past_key_values=self.cache_for(rows),
            use_cache=True,
            logits_to_keep=len(self.target_ids),
        ).logits.float()
        target = torch.tensor([self.target_ids], device=self.loaded.device).expand(rows, -1)
        return torch.nn.functional.cross_entropy(logits.transpose(1, 2), target, reduction="none").mean(1)

    def gradient(self, suffix_ids: Sequence[int]) -> torch.Tensor:
        """Gradient of the target's loss with respect to the one-hot suffix, [length, vocabulary]."""
        ids = torch.tensor(list(suffix_ids), device=self.loaded.device)
        weights = self.embed.weight
        one_hot = torch.nn.functional.one_hot(ids, len(weights)).to(weights.dtype).requires_grad_()
        with torch.enable_grad():
            loss = self.target_loss((one_hot @ weights)[None]).sum()
            (gradient,) = torch.autograd.grad(loss, [one_hot])
        return gradient.float()

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
        whole = tokenizer([f"{self.before}{text}{self.after}" for text in texts], add_special_tokens=False)["input_ids"]
        return [
            text.startswith(" ") and ids == [*self.before_ids, *suffix, *self.after_ids]
            for text, ids, suffix in zip(texts, whole, suffixes)
        ]


def optimise_suffix(
    loaded: LoadedModel,
    request: str,
    config: Gcg,
    draw_key: tuple[object, ...],
    on_step: Any = None,
) -> GcgResult:
    """Run the attack on one request; `draw_key` seeds its draws, `on_step(step, loss)` is told of every step.

    Raises UserError if the initial suffix does not keep its tokens in this prompt.
    """
    attack = Attack(loaded, request, config)
    barred = barred_tokens(loaded)
    current = list(attack.initial_ids)
    loss = initial_loss = attack.losses([current])[0]
    best, best_loss, idle = current, loss, 0
    losses: list[float] = []
    for step in range(config.steps):
        replacements = promising(attack.gradient(current), barred, config.topk)
        candidates = draw_candidates(current, replacements, config.search_width, keyed_rng("gcg", *draw_key, step))
        candidates = [row for row, kept in zip(candidates, attack.keeps_tokens(candidates)) if kept]
        if candidates:
            candidate_losses = attack.losses(candidates)
            place = int(np.argmin(candidate_losses))
            current, loss = candidates[place], candidate_losses[place]
        else:
            idle += 1
        if loss < best_loss:
            best, best_loss = current, loss
        losses.append(loss)
        if on_step is not None:
            on_step(step + 1, loss)
    return GcgResult(
        suffix=text_of(loaded, best),
        loss=best_loss,
        initial_loss=initial_loss,
        losses=losses,
        idle_steps=idle,
    )


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
