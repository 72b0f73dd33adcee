"""Locks on file systems without flock, and writers that wake up after another process took over their work."""

import errno
import fcntl
import json
import os
import subprocess
import sys
import threading
import time

import pytest

from curricula import fencing
from curricula.durable import append_jsonl, exclusive_lock, is_held, open_atomically, read_json, read_jsonl, write_json
from curricula.errors import StorageError, UserError

HOLD = """
import errno, fcntl, sys, time
from pathlib import Path
from curricula.durable import exclusive_lock
def flock(*_): raise OSError(errno.ENOSYS, "Function not implemented")
fcntl.flock = flock
Path("/proc/self/comm").write_bytes(bytes([0xe3, 0x83]))  # the beginning of a letter
with exclusive_lock(Path(sys.argv[1])): print("held", flush=True); time.sleep(60)
"""
TAKE_OVER = """
import sys; from pathlib import Path; from curricula.fencing import generation
with generation(Path(sys.argv[1])): pass
"""
TAKE_OVER_AND_WRITE = """
import sys; from pathlib import Path; from curricula.durable import write_text
from curricula.fencing import generation
with generation(Path(sys.argv[1])):
    write_text(Path(sys.argv[2]), '"newer"')
    Path(sys.argv[3]).write_text("of the newer one")
"""


@pytest.fixture(params=["ENOSYS", "ENOLCK", "ESTALE", "EOPNOTSUPP"])
def without_flock(request, monkeypatch):
    refuse_flock(monkeypatch, getattr(errno, request.param))


def refuse_flock(monkeypatch, number: int = errno.ENOSYS) -> None:
    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)


def test_a_file_system_without_flock_has_locks_all_the_same(tmp_path, without_flock):
    lock = tmp_path / "lock"
    for _ in range(3):
        with exclusive_lock(lock):
            assert is_held(lock)
            before = sorted(tmp_path.iterdir())
            with pytest.raises(UserError, match=rf"{tmp_path}: in use by process {os.getpid()} on \S+"), exclusive_lock(lock):
                pass
            assert sorted(tmp_path.iterdir()) == before
        assert is_held(lock) is False
    assert len(list(tmp_path.iterdir())) == 2  # the lock, and the latest lease


def test_a_lease_of_a_killed_process_of_this_machine_is_taken_over_at_once(tmp_path, monkeypatch):
    refuse_flock(monkeypatch)
    lock = tmp_path / "lock"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(lock)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(UserError, match=f"process {holder.pid} on"), exclusive_lock(lock):
        pass
    holder.kill()
    os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)  # it has ended, although its parent does not know yet
    assert is_held(lock) is False
    holder.wait()
    assert is_held(lock) is False
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("waited"))
    with exclusive_lock(lock):
        assert is_held(lock)


def test_a_holder_touches_its_lease(tmp_path, monkeypatch):
    refuse_flock(monkeypatch)
    monkeypatch.setattr(fencing, "BEAT_S", 0.05)
    with exclusive_lock(tmp_path / "lock"):
        (lease,) = tmp_path.glob("lock.lease-*")
        os.utime(lease, (1, 1))
        deadline = time.monotonic() + 60
        while lease.stat().st_mtime == 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert lease.stat().st_mtime > 1


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A lease whose holder is on another machine."""
    refuse_flock(monkeypatch)
    monkeypatch.setattr(fencing, "STALE_S", 0.6)
    lease = tmp_path / "lock.lease-3"
    lease.write_text(json.dumps({"host": "n7", "pid": os.getpid(), "started": 5, "place": "another machine"}))
    return lease


def test_a_lease_of_another_machine_holds_while_its_holder_touches_it(tmp_path, elsewhere, monkeypatch):
    look, touches = fencing._numbers, iter(range(10**6))

    def look_after_a_touch(*words):
        os.utime(elsewhere, ns=(1, next(touches)))  # of a clock that is wrong by decades
        return look(*words)

    monkeypatch.setattr(fencing, "_numbers", look_after_a_touch)
    with pytest.raises(UserError, match=f"process {os.getpid()} on n7"), exclusive_lock(tmp_path / "lock", 1.5):
        pass
    assert next(touches) > 2


def test_a_lease_of_another_machine_shows_as_held_while_its_last_touch_is_recent(tmp_path, elsewhere, monkeypatch):
    monkeypatch.setattr(fencing, "STALE_S", 60.0)
    (tmp_path / "lock").touch()
    os.utime(elsewhere)
    assert is_held(tmp_path / "lock") is True
    os.utime(elsewhere, (1, 1))
    assert is_held(tmp_path / "lock") is False


@pytest.mark.parametrize("content", [None, ""])
def test_a_lease_of_another_machine_is_taken_over_only_after_it_was_seen_untouched_for_long(tmp_path, elsewhere, content):
    if content is not None:
        elsewhere.write_text(content)  # its maker was killed before it could write
    os.utime(elsewhere, (1, 1))  # old by this machine's clock, which proves nothing
    began = time.monotonic()
    with exclusive_lock(tmp_path / "lock"):
        assert time.monotonic() - began > 0.6
    assert not elsewhere.exists()


def test_while_the_file_system_does_not_answer_no_lease_grows_old(tmp_path, elsewhere, monkeypatch):
    monkeypatch.setattr(fencing, "BEAT_S", 0.3)
    look, hangs = fencing._numbers, iter([0, 1.0])

    def look_slowly(*words):
        time.sleep(next(hangs, 0))
        return look(*words)

    monkeypatch.setattr(fencing, "_numbers", look_slowly)
    began = time.monotonic()
    with exclusive_lock(tmp_path / "lock"):
        assert time.monotonic() - began > 1.0 + 0.6


def test_a_lease_that_passes_to_a_live_process_does_not_grow_old_with_its_earlier_holder(tmp_path, elsewhere, monkeypatch):
    with exclusive_lock(tmp_path / "other/lock"):
        (other,) = tmp_path.glob("other/lock.lease-*")
        of_this_process = other.read_bytes()
    look, looked = os.listdir, []

    def look_and_see_it_pass(*words):
        looked.append(words)
        if len(looked) == 2:  # the first look has seen the other machine's holder
            (tmp_path / "lock.lease-4").write_bytes(of_this_process)
        return look(*words)

    monkeypatch.setattr(os, "listdir", look_and_see_it_pass)
    with pytest.raises(UserError, match=f"process {os.getpid()} on"), exclusive_lock(tmp_path / "lock", 1.5):
        pass
    assert (tmp_path / "lock.lease-4").exists() and not (tmp_path / "lock.lease-5").exists()


def test_a_node_with_flock_honours_the_lease_of_one_without(tmp_path, monkeypatch):
    lock = tmp_path / "lock"
    with monkeypatch.context() as patch:
        refuse_flock(patch)
        held = exclusive_lock(lock)
        held.__enter__()
    with pytest.raises(UserError, match="in use"), exclusive_lock(lock):
        pass
    held.__exit__(None, None, None)
    with exclusive_lock(lock):
        pass


def test_of_many_that_want_a_lease_one_has_it_at_a_time(tmp_path, monkeypatch):
    refuse_flock(monkeypatch)
    count = tmp_path / "count"
    count.write_text("0")

    def work():
        for _ in range(5):
            with exclusive_lock(tmp_path / "lock", wait_s=600):
                value = int(count.read_text())
                time.sleep(0.001)
                count.write_text(str(value + 1))

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert count.read_text() == "30"


def test_asking_who_holds_a_lock_writes_nothing_and_never_fails(tmp_path, without_flock):
    assert is_held(tmp_path / "lock") is False and not list(tmp_path.iterdir())
    (tmp_path / "lock").mkdir()
    assert is_held(tmp_path / "lock") is None


def test_a_writer_that_was_overtaken_publishes_nothing_more(tmp_path):
    lock = tmp_path / "lock"
    lock.touch()
    with fencing.generation(lock) as taken:
        write_json(tmp_path / "value.json", "older")
        append_jsonl(tmp_path / "rows.jsonl", [{"n": 1}])
        subprocess.run([sys.executable, "-c", TAKE_OVER, str(lock)], check=True)
        for write in (
            lambda: write_json(tmp_path / "value.json", "late"),
            lambda: append_jsonl(tmp_path / "rows.jsonl", [{"n": 2}]),
        ):
            with pytest.raises(fencing.Superseded, match=rf"{tmp_path}: another process .* \(.* generation 1\)"):
                write()
    assert (taken.number, read_json(tmp_path / "value.json")) == (1, "older")
    assert read_jsonl(tmp_path / "rows.jsonl") == [{"n": 1}]
    write_json(tmp_path / "value.json", "free again")  # outside any generation
    with fencing.generation(lock) as newest:
        assert newest.number == fencing.current_generation() == 3
        write_json(tmp_path / "value.json", "newest")


def test_a_generation_whose_folder_was_made_again_is_not_taken_for_the_new_one(tmp_path):
    lock = tmp_path / "lock"
    lock.touch()
    with fencing.generation(lock):
        (tmp_path / "lock.generation-1").unlink()
        subprocess.run([sys.executable, "-c", TAKE_OVER, str(lock)], check=True)
        assert (tmp_path / "lock.generation-1").exists()
        with pytest.raises(fencing.Superseded):
            fencing.check_fences()


@pytest.mark.parametrize("code", [errno.ESTALE, errno.EIO, None])
def test_a_node_that_loses_its_file_system_is_not_told_that_another_took_over(tmp_path, monkeypatch, code):
    """The work must start again: GPFS answers ESTALE where its node was expelled, and an empty folder where it is unmounted."""

    def fail(path):
        raise OSError(code, os.strerror(code), str(path))

    lock = tmp_path / "lock"
    lock.touch()
    with fencing.generation(lock):
        if code:
            monkeypatch.setattr(os, "listdir", fail)
            monkeypatch.setattr("pathlib.Path.read_bytes", fail)
        else:
            (tmp_path / "lock.generation-1").unlink()
        with pytest.raises(StorageError, match=r"generation-1: cannot be read \(.*\); was its disk lost on this node"):
            write_json(tmp_path / "value.json", 1)


def test_numbers_go_on_after_a_kill_that_left_two_of_them(tmp_path):
    for name in ("lock", "lock.generation-1", "lock.generation-2"):
        (tmp_path / name).touch()
    with fencing.generation(tmp_path / "lock") as taken:
        assert taken.number == 3
        assert sorted(path.name for path in tmp_path.iterdir()) == ["lock", "lock.generation-3"]


def test_a_number_that_two_others_have_passed_is_not_taken(tmp_path, monkeypatch):
    """Between looking and making, one made number 1 and another number 2, which deleted it."""
    lock = tmp_path / "lock"
    lock.touch()
    look, looked = fencing._numbers, []

    def look_and_be_overtaken(*words):
        found = look(*words)
        if not looked:
            looked.append(found)
            (tmp_path / "lock.generation-2").touch()
        return found

    monkeypatch.setattr(fencing, "_numbers", look_and_be_overtaken)
    with fencing.generation(lock) as taken:
        assert taken.number == 3


def test_a_number_that_others_have_passed_and_deleted_is_not_taken(tmp_path, monkeypatch):
    """While it is being made, another makes the next number and deletes it."""
    lock = tmp_path / "lock"
    lock.touch()
    sync, synced = os.fsync, []

    def sync_and_be_overtaken(descriptor):
        sync(descriptor)
        if not synced:
            synced.append(descriptor)
            (tmp_path / "lock.generation-1").rename(tmp_path / "lock.generation-2")

    monkeypatch.setattr(os, "fsync", sync_and_be_overtaken)
    with fencing.generation(lock) as taken:
        assert taken.number == 3


@pytest.mark.parametrize("end", [fencing.Superseded, KeyboardInterrupt])
def test_a_writer_that_others_took_over_from_spoils_neither_their_file_nor_the_one_they_are_writing(end, tmp_path):
    lock, path, aside = tmp_path / "lock", tmp_path / "value.json", tmp_path / ".value.json.aside"
    lock.touch()
    with fencing.generation(lock), pytest.raises(end), open_atomically(path, "w") as file:
        file.write('"what the older one would have written"')
        subprocess.run([sys.executable, "-c", TAKE_OVER_AND_WRITE, str(lock), str(path), str(aside)], check=True)
        if end is KeyboardInterrupt:
            raise end
    assert (read_json(path), aside.read_text()) == ("newer", "of the newer one")
