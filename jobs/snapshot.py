"""The code as it was when jobs were submitted: RUN/code/DIGEST/, which they run, however the checkout changes meanwhile.

A snapshot is named by its content: submitting again with the same code makes none, with mended code another. Jobs that are
queued keep the one they were submitted with.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from curriculum.commit import RECORD, running_commit
from curriculum.durable import said_when_full, sync_folder, write_json, write_text

CODE = Path(__file__).parents[1]
PACKAGES = ("jobs", "curriculum", "model", "eval", "sbatch_templates")
ENTRY = "run_element.py"
ENTRY_TEXT = '''"""What the jobs run: `python run_element.py RUN JOB ELEMENT`. Python looks beside this file first."""

import sys

from jobs.element import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
'''


def take_snapshot(run_root: Path) -> Path:
    """Copy the code into the run folder unless it is there already; returns the snapshot's folder."""
    files = code_files()
    folder = snapshot_folder(run_root, files)
    if folder.exists():
        return folder
    aside = folder.with_name(f".{folder.name}.aside")
    shutil.rmtree(aside, ignore_errors=True)
    with said_when_full(folder):
        for path in files:
            (aside / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(CODE / path, aside / path)
        write_text(aside / ENTRY, ENTRY_TEXT)
        commit = running_commit(CODE)
        write_json(
            aside / RECORD,
            {"commit": commit.split("-dirty")[0], "dirty": "-dirty" in commit, "digest": folder.name},
        )
        os.rename(aside, folder)
        sync_folder(folder.parent)
    return folder


def snapshot_folder(run_root: Path, files: Sequence[Path]) -> Path:
    """Where a snapshot of `files`, as they are now, lies or will lie."""
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path}\0{(CODE / path).stat().st_size}\0".encode())
        digest.update((CODE / path).read_bytes())
    return run_root / "code" / digest.hexdigest()[:12]


def code_files() -> list[Path]:
    """The files of the code, relative to its root.

    In a checkout what git tracks, as it stands now, with new files of the packages; elsewhere all of the packages.
    """
    tracked = _git_files("--cached")
    if tracked is None:
        found = [path for name in PACKAGES for path in (CODE / name).rglob("*") if "__pycache__" not in path.parts]
        return sorted(path.relative_to(CODE) for path in found if path.is_file())
    new = _git_files("--others", "--exclude-standard", "--", *PACKAGES) or []
    return sorted({path for path in [*tracked, *new] if (CODE / path).is_file()})


def _git_files(*words: str) -> list[Path] | None:
    if not (CODE / ".git").exists():
        return None
    try:
        listed = subprocess.run(["git", "ls-files", "-z", *words], cwd=CODE, capture_output=True, check=True).stdout
    except (FileNotFoundError, subprocess.CalledProcessError):
        return None
    return [Path(os.fsdecode(name)) for name in listed.split(b"\0") if name]
