"""Copies of shards on a node's own disk, where a profile names one (`node_scratch`): random reads then load no shared disk.

All processes of a node call `near` before training. One copies, the others wait for it. A copy is complete or absent, and one
that differs from the shared file in size or time is replaced, so that a requeued job on the same node reads what is there.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from curricula.durable import exclusive_lock, make_folder, require_ours
from curricula.errors import UserError

SCRATCH = "CURRICULA_NODE_SCRATCH"
"""The variable by which a batch script hands on the profile's `node_scratch`, which the node expands."""
SPARE = 1.05
"""Free space that must be there, as a multiple of what is copied."""
PATIENCE_S = 4 * 3600.0
"""How long a process waits for the one that copies."""

log = logging.getLogger(__name__)


def near(shards: Path, sources: Iterable[str]) -> Path:
    """The folder from which this node reads the shards of `sources`: a copy on its own disk, or `shards` where no scratch
    folder is named or too little space is free there.

    Raises UserError where the scratch folder is missing on this node, or its copies belong to another user.
    """
    named = os.environ.get(SCRATCH)
    if not named:
        return shards
    scratch = Path(os.path.expandvars(named))
    if not scratch.is_dir():
        raise UserError(
            f"node_scratch: {scratch} is no folder on {os.uname().nodename}; name one, or leave the key out"
        )
    folders = [shards / name for name in sources if (shards / name).is_dir()]
    files = [file for folder in folders for file in sorted(folder.iterdir()) if file.is_file()]
    copies = scratch / f"curricula-{os.geteuid()}" / hashlib.sha256(os.fsencode(shards.resolve())).hexdigest()[:16]
    make_folder(copies)
    require_ours(copies.parent)
    with exclusive_lock(copies / "lock", PATIENCE_S):
        missing = [file for file in files if not _is_copied(file, copies / file.relative_to(shards))]
        needed, free = sum(file.stat().st_size for file in missing), shutil.disk_usage(copies).free
        if needed * SPARE > free:
            log.warning(
                "node_scratch: %s has %.1f GB free, and %.1f GB of shards are to be copied; this node reads the shared ones",
                scratch, free / 1e9, needed / 1e9,
            )  # fmt: skip
            return shards
        for folder in folders:
            _drop_leftovers(copies / folder.name, folder)
        if missing:
            log.info("copying %.1f GB of shards to %s", needed / 1e9, copies)
        for file in missing:
            _copy(file, copies / file.relative_to(shards))
    return copies


def _is_copied(file: Path, copy: Path) -> bool:
    if not copy.is_file():
        return False
    original, found = file.stat(), copy.stat()
    return (original.st_size, original.st_mtime_ns) == (found.st_size, found.st_mtime_ns)


def _drop_leftovers(copied: Path, folder: Path) -> None:
    """Delete copies of files that are no longer in the shared `folder`, which was tokenised anew."""
    for copy in copied.iterdir() if copied.is_dir() else ():
        if not (folder / copy.name).is_file():
            copy.unlink()


def _copy(file: Path, copy: Path) -> None:
    """Appears only when it is complete, with the time of the original."""
    make_folder(copy.parent)
    partial = copy.with_name(f".{copy.name}.partial")
    shutil.copyfile(file, partial)
    shutil.copystat(file, partial)
    os.replace(partial, copy)
