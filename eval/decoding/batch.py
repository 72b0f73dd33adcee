"""A batch during decoding: the cache of its rows, the reading of prompts into it, and one forward pass over new tokens.

A cache that grows by `torch.cat` is copied whole at every token. Here a token takes one column of its row, which the decoder
chooses. Rows can therefore have different lengths, and a row can hold a tree of texts with each token stored once
(docs/decoding.md).
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from curricula.errors import UserError
from curricula.eval.models import LoadedModel

WIDTH = 256
"""Columns by which the width of a pass of fixed shape grows."""


class Decoding:
    """`rows` rows with room for `capacity` tokens each. If `fixed` is not 0, every pass has exactly `fixed` rows.

    Passes of fixed shape are padded with an extra line of the cache, the one after the rows' lines. Their width is a multiple
    of `WIDTH`.
    """

    def __init__(self, loaded: LoadedModel, rows: int, capacity: int, fixed: int = 0) -> None:
        self.loaded, self.rows, self.fixed = loaded, rows, fixed
        self.capacity = -(-capacity // WIDTH) * WIDTH if fixed else capacity
        # The current pass, for `Slab`: its lines of the cache [n, 1], the columns it writes, whether its lines are only some
        # of all, and how many columns it sees.
        self.lines = self.columns = torch.empty(0, dtype=torch.long)
        self.is_part, self.width = False, 0
        self.slabs = [Slab(self) for _ in range(loaded.layers)]
        self.cache = Cache(layers=list(self.slabs))
        if fixed:
            self.check_rows_alike()

    @property
    def height(self) -> int:
        """Number of lines of the cache."""
        return self.rows + (1 if self.fixed else 0)

    @torch.inference_mode()
    def admit(self, rows: Sequence[int], prompts: Sequence[Sequence[int]]) -> None:
        """Read prompts[i] without its last token into row rows[i]; equal prompts are read once.

        The next pass adds the last token, so that new rows and rows in mid-answer share that pass.
        """
        beginnings = list(dict.fromkeys(tuple(prompt[:-1]) for prompt in prompts))
        for together in [[ids] for ids in beginnings] if self.fixed else [beginnings]:
            width = max(map(len, together))
            if not width:
                continue
            read = DynamicCache()
            self.loaded.read(read, input_ids=self.loaded.padded(together), logits_to_keep=1)
            place = {ids: number for number, ids in enumerate(together)}
            begun = [(row, place[ids]) for row, prompt in zip(rows, prompts) if (ids := tuple(prompt[:-1])) in place]
            filled, which = torch.tensor(begun, device=self.loaded.device).T
            layers: list[Any] = read.layers
            for slab, layer in zip(self.slabs, layers):
                slab.allocate(layer.keys, layer.values)
                slab.keys[filled, :, :width] = layer.keys[which]
                slab.values[filled, :, :width] = layer.values[which]

    def select(self, rows: torch.Tensor) -> None:
        """Keep only these rows, in this order."""
        lines = torch.cat([rows, torch.arange(self.rows, self.height, device=rows.device)])
        self.rows = len(rows)
        for slab in self.slabs:
            if slab.keys is not None:
                slab.keys, slab.values = slab.keys[lines], slab.values[lines]

    def move(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """Copy, within each row i, column source[i, j] to column target[i, j]."""
        lines = torch.arange(self.rows, device=source.device)[:, None]
        for slab in self.slabs:
            for tensor in (slab.keys, slab.values):
                tensor[lines, :, target] = tensor[lines, :, source]

    def compact(self, columns: torch.Tensor, capacity: int) -> None:
        """Keep only columns columns[i] of row i, in this order, with room for `capacity` tokens."""
        lines = torch.arange(self.rows, device=columns.device)[:, None]
        self.capacity = capacity
        room = (0, 0, 0, capacity - columns.shape[1])
        for slab in self.slabs:
            if slab.keys is not None:
                kept = (tensor[lines, :, columns].transpose(1, 2) for tensor in (slab.keys, slab.values))
                slab.keys, slab.values = (torch.nn.functional.pad(tensor, room) for tensor in kept)

    @torch.inference_mode()
    def forward(self, tokens: torch.Tensor, positions: torch.Tensor, columns: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Logits [rows, n, vocabulary], in float32 or better, after each of the `tokens` [rows, n].

        `positions` [rows, n] are the tokens' places in their texts, `columns` [rows, n] their places in the cache; `mask`,
        bool [rows, n, width], says which columns each attends to, its own included.
        """
        if not self.fixed:
            return self._forward(tokens, positions, columns, mask)
        mask = torch.nn.functional.pad(mask, (0, self.capacity - mask.shape[-1]))
        padding = [torch.zeros_like(part[:1]) for part in (tokens, positions, columns, mask)]
        padding[3][..., 0] = True  # a row that attends to nothing would give NaN
        parts = [torch.cat(pair) for pair in zip((tokens, positions, columns, mask), padding)]
        widths = (columns.amax(1) // WIDTH + 1) * WIDTH
        logits = torch.empty(*tokens.shape, self.loaded.vocabulary, dtype=self.loaded.logit_dtype, device=tokens.device)
        for width in widths.unique().tolist():
            for rows in (widths == width).nonzero()[:, 0].split(self.fixed):
                lines = torch.nn.functional.pad(rows, (0, self.fixed - len(rows)), value=self.rows)
                token, position, column, seen = (part[lines] for part in parts)
                logits[rows] = self._forward(token, position, column, seen[..., :width], lines)[: len(rows)]
        return logits

    def _forward(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        columns: torch.Tensor,
        mask: torch.Tensor,
        lines: torch.Tensor | None = None,
    ) -> torch.Tensor:
        self.columns, self.width, self.is_part = columns, mask.shape[-1], lines is not None
        self.lines = (torch.arange(self.rows, device=columns.device) if lines is None else lines)[:, None]
        output = self.loaded.read(self.cache, input_ids=tokens, attention_mask=mask[:, None], position_ids=positions)
        logits = output.logits.to(self.loaded.logit_dtype)
        self.loaded.require_distribution(logits)
        return logits

    @torch.inference_mode()
    def check_rows_alike(self) -> None:
        """Raise UserError if a token's logits depend on its row's place or on the other rows."""
        place = torch.arange(self.fixed, device=self.loaded.device)[:, None]
        column, start = place % WIDTH, torch.zeros_like(place)
        same = torch.full_like(place, self.loaded.vocabulary // 2)  # not a special token, whose embedding can be zeros
        others = column % self.loaded.vocabulary
        others[[0, -1]] = same[0]
        mask = (torch.arange(WIDTH, device=place.device) == column)[:, None]
        lines = torch.full_like(place[:, 0], self.rows)
        alike, mixed = (self._forward(tokens, start, column, mask, lines) for tokens in (same, others))
        if not all(torch.equal(row, alike[0]) for row in (*alike, mixed[0], mixed[-1])):
            raise UserError(
                f"{self.loaded.name}: evaluation.deterministic is true, but on this device ({self.loaded.device}) a row's "
                f"result depends on its place among {self.fixed} rows; choose another number of rows, or leave it out"
            )


class Slab(DynamicLayer):
    """One layer's keys and values, [lines, heads, capacity, size]; the model's own code reads and writes them."""

    keys: Any
    """None before the first write."""
    values: Any

    def __init__(self, batch: Decoding) -> None:
        super().__init__()
        self.batch = weakref.proxy(batch)  # a cycle of references would keep the model in memory

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any) -> Any:
        self.allocate(key_states, value_states)
        lines, columns, width = self.batch.lines, self.batch.columns, self.batch.width
        self.keys[lines, :, columns] = key_states.transpose(1, 2)
        self.values[lines, :, columns] = value_states.transpose(1, 2)
        if self.batch.is_part:
            return self.keys[lines[:, 0], :, :width], self.values[lines[:, 0], :, :width]
        return self.keys[:, :, :width], self.values[:, :, :width]

    def allocate(self, *like: torch.Tensor) -> None:
        if self.keys is None:
            # Zeros, because a masked column still takes part in the product, and uninitialised memory can hold NaN. Keys and
            # values can differ in size, as in DeepSeek's models.
            self.keys, self.values = (
                part.new_zeros(self.batch.height, part.shape[1], self.batch.capacity, part.shape[3]) for part in like
            )
            self.dtype, self.device = like[0].dtype, like[0].device
            self.is_initialized = True

    def get_seq_length(self, *_: Any) -> int:
        return self.batch.width
