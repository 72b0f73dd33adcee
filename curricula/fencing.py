"""Leases and generations: they decide which process may write on file systems where flock cannot.

On some file systems flock fails (Lustre mounted without `-o flock`, some NFS); on others each node has its own locks
(`-o localflock`). Creating a file with O_EXCL works on all of them. So both mechanisms here use numbered files next to a lock:
NAME.KIND-1, NAME.KIND-2 and so on. Of the processes that try to create the next file, exactly one succeeds. It then deletes the
earlier files.

A lease (`leased`) replaces flock. Its holder touches the file every BEAT_S seconds. Another process takes over only if the
holder is provably gone: it released the lease, it ran on this machine and has ended, or its file has not been touched for
STALE_S seconds by the observer's own clock.

A generation (`generation`) fences off an earlier writer that wakes up after another process took over. This can happen when
two nodes each have their own locks. `check_fences` is called before anything durable is published; it raises Superseded in a
process whose generation is not the newest. The check and the write that follows are not atomic: a process that sleeps exactly
between them is not caught.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from curricula.errors import StorageError, UserError

BEAT_S = 5.0
STALE_S = 60.0
POLL_S = 0.05
RELEASED = b"released"
"""Written over the beginning of a lease to release it. The file itself must stay, so that numbers never repeat."""


class Superseded(UserError):
    """Another process has since taken over this work; this one must stop."""

    exit_code = 250
    """Exit code of an element's process, which the batch script must not requeue. Higher than any signal's code, since srun
    returns the highest code of all ranks."""


class InUse(UserError):
    """A live process holds the lock. Another job runs the same element (Slurm started it twice, or an earlier start lives on),
    trains in its folder, or writes what it needs."""

    exit_code = 251
    """Exit code of an element's process. The job is requeued and the start is not counted, so jobs that wait for this one can
    run when the other process has finished. Higher than any signal's code, as for `Superseded`."""


@dataclass(frozen=True)
class Generation:
    """The right to publish until another process takes the next generation."""

    lock: Path
    number: int
    token: bytes

    def check(self) -> None:
        """Raise Superseded unless this generation is the newest. Opening its file makes an NFS client ask the server again.

        Raises StorageError if the answer is unknown: on a node that lost its file system, nothing can be read, or the folder
        looks empty.
        """
        file = _file(self.lock, "generation", self.number)
        try:
            if file.read_bytes() == self.token:
                return
        except OSError as error:
            try:
                is_passed = max(_numbers(self.lock, "generation"), default=0) > self.number
            except OSError:
                is_passed = False
            if not is_passed:
                raise StorageError(f"{file}: cannot be read ({error.strerror}); was its disk lost on this node?") from None
        raise Superseded(
            f"{file.parent}: another process has since begun the same work (this one has generation {self.number}), so "
            "this one stops and leaves the results to it"
        )


_held: list[Generation] = []
"""The generations that this process has taken. It may publish only while each of them is the newest."""


@contextlib.contextmanager
def generation(lock: Path) -> Iterator[Generation]:
    """Take the next generation of the work that `lock` guards. From then on all earlier ones are fenced off."""
    token = secrets.token_hex(8).encode()
    while (created := _make_next(lock, "generation", token)) is None:
        pass
    number, descriptor = created
    os.close(descriptor)
    _held.append(taken := Generation(lock, number, token))
    try:
        yield taken
    finally:
        _held.remove(taken)


def check_fences() -> None:
    """Raise Superseded if another process has taken over any of this process's work."""
    for held in _held:
        held.check()


def current_generation() -> int:
    """The number of the generation that this process works in; 0 outside any."""
    return _held[-1].number if _held else 0


@contextlib.contextmanager
def leased(lock: Path, wait_s: float) -> Iterator[None]:
    """Hold a lease on `lock` until the block ends. Raises UserError if a live process still holds it after `wait_s`.

    A holder on another machine proves that it lives only by touching its file. So the error can take BEAT_S longer than
    `wait_s`, and taking over from a holder that died there takes STALE_S.
    """
    descriptor = _take_lease(lock, time.monotonic() + wait_s)
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(BEAT_S):
            with contextlib.suppress(OSError):  # the next beat may succeed
                os.utime(descriptor)

    beating = threading.Thread(target=beat, daemon=True)
    beating.start()
    try:
        yield
    finally:
        ended.set()
        beating.join()
        with contextlib.suppress(OSError):  # without the mark, others take over once this process has ended
            os.pwrite(descriptor, RELEASED, 0)
        os.close(descriptor)


def has_leases(lock: Path) -> bool:
    return bool(_numbers(lock, "lease"))


def is_leased(lock: Path) -> bool:
    """Whether a live process holds a lease on `lock`, from a single look. A holder on another machine counts as live if it has
    touched its file in the last STALE_S seconds."""
    number = max(_numbers(lock, "lease"), default=0)
    try:
        holder = _Holder.read(_file(lock, "lease", number))
    except FileNotFoundError:
        return False
    return time.time() - holder.touched_ns / 1e9 < STALE_S if holder.lives is None else holder.lives


def _take_lease(lock: Path, deadline: float) -> int:
    """Take the lease and return a descriptor of its file."""
    last_touch: tuple[int, int] | None = None
    """Lease number and time of the latest touch seen, for holders that only touches show to be alive."""
    untouched_since, was_touched = 0.0, False
    while True:
        looked_at = time.monotonic()
        number = max(_numbers(lock, "lease"), default=0)
        try:
            holder = _Holder.read(_file(lock, "lease", number)) if number else None
        except FileNotFoundError:  # another process has just taken over
            continue
        if holder and holder.lives is None and (number, holder.touched_ns) != last_touch:
            was_touched = last_touch is not None
            last_touch, untouched_since = (number, holder.touched_ns), time.monotonic()
        if time.monotonic() - looked_at > BEAT_S:  # the file system hung, perhaps for the holder's touches too
            untouched_since = time.monotonic()
        is_stale = last_touch is not None and time.monotonic() - untouched_since >= STALE_S
        if holder is None or holder.lives is False or (holder.lives is None and is_stale):
            if created := _make_next(lock, "lease", json.dumps(_this_process()).encode(), after=number):
                return created[1]
            continue
        if time.monotonic() >= deadline and (holder.lives or was_touched):
            raise in_use(lock, holder.name)
        time.sleep(POLL_S)


def in_use(lock: Path, holder: str) -> InUse:
    return InUse(f"{lock.parent}: in use by process {holder}; wait for it, stop it, or name another folder")


@dataclass(frozen=True)
class _Holder:
    """What a lease says about its holder."""

    name: str
    lives: bool | None
    """Whether it is alive; None if only its touches can tell, on another machine or in another container."""
    touched_ns: int

    @classmethod
    def read(cls, file: Path) -> _Holder:
        with open(file, "rb", opener=_no_link) as opened:
            data, touched_ns = opened.read(), os.fstat(opened.fileno()).st_mtime_ns
        if data.startswith(RELEASED):
            return cls("", False, touched_ns)
        try:
            record = json.loads(data)
            pid, place, started = record["pid"], record["place"], record["started"]
            name = f"{pid} on {record['host']}"
        except (ValueError, KeyError, TypeError):  # just created, or its creator was killed before it wrote this
            return cls("unknown", None, touched_ns)
        if not place or place != _this_process()["place"]:
            return cls(name, None, touched_ns)
        return cls(name, started is not None and _start_of(pid) == started, touched_ns)


def _this_process() -> dict[str, str | int | None]:
    """This process as a lease's holder. `place` is the machine's boot and the namespace of process numbers; "" if unknown."""
    place = ""
    with contextlib.suppress(OSError):
        place = Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")
    pid = os.getpid()
    return {"host": socket.gethostname(), "pid": pid, "started": _start_of(pid), "place": place}


def _start_of(pid: int) -> int | None:
    """When a process of this machine started, in clock ticks since boot; None if it has ended."""
    try:
        # The kernel cuts a process's name after 15 bytes, even within a character.
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def _file(lock: Path, kind: str, number: int) -> Path:
    return lock.with_name(f"{lock.name}.{kind}-{number}")


def _numbers(lock: Path, kind: str) -> list[int]:
    prefix = f"{lock.name}.{kind}-"
    names = (name.removeprefix(prefix) for name in os.listdir(lock.parent) if name.startswith(prefix))
    return [int(name) for name in names if name.isdecimal()]


def _make_next(lock: Path, kind: str, content: bytes, after: int | None = None) -> tuple[int, int] | None:
    """Create the file with the number after `after` (by default the newest) and delete the earlier ones.

    Returns its number and a descriptor, or None if another process was first. The file gets the lock's permissions.
    """
    numbers = _numbers(lock, kind)
    number = (max(numbers, default=0) if after is None else after) + 1
    file = _file(lock, kind, number)
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except FileExistsError:
        return None
    try:
        os.fchmod(descriptor, lock.stat().st_mode & 0o666)
        os.write(descriptor, content)
        os.fsync(descriptor)
        numbers = _numbers(lock, kind)
        if max(numbers) > number:  # two processes were faster, and the second deleted the first one's file
            file.unlink(missing_ok=True)  # a third may have deleted it
            os.close(descriptor)
            return None
    except OSError:  # the file stays: a number must not be taken twice
        os.close(descriptor)
        raise
    for old in numbers:
        if old < number:
            _file(lock, kind, old).unlink(missing_ok=True)
    return number, descriptor


def _no_link(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW)
