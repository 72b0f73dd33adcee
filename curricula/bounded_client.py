"""An HTTP client that no server holds for ever or fills the memory of.

httpx limits the time between two bytes, not the time of a whole reply, and reads a body however large. This client gives a
reply as long as its request waits for a single byte, and reads no more of it than a limit, also when it is compressed.
"""

from __future__ import annotations

import asyncio
import importlib
import zlib
from typing import Any

import openai

MOST_REPLY_BYTES = 16 * 2**20
"""Uncompressed. A reply of 4,096 tokens has about 20,000."""
MOST_FILE_BYTES = 2**30
"""Of a file with the replies of a batch."""
FILE_TIMEOUT_S = 3600.0
"""For sending or fetching such a file."""
ANY_ZLIB_HEADER = 47
"""zlib's `wbits` for gzip and deflate."""


_httpx: Any = importlib.import_module(openai.DefaultAsyncHttpxClient.__mro__[1].__module__.partition(".")[0])
"""The library that the openai package is built on: httpx, or httpx2 in newer versions."""


class Unbounded(_httpx.TransportError):
    """A reply that was given up. Says what the server does, such as "sends more than 16 MiB in one reply".

    The openai package repeats a request after this error, as after a broken connection.
    """


class BoundedClient(openai.DefaultAsyncHttpxClient):
    """The openai package's own client with both limits. Redirects are not followed: the key is for one server."""

    def __init__(self) -> None:
        super().__init__(follow_redirects=False, headers={"Accept-Encoding": "gzip, deflate"})

    async def send(self, request: Any, *, stream: bool = False, **options: Any) -> Any:
        if stream:
            raise ValueError("streamed replies are not bounded")
        is_file = "/files" in request.url.path
        timeout_s = FILE_TIMEOUT_S if is_file else request.extensions["timeout"]["read"]
        most = MOST_FILE_BYTES if is_file else MOST_REPLY_BYTES
        try:
            return await asyncio.wait_for(self._whole(request, most, options), timeout_s)
        except asyncio.TimeoutError:
            raise Unbounded("does not answer in time") from None

    async def _whole(self, request: Any, most: int, options: dict[str, Any]) -> Any:
        """The response with its whole body, uncompressed."""
        response = await super().send(request, stream=True, **options)
        try:
            body = _Body(response.headers.get("content-encoding", "identity").strip().lower(), most)
            async for part in response.aiter_raw():
                body.add(part)
        finally:
            await response.aclose()
        headers = [
            (name, value)
            for name, value in response.headers.multi_items()
            if name.lower() not in ("content-encoding", "content-length", "transfer-encoding")
        ]
        return type(response)(
            response.status_code,
            headers=headers,
            content=bytes(body.content),
            request=request,
            extensions=response.extensions,
        )


class _Body:
    """A body that grows, uncompressed, to no more than `most` bytes."""

    def __init__(self, encoding: str, most: int) -> None:
        if encoding not in ("", "identity", "gzip", "x-gzip", "deflate"):
            raise Unbounded(f"compresses its replies with {encoding[:20]!r}, for which it was not asked")
        self.content = bytearray()
        self._most = most
        self._decompressor = None if encoding in ("", "identity") else zlib.decompressobj(ANY_ZLIB_HEADER)

    def add(self, part: bytes) -> None:
        if self._decompressor is not None:
            try:
                part = self._decompressor.decompress(part, self._most - len(self.content) + 1)
            except zlib.error:
                raise Unbounded("sends a reply that cannot be decompressed") from None
        if len(self.content) + len(part) > self._most:
            raise Unbounded(f"sends more than {self._most // 2**20} MiB in one reply")
        self.content += part
