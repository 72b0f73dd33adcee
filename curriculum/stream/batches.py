"""What a training loop asks of its data: any row of any global batch, computed only from the step."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np


class Rows(NamedTuple):
    """Rows of a batch, n sequences of S tokens."""

    tokens: np.ndarray
    """int64 [n, S + 1]: the inputs and, shifted by one, their targets."""
    mask: np.ndarray | None = None
    """float32 [n, S]: the weight of each target's loss; None where every target counts."""
    documents: np.ndarray | None = None
    """int32 [n, S]: the document within the row that each input belongs to, which attention must not leave; None where a
    row is one text."""


class BatchSource(Protocol):
    """A stream of global batches that is a pure function of the step, so a single integer resumes it.

    It does not know the data-parallel size: each rank asks for its own rows of the global batch.
    """

    @property
    def sequence_length(self) -> int: ...

    @property
    def global_batch(self) -> int:
        """Sequences in one global batch."""

    @property
    def total_steps(self) -> int: ...

    def rows(self, step: int, start: int, stop: int) -> Rows:
        """Rows [start, stop) of global batch `step`."""

    def sample_ids(self, start: int, stop: int) -> list[tuple[str, int, int]]:
        """(source, epoch, number in the source) of what global samples [start, stop) begin with: a run's record of what it
        consumed. Row r of batch s is global sample s * global_batch + r."""

    def fingerprint(self, step: int) -> dict[str, Any]:
        """A JSON-serialisable record of all that determines the batches before `step`: equal records mean equal batches."""

    def describe(self, step: int) -> dict[str, Any]:
        """What batch `step` consists of, for the metrics line: {"phase": 1, "mix": {"web": 0.7, ...}}."""
