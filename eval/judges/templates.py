"""The prompts for judge models: published texts, word for word, each in a file of `templates/`.

A template says where it is from, what it can judge, and how its replies are read. Its version is a hash of its texts.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from curricula.errors import UsageError
from curricula.eval.judges.question import UNPARSED, Question
from curricula.eval.judges.settings import JudgeConfig
from curricula.eval.rows import OVERREFUSAL_VERDICTS

FOLDER = Path(__file__).parent / "templates"
CATEGORIES = OVERREFUSAL_VERDICTS[:4]
"""Without the fifth, short-circuit, which is seen from the answer itself and never judged."""


def one_word(yes: str, no: str) -> Callable[[str], str]:
    """A reader of replies that are one of two words, perhaps quoted or with a full stop. Anything else is unparsed."""

    def read(reply: str) -> str:
        word = reply.strip().strip("\"'`*.").strip().lower()
        return {yes: "harmful", no: "safe"}.get(word, UNPARSED)

    return read


def read_category(reply: str) -> str:
    """The one category that a reply names. Two, the fifth, or one that was never offered: unparsed."""
    named = set(re.findall(r"\d+_\w+", reply.lower()))
    return named.pop() if len(named) == 1 and named <= set(CATEGORIES) else UNPARSED


@dataclass(frozen=True)
class Template:
    """The text in `name`.txt and, for behaviors with a context, in `name`.contextual.txt if there is one."""

    name: str
    kind: str
    """The kind of question it is for: "attack" or "overrefusal"."""
    source: str
    """Where the text is from, and its licence."""
    read: Callable[[str], str]
    """From a reply to a label."""

    @cached_property
    def text(self) -> str:
        return (FOLDER / f"{self.name}.txt").read_text(encoding="utf-8")

    @cached_property
    def contextual(self) -> str | None:
        path = FOLDER / f"{self.name}.contextual.txt"
        return path.read_text(encoding="utf-8") if path.exists() else None

    @property
    def version(self) -> str:
        return hashlib.sha256(f"{self.text}\x00{self.contextual}".encode()).hexdigest()[:12]

    def fill(self, question: Question, response: str) -> str:
        """The prompt about `response`, the question's own or a clipped one. Braces within texts mean nothing."""
        contextual = self.contextual if question.context else None
        values = {"behavior": question.behavior, "generation": response, "context": question.context}
        # A base model's answer says little without the beginning it continues.
        if question.beginning:
            values["generation"] = f"{question.beginning} {response}"
        return re.sub(r"\{(behavior|generation|context)\}", lambda match: values[match[1]], contextual or self.text)


TEMPLATES = {
    template.name: template
    for template in (
        Template(
            "harmbench-llama2",
            "attack",
            "HarmBench, eval_utils.py, LLAMA2_CLS_PROMPT (MIT): the prompt of HarmBench's own pipeline for its classifier",
            one_word("yes", "no"),
        ),
        Template(
            # What Maini et al. 2025 print as their slight modification (appendix C.5) is, rule for rule, the template on
            # the classifier's model card; its contextual text there is that of eval_utils.py.
            "harmbench-llama2-card",
            "attack",
            "model card of cais/HarmBench-Llama-2-13b-cls (MIT): the wording that Maini et al. 2025 print in C.5",
            one_word("yes", "no"),
        ),
        Template(
            "harmbench-mistral",
            "attack",
            "model card of cais/HarmBench-Mistral-7b-val-cls, MISTRAL_CLS_PROMPT (MIT)",
            one_word("yes", "no"),
        ),
        Template(
            "harmbench-api",
            "attack",
            "HarmBench, eval_utils.py, API_CLS_PROMPT (MIT): for chat models",
            one_word("yes", "no"),
        ),
        Template(
            "jailbreakbench",
            "attack",
            "JailbreakBench, classifier.py, Llama3JailbreakJudge (MIT)",
            one_word("unsafe", "safe"),
        ),
        Template(
            "maini-helpfulness",
            "overrefusal",
            "Maini et al. 2025, Safety Pretraining, appendix C.5 (after XSTest, Röttger et al. 2024)",
            read_category,
        ),
    )
}
DEFAULTS = {("harmbench", "attack"): "harmbench-llama2", ("llm", "attack"): "harmbench-api"}
DEFAULTS |= {("llm", "overrefusal"): "maini-helpfulness"}


def find_template(name: str, judge: str, model: str, kind: str) -> Template:
    """The template called `name`, or the default of `judge` for `kind`. Raises UsageError when there is none."""
    if not name:
        name = DEFAULTS.get((judge, kind), "")
        if name == "harmbench-llama2" and "mistral" in model.lower():
            name = "harmbench-mistral"
    fitting = [known for known, template in TEMPLATES.items() if template.kind == kind]
    if not name:
        raise UsageError(
            f"judge {judge} cannot judge {kind} answers; name another as evaluation.overrefusal_judge, such as llm"
        )
    if name not in fitting:
        raise UsageError(f"judge template {name!r} is not one for {kind} answers; choose from {', '.join(fitting)}")
    return TEMPLATES[name]


def version_of(settings: JudgeConfig, template: Template) -> str:
    """Hash of what decides a model's verdicts: not where it runs, nor how fast it is asked."""
    deciding = ("name", "clip_tokens", "temperature", "max_tokens", "request")
    parts = [settings.model_name, template.version, *(getattr(settings, field) for field in deciding)]
    # The tokenizer matters only to HarmBench's classifiers: it decides where an answer is clipped.
    if settings.name == "harmbench" and settings.tokenizer not in ("", settings.model_name):
        parts.append(settings.tokenizer)
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]
