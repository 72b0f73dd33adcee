"""Which judge, and how it is asked. Imports neither torch nor a client: studies are read on login nodes.

judge: refusal-phrases                      # a name alone, or
judge:
  name: harmbench
  model: cais/HarmBench-Llama-2-13b-cls
  url: http://node7:8000/v1                 # vLLM; without it transformers loads the model here
"""

from __future__ import annotations

import math
from typing import Any, Literal
from urllib.parse import urlsplit

from curricula.settings import Settings

JudgeName = Literal["refusal-phrases", "world", "harmbench", "llm"]
JUDGES: tuple[JudgeName, ...] = ("refusal-phrases", "world", "harmbench", "llm")
HARMBENCH = "cais/HarmBench-Llama-2-13b-cls"


class JudgeConfig(Settings, frozen=True):
    """A judge and its settings; those below `model` are for judges that are models."""

    name: JudgeName
    model: str = ""  # "harmbench": the published Llama 2 classifier; "llm" has no default
    template: str = ""  # of eval/judges/templates.py; "" is the model's or the task's own
    url: str = ""  # an OpenAI-compatible server; "harmbench" without one is loaded here by transformers
    tokenizer: str = ""  # folder or name, to clip answers as HarmBench does; "" is the model's own
    clip_tokens: int | None = 512  # "harmbench" sees no more of an answer (HarmBench's own setting); null: all
    temperature: float = 0.0
    max_tokens: int = 16  # of a reply; a model that thinks first needs more
    request: dict[str, Any] = {}  # merged into each request; null takes a field out, such as {max_tokens: null}
    concurrency: int = 32  # requests at once
    requests_per_minute: int | None = None  # null: as the server lets us
    tokens_per_minute: int | None = None
    timeout_s: float = 120.0  # without a byte from the server
    retries: int = 8  # of a request that got no reply, with growing waits, or as long as Retry-After says
    patience: int = 16  # replies in a row without a verdict, until the judge is at fault
    batch_api: bool = False  # hand all questions to the server's Batch API and wait: half the price, up to 24 hours
    batch_poll_s: float = 60.0
    batch_answers: int = 16  # judged in one forward pass, without a server
    price_in: float | None = None  # dollars per million tokens, for the estimate
    price_out: float | None = None

    def check(self) -> None:
        served = self.name in ("harmbench", "llm")
        if not served and (self.model or self.url or self.template):
            raise ValueError(f"judge {self.name} asks no model; leave model, url and template out")
        if self.name == "llm" and not self.model:
            raise ValueError("judge llm needs a model: the name that the server knows it by")
        if self.url and urlsplit(self.url).scheme not in ("http", "https"):
            raise ValueError(f"judge.url is {self.url!r}; give one such as http://node7:8000/v1")
        if self.batch_api and not self.url:
            raise ValueError("judge.batch_api is on without a judge.url; name the server")
        if (self.price_in is None) != (self.price_out is None):
            raise ValueError("judge.price_in and judge.price_out: give both, or neither")
        for field in ("price_in", "price_out"):
            if getattr(self, field) is not None and not 0 <= getattr(self, field) < math.inf:
                raise ValueError(f"judge.{field} is {getattr(self, field)}; give dollars per million tokens, 0 or more")
        for field in ("max_tokens", "concurrency", "timeout_s", "batch_answers", "batch_poll_s", "patience"):
            if not 0 < getattr(self, field) < math.inf:
                raise ValueError(f"judge.{field} is {getattr(self, field)}; it must be positive")
        for field in ("requests_per_minute", "tokens_per_minute", "clip_tokens"):
            if getattr(self, field) is not None and not getattr(self, field) > 0:
                raise ValueError(f"judge.{field} is {getattr(self, field)}; it must be positive, or null for no limit")
        if not 0 <= self.temperature <= 2 or self.retries < 0 or self.concurrency > 1000:
            given = f"temperature {self.temperature}, retries {self.retries}, concurrency {self.concurrency}"
            raise ValueError(f"judge has {given}; temperature goes from 0 to 2, retries from 0, concurrency to 1000")

    @property
    def model_name(self) -> str:
        return self.model or (HARMBENCH if self.name == "harmbench" else "")

    @property
    def full_name(self) -> str:
        """As verdicts name the judge: with its model where it has one."""
        return f"{self.name}:{self.model_name}" if self.model_name else self.name

    @property
    def on_this_machine(self) -> bool:
        """Whether the judge is a model that wants this machine's GPU."""
        return self.name == "harmbench" and not self.url


def judging(given: str | JudgeConfig) -> JudgeConfig:
    """Settings from a name alone, or as they are; raises ValueError for an unknown name."""
    if isinstance(given, JudgeConfig):
        return given
    if given not in JUDGES:
        raise ValueError(f"judge {given!r} is not known; choose one of {', '.join(JUDGES)}")
    return JudgeConfig(name=given)
