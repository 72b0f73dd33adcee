"""Shards on a node's own disk: the copy holds what the shared folder holds, at any time and whoever copies."""

import errno
import multiprocessing
import os
import shutil
from concurrent.futures import ProcessPoolExecutor

import pytest
from shard_folders import write_source

from curricula import durable
from curricula.durable import exclusive_lock
from curricula.errors import UserError
from curricula.fencing import InUse
from curricula.jobs.stages import pretrain
from curricula.jobs.stages.pretrain import SCRATCH, near


@pytest.fixture
def shards(tmp_path):
    for name in ("web", "safe", "unused"):
        write_source(tmp_path / "shards" / name, [50, 70])
    return tmp_path / "shards"


@pytest.fixture
def disk(tmp_path, monkeypatch):
    (tmp_path / "disk of the node").mkdir()
    monkeypatch.setenv("NODE_DISK", str(tmp_path / "disk of the node"))
    monkeypatch.setenv(SCRATCH, "$NODE_DISK")
    return tmp_path / "disk of the node"


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_without_a_scratch_folder_the_shared_shards_are_read(shards, monkeypatch):
    monkeypatch.delenv(SCRATCH, raising=False)
    assert near(shards, ["web"]) == shards


def test_the_sources_in_use_are_copied_to_a_private_folder(shards, disk):
    copies = near(shards, ["web", "safe"])
    assert disk in copies.parents and {path.name for path in copies.iterdir()} == {"web", "safe", "lock"}
    assert contents(copies / "web") == contents(shards / "web")
    assert copies.parent.stat().st_mode & 0o777 == 0o700


def test_what_was_tokenised_anew_or_cut_short_is_copied_again_and_nothing_else(shards, disk):
    copies = near(shards, ["web", "safe"])
    untouched = (copies / "safe/00000.bin").stat().st_ino
    os.utime(copies / "safe/00000.bin", (0, int((shards / "safe/00000.bin").stat().st_mtime)))  # its disk knows only seconds
    shutil.rmtree(shards / "web")
    write_source(shards / "web", [90])
    (copies / "safe/00001.bin").write_bytes(b"torn")
    near(shards, ["web", "safe"])
    assert contents(copies / "web") == contents(shards / "web")
    assert contents(copies / "safe") == contents(shards / "safe")
    assert (copies / "safe/00000.bin").stat().st_ino == untouched


def test_copies_that_no_start_has_used_for_a_month_are_deleted(shards, disk, tmp_path, monkeypatch):
    old, recent, own = (near(shutil.copytree(shards, tmp_path / name / "shards"), ["web"]) for name in ("old", "recent", "own"))
    for copies in (old, own):
        os.utime(copies / "lock", (1.0, 1.0))
    with exclusive_lock(old / "lock"):  # somebody is about to read them
        os.utime(old / "lock", (1.0, 1.0))
        assert near(tmp_path / "own/shards", ["web"]) == own
    assert old.exists()
    os.utime(old / "lock", (1.0, 1.0))
    remove = shutil.rmtree

    def remove_alone(folder, **options):
        with pytest.raises(InUse), exclusive_lock(old / "lock"):  # nobody begins to read what is being deleted
            pass
        remove(folder, **options)

    monkeypatch.setattr(pretrain.shutil, "rmtree", remove_alone)
    assert near(tmp_path / "own/shards", ["web"]) == own
    assert not old.exists() and contents(recent / "web") == contents(own / "web") == contents(shards / "web")


def test_processes_of_one_node_copy_once_and_all_read_the_copy(shards, disk):
    with ProcessPoolExecutor(4, multiprocessing.get_context("fork")) as pool:
        found = list(pool.map(near, [shards] * 4, [["web"]] * 4))
    assert len(set(found)) == 1 and contents(found[0] / "web") == contents(shards / "web")


def test_a_copy_that_was_killed_halfway_is_never_read(shards, disk, monkeypatch):
    real = shutil.copyfile

    def killed(source, target):
        real(source, target)
        if source.name == "00001.bin":
            os.truncate(target, 10)
            raise KeyboardInterrupt

    monkeypatch.setattr(pretrain.shutil, "copyfile", killed)
    with pytest.raises(KeyboardInterrupt):
        near(shards, ["web"])
    monkeypatch.undo()
    os.environ[SCRATCH] = str(disk)
    try:
        assert contents(near(shards, ["web"]) / "web") == contents(shards / "web")
    finally:
        del os.environ[SCRATCH]


def test_a_copy_that_takes_long_is_finished_by_a_later_start(shards, disk, monkeypatch, caplog):
    monkeypatch.setattr(pretrain, "COPY_S", -1.0)
    assert near(shards, ["web"]) == shards and "the next continues to copy" in caplog.text
    monkeypatch.setattr(pretrain, "COPY_S", 60.0)
    assert contents(near(shards, ["web"]) / "web") == contents(shards / "web")


def test_a_disk_that_is_too_small_is_left_alone(shards, disk, monkeypatch, caplog):
    monkeypatch.setattr(pretrain.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 90, 10))
    assert near(shards, ["web"]) == shards
    assert "this node reads the shared ones" in caplog.text


def test_on_a_full_disk_old_copies_make_room_and_where_there_are_none_the_shared_shards_are_read(
    shards, disk, tmp_path, monkeypatch, caplog
):
    old, make = near(shutil.copytree(shards, tmp_path / "old/shards"), ["web"]), durable.make_folder

    def make_if_there_is_room(folder, *shared):
        if old.exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
        make(folder, *shared)

    monkeypatch.setattr(durable, "make_folder", make_if_there_is_room)
    assert near(shards, ["web"]) == shards and "no space left" in caplog.text
    os.utime(old / "lock", (1.0, 1.0))
    assert contents(near(shards, ["web"]) / "web") == contents(shards / "web") and not old.exists()


def test_a_disk_that_fills_up_while_shards_are_copied_gets_its_room_back(shards, disk, monkeypatch):
    def fill(source, target):
        target.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))

    monkeypatch.setattr(pretrain.shutil, "copyfile", fill)
    assert near(shards, ["web"]) == shards
    assert [path.name for path in disk.rglob("*") if path.is_file()] == ["lock"]


def test_a_missing_folder_and_one_made_by_another_user_are_refused(shards, disk, monkeypatch):
    copies = near(shards, ["web"])
    copies.parent.chmod(0o777)
    with pytest.raises(UserError, match="users other than its owner can write there"):
        near(shards, ["web"])
    monkeypatch.setenv(SCRATCH, "/no/such/disk")
    with pytest.raises(UserError, match="node_scratch: /no/such/disk is not a folder on"):
        near(shards, ["web"])
