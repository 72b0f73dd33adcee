"""What a judge model is given of an answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from curricula.errors import UserError
from curricula.eval.judges.settings import JudgeConfig

Clip = Callable[[str], str]


def clip_of(settings: JudgeConfig) -> Clip:
    """Cuts an answer after `clip_tokens` tokens of the judge's tokenizer, as HarmBench does; an LLM sees all of it."""
    if settings.clip_tokens is None or settings.name != "harmbench":
        return lambda text: text
    return clipping(load_tokenizer(settings.tokenizer or settings.model_name), settings.clip_tokens)


def load_tokenizer(name: str) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{name}: no tokenizer for the judge ({' '.join(str(error).split())[:160]}); "
            "name its folder as judge.tokenizer, or set judge.clip_tokens to null"
        ) from None


def clipping(tokenizer: Any, limit: int) -> Clip:
    """Texts of at most `limit` tokens come back as they are."""

    def clip(text: str) -> str:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(ids) <= limit:
            return text
        return tokenizer.decode(ids[:limit], skip_special_tokens=True, clean_up_tokenization_spaces=False)

    return clip
