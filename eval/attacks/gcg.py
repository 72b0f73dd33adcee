"""GCG: an adversarial suffix for one prompt, found by greedy coordinate gradient (Zou et al. 2023; paper appendix B).

At every step the gradient of the target's loss with respect to the one-hot suffix names the `topk` most promising
replacements at each position. Each of `search_width` candidates replaces one token, at a random position by a random one
of these. The candidate of lowest loss is taken even if it is worse than the current suffix, and the result is the suffix
of lowest loss over all steps. This is nanoGCG with its defaults (no buffer, one replacement), except that a candidate
counts only if the whole prompt, not the suffix alone, tokenises to the same ids: then the text alone carries the attack.

The suffix follows the request after a space. A tuned model reads both in its chat template, a base model reads them
as they are and the target follows after another space: what is optimised is what is decoded. The attack does not know
SafeBeam. Everything before the suffix is read once, and each candidate is a forward pass over suffix, template end
and all but the last target token, with logits at the target's places only ("Sure" is one token in SmolLM2: the last
place). The state is saved every few steps, so a killed attack resumes in the middle of a suffix.
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
from curricula.eval.benchmarks import Prompt
from curricula.eval.config import Gcg
from curricula.eval.models import LoadedModel
from curricula.eval.rows import SuffixRow, append_rows, finished_batches, in_order, row_key
from curricula.progress import Progress
from curricula.randomness import keyed_rng

VERSION = 2
"""Version of the algorithm, part of every row's key."""
NEUTRAL = ("benchmark", "prompts", "batch_candidates")
"""Settings that leave a suffix the same."""
SAVE_INTERVAL_STEPS = 10
MARK = "\u2063SUFFIX\u2063"
"""Stands for the suffix while the chat template is rendered."""


def attacked_prompts(
    loaded: LoadedModel, prompts: list[Prompt], config: Gcg, path: Path, seed: int, progress: Progress
) -> list[Prompt]:
    """The prompts with their suffixes, which are kept beside `path`; those missing there are optimised one by one."""
    suffixes = path.with_name(f"{path.stem}.suffixes.jsonl")
    settings = {name: value for name, value in msgspec.to_builtins(config).items() if name not in NEUTRAL}
    keys = [
        row_key(
            task="gcg",
            prompt_id=prompt.id,
            benchmark=prompt.benchmark,
            prompt=prompt.text,
            model=loaded.content_hash,
            precision=loaded.precision,
            version=VERSION,
            settings=settings,
            seed=seed,
            **({"raw": True} if loaded.raw else {}),  # only there, so that keys of tuned models stay
        )
        for prompt in prompts
    ]
    done = finished_batches(suffixes, SuffixRow, [[key] for key in keys])
    for number, (prompt, key) in enumerate(zip(prompts, keys)):
        if key in done:
            continue

        def on_step(step: int, loss: float, finished: int = number) -> None:
            progress(finished * config.steps + step, len(prompts) * config.steps, loss=round(loss, 4))

        save = Save(suffixes.with_suffix(".step.json"), key)
        result = optimise_suffix(loaded, prompt.text, config, (seed, prompt.benchmark, prompt.id), on_step, save)
        row = SuffixRow(
            key=key,
            model=loaded.content_hash,
            benchmark=prompt.benchmark,
            prompt_id=prompt.id,
            behavior=prompt.behavior,
            seed=seed,
            **msgspec.structs.asdict(result),
        )
        append_rows(suffixes, [row])
        save.forget()
    rows = in_order(suffixes, SuffixRow, [[key] for key in keys])
    texts = [prompt.text.rstrip() if loaded.raw else prompt.text for prompt in prompts]
    return [msgspec.structs.replace(prompt, text=text + row.suffix) for prompt, text, row in zip(prompts, texts, rows)]


class GcgResult(msgspec.Struct, frozen=True, kw_only=True):
    suffix: str
    """The suffix of lowest loss over all steps, with its leading space: the attacked prompt is request + suffix."""
    loss: float
    """Mean cross-entropy of the target, in nats per token."""
    initial_loss: float
    losses: list[float]
    """Loss of the suffix taken at each step."""
    idle_steps: int
    """Steps at which no candidate kept its tokens, so that the suffix stayed."""


class State(msgspec.Struct, kw_only=True):
    """An attack after some steps."""

    step: int
    current: list[int]
    """The suffix taken last."""
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
    """The file that holds the state of the attack whose row has this key."""

    path: Path
    key: str

    def write(self, state: State) -> None:
        durable.write_text(self.path, msgspec.json.encode(SavedState(self.key, state)).decode())

    def read(self) -> State | None:
        """The saved state of this attack; None if there is none, or only another attack's."""
        try:
            saved = msgspec.json.decode(self.path.read_bytes(), type=SavedState)
        except (FileNotFoundError, msgspec.DecodeError):
            return None
        return saved.state if saved.key == self.key else None

    def forget(self) -> None:
        self.path.unlink(missing_ok=True)


class PrefixLayer(DynamicLayer):
    """Keys and values of a fixed beginning, [1, heads, tokens, head size], before those of any number of rows."""

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
    """One prompt under attack: its fixed tokens, the cache of the text before the suffix, and losses of suffixes."""

    def __init__(self, loaded: LoadedModel, request: str, config: Gcg) -> None:
        self.loaded, self.config = loaded, config
        raw = loaded.raw
        self.request = request.rstrip() if raw else request.strip()
        rendered = f"{self.request}{MARK}" if raw else loaded.chat(f"{self.request}{MARK}")
        self.opening, self.closing = rendered.split(MARK)
        self.quotes = bool(loaded.plain_text.quotes(self.request)) and self.opening.endswith(self.request)
        """Whether the request quotes special entries, which are read as text."""
        self.marks = self.opening.removesuffix(self.request)
        self.beginning = list(loaded.beginning) if raw else []
        """What the tokenizer puts before a raw text; a chat template spells it out."""
        self.opening_ids = (
            loaded.encode_turn(self.marks, self.request, "") if self.quotes else loaded.encode(self.opening)
        )
        self.closing_ids = loaded.encode(self.closing)
        self.target_ids = loaded.encode(f" {config.target.lstrip()}" if raw else config.target)
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
        """A cache of the text before the suffix, for any number of rows and passes."""
        read = DynamicCache()
        ids = torch.tensor([self.beginning + self.opening_ids], device=self.loaded.device)
        self.loaded.read(read, input_ids=ids, logits_to_keep=1)
        layers: list[Any] = read.layers
        return Cache(layers=[PrefixLayer(layer.keys, layer.values) for layer in layers])

    def target_loss(self, suffix_embeds: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy of the target after each suffix: embeddings [rows, length, hidden] to float32 [rows]."""
        rows = len(suffix_embeds)
        fixed = torch.tensor([self.closing_ids + self.target_ids[:-1]], device=self.loaded.device)
        embeds = torch.cat([suffix_embeds, self.embed(fixed).expand(rows, -1, -1).to(suffix_embeds.dtype)], dim=1)
        output = self.loaded.read(self.prefix, inputs_embeds=embeds, logits_to_keep=len(self.target_ids))
        logits = output.logits.float()
        self.loaded.require_distribution(logits)
        target = torch.tensor([self.target_ids], device=self.loaded.device).expand(rows, -1)
        return torch.nn.functional.cross_entropy(logits.transpose(1, 2), target, reduction="none").mean(1)

    def gradient(self, suffix_ids: Sequence[int]) -> torch.Tensor:
        """Gradient of the target's loss with respect to the one-hot suffix, [length, vocabulary]."""
        # By the chain rule, through the embeddings: one-hot rows select rows of the embedding matrix.
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
        if self.quotes:
            whole = [self.loaded.encode_turn(self.marks, f"{self.request}{text}", self.closing) for text in texts]
        else:  # the tokenizer's own batch call; that of transformers takes several times as long to wrap the result
            wholes = [f"{self.opening}{text}{self.closing}" for text in texts]
            encodings = tokenizer.backend_tokenizer.encode_batch_fast(wholes, add_special_tokens=False)
            whole = [encoding.ids for encoding in encodings]
        return [
            text.startswith(" ") and ids == [*self.opening_ids, *suffix, *self.closing_ids]
            for text, ids, suffix in zip(texts, whole, suffixes)
        ]


def optimise_suffix(
    loaded: LoadedModel,
    request: str,
    config: Gcg,
    draw_key: tuple[object, ...],
    on_step: Any = None,
    save: Save | None = None,
) -> GcgResult:
    """Run the attack on one request; `draw_key` seeds its draws, `on_step(step, loss)` is called after every step.

    With `save` a killed attack resumes. Raises UserError if the initial suffix does not keep its tokens in this prompt.
    """
    attack = Attack(loaded, request, config)
    barred = barred_tokens(loaded)
    state = (save.read() if save else None) or first_state(attack)
    while state.step < config.steps:
        replacements = promising(attack.gradient(state.current), barred, config.topk)
        rng = keyed_rng("gcg", *draw_key, state.step)
        candidates = draw_candidates(state.current, replacements, config.search_width, rng)
        candidates = [row for row, kept in zip(candidates, attack.keeps_tokens(candidates)) if kept]
        if candidates:
            losses = attack.losses(candidates)
            place = int(np.argmin(losses))
            state.current, state.loss = candidates[place], losses[place]
        else:
            state.idle_steps += 1
        if state.loss < state.best_loss:
            state.best, state.best_loss = state.current, state.loss
        state.losses.append(state.loss)
        state.step += 1
        if save is not None and (state.step % SAVE_INTERVAL_STEPS == 0 or state.step == config.steps):
            save.write(state)
        if on_step is not None:
            on_step(state.step, state.loss)
    return GcgResult(
        suffix=text_of(loaded, state.best),
        loss=state.best_loss,
        initial_loss=state.initial_loss,
        losses=state.losses,
        idle_steps=state.idle_steps,
    )


def first_state(attack: Attack) -> State:
    ids = list(attack.initial_ids)
    (loss,) = attack.losses([ids])
    return State(step=0, current=ids, loss=loss, initial_loss=loss, best=ids, best_loss=loss, losses=[])


def text_of(loaded: LoadedModel, ids: Sequence[int]) -> str:
    return loaded.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)


def barred_tokens(loaded: LoadedModel) -> torch.Tensor:
    """Bool [vocabulary]: tokens that a suffix may not hold (special, added, or not printable ASCII)."""
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
    """Token ids [length, topk] that by the gradient lower the loss most, the best first."""
    allowed = int((~barred).sum())
    return gradient.masked_fill(barred, torch.inf).neg().topk(min(topk, allowed), dim=-1).indices.cpu().numpy()


def draw_candidates(
    current: Sequence[int], replacements: np.ndarray, width: int, rng: np.random.Generator
) -> list[list[int]]:
    """`width` copies of the suffix, each with the token at a random position replaced by a random promising one."""
    positions = rng.integers(len(current), size=width)
    choices = rng.integers(replacements.shape[1], size=width)
    candidates = np.tile(np.asarray(current), (width, 1))
    candidates[np.arange(width), positions] = replacements[positions, choices]
    return candidates.tolist()
