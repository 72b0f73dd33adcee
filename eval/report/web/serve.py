"""Serves a run's page to a browser on this machine while the study runs, and rebuilds it when the run folder has changed.

    curricula report RUN --serve        # prints http://127.0.0.1:8642/?token=...

The server listens on the loopback address alone. A request must hold the token, which is new at each start, and must name this
machine as its host: this refuses pages elsewhere that point their own name at 127.0.0.1 (DNS rebinding). The server serves
nothing but the page. Through `ssh -L 8642:127.0.0.1:8642 HOST` the same address works on another machine.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import secrets
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from curricula.errors import UserError
from curricula.terminal import printable

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
WATCHED = ("eval/**/*.jsonl", "pretrain/*/metrics.jsonl", "tune/*/*/metrics.jsonl", "jobs/*/*/*.json", "study.yaml")
NOT_WATCHED = "progress.json"
"""Name of files that are ignored, since elements rewrite them several times a second."""
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class LivePage:
    """The newest page, and the server that shows it."""

    def __init__(self, run: Path, build: Callable[[], Path], port: int, token: str | None = None) -> None:
        """`build` makes the page of `run` and returns its path."""
        self._run, self._build = run, build
        self._token = token or secrets.token_urlsafe(24)
        self._seen: object = None
        self.page, self.version = b"", ""
        self.refresh()
        try:
            self._server = ThreadingHTTPServer(("127.0.0.1", port), _handler(self, self._token))
        except (OSError, OverflowError) as error:
            why = getattr(error, "strerror", None) or "not a port number"
            raise UserError(f"--port {port}: {why}; name another port, or 0 for any free one") from None
        self._server.daemon_threads = True

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}/?token={self._token}"

    @property
    def port(self) -> int:
        return self._server.server_port

    def refresh(self) -> bool:
        """Rebuild the page if the run folder has changed; returns whether it has."""
        state = _fingerprint(self._run)
        if state == self._seen:
            return False
        page = self._build().read_bytes()
        version = hashlib.sha256(page).hexdigest()[:16]
        mark = f'<html lang="en" data-version="{version}">'.encode()
        self.page, self.version, self._seen = page.replace(b'<html lang="en">', mark, 1), version, state
        return True

    def serve(self, interval_s: float) -> None:
        """Serve until Ctrl-C. Look at the run folder every `interval_s` seconds; less often if pages take long to build."""
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        took_s = 0.0
        try:
            while True:
                time.sleep(max(interval_s, 4 * took_s))
                began = time.monotonic()
                try:
                    self.refresh()
                except (UserError, OSError) as error:  # a damaged file, or one that was replaced just now
                    print(f"curricula: the page was not updated: {printable(str(error))}", file=sys.stderr)
                took_s = time.monotonic() - began
        except KeyboardInterrupt:
            self.close()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def _fingerprint(run: Path) -> list[tuple[str, int, int]]:
    """Names, sizes and modification times of the files that the page is made from."""
    found = []
    for path in (path for pattern in WATCHED for path in sorted(run.glob(pattern)) if path.name != NOT_WATCHED):
        with contextlib.suppress(OSError):  # replaced just now
            status = path.stat()
            found.append((str(path), status.st_size, status.st_mtime_ns))
    return found


def _handler(live: LivePage, token: str) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        server_version, sys_version = "curricula", ""
        timeout = 30

        def do_GET(self) -> None:
            asked = urlsplit(self.path)
            given = parse_qs(asked.query).get("token", [""])[0]
            host = self.headers.get("Host", "").rpartition(":")[0] or self.headers.get("Host", "")
            if host not in LOOPBACK:
                self._answer(403, b"This page is shown to this machine alone.\n")
            elif not hmac.compare_digest(given.encode(), token.encode()):
                self._answer(403, b"The address needs the token that the command printed.\n")
            elif asked.path == "/":
                self._answer(200, live.page, "text/html; charset=utf-8")
            elif asked.path == "/version":
                self._answer(200, live.version.encode())
            else:
                self._answer(404, b"There is nothing here.\n")

        def _answer(self, status: int, body: bytes, kind: str = "text/plain; charset=utf-8") -> None:
            self.send_response(status)
            for name, value in {**HEADERS, "Content-Type": kind, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Log nothing, since the address holds the token."""

    return Handler
