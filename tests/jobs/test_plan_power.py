"""`curricula plan --power`: what a study can detect, before it costs anything."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from small_studies import demo, demo_file

from curricula.errors import UsageError
from curricula.jobs.cli.main import main
from curricula.jobs.estimates import ELEMENT_S, GCG_TOKENS, about, describe, minutes_here
from curricula.jobs.graph import plan_study
from curricula.jobs.power import power_lines, prompts_of, study_power
from curricula.jobs.study import load_study, parse_study


def test_plan_says_what_a_study_can_detect_and_what_more_seeds_cost(capsys, tmp_path):
    study = str(demo_file(tmp_path))
    assert main(["plan", study, "--run", str(tmp_path), "--power", "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    found, hours = value["power"], value["gpu_hours"]
    seed, *more = found["table"]
    assert (found["seeds"], found["prompts"], found["samples"], found["claims"]) == (1, 60, 5, 18)
    assert found["components"]["source"] == "assumed"
    assert seed["unadjusted"] is None and seed["holm"] is None and [row["seeds"] for row in more] == [2, 3]
    assert seed["gpu_hours"] == pytest.approx(hours["pretraining"] + hours["tuning_at_most"] + hours["evaluation_at_most"])
    assert more[1]["gpu_hours"] == pytest.approx(3 * seed["gpu_hours"])
    assert main(["plan", study, "--run", str(tmp_path), "--power"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "found with 80% probability" in said and "assumed from the demo" in said


def test_measured_components_take_the_place_of_the_assumed_ones(tmp_path):
    row = {"task": "attacks-topk", "reference": "safe-100", "seed": 0.01, "prompt": 0.1, "interaction": 0.1}
    rows = [{**row, "sample": 0.5}, {**row, "reference": "", "seed": 0.3, "sample": 0.5}]
    (tmp_path / "summary.json").write_text(json.dumps({"variance": rows}))
    found = study_power(plan_study(parse_study(demo(), "demo")), tmp_path / "summary.json")
    assert found["components"]["seed"] == pytest.approx(0.0001)
    assert found["components"]["source"] == str(tmp_path / "summary.json")
    assert found["table"][2]["unadjusted"] < 0.2


def test_all_estimates_count_the_prompts_that_a_benchmark_has():
    raw = demo()
    raw["world"] |= {"prompts_per_benchmark": 15, "alpaca_prompts": 30}
    raw["evaluation"] |= {"prompts": {"ours": {"path": "ours.csv"}}, "benchmarks": ["advbench", "ours"]}
    study = parse_study(raw, "demo")
    prompts = {"jb_completions": 60, "advbench": 15, "ours": 100, "alpaca": 30}
    assert {name: study.prompts_in(name, None) for name in prompts} == prompts
    assert [study.prompts_in(name, 1000) for name in ("advbench", "ours")] == [15, 1000]
    assert [study.prompts_in(name, 5) for name in ("advbench", "ours")] == [5, 5]
    plan = plan_study(study)
    measured = [(one.eval_task, one.flops) for _, one in plan.elements() if one.eval_task and one.kind != "benign"]
    work = {task.benchmark: flops for task, flops in measured if task.task.name in ("attacks-topk", "overrefusal-topk")}
    assert {name: work[name] / work["advbench"] * 15 for name in work} == pytest.approx(prompts)
    everywhere = describe(plan)["evaluation_gpu_hours"]["overrefusal-topk"]
    raw["world"]["alpaca_prompts"] *= 2
    assert describe(plan_study(parse_study(raw, "demo")))["evaluation_gpu_hours"]["overrefusal-topk"] > everywhere


def test_elements_that_run_side_by_side_share_the_cores(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    plans = [plan_study(parse_study({**demo(), "resources": {"workers": workers}}, "demo")) for workers in (1, 4)]
    one, four = map(minutes_here, plans)
    assert one - four == pytest.approx(len(plans[0].needs) * ELEMENT_S * (1 - 1 / 4) / 60)  # their start alone gets faster
    words = [about(minutes) for minutes in (0.2, 1.5, 119, 120, 2879, 2880)]
    assert words == [f"about {text}" for text in ("1 minute", "2 minutes", "119 minutes", "2 hours", "48 hours", "2 days")]


def test_sets_of_ones_own_are_counted_where_they_are(tmp_path):
    questions = {"kind": "capability", "target": "answer"}
    raw, hours = demo(), []
    for count in (30, 60):
        for name in ("ours", "quiz"):
            (tmp_path / f"{name}.jsonl").write_text('{"prompt": "x", "answer": "y"}\n' * count)
        sets = {"ours": {"path": f"{tmp_path}/ours.jsonl"}, "quiz": {"path": f"{tmp_path}/quiz.jsonl", **questions}}
        raw["evaluation"] |= {"prompts": sets, "benchmarks": ["ours"], "capability": {"tasks": ["quiz"]}}
        raw["evaluation"]["tasks"] = {"instruct": ["attacks-topk", "capability"], "base": [], "benign": []}
        study = parse_study(raw, "demo")
        assert [study.prompts_in("ours", limit) for limit in (None, 5, 1000)] == [count, 5, count]
        hours.append(describe(plan_study(study))["evaluation_gpu_hours"])
    assert study_power(plan_study(study), Path("no report"))["prompts_assumed"] == {}
    assert hours[1]["capability"] == pytest.approx(2 * hours[0]["capability"])


def test_the_work_of_best_of_n_counts_its_attempts():
    raw = demo()
    raw["evaluation"] |= {"tasks": {"instruct": ["attacks-topk", "best-of-n"]}, "attacks": {"best_of_n": {"attempts": 40}}}
    study = parse_study(raw, "demo")
    work = {one.eval_task.task.name: one.flops for _, one in plan_study(study).elements() if one.eval_task}
    assert work["best-of-n"] / work["attacks-topk"] == pytest.approx(40 / study.evaluation.topk.samples)


def test_a_candidate_of_gcg_reads_as_many_tokens_here_as_on_a_gpu():
    raw, work = demo(), []
    raw["evaluation"] |= {"tasks": {"instruct": ["attacks-topk", "gcg"]}, "benchmarks": ["advbench"]}
    for width in (0, 32):
        raw["evaluation"]["gcg"] = {"steps": 8, "search_width": 32 + width, "benchmark": "advbench"}
        study = parse_study(raw, "demo")
        work.append({one.eval_task.task.name: one.flops for _, one in plan_study(study).elements() if one.eval_task})
    added = (work[1]["gcg"] - work[0]["gcg"]) / work[0]["attacks-topk"]  # by 32 candidates at each of 8 steps
    topk = study.evaluation.topk
    assert added == pytest.approx(8 * 32 * GCG_TOKENS / (topk.samples * topk.max_new_tokens))


def test_the_hours_of_an_attack_follow_its_settings():
    def hours(width: int = 32, validation: int = 8, shards: int = 1) -> dict[str, float]:
        raw = demo()
        raw["evaluation"] |= {
            "tasks": {"base": [], "instruct": ["gcg", "ablation-topk"], "benign": []},
            "benchmarks": ["advbench"],
        }
        raw["evaluation"] |= {"attacks": {"ablation": {"validation": validation}}, "shards": {"gcg": shards}}
        raw["evaluation"]["gcg"] = {"steps": 8, "search_width": width, "benchmark": "advbench"}
        return describe(plan_study(parse_study(raw, "demo")))["evaluation_gpu_hours"]

    usual = hours()
    assert hours(width=64)["gcg"] > usual["gcg"] and hours(validation=16)["ablation-topk"] > usual["ablation-topk"]
    # Each shard has its part of the prompts, and a batch of answers of its own.
    assert usual["gcg"] < hours(shards=4)["gcg"] < 2 * usual["gcg"]


def test_the_kind_of_model_with_the_fewest_prompts_counts():
    study = load_study(Path("jobs/studies/paper.yaml"))
    found = []
    for changed in ({}, {"prompts_per_benchmark": 20}, {"base_benchmark": "advbench_completions"}):  # whose 520 tell more
        evaluation = msgspec.structs.replace(study.evaluation, **changed)
        found.append(sum(prompts_of(msgspec.structs.replace(study, evaluation=evaluation)).values()))
    assert found == [910, 20, 910]
    value = study_power(plan_study(study), Path("no report"))
    assert "910 prompts, which count as 443 because all benchmarks have the same weight" in "".join(power_lines(value))


def test_only_models_that_are_attacked_count():
    raw = demo()
    raw["evaluation"] |= {"prompts_per_benchmark": 5, "tasks": {"base": ["probes"], "instruct": ["attacks-topk"], "benign": []}}
    assert sum(prompts_of(parse_study(raw, "demo")).values()) == 4 * 5  # of the benchmarks by default
    raw["evaluation"]["tasks"] = {"base": ["probes"], "instruct": ["probes"], "benign": []}
    with pytest.raises(UsageError, match="--power is about attack success, but no model of demo has the task attacks-topk"):
        prompts_of(parse_study(raw, "demo"))


def test_a_set_in_a_folder_that_may_not_be_entered_is_counted_as_any_other_that_is_elsewhere(monkeypatch):
    def deny(*_):
        raise PermissionError("Permission denied")

    monkeypatch.setattr("curricula.curriculum.sources.declared.DeclaredTable.is_here", deny)
    raw = demo()
    raw["evaluation"] |= {"prompts": {"ours": {"path": "/home/other/ours.csv"}}, "benchmarks": ["ours"]}
    assert parse_study(raw, "demo").prompts_in("ours", 7) == 7


@pytest.mark.parametrize(("limit", "number"), [(None, "100"), (1000, "1,000")])
def test_an_own_set_has_as_many_prompts_as_its_limit_and_the_number_is_said_to_be_assumed(limit, number):
    raw = demo()
    prompts = {"ours": {"path": "ours.csv"}, "beginnings": {"path": "beginnings.csv", "kind": "completion"}}
    raw["evaluation"] |= {"prompts": prompts, "benchmarks": ["ours", "advbench"], "base_benchmark": "beginnings"}
    tasks = {"base": ["attacks-topk"], "instruct": [], "benign": []}
    raw["evaluation"] |= {"prompts_per_benchmark": limit, "tasks": tasks}
    plan = plan_study(parse_study(raw, "demo"))
    said = " ".join("\n".join(power_lines(study_power(plan, Path("no report")))).split())
    assert f"({number} prompts, {number} of beginnings assumed, 5 samples; two-sided)" in said
