"""A server that speaks OpenAI's API: vLLM on a node, or a hosted one.

The openai client tries again on 408, 409, 429, 5xx, timeouts, broken connections and half bodies, and waits as long as
Retry-After says, where that is two minutes at most. It does not see whether the body of a good status is what it should
be: that is tried again here, and `asking_again` is there for replies that are well-formed and useless.

The key is sent to this server alone, and is taken out of whatever the server says before that is shown or written.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

import openai
import tenacity

from curricula.congestion import CongestionWindow
from curricula.errors import UsageError, UserError

_AS_IT_CAME = {
    "X-Stainless-Raw-Response": "true"
}  # the client's way to hand out a body unparsed, with its count of retries
ESCAPE_SEQUENCE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")  # a terminal's colours and movements
NO_KEY = "none"  # what a local server gets, which asks for none
Answer = TypeVar("Answer")
LAST_REPLIES_S = 10.0  # how long replies under way are waited for where the server's fault ends a run
LOOK_S = 5.0  # for a look at whether a server is there
MAX_CONNECTIONS = 1000  # of the openai client; more requests at once would only wait for each other


class Refused(Exception):
    """The server will not take this request, whenever it is asked: too long, for example."""


class NoAnswer(Exception):
    """The server does not answer, however often it is asked."""

    def __init__(self, said: str, status: int | None = None):
        super().__init__(said)
        self.status = status  # what it answered instead, if anything


class Stopped(Exception):
    """A request was not sent any more, because the work has ended."""


class BadBody(Exception):
    """A good status with a body that is not what the API says."""


@dataclass(frozen=True)
class Reply:
    """What a model said, and whether it was cut short at max_tokens."""

    text: str
    cut: bool


def asking_again(tries: int, *errors: type[Exception]) -> tenacity.AsyncRetrying:
    """Attempts at the same thing, `tries` at most, while they end in one of `errors`; the last error is raised."""
    return tenacity.AsyncRetrying(
        stop=tenacity.stop_after_attempt(tries),
        wait=tenacity.wait_random_exponential(multiplier=0.1, max=5),
        retry=tenacity.retry_if_exception_type(errors),
        reraise=True,
    )


class Endpoint:
    """One server, and how much it was asked: by `concurrency` requests at once, or fewer where it turns some away.

    `pace` is waited for with the body of each request before it is sent; the client's own repeats are not. Close the
    endpoint when done.
    """

    def __init__(
        self,
        base_url: str,
        key: str,
        timeout_s: float,
        retries: int,
        tries: int,
        concurrency: int,
        pace: Callable[[dict[str, Any]], Awaitable[None]] | None = None,
    ):
        self.host = _host(base_url)
        if not (key.isascii() and key.isprintable()):
            raise UsageError("OPENAI_API_KEY: holds characters that no key has; set it to the key alone")
        self._key, self._limit, self._tries = key, retries, tries
        self._client = openai.AsyncOpenAI(
            base_url=base_url,
            api_key=key or NO_KEY,
            timeout=timeout_s,
            max_retries=retries,
            http_client=openai.DefaultAsyncHttpxClient(follow_redirects=False),
        )
        self.window, self._pace, self._stopped = CongestionWindow(concurrency), pace, False
        self.requests = self.retries = self.tokens_in = self.tokens_out = 0

    def stop(self) -> None:
        """Send no more requests; those under way go on."""
        self._stopped = True

    async def close(self) -> None:
        await self._client.close()

    async def chat(self, request: dict[str, Any]) -> Reply:
        """The reply to a chat request. Raises Refused, NoAnswer, or UserError when no request could succeed."""
        value = await self._post("/chat/completions", request, _is_completion)
        choice = value["choices"][0]
        text = choice["message"].get("content") or ""
        self.tokens_in += _count(value, "prompt_tokens")
        self.tokens_out += _count(value, "completion_tokens")
        return Reply(text, choice.get("finish_reason") == "length")

    async def complete(self, request: dict[str, Any]) -> Reply:
        """What follows the prompt of a completions request, which no chat template wraps. Raises as `chat` does."""
        value = await self._post("/completions", request, _is_text_completion)
        choice = value["choices"][0]
        self.tokens_in += _count(value, "prompt_tokens")
        self.tokens_out += _count(value, "completion_tokens")
        return Reply(choice["text"], choice.get("finish_reason") == "length")

    async def call(self, ask: Callable[[openai.AsyncOpenAI], Awaitable[Answer]], model: str) -> Answer:
        """What a method of the client returns, such as those of files and batches. Raises as `chat` does."""
        self.requests += 1
        try:
            return await ask(self._client)
        except openai.OpenAIError as error:
            raise self._translated(error, model) from None

    async def classify(self, model: str, texts: list[str]) -> list[list[float]]:
        """The probability of each class for each text, from vLLM's /classify."""
        value = await self._post("/classify", {"model": model, "input": texts}, _is_classification)
        rows = sorted(value["data"], key=lambda row: row["index"])
        if len(rows) != len(texts):
            raise NoAnswer(f"{self.host} classified {len(rows)} texts of {len(texts)}")
        return [row["probs"] for row in rows]

    async def doubt(self, model: str) -> str:
        """Why this server would not answer for `model` now, as far as one look at its list of models tells; mostly ""."""
        try:
            known = [each.id async for each in self._client.with_options(max_retries=0, timeout=LOOK_S).models.list()]
        except openai.APIConnectionError as error:
            return f"{self.host} cannot be reached ({self.shown(str(error.__cause__ or '') or str(error))})"
        except openai.APIStatusError as error:  # a server need not have a list
            return str(self._meaning(error, model)) if error.status_code == 401 else ""
        except (openai.OpenAIError, ValueError, TypeError, AttributeError, RecursionError):
            return ""
        if known and model not in known:
            return f"{self.host} knows no model {model!r}, only {self.shown(', '.join(map(str, known[:5])))}"
        return ""

    async def _post(self, path: str, body: dict[str, Any], is_right: Any) -> Any:
        try:
            async for attempt in asking_again(self._tries, BadBody):
                with attempt:
                    self.retries += attempt.retry_state.attempt_number > 1
                    return await self._post_once(path, body, is_right)
        except BadBody:
            raise NoAnswer(f"{self.host} answers with something else than the API's JSON", 200) from None

    async def _post_once(self, path: str, body: dict[str, Any], is_right: Any) -> Any:
        async with self.window.place() as place:
            if self._pace:
                await self._pace(body)
            if self._stopped:
                raise Stopped
            place.sent_at = asyncio.get_running_loop().time()
            self.requests += 1
            try:
                raw: Any = await self._client.post(path, body=body, cast_to=object, options={"headers": _AS_IT_CAME})
            except openai.OpenAIError as error:
                meaning = self._translated(error, str(body["model"]))
                place.turned_away = True if isinstance(meaning, NoAnswer) else None
                self.retries += _repeats(error)
                raise meaning from None
            self.retries += raw.retries_taken
            place.turned_away = raw.retries_taken > 0
        try:
            value = json.loads(raw.http_response.content)
        except (ValueError, RecursionError):
            raise BadBody from None
        if not is_right(value):
            raise BadBody
        return value

    def _translated(self, error: openai.OpenAIError, model: str) -> Exception:
        """What an error of the client, which has tried again as often as it may, means to us."""
        if isinstance(error, openai.APIStatusError):
            return self._meaning(error, model)
        if isinstance(error, openai.APITimeoutError):
            return NoAnswer(f"{self.host} does not answer in time, asked {self._limit + 1} times")
        if isinstance(error, openai.APIConnectionError):
            cause = self.shown(str(error.__cause__ or error))
            return NoAnswer(f"{self.host} cannot be reached ({cause}), asked {self._limit + 1} times")
        return NoAnswer(f"{self.host} answers with something else than the API's JSON")

    def _meaning(self, error: openai.APIStatusError, model: str) -> Exception:
        """What a status that the client gave up on means for the document or for the whole run."""
        status, said = error.status_code, self.shown(_message(error))
        if status in (401, 403):
            refusal = "refuses the key" if self._key else "asks for a key"
            return UserError(f"{self.host} {refusal} (status {status}); set OPENAI_API_KEY to one that it takes")
        if 300 <= status < 400:
            there = self.shown(error.response.headers.get("location", "another address"))
            return UserError(f"{self.host} redirects to {there} (status {status}); give the address that it leads to")
        if status == 402 or error.code == "insufficient_quota":
            return UserError(f"{self.host} says that the account is used up ({said}); top it up and go on")
        if status == 404:
            return UserError(
                f"{self.host} knows no model {model!r} at this address (status 404: {said}); "
                "mend the model's name, or the address, which mostly ends in /v1"
            )
        if status in (408, 409, 429) or status >= 500:
            return NoAnswer(f"{self.host} answers with status {status} ({said})", status)
        return Refused(f"status {status}: {said}")

    def shown(self, text: str) -> str:
        """What a server said, fit for terminals and files: without the key, on one line, not too long."""
        text = "".join(c if c.isprintable() else " " for c in ESCAPE_SEQUENCE.sub("", text))
        return (text.replace(self._key, "[key]") if self._key else text)[:300].strip()

    def without_key(self, text: str) -> str:
        """A whole reply, fit for a file."""
        text = text.encode(errors="replace").decode()
        return text.replace(self._key, "[key]") if self._key else text


def _host(url: str) -> str:
    """`http://host:port` of a URL, without a password that may be in it."""
    try:
        parts = urlsplit(url)
        if parts.scheme in ("http", "https") and parts.hostname:
            return f"{parts.scheme}://{parts.hostname}" + (f":{parts.port}" if parts.port else "")
    except ValueError:
        pass
    raise UsageError(f"{url!r}: not the address of a server; give one such as http://node7:8000/v1")


def _message(error: openai.APIStatusError) -> str:
    """The server's own words, where it says them as OpenAI does."""
    said = error.body.get("message") if isinstance(error.body, dict) else None
    return said if isinstance(said, str) else error.message


def _repeats(error: openai.OpenAIError) -> int:
    """How often the client had sent the request again when it gave up."""
    request = getattr(error, "request", None)
    return int(request.headers.get("x-stainless-retry-count", 0)) if request is not None else 0


def _count(completion: dict[str, Any], name: str) -> int:
    """A number of tokens as the server counted it; 0 when it does not say."""
    usage = completion.get("usage")
    count = usage.get(name) if isinstance(usage, dict) else None
    return count if isinstance(count, int) else 0


def _is_completion(value: Any) -> bool:
    try:
        return isinstance(value["choices"][0]["message"].get("content"), str | None)
    except (TypeError, LookupError, AttributeError):
        return False


def _is_text_completion(value: Any) -> bool:
    try:
        return isinstance(value["choices"][0]["text"], str)
    except (TypeError, LookupError):
        return False


def _is_classification(value: Any) -> bool:
    try:
        return all(isinstance(row["index"], int) and all(p >= 0 for p in row["probs"]) for row in value["data"])
    except (TypeError, LookupError):
        return False
