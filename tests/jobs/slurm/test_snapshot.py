"""Jobs run a copy of the code, and what they make still names the commit it was copied from."""

import subprocess
import sys

import pytest

from curricula.durable import read_json, write_json
from curricula.errors import UserError
from curricula.jobs.slurm import snapshot
from curricula.jobs.slurm.snapshot import planned_snapshot, take_snapshot
from curricula.provenance import running_commit


def test_a_snapshot_knows_its_commit_even_within_another_repository(tmp_path):
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    copy = take_snapshot(tmp_path / "run").folder
    record, here = read_json(copy / "commit.json"), running_commit()
    assert here.startswith(record["commit"]) and record["digest"] == copy.name
    asked = "from curricula.provenance import running_commit; print(running_commit())"
    said = subprocess.run([sys.executable, "-c", asked], cwd=copy, capture_output=True, text=True, check=True).stdout
    assert said.strip() == (f"{here}-{copy.name}" if here.endswith("-dirty") else here)
    write_json(copy / "commit.json", {**record, "commit": "abc", "dirty": True})
    assert running_commit(copy) == f"abc-dirty-{copy.name}"
    (copy / "commit.json").unlink()
    assert running_commit(copy) == ""  # never that of the repository around it


def test_files_that_editors_leave_beside_the_code_are_no_part_of_it(tmp_path, monkeypatch):
    monkeypatch.setattr(snapshot, "PACKAGE", tmp_path / "curricula")
    monkeypatch.setattr(snapshot, "ROOT", tmp_path)
    (tmp_path / "curricula").mkdir()
    (tmp_path / "curricula/a.py").write_text("")
    before = planned_snapshot(tmp_path / "run")
    (tmp_path / "curricula/.a.py.swp").write_bytes(b"b0VIM")
    (tmp_path / "curricula/.#a.py").symlink_to("user@host.4711")
    (tmp_path / "curricula/.ipynb_checkpoints").mkdir()
    (tmp_path / "curricula/.ipynb_checkpoints/a.py").write_text("")
    assert take_snapshot(tmp_path / "run") == before
    for folder in (tmp_path / "curricula", before.folder / "curricula"):  # Python's own, also beside the copy that jobs run
        (folder / "__pycache__").mkdir()
        (folder / "__pycache__/a.cpython-311.pyc").write_bytes(b"compiled")
    assert take_snapshot(tmp_path / "run") == before


def test_a_snapshot_is_the_code_and_is_what_runs(tmp_path):
    folder = planned_snapshot(tmp_path).folder
    write_json(folder.with_name(f".{folder.name}.aside") / "curricula/left.py", "by a kill")
    assert take_snapshot(tmp_path) == take_snapshot(tmp_path) == planned_snapshot(tmp_path)
    assert [path.name for path in (tmp_path / "code").iterdir()] == [folder.name]
    # Told from the checkout by a change in it, and run from a folder that has a package of the same name.
    (folder / "curricula" / "jobs" / "element.py").write_text(
        "def main(words):\n    print('of the snapshot', *words)\n    return 0\n"
    )
    with pytest.raises(UserError, match=f"{folder.name}: this copy of the code was changed; delete it"):
        take_snapshot(tmp_path)
    (tmp_path / "curricula").mkdir()
    (tmp_path / "curricula" / "__init__.py").write_text("raise SystemExit('of the working folder')\n")
    ran = subprocess.run(
        [sys.executable, folder / "run_element.py", "R", "J", "E"], cwd=tmp_path, capture_output=True, text=True
    )
    assert ran.stdout == "of the snapshot R J E\n", ran.stderr
