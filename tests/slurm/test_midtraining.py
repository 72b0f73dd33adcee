"""A midtraining stage that Slurm preempts: it goes on in its own data stream, and what waits for it still does."""

import shutil
from pathlib import Path

import pytest
import slurm_studies as studies
from small_studies import tree_study, write_study

from curricula.durable import read_jsonl
from curricula.jobs.run import Run
from curricula.model.checkpoints.folder import latest_checkpoint

STEPS, BATCH = 40, 32
FOLDER, ELEMENT = "tune/safe-100/mt", ("mt-100", "safe-100")


def learned(run: Path) -> list[dict]:
    """What each step computed and read, without how long it took."""
    rows = read_jsonl(run / FOLDER / "metrics.jsonl")
    return [{key: value for key, value in row.items() if key != "timing"} for row in rows]


def saved_step(run: Path) -> int:
    latest = latest_checkpoint(run / FOLDER / "checkpoints")
    return int(latest.name.rpartition("_")[2]) if latest else 0


@pytest.mark.slow
def test_a_preempted_midtraining_ends_like_an_undisturbed_one(lab, tmp_path):
    raw = tree_study()
    raw["pretraining"]["save_interval_steps"] = 4
    raw["stages"]["mt"].update(tokens=STEPS * BATCH * 128, global_batch=BATCH, micro_batch=16)
    for source in raw["sources"].values():
        source["max_epochs"] = 1000  # many steps over a little text
    study = write_study(tmp_path, raw)
    profile = studies.write_profile(tmp_path, stages={"pretraining": {"nodes": 1, "gpus_per_node": 2}}, lead_time_s=25)
    prepared, runs = studies.prepared(lab, tmp_path, study), []
    for name in ("undisturbed", "preempted"):
        runs.append(tmp_path / name)
        shutil.copytree(prepared, runs[-1])
        wanted = ("--stage", "pretrain,midtrain,export", "--arm", "safe-100")
        studies.submit(lab, study, profile, runs[-1], *wanted)
    undisturbed, run = runs
    number = studies.task_of(run, *ELEMENT)
    for after in (0, 12):
        studies.wait_until(lambda after=after: saved_step(run) > after, "a checkpoint", 400, lambda: studies.logs(run))
        assert lab.preempt(number), lab.state()
        assert studies.show(lab, studies.task_of(run, "export-mt-100", "safe-100"))["Reason"] == "Dependency"
    for one in runs:
        studies.wait_until(
            lambda one=one: studies.is_done(one, "export-mt-100", "safe-100"), "the export", 600, lambda: studies.logs(run)
        )
    assert studies.task_of(run, *ELEMENT) == number and int(studies.show(lab, number)["Restarts"]) == 2
    assert learned(run) == learned(undisturbed) and len(learned(run)) > STEPS
    assert (Run(run).model("safe-100", "mt") / "model.safetensors").read_bytes() == (
        Run(undisturbed).model("safe-100", "mt") / "model.safetensors"
    ).read_bytes()
