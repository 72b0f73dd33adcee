"""An element's marks, and how its process ends."""

import subprocess
import sys

import pytest
from run_folders import new_run

from curricula.durable import read_json, write_text
from curricula.errors import UsageError, UserError
from curricula.fencing import Superseded
from curricula.jobs.element import main, run_element
from curricula.jobs.stages import STAGES

KEY = ("prepare", "prepare")
TAKE_OVER = """
import sys; from pathlib import Path; from curricula.fencing import generation
with generation(Path(sys.argv[1])): pass
"""
LEFT_WITH_ITS_GROUP = """
import atexit, sys, torch.distributed as dist
from curricula.errors import UserError
from curricula.jobs.element import main
from curricula.jobs.stages import STAGES

def fail(*_):
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    raise UserError("the shard is gone")

type(STAGES["prepare"]).run = fail
atexit.register(print, "a library waits for other processes")
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("ending", ["success", "error"])
def test_an_element_that_another_process_took_over_leaves_no_mark(tmp_path, monkeypatch, ending):
    run, _ = new_run(tmp_path / "run")
    folder = run.element(*KEY)

    def be_overtaken(*_):
        subprocess.run([sys.executable, "-c", TAKE_OVER, str(folder / "lock")], check=True)
        if ending == "error":
            raise RuntimeError("the shard is gone")

    monkeypatch.setattr(type(STAGES["prepare"]), "run", be_overtaken)
    assert main([str(run.root), *KEY]) == Superseded.exit_code
    assert not list(folder.glob("*.json"))


def test_the_mark_of_an_element_names_its_start(tmp_path, monkeypatch):
    run, _ = new_run(tmp_path / "run")
    monkeypatch.setattr(type(STAGES["prepare"]), "run", lambda *_: None)
    for number in (1, 2):
        run_element(run.root, *KEY)
        assert read_json(run.element(*KEY) / "done.json")["generation"] == number
        (run.element(*KEY) / "done.json").unlink()


def test_a_process_that_is_left_with_its_group_notes_the_error_and_waits_for_no_library(tmp_path):
    run, _ = new_run(tmp_path / "run")
    command = [sys.executable, "-c", LEFT_WITH_ITS_GROUP, str(run.root), *KEY]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == UserError.exit_code and "curricula: the shard is gone" in ended.stderr
    assert ended.stdout == ""
    failure = read_json(run.element(*KEY) / "failed.json")
    assert failure["error"] == "the shard is gone" and failure["final"]


def test_an_error_before_the_work_begins_is_final_too(tmp_path):
    run, _ = new_run(tmp_path / "run")
    write_text(run.root / "study.yaml", "name: [")
    assert main([str(run.root), *KEY]) == UsageError.exit_code
    assert read_json(run.element(*KEY) / "failed.json")["final"]


def test_work_that_waits_outlives_a_profile_with_keys_of_newer_code(tmp_path, monkeypatch, capfd):
    run, _ = new_run(tmp_path / "run")
    monkeypatch.setattr(type(STAGES["prepare"]), "run", lambda *_: None)
    write_text(run.profile, "a_key_of_tomorrow: 1\n")
    assert main([str(run.root), *KEY]) == 0 and (run.element(*KEY) / "done.json").exists()
    assert "a_key_of_tomorrow" in capfd.readouterr().err
