"""Many answers through few rows: as soon as rows are free, the next prompts take them.

In a batch that waits for its longest answer, most rows are idle at the end. Here prompts queue up, the longest first (so
that memory is at its highest at the start, and neighbours are of like length), and free rows are refilled together once
there are enough of them. How tokens are chosen is the caller's; which row an answer got plays no part in that.

All rows have the room of the longest text and look over its width, so a prompt much longer than others is not decoded
among them: prompts are taken in groups of like length, and long ones get fewer rows.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import numpy as np
import torch

from curricula.eval.decoding.batch import Decoding, room_after
from curricula.eval.models import LoadedModel

REFILL_SHARE = 8  # rows wait to be refilled until this part of them (an eighth) is free
ROW_TOKENS = 512  # rows of longer texts are fewer, so that memory stays that of `rows` rows of so many tokens
Choose = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(logits [rows, vocabulary], number of each row's answer [rows], tokens it has so far [rows]) -> ids [rows]"""


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
    stop = Stop(loaded, stop_at_tag)
    answers: list[list[int]] = [[] for _ in prompts]
    for group in groups_of_like_length(prompts):
        longest = max(len(prompts[i]) + limits[i] for i in group)
        few = max(1, min(rows, rows * ROW_TOKENS // longest, len(group)))
        _generate(loaded, prompts, group, answers, choose, limits, stop, Decoding(loaded, few, longest))
    return answers


def groups_of_like_length(prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """The prompts' places, longest first, parted where the next is less than half as long as the group's first."""
    groups: list[list[int]] = []
    for place in sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i)):
        # Short ones stay together: the answers' length is then most of the width.
        if groups and len(prompts[groups[-1][0]]) <= max(128, 2 * len(prompts[place])):
            groups[-1].append(place)
        else:
            groups.append([place])
    return groups


@torch.inference_mode()
def _generate(
    loaded: LoadedModel,
    prompts: Sequence[Sequence[int]],
    group: Sequence[int],
    answers: list[list[int]],
    choose: Choose,
    limits: Sequence[int],
    stop: Stop,
    decoding: Decoding,
) -> None:
    """Fill in the answers to the prompts of one group."""
    queue, rows, device = deque(group), decoding.cache.rows, loaded.device
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
                return
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
