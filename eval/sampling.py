"""Top-k sampling, the paper's standard inference: batched, with draws that belong to the answer and not to the batch.

Each (prompt, sample) has its own stream of uniform numbers, one a token, and a token is the inverse of the cumulative
distribution over the k likeliest at that number. So an answer depends on its batch only through the rounding of the
logits, and two models that agree on a distribution draw the same token, which makes differences between arms less
noisy.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from curriculum.randomness import keyed_rng
from eval.answers import Answer, make_answer
from eval.config import TopK
from eval.decoding import Decoding
from eval.models import LoadedModel

VERSION = 1  # of the algorithm; part of every row's key


@torch.inference_mode()
def sample_topk(
    loaded: LoadedModel, prompts: Sequence[Sequence[int]], draw_keys: Sequence[tuple[object, ...]], config: TopK
) -> list[list[Answer]]:
    """Sample `config.samples` answers to each prompt, all in one batch.

    `prompts` are token ids; `draw_keys[i]` are the words that, with the sample's number, seed the draws of prompt i.
    Returns one list of answers a prompt.
    """
    rows = len(prompts) * config.samples
    uniforms = torch.from_numpy(
        np.stack(
            [
                keyed_rng("topk", *key, sample).random(config.max_new_tokens)
                for key in draw_keys
                for sample in range(config.samples)
            ]
        )
    ).to(loaded.device)
    stops = stop_tokens(loaded, config.stop_at_tag)
    decoding, logits = Decoding.start(loaded, prompts, config.max_new_tokens)
    widened = torch.arange(len(prompts), device=loaded.device).repeat_interleave(config.samples)
    decoding.select(widened)
    logits = logits[widened]
    generated = torch.zeros(rows, config.max_new_tokens, dtype=torch.long, device=loaded.device)
    lengths = torch.zeros(rows, dtype=torch.long, device=loaded.device)
    answer = torch.arange(rows, device=loaded.device)  # which answer each row of the batch is
    ended = torch.zeros(rows, dtype=torch.bool, device=loaded.device)
    for step in range(config.max_new_tokens):
        tokens = draw(logits, uniforms[answer, step], config)
        generated[answer, step] = tokens
        lengths[answer[~ended]] = step + 1
        ended |= torch.isin(tokens, stops)
        count = int(ended.sum())
        if count == len(ended) or step + 1 == config.max_new_tokens:
            break
        if 4 * count >= len(ended):  # finished rows leave the batch when there are enough to be worth the copy
            kept = (~ended).nonzero().squeeze(1)
            decoding.select(kept)
            answer, tokens, ended = answer[kept], tokens[kept], ended[kept]
        logits = decoding.step(tokens)
    ids = [row[:length] for row, length in zip(generated.tolist(), lengths.tolist())]
    answers = [make_answer(loaded, row, stop_at_tag=config.stop_at_tag) for row in ids]
    return [answers[start : start + config.samples] for start in range(0, rows, config.samples)]


def draw(logits: torch.Tensor, uniforms: torch.Tensor, config: TopK) -> torch.Tensor:
    """One token a row: logits [rows, vocabulary] and numbers in [0, 1) [rows] to token ids [rows]."""
    values, tokens = logits.topk(min(config.k, logits.shape[-1]), dim=-1)
    cumulative = torch.softmax(values.double() / config.temperature, dim=-1).cumsum(-1)
    place = (cumulative <= (uniforms * cumulative[:, -1])[:, None]).sum(-1).clamp(max=values.shape[-1] - 1)
    return tokens.gather(1, place[:, None]).squeeze(1)


def stop_tokens(loaded: LoadedModel, stop_at_tag: bool) -> torch.Tensor:
    tag = [loaded.tag_id] if stop_at_tag and loaded.tag_id is not None else []
    return torch.tensor([*loaded.end_ids, *tag], dtype=torch.long, device=loaded.device)
