"""A whole study with a tree of stages, and the suite's two miniatures of one, through the command line."""

import csv
import json
import os
import signal
from pathlib import Path

import pytest
import yaml
from compared_runs import differences, results
from paths import STUDIES
from permissions import not_the_teams
from small_studies import tree_study, write_study
from test_local_run import finished, submit, wait_for

from curricula.durable import read_jsonl

pytestmark = pytest.mark.slow


def along(run: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((run / "report/tables/along.csv").open()))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    finished(submit(write_study(folder, tree_study()), folder / "run"))
    return folder / "run"


def test_every_stage_makes_a_model_that_is_measured(whole):
    tasks = json.loads((whole / "report/summary.json").read_text())["attacks"]
    found = {(row["arm"], row["stage"]) for row in tasks}
    assert found == {
        *((arm, stage) for arm in ("full-50", "safe-100") for stage in ("base", "instruct", "mt", "mt-instruct")),
        ("full-50", "harmful"),
    }
    rows = read_jsonl(whole / "eval/full-50/mt/attacks-topk.jsonl")
    assert all(row["raw"] and row["model_kind"] == "mt" and row["benchmark"] == "jb_completions" for row in rows)
    assert not any(row["raw"] for row in read_jsonl(whole / "eval/full-50/mt-instruct/attacks-topk.jsonl"))


def test_rows_of_points_carry_their_step_and_curves_lead_through_them(whole):
    assert {row["step"] for row in read_jsonl(whole / "eval/trunk/base@25/attacks-topk.jsonl")} == {6}
    assert {row["step"] for row in read_jsonl(whole / "eval/full-50/harmful@25/attacks-topk.jsonl")} == {1}
    rows = along(whole)
    steps = {
        (row["stage"], row["arm"]): [int(one["step"]) for one in rows if (one["stage"], one["arm"], one["measure"]) == key]
        for row in rows
        for key in [(row["stage"], row["arm"], "attack success")]
    }
    assert steps == {
        ("base", "full-50"): [6, 18, 24],
        ("base", "safe-100"): [6, 18, 24],
        ("mt", "full-50"): [4, 8],
        ("mt", "safe-100"): [4, 8],
        ("harmful", "full-50"): [0, 1, 2, 4],
    }
    shared = [{**row, "arm": ""} for row in rows if row["stage"] == "base" and int(row["step"]) == 6]
    assert shared[: len(shared) // 2] == shared[len(shared) // 2 :]
    assert {path.stem for path in (whole / "report/figures").glob("along-*.svg")} == {"along-base", "along-mt", "along-harmful"}


def test_midtraining_begins_at_its_branch_point_and_ends_with_a_rate_near_zero(whole):
    rows = [row for row in read_jsonl(whole / "tune/full-50/mt/metrics.jsonl") if "loss" in row]
    assert [row["step"] for row in rows] == list(range(1, 9)) and rows[0]["lr"] == pytest.approx(3e-3)
    assert rows[-1]["lr"] < 5e-4 and rows[0]["loss"] < 6 and "unsafe-tagged" in rows[0]["mix"]


def test_a_teams_run_killed_in_midtraining_and_in_a_point_ends_with_the_same_numbers_as_ones_own(whole, tmp_path):
    study, run = write_study(tmp_path, tree_study()), tmp_path / "run"
    team = os.getegid() if os.geteuid() else 64100  # root can name any group
    for moment in (
        lambda: len(read_jsonl(run / "tune/full-50/mt/metrics.jsonl")) >= 6,  # after a checkpoint
        lambda: any(run.glob("eval/*/*@*/attacks-topk/*.jsonl")),
    ):
        process = submit(study, run, CURRICULA_GROUP=str(team))
        wait_for(moment, "the moment to kill at", 400)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    finished(submit(study, run, CURRICULA_GROUP=str(team)))
    assert not_the_teams(run, team) == []
    assert (run / "report/summary.json").read_bytes() == (whole / "report/summary.json").read_bytes()
    assert along(run) == along(whole) and differences(results(whole), results(run)) == []


def test_a_stage_that_is_added_later_trains_nothing_else_again(whole):
    raw = yaml.safe_load((whole / "study.yaml").read_text())
    raw["stages"]["twice"] = {"kind": "sft", "from": "harmful", "mix": {"gsm8k": 1}, "steps": 2, "tasks": ["attacks-topk"]}
    marks = {path: path.read_bytes() for path in whole.glob("jobs/*/*/done.json")}
    finished(submit(write_study(whole.parent / "more", raw), whole))
    changed = {path.parent.parent.name for path, mark in marks.items() if path.read_bytes() != mark}
    assert changed == {"report"} and (whole / "models/full-50/twice/curricula.json").exists()


@pytest.mark.parametrize(
    ("name", "models"),
    [
        ("spp-demo", {("safe-100", "instruct"), ("t0-0", "instruct"), ("safe-100", "instruct-mt"), ("t0-0", "instruct-mt")}),
        ("tamper-demo", {(arm, stage) for arm in ("data-20", "safe-100") for stage in ("instruct", "harmful", "replay")}),
    ],
)
def test_the_miniatures_measure_what_they_promise(tmp_path, name, models):
    """Each takes two to four minutes on two idle cores."""
    finished(submit(STUDIES / f"{name}.yaml", tmp_path / "run"))
    summary = json.loads((tmp_path / "run/report/summary.json").read_text())
    measured = {(row["arm"], row["stage"]) for row in summary["attacks"] if row["rate"] is not None}
    assert measured >= models
    if name == "tamper-demo":
        curve = [row for row in along(tmp_path / "run") if row["stage"] == "harmful" and row["measure"] == "attack success"]
        for arm in ("data-20", "safe-100"):
            rates = {int(row["step"]): float(row["value"]) for row in curve if row["arm"] == arm}
            assert list(rates) == [0, 2, 4, 8, 16, 32] and rates[32] > rates[0] + 0.2  # it learns to comply
