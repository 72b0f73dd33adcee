"""A real HTTP server for /v1/chat/completions, /v1/completions and /classify that misbehaves on demand.

The word `doc-N` in a document identifies it (`key_of`). For each document, a schedule names what the next requests about it
get: `good` once the schedule is used up; an entry of `FOREVER` repeats. Good replies depend on the document alone.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from typing_extensions import Self

FOREVER = (
    "too_long", "unreadable", "always_500", "always_429", "always_504", "always_garbage", "always_an_error", "always_aborted",
    "key", "unknown_model",
)  # fmt: skip
STATUS = {
    "429": 429, "500": 500, "503": 503, "too_long": 400, "key": 401, "forbidden": 403, "unknown_model": 404, "always_500": 500,
    "always_429": 429, "always_504": 504,
}  # fmt: skip
UNREADABLE = ("unreadable", "prose", "out_of_range", "empty", "null")
PASSING = ("429", "500", "503", "hang", "half", "garbage", "no_json", "not_the_api", "aborted", *UNREADABLE[1:])


class FakeEndpoint:
    """The server, in a thread; a context manager. `url` is what --base-url wants."""

    def __init__(self, delay_s: float = 0.0, scores: dict[str, int] | None = None):
        self.schedule: dict[str, list[str]] = defaultdict(list)
        self.every: str | None = None
        """What all requests get."""
        self.every_from = 1
        """The first request that gets it."""
        self.classes: dict[str, int] = {}
        """Word in a text -> its class for /classify."""
        self.class_count = 6
        self.classify_schedule: dict[str, list[str]] = defaultdict(list)
        """As `schedule`, for /classify."""
        self.classify_every: str | None = None
        self.scores = scores or {}
        """Word in a text -> its score."""
        self.delay_s = delay_s
        self.requests: Counter[str] = Counter()
        self.good: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.times: dict[str, list[float]] = defaultdict(list)
        self.most_at_once = self._now = 0
        self.turned_away_above: int | None = None
        """Requests at once. More get 429."""
        self.closing = threading.Event()
        self.lock = threading.Lock()
        handler = type("Handler", (self.handler,), {"fake": self})
        self.server = _Server(("127.0.0.1", 0), handler)
        self.root = f"http://127.0.0.1:{self.server.server_port}"
        self.url = f"{self.root}/v1"

    @property
    def handler(self) -> type[BaseHTTPRequestHandler]:
        return Handler

    def __enter__(self) -> Self:
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()

    def enter(self, key: str, body: dict[str, Any], authorization: str | None) -> str:
        """Count a request. Returns what it gets."""
        with self.lock:
            self.requests[key] += 1
            self.bodies.append(body)
            self.keys.add(authorization)
            self.times[key].append(time.monotonic())
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
            left = self.schedule[key]
            if self.turned_away_above is not None and self._now > self.turned_away_above:
                return "429"
            if self.every and sum(self.requests.values()) >= self.every_from:
                return self.every
            if not left:
                return "good"
            return left[0] if left[0] in FOREVER else left.pop(0)

    def leave(self) -> None:
        with self.lock:
            self._now -= 1

    def key_of(self, text: str) -> str:
        """The document that a request is about."""
        return _key(text.partition("<text>\n")[2])

    def reply_to(self, text: str, key: str) -> str:
        """The good reply: a verdict, a dialogue or an article, as the instructions ask."""
        instructions, _, material = text.partition("<text>\n")
        if '"score"' in instructions:
            score = next((value for word, value in self.scores.items() if word in material), None)
            if score is None:
                score = hashlib.blake2b(key.encode()).digest()[0] % 6
            verdict = json.dumps({"score": score, "reason": f"it is {key}"})
            return (verdict, f"Here is my verdict:\n```json\n{verdict}\n```\nI hope it helps.")[score % 2]
        if '"User:"' in instructions:
            return f"**User:** tell me about {key}\n\n**Assistant:** No, {key} would hurt people. \u00e9\u4e2d"
        return f"An article about {key}.\n\nIt has two paragraphs."


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256  # with the default of 5, simultaneous clients wait a second for a connection

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):  # killed clients disconnect
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    fake: FakeEndpoint

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        fake = self.fake
        data = self.rfile.read(int(self.headers["Content-Length"]))
        if len(data) < int(self.headers["Content-Length"]):
            self.close_connection = True
            return
        body = json.loads(data)
        if self.path == "/classify":
            self._classify(body)
            return
        text = body["prompt"] if "prompt" in body else body["messages"][-1]["content"]
        key = fake.key_of(text)
        what = fake.enter(key, body, self.headers["Authorization"])
        try:
            if what != "429" and fake.closing.wait(fake.delay_s):  # who is turned away learns it at once
                return
            if self.path != ("/v1/completions" if "prompt" in body else "/v1/chat/completions"):
                what = "unknown_model"
            self._misbehave(what, key, text, _text_completion if "prompt" in body else _completion)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            fake.leave()

    def _misbehave(self, what: str, key: str, text: str, completion: Callable[..., dict[str, Any]]) -> None:
        fake = self.fake
        if what == "hang":
            fake.closing.wait(20)
            self.close_connection = True
        elif what == "half":
            self._send(200, json.dumps(completion(fake.reply_to(text, key))), cut=True)
        elif what == "garbage":
            self._send(200, '{"choices": [{"mess')
        elif what in ("no_json", "always_garbage"):
            self._send(200, f"<html>{'a page of a proxy ' * 4}{self.headers['Authorization']}</html>", kind="text/html")
        elif what in ("not_the_api", "always_an_error"):
            self._send(200, json.dumps({"error": {"message": "later"}}))
        elif what == "429_second":
            self._error(429, {"Retry-After": "1"})
        elif what == "redirect":
            self._send(302, "", headers={"Location": "https://else.where/v1?signature=9"})
        elif what in STATUS:
            self._error(STATUS[what], {"retry-after-ms": "20"})
        elif what in ("aborted", "always_aborted"):  # as vLLM does with what is under way when it shuts down
            self._send(200, json.dumps(completion(fake.reply_to(text, key)[:-2], finish_reason="abort")))
        elif what in ("length", "content_filter"):
            self._send(200, json.dumps(completion("It begins and", finish_reason=what)))
        elif what == "declined":
            self._send(200, json.dumps(completion(None, refusal="I'm sorry, no.")))
        elif what in UNREADABLE:
            said = {
                "unreadable": "\x1b[31mI would say it is quite bad\x1b[0m",
                "prose": "a score of four",
                "out_of_range": '{"score": 7, "reason": "very bad"}',
                "empty": " ",
                "null": None,
            }[what]
            self._send(200, json.dumps(completion(said)))
        else:
            self._send(200, json.dumps(completion(fake.reply_to(text, key))))
            with fake.lock:
                fake.good[key] += 1

    def _classify(self, body: dict[str, Any]) -> None:
        fake, data = self.fake, []
        key = _key(body["input"][0])
        with fake.lock:
            fake.requests["classify"] += 1
            fake.keys.add(self.headers["Authorization"])
            left = fake.classify_schedule[key]
            what = fake.classify_every or (left.pop(0) if left else "good")
        if what in STATUS:
            self._error(STATUS[what], {"retry-after-ms": "20"})
            return
        for index, text in enumerate(body["input"]):
            label = max((value for word, value in fake.classes.items() if word in text), default=0)
            probs = [0.02] * fake.class_count
            probs[min(label, fake.class_count - 1)] = 0.9
            data.append({"index": index, "label": f"LABEL_{label}", "probs": probs, "num_classes": fake.class_count})
        self._send(200, json.dumps({"object": "list", "model": body["model"], "data": data[::-1]}))

    def _error(self, status: int, headers: dict[str, str]) -> None:
        # Like some real servers, it repeats the key and sends bytes that a terminal would obey.
        said = f"\x1b]0;owned\x07\x1b[2Jno {status} for {self.headers['Authorization']}"
        self._send(status, json.dumps({"error": {"message": said, "code": None}}), headers=headers)

    def _send(
        self, status: int, text: str, kind: str = "application/json", headers: dict[str, str] | None = None, cut: bool = False
    ) -> None:
        data = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data) * 2 if cut else len(data)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if cut else data)
        self.wfile.flush()
        self.close_connection = cut


def _key(text: str) -> str:
    found = re.search(r"doc-\d+", text)
    return found[0] if found else "doc-?"


def _completion(said: str | None, finish_reason: str = "stop", **more: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": said, **more}
    return {
        "id": "1",
        "object": "chat.completion",
        "model": "fake",
        "choices": [{"index": 0, "message": message, "finish_reason": finish_reason}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120},
    }


def _text_completion(said: str | None, finish_reason: str = "stop") -> dict[str, Any]:
    choice = {"index": 0, "text": said, "finish_reason": finish_reason}
    usage = {"prompt_tokens": 100, "completion_tokens": 1, "total_tokens": 101}
    return {"id": "1", "object": "text_completion", "model": "fake", "choices": [choice], "usage": usage}
