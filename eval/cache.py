"""Keys and values of a decoding batch in preallocated memory: written in place, reordered only where beams differ.

A `transformers` cache, so that the model's own code runs on it. Growing by `torch.cat` would copy the whole cache at
every token; here a token is one column, and a beam reorder moves the generated columns only, since the prompt's are
the same in all rows of a prompt.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer


class SlabLayer(DynamicLayer):
    """One layer's keys and values, [rows, heads, capacity, head size]; `length` columns are in use."""

    keys: Any  # None before the first update
    values: Any

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity
        self.length = 0

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any) -> Any:
        if self.keys is None:
            shape = (*key_states.shape[:2], self.capacity, key_states.shape[-1])
            self.keys, self.values = key_states.new_empty(shape), value_states.new_empty(shape)
            self.dtype, self.device = key_states.dtype, key_states.device
            self.is_initialized = True
        end = self.length + key_states.shape[-2]
        self.keys[:, :, self.length : end] = key_states
        self.values[:, :, self.length : end] = value_states
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_seq_length(self, *_: Any) -> int:
        return self.length

    def select(self, rows: torch.Tensor) -> None:
        self.keys, self.values = self.keys[rows], self.values[rows]

    def reorder(self, rows: torch.Tensor, start: int) -> None:
        for slab in (self.keys, self.values):
            slab[:, :, start : self.length] = slab[rows, :, start : self.length]


class SlabCache(Cache):
    """A cache of `layers` slabs with room for `capacity` tokens a row."""

    def __init__(self, layers: int, capacity: int) -> None:
        self.slabs = [SlabLayer(capacity) for _ in range(layers)]
        super().__init__(layers=list(self.slabs))

    @property
    def length(self) -> int:
        return self.slabs[0].length

    def select(self, rows: torch.Tensor) -> None:
        """Row i becomes what row rows[i] was; rows may repeat (to widen the batch) or be left out (to narrow it)."""
        for slab in self.slabs:
            slab.select(rows)

    def reorder(self, rows: torch.Tensor, start: int) -> None:
        """The same for columns from `start` on, in place: for rows that agree before `start`."""
        for slab in self.slabs:
            slab.reorder(rows, start)
