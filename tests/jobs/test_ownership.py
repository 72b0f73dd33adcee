"""Whose run folders are run and written to, and what a colleague may do with another's."""

import contextlib
import multiprocessing.popen_fork
import os
import shutil
import struct
import subprocess
import tempfile
from pathlib import Path

import pytest
from paths import LAB_SCRIPTS, STUDIES
from run_folders import fail, finish, new_run
from small_studies import demo_file
from users import acting_as, as_root, in_a_container

from curricula import durable
from curricula.durable import TEAM, append_jsonl, exclusive_lock, read_jsonl, require_ours, write_json, write_text
from curricula.errors import StorageError, UsageError, UserError
from curricula.jobs import local
from curricula.jobs.cli.main import main
from curricula.jobs.element import run_element
from curricula.jobs.run import Run
from curricula.jobs.slurm.snapshot import take_snapshot

pytestmark = pytest.mark.usefixtures("svg_alone")

ANN, BOB, EVE, LAB = 64001, 64002, 64003, 64100


@pytest.fixture(autouse=True)
def usual_umask():
    old = os.umask(0o022)
    yield
    os.umask(old)


@pytest.fixture
def runs():
    """A folder in which anyone may make run folders."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o1777)
    yield folder
    shutil.rmtree(folder)


def contents(root: Path) -> dict[Path, tuple[int, int]]:
    return {path: (path.lstat().st_mtime_ns, path.lstat().st_mode) for path in [root, *root.rglob("*")]}


def give(root: Path, user: int) -> None:
    for path in [root, *root.rglob("*")]:
        os.chown(path, user, user)


@as_root
def test_a_foreign_run_folder_is_neither_run_nor_changed(tmp_path, capsys):
    run, jobs = new_run(tmp_path / "run")
    fail(run, "prepare", next(iter(jobs["prepare"].labels)))
    give(run.root, EVE)
    run.root.chmod(0o755)
    before = contents(run.root)
    demo = demo_file(tmp_path)
    profile = str(STUDIES.parents[1] / "env/profiles/slurm-lab.yaml")
    for words in (
        ["submit", demo, "--run", run.root],
        ["render", demo, tmp_path / "out", "--run", run.root, "--profile", profile],
        ["retry", run.root],
        ["eval", "rejudge", run.root, "--judge", "refusal-phrases"],
        ["data", "check", demo, "--run", run.root],
    ):
        assert main(list(map(str, words))) == 1
        error = capsys.readouterr().err
        assert f"{run.root}: belongs to user {EVE}, and" in error and error.count("\n") == 1
    with pytest.raises(UserError, match="belongs to"):
        run_element(run.root, "prepare", next(iter(jobs["prepare"].labels)))
    assert contents(run.root) == before


@as_root
def test_the_slurm_lab_is_not_started_from_a_folder_that_another_user_made(runs):
    lab = runs / "lab"
    lab.mkdir()
    (lab / "made-by-slurm-lab").touch()
    (lab / "configured").touch()
    give(lab, EVE)
    before = contents(lab)
    for script in ("up", "down"):
        words = [LAB_SCRIPTS / script]
        done = subprocess.run(words, env={**os.environ, "CURRICULA_SLURM_LAB": str(lab)}, capture_output=True, text=True)
        assert done.returncode == 2 and f"{lab}: belongs to another user" in done.stderr
    assert contents(lab) == before


@as_root
def test_foreign_code_in_an_own_run_folder_is_refused(tmp_path):
    run, _ = new_run(tmp_path / "run")
    give(take_snapshot(run.root).folder, EVE)
    with pytest.raises(UserError, match=r"code/\w+: belongs to"), Run.locked(run.root):
        pass


@pytest.mark.parametrize(("mode", "group", "refused"), [
    (0o700, 0, False), (0o755, 0, False), (0o777, 0, True), (0o1777, 0, True), (0o770, LAB, True), (0o2750, LAB, False),
])  # fmt: skip
def test_a_folder_that_others_may_write_to_is_refused_and_keeps_its_mode(tmp_path, mode, group, refused):
    run, _ = new_run(tmp_path / "run")
    if group and os.geteuid():
        pytest.skip("only root can give a folder to any group")
    if group:
        os.chown(run.root, -1, group)
    run.root.chmod(mode)
    if refused:
        with pytest.raises(UserError, match=rf"{run.root}: users other than .* \(mode {mode:o}\).*chmod -R go-w"):
            run.admit()
    else:
        run.admit()
    assert run.root.stat().st_mode & 0o7777 == mode


@as_root
@pytest.mark.parametrize(
    ("kind", "named", "rights", "refused"),
    [(2, EVE, 7, True), (2, EVE, 5, False), (2, os.geteuid(), 7, False), (8, LAB, 7, True), (8, os.getegid(), 7, False)],
)
def test_an_access_control_list_lets_nobody_in_unseen(tmp_path, kind, named, rights, refused):
    """The mode shows what the list allows at most, as if it were the group's: here the user's own, that of no one else."""
    owner, group, mask, other = (1, 7, -1), (4, 7, -1), (16, 7, -1), (32, 0, -1)
    entries = b"".join(struct.pack("<HHi", *entry) for entry in sorted([owner, group, mask, other, (kind, rights, named)]))
    try:
        os.setxattr(tmp_path, "system.posix_acl_access", struct.pack("<I", 2) + entries)
    except OSError as error:
        pytest.skip(f"no access control lists here: {error}")
    with pytest.raises(UserError, match=r"users other than .* \(mode 770\)") if refused else contextlib.nullcontext():
        require_ours(tmp_path)


@as_root
def test_two_colleagues_of_a_group_share_a_run_folder_by_choice(runs, monkeypatch):
    root = runs / "run"
    monkeypatch.setenv(TEAM, str(LAB))
    for user in (ANN, BOB, ANN):
        with acting_as(user, LAB), Run.locked(root):
            append_jsonl(root / "slurm/submissions.jsonl", [{"user": user}])
            write_json(root / "resubmit.json", user)
            (root / "made by hand" / str(user)).mkdir(parents=True, exist_ok=True)
            with exclusive_lock(root / "jobs/prepare/all/lock"):
                pass
            element = multiprocessing.get_context("fork").Process(target=local._begin, args=(root, "prepare", "all"))
            element.start()
            element.join()
            assert element.exitcode == 0
    assert [row["user"] for row in read_jsonl(root / "slurm/submissions.jsonl")] == [ANN, BOB, ANN]
    assert {path.stat().st_gid for path in [root, *root.rglob("*")]} == {LAB}
    assert not any(path.stat().st_mode & 0o007 for path in [root, *root.rglob("*")])
    monkeypatch.delenv(TEAM)
    with acting_as(BOB, LAB), pytest.raises(UserError, match=f"belongs to user {ANN}"), Run.locked(root):
        pass
    with acting_as(ANN, LAB), pytest.raises(UserError, match="users other than its owner can write"), Run.locked(root):
        pass


@as_root
def test_a_colleagues_job_in_a_container_that_knows_no_group_works_in_a_shared_run(runs, monkeypatch):
    root = runs / "run"
    monkeypatch.setenv(TEAM, str(LAB))
    with acting_as(ANN, LAB), Run.locked(root):
        write_json(root / "jobs/prepare/all/began.json", 1)

    def job() -> None:
        Run(root).admit()
        write_json(root / "jobs/prepare/all/done.json", 1)
        append_jsonl(root / "eval/arm/rows.jsonl", [{}])

    durable._group.cache_clear()
    assert in_a_container(job, BOB, LAB)
    made = [root / "jobs/prepare/all/done.json", root / "eval/arm", root / "eval/arm/rows.jsonl"]
    assert [(path.stat().st_uid, path.stat().st_gid) for path in made] == [(BOB, LAB)] * 3
    with acting_as(ANN, LAB):
        append_jsonl(root / "eval/arm/rows.jsonl", [{}])
    assert not in_a_container(job, EVE)
    durable._group.cache_clear()


@as_root
def test_without_the_choice_nothing_is_made_for_the_group(runs):
    folder = runs / "project"
    folder.mkdir()
    os.chown(folder, -1, LAB)
    folder.chmod(0o2770)
    with acting_as(ANN, LAB), Run.locked(folder / "run"):
        pass
    assert (folder / "run").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("group", ["no-such-group", "64100", "9" * 5000])
def test_a_group_that_is_not_the_users_is_refused(tmp_path, monkeypatch, group):
    monkeypatch.setenv(TEAM, group)
    monkeypatch.setattr(os, "geteuid", lambda: EVE)
    durable._group.cache_clear()
    with pytest.raises(UsageError, match=f"{TEAM}={group}: .*`id` lists yours"):
        Run(tmp_path).admit()
    durable._group.cache_clear()


@as_root
def test_reading_verbs_work_on_a_colleagues_folder_and_write_nothing_there(tmp_path, capsys, monkeypatch):
    run, jobs = new_run(tmp_path / "run")
    finish(run, "prepare", next(iter(jobs["prepare"].labels)))
    log = run.element("prepare", next(iter(jobs["prepare"].labels))) / "log.txt"
    log.write_text("a line\n")
    give(run.root, ANN)
    before = contents(run.root)
    monkeypatch.chdir(tmp_path)
    assert main(["status", str(run.root)]) == 0
    assert main(["logs", str(run.root), "prepare"]) == 0
    assert "a line" in capsys.readouterr().out
    assert contents(run.root) == before


@pytest.mark.slow
@as_root
def test_the_report_on_a_colleagues_run_is_written_in_ones_own_folder(tmp_path, capsys, monkeypatch):
    run, _ = new_run(tmp_path / "run")
    give(run.root, ANN)
    before = contents(run.root)
    monkeypatch.chdir(tmp_path)
    assert main(["report", str(run.root)]) == 0
    assert f"Report: {tmp_path}/reports/run/index.html" in capsys.readouterr().out.replace("\n", "")
    assert contents(run.root) == before


@pytest.mark.parametrize(("name", "link"), [
    ("lock", os.symlink), (".value.json.aside", os.symlink), (".value.json.aside", os.link)
])  # fmt: skip
def test_what_a_link_in_the_way_points_at_stays_as_it_is(tmp_path, name, link):
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "run").mkdir()
    link(tmp_path / "precious", tmp_path / "run" / name)
    if name == "lock":
        with pytest.raises(StorageError, match=r"run/lock: cannot be .*symbolic link"), exclusive_lock(tmp_path / "run/lock"):
            pass
    else:
        write_text(tmp_path / "run/value.json", "1")
    assert (tmp_path / "precious").read_text() == "precious"
