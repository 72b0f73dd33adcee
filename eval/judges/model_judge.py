"""What all judges that are models share: how a question becomes a request, and a reply a verdict."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from curricula.asking import Reply, after_thoughts
from curricula.curriculum.sources.hub import hub_explained
from curricula.errors import UserError
from curricula.eval.judges.question import UNPARSED, Question, Verdict
from curricula.eval.judges.settings import JudgeConfig
from curricula.eval.judges.templates import Template, version_of
from curricula.terminal import one_line

Clip = Callable[[str], str]
"""Shortens an answer to what the judge may see of it."""


class ModelJudge:
    """Judges questions of one kind, that of its template."""

    def __init__(self, settings: JudgeConfig, template: Template) -> None:
        self.settings, self.template = settings, template
        self.name = settings.full_name
        self.version = version_of(settings, template)
        self.tells_helpful = template.tells_helpful

    @cached_property
    def clip(self) -> Clip:
        return clip_for(self.settings)

    @property
    def completes(self) -> bool:
        return self.template.completes

    def prompt(self, question: Question) -> str:
        return self.template.fill(question, self.clip(question.response))

    def request(self, question: Question) -> dict[str, Any]:
        """The body of the request about a question."""
        settings, prompt = self.settings, self.prompt(question)
        body: dict[str, Any] = {
            "model": settings.model_name,
            "temperature": settings.temperature,
            "max_tokens": settings.max_tokens,
        }
        if self.completes:
            body["prompt"] = prompt
        else:
            body["messages"] = self.messages(question, prompt)
        return {key: value for key, value in {**body, **settings.request}.items() if value is not None}

    def messages(self, question: Question, prompt: str) -> list[dict[str, str]]:
        """The question as a chat: the filled template or, for a guard model, the request and the answer in turns."""
        system = [{"role": "system", "content": self.template.system}] if self.template.system else []
        if self.template.turns:
            request = question.behavior if not question.context else f"{question.context}\n\n{question.behavior}"
            return [{"role": "user", "content": request}, {"role": "assistant", "content": prompt}]
        return [*system, {"role": "user", "content": prompt}]

    def read(self, reply: Reply) -> Verdict:
        """The verdict after a judge's thoughts. What was cut short may only lead up to one, unless its first line is one, in a
        single word."""
        said = after_thoughts(reply.text)
        label, first = self.template.read(said), said.partition("\n")[0]
        if reply.cut and (len(first.split()) > 1 or self.template.read(first) != label):
            label = UNPARSED
        # A server's JSON may hold half of a surrogate pair, which no file of rows can.
        return Verdict(label=label, reply=reply.text.encode(errors="replace").decode())


def clip_for(settings: JudgeConfig) -> Clip:
    """Cuts an answer after `clip_tokens` tokens of the judge's tokenizer, as HarmBench does. An LLM sees all of it."""
    if settings.clip_tokens is None or settings.name != "harmbench":
        return lambda text: text
    tokenizer, limit = load_tokenizer(settings.tokenizer or settings.model_name), settings.clip_tokens

    def clip(text: str) -> str:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(ids) <= limit:
            return text
        return tokenizer.decode(ids[:limit], skip_special_tokens=True, clean_up_tokenization_spaces=False)

    return clip


def hub_place(name: str) -> dict[str, str]:
    """What tells transformers of a folder, or of a name on the hub, which may end in @REVISION."""
    repository, _, revision = (name, "", "") if Path(name).exists() else name.partition("@")
    return {"pretrained_model_name_or_path": repository, "revision": revision or "main"}


def hub_errors(name: str) -> contextlib.AbstractContextManager[None]:
    """Explains what the hub's libraries raise while a judge of this name is loaded, unless it is a folder."""
    repository, _, revision = name.partition("@")
    return contextlib.nullcontext() if Path(name).exists() else hub_explained(f"judge {name}", repository, revision or None)


def load_tokenizer(name: str) -> Any:
    from transformers import AutoTokenizer

    try:
        with hub_errors(name):
            return AutoTokenizer.from_pretrained(**hub_place(name), trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{name}: no tokenizer for the judge ({one_line(str(error), 160)}); "
            "name its folder as judge.tokenizer, or set judge.clip_tokens to null"
        ) from None
