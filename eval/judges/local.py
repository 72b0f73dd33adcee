"""HarmBench's classifier in this process, by transformers: one forward pass a batch, the likeliest next token is the reply.

As in HarmBench's own pipeline: greedy, one token, answers clipped to 512 of the classifier's tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from curricula.errors import UserError
from curricula.eval.judges.question import UNPARSED, Question, Settle, Verdict
from curricula.eval.judges.settings import JudgeConfig
from curricula.eval.judges.templates import Template, version_of
from curricula.eval.judges.text import Clip, clip_of, load_tokenizer


class LocalClassifier:
    def __init__(self, settings: JudgeConfig, template: Template) -> None:
        self.settings, self.template = settings, template
        self.name = settings.full_name
        self.version = version_of(settings, template)

    def estimate(self, questions: Sequence[Question]) -> None:
        return None

    def rule(self, questions: Sequence[Question], settle: Settle, beside: Path, proven: bool) -> None:
        if not questions:  # loading 13 billion weights to judge nothing would be a pity
            return
        prompts = [self.template.fill(question, self._clip(question.response)) for question in questions]
        order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]), reverse=True)  # little padding
        size = self.settings.batch_answers
        held: list[tuple[Question, Verdict]] = []  # unreadable, before the first reply that could be read
        for start in range(0, len(order), size):
            places = order[start : start + size]
            replies = self._replies([prompts[place] for place in places])
            held += [
                (questions[place], Verdict(label=self.template.read(reply), reply=reply))
                for place, reply in zip(places, replies, strict=True)
            ]
            proven = proven or any(ruling.label != UNPARSED for _, ruling in held)
            if proven:
                settle(held)
                held = []
        if held:
            raise UserError(
                f"{self.settings.model_name}: answers {held[-1][1].reply!r} and the like to all {len(held)} questions, which "
                f"is no verdict; is it a classifier for the template {self.template.name}?"
            )

    @cached_property
    def _clip(self) -> Clip:
        return clip_of(self.settings)

    @cached_property
    def _tokenizer(self) -> Any:
        tokenizer = load_tokenizer(self.settings.tokenizer or self.settings.model_name)
        tokenizer.padding_side = "left"
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer

    @cached_property
    def _model(self) -> Any:
        import torch
        from safetensors import SafetensorError
        from transformers import AutoModelForCausalLM

        name, on_gpu = self.settings.model_name, torch.cuda.is_available()
        dtype = torch.bfloat16 if on_gpu else torch.float32
        try:
            model: Any = AutoModelForCausalLM.from_pretrained(name, trust_remote_code=False, dtype=dtype)
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            said = " ".join(str(error).split())[:160]
            raise UserError(
                f"{name}: the judge cannot be loaded ({said}); name its folder as judge.model, or a server as judge.url"
            ) from None
        return model.to("cuda" if on_gpu else "cpu").eval()

    def _replies(self, prompts: list[str]) -> list[str]:
        import torch

        encoded = self._tokenizer(prompts, return_tensors="pt", padding=True).to(self._model.device)
        mask = encoded["attention_mask"]
        places = (mask.cumsum(-1) - 1).clamp(min=0)  # so that padding moves no token
        with torch.inference_mode():
            out = self._model(
                input_ids=encoded["input_ids"], attention_mask=mask, position_ids=places, logits_to_keep=1
            )
        return [self._tokenizer.decode([token]) for token in out.logits[:, -1].argmax(-1).tolist()]
