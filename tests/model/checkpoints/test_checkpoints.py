import contextlib
import dataclasses
import errno
import json
import math
import multiprocessing
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from forked import ended, ranks
from random_batches import SMALL, RandomBatches, numbers, train_job
from torch.distributed.checkpoint.filesystem import FileSystem

from curricula.durable import read_json, read_jsonl, write_json
from curricula.errors import StorageError, UserError
from curricula.fencing import Superseded, generation
from curricula.model.checkpoints import checkpoint, folder, writer
from curricula.model.checkpoints.checkpoint import _rectangles
from curricula.model.checkpoints.folder import identity, latest_checkpoint, read_info, step_folder
from curricula.model.config import SpikeGuard
from curricula.model.megatron import CheckpointingException, ShardedTensor, distrib_optimizer, megatron_random
from curricula.model.runtime.reporting import read_metrics
from curricula.model.train import train

BRANCH_POINTS: dict[str, Any] = {"save_interval_steps": 2, "keep_last": 2, "keep_steps": (3, 6)}
TAKE_OVER = """
import sys; from pathlib import Path; from curricula.fencing import generation
with generation(Path(sys.argv[1])): pass
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("trained")
    train(train_job(out, stop_step=4), RandomBatches())
    return out


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An undisturbed run with branch points at steps 3 and 6."""
    out = tmp_path_factory.mktemp("whole")
    train(train_job(out, **BRANCH_POINTS), RandomBatches())
    return out


@pytest.fixture
def copy(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "copy")
    return tmp_path / "copy"


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@contextlib.contextmanager
def no_file_larger_than(size: int):
    """As on a full disk: the kernel refuses to write more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_checkpoint_says_what_it_holds(trained):
    folder = latest_checkpoint(trained / "checkpoints")
    info = read_info(folder)
    assert (info.step, info.consumed_samples, info.consumed_tokens) == (4, 32, 512)
    assert info.model == SMALL
    assert info.full and info.precision == "float32"
    assert info.data["key"] == "safe"
    assert (folder / "metadata.json").exists()
    assert set(info.versions) == {"python", "torch", "megatron-core", "curricula"}


def test_the_last_checkpoints_and_the_branch_points_are_kept(whole):
    names = sorted(path.name for path in (whole / "checkpoints").iterdir())
    assert names == ["latest", "step_00000003", "step_00000006", "step_00000010", "step_00000012"]


def test_a_checkpoint_of_another_model_is_refused_with_the_fields_that_differ(trained, tmp_path):
    other = msgspec.structs.replace(SMALL, ffn=96, rope_base=5000.0)
    differs = {"init_from": "model.ffn was 64, now 96; model.rope_base was 10000", "init_weights": "ffn 64, not 96; rope_base"}
    for start, said in differs.items():
        with pytest.raises(UserError, match=rf"another model \({said}"):
            train(train_job(tmp_path, model=other, **{start: latest_checkpoint(trained / "checkpoints")}), RandomBatches())


def test_training_that_goes_on_with_another_torch_says_so(trained, tmp_path, caplog):
    start = shutil.copytree(latest_checkpoint(trained / "checkpoints"), tmp_path / "start" / "step_00000004")
    train(train_job(tmp_path / "same", init_from=start, stop_step=5), RandomBatches())
    assert "torch was" not in caplog.text
    record = read_json(start / "checkpoint.json")
    write_json(start / "checkpoint.json", {**record, "versions": {**record["versions"], "torch": "1.0"}})
    train(train_job(tmp_path / "other", init_from=start, stop_step=5), RandomBatches())
    assert f"{start}: training continues with other software" in caplog.text
    assert f"torch was 1.0, now {torch.__version__}" in caplog.text


def test_weights_alone_start_a_new_run_at_step_0(trained, tmp_path):
    weights = latest_checkpoint(trained / "checkpoints")
    longer = msgspec.structs.replace(SMALL, sequence_length=32, init_std=0.1)
    train(train_job(tmp_path, model=longer, init_weights=weights, stop_step=1), RandomBatches(key="tuning"))
    assert read_info(latest_checkpoint(tmp_path / "checkpoints")).step == 1
    train(train_job(tmp_path, model=longer, init_weights=weights, stop_step=2), RandomBatches(key="tuning"))
    assert read_info(latest_checkpoint(tmp_path / "checkpoints")).step == 2


def test_tuning_does_not_continue_when_the_weights_it_began_with_have_changed(trained, tmp_path):
    train(train_job(tmp_path / "other", stop_step=4, seed=1), RandomBatches())
    first, second = (latest_checkpoint(out / "checkpoints") for out in (trained, tmp_path / "other"))
    train(train_job(tmp_path / "tune", init_weights=first, stop_step=1), RandomBatches(key="tuning"))
    with pytest.raises(UserError, match="recipe.init_weights was 'step 4 of "):
        train(train_job(tmp_path / "tune", init_weights=second), RandomBatches(key="tuning"))


@pytest.mark.parametrize("name", ["__0_0.distcp", ".metadata", "metadata.json"])
def test_a_missing_or_truncated_file_is_named(copy, name):
    path = copy / "checkpoints/step_00000004" / name
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    with pytest.raises(UserError, match=rf"{name}: has \d+ bytes of {len(whole)}; delete step_00000004"):
        train(train_job(copy), RandomBatches())
    path.unlink()
    with pytest.raises(UserError, match=rf"{name}: missing; delete step_00000004"):
        train(train_job(copy), RandomBatches())


@pytest.mark.parametrize("name", ["__0_0.distcp", ".metadata", "metadata.json"])
def test_a_flipped_bit_is_found(copy, name):
    start = copy / "checkpoints/step_00000004"
    flip_a_bit(start / name)
    assert sum(folder.damaged_file(start, read_info(start), share, 3) is not None for share in range(3)) == 1
    with pytest.raises(UserError, match=rf"{name}: damaged, .* written; delete step_00000004"):
        train(train_job(copy), RandomBatches())
    with pytest.raises(UserError, match=rf"{name}: damaged"):
        train(train_job(copy / "new", init_from=start), RandomBatches())
    assert not start.exists()  # what trained it has to make it again


def test_a_checkpoint_under_the_name_of_another_step_is_refused(copy):
    os.rename(copy / "checkpoints/step_00000004", copy / "checkpoints/step_00000006")
    with pytest.raises(UserError, match="step_00000006: holds step 4, so it was renamed"):
        train(train_job(copy / "new", init_from=copy / "checkpoints/step_00000006"), RandomBatches())


def test_a_damaged_checkpoint_is_named_where_it_cannot_be_set_aside(copy, monkeypatch):
    start = copy / "checkpoints/step_00000004"
    flip_a_bit(start / "__0_0.distcp")

    def of_another_user(*_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(start))

    monkeypatch.setattr(os, "rename", of_another_user)
    with pytest.raises(UserError, match="__0_0.distcp: damaged"):
        train(train_job(copy / "new", init_from=start), RandomBatches())


def test_training_falls_back_to_the_checkpoint_before_a_damaged_one_and_says_so(copy, whole, caplog):
    train(train_job(copy, stop_step=6), RandomBatches())
    checkpoints = copy / "checkpoints"
    flip_a_bit(checkpoints / "step_00000006/__0_0.distcp")
    seen = []
    train(train_job(copy, stop_step=7), RandomBatches(), lambda *_, **__: seen.append(latest_checkpoint(checkpoints).name))
    assert seen[0] == "step_00000004"  # already before the next save
    assert "__0_0.distcp: damaged" in caplog.text and "continuing from step_00000004" in caplog.text
    (checkpoints / "step_00000007/checkpoint.json").write_text("[1, 2]")
    train(train_job(copy), RandomBatches())
    assert "checkpoint.json: not a checkpoint record" in caplog.text
    assert numbers(copy) == numbers(whole)
    assert sorted(path.name for path in checkpoints.iterdir()) == ["latest", "step_00000004", "step_00000012"]


@pytest.mark.parametrize("lost", [pytest.param("missing", marks=pytest.mark.slow), "damaged"])
def test_a_lost_branch_point_is_made_again_and_what_came_after_it_stays(whole, tmp_path, caplog, lost):
    caplog.set_level("INFO")
    run = shutil.copytree(whole, tmp_path / "run")
    recorded, checkpoints = numbers(run), run / "checkpoints"
    kept = {path.name: read_info(path) for path in checkpoints.glob("step_*")}
    if lost == "missing":
        shutil.rmtree(checkpoints / "step_00000006")
    else:
        flip_a_bit(checkpoints / "step_00000006/__0_0.distcp")
    train(train_job(run, **BRANCH_POINTS, stop_step=6), RandomBatches())
    assert "training up to step 6 again" in caplog.text and "beginning with" in caplog.text
    assert ("delete step_00000006" in caplog.text) is (lost == "damaged")  # a new arm may leave where none was kept
    assert {path.name: read_info(path).files.keys() for path in checkpoints.glob("step_*")} == {
        name: info.files.keys() for name, info in kept.items()
    }
    assert latest_checkpoint(checkpoints).name == "step_00000012"
    assert numbers(run) == recorded
    branch = train_job(tmp_path / "branch", init_from=checkpoints / "step_00000006")
    train(branch, RandomBatches())
    assert numbers(tmp_path / "branch") == recorded[6:]


def test_training_continues_while_a_checkpoint_is_written_and_latest_moves_once_it_is(tmp_path, monkeypatch):
    stored, may_end = writer.stored_file, tmp_path / "may end"

    def stored_when_allowed(path):
        while not may_end.exists():
            time.sleep(0.01)
        return stored(path)

    def allow_at_7(done, total, **figures):
        if done == 7:
            assert not list((tmp_path / "checkpoints").glob("step_*"))
            for _ in range(12_000):  # the writing process yields to all others
                if list((tmp_path / "checkpoints").glob(".step_00000003.aside/*.distcp")):
                    may_end.touch()
                    break
                time.sleep(0.01)
            assert may_end.exists()
        while done == 8 and multiprocessing.active_children():
            time.sleep(0.01)
        assert done < 10 or latest_checkpoint(tmp_path / "checkpoints").name == "step_00000003"

    monkeypatch.setattr(writer, "stored_file", stored_when_allowed)
    train(train_job(tmp_path, keep_steps=(3,), save_interval_steps=100), RandomBatches(), allow_at_7)
    monkeypatch.undo()
    train(train_job(tmp_path / "branch", init_from=tmp_path / "checkpoints/step_00000003"), RandomBatches())
    assert numbers(tmp_path / "branch") == numbers(tmp_path)[3:]


def test_a_writer_that_hangs_at_its_start_is_replaced(tmp_path, monkeypatch, caplog):
    """As when another thread held a lock at the fork."""
    write, first = writer._write, tmp_path / "first"

    def hang_once(*args) -> None:
        try:
            first.touch(exist_ok=False)
        except FileExistsError:
            write(*args)
        else:
            time.sleep(600)

    monkeypatch.setattr(writer, "_write", hang_once)
    monkeypatch.setattr(writer, "BEGIN_S", 1.0)
    train(train_job(tmp_path / "run", stop_step=2), RandomBatches())
    assert "did not begin within 1 s" in caplog.text
    assert read_info(latest_checkpoint(tmp_path / "run/checkpoints")).step == 2


def test_a_writer_that_never_begins_is_given_up_in_a_sentence(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(writer, "_write", lambda *_: time.sleep(600))
    monkeypatch.setattr(writer, "BEGIN_S", 0.05)
    with pytest.raises(StorageError, match="step_00000002: .* .no process to write it began in 5 attempts.; earlier"):
        train(train_job(tmp_path, stop_step=2), RandomBatches())
    assert latest_checkpoint(tmp_path / "checkpoints") is None and not multiprocessing.active_children()
    assert caplog.text.count("did not begin") == 5


def test_a_run_that_another_process_took_over_saves_nothing_more(tmp_path):
    """As when two nodes' locks do not see each other, and the first wakes up after the second has begun."""
    lock, job, taken = tmp_path / "lock", train_job(tmp_path, save_interval_steps=5), []
    lock.touch()

    def take_over_once_saved(done, total, **figures):
        if not taken and latest_checkpoint(tmp_path / "checkpoints"):
            taken.append(done)
            subprocess.run([sys.executable, "-c", TAKE_OVER, str(lock)], check=True)
        elif done > 5:
            time.sleep(0.2)  # the save is written in the background

    with pytest.raises(Superseded), generation(lock):
        train(job, RandomBatches(), take_over_once_saved)
    assert latest_checkpoint(tmp_path / "checkpoints").name == "step_00000005"
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == list(range(1, taken[0] + 1))
    assert read_info(tmp_path / "checkpoints/step_00000005").generation == 1
    with generation(lock):
        train(job, RandomBatches())
    assert read_info(latest_checkpoint(tmp_path / "checkpoints")).generation == 3


def test_an_older_writer_neither_publishes_its_save_nor_touches_that_of_the_newer(tmp_path):
    lock, job = tmp_path / "lock", train_job(tmp_path / "run", stop_step=2, save_interval_steps=1)
    lock.touch()
    aside = tmp_path / "run/checkpoints/.step_00000001.aside-2"

    def take_over_while_saving(*_):
        subprocess.run([sys.executable, "-c", TAKE_OVER, str(lock)], check=True)
        assert [path.name for path in aside.parent.iterdir()] == [".step_00000001.aside-1"]
        aside.mkdir()
        (aside / "__0_0.distcp").write_text("of the newer")

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Superseded), generation(lock):
        patch.setattr("curricula.model.train.Trainer._finish_save", lambda trainer: (
            trainer.saver.is_unfinished and take_over_while_saving(), trainer.saver.finish()))  # fmt: skip
        train(job, RandomBatches())
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == [aside.name]
    assert (aside / "__0_0.distcp").read_text() == "of the newer"


def test_random_generators_continue_where_they_were(tmp_path):
    def states():
        return torch.cat([torch.get_rng_state(), *megatron_random.get_cuda_rng_tracker().get_states().values()])

    def draw(done, total, **figures):
        torch.rand(3)
        with megatron_random.get_cuda_rng_tracker().fork():
            torch.rand(3)

    torch.manual_seed(7)
    train(train_job(tmp_path, stop_step=4), RandomBatches(), draw)
    expected = states()
    torch.manual_seed(0)
    found = []
    train(train_job(tmp_path, stop_step=5), RandomBatches(), lambda done, total, **_: found.append(states()))
    assert torch.equal(found[0], expected)


def test_generators_of_another_kind_of_device_are_not_taken_over(tmp_path):
    """Transformer Engine's attention takes the states that Megatron-core keeps, and those of a GPU have 16 bytes."""

    def as_on_a_gpu(*_, **__):
        megatron_random.get_cuda_rng_tracker().set_states({"model-parallel-rng": torch.zeros(16, dtype=torch.uint8)})

    def as_in_attention(*_, **__):
        with megatron_random.get_cuda_rng_tracker().fork():
            pass

    train(train_job(tmp_path, stop_step=4), RandomBatches(), as_on_a_gpu)
    record = latest_checkpoint(tmp_path / "checkpoints") / "checkpoint.json"
    write_json(record, {**read_json(record), "precision": "bfloat16"})
    train(train_job(tmp_path, stop_step=5), RandomBatches(), as_in_attention)
    assert latest_checkpoint(tmp_path / "checkpoints") == tmp_path / "checkpoints/step_00000005"


def test_a_record_without_a_recipe_is_named(copy):
    record = copy / "checkpoints/step_00000004/checkpoint.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "recipe": {"schedule": 3}}))
    with pytest.raises(UserError, match="step_00000004: its record has no usable recipe"):
        train(train_job(copy), RandomBatches())


@pytest.mark.parametrize(
    ("lacking", "name"), [((), "step 4 of 0a65fb7c211bc664"), (("init_std", "tied"), "step 4 of 1629882c37f52123")]
)
def test_a_training_keeps_its_name_when_settings_come_that_its_record_lacks(tmp_path, lacking, name):
    model = {key: value for key, value in msgspec.to_builtins(SMALL).items() if key not in lacking}
    counts = {"step": 4, "consumed_samples": 32, "consumed_tokens": 512}
    record = {**counts, "model": model, "precision": "float32", "full": True, "data": {"key": "safe"}, "recipe": {"seed": 0}}
    write_json(tmp_path / "checkpoint.json", record)
    assert identity(tmp_path) == name


def test_a_run_whose_record_lacks_later_settings_goes_on_with_their_defaults(tmp_path):
    job = train_job(tmp_path, stop_step=2, spike_guard=SpikeGuard(window=4))
    train(job, RandomBatches())
    path = latest_checkpoint(tmp_path / "checkpoints") / "checkpoint.json"
    record = read_json(path)
    for part, later in (
        (record["model"], "rms_norm_eps"),
        (record["recipe"]["optimizer"], "clip_grad"),
        (record["recipe"]["schedule"], "final_fraction"),
        (record["recipe"]["spike_guard"], "sigmas"),
    ):
        del part[later]
    write_json(path, record)
    train(dataclasses.replace(job, stop_step=3), RandomBatches())
    assert read_info(latest_checkpoint(tmp_path / "checkpoints")).step == 3


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"../../etc", None], ids=["empty", "bytes", "path", "gone"])
def test_without_a_readable_pointer_the_newest_checkpoint_serves(copy, content):
    pointer = copy / "checkpoints/latest"
    step_folder(copy / "checkpoints", 2).mkdir()
    pointer.unlink() if content is None else pointer.write_bytes(content)
    assert latest_checkpoint(copy / "checkpoints").name == "step_00000004"
    train(train_job(copy, stop_step=5), RandomBatches())
    assert [row["step"] for row in read_metrics(copy / "metrics.jsonl")] == [1, 2, 3, 4, 5]
    assert pointer.read_text() == "step_00000005\n"


def test_a_pointer_to_nothing_is_named_and_training_continues_from_an_older_checkpoint(copy, tmp_path):
    with pytest.raises(UserError, match="step_00000099: no such checkpoint"):
        train(train_job(tmp_path / "new", init_from=copy / "checkpoints/step_00000099"), RandomBatches())
    (copy / "checkpoints/latest").write_text("step_00000099\n")
    with pytest.raises(UserError, match="latest: names step_00000099, which is not there"):
        latest_checkpoint(copy / "checkpoints")
    train(train_job(copy, stop_step=5), RandomBatches())
    assert latest_checkpoint(copy / "checkpoints").name == "step_00000005"


def test_a_run_that_was_set_back_replaces_what_it_had_saved_later(copy, whole):
    train(train_job(copy, stop_step=6, save_interval_steps=1, keep_last=3), RandomBatches())
    (copy / "checkpoints/latest").write_text("step_00000004\n")
    for stop, kept in ((5, [4, 5]), (12, [6, 12])):
        train(train_job(copy, stop_step=stop, keep_steps=(6,)), RandomBatches())
        assert [folder.step_of(path) for path in sorted((copy / "checkpoints").glob("step_*"))] == kept
        assert read_info(latest_checkpoint(copy / "checkpoints")).step == stop
    assert numbers(copy) == numbers(whole)


def test_a_run_whose_only_checkpoint_was_deleted_begins_again(copy, whole):
    """The message about a damaged one says to delete it; `latest` still names it."""
    shutil.rmtree(copy / "checkpoints/step_00000004")
    train(train_job(copy), RandomBatches())
    assert latest_checkpoint(copy / "checkpoints").name == "step_00000012"
    assert numbers(copy) == numbers(whole)


@pytest.mark.parametrize("line", ["[]", "3", '{"loss": 1.0}', '{"step": "four"}'])
def test_a_line_that_is_not_a_metrics_line_is_named(copy, line):
    with open(copy / "metrics.jsonl", "a") as file:
        file.write(line + "\n")
    with pytest.raises(UserError, match="metrics.jsonl: line 5 is not a metrics line"):
        train(train_job(copy), RandomBatches())


def test_without_space_nothing_half_written_stays_and_the_old_checkpoint_serves(copy):
    files = sorted(path.name for path in (copy / "checkpoints").iterdir())
    with no_file_larger_than(64 * 1024), pytest.raises(StorageError, match=r"could not be written \(File too large\)"):
        train(train_job(copy, stop_step=6), RandomBatches())
    assert sorted(path.name for path in (copy / "checkpoints").iterdir()) == files
    train(train_job(copy, stop_step=6), RandomBatches())
    assert latest_checkpoint(copy / "checkpoints").name == "step_00000006"


def test_without_space_for_a_metrics_line_training_says_so_and_goes_on_later(tmp_path, whole):
    with no_file_larger_than(1500), pytest.raises(StorageError, match="metrics.jsonl: no space left on the device"):
        train(train_job(tmp_path), RandomBatches())
    train(train_job(tmp_path), RandomBatches())
    assert numbers(tmp_path) == numbers(whole)


@pytest.mark.parametrize("lost", [".metadata", "metadata.json"])
def test_a_save_that_has_not_arrived_whole_is_not_published(copy, lost):
    checkpoints = copy / "checkpoints"
    aside = shutil.copytree(checkpoints / "step_00000004", checkpoints / ".step_00000006.aside")
    info = read_info(aside)
    (aside / "checkpoint.json").unlink()
    (aside / lost).unlink()
    written = {name: file for name, file in info.files.items() if name.endswith(".distcp")}
    with pytest.raises(UserError, match="incomplete"):
        folder.publish(aside, checkpoints / "step_00000006", info, written)
    assert latest_checkpoint(checkpoints).name == "step_00000004" and not (checkpoints / "step_00000006").exists()


def test_a_save_killed_half_way_is_swept_away_by_the_next_and_a_copy_under_a_name_of_the_users_own_stays(copy):
    backup = shutil.copytree(copy / "checkpoints/step_00000004", copy / "checkpoints/step_00000004.bak")
    leftovers = [copy / f"checkpoints/.{name}.aside" for name in ("step_00000005", "step_00000012")]  # the second is next
    for leftover in leftovers:
        leftover.mkdir()
        (leftover / "__1_0.distcp").write_bytes(b"half")  # of a second process
    train(train_job(copy), RandomBatches())
    assert not any(leftover.exists() for leftover in leftovers) and backup.exists()
    assert "__1_0.distcp" not in read_info(latest_checkpoint(copy / "checkpoints")).files


def test_a_finished_run_that_was_killed_in_its_last_prune_is_tidied_by_the_next_start(copy):
    hidden = folder.set_aside(shutil.copytree(copy / "checkpoints/step_00000004", copy / "checkpoints/step_00000002"))
    train(train_job(copy, stop_step=4), RandomBatches())
    assert not hidden.exists() and (copy / "checkpoints/step_00000004").exists()


def test_a_checkpoint_of_a_later_version_is_neither_skipped_nor_deleted(copy):
    train(train_job(copy, stop_step=6), RandomBatches())
    record = copy / "checkpoints/step_00000006/checkpoint.json"
    later = read_json(record)
    write_json(record, {**later, "model": {**later["model"], "qk_norm": True}})
    with pytest.raises(UserError, match="checkpoint.json: written by a later version .*qk_norm.*; use that version, or delete"):
        train(train_job(copy), RandomBatches())
    write_json(record, later)
    train(train_job(copy, stop_step=7), RandomBatches())
    assert read_jsonl(copy / "starts.jsonl")[-1]["resumed_step"] == 6


@pytest.mark.parametrize("key", ["layers", "rope_base"])
def test_a_record_with_a_damaged_key_is_not_taken_for_one_of_a_later_version(copy, key):
    train(train_job(copy, stop_step=6), RandomBatches())
    record = copy / "checkpoints/step_00000006/checkpoint.json"
    record.write_text(record.read_text().replace(f'"{key}"', f'"{key[:-1]}%"'))
    train(train_job(copy, stop_step=7), RandomBatches())
    assert read_jsonl(copy / "starts.jsonl")[-1]["resumed_step"] == 4


def test_a_checkpoint_that_cannot_be_deleted_yet_ends_no_training(tmp_path, monkeypatch):
    """On NFS a file that a process of the node has open keeps its folder."""

    def fail(path, **_):
        raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), str(path))

    for step in (1, 2, 3):
        step_folder(tmp_path, step).mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(os, "rmdir", fail)
        folder.prune(tmp_path, 1, ())
        assert folder.checkpoints_to_resume(tmp_path) == [step_folder(tmp_path, 3)]
        step_folder(tmp_path, 2).mkdir()
        folder.prune(tmp_path, 1, ())
    folder.prune(tmp_path, 1, ())
    assert list(tmp_path.iterdir()) == [step_folder(tmp_path, 3)]


@pytest.mark.parametrize(
    ("owner", "reader", "name", "number"),
    [
        (folder, "stored_file", "__0_0.distcp", errno.EIO),
        (Path, "read_text", "checkpoint.json", errno.EIO),
        (folder, "stored_file", "__0_0.distcp", errno.ENOENT),
        (FileSystem, "create_stream", "__0_0.distcp", errno.ESTALE),
        (FileSystem, "create_stream", "__0_0.distcp", errno.ENOENT),
    ],
)
def test_a_disk_that_cannot_be_read_costs_no_checkpoint(copy, monkeypatch, owner, reader, name, number):
    files = sorted(path.name for path in (copy / "checkpoints").iterdir())
    read = getattr(owner, reader)

    def unreadable(*args, **options):
        path = next(arg for arg in args if isinstance(arg, Path))
        if path.name == name:
            raise OSError(number, os.strerror(number), str(path))
        return read(*args, **options)

    monkeypatch.setattr(owner, reader, unreadable)
    with pytest.raises(StorageError, match=rf"{name}: cannot be read \({os.strerror(number)}\)") as raised:
        train(train_job(copy, stop_step=5), RandomBatches())
    assert raised.value.exit_code == os.EX_IOERR
    monkeypatch.undo()
    assert sorted(path.name for path in (copy / "checkpoints").iterdir()) == files


@pytest.mark.forked
def test_what_the_main_process_cannot_read_stops_all_processes_with_one_sentence(tmp_path, free_port):
    (tmp_path / "checkpoints/latest").mkdir(parents=True)
    argument = json.dumps({"out": str(tmp_path), "batches": {"total_steps": 3}})
    for status, said in ended(ranks("train_in_child.py", argument, tmp_path, 2, free_port)):
        assert status == 1 and "StorageError" in said and "latest: cannot be read (Is a directory)" in said, said


def test_a_save_gathers_no_state_from_other_ranks(tmp_path, monkeypatch):
    def gathering(*args, **kwargs):
        raise AssertionError("20 GB of a 1.7B model, on every rank")

    monkeypatch.setattr(distrib_optimizer.DistributedOptimizer, "get_parameter_state_dp_zero", gathering)
    train(train_job(tmp_path, stop_step=2), RandomBatches())
    train(train_job(tmp_path, stop_step=3), RandomBatches())
    assert step_folder(tmp_path / "checkpoints", 3).is_dir()


@pytest.mark.parametrize("shape", [(4, 6), (7,)], ids=str)
def test_ranges_of_a_parameter_are_stored_as_rectangles_that_cover_it_once(shape):
    whole = torch.arange(math.prod(shape), dtype=torch.float32)
    for first in range(whole.numel() + 1):
        stored = torch.full((2, *shape), -1.0)
        for begin, end in ((0, first), (first, whole.numel())):
            piece = ShardedTensor("w", None, whole.dtype, shape, (2, *shape), (1,) + (0,) * len(shape), None, (0, 0, 0), 1)
            for part in _rectangles(piece, whole[begin:end], begin, "w"):
                place = tuple(slice(o, o + n) for o, n in zip(part.global_offset, part.local_shape))
                assert (stored[place] == -1).all()
                stored[place] = part.data
        assert torch.equal(stored[1], whole.view(shape)) and (stored[0] == -1).all()
    for elsewhere in (-5, whole.numel() + 2):  # in the other half of gate and up
        assert not list(_rectangles(piece, whole[:3], elsewhere, "w"))


@pytest.mark.parametrize("cause", [None, FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "of_another_version.json")])
def test_an_intact_checkpoint_that_cannot_be_read_is_not_to_be_deleted(copy, monkeypatch, cause):
    def other_layout(*args, **kwargs):
        raise CheckpointingException("Missing key in checkpoint state_dict: decoder.final_layernorm._extra_state.") from cause

    monkeypatch.setattr(checkpoint.dist_checkpointing, "load", other_layout)
    with pytest.raises(UserError, match="its files are intact but cannot be read here .*; keep it, .* torch ") as raised:
        train(train_job(copy), RandomBatches())
    assert "delete" not in str(raised.value)


def test_a_run_goes_on_from_a_checkpoint_in_megatron_cores_own_layout(tmp_path, whole):
    """As 0.1.0 saved them: there the step is in the groups."""

    def laid_out(optimizer, model_state):
        return optimizer.sharded_state_dict(model_state, is_loading=False, metadata=dict(checkpoint.LAYOUT))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "_optimizer_state", laid_out)
        train(train_job(tmp_path, stop_step=4), RandomBatches())
    train(train_job(tmp_path), RandomBatches())
    assert numbers(tmp_path) == numbers(whole)
