"""Keys and values of a decoding batch in preallocated memory, written where the decoder says.

A `transformers` cache, so that the model's own code runs on it. Growing by `torch.cat` would copy the whole cache at
every token; here a token is one column of its row, and the decoder names that column. So rows may be at different
lengths (a finished row is refilled while the others go on), and one row may hold a whole tree of texts, each token
once (the beams of a prompt). Which columns a token may look at is the decoder's attention mask; this file knows
neither prompts nor tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer


class SlabLayer(DynamicLayer):
    """One layer's keys and values, [rows, heads, capacity, head size]."""

    keys: Any  # None before the first write
    values: Any

    def __init__(self, cache: SlabCache) -> None:
        super().__init__()
        self.cache = cache

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any) -> Any:
        self.allocate(key_states)
        lines, columns, width = self.cache.lines, self.cache.columns, self.cache.width
        self.keys[lines, :, columns] = key_states.transpose(1, 2)
        self.values[lines, :, columns] = value_states.transpose(1, 2)
        return self.keys[:, :, :width], self.values[:, :, :width]

    def allocate(self, like: torch.Tensor) -> None:
        if self.keys is None:
            _, heads, _, size = like.shape
            # Zeros: a masked column still takes part in the product, and memory as found may hold NaN.
            self.keys = like.new_zeros(self.cache.rows, heads, self.cache.capacity, size)
            self.values = torch.zeros_like(self.keys)
            self.dtype, self.device = like.dtype, like.device
            self.is_initialized = True

    def get_seq_length(self, *_: Any) -> int:
        return self.cache.width

    def tensors(self) -> list[torch.Tensor]:
        return [self.keys, self.values]


class SlabCache(Cache):
    """A cache of `layers` layers of `rows` rows with room for `capacity` tokens each."""

    def __init__(self, layers: int, rows: int, capacity: int) -> None:
        self.rows, self.capacity = rows, capacity
        self.width = 0  # columns that the next forward pass sees
        self.lines = self.columns = torch.empty(0, dtype=torch.long)
        self.slabs = [SlabLayer(self) for _ in range(layers)]
        super().__init__(layers=list(self.slabs))

    def expect(self, columns: torch.Tensor, width: int) -> None:
        """The next forward pass writes token [i, j] to column columns[i, j] of row i and sees `width` columns."""
        self.columns, self.width = columns, width
        self.lines = torch.arange(self.rows, device=columns.device)[:, None]

    def put(self, rows: torch.Tensor, read: DynamicCache, which: torch.Tensor) -> None:
        """Row rows[i] begins with what line which[i] of `read` holds."""
        layers: list[Any] = read.layers
        for slab, layer in zip(self.slabs, layers):
            slab.allocate(layer.keys)
            slab.keys[rows, :, : layer.keys.shape[2]] = layer.keys[which]
            slab.values[rows, :, : layer.keys.shape[2]] = layer.values[which]

    def select(self, rows: torch.Tensor) -> None:
        """Leave only these rows, in this order."""
        self.rows = len(rows)
        for slab in self.slabs:
            if slab.keys is not None:
                slab.keys, slab.values = slab.keys[rows], slab.values[rows]

    def move(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """Within each row i, column source[i, j] goes to column target[i, j]."""
        lines = torch.arange(self.rows, device=source.device)[:, None]
        for slab in self.slabs:
            for tensor in slab.tensors():
                tensor[lines, :, target] = tensor[lines, :, source]

    def compact(self, columns: torch.Tensor, capacity: int) -> None:
        """Row i keeps only columns columns[i], in this order, with room for `capacity` tokens."""
        lines = torch.arange(self.rows, device=columns.device)[:, None]
        self.capacity = capacity
        for slab in self.slabs:
            if slab.keys is None:
                continue
            old = slab.tensors()
            slab.keys = slab.values = None
            slab.allocate(old[0])
            for tensor, before in zip(slab.tensors(), old):
                tensor[:, :, : columns.shape[1]] = before[lines, :, columns].transpose(1, 2)

    @property
    def bytes(self) -> int:
        return sum(t.numel() * t.element_size() for slab in self.slabs if slab.keys is not None for t in slab.tensors())
