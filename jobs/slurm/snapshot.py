"""Snapshots of the code, RUN/code/DIGEST/: jobs run the code that they were submitted with, however the checkout changes.

A snapshot is named by its content: another submission makes a new one only if the code has changed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from curricula.durable import disk_full_explained, sync_folder, write_json, write_text
from curricula.provenance import PACKAGE, RECORD, ROOT, running_commit

ENTRY = "run_element.py"
ENTRY_TEXT = '''"""What the jobs run: `python run_element.py RUN JOB ELEMENT`. Python looks beside this file first."""

import sys

from curricula.jobs.element import main

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
    with disk_full_explained(folder):
        for path in files:
            (aside / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / path, aside / path)
        write_text(aside / ENTRY, ENTRY_TEXT)
        commit = running_commit()
        write_json(
            aside / RECORD,
            {"commit": commit.split("-dirty")[0], "dirty": "-dirty" in commit, "digest": folder.name},
        )
        os.rename(aside, folder)
        sync_folder(folder.parent)
    return folder


def snapshot_folder(run_root: Path, files: Sequence[Path]) -> Path:
    """The folder of a snapshot of `files` as they are now, taken or not."""
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path}\0{(ROOT / path).stat().st_size}\0".encode())
        digest.update((ROOT / path).read_bytes())
    return run_root / "code" / digest.hexdigest()[:12]


def code_files() -> list[Path]:
    """The files of the package, relative to the folder that holds it. In a checkout its parts are links, which are followed."""
    found = []
    for folder, names, files in os.walk(PACKAGE, followlinks=True):
        names[:] = [name for name in names if name != "__pycache__"]
        found += [Path(folder, name).relative_to(ROOT) for name in files]
    return sorted(found)
