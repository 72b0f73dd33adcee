"""Which commit of this code is running: of its own checkout, or of the one that a copy of it was taken from."""

from __future__ import annotations

import subprocess
from pathlib import Path

from curricula.durable import read_json

PACKAGE = Path(__file__).parent
"""The folder of the package: in a checkout, a copy of it, or where it was installed."""
ROOT = PACKAGE.parent
RECORD = "commit.json"
"""Lies in a copy of the code: {"commit": ..., "dirty": ..., "digest": ...}, the digest being that of the copy's files."""


def running_commit(root: Path = ROOT) -> str:
    """The commit, with "-dirty" behind it where files were changed since; "" where it is not known.

    A copy of changed code has its digest behind that, since its commit alone does not tell it from another.
    """
    if (root / RECORD).is_file():
        record = read_json(root / RECORD)
        changed = f"-dirty-{record['digest']}" if record["dirty"] else ""
        return f"{record['commit']}{changed}" if record["commit"] else ""
    if not is_checkout(root):  # the folder may lie within a repository of something else
        return ""
    return ask_git(root, "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty").strip()


def is_checkout(root: Path = ROOT) -> bool:
    top = ask_git(root, "rev-parse", "--show-toplevel").strip()
    return bool(top) and Path(top).resolve() == root.resolve()


def ask_git(root: Path, *words: str) -> str:
    """What git prints; "" where it fails or is not installed."""
    try:
        asked = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return asked.stdout if asked.returncode == 0 else ""
