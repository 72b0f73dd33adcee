"""Top-k sampling on vLLM, for large models on GPUs: the setting `topk.backend: vllm` and the extra `curricula[vllm]`.

vLLM draws its own random numbers: its answers have the distribution of the transformers backend's but are not the same,
and their rows have other keys. Every answer has its own seed here too, but vLLM promises only "mostly" the same answer
for the same seed, since its kernels depend on what else is in the batch. SafeBeam always runs on transformers: vLLM gives
no distribution after a candidate without reading the whole text again.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from curricula.errors import UserError
from curricula.eval.decoding.answers import room_after
from curricula.eval.decoding.settings import TopK
from curricula.eval.models import LoadedModel
from curricula.randomness import key_seed

GPU_MEMORY = 0.6
"""Share of the GPU's memory for vLLM; the rest holds the model that the other decoders use."""


def sample_ids(
    loaded: LoadedModel, asked: Sequence[tuple[Sequence[int], tuple[object, ...]]], config: TopK
) -> list[list[int]]:
    """Generated token ids for each (prompt ids, key of its draws), up to and including the token that ended it.

    Raises UserError when vLLM is not installed, and for a prompt that is empty or fills the model's context.
    """
    try:
        from vllm import SamplingParams
        from vllm.inputs import TokensPrompt
    except ImportError as error:
        raise UserError(
            f"topk.backend is 'vllm', which cannot be imported ({error}); `pip install curricula[vllm]` or use "
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
    outputs = engine(str(loaded.folder), loaded.precision).generate(prompts, settings)
    return [answer_ids(output.outputs[0]) for output in outputs]


@lru_cache(maxsize=1)
def engine(folder: str, dtype: str) -> Any:
    from vllm import LLM

    return LLM(model=folder, dtype=dtype, gpu_memory_utilization=GPU_MEMORY, enable_prefix_caching=True)


def answer_ids(completion: Any) -> list[int]:
    """The token ids of one answer with its stop token, which some versions of vLLM leave out."""
    ids = list(completion.token_ids)
    stop = completion.stop_reason
    return [*ids, stop] if isinstance(stop, int) and ids[-1:] != [stop] else ids
