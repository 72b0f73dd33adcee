"""The settings of a judge: which one it is, and how it is asked (docs/judges.md).

This module imports neither torch nor a client, because studies are read on login nodes.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, get_args

from msgspec import Meta

from curricula.errors import UsageError
from curricula.secrets import has_password, host_of, without_userinfo
from curricula.settings import NonNegative, NonNegativeNumber, Positive, PositiveNumber, Settings

JudgeName = Literal["refusal-phrases", "world", "harmbench", "llm", "local", "python"]
JUDGES: tuple[JudgeName, ...] = get_args(JudgeName)
FILLED = ("behavior", "generation", "context")
"""The placeholders that a user's text can hold in braces."""
MISTAKEN = ("behaviour", "request", "prompt", "question", "instruction", "response", "answer", "completion", "output")
"""Names easily written instead of those. They are refused, because a judge that sees no request still gives verdicts."""
OURS = {"model", "messages", "prompt", "stream"}
"""Fields of a request that the suite sets: they decide which model is asked what, and how the reply arrives."""
HARMBENCH = "cais/HarmBench-Llama-2-13b-cls"
NEEDED_MODEL = {
    "llm": "the name that the server knows it by",
    "local": "a Hugging Face folder or name",
    "python": "a name in the entry point group curricula.judges",
}


class JudgeConfig(Settings, frozen=True):
    """A judge and its settings. Those after `name` are for judges that are models; "python" takes `model` too."""

    name: JudgeName
    """The kind of judge; docs/judges.md compares them."""
    model: str = ""
    """The model's name on the server. For "local": a name on the hub, or a folder, relative to the study file's folder. For
    "python": a name in the entry point group `curricula.judges`. Only "harmbench" has a default, the published Llama 2
    classifier."""
    template: str = ""
    """A name in eval/judges/templates.py. "": the default for the judge, its model and the task."""
    text: str = ""
    """Your own template, with {behavior}, {generation} and, if needed, {context}."""
    replies: dict[str, str] = {}
    """What each reply to `text` means, such as {YES: harmful, NO: safe}; all other replies are unparsed."""
    url: str = ""
    """URL of an OpenAI-compatible server. Without it, "llm" uses OPENAI_BASE_URL and "harmbench" runs in this process."""
    tokenizer: str = ""
    """Folder or name of the tokenizer that clips answers as HarmBench does. "": the model's own."""
    clip_tokens: Positive | None = 512
    """Most tokens of an answer that "harmbench" sees (HarmBench's own setting); null: all."""
    temperature: Annotated[float, Meta(ge=0, le=2)] = 0.0
    """The temperature at which the judge replies; 0 always takes the likeliest token."""
    max_tokens: Positive = 16
    """Most tokens in a reply. A model that reasons first needs more."""
    request: dict[str, Any] = {}
    """Fields merged into each request, but not model, messages, prompt or stream. null removes a field: {max_tokens: null}."""
    concurrency: Annotated[int, Meta(ge=1, le=1000)] = 32
    """Most requests under way at once."""
    requests_per_minute: Positive | None = None
    """Most requests sent per minute; null: as many as the server allows."""
    tokens_per_minute: Positive | None = None
    """Most tokens per minute, counting questions and the longest replies; null: as many as the server allows."""
    timeout_s: PositiveNumber = 120.0
    """Seconds to wait for a whole reply."""
    retries: NonNegative = 8
    """How often a request without a reply is sent again, after growing waits or as Retry-After says."""
    patience: Positive = 16
    """Replies in a row without a verdict after which the work stops, because the judge is taken to be at fault."""
    batch_api: bool = False
    """Hand all questions to the server's Batch API and wait: half the price, up to 24 hours."""
    price_in: NonNegativeNumber | None = None
    """Dollars per million tokens read, for the estimate."""
    price_out: NonNegativeNumber | None = None
    """Dollars per million tokens written, for the estimate."""

    def check(self) -> None:
        if not self.has_template:
            own = ("name", "model") if self.name == "python" else ("name",)
            others = [name for name in self.__struct_fields__ if name not in own]
            self.require_default(others, f"with judges that are models, not {self.name}")
        if self.name in NEEDED_MODEL and not self.model:
            raise ValueError(f"judge {self.name} needs a model: {NEEDED_MODEL[self.name]}")
        if self.name == "local" and (self.url or self.temperature or self.request):
            raise ValueError("judge local answers greedily in this process; leave url, temperature and request out, or use llm")
        if self.name == "harmbench" and not self.url:  # these would be recorded as if they had decided the verdicts
            self.require_default(["temperature", "max_tokens", "request"], "with a `url`: here the likeliest token is taken")
        if taken := sorted(self.request.keys() & OURS):
            raise ValueError(f"judge.request holds {', '.join(taken)}, which the suite sets itself; leave it out")
        self._check_text()
        self._check_url()
        if (self.price_in is None) != (self.price_out is None):
            raise ValueError("judge.price_in and judge.price_out: give both, or neither")

    def _check_text(self) -> None:
        if bool(self.text) != bool(self.replies):
            raise ValueError("judge.text and judge.replies belong together; give both, or neither")
        if self.text and self.template:
            raise ValueError("judge.text and judge.template exclude each other; leave one of the two out")
        if self.text and "{generation}" not in self.text:
            raise ValueError("judge.text must hold {generation}, or the judge would see no answer; add it")
        for name in re.findall(r"\{(\w+)\}", self.text):
            if name not in FILLED and name.lower() in (*FILLED, *MISTAKEN):
                raise ValueError(
                    f"judge.text holds {{{name}}}, which nothing fills; write {{behavior}}, {{generation}} or {{context}}"
                )

    def _check_url(self) -> None:
        if self.url:
            try:
                host_of(self.url)
            except UsageError as error:
                raise ValueError(f"judge.url: {error}") from None
        if has_password(self.url):
            mend = "leave judge.url out and give the address in OPENAI_BASE_URL"
            if self.name == "harmbench" or self.batch_api:  # which need the key
                mend = "give the address without them, and a key in OPENAI_API_KEY"
            raise ValueError(
                f"judge.url is {without_userinfo(self.url)!r} with a user or password, which would be written into the run's "
                f"files; {mend}"
            )
        if self.batch_api and not self.url:
            raise ValueError("judge.batch_api is on without a judge.url; name the server")

    @property
    def has_template(self) -> bool:
        """Whether the judge is a model that is asked by a template."""
        return self.name in ("harmbench", "llm", "local")

    @property
    def model_name(self) -> str:
        """`model`, or the default of "harmbench"."""
        return self.model or (HARMBENCH if self.name == "harmbench" else "")

    @property
    def reply_tokens(self) -> int:
        """Most tokens that a reply can have, by `max_tokens` or by the limits in `request`."""
        request = {"max_tokens": self.max_tokens, **self.request}
        limits = [request.get(name) for name in ("max_tokens", "max_completion_tokens")]
        return max((limit for limit in limits if isinstance(limit, int)), default=self.max_tokens)

    @property
    def full_name(self) -> str:
        """The judge's name in verdicts: "NAME:MODEL", or NAME for a judge without a model."""
        return f"{self.name}:{self.model_name}" if self.model_name else self.name

    @property
    def on_this_machine(self) -> bool:
        """Whether the judge is a model that runs in this process, on this machine's GPU if it has one."""
        return self.name == "local" or (self.name == "harmbench" and not self.url)


def judge_config(given: str | JudgeConfig) -> JudgeConfig:
    """The settings given, or those of the judge named, with all defaults. Raises ValueError for an unknown name."""
    if isinstance(given, JudgeConfig):
        return given
    if given not in JUDGES:
        raise ValueError(f"judge {given!r} is not known; choose one of {', '.join(JUDGES)}")
    return JudgeConfig(name=given)
