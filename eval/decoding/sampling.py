"""Top-k sampling, the paper's standard inference, with draws that belong to the answer and not to the batch.

Each (prompt, sample) has its own stream of uniform numbers, one a token, and a token is the inverse of the cumulative
distribution over the k likeliest at that number. So an answer depends on what else is decoded, and in how many rows,
only through the rounding of the logits, and two models that agree on a distribution draw the same token, which makes
differences between arms less noisy. How far rounding matters is in docs/decoding.md.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from curricula.eval.config import TopK
from curricula.eval.decoding.answers import Answer, make_answer
from curricula.eval.decoding.batch import room_after
from curricula.eval.decoding.continuous import generate
from curricula.eval.models import LoadedModel
from curricula.randomness import keyed_rng

VERSION = 2  # of the algorithm; part of every row's key


def sample_topk(
    loaded: LoadedModel, prompts: Sequence[Sequence[int]], draw_keys: Sequence[tuple[object, ...]], config: TopK
) -> list[list[Answer]]:
    """Sample `config.samples` answers to each prompt; returns one list of answers a prompt.

    `prompts` are token ids; `draw_keys[i]` are the words that, with the sample's number, seed the draws of prompt i.
    Raises UserError for a prompt that is empty or fills the model's context.
    """
    asked = [(ids, (*key, sample)) for ids, key in zip(prompts, draw_keys) for sample in range(config.samples)]
    if config.backend == "vllm":
        from curricula.eval.decoding.vllm_backend import sample_ids

        generated = sample_ids(loaded, asked, config)
    else:
        generated = _sample(loaded, asked, config)
    answers = [
        make_answer(loaded, ids, config.stop_at_tag, config.safe_completions, key)
        for ids, (_, key) in zip(generated, asked)
    ]
    return [answers[start : start + config.samples] for start in range(0, len(answers), config.samples)]


def _sample(
    loaded: LoadedModel, asked: Sequence[tuple[Sequence[int], tuple[object, ...]]], config: TopK
) -> list[list[int]]:
    longest = max((room_after(loaded, ids, config.max_new_tokens) for ids, _ in asked), default=0)
    numbers = [keyed_rng("topk", *key).random(longest) for _, key in asked]
    uniforms = torch.from_numpy(np.array(numbers)).to(loaded.device)
    return generate(
        loaded,
        [ids for ids, _ in asked],
        lambda logits, answers, steps: draw(logits, uniforms[answers, steps], config),
        max_new_tokens=config.max_new_tokens,
        rows=config.rows,
        stop_at_tag=config.stop_at_tag,
    )


def draw(logits: torch.Tensor, uniforms: torch.Tensor, config: TopK) -> torch.Tensor:
    """One token a row: logits [rows, vocabulary] and numbers in [0, 1) [rows] to token ids [rows]."""
    values, tokens = logits.topk(min(config.k, logits.shape[-1]), dim=-1)
    cumulative = torch.softmax(values.double() / config.temperature, dim=-1).cumsum(-1)
    place = (cumulative <= (uniforms * cumulative[:, -1])[:, None]).sum(-1).clamp(max=values.shape[-1] - 1)
    return tokens.gather(1, place[:, None]).squeeze(1)
