"""A training seed that is added to a finished run on Slurm, and killed: the tables are those of a run that had both at once."""

import os
import signal
from pathlib import Path

import pytest
import slurm_studies as studies
import yaml
from test_disturbances import ranks_of

NAMES = [("one", {"seed": 42}), ("both", {"seeds": [42, 43]})]


def write_study(folder: Path, seeds: dict) -> Path:
    """Base models alone: trunk, arm, attack, report."""
    raw = yaml.safe_load(studies.write_study(folder, steps=16, batch=32, micro_batch=16).read_text())
    del raw["seed"]
    raw["tuning"] = {"instruct": raw["tuning"]["instruct"], "benign": None}
    raw["evaluation"].update(gcg=None, probes=None, benchmarks=["tdc"])
    raw["evaluation"]["tasks"] = {"base": ["attacks-topk"], "instruct": [], "benign": []}
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump({**raw, **seeds}))
    return path


@pytest.mark.slow
def test_a_seed_added_and_killed_on_the_way_ends_as_if_it_had_been_there_from_the_start(own_lab, tmp_path):
    profile = studies.write_profile(tmp_path, lead_time_s=25)
    written = {name: write_study(tmp_path / name, seeds) for name, seeds in NAMES}
    run, fresh = (studies.prepared(own_lab, tmp_path / name, study) for name, study in written.items())

    def finish(*args: object) -> None:
        studies.curricula(own_lab, *args)
        studies.wait_until(
            lambda: not own_lab.run("squeue", "--noheader", "--me").strip(), "the queue to empty", 600, own_lab.state
        )

    submit = ("submit", "--cluster", "slurm", "--profile", profile, "--yes")
    studies.submit(own_lab, written["both"], profile, fresh)
    finish(*submit, written["one"], "--run", run)
    assert studies.is_done(run, "report", "report") and studies.is_done(fresh, "report", "report")
    before = {path: path.stat().st_mtime_ns for path in run.glob("jobs/*/*/done.json") if path.parent.name != "report"}

    studies.submit(own_lab, written["both"], profile, run)
    studies.wait_until(lambda: studies.saved_step(run, "trunk-s43") and ranks_of(run), "a save", 300, lambda: studies.logs(run))
    os.kill(ranks_of(run)[0], signal.SIGKILL)
    finish("retry", run)
    finish("retry", run)  # what had not failed yet when the first was given
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(studies.metrics(run, "trunk-s43")) > 16
    for branch in ("trunk", "trunk-s43", "full-50-s43"):
        assert studies.metrics(run, branch) == studies.metrics(fresh, branch)
    for table in (fresh / "report" / "tables").iterdir():
        assert (run / "report" / "tables" / table.name).read_bytes() == table.read_bytes(), table.name
