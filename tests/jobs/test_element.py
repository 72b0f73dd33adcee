"""An element's marks when another process has taken the element over meanwhile."""

import subprocess
import sys

import pytest
from run_folders import new_run

from curricula.durable import read_json
from curricula.fencing import Superseded
from curricula.jobs.element import main, run_element
from curricula.jobs.stages import STAGES

KEY = ("prepare", "prepare")
TAKE_OVER = """
import sys; from pathlib import Path; from curricula.fencing import generation
with generation(Path(sys.argv[1])): pass
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
