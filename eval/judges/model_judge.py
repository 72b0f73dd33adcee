"""Judges that are models: how a question becomes a request and a reply a verdict, and the judges that run in this process.

HarmBench's classifier and any chat or guard model can run here (docs/judges.md). They import torch when first asked.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from curricula.asking import Reply, after_thoughts
from curricula.curriculum.sources.hub import hub_explained
from curricula.errors import UserError, load_failure
from curricula.eval.decoding.settings import Greedy
from curricula.eval.judges.question import UNPARSED, Judge, Question, Settle, Verdict, can_tell_helpful
from curricula.eval.judges.settings import JudgeConfig
from curricula.eval.judges.templates import Template, version_of
from curricula.terminal import one_line

ANSWERS_AT_ONCE = 16
"""Answers in one forward pass."""
TOO_LONG = Verdict(label=UNPARSED, reply="not asked: longer than the judge's context")


class ModelJudge(Judge):
    """A judge that asks a model. It judges answers of one kind, that of its template."""

    def __init__(self, settings: JudgeConfig, template: Template) -> None:
        self.settings, self.template = settings, template
        self.name = settings.full_name
        self.version = version_of(settings, template)
        self.tells_helpful = can_tell_helpful(template.categories)

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer of HarmBench's classifiers."""
        from transformers import AutoTokenizer

        mend = "name its folder as judge.tokenizer, or set judge.clip_tokens to null"
        name = self.settings.tokenizer or self.settings.model_name
        tokenizer = read_judge(AutoTokenizer.from_pretrained, name, "no tokenizer for the judge", mend)
        tokenizer.padding_side = "left"
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer

    def clip(self, text: str) -> str:
        """For "harmbench", the first `clip_tokens` tokens of an answer, as HarmBench clips it. Other judges see all of it."""
        limit = self.settings.clip_tokens
        if self.settings.name != "harmbench" or limit is None:
            return text
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(ids) <= limit:
            return text
        return self.tokenizer.decode(ids[:limit], skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def prompt(self, question: Question) -> str:
        return self.template.fill(question, self.clip(question.response))

    def request(self, question: Question) -> dict[str, Any]:
        settings, prompt = self.settings, self.prompt(question)
        asked = {"prompt": prompt} if self.template.completes else {"messages": self.messages(question, prompt)}
        body = {
            "model": settings.model_name,
            "temperature": settings.temperature,
            "max_tokens": settings.max_tokens,
            **asked,
            **settings.request,
        }
        return {key: value for key, value in body.items() if value is not None}

    def messages(self, question: Question, prompt: str) -> list[dict[str, str]]:
        """The question as a chat: the filled template or, for a guard model, the request and the answer in turns."""
        if self.template.turns:
            request = question.behavior if not question.context else f"{question.context}\n\n{question.behavior}"
            return [{"role": "user", "content": request}, {"role": "assistant", "content": prompt}]
        system = [{"role": "system", "content": self.template.system}] if self.template.system else []
        return [*system, {"role": "user", "content": prompt}]

    def read(self, reply: Reply) -> Verdict:
        """The verdict in a reply, after the judge's thoughts.

        A reply that was cut short might only lead up to a verdict. It counts if its first line is one, in a single word.
        """
        said = after_thoughts(reply.text)
        label, first = self.template.read(said), said.partition("\n")[0]
        if reply.cut and (len(first.split()) > 1 or self.template.read(first) != label):
            label = UNPARSED
        # A server's JSON can hold half of a surrogate pair, but a file of rows cannot.
        return Verdict(label=label, reply=reply.text.encode(errors="replace").decode())


class InProcess(ModelJudge):
    """A judge in this process. Subclasses turn a question into token ids, and token ids into a reply."""

    @property
    @abstractmethod
    def _context(self) -> int:
        """Most tokens of a question with its reply."""

    @abstractmethod
    def _ids(self, question: Question, prompt: str) -> list[int]: ...

    @abstractmethod
    def _replies(self, texts: list[list[int]]) -> list[Reply]: ...

    def rule(self, questions: Sequence[Question], settle: Settle, notes: Path, proven: bool) -> None:
        prompts = [(question, self.prompt(question)) for question in questions]
        # Prompts of similar length share a forward pass, so that there is little padding.
        prompts.sort(key=lambda pair: len(pair[1]), reverse=True)
        held: list[tuple[Question, Verdict]] = []  # kept back until a first reply can be read
        for start in range(0, len(prompts), ANSWERS_AT_ONCE):
            batch = [(question, self._ids(question, prompt)) for question, prompt in prompts[start : start + ANSWERS_AT_ONCE]]
            asked = [(question, ids) for question, ids in batch if len(ids) < self._context]
            if too_long := [(question, TOO_LONG) for question, ids in batch if len(ids) >= self._context]:
                settle(too_long)
            replies = self._replies([ids for _, ids in asked]) if asked else []
            held += [(question, self.read(reply)) for (question, _), reply in zip(asked, replies, strict=True)]
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
    """One of HarmBench's classifiers. Its reply is one token, the likeliest."""

    @cached_property
    def _model(self) -> Any:
        import torch

        from curricula.eval.models import find_device, read_weights

        device, mend = find_device(None), "name its folder as judge.model, or a server as judge.url"
        load = partial(read_weights, dtype=torch.bfloat16 if device.type == "cuda" else torch.float32)
        return read_judge(load, self.settings.model_name, "the judge cannot be loaded", mend).to(device).eval()

    @property
    def _context(self) -> int:
        return int(self._model.config.max_position_embeddings)

    def _ids(self, question: Question, prompt: str) -> list[int]:
        return self.tokenizer(prompt)["input_ids"]

    def _replies(self, texts: list[list[int]]) -> list[Reply]:
        import torch

        encoded = self.tokenizer.pad({"input_ids": texts}, return_tensors="pt").to(self._model.device)
        mask = encoded["attention_mask"]
        places = (mask.cumsum(-1) - 1).clamp(min=0)  # so that padding shifts no token
        with torch.inference_mode():
            out = self._model(input_ids=encoded["input_ids"], attention_mask=mask, position_ids=places, logits_to_keep=1)
        return [Reply(self.tokenizer.decode([token]), cut=False) for token in out.logits[:, -1].argmax(-1).tolist()]


class LocalModel(InProcess):
    """A chat model or a guard model. Special tokens quoted in a judged answer are read as text."""

    @cached_property
    def _loaded(self) -> Any:
        from curricula.eval.models import load_model

        return load_model(self.settings.model_name, "instruct")

    @property
    def _context(self) -> int:
        return self._loaded.context_length

    def _replies(self, texts: list[list[int]]) -> list[Reply]:
        from curricula.eval.decoding.sampling import search_greedy

        settings = Greedy(max_new_tokens=self.settings.max_tokens, rows=ANSWERS_AT_ONCE)
        return [Reply(answer.text, cut=answer.finish == "length") for answer in search_greedy(self._loaded, texts, settings)]

    def _ids(self, question: Question, prompt: str) -> list[int]:
        from curricula.eval.models import MARK, render_turns

        loaded, name = self._loaded, self.settings.model_name
        if self.template.completes:
            text, around = question.response, self.template.fill(question, MARK).split(MARK)
        elif not loaded.tokenizer.chat_template:
            raise UserError(
                f"{name}: the judge's tokenizer has no chat_template, and template {self.template.name} needs one; add it to "
                "tokenizer_config.json"
            )
        else:
            turns = self.messages(question, MARK)
            text, around = prompt, render_turns(loaded.tokenizer, loaded.tokenizer.chat_template, turns, name).split(MARK)
        if len(around) != 2:
            raise UserError(
                f"{name}: the judge's chat template does not show the answer exactly once; ask it through a server (judge llm)"
            )
        before, after = around
        return [*(loaded.beginning if self.template.completes else ()), *loaded.encode_turn(before, text, after)]


def read_judge(load: Callable[..., Any], name: str, problem: str, mend: str) -> Any:
    """Load a judge's model or tokenizer with `load`, from a folder or from a name on the hub, which can end in @REVISION.

    Raises UserError with `problem` and `mend` if it cannot be loaded.
    """
    repository, _, revision = name.partition("@")
    if Path(name).exists():
        repository, revision = name, ""
    try:
        with hub_explained(f"judge {name}", repository, revision or None):
            return load(repository, revision=revision or "main", trust_remote_code=False)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise load_failure(error)(f"{name}: {problem} ({one_line(str(error), 160)}); {mend}") from None
