"""A server that speaks OpenAI's API: vLLM on a node, or a hosted one.

The openai client retries a request after status 408, 409, 429 or 5xx, a timeout, a broken connection or an incomplete body. It
waits as long as Retry-After says, up to two minutes. It does not check that a successful reply has the body that the API
promises; this module checks that, and retries the request if not.

The key is sent only to this server. It is removed from everything the server says before that is shown or written.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import openai
import tenacity
from aiolimiter import AsyncLimiter

from curricula.asking import CHARACTERS_PER_TOKEN, NoAnswer, Refused, Reply, Stopped
from curricula.errors import UsageError, UserError
from curricula.secrets import host_of
from curricula.terminal import ESCAPES, one_line

RAW_RESPONSE = {"X-Stainless-Raw-Response": "true"}
"""Header that makes the client return a body unparsed, with its count of retries."""
NO_KEY = "none"
"""The key sent to a local server, which needs none."""
PROBE_TIMEOUT_S = 5.0
"""Timeout of the check that a server is there."""
DECREASE = 0.8
"""Factor by which the window narrows, once for all requests that were under way together."""
MOST_REPLY_BYTES = 16 * 2**20
"""Size limit of a reply. One of 4,096 tokens has about 20,000 bytes."""
MOST_FILE_BYTES = 2**30
"""Size limit of a file with the replies of a batch."""
FILE_TIMEOUT_S = 3600.0
"""Timeout for sending or fetching such a file."""
BROKEN_OFF = ("abort", "error")
"""Finish reasons of replies that the server broke off. vLLM sends what it has, with status 200, when it shuts down."""
CUT = ("length", "content_filter")
"""Finish reasons of replies that would have continued."""

Value = TypeVar("Value")


class BadBody(Exception):
    """A successful status with a body that breaks the API. Its text is the error that the body reports, if any."""


def retrying(tries: int, *errors: type[Exception]) -> tenacity.AsyncRetrying:
    """Up to `tries` attempts in all, repeated after any of `errors`; raises the last error."""
    return tenacity.AsyncRetrying(
        stop=tenacity.stop_after_attempt(tries),
        wait=tenacity.wait_random_exponential(multiplier=0.1, max=5),
        retry=tenacity.retry_if_exception_type(errors),
        reraise=True,
    )


class Endpoint:
    """One server, with counts of its requests. Close it when done.

    A whole reply can take up to `timeout_s` and hold up to `MOST_REPLY_BYTES`. Up to `concurrency` requests are under way at
    once; fewer after the server has turned some away. `pace` is awaited with the body of each request before it is sent, but
    not before the client's own retries.
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
        self.host = host_of(base_url)
        if not (key.isascii() and key.isprintable()):
            raise UsageError("OPENAI_API_KEY: holds characters that no key has; set it to the key alone")
        self._key, self.tries = key, tries
        try:
            self._client = openai.AsyncOpenAI(
                base_url=base_url, api_key=key or NO_KEY, timeout=timeout_s, max_retries=retries, http_client=BoundedClient()
            )
        except (ImportError, OSError, ValueError, _httpx.InvalidURL) as error:
            raise UsageError(
                f"{self.host}: the address, or a proxy or certificate file that the environment names, cannot be used "
                f"({one_line(str(error), 160)}); correct it, or HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY or SSL_CERT_FILE"
            ) from None
        self.window, self._pace, self._stopped = CongestionWindow(concurrency), pace, False
        self.requests = self.retries = self.tokens_in = self.tokens_out = 0

    def stop(self) -> None:
        """Send no more requests. Those under way finish."""
        self._stopped = True

    async def close(self) -> None:
        await self._client.close()

    async def chat(self, request: dict[str, Any]) -> Reply:
        """The reply to a request with `messages`, or the continuation of a `prompt`, which gets no chat template.

        Raises Refused, NoAnswer, or UserError if no request could succeed.
        """

        def read(value: Any) -> Reply:
            reply = self.read_choice(value["choices"][0])
            self.tokens_in += _token_count(value, "prompt_tokens")
            self.tokens_out += _token_count(value, "completion_tokens")
            return reply

        return await self._post("/completions" if "prompt" in request else "/chat/completions", request, read)

    def read_choice(self, choice: Any) -> Reply:
        """The reply in one of the API's choices, of a chat or a completion.

        Raises Refused if the API marks the reply as a refusal, and BadBody if the server broke the reply off.
        """
        if (end := choice.get("finish_reason")) in BROKEN_OFF:
            raise BadBody(f"a reply that ends with {end}: {_error_in(choice)}".removesuffix(": "))
        message = choice.get("message") or {"content": choice["text"]}
        text, refusal = message.get("content") or "", message.get("refusal")
        if not isinstance(text, str):
            raise ValueError
        if refusal and not text:
            raise Refused(f"the model declines: {self.shown(str(refusal))}")
        return Reply(text, end in CUT)

    async def call(self, ask: Callable[[openai.AsyncOpenAI], Awaitable[Value]], model: str) -> Value:
        """The result of a client method, such as those for files and batches. Raises as `chat` does.

        `ask` need not check what the client returns, which can be any text: its errors mark a bad body.
        """
        self.requests += 1
        try:
            return await ask(self._client)
        except openai.OpenAIError as error:
            raise self._translated(error, model) from None
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
            raise NoAnswer(f"{self.host} answers with something other than the API's JSON", 200) from None

    async def classify(self, model: str, texts: list[str]) -> list[list[float]]:
        """The probability of each class for each text, from vLLM's /classify."""

        def read(value: Any) -> list[list[float]]:
            rows = sorted(value["data"], key=lambda row: row["index"])
            if [row["index"] for row in rows] != [*range(len(texts))] or not all(p >= 0 for row in rows for p in row["probs"]):
                raise ValueError
            return [row["probs"] for row in rows]

        return await self._post("/classify", {"model": model, "input": texts}, read)

    async def doubt(self, model: str) -> str:
        """Why this server would not answer for `model` now, from one look at its list of models; "" if no reason shows.

        Closes the client, whose connections belong to one event loop.
        """
        try:
            known = [each.id async for each in self._client.with_options(max_retries=0, timeout=PROBE_TIMEOUT_S).models.list()]
        except openai.APIConnectionError as error:
            return self._broken(error)
        except openai.APIStatusError as error:  # servers need not have a list
            return str(self._meaning(error, model)) if error.status_code == 401 else ""
        except (openai.OpenAIError, ValueError, TypeError, AttributeError, RecursionError):
            return ""
        finally:
            await self.close()
        if known and model not in known:
            return f"{self.host} knows no model {model!r}, only {self.shown(', '.join(map(str, known[:5])))}"
        return ""

    async def _post(self, path: str, body: dict[str, Any], read: Callable[[Any], Value]) -> Value:
        """The result of `read` for the reply's JSON value. `read` need not check the value: its errors mark a bad body."""
        posting = retrying(self.tries, BadBody)
        try:
            return await posting(self._post_once, path, body, read)
        except BadBody as error:
            said = self.shown(str(error)) or "nothing"
            raise NoAnswer(f"{self.host} answers with something other than the API's JSON ({said})", 200) from None
        finally:
            self.retries += posting.statistics["attempt_number"] - 1

    async def _post_once(self, path: str, body: dict[str, Any], read: Callable[[Any], Value]) -> Value:
        async with self.window.place():
            if self._pace:
                await self._pace(body)
            if self._stopped:
                raise Stopped
            sent_at = _now()
            self.requests += 1
            try:
                raw: Any = await self._client.post(path, body=body, cast_to=object, options={"headers": RAW_RESPONSE})
            except openai.OpenAIError as error:
                meaning = self._translated(error, str(body["model"]))
                if isinstance(meaning, NoAnswer):  # other errors say nothing about the server's load
                    self.window.learn(sent_at, turned_away=True)
                    self.retries += self._client.max_retries
                raise meaning from None
            self.retries += raw.retries_taken
            self.window.learn(sent_at, turned_away=raw.retries_taken > 0)
        value = None
        try:
            value = json.loads(raw.http_response.content)
            return read(value)
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
            page = raw.http_response.content.decode(errors="replace")
            # The key is removed before the page is cut: half a key would not be recognised.
            raise BadBody(_error_in(value) or one_line(self.shown(page), 100)) from None

    def _translated(self, error: openai.OpenAIError, model: str) -> Exception:
        """What an error that the client raises after its last retry means."""
        if isinstance(error, openai.APIStatusError):
            return self._meaning(error, model)
        if isinstance(error, openai.APIConnectionError):
            return NoAnswer(f"{self._broken(error)}, asked {self._client.max_retries + 1} times")
        return NoAnswer(f"{self.host} answers with something other than the API's JSON")

    def _broken(self, error: openai.APIConnectionError) -> str:
        """Why a request got no reply."""
        if isinstance(error, openai.APITimeoutError):
            return f"{self.host} does not answer in time"
        cause = self.shown(str(error.__cause__ or "") or str(error))
        return f"{self.host} {cause}" if isinstance(error.__cause__, Unbounded) else f"{self.host} cannot be reached ({cause})"

    def _meaning(self, error: openai.APIStatusError, model: str) -> Exception:
        """What a final status means for one request, or for the whole run."""
        status, body = error.status_code, error.body if isinstance(error.body, dict) else {}
        message, metadata = body.get("message"), body.get("metadata")
        said = self.shown(message if isinstance(message, str) else error.message)
        # OpenRouter's moderation has refused the text: it uses the status that others use for a wrong key.
        if status == 403 and isinstance(metadata, dict) and "reasons" in metadata:
            return Refused(f"status {status}: {said}")
        if status in (403, 407):  # it may come from a proxy, or concern the model
            return UserError(
                f"{self.host} forbids the request (status {status}: {said}); correct the key in OPENAI_API_KEY, the model's "
                "name, or the proxy that HTTP_PROXY and NO_PROXY choose"
            )
        if status == 401:
            refusal = "refuses the key" if self._key else "asks for a key"
            return UserError(f"{self.host} {refusal} (status {status}); set OPENAI_API_KEY to one that it accepts")
        if 300 <= status < 400:
            # Without its query, which may hold a signature.
            there = self.shown(error.response.headers.get("location", "another address")).partition("?")[0]
            return UserError(f"{self.host} redirects to {there} (status {status}); give the address that it leads to")
        if status == 402 or error.code == "insufficient_quota":
            return UserError(f"{self.host} says that the account is used up ({said}); top it up and run the command again")
        if status == 404:
            return UserError(
                f"{self.host} knows no model {model!r} at this address (status 404: {said}); "
                "correct the model's name, or the address, which usually ends in /v1"
            )
        if status in (408, 409, 429) or status >= 500:
            return NoAnswer(f"{self.host} answers with status {status} ({said})", status)
        return Refused(f"status {status}: {said}")

    def shown(self, text: str) -> str:
        """What a server said, fit for terminals and files: without the key, on one line, at most 300 characters."""
        return one_line(self.without_key(ESCAPES.sub("", text)), 300)

    def without_key(self, text: str) -> str:
        """A whole reply, fit for a file: valid Unicode without the key."""
        text = text.encode(errors="replace").decode()
        return text.replace(self._key, "[key]") if self._key else text


class Pace:
    """Spreads the requests and tokens that a minute allows over the minute: a burst would only be refused."""

    def __init__(self, requests_per_minute: int | None, tokens_per_minute: int | None, reply_tokens: int) -> None:
        """None means no limit. `reply_tokens` is the largest number of tokens in a reply."""
        # Bursts of half a second's requests make up for delays in this process. A whole second's, which most servers allow,
        # would leave no margin for requests that are delayed on their way.
        burst = max(1.0, (requests_per_minute or 0) / 120)
        self._requests = AsyncLimiter(burst, 60 * burst / requests_per_minute) if requests_per_minute else None
        self._second = max(1.0, (tokens_per_minute or 0) / 60)
        self._tokens = AsyncLimiter(self._second, 60 * self._second / tokens_per_minute) if tokens_per_minute else None
        self._reply_tokens = reply_tokens

    async def wait(self, request: dict[str, Any]) -> None:
        """Return when the limits allow `request` to be sent."""
        if self._requests:
            await self._requests.acquire()
        if self._tokens:
            left = len(json.dumps(request)) / CHARACTERS_PER_TOKEN + self._reply_tokens
            while left > 0:
                await self._tokens.acquire(min(left, self._second))
                left -= self._second


class CongestionWindow:
    """Limits the requests under way at once to `width`, which varies between 1 and `most`. For one event loop.

    Additive increase, multiplicative decrease, as in TCP (Chiu and Jain 1989). Without it, every request that is turned away
    would return as soon as the server allows, together with all the others. The server would answer no more requests than
    otherwise and turn away many times as many, and most providers count those too.
    """

    def __init__(self, most: int) -> None:
        self.most = self.width = most
        self.under_way = 0
        self._room = asyncio.Event()
        self._untroubled = 0
        """Requests since the width last changed that the server did not turn away."""
        self._narrowed_at = -math.inf

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Wait for a place and hold it."""
        while self.under_way >= self.width:
            self._room.clear()
            await self._room.wait()
        self.under_way += 1
        try:
            yield
        finally:
            self.under_way -= 1
            if self.under_way < self.width:
                self._room.set()

    def learn(self, sent_at: float, turned_away: bool) -> None:
        """Record whether the server turned a request away at least once. `sent_at` is a time of the event loop's clock."""
        if turned_away and sent_at > self._narrowed_at:
            self.width, self._untroubled = max(1, math.floor(self.width * DECREASE)), 0
            self._narrowed_at = _now()
        elif not turned_away:
            self._untroubled += 1
            if self._untroubled >= self.width:
                self.width, self._untroubled = min(self.most, self.width + 1), 0


def _now() -> float:
    return asyncio.get_running_loop().time()


def _error_in(value: Any) -> str:
    """The error that a body with a good status reports: OpenRouter reports errors this way that occur during a reply."""
    said = value.get("error") if isinstance(value, dict) else None
    return str(said.get("message") if isinstance(said, dict) else said or "")


def _token_count(completion: dict[str, Any], name: str) -> int:
    """A number of tokens from the server's own count; 0 if it gives none."""
    usage = completion.get("usage")
    count = usage.get(name) if isinstance(usage, dict) else None
    return count if isinstance(count, int) else 0


_httpx: Any = importlib.import_module(openai.DefaultAsyncHttpxClient.__mro__[1].__module__.partition(".")[0])
"""The library that the openai package is built on: httpx, or httpx2 in newer versions."""


class Unbounded(_httpx.TransportError):
    """A reply that was abandoned. The text says what the server does, such as "sends more than 16 MiB in one reply".

    The openai package retries a request after this error, as after a broken connection.
    """


class BoundedClient(openai.DefaultAsyncHttpxClient):
    """The openai package's own client, with limits on the time and size of a whole reply.

    httpx limits only the time between two bytes. Redirects are not followed, because the key is for one server.
    """

    def __init__(self) -> None:
        super().__init__(follow_redirects=False, headers={"Accept-Encoding": "identity"})

    async def send(self, request: Any, *, stream: bool = False, **options: Any) -> Any:
        is_file = "/files" in request.url.path
        timeout_s = FILE_TIMEOUT_S if is_file else request.extensions["timeout"]["read"]
        most = MOST_FILE_BYTES if is_file else MOST_REPLY_BYTES
        try:
            return await asyncio.wait_for(self._whole(request, most, options), timeout_s)
        except asyncio.TimeoutError:
            raise Unbounded("does not answer in time") from None

    async def _whole(self, request: Any, most: int, options: dict[str, Any]) -> Any:
        """The response with its whole body."""
        response, content = await super().send(request, stream=True, **options), bytearray()
        try:
            encoding = response.headers.get("content-encoding", "").strip().lower()
            if encoding not in ("", "identity"):  # a few bytes could become many
                raise Unbounded(f"compresses its replies with {encoding[:20]!r} without being asked to")
            async for part in response.aiter_raw():
                if len(content) + len(part) > most:
                    raise Unbounded(f"sends more than {most // 2**20} MiB in one reply")
                content += part
        finally:
            await response.aclose()
        return type(response)(
            response.status_code,
            headers=response.headers,
            content=bytes(content),
            request=request,
            extensions=response.extensions,
        )
