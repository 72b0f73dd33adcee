"""A prompt under attack by GCG: losses of the target after many suffixes, and their gradients.

docs/decoding.md says what makes this fast: texts are sorted by the first token that differs, and what they share is read once.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from curricula.errors import UserError
from curricula.eval.config import Gcg
from curricula.eval.decoding.answers import room_after
from curricula.eval.models import MARK, LoadedModel

CPU_CANDIDATES = 16
"""Most candidates in one pass on a CPU. Larger passes are not faster per candidate and share a shorter beginning."""


class Attack:
    """One prompt under attack: its fixed tokens, the cache of the text before the suffix, and losses of suffixes."""

    def __init__(self, loaded: LoadedModel, request: str, config: Gcg) -> None:
        self.loaded, self.config = loaded, config
        raw = loaded.raw
        self.request = request.strip()
        self.opening, self.closing = (self.request, "") if raw else loaded.around_turn(self.request)
        self.quotes = bool(loaded.plain_text.quotes(self.request)) and self.opening.endswith(self.request)
        """Whether the request quotes special tokens, which are read as text."""
        self.trims = not raw and loaded.chat(f"{self.request}{MARK} ") == loaded.chat(f"{self.request}{MARK}")
        """Whether the chat template strips a space from the end of a turn, as Llama 3's does."""
        self.marks = self.opening.removesuffix(self.request)
        self.beginning = list(loaded.beginning) if raw else []
        """Tokens that the tokenizer puts before a raw text; a chat template contains them."""
        self.opening_ids = loaded.encode_turn(self.marks, self.request, "") if self.quotes else loaded.encode(self.opening)
        self.target = f" {config.target.lstrip()}" if raw else config.target
        self.target_ids = loaded.answer_ids(self.target)
        suffix = f" {config.suffix.strip()}"
        self.initial_ids = loaded.encode_part(suffix)
        (whole,) = self._whole([suffix])
        # Read alone, the closing may have other tokens: some tokenizers put a blank before, some marks strip one.
        self.closing_ids = whole[len(self.opening_ids) + len(self.initial_ids) :]
        if not self.keeps_tokens([self.initial_ids])[0]:
            raise UserError(
                f"gcg.suffix {config.suffix!r} does not keep its tokens after the request {self.request[:60]!r} in the "
                f"tokenizer of {loaded.folder}; choose another initial suffix"
            )
        room_after(loaded, [*self.beginning, *whole, *self.target_ids[1:]], 1)
        self.prefix = read_on(loaded, DynamicCache(), self.beginning + self.opening_ids)

    def losses(self, suffixes: Sequence[Sequence[int]], near: Sequence[int] | None = None) -> tuple[list[float], list[bool]]:
        """The loss of each suffix (token ids), and whether greedy decoding after it begins with the target.

        Fast if the suffixes begin as `near` does, by default the first suffix.
        """
        texts = [[*ids, *self.closing_ids] for ids in suffixes]
        near = texts[0] if near is None else [*near, *self.closing_ids]
        return losses_after(self.loaded, self.prefix, texts, near, self.target_ids, self.config.batch_candidates)

    def keeps_tokens(self, suffixes: Sequence[Sequence[int]]) -> list[bool]:
        """Whether the whole prompt with each suffix, as text, has exactly the tokens it was optimised with."""
        texts = self.loaded.decode_parts(suffixes)
        return [
            text.startswith(" ")
            and not (self.trims and text.endswith(" "))
            and ids == [*self.opening_ids, *suffix, *self.closing_ids]
            for text, ids, suffix in zip(texts, self._whole(texts), suffixes)
        ]

    def _whole(self, suffixes: Sequence[str]) -> list[list[int]]:
        """Token ids of the prompt with each suffix, without `beginning`."""
        if self.quotes:
            return [self.loaded.encode_turn(self.marks, f"{self.request}{text}", self.closing) for text in suffixes]
        # The tokenizer's own batch call; that of transformers takes several times as long to wrap the result.
        texts = [f"{self.opening}{text}{self.closing}" for text in suffixes]
        encodings = self.loaded.tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]


class BeginningLayer(DynamicLayer):
    """Fixed keys and values, [1 or rows, heads, tokens, head size], that precede those of a pass. Those of the pass are not
    stored."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__()
        self.beginning = keys, values
        self.is_initialized = True

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any) -> Any:
        keys, values = (part.expand(len(key_states), -1, -1, -1) for part in self.beginning)
        return torch.cat([keys, key_states], dim=2), torch.cat([values, value_states], dim=2)

    def get_seq_length(self, *_: Any) -> int:
        return self.beginning[0].shape[2]


@torch.no_grad()
def read_on(loaded: LoadedModel, known: DynamicCache, ids: Sequence[int]) -> DynamicCache:
    """A cache of what `known` holds, followed by `ids`. `known` is not changed."""
    read = DynamicCache()
    layers: list[Any] = known.layers
    for number, layer in enumerate(layers):
        read.update(layer.keys, layer.values, number)
    if ids:
        loaded.read(read, input_ids=torch.tensor([list(ids)], device=loaded.device), logits_to_keep=1)
    return read


def first_tokens(read: DynamicCache, count: int) -> Cache:
    """A cache of the first `count` tokens of `read`, for any number of rows and passes."""
    layers: list[Any] = read.layers
    if not layers:  # nothing has been read yet
        return DynamicCache()
    return Cache(layers=[BeginningLayer(layer.keys[:, :, :count], layer.values[:, :, :count]) for layer in layers])


def side_by_side(caches: Sequence[DynamicCache]) -> Cache:
    """A cache with one row for each of `caches`, padded on the left."""
    longest = max(cache.get_seq_length() for cache in caches)
    layers: list[list[Any]] = [cache.layers for cache in caches]

    def padded(part: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.pad(part, (0, 0, longest - part.shape[2], 0))

    return Cache(
        layers=[
            BeginningLayer(*(torch.cat([padded(getattr(row, part)) for row in rows]) for part in ("keys", "values")))
            for rows in zip(*layers)
        ]
    )


def cross_entropy(loaded: LoadedModel, logits: torch.Tensor, target: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean loss of the target, float32 [rows], and whether its tokens are likeliest, from logits [rows, target, vocabulary]."""
    logits = logits.float()
    loaded.require_distribution(logits)
    wanted = torch.tensor([list(target)], device=loaded.device).expand(len(logits), -1)
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), wanted, reduction="none").mean(1)
    return losses, (logits.argmax(-1) == wanted).all(1)


@torch.no_grad()
def losses_after(
    loaded: LoadedModel,
    known: DynamicCache,
    texts: Sequence[Sequence[int]],
    near: Sequence[int],
    target: Sequence[int],
    width: int,
) -> tuple[list[float], list[bool]]:
    """The target's loss after each text, and whether the target's tokens are the likeliest there.

    The texts are token ids that follow `known`; a pass takes `width` of them. Fast if they begin as `near` does.
    """
    distinct = list(dict.fromkeys(map(tuple, texts)))
    shared = {text: min(common(text, near), len(text) - 1) for text in distinct}
    read = read_on(loaded, known, near[: max(shared.values())])
    before = known.get_seq_length()
    if loaded.device.type == "cpu":
        width = min(width, CPU_CANDIDATES)
    by_length: dict[int, list[tuple[int, ...]]] = {}
    for text in sorted(distinct, key=lambda text: shared[text]):
        by_length.setdefault(len(text), []).append(text)
    results: dict[tuple[int, ...], tuple[float, bool]] = {}
    for group in by_length.values():
        for start in range(0, len(group), width):
            batch = group[start : start + width]
            skipped = shared[batch[0]]
            ids = torch.tensor([[*text[skipped:], *target[:-1]] for text in batch], device=loaded.device)
            output = loaded.read(first_tokens(read, before + skipped), input_ids=ids, logits_to_keep=len(target))
            losses, hits = cross_entropy(loaded, output.logits, target)
            results.update(zip(batch, zip(losses.tolist(), hits.tolist())))
    return [results[tuple(text)][0] for text in texts], [results[tuple(text)][1] for text in texts]


def common(text: Sequence[int], other: Sequence[int]) -> int:
    """Number of tokens before the first that differs."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(text, other)))


def gradients(
    loaded: LoadedModel,
    known: Sequence[DynamicCache],
    suffixes: Sequence[Sequence[int]],
    closing: Sequence[int],
    target: Sequence[int],
) -> torch.Tensor:
    """Gradients [rows, length, vocabulary] of the target's loss with respect to each one-hot suffix, which stands between
    known[row] and `closing`."""
    # By the chain rule, through the embeddings: one-hot rows select rows of the embedding matrix.
    table = embeddings(loaded)
    embeds = table[torch.tensor([list(ids) for ids in suffixes], device=loaded.device)].detach()
    embeds.requires_grad_()
    with torch.enable_grad():
        losses, _ = losses_of_embeddings(loaded, known, embeds, closing, target)
        (gradient,) = torch.autograd.grad(losses.sum(), [embeds])
    return (gradient @ table.T).float()


@torch.no_grad()
def embeddings(loaded: LoadedModel) -> torch.Tensor:
    """The embedding of each token, [vocabulary, hidden]. If the model scales its embeddings, as Gemma does, so are these."""
    embed = loaded.model.get_input_embeddings()
    if type(embed) is torch.nn.Embedding:
        return embed.weight
    return embed(torch.arange(embed.num_embeddings, device=loaded.device))


def losses_of_embeddings(
    loaded: LoadedModel, known: Sequence[DynamicCache], suffixes: torch.Tensor, closing: Sequence[int], target: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The target's loss after each suffix, given by its embeddings [rows, length, hidden], and whether it is likeliest."""
    rows = len(suffixes)
    fixed = torch.tensor([[*closing, *target[:-1]]], dtype=torch.long, device=loaded.device)
    after = loaded.model.get_input_embeddings()(fixed).expand(rows, -1, -1)
    embeds = torch.cat([suffixes, after.to(suffixes.dtype)], dim=1)
    lengths = torch.tensor([[cache.get_seq_length()] for cache in known], device=loaded.device)
    longest, new = int(lengths.max()), torch.arange(embeds.shape[1], device=loaded.device)
    columns = torch.arange(longest + len(new), device=loaded.device)
    output = loaded.read(
        side_by_side(known),
        inputs_embeds=embeds,
        position_ids=lengths + new,
        # Without padding no mask: the model's own causal one is cheaper.
        attention_mask=(columns >= longest - lengths).long() if bool((lengths < longest).any()) else None,
        logits_to_keep=len(target),
    )
    return cross_entropy(loaded, output.logits, target)
