"""Judges that are models in this process: HarmBench's classifier, and any chat or guard model (docs/evaluation.md)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from curricula.asking import Reply
from curricula.errors import UserError
from curricula.eval.decoding.settings import Greedy
from curricula.eval.judges.model_judge import ModelJudge, hub_errors, hub_place, load_tokenizer
from curricula.eval.judges.question import UNPARSED, Question, Settle, Verdict
from curricula.terminal import one_line

ANSWERS_AT_ONCE = 16
"""In one forward pass."""
TOO_LONG = Verdict(label=UNPARSED, reply="not asked: longer than the judge's context")


class InProcess(ModelJudge):
    """Subclasses reply to a batch of questions."""

    @abstractmethod
    def _replies(self, questions: list[Question], prompts: list[str]) -> list[Reply | None]:
        """None: the question is longer than the model's context."""

    def estimate(self, questions: Sequence[Question]) -> None:
        return None

    def rule(self, questions: Sequence[Question], settle: Settle, notes: Path, proven: bool) -> None:
        if not questions:  # nothing is worth loading 13 billion weights for
            return
        prompts = [self.prompt(question) for question in questions]
        order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]), reverse=True)  # little padding
        held: list[tuple[Question, Verdict]] = []  # unreadable, before the first readable reply
        for start in range(0, len(order), ANSWERS_AT_ONCE):
            places = order[start : start + ANSWERS_AT_ONCE]
            replies = self._replies([questions[place] for place in places], [prompts[place] for place in places])
            asked = list(zip(places, replies, strict=True))
            if too_long := [(questions[place], TOO_LONG) for place, reply in asked if reply is None]:
                settle(too_long)
            held += [(questions[place], self.read(reply)) for place, reply in asked if reply is not None]
            proven = proven or any(verdict.label != UNPARSED for _, verdict in held)
            if proven:
                settle(held)
                held = []
        if held:
            raise UserError(
                f"{self.settings.model_name}: replied {held[-1][1].reply!r}, or something similar, to all {len(held)} "
                f"questions, which is not a verdict; is it a classifier for the template {self.template.name}?"
            )


class LocalClassifier(InProcess):
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

        from curricula.eval.models import find_device, read_weights

        name, on_gpu = self.settings.model_name, find_device(None).type == "cuda"
        dtype = torch.bfloat16 if on_gpu else torch.float32
        try:
            with hub_errors(name):
                model = read_weights(**hub_place(name), trust_remote_code=False, dtype=dtype)
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise UserError(
                f"{name}: the judge cannot be loaded ({one_line(str(error), 160)}); name its folder as judge.model, or a "
                "server as judge.url"
            ) from None
        return model.to("cuda" if on_gpu else "cpu").eval()

    def _replies(self, questions: list[Question], prompts: list[str]) -> list[Reply | None]:
        import torch

        encoded = self._tokenizer(prompts, return_tensors="pt", padding=True).to(self._model.device)
        mask = encoded["attention_mask"]
        places = (mask.cumsum(-1) - 1).clamp(min=0)  # padding moves no token
        with torch.inference_mode():
            out = self._model(input_ids=encoded["input_ids"], attention_mask=mask, position_ids=places, logits_to_keep=1)
        return [Reply(self._tokenizer.decode([token]), cut=False) for token in out.logits[:, -1].argmax(-1).tolist()]


class LocalModel(InProcess):
    """A chat model or a guard model. Special tokens that a judged answer quotes are read as text."""

    @cached_property
    def _loaded(self) -> Any:
        from curricula.eval.models import load_model

        return load_model(self.settings.model_name, "instruct")

    def _replies(self, questions: list[Question], prompts: list[str]) -> list[Reply | None]:
        from curricula.eval.decoding.sampling import search_greedy

        ids = [self._ids(*asked) for asked in zip(questions, prompts, strict=True)]
        settings = Greedy(max_new_tokens=self.settings.max_tokens, rows=ANSWERS_AT_ONCE)
        asked = [place for place, one in enumerate(ids) if len(one) < self._loaded.context_length]
        replies: list[Reply | None] = [None] * len(ids)
        if asked:
            answers = search_greedy(self._loaded, [ids[place] for place in asked], settings)
            for place, answer in zip(asked, answers, strict=True):
                replies[place] = Reply(answer.text, cut=answer.finish == "length")
        return replies

    def _ids(self, question: Question, prompt: str) -> list[int]:
        from curricula.eval.models import MARK, render_turns

        loaded, name = self._loaded, self.settings.model_name
        if self.completes:
            text, cut = question.response, self.template.fill(question, MARK).split(MARK)
        elif not loaded.tokenizer.chat_template:
            raise UserError(
                f"{name}: the judge's tokenizer has no chat_template, and template {self.template.name} needs one; add it to "
                "tokenizer_config.json"
            )
        else:
            turns = self.messages(question, MARK)
            text, cut = prompt, render_turns(loaded.tokenizer, loaded.tokenizer.chat_template, turns, name).split(MARK)
        if len(cut) != 2:
            raise UserError(
                f"{name}: the judge's chat template does not show the answer once; ask it through a server (judge llm)"
            )
        return [*(loaded.beginning if self.completes else ()), *loaded.encode_turn(cut[0], text, cut[1])]
