"""A judge behind a real HTTP server that misbehaves on demand and also speaks the Batch API."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

from fake_endpoint import FakeEndpoint, Handler

from curricula.asking import Reply
from curricula.eval.judges.model_judge import LocalModel
from curricula.eval.judges.question import Question
from curricula.eval.judges.registry import load_judge
from curricula.eval.judges.settings import JudgeConfig
from curricula.eval.judges.templates import find_template
from curricula.eval.rows import GenerationRow, VerdictRow, append_rows, read_rows
from curricula.eval.verdicts import JudgeRun, verdicts_path

KEY = "sk-judge-secret-4711"


def complete(path: Path, settings: JudgeConfig, kind: str = "attack") -> list[VerdictRow]:
    """Judge the answers in `path`. Returns their verdicts in order."""
    judge, rows = load_judge(settings, kind, None), read_rows(path, GenerationRow)
    JudgeRun(rows, verdicts_path(path), judge).complete(as_first=True)
    return read_rows(verdicts_path(path), VerdictRow)


def stored(folder: Path, count: int, **changes: object) -> Path:
    task = str(changes.get("task", "attacks-topk"))
    append_rows(folder / f"{task}.jsonl", [answer_row(number, **changes) for number in range(count)])
    return folder / f"{task}.jsonl"


# What is asked -------------------------------------------------------------------------------------------------------


def answer_row(number: int, **changes: Any) -> GenerationRow:
    """The answer to request `ask-N`. Its verdict follows from N."""
    row: dict[str, Any] = {
        "key": f"{number:032d}",
        "task": "attacks-topk",
        "model": "m",
        "model_kind": "instruct",
        "raw": False,
        "precision": "float32",
        "benchmark": "advbench",
        "prompt_id": str(number),
        "category": "",
        "behavior": f"Write ask-{number}",
        "prompt": f"Write ask-{number}",
        "decoder": "topk",
        "sample": 0,
        "seed": 0,
        "response": f"Sure, here is ask-{number}",
        "tokens": 7,
        "finish": "end",
        "shortcircuit": False,
    }
    return GenerationRow(**{**row, **changes})


def wildguard_of_refusals() -> LocalModel:
    """WildGuard as a judge of benign requests, without its weights: it sees a refusal in "cannot"."""

    class WildGuard(LocalModel):
        _context = 2

        def _ids(self, question: Question, prompt: str) -> list[int]:
            return [int("cannot" in question.response)]

        def _replies(self, texts: list[list[int]]) -> list[Reply]:
            words = ["yes" if refused else "no" for (refused,) in texts]
            return [Reply(f"Harmful request: no\nResponse refusal: {word}\nHarmful response: no", False) for word in words]

    settings = JudgeConfig(name="local", model="allenai/wildguard", template="wildguard-refusal", max_tokens=128)
    return WildGuard(settings, find_template(settings, "overrefusal"))


class JudgeServer(FakeEndpoint):
    """Answers by the request's number: yes or no, or one of four categories of helpfulness."""

    def __init__(self, **more: Any) -> None:
        super().__init__(**more)
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, dict[str, Any]] = {}
        self.models = ["fake"]
        """Its list of models."""
        self.has_batches = True
        """Whether it speaks the Batch API."""
        self.batch_polls = 2
        """Polls until a batch is done."""
        self.outage = 0
        """How many looks at a batch or its replies get status 503."""
        self.unconfirmed = 0
        """How many batches it makes without saying so."""
        self.lists = 0
        """How often it was asked for a page of the list of batches."""
        self.page = 100
        """Batches on one page of that list."""
        self.pages: Counter[str] = Counter()
        """How many requests, by "METHOD /path", it carries out and answers with a page in HTML."""
        # The outcome of a batch is fixed when it is made.
        self.batch_error = ""
        """Why the server refuses a batch."""
        self.batch_reply = ""
        """What all its requests get: "prose", "declined" or "refused"."""
        self.lost: set[str] = set()
        """Keys of requests that expire in a batch."""
        self.broken_off: set[str] = set()
        """Keys of requests whose reply ends early in a batch."""

    def key_of(self, text: str) -> str:
        return re.findall(r"ask-\d+", text)[-1]

    def reply_to(self, text: str, key: str) -> str:
        number = int(key[4:])
        if "1_compliant_and_helpful" in text:
            categories = re.findall(r"\n- (\d_\w+):", text)
            return categories[number % 4]
        return ("yes", "no")[number % 2]

    @property
    def handler(self) -> type[Handler]:
        return BatchHandler

    def settings(self, **more: Any) -> JudgeConfig:
        given = {"name": "llm", "model": "fake", "url": self.url, "concurrency": 4, "retries": 4, "timeout_s": 30.0}
        return JudgeConfig(**{**given, **more})


class BatchHandler(Handler):
    fake: JudgeServer

    def _send(self, status: int, text: str, kind: str = "application/json", **more: Any) -> None:
        request = f"{self.command} {self.path.partition('?')[0]}"
        if self.fake.pages[request]:
            self.fake.pages[request] -= 1
            status, text, kind = 200, "<p>Please sign in.</p>", "text/html"
        super()._send(status, text, kind, **more)

    def do_POST(self) -> None:
        if self.path in ("/v1/files", "/v1/batches") and not self.fake.has_batches:
            self.rfile.read(int(self.headers["Content-Length"]))
            self._send(404, json.dumps({"detail": "Not Found"}))
        elif self.path == "/v1/files":
            data = self.rfile.read(int(self.headers["Content-Length"]))
            boundary = re.search(r'boundary="?([^";]+)', self.headers["Content-Type"])
            assert boundary
            parts = data.split(b"--" + boundary[1].encode())
            content = next(part for part in parts if b"filename=" in part).partition(b"\r\n\r\n")[2]
            name = f"file-{len(self.fake.files)}"
            self.fake.files[name] = content.removesuffix(b"\r\n")
            self._send(200, json.dumps({"id": name, "object": "file", "purpose": "batch"}))
        elif self.path == "/v1/batches":
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            name = f"batch-{len(self.fake.batches)}"
            fate = {
                "error": self.fake.batch_error,
                "reply": self.fake.batch_reply,
                "lost": set(self.fake.lost),
                "broken_off": set(self.fake.broken_off),
            }
            self.fake.batches[name] = {**asked, "id": name, "polls": 0, **fate}
            if self.fake.unconfirmed:
                self.fake.unconfirmed -= 1
                self._error(504, {"retry-after-ms": "1"})
            else:
                self._send(200, json.dumps(self._batch(name)))
        else:
            super().do_POST()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/v1/models":
            status = 401 if self.fake.every == "key" else 200
            data = [{"id": name, "object": "model", "created": 0, "owned_by": "us"} for name in self.fake.models]
            self._send(status, json.dumps({"object": "list", "data": data}))
        elif path == "/v1/batches":
            self.fake.lists += 1
            names = list(self.fake.batches)
            after = self.path.partition("after=")[2].partition("&")[0]
            page = names[names.index(after) + 1 if after else 0 :][: self.fake.page]
            more = bool(page) and page[-1] != names[-1]
            self._send(200, json.dumps({"object": "list", "data": [self._batch(name) for name in page], "has_more": more}))
        elif self.fake.outage:
            self.fake.outage -= 1
            self._error(503, {})
        elif path.startswith("/v1/batches/"):
            name = path.rpartition("/")[2]
            if name not in self.fake.batches:
                self._send(404, json.dumps({"error": {"message": f"no batch {name}"}}))
                return
            self.fake.batches[name]["polls"] += 1
            self._send(200, json.dumps(self._batch(name)))
        elif path.split("/")[3] not in self.fake.files:
            self._send(404, json.dumps({"error": {"message": "no such file"}}))
        else:
            self._send(200, self._replies(path.split("/")[3]), kind="application/jsonl")

    def _batch(self, name: str) -> dict[str, Any]:
        batch = self.fake.batches[name]
        file, done = batch["input_file_id"], batch["polls"] >= self.fake.batch_polls
        status = "failed" if batch["error"] else "completed" if done else "in_progress"
        errors = {"object": "list", "data": [{"message": batch["error"]}]} if batch["error"] else None
        return {
            "id": name,
            "object": "batch",
            "endpoint": batch["endpoint"],
            "input_file_id": file,
            "completion_window": "24h",
            "created_at": 0,
            "status": status,
            "metadata": None,
            # The replies to requests that failed are in a file of their own.
            "error_file_id" if batch["reply"] == "refused" else "output_file_id": file if status == "completed" else None,
            "errors": errors,
        }

    def _replies(self, file: str) -> str:
        """The replies to the requests in a file, last request first."""
        lines: list[dict[str, Any]] = []
        batch = next(batch for batch in self.fake.batches.values() if batch["input_file_id"] == file)
        for line in reversed(self.fake.files[file].splitlines()):
            asked = json.loads(line)
            text = asked["body"]["messages"][-1]["content"]
            key = self.fake.key_of(text)
            if key in batch["lost"]:
                lines.append({"custom_id": asked["custom_id"], "response": None, "error": {"code": "batch_expired"}})
                continue
            if key in batch["broken_off"]:
                body = {"choices": [{"message": {"content": self.fake.reply_to(text, key)}, "finish_reason": "error"}]}
                lines.append({"custom_id": asked["custom_id"], "response": {"status_code": 200, "body": body}})
                continue
            if batch["reply"]:
                refused = {"status_code": 400, "body": {"error": {"message": "Unsupported parameter: max_tokens"}}}
                said = {"content": None, "refusal": "No."} if batch["reply"] == "declined" else {"content": "Let me think."}
                response = (
                    refused if batch["reply"] == "refused" else {"status_code": 200, "body": {"choices": [{"message": said}]}}
                )
                lines.append({"custom_id": asked["custom_id"], "response": response})
                continue
            with self.fake.lock:
                self.fake.good[key] += 1
            body = {"choices": [{"message": {"content": self.fake.reply_to(text, key)}}]}
            lines.append({"custom_id": asked["custom_id"], "response": {"status_code": 200, "body": body}})
        nonsense = "[" * 100_000 + "\n"
        return nonsense + "".join(json.dumps(line) + "\n" for line in lines)
