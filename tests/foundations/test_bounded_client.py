"""Replies that never end, in time or in size."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import re
import socket
import struct
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from curricula import endpoint
from curricula.asking import NoAnswer
from curricula.endpoint import Endpoint

Answering = Callable[[BaseHTTPRequestHandler], None]
GOOD = json.dumps({"choices": [{"message": {"role": "assistant", "content": "well"}}]}).encode()


@contextmanager
def server(answer: Answering) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            try:
                answer(self)
            except OSError:  # the client has left
                self.close_connection = True

        do_GET = do_POST

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}/v1"
        running.shutdown()


def ask(url: str, timeout_s: float = 120.0) -> str:
    async def chat() -> str:
        server = Endpoint(url, "", timeout_s, retries=1, tries=1, concurrency=1)
        try:
            return (await server.chat({"model": "m", "messages": []})).text
        finally:
            await server.close()

    return asyncio.run(chat())


def dripping(handler: BaseHTTPRequestHandler) -> None:
    """A byte every tenth of a second, for longer than anyone waits."""
    handler.end_headers()
    for _ in range(1200):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.1)


def huge(handler: BaseHTTPRequestHandler) -> None:
    handler.end_headers()
    for _ in range(200):
        handler.wfile.write(b" " * 2**20)


def compressed(handler: BaseHTTPRequestHandler) -> None:
    assert handler.headers["Accept-Encoding"] == "identity"
    handler.send_header("Content-Encoding", "gzip")
    handler.end_headers()
    handler.wfile.write(gzip.compress(GOOD))


def test_a_reply_has_a_deadline_as_a_whole() -> None:
    start = time.monotonic()
    with server(dripping) as url, pytest.raises(NoAnswer, match="does not answer in time, asked 2 times"):
        ask(url, timeout_s=0.6)
    assert time.monotonic() - start < 100  # one whole reply takes longer


def test_a_reply_of_any_size_takes_little_memory() -> None:
    tracemalloc.start()
    try:
        with server(huge) as url, pytest.raises(NoAnswer, match="sends more than 16 MiB in one reply, asked 2 times"):
            ask(url)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most / 2**20 < 80, "MiB"


def test_a_compression_that_was_not_asked_for_is_named() -> None:
    with server(compressed) as url, pytest.raises(NoAnswer, match="compresses its replies with 'gzip'"):
        ask(url)


def test_a_batch_file_has_limits_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "MOST_REPLY_BYTES", 10)

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.end_headers()
        handler.wfile.write(b"x" * 1000)

    async def fetch(url: str) -> bytes:
        server = Endpoint(url, "", 120, retries=0, tries=1, concurrency=1)
        try:
            return (await server.call(lambda client: client.files.content("f"), "m")).content
        finally:
            await server.close()

    with server(answer) as url:
        assert asyncio.run(fetch(url)) == b"x" * 1000


def reset(handler: BaseHTTPRequestHandler) -> None:
    """Cuts the connection, for which the client's library has no words."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    os.close(handler.connection.detach())


def test_a_cut_connection_is_described_even_where_the_client_says_nothing() -> None:
    with server(reset) as url, pytest.raises(NoAnswer) as failed:
        ask(url)
    assert re.fullmatch(r"http://127.0.0.1:\d+ cannot be reached \(\w.*\), asked 2 times", str(failed.value))
