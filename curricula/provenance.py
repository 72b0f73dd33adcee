"""The commit of the running code: of its checkout, or of the checkout that a copy of it was taken from."""

from __future__ import annotations

import subprocess
from pathlib import Path

from curricula.durable import read_json

PACKAGE = Path(__file__).parent
"""The package's folder: in a checkout, in a copy of one, or where it was installed."""
ROOT = PACKAGE.parent
"""The checkout's folder, or the copy's."""
RECORD = "commit.json"
"""File in a copy of the code: {"commit": ..., "dirty": ..., "digest": ...}, with the digest of the copy's files."""


def running_commit(root: Path = ROOT) -> str:
    """The commit, followed by "-dirty" if files have changed since; "" if it is unknown.

    For a copy of changed code its digest is appended too, since the commit alone does not identify it.
    """
    if (root / RECORD).is_file():
        record = read_json(root / RECORD)
        changed = f"-dirty-{record['digest']}" if record["dirty"] else ""
        return f"{record['commit']}{changed}" if record["commit"] else ""
    if not is_checkout(root):  # the folder may lie inside another project's repository
        return ""
    return ask_git(root, "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty").strip()


def is_checkout(root: Path = ROOT) -> bool:
    """Whether `root` is the top folder of a git repository."""
    top = ask_git(root, "rev-parse", "--show-toplevel").strip()
    return bool(top) and Path(top).resolve() == root.resolve()


def ask_git(root: Path, *args: str) -> str:
    """The output of a git command; "" if it fails or git is not installed."""
    try:
        result = subprocess.run(["git", *args], cwd=root, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return result.stdout if result.returncode == 0 else ""
