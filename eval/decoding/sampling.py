"""Top-k sampling, the paper's standard inference, and greedy decoding: one row is one answer (docs/decoding.md)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from curricula.errors import UserError
from curricula.eval.decoding.answers import Answer, is_finished, make_answer, room_after
from curricula.eval.decoding.batch import Decoding
from curricula.eval.decoding.settings import AnswerSettings, Greedy, TopK
from curricula.eval.models import LoadedModel
from curricula.randomness import key_seed, keyed_rng

GPU_MEMORY = 0.6
"""Share of the GPU's memory for vLLM; the rest is for the model that the other decoders use."""
REFILL_SHARE = 8
"""Rows are refilled once one in this many is free."""
ROW_TOKENS = 512
"""Tokens of the longest text that gets all `rows`. Longer texts get fewer, so that memory stays the same."""
Choose = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(logits [rows, vocabulary], number of each row's answer [rows], tokens of that answer so far [rows]) -> ids [rows]"""


def sample_topk(
    loaded: LoadedModel, prompts: Sequence[Sequence[int]], draw_keys: Sequence[tuple[object, ...]], config: TopK
) -> list[Answer]:
    """`config.samples` answers to each prompt, with the answers to one prompt together.

    `prompts` are token ids. The values in `draw_keys[i]` and the sample's number seed the draws of prompt i.
    """
    asked = [(ids, (*key, sample)) for ids, key in zip(prompts, draw_keys) for sample in range(config.samples)]
    generated = (_sample_by_vllm if config.backend == "vllm" else _sample)(loaded, asked, config)
    return [
        make_answer(loaded, ids, config.stop_at_tag, config.safe_completions, key) for ids, (_, key) in zip(generated, asked)
    ]


def _sample(loaded: LoadedModel, asked: Sequence[tuple[Sequence[int], tuple[object, ...]]], config: TopK) -> list[list[int]]:
    longest = max((room_after(loaded, ids, config.max_new_tokens) for ids, _ in asked), default=0)
    numbers = [keyed_rng("topk", *key).random(longest) for _, key in asked]
    uniforms = torch.from_numpy(np.array(numbers)).to(loaded.device)
    return generate(
        loaded, [ids for ids, _ in asked], lambda logits, answers, steps: draw(logits, uniforms[answers, steps], config), config
    )


def _sample_by_vllm(
    loaded: LoadedModel, asked: Sequence[tuple[Sequence[int], tuple[object, ...]]], config: TopK
) -> list[list[int]]:
    """Generated token ids for each (prompt ids, key of its draws), up to and including the token that ended it."""
    try:
        from vllm import SamplingParams
        from vllm.inputs import TokensPrompt
    except ImportError as error:
        raise UserError(
            f"topk.backend is 'vllm', which cannot be imported ({error}); run `pip install safety-curricula[vllm]` or use "
            "'transformers'"
        ) from error
    stops = {*loaded.end_ids, *([loaded.tag_id] if config.stop_at_tag and loaded.tag_id is not None else [])}
    settings = [
        SamplingParams(
            temperature=config.temperature,
            top_k=config.k,
            max_tokens=room_after(loaded, ids, config.max_new_tokens),
            seed=key_seed("topk", *key) % 2**31,
            stop_token_ids=sorted(stops),
            ignore_eos=True,  # the end marks are among the stops
            detokenize=False,
        )
        for ids, key in asked
    ]
    prompts = [TokensPrompt(prompt_token_ids=list(ids)) for ids, _ in asked]
    outputs = _engine(str(loaded.folder), loaded.precision).generate(prompts, settings)
    return [_answer_ids(output.outputs[0]) for output in outputs]


@lru_cache(maxsize=1)
def _engine(folder: str, dtype: str) -> Any:
    from vllm import LLM

    return LLM(model=folder, dtype=dtype, gpu_memory_utilization=GPU_MEMORY, enable_prefix_caching=True)


def _answer_ids(completion: Any) -> list[int]:
    """The token ids of one answer with its stop token, which some versions of vLLM leave out."""
    ids = list(completion.token_ids)
    stop = completion.stop_reason
    return [*ids, stop] if isinstance(stop, int) and ids[-1:] != [stop] else ids


def draw(logits: torch.Tensor, uniforms: torch.Tensor, config: TopK) -> torch.Tensor:
    """One token per row, [rows], from logits [rows, vocabulary] and numbers in [0, 1) [rows]."""
    values, tokens = logits.topk(min(config.k, logits.shape[-1]), dim=-1)
    cumulative = torch.softmax(values.double() / config.temperature, dim=-1).cumsum(-1)
    place = (cumulative <= (uniforms * cumulative[:, -1])[:, None]).sum(-1).clamp(max=values.shape[-1] - 1)
    return tokens.gather(1, place[:, None]).squeeze(1)


def search_greedy(loaded: LoadedModel, prompts: Sequence[Sequence[int]], config: Greedy) -> list[Answer]:
    """The greedy answer to each prompt (token ids). Raises UserError for one that is empty or fills the model's context."""
    return [
        make_answer(loaded, ids, config.stop_at_tag, config.safe_completions, tuple(prompt))
        for ids, prompt in zip(generate(loaded, prompts, likeliest, config), prompts)
    ]


def likeliest(logits: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
    """The likeliest token of each row; among equals the smallest id, a choice that torch.argmax leaves to the device."""
    return (logits == logits.amax(-1, keepdim=True)).int().cumsum(-1).eq(0).sum(-1)


def generate(loaded: LoadedModel, prompts: Sequence[Sequence[int]], choose: Choose, config: AnswerSettings) -> list[list[int]]:
    """The token ids of one answer to each prompt (token ids), up to and including the end mark or tag that ends it."""
    limits = [room_after(loaded, prompt, config.max_new_tokens) for prompt in prompts]
    answers: list[list[int]] = [[] for _ in prompts]
    fixed = config.rows if loaded.deterministic else 0
    for group in groups_of_like_length(prompts):
        longest = max(len(prompts[i]) + limits[i] for i in group)
        rows = max(1, min(config.rows, config.rows * ROW_TOKENS // longest, len(group)))
        _generate(Decoding(loaded, rows, longest, fixed), prompts, group, answers, choose, limits, config.stop_at_tag)
    return answers


def groups_of_like_length(prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """The prompts' places in groups, longest first. A prompt less than half as long as the first of a group starts another."""
    groups: list[list[int]] = []
    for place in sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i)):
        # Prompts of up to 128 tokens stay together: among these, answers make up most of the width.
        if groups and len(prompts[groups[-1][0]]) <= max(128, 2 * len(prompts[place])):
            groups[-1].append(place)
        else:
            groups.append([place])
    return groups


@torch.inference_mode()
def _generate(
    decoding: Decoding,
    prompts: Sequence[Sequence[int]],
    group: Sequence[int],
    answers: list[list[int]],
    choose: Choose,
    limits: Sequence[int],
    stop_at_tag: bool,
) -> None:
    """Fill in the answers to the prompts of one group."""
    queue, rows, loaded, device = deque(group), decoding.rows, decoding.loaded, decoding.loaded.device
    # For each row: the number of its answer (-1: none), the tokens in its cache, and the token that goes in next.
    active: np.ndarray = np.full(rows, -1)
    length: np.ndarray = np.zeros(rows, dtype=np.int64)
    token: np.ndarray = np.zeros(rows, dtype=np.int64)
    while True:
        free = np.flatnonzero(active < 0)
        if queue and len(free) * REFILL_SHARE >= len(active):
            taken = [queue.popleft() for _ in range(min(len(free), len(queue)))]
            filled = free[: len(taken)]
            decoding.admit(filled.tolist(), [prompts[i] for i in taken])
            active[filled] = taken
            length[filled] = [len(prompts[i]) - 1 for i in taken]
            token[filled] = [prompts[i][-1] for i in taken]
        elif not queue and len(free) * 4 >= len(active):  # drop rows once enough are free to be worth the copy
            kept = np.flatnonzero(active >= 0)
            if not len(kept):
                return
            decoding.select(torch.from_numpy(kept).to(device))
            active, length, token = active[kept], length[kept], token[kept]
        length[active < 0] = token[active < 0] = 0
        where = torch.from_numpy(length).to(device)[:, None]
        mask = torch.arange(int(np.max(length)) + 1, device=device) <= where
        logits = decoding.forward(torch.from_numpy(token).to(device)[:, None], where, where, mask[:, None])[:, 0]
        steps = np.array([len(answers[i]) if i >= 0 else 0 for i in active])
        chosen = choose(logits, torch.from_numpy(active.clip(0)).to(device), torch.from_numpy(steps).to(device))
        token = chosen.cpu().numpy().copy()
        length += 1
        for row in np.flatnonzero(active >= 0).tolist():
            answer = answers[active[row]]
            answer.append(int(token[row]))
            if is_finished(loaded, answer, stop_at_tag) or len(answer) == limits[active[row]]:
                active[row] = -1
