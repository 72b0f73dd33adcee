"""Shared by the tests of synthesis: documents, the command, and the files it wrote."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from curricula.durable import read_jsonl
from curricula.jobs.cli.synthesize import add_parser
from curricula.jobs.cli.synthesize import synthesize as call

KEY = "sk-secret-4711"


def write_documents(path: Path, texts: list[str | None]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = ({"id": f"web/{number}", "text": text} for number, text in enumerate(texts))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def numbered(count: int) -> list[str | None]:
    return [f"This is doc-{number}, a page of the web." for number in range(count)]


def command(kind: str, source: Path | str, out: Path, url: str, *more: object) -> list[str]:
    which = ["--input", str(source)] if isinstance(source, Path) else ["--dataset", source]
    fixed = ["--out", str(out), "--base-url", url, "--model", "fake", "--timeout", "30", "--concurrency", "8"]
    return [kind, *which, *fixed, *map(str, more)]


def synthesize(*args: object) -> int:
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    parsed = parser.parse_args(["synthesize", *command(*args)])  # type: ignore[arg-type]
    return call(parsed)


def summary(capsys, *args: object) -> dict:
    capsys.readouterr()
    synthesize(*args, "--json")
    return json.loads(capsys.readouterr().out)


def rows_of(out: Path, pattern: str) -> list[dict]:
    return [row for path in sorted(out.glob(pattern)) for row in read_jsonl(path)]


def files_of(out: Path, pattern: str) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.glob(pattern))}
