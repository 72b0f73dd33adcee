"""Judges that are models in this process: HarmBench's classifier, and any chat or guard model (docs/evaluation.md)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from curricula.errors import UserError
from curricula.eval.judges.model_judge import ModelJudge
from curricula.eval.judges.question import UNPARSED, Question, Settle, Verdict

ANSWERS_AT_ONCE = 16
"""In one forward pass."""
TOO_LONG = Verdict(label=UNPARSED, reply="not asked: longer than the judge's context")


class LocalModel(ModelJudge):
    """A chat model or a guard model. Special tokens that a judged answer quotes are read as text."""

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
                f"questions, which is no verdict; is it a classifier for the template {self.template.name}?"
            )

    @cached_property
    def _loaded(self) -> Any:
        from curricula.eval.models import load_model

        return load_model(self.settings.model_name, "base" if self.completes else "instruct")

    def _replies(self, questions: list[Question], prompts: list[str]) -> list[str | None]:
        """None: the question is longer than the model's context."""
        ids = [self._ids(*asked) for asked in zip(questions, prompts, strict=True)]
        fitting = iter(self._answers([one for one in ids if len(one) < self._loaded.context_length]))
        return [next(fitting) if len(one) < self._loaded.context_length else None for one in ids]

    def _answers(self, prompts: list[list[int]]) -> list[str]:
        from curricula.eval.decoding.sampling import search_greedy
        from curricula.eval.decoding.settings import Greedy

        settings = Greedy(max_new_tokens=self.settings.max_tokens, rows=ANSWERS_AT_ONCE)
        return [answer.text for answer in search_greedy(self._loaded, prompts, settings)]

    def _ids(self, question: Question, prompt: str) -> list[int]:
        from curricula.eval.models import MARK, render_turns

        loaded, name = self._loaded, self.settings.model_name
        if self.completes:
            text, cut = self.clip(question.response), self.template.fill(question, MARK).split(MARK)
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


class LocalClassifier(LocalModel):
    """HarmBench's: its reply is the first token after the filled template, be it a special one."""

    completes = True

    def _answers(self, prompts: list[list[int]]) -> list[str]:
        from curricula.eval.decoding.sampling import generate, likeliest
        from curricula.eval.decoding.settings import Greedy

        tokens = generate(self._loaded, prompts, likeliest, Greedy(max_new_tokens=1, rows=ANSWERS_AT_ONCE))
        return [self._loaded.tokenizer.decode(token) for token in tokens]
