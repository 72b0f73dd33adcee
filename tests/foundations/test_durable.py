"""Files that must survive a kill or a full disk."""

import contextlib
import errno
import json
import os
import resource
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from curricula.curriculum.tokens.shards import source_shards
from curricula.durable import append_jsonl, exclusive_lock, make_folder, open_atomically, read_json, read_jsonl, write_json
from curricula.errors import StorageError, UserError
from curricula.eval.identity import content_hash
from curricula.model.checkpoints.folder import checkpoints_to_resume


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "value.json"
    write_json(path, {"old": 1})
    with pytest.raises(RuntimeError), open_atomically(path, "w") as file:
        file.write("half")
        raise RuntimeError
    assert read_json(path) == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["value.json"]


def test_a_value_that_several_processes_write_at_once_is_always_whole(tmp_path, monkeypatch):
    """All of a job that meet the same error note it, and srun kills the others when the first one ends."""
    path, sync = tmp_path / "failed.json", os.fsync

    def sync_while_another_writes(descriptor):
        monkeypatch.setattr(os, "fsync", sync)
        write_json(path, "another's", own=".1")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", sync_while_another_writes)
    write_json(path, "mine", own=".2")
    assert read_json(path) == "mine" and [p.name for p in tmp_path.iterdir()] == ["failed.json"]


@pytest.fixture
def synced(monkeypatch):
    """What reaches the disk, in order: (inode, size) of each file, and "renamed"."""
    events, sync, replace = [], os.fsync, os.replace

    def note_sync(descriptor):
        status = os.fstat(descriptor)
        events.append((status.st_ino, None if stat.S_ISDIR(status.st_mode) else status.st_size))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "replace", lambda *names: events.append("renamed") or replace(*names))
    return events


def test_a_file_is_on_the_disk_before_it_has_its_name_and_the_name_before_the_call_returns(tmp_path, synced):
    write_json(tmp_path / "value.json", 1)
    found = (tmp_path / "value.json").stat()
    assert synced == [(found.st_ino, found.st_size), "renamed", (tmp_path.stat().st_ino, None)]


def test_appended_rows_are_on_the_disk_when_the_call_returns(tmp_path, synced):
    append_jsonl(tmp_path / "rows.jsonl", [{"n": 1}])
    found = (tmp_path / "rows.jsonl").stat()
    assert synced == [(found.st_ino, found.st_size)]


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EIO])
def test_a_file_system_that_syncs_no_folders_can_be_used(tmp_path, monkeypatch, code):
    sync = os.fsync

    def sync_files_only(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(code, os.strerror(code))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", sync_files_only)
    with contextlib.nullcontext() if code == errno.EINVAL else pytest.raises(OSError):
        write_json(tmp_path / "value.json", 1)
    assert read_json(tmp_path / "value.json") == 1


def test_a_full_disk_is_reported_in_one_sentence_and_leaves_no_partial_file(tmp_path):
    code = (
        "import resource, signal, sys; from pathlib import Path; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "import numpy as np; from curricula.curriculum.tokens.shards import write_shard\n"
        "from curricula.errors import UserError\n"
        "try: write_shard(Path(sys.argv[1]) / 's', [np.arange(9999)])\n"
        "except UserError as error: print(error)\n"
    )
    ran = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert f"{tmp_path / 's.bin'}: no space left" in ran.stdout and "free some" in ran.stdout
    assert list(tmp_path.iterdir()) == []
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 4096


@pytest.mark.parametrize("torn", [b"", b'{"n": 3', b'{"n": 3}', b"\xff\xfe", b'{"text": "' + b"x" * 200_000])
@pytest.mark.parametrize("length", [0, 100_000])
def test_a_torn_last_line_is_ignored_and_cut_off_by_the_next_append(tmp_path, torn, length):
    path, text = tmp_path / "rows.jsonl", "x" * length
    append_jsonl(path, [{"n": 1, "text": text}, {"n": 2}])
    with open(path, "ab") as file:
        file.write(torn)
    assert read_jsonl(path) == [{"n": 1, "text": text}, {"n": 2}]
    append_jsonl(path, [{"n": 4}])
    assert [json.loads(line)["n"] for line in path.read_text().splitlines()] == [1, 2, 4]


@pytest.mark.parametrize("damaged", ['{"n": ', "[" * 100_000])
def test_a_damaged_line_in_the_middle_is_named(tmp_path, damaged):
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"n": 1}}\n{damaged}\n{{"n": 3}}\n')
    with pytest.raises(UserError, match=rf"{path}: line 2 is not JSON"):
        read_jsonl(path)


@pytest.mark.parametrize("look", [checkpoints_to_resume, source_shards, content_hash])
def test_a_folder_that_cannot_be_listed_is_not_an_empty_one(tmp_path, monkeypatch, look):
    """Or else a training would begin anew, or end for lack of shards, and a model have the hash of one without weights."""

    def fail(folder):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))

    monkeypatch.setattr(os, "listdir", fail)
    monkeypatch.setattr(os, "scandir", fail)
    with pytest.raises(StorageError, match=f"{tmp_path}: cannot be read"):
        look(tmp_path)


def test_a_lock_on_a_full_disk_is_a_sentence(tmp_path):
    code = (
        "import resource, sys; from pathlib import Path; from curricula.durable import exclusive_lock\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n"
        "with exclusive_lock(Path(sys.argv[1])): pass\n"
    )
    ran = subprocess.run([sys.executable, "-c", code, tmp_path / "lock"], stderr=subprocess.PIPE, text=True)
    assert f"StorageError: {tmp_path / 'lock'}: no space left" in ran.stderr


def test_a_lock_that_a_full_disk_has_no_room_for_is_a_sentence(tmp_path, monkeypatch):
    def refuse(path: str, *_: int) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(StorageError, match=f"{tmp_path / 'lock'}: no space left"), exclusive_lock(tmp_path / "lock"):
        pass


def test_a_lock_is_waited_for(tmp_path):
    held = contextlib.ExitStack()
    held.enter_context(exclusive_lock(tmp_path / "lock"))
    threading.Timer(0.3, held.close).start()
    with exclusive_lock(tmp_path / "lock", wait_s=60):
        assert (tmp_path / "lock").read_text() == str(os.getpid())


def test_a_lock_is_free_again_when_its_holder_was_killed(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from curricula.durable import exclusive_lock\n"
        "with exclusive_lock(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)\n"
    )
    with exclusive_lock(tmp_path / "lock"):  # an earlier holder, which the message must not name
        pass
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "lock")], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(UserError, match=rf"in use by process {holder.pid};"), exclusive_lock(tmp_path / "lock"):
        pass
    holder.kill()
    holder.wait()
    with exclusive_lock(tmp_path / "lock"):
        pass


@pytest.fixture
def usual_umask():
    old = os.umask(0o022)
    yield
    os.umask(old)


def permissions(path: Path) -> str:
    return f"{path.stat().st_mode & 0o777:o}"


def test_what_is_made_is_for_the_owner_alone_and_what_was_there_keeps_its_permissions(tmp_path, usual_umask):
    tmp_path.chmod(0o755)
    (tmp_path / "there").mkdir()
    (tmp_path / "there/rows.jsonl").touch()
    for folder in (tmp_path / "there", tmp_path / "a/b/c"):
        append_jsonl(folder / "rows.jsonl", [{"n": 1}])
        write_json(folder / "value.json", 1)
        with exclusive_lock(folder / "lock"):
            pass
    assert {permissions(path) for path in (tmp_path / "a").rglob("*") if path.is_file()} == {"600"}
    assert {permissions(tmp_path / name) for name in ("a", "a/b", "a/b/c")} == {"700"}
    assert (permissions(tmp_path), permissions(tmp_path / "there")) == ("755", "755")
    assert permissions(tmp_path / "there/rows.jsonl") == "644"
    assert permissions(tmp_path / "there/value.json") == "600"


def test_a_shared_folder_its_lock_and_its_files_have_the_permissions_of_the_umask(tmp_path, usual_umask):
    with exclusive_lock(tmp_path / "shared/data/lock", shared=True):
        write_json(tmp_path / "shared/data/record.json", 1, shared=True)
    found = [permissions(tmp_path / name) for name in ("shared", "shared/data", "shared/data/lock", "shared/data/record.json")]
    assert found == ["755", "755", "644", "644"]


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file/below", Path("/proc/nowhere/below")):
        with pytest.raises(OSError):
            make_folder(path)
