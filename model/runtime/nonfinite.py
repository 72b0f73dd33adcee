"""A loss or gradient that is not a number: says of which samples, and notes them all in nonfinite.json. Imports no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from curricula.curriculum.stream.batches import BatchSource
from curricula.durable import write_json
from curricula.errors import UserError

NAMED = 8  # samples in the sentence; all are in the file

Sample = tuple[str, int, int]  # source, epoch, number in the source


def refusal(out: Path, what: str, batches: BatchSource, step: int, bad_rows: Sequence[int], is_main: bool) -> UserError:
    """The error to raise because of `what` came of global batch `step`, `bad_rows` of which have no finite loss.

    The main process writes `out`/nonfinite.json.
    """
    first = step * batches.global_batch
    batch = batches.sample_ids(first, first + batches.global_batch)
    bad = [batch[row] for row in bad_rows if row < len(batch)]
    if is_main:
        noted = {"step": step + 1, "what": what, "samples": _records(bad), "whole_batch": _records(batch)}
        write_json(out / "nonfinite.json", noted)
    culprits = f"; spoilt by {_named(bad)}" if bad else ""
    return UserError(
        f"{out}: {what} at step {step + 1}, on batch {step} {batches.describe(step)}{culprits}; all samples of the batch are "
        "in nonfinite.json, and the last checkpoint is from before: look at them or lower optimizer.lr, then start again"
    )


def _records(samples: list[Sample]) -> list[dict[str, Any]]:
    return [{"source": source, "epoch": epoch, "sample": number} for source, epoch, number in samples]


def _named(samples: list[Sample]) -> str:
    """The first few by name and the others by number: "web 12, web 90 and 3 more (2 web, 1 stories)"."""
    text = ", ".join(f"{source} {number}" for source, _, number in samples[:NAMED])
    rest = Counter(source for source, _, _ in samples[NAMED:])
    if rest:
        text += f" and {rest.total()} more ({', '.join(f'{count} {source}' for source, count in rest.items())})"
    return text
