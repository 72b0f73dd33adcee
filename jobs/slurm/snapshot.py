"""The copy of the code that jobs run.

The copy is named by a hash of its content, so a later submission makes a new one only if the code has changed. Its seal, a hash
of every file in it, goes into the batch scripts. Slurm keeps its own copy of those, so a job refuses any code but that of its
submission, even if somebody changes the run folder afterwards.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from curricula.durable import disk_full_explained, make_folder, sync_folder, write_json
from curricula.errors import UserError
from curricula.provenance import PACKAGE, RECORD, ROOT, running_commit

ENTRY = "run_element.py"
ENTRY_TEXT = '''"""What the jobs run: `python run_element.py RUN JOB ELEMENT`. Python looks beside this file first."""

import sys

from curricula.jobs.element import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
'''


@dataclass(frozen=True)
class Snapshot:
    """A snapshot of the code as it is now, whether or not it has been written."""

    folder: Path
    seal: str
    """SHA-256 of the lines that sha256sum prints for the snapshot's files, except RECORD, in the order of their names."""


def take_snapshot(run_root: Path) -> Snapshot:
    """Copy the code into the run folder, unless it is there already. Raises UserError if the copy there was changed."""
    contents = _contents()
    snapshot = _snapshot(run_root, contents)
    folder = snapshot.folder
    if folder.exists():
        if _seal(_read(folder, folder)) != snapshot.seal:
            raise UserError(f"{folder}: this copy of the code was changed; delete it and run the same command again")
        return snapshot
    aside = folder.with_name(f".{folder.name}.aside")
    shutil.rmtree(aside, ignore_errors=True)
    with disk_full_explained(folder):
        make_folder(folder.parent)
        for path, content in contents.items():
            make_folder((aside / path).parent)
            (aside / path).write_bytes(content)
        commit = running_commit()
        record = {"commit": commit.split("-dirty")[0], "dirty": "-dirty" in commit, "digest": folder.name}
        write_json(aside / RECORD, record)
        os.rename(aside, folder)
        sync_folder(folder.parent)
    return snapshot


def planned_snapshot(run_root: Path) -> Snapshot:
    """The snapshot that `take_snapshot` would take."""
    return _snapshot(run_root, _contents())


def _contents() -> dict[Path, bytes]:
    """The files of a snapshot by their relative paths: those of the package, with links followed, and the entry script.

    Hidden files are left out. They are not code: editors keep them next to files that are open, some as links to nothing.
    """
    return {**_read(PACKAGE, ROOT, hidden=False), Path(ENTRY): ENTRY_TEXT.encode()}


def _read(folder: Path, base: Path, hidden: bool = True) -> dict[Path, bytes]:
    paths = []
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if name != "__pycache__" and (hidden or name[0] != ".")]
        paths += [Path(parent, name) for name in files if hidden or name[0] != "."]
    return {path.relative_to(base): path.read_bytes() for path in sorted(paths)}


def _snapshot(run_root: Path, contents: Mapping[Path, bytes]) -> Snapshot:
    seal = _seal(contents)
    return Snapshot(run_root / "code" / seal[:12], seal)


def _seal(contents: Mapping[Path, bytes]) -> str:
    lines = {f"./{path}".encode(): hashlib.sha256(content).hexdigest() for path, content in contents.items()}
    lines.pop(f"./{RECORD}".encode(), None)  # another commit may have the same code
    return hashlib.sha256(b"".join(lines[name].encode() + b"  " + name + b"\n" for name in sorted(lines))).hexdigest()
