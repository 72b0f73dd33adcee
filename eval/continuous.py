"""Many answers through few rows: as soon as rows are free, the next prompts take them.

In a batch that waits for its longest answer, most rows are idle at the end. Here prompts queue up, the longest first (so
that memory is at its highest at the start, and neighbours are of like length), and free rows are refilled together once
there are enough of them. How tokens are chosen is the caller's; which row an answer got plays no part in that.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import numpy as np
import torch

from eval.decoding import Decoding, room_after
from eval.models import LoadedModel

REFILL_SHARE = 8  # rows wait to be refilled until this part of them (an eighth) is free
Choose = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(logits [rows, vocabulary], number of each row's answer [rows], tokens it has so far [rows]) -> ids [rows]"""


@torch.inference_mode()
def generate(
    loaded: LoadedModel,
    prompts: Sequence[Sequence[int]],
    choose: Choose,
    *,
    max_new_tokens: int,
    rows: int,
    stop_at_tag: bool,
) -> list[list[int]]:
    """One answer's token ids to each prompt (token ids), up to and with the end mark or tag that ends it."""
    limits = [room_after(loaded, prompt, max_new_tokens) for prompt in prompts]
    queue = deque(sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i)))
    rows = min(rows, len(prompts))
    capacity = max((len(prompt) + limit for prompt, limit in zip(prompts, limits)), default=0)
    decoding = Decoding(loaded, rows, capacity)
    device = loaded.device
    stop = Stop(loaded, stop_at_tag)
    answers: list[list[int]] = [[] for _ in prompts]
    # What each row is at: its answer (-1: none), the tokens in its cache, and the token that goes in next.
    at, length, token = np.full(rows, -1), np.zeros(rows, dtype=np.int64), np.zeros(rows, dtype=np.int64)
    while True:
        free = np.flatnonzero(at < 0)
        if queue and len(free) * REFILL_SHARE >= len(at):
            taken = [queue.popleft() for _ in range(min(len(free), len(queue)))]
            filled = free[: len(taken)]
            decoding.admit(filled.tolist(), [prompts[i] for i in taken])
            at[filled] = taken
            length[filled] = [len(prompts[i]) - 1 for i in taken]
            token[filled] = [prompts[i][-1] for i in taken]
        elif not queue and len(free) * 4 >= len(at):  # rows leave when there are enough to be worth the copy
            kept = np.flatnonzero(at >= 0)
            if not len(kept):
                return answers
            decoding.cache.select(torch.from_numpy(kept).to(device))
            at, length, token = at[kept], length[kept], token[kept]
        length[at < 0] = token[at < 0] = 0
        where = torch.from_numpy(length).to(device)[:, None]
        mask = torch.arange(int(length.max()) + 1, device=device) <= where
        logits = decoding.forward(torch.from_numpy(token).to(device)[:, None], where, where, mask[:, None])[:, 0]
        steps = np.array([len(answers[i]) if i >= 0 else 0 for i in at])
        chosen = choose(logits, torch.from_numpy(at.clip(0)).to(device), torch.from_numpy(steps).to(device))
        token = chosen.cpu().numpy().copy()
        length += 1
        for row in np.flatnonzero(at >= 0).tolist():
            answer = answers[at[row]]
            answer.append(int(token[row]))
            if stop(answer) or len(answer) == limits[at[row]]:
                at[row] = -1


class Stop:
    """Whether an answer is over: it ends with an end mark or, if asked, with the tag."""

    def __init__(self, loaded: LoadedModel, stop_at_tag: bool) -> None:
        self.ends = frozenset(loaded.end_ids)
        self.tags = [list(spelling) for spelling in loaded.tag_spellings] if stop_at_tag else []

    def __call__(self, ids: Sequence[int]) -> bool:
        return ids[-1] in self.ends or any(list(ids[-len(tag) :]) == tag for tag in self.tags)
