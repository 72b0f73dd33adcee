"""Files that survive a kill at any instant.

A whole file is written under another name, synced and renamed. Rows are appended in one write, and a torn last line is ignored
when they are read.

Files and folders made here are for their owner alone (0600 and 0700), for many hold generated harmful text. Those that exist
keep their permissions.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from curricula.errors import StorageError, UserError

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Full disk, exhausted quota, file size limit."""


@contextlib.contextmanager
def disk_full_explained(path: Path) -> Iterator[None]:
    """Turn the system's errors about a full disk into a UserError that names `path`."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_SPACE:
            raise UserError(
                f"{path}: no space left on the device or quota reached; free some space and run it again"
            ) from error
        raise


def make_folder(path: Path, shared: bool = False) -> None:
    """Make `path` and the parents that it lacks, for the owner alone, or, if `shared`, with the permissions of the umask."""
    mode = 0o777 if shared else 0o700
    try:
        path.mkdir(mode, exist_ok=True)
    except FileNotFoundError:
        if path.parent == path:
            raise
        make_folder(path.parent, shared)
        path.mkdir(mode, exist_ok=True)


@contextlib.contextmanager
def open_atomically(path: Path, mode: str = "wb", shared: bool = False) -> Iterator[IO[Any]]:
    """Yield a file that appears as `path` only when the block succeeds. An error leaves nothing behind.

    `shared` is about its folder, as in `make_folder`.
    """
    make_folder(path.parent, shared)
    temporary = path.with_name(f".{path.name}.aside")  # always the same name, so that kills do not fill the disk
    with disk_full_explained(path):
        try:
            with open(temporary, mode, opener=_private) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            sync_folder(path.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def _private(path: str, flags: int) -> int:
    """Open with access for the owner alone, if it is a new file."""
    return os.open(path, flags, 0o600)


def sync_folder(folder: Path) -> None:
    """Make a rename or a new name in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    with open_atomically(path, "w") as file:
        file.write(text)


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1, sort_keys=True) + "\n")


def read_json(path: Path) -> Any:
    """The JSON value in `path`. Raises UserError when it is missing or damaged."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; has the job that writes it finished?") from None
    except OSError as error:
        raise StorageError(
            f"{path}: cannot be read ({error.strerror}); correct its permissions, or move it away"
        ) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error}); delete it and run the job that writes it again") from None


def append_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Append rows in one write and sync them, after cutting off a line that an earlier kill left torn."""
    make_folder(path.parent)
    with disk_full_explained(path), open(path, "a+b", opener=_private) as file:
        drop_torn_tail(file)
        file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
        file.flush()
        os.fsync(file.fileno())


def drop_torn_tail(file: IO[bytes]) -> None:
    """Truncate `file` (open for reading and writing) after its last complete line."""
    size = file.seek(0, os.SEEK_END)
    end = size
    while end > 0:
        start = max(0, end - 65536)
        file.seek(start)
        newline = file.read(end - start).rfind(b"\n")
        if newline >= 0:
            end = start + newline + 1
            break
        end = start
    if end != size:
        file.truncate(end)
    file.seek(0, os.SEEK_END)


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """All complete rows of `path`; none if it does not exist. A torn last line is ignored."""
    if not path.exists():
        return []
    rows = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            rows.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{path}: line {number} is not JSON ({error}); remove the line and run the job again"
            ) from None
    return rows


@contextlib.contextmanager
def exclusive_lock(path: Path, wait_s: float = 0.0, shared: bool = False) -> Iterator[None]:
    """Hold `path` as a lock until the block or the process ends. Raises UserError while a live process has it.

    With `shared`, the file and its folder get the permissions of the umask.
    """
    make_folder(path.parent, shared)
    with open(path, "a+", opener=None if shared else _private) as file:
        deadline = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    file.seek(0)
                    holder = file.read().strip() or "unknown"
                    raise UserError(
                        f"{path.parent}: in use by a live run (process {holder}); wait for it, stop it, or name another folder"
                    ) from None
                time.sleep(0.05)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
