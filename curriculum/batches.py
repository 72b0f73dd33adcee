"""What a training loop asks of its data: any row of any global batch, computed from the step alone."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np


class BatchSource(Protocol):
    """A stream of global batches that is a pure function of the step, so that resuming is an integer.

    It does not know the data-parallel size: each rank asks for its rows of the global batch.
    """

    @property
    def sequence_length(self) -> int: ...

    @property
    def global_batch(self) -> int:
        """Sequences in one global batch."""

    @property
    def total_steps(self) -> int: ...

    def rows(self, step: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Rows [start, stop) of global batch `step`.

        Returns tokens int64 [stop - start, sequence_length + 1] and the loss mask of the targets, float32
        [stop - start, sequence_length]; no mask where every target counts.
        """

    def fingerprint(self, step: int) -> dict[str, Any]:
        """JSON-able record of everything that determined the batches before `step`; equal records, equal batches."""

    def describe(self, step: int) -> dict[str, Any]:
        """What batch `step` is made of, for the metrics line: {"phase": 1, "mix": {"web": 0.7, ...}}."""
