"""A Hugging Face hub for one test: a real HTTP server on 127.0.0.1 that answers the requests of `datasets` and `HfApi`.

    with FakeHub() as hub:
        commit = hub.commit("org/name", {"README.md": b"...", "data/0.parquet": b"..."})
        subprocess.run(..., env=hub.environment(home))

A repository is a list of commits, a commit a mapping from paths to contents. A gated one shows its card to all and its files
to the tokens that accepted its licence. Every request is kept in `requests`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

Files = dict[str, bytes]


@dataclass
class Repository:
    gated: bool = False
    commits: dict[str, Files] = field(default_factory=dict)
    """By full hash, oldest first."""

    def resolve(self, revision: str) -> str | None:
        if revision == "main":
            return list(self.commits)[-1]
        found = [commit for commit in self.commits if len(revision) >= 7 and commit.startswith(revision)]
        return found[0] if len(found) == 1 else None


class FakeHub:
    """Tokens that `known` has are valid; those that `accepted` has may read gated repositories."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.known: set[str] = set()
        self.accepted: set[str] = set()
        self.requests: list[str] = []
        """As "METHOD path"."""
        self.drops = 0
        """How many of the next transfers of data break off half way."""
        self.stall_at = ""
        """A transfer of a path with this ending waits until it is changed."""
        self.stalled = threading.Event()
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> FakeHub:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.stall_at = ""
        self._server.shutdown()
        self._server.server_close()

    def commit(self, name: str, files: Files, gated: bool = False, begins: str = "") -> str:
        """Add a commit with exactly these files and return its hash, which `begins` as asked."""
        repository = self.repositories.setdefault(name, Repository(gated))
        digest = hashlib.sha1(f"{name} {len(repository.commits)}".encode())
        for path, content in sorted(files.items()):
            digest.update(path.encode() + content)
        commit = (begins + digest.hexdigest())[:40]
        repository.commits[commit] = dict(files)
        return commit

    def environment(self, home: Path, token: str | None = None) -> dict[str, str]:
        """The environment of a process that takes this for the hub, with caches under `home`."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
        settings = {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "OMP_NUM_THREADS": "1", "NO_PROXY": "127.0.0.1"}
        settings |= {"HF_HUB_DOWNLOAD_TIMEOUT": "600", "HF_HUB_ETAG_TIMEOUT": "600"}  # no transfer that waits is begun anew
        return kept | settings | ({"HF_TOKEN": token} if token else {})

    def breaks_off(self) -> bool:
        with self._lock:
            self.drops -= 1
            return self.drops >= 0

    def stall(self, path: str) -> None:
        while self.stall_at and path.endswith(self.stall_at):
            self.stalled.set()
            time.sleep(0.02)


def _handler(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def do_POST(self) -> None:
            self.answer()

        def answer(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.requests.append(f"{self.command} {path}")
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
            token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
            if token and token not in hub.known:
                return self.refuse(401, "", "Invalid credentials in Authorization header")
            api = re.fullmatch(r"/api/datasets/([^/]+/[^/]+)(?:/(revision|auth-check|tree|paths-info)(?:/(.*))?)?", path)
            data = re.fullmatch(r"/datasets/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
            found = api or data
            repository = hub.repositories.get(found[1]) if found else None
            if found is None or repository is None:
                # The real hub does not tell strangers which repositories exist.
                return (
                    self.refuse(404, "RepoNotFound", "Repository not found") if token else self.refuse(401, "", "Unauthorized")
                )
            if repository.gated and token not in hub.accepted and (data or found[2] == "auth-check"):
                return self.refuse(403 if token else 401, "GatedRepo", "Access to this dataset is restricted")
            if found[2] == "auth-check":
                return self.send({})
            revision, _, inside = (data[2], "", data[3]) if data else (found[3] or "main").partition("/")
            commit = repository.resolve(revision)
            if commit is None:
                return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            files = repository.commits[commit]
            if data:
                return self.transfer(inside, files.get(inside), commit)
            if found[2] == "tree":
                recursive = parse_qs(urlsplit(self.path).query).get("recursive", ["false"])[0].lower() == "true"
                return self.list_tree(files, inside, recursive)
            if found[2] == "paths-info":
                form = json.loads(body) if body.startswith("{") else parse_qs(body)
                return self.send([entry for path in form["paths"] for entry in entries(files) if entry["path"] == path])
            names = [{"rfilename": path} for path in files]
            self.send({"id": found[1], "sha": commit, "gated": "auto" if repository.gated else False, "siblings": names})

        def list_tree(self, files: Files, folder: str, recursive: bool) -> None:
            start = f"{folder}/" if folder else ""
            below = [entry for entry in entries(files) if entry["path"].startswith(start) and entry["path"] != folder]
            if not below:
                return self.refuse(404, "EntryNotFound", f"{folder} does not exist")
            self.send(below if recursive else [entry for entry in below if "/" not in entry["path"][len(start) :]])

        def transfer(self, path: str, content: bytes | None, commit: str) -> None:
            if content is None:
                return self.refuse(404, "EntryNotFound", "Entry not found")
            if self.command == "GET" and not path.startswith("README"):
                hub.stall(path)
            first, last = 0, len(content) - 1
            asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
            if asked:
                first, last = int(asked[1]), min(last, int(asked[2] or last))
            piece = content[first : last + 1]
            self.send_response(206 if asked else 200)
            self.send_header("Content-Length", str(len(piece)))
            self.send_header("Accept-Ranges", "bytes")
            if asked:
                self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
            self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", commit)
            self.end_headers()
            if self.command == "HEAD":
                return
            if not path.startswith("README") and hub.breaks_off():
                self.wfile.write(piece[: len(piece) // 2])
                self.close_connection = True
                return
            self.wfile.write(piece)

        def refuse(self, status: int, code: str, message: str) -> None:
            self.send(
                {"error": message},
                status,
                {"X-Error-Code": code, "X-Error-Message": message} if code else {"X-Error-Message": message},
            )

        def send(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
            content = json.dumps(value).encode()
            self.send_response(status)
            for name, text in (headers or {}).items():
                self.send_header(name, text)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

    return Handler


def entries(files: Files) -> list[dict[str, Any]]:
    """Files and the folders they imply, as the hub's API lists them."""
    folders = {parent.as_posix() for path in files for parent in Path(path).parents if parent.as_posix() != "."}
    listed = [
        {"type": "directory", "path": path, "oid": hashlib.sha1(path.encode()).hexdigest(), "size": 0} for path in folders
    ]
    listed += [
        {"type": "file", "path": path, "oid": hashlib.sha1(content).hexdigest(), "size": len(content)}
        for path, content in files.items()
    ]
    return sorted(listed, key=lambda entry: str(entry["path"]))
