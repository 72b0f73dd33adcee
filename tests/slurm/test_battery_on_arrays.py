"""The battery as stages of a study, on arrays of a real Slurm: every task is an element, and all end in one report."""

import json

import pytest
import slurm_studies as studies
import yaml
from battery import replies, write_battery
from judge_server import JudgeServer

from curricula.jobs.run import Run

pytest.importorskip("lm_eval", reason="needs the extra lm-eval")


@pytest.mark.slow
def test_own_prompts_judges_attacks_probes_and_capability_go_through_arrays_to_a_report(lab, tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with JudgeServer() as server:
        server.key_of = lambda text: "ask-1"  # type: ignore[method-assign]
        server.reply_to = replies  # type: ignore[method-assign]
        study = studies.write_study(tmp_path, steps=24)
        raw = yaml.safe_load(study.read_text())
        raw["tuning"]["benign"] = None
        raw["evaluation"] = write_battery(tmp_path, server.url)
        study.write_text(yaml.safe_dump(raw))
        profile, run = studies.write_profile(tmp_path), tmp_path / "run"
        studies.submit(lab, study, profile, run)
        studies.wait_until(lambda: not lab.run("squeue", "--noheader", "--me").strip(), "the queue to empty", 600, lab.state)
    assert studies.is_done(run, "report", "report"), studies.curricula(lab, "status", run)
    summary = json.loads((run / "report/summary.json").read_text())
    arms = {arm.key for arm in Run(run).arms}
    attacked = {(row["arm"], row["benchmark"]) for row in summary["attacks"] if row["stage"] == "instruct"}
    assert attacked >= {(arm, name) for arm in arms for name in ("ours", "jailbreakbench")}
    assert {row["benchmark"] for row in summary["overrefusal"]} == {"alpaca", "gentle", "all"}
    assert {row["benchmark"] for row in summary["capability"]} == {"choices", "words", "all"}
    assert {row["arm"] for row in summary["probes"]} == arms
    assert {row["arm"] for row in summary["worst-case"]} == arms
    assert not any(row["missing"] or row["unparsed"] for row in summary["attacks"])
