"""Files that survive a kill at any instant.

A whole file is written under another name, synced and renamed. Rows are appended in one write; readers ignore a torn last line.

Only their owner can open the files and folders made here (0600 and 0700), since many hold generated harmful text. If
CURRICULA_GROUP names a Unix group, its members can too (0660 and 2770). Existing folders keep their permissions; a file that is
rewritten as a whole gets these. docs/trust.md says whose folders are trusted.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import grp
import json
import logging
import os
import pwd
import struct
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from curricula import fencing
from curricula.errors import StorageError, UsageError, UserError

log = logging.getLogger(__name__)

TEAM = "CURRICULA_GROUP"
"""Environment variable with the name or number of the Unix group whose members share run folders."""
NO_FLOCK = (errno.ENOSYS, errno.ENOLCK, errno.ESTALE, errno.EOPNOTSUPP)
"""Errors of a file system, or of its lock server, without flock."""

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a full disk, an exhausted quota and the file size limit."""

ACL_USER, ACL_GROUP = 0x02, 0x08
"""Kinds of the entries in a Linux access control list that name a user or a group."""


@contextlib.contextmanager
def disk_full_explained(path: Path) -> Iterator[None]:
    """Turn the system's errors about a full disk into a StorageError that names `path`: a later start may find space."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_SPACE:
            raise StorageError(
                f"{path}: no space left on the device or quota reached; free some space and run it again"
            ) from error
        raise


def team() -> int | None:
    """The number of the group that CURRICULA_GROUP names; None if it is unset.

    Raises UsageError if there is no such group or the user is not a member.
    """
    name = os.environ.get(TEAM)
    return _group(name) if name else None


@functools.cache
def _group(name: str) -> int:
    try:
        group = int(name) if name.isdecimal() else grp.getgrnam(name).gr_gid
    except (KeyError, ValueError):  # ValueError: more digits than Python converts
        raise UsageError(f"{TEAM}={name}: there is no such group here; `id` lists yours") from None
    if os.geteuid() and _number_here(group) not in (os.getegid(), *os.getgroups()):
        raise UsageError(f"{TEAM}={name}: you are not a member of this group; `id` lists yours")
    return group


def _number_here(group: int) -> int:
    """The number of `group` in this container. A rootless container maps every group but the user's own to the same number."""
    try:
        ranges = [tuple(map(int, line.split())) for line in Path("/proc/self/gid_map").read_text().splitlines()]
    except FileNotFoundError:  # not Linux
        return group
    is_known = any(first <= group < first + count for first, _, count in ranges)
    return group if is_known else int(Path("/proc/sys/kernel/overflowgid").read_text())


def _give(file: int | Path, group: int) -> None:
    """Give a new file or folder to the team. If the container does not know the group, the parent folder has passed it on."""
    if _number_here(group) == group:
        os.chown(file, -1, group)


def require_ours(folder: Path) -> None:
    """Raise UserError if anyone but the user, root and the team could have changed the contents of `folder`."""
    status, group = folder.stat(), team()
    is_shared = group is not None and status.st_gid == _number_here(group)
    if not is_shared and status.st_uid not in (os.geteuid(), 0):
        raise UserError(
            f"{folder}: belongs to {_user(status.st_uid)}, and its contents would run with your rights; name another "
            f"folder, or share it as a group and set {TEAM} (docs/trust.md)"
        )
    group_writes = status.st_mode & 0o020 and not is_shared
    if status.st_mode & 0o002 or (group_writes and (not _is_private(status.st_gid) or _lets_others_write(folder))):
        raise UserError(
            f"{folder}: users other than its owner can write there (mode {status.st_mode & 0o7777:o}), so its contents could "
            f"run with your rights; `chmod -R go-w` the run folder, share it as a group and set {TEAM} (docs/trust.md), or, if "
            "the file system ignores permissions, name another folder"
        )


def _is_private(group: int) -> bool:
    """Whether `group` is the user's private group, which many systems create for each user, and has no other member."""
    try:
        entry, user = grp.getgrgid(group), pwd.getpwuid(os.geteuid())
    except KeyError:
        return False
    return group == user.pw_gid and entry.gr_name == user.pw_name and set(entry.gr_mem) <= {user.pw_name}


def _lets_others_write(folder: Path) -> bool:
    """Whether an access control list lets other users or groups write there, provided that the mode lets the group write."""
    try:
        entries = os.getxattr(folder, "system.posix_acl_access")[4:]
    except (AttributeError, OSError):  # not Linux; no list, or a file system without lists
        return False
    named = [(kind, number) for kind, rights, number in struct.iter_unpack("<HHI", entries) if rights & 2]
    users = {number for kind, number in named if kind == ACL_USER} - {0, os.geteuid()}
    return bool(users) or not all(_is_private(number) for kind, number in named if kind == ACL_GROUP)


def _user(number: int) -> str:
    try:
        return f"user {pwd.getpwuid(number).pw_name}"
    except KeyError:
        return f"user {number}"


def make_folder(path: Path, shared: bool = False) -> None:
    """Make `path` and its missing parents, for the owner (and the team) or, if `shared`, with the umask's permissions."""
    if not path.parent.is_dir():
        make_folder(path.parent, shared)
    try:
        path.mkdir(0o777 if shared else 0o700)
    except FileExistsError:
        if not path.is_dir():
            raise
        return
    if not shared and (group := team()) is not None:
        _give(path, group)
        path.chmod(0o2770)


@contextlib.contextmanager
def open_atomically(path: Path, mode: str = "wb", shared: bool = False, own: str = "") -> Iterator[IO[Any]]:
    """Yield a file that appears as `path` only if the block succeeds. An error leaves nothing behind.

    Only one process may write a file at a time. If several could, they must hold a lock or each pass a different `own`, a
    part of the temporary name. With `shared`, the file and its folder get the umask's permissions.
    """
    make_folder(path.parent, shared)
    # Without `own` the name is always the same, so that what kills leave behind does not fill the disk.
    temporary = path.with_name(f".{path.name}{own}.aside")
    fencing.check_fences()
    mine: os.stat_result | None = None
    with disk_full_explained(path):
        try:
            temporary.unlink(missing_ok=True)  # it may be a link, or still open in a process that this one took over from
            encoding = None if "b" in mode else "utf-8"
            with open(temporary, mode, encoding=encoding, opener=_shared if shared else _private_no_link) as file:
                mine = os.fstat(file.fileno())
                yield file
                file.flush()
                os.fsync(file.fileno())
            fencing.check_fences()
            os.replace(temporary, path)
            sync_folder(path.parent)
        except BaseException:
            with contextlib.suppress(OSError):
                if mine is not None and os.path.samestat(mine, temporary.lstat()):  # else it is another process's now
                    temporary.unlink()
            raise


def _private(path: str, flags: int) -> int:
    """Open a file, or make one that is accessible only to its owner (and the team)."""
    group = team()
    if group is not None:
        try:
            descriptor = os.open(path, flags | os.O_EXCL, 0o600)
        except FileExistsError:
            pass
        else:
            _give(descriptor, group)
            os.fchmod(descriptor, 0o660)
            return descriptor
    return os.open(path, flags, 0o600)


def _private_no_link(path: str, flags: int) -> int:
    return _private(path, flags | os.O_NOFOLLOW)


def sync_folder(folder: Path) -> None:
    """Make a rename or a new name in `folder` durable if the file system can. Shared folders of Windows and of virtual machines
    cannot."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str, shared: bool = False, own: str = "") -> None:
    """Write a whole file; `shared` and `own` as in `open_atomically`."""
    with open_atomically(path, "w", shared, own) as file:
        file.write(text)


def write_json(path: Path, value: Any, shared: bool = False, own: str = "") -> None:
    """Write `value` as indented JSON; `shared` and `own` as in `open_atomically`."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True) + "\n", shared, own)


def names_in(folder: Path) -> list[str]:
    """The names in a folder; none if it does not exist. Raises StorageError if its disk fails, which `Path.glob` would hide."""
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise StorageError(f"{folder}: cannot be read ({error.strerror}); correct its permissions, or try again") from None


def read_json(path: Path, missing: str = "has the job that writes it finished?") -> Any:
    """The JSON value in `path`.

    Raises UserError if the file is damaged or does not exist (the message then ends with `missing`), and StorageError if it
    cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; {missing}") from None
    except OSError as error:
        raise StorageError(f"{path}: cannot be read ({error.strerror}); correct its permissions, or move it away") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error}); delete it and run the job that writes it again") from None


def append_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Append rows in one write and sync them, after cutting off a last line that a kill left torn."""
    make_folder(path.parent)
    fencing.check_fences()
    with disk_full_explained(path), open(path, "a+b", opener=_private) as file:
        end = end_of_lines(file)
        if end != file.seek(0, os.SEEK_END):
            file.truncate(end)
        file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
        file.flush()
        os.fsync(file.fileno())


def end_of_lines(file: IO[bytes]) -> int:
    """The byte at which the last complete line of `file` ends."""
    end = file.seek(0, os.SEEK_END)
    while end > 0:
        start = max(0, end - 65536)
        file.seek(start)
        newline = file.read(end - start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


def read_jsonl(
    path: Path,
    parse: Callable[[bytes], Any] = json.loads,
    what: str = "JSON",
    mend: str = "remove the line and run the job again, or move the file away if another version wrote it",
) -> list[Any]:
    """All complete rows of `path`, read by `parse`; none if the file does not exist. A torn last line is ignored.

    If `parse` raises ValueError, raises UserError: "FILE: line N is not WHAT (reason); MEND".
    """
    if not path.exists():
        return []
    rows = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            rows.append(parse(line))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: line {number} is not {what} ({error}); {mend}") from None
    return rows


@contextlib.contextmanager
def exclusive_lock(path: Path, wait_s: float = 0.0, shared: bool = False) -> Iterator[None]:
    """Hold `path` as a lock until the block or the process ends.

    Raises UserError if a live process still has the lock after `wait_s`, and StorageError if the file cannot be opened. On file
    systems without flock, a lease replaces the lock (`fencing.leased`). With `shared`, the file and its folder get the umask's
    permissions.
    """
    make_folder(path.parent, shared)
    try:
        with disk_full_explained(path):
            file = open(path, "a+", opener=_shared if shared else _private_no_link)  # noqa: SIM115
    except OSError as error:
        raise StorageError(f"{path}: cannot be opened ({error.strerror}); correct its permissions, or move it away") from None
    with file:
        deadline = time.monotonic() + wait_s
        while (is_locked := _flock(file, fcntl.LOCK_EX)) is False:
            if time.monotonic() >= deadline:
                file.seek(0)
                raise fencing.in_use(path, file.read().strip() or "unknown")
            time.sleep(0.05)
        if is_locked is None:
            log.info("%s: its file system has no flock; using a lease instead", path)
        # Leases that a node without flock left here bind all nodes.
        needs_lease = is_locked is None or fencing.has_leases(path)
        with fencing.leased(path, wait_s) if needs_lease else contextlib.nullcontext():
            with disk_full_explained(path):
                file.truncate(0)
                file.write(str(os.getpid()))
                file.flush()
            yield


def is_held(path: Path) -> bool | None:
    """Whether a live process holds the lock, as seen from this machine; None if it cannot tell. Writes nothing."""
    try:
        with open(path) as file:
            is_free = _flock(file, fcntl.LOCK_SH)
        return is_free is False or fencing.is_leased(path)
    except FileNotFoundError:
        return False
    except OSError:
        return None


def _shared(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def _flock(file: IO[Any], kind: int) -> bool | None:
    """Whether the lock could be taken; None if the file system has no flock."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in NO_FLOCK:
            return None
        raise
    return True
