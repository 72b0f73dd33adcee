"""Sweeps: each point is a study of its own, and what two points share is trained once, in the arrays that one study has."""

import csv
import re
import shutil

import pytest
import yaml
from report_page import table
from rich.console import Console
from small_studies import by_job, demo, small_study, smaller_demo

from curricula.durable import read_json
from curricula.errors import UsageError
from curricula.jobs.cli.local import run_elements
from curricula.jobs.cli.main import main
from curricula.jobs.cli.plan import print_plan
from curricula.jobs.completion import done_elements
from curricula.jobs.estimates import describe, describe_point
from curricula.jobs.graph import plan_study
from curricula.jobs.monitor.state import run_status
from curricula.jobs.plan import Plan
from curricula.jobs.run import Run
from curricula.jobs.selection import Selection, select
from curricula.jobs.study import load_study, parse_study, study_yaml


def swept(sweep, **changes) -> Plan:
    raw = {**demo(), **changes, "sweep": sweep}
    if "seeds" in raw:
        del raw["seed"]
    return plan_study(parse_study(raw, "study.yaml"))


ONE = plan_study(parse_study(demo(), "study.yaml"))


def trained(plan: Plan) -> list[str]:
    return [element.label for job in plan.jobs for element in job.elements if element.segment]


# Points ---------------------------------------------------------------------------------------------------------------


def test_a_mapping_sweeps_over_all_combinations_and_points_are_named_by_their_settings():
    study = swept({"pretraining.optimizer.lr": [1e-3, 3e-3], "curriculum.interventions.data.refuseweb": [4, 8]}).study
    assert list(study.variants) == [
        "lr-0.001_refuseweb-4", "lr-0.001_refuseweb-8", "lr-0.003_refuseweb-4", "lr-0.003_refuseweb-8",
    ]  # fmt: skip
    last = study.variants["lr-0.003_refuseweb-8"]
    assert last.pretraining.optimizer.lr == 3e-3 and last.curriculum.interventions["data"]["refuseweb"] == 8
    assert parse_study(yaml.safe_load(study_yaml(study)), "frozen") == study


def test_a_point_may_change_one_entry_of_a_list():
    study = swept({"curriculum.starts.1": [0.3, 0.4]}).study
    assert [one.curriculum.starts[1] for one in study.variants.values()] == [0.3, 0.4]


def test_a_list_sweeps_over_its_points_alone_and_lists_as_values_get_numbers():
    points = [{"name": "early", "curriculum.starts": [0, 1]}, {"curriculum.starts": [0.6, 1]}]
    assert list(swept(points).study.variants) == ["early", "point-2"]


@pytest.mark.parametrize(
    ("sweep", "said"),
    [
        ({"pretraining.optimiser.lr": [1]}, "sweep, point lr-1: pretraining: unknown key `optimiser`; did you mean"),
        ({"pretraining.optimizer.lr": [-1]}, "sweep, point lr--1: pretraining.optimizer.lr: expected `float` > 0"),
        ({"pretraining.optimizer.lr": []}, "sweep has a point without settings, or no point"),
        ({"pretraining.optimizer.lr": 1e-3}, "sweep"),
        ([{"name": "a", "model.tied": True}, "b"], "sweep.1: expected `mapping`, got `str`; it is 'b'"),
        ({}, "sweep has a point without settings, or no point"),
        ([{"name": "a", "model.tied": True}, {"name": "b"}], "sweep has a point without settings, or no point"),
        ({"name": ["a", "b"]}, "sweep has a point without settings, or no point"),
        ({"model.tied": [True] * 30, "model.rope_base": [1.0] * 30}, "sweep has 900 points, more than 200"),
        ({"evaluation.topk.k": [1, 2]}, "sweep cannot vary 'evaluation.topk.k', only keys in curriculum, model, pret"),
        ({"seeds": [[42], [2]]}, "sweep, point point-2: the first of seeds is 2, but the study's is 42, which draws"),
        ({"sources.web.documents": [5]}, "sweep cannot vary 'sources.web.documents'"),
        ({"curriculum.starts.7": [0.5]}, "sweep, point 7-0.5: the key '7' does not exist in"),
        ([{"name": "a/b", "model.tied": True}], "sweep names a point 'a/b'; use up to 60 letters"),
        ([{"name": "a", "model.tied": True}, {"name": "a", "model.tied": False}], "sweep has two points a; give each"),
        ([{"seeds": [42]}, {"name": "b", "model.weights": "hf"}], "sweep varies the model in point b, but model.weights is"),
    ],
)
def test_a_sweep_that_makes_no_sense_is_refused(sweep, said):
    with pytest.raises(UsageError, match=said) as caught:
        swept(sweep)
    assert "\n" not in str(caught.value)


def test_a_point_may_not_make_another_kind_of_stage_of_one():
    stages = {"mt": {"kind": "midtrain", "mix": "full", "steps": 5, "lr": 1e-3}}
    tuning = {"kind": "sft", "mix": {"gsm8k": 1}, "conversations": 400}
    with pytest.raises(UsageError, match="sweep changes the kind of stages.mt in point b; write another stage"):
        swept([{"name": "a", "seeds": [42]}, {"name": "b", "stages.mt": tuning}], stages=stages)


# What is shared -------------------------------------------------------------------------------------------------------


def test_points_lengthen_the_arrays_and_add_none():
    plan = swept({"pretraining.optimizer.lr": [1e-3, 3e-3, 5e-3]})
    assert [job.name for job in plan.jobs] == [job.name for job in ONE.jobs]
    for job, longer in zip(ONE.jobs, plan.jobs):
        is_shared = job.stage in ("prepare", "tokenize", "report")
        assert len(longer.elements) == len(job.elements) * (1 if is_shared else 3), job.name
        assert longer.request == job.request and [edge.job for edge in longer.needs] == [edge.job for edge in job.needs]


def test_points_that_differ_in_tuning_share_their_base_models():
    plan = swept({"tuning.benign.lr": [1e-3, 2e-3]})
    first = "lr-0.001"
    assert all(label.endswith(first) for label in trained(plan)) and len(trained(plan)) == len(trained(ONE))
    assert {label.split("/")[0].partition(".")[2] for label in plan.by_name["merge-20"].labels} == {first, "lr-0.002"}
    assert len(plan.by_name["evaluate-base-20"].elements) == len(ONE.by_name["evaluate-base-20"].elements)
    assert len(plan.by_name["instruct-20"].elements) == len(ONE.by_name["instruct-20"].elements)  # benign comes after it
    assert plan.needs["benign-20", "full-20.lr-0.002"] == [(("instruct-20", f"full-20.{first}"), True)]
    chosen = by_job(select(plan, Selection(points=("lr-0.002",)), with_needs=True))
    assert chosen["instruct-20"] == [f"data-20.{first}", f"full-20.{first}"]  # which the point continues


def test_a_point_is_described_with_what_it_shares_and_nothing_of_the_others():
    plan, alone = swept({"curriculum.interventions.data.refuseweb": [12, 30]}), describe(ONE)
    for name, shared in (("refuseweb-12", "refuseweb-12"), ("refuseweb-30", "refuseweb-12")):
        found = describe_point(plan, plan.study.variants[name])
        branches = {one["branch"].replace(f".{name}", "").replace(f".{shared}", "") for one in found["segments"]}
        assert branches == {one["branch"] for one in alone["segments"]} and len(found["segments"]) == len(alone["segments"])
        assert f"data-20.{name}" in {one["name"] for one in found["arms"]} and len(found["arms"]) == len(alone["arms"])
        assert found["trained_tokens"]["with_trunk_sharing"] == alone["trained_tokens"]["with_trunk_sharing"]


def test_the_status_of_an_element_names_its_point(tmp_path):
    plan = swept({"tuning.benign.lr": [1e-3, 2e-3]})
    points = {one.key: one.point for one in run_status(Run.create(tmp_path / "run", plan.study), plan).elements}
    assert points["benign-20", "full-20.lr-0.002"] == "lr-0.002" and points["prepare", "prepare"] == ""


def test_points_that_differ_in_one_intervention_set_share_the_trunk_and_the_other_set():
    plan = swept({"curriculum.interventions.data.refuseweb": [12, 30]})
    extra = set(trained(plan)) - {f"{label}.refuseweb-12" for label in trained(ONE)}
    assert extra == {"data-0.refuseweb-30", "data-20.refuseweb-30", "data-60.refuseweb-30"}
    assert plan.needs["pretrain-20", "data-20.refuseweb-30"] == [(("pretrain-trunk-100", "trunk.refuseweb-12"), True)]
    assert not any("safe-100.refuseweb-30" in label or "full" in label and "30" in label
                   for _, element in plan.elements() for label in [element.label])  # fmt: skip


def test_starts_as_points_are_branches_of_one_trunk():
    starts = [[start, 1] for start in (0.1, 0.3, 0.5)]
    plan = swept({"curriculum.starts": starts})
    at_once = plan_study(parse_study({**demo(), "curriculum": {**demo()["curriculum"], "starts": [0.1, 0.3, 0.5, 1]}}, "s"))
    tokens = [describe(one)["trained_tokens"]["with_trunk_sharing"] for one in (plan, at_once)]
    assert tokens[0] == tokens[1]


def test_a_longer_budget_continues_from_where_the_shorter_ones_learning_rate_falls():
    plan = swept({"pretraining.budget_tokens": [256_000, 512_000]}, seeds=[42, 43])
    jobs = plan.by_name
    short, long = (plan.study.variants[f"budget_tokens-{tokens}"] for tokens in (256_000, 512_000))
    assert (short.budget.steps, long.budget.steps) == (250, 500)
    job = jobs["pretrain-trunk-300.budget_tokens-512000"]
    assert job.labels == ("trunk.budget_tokens-512000", "trunk.budget_tokens-512000-s43")
    assert [plan.segments[one.segment].start for one in job.elements] == [225, 225]
    assert [edge.kind for edge in job.needs] == ["aftercorr"]
    assert plan.needs[job.name, "trunk.budget_tokens-512000-s43"] == [
        (("pretrain-trunk-225.budget_tokens-256000", "trunk.budget_tokens-256000-s43"), True)
    ]


def test_a_stage_may_continue_from_another_one_at_each_point():
    stages = {
        "mt": {"kind": "midtrain", "mix": "full", "steps": 5, "lr": 1e-3},
        "after": {"kind": "sft", "from": "mt", "mix": {"gsm8k": 1}, "micro_batch": 4},
        "plain": {"kind": "midtrain", "mix": "safe", "steps": 5, "lr": 1e-3},
    }
    plan = swept({"stages.after.from": ["mt", "plain"]}, stages=stages)
    assert plan.needs["after-20", "full-20.from-plain"] == [(("plain-20", "full-20.from-mt"), True)]
    assert plan.by_name["plain-20"].labels == ("data-20.from-mt", "full-20.from-mt")
    turned = [{"name": "one", "stages.mt.lr": 2e-3}, {"name": "two", "stages.mt.from": "plain", "stages.plain.from": "base"}]
    swept(turned, stages={**stages, "plain": {**stages["plain"]}})
    turned[0]["stages.plain.from"] = "mt"
    with pytest.raises(UsageError, match=r"sweep: its points order these stages in contradictory ways \(.* from .*\)"):
        swept(turned, stages=stages)


def test_two_trainings_of_one_name_are_refused():
    points = [{"name": "a", "model.tied": True}, {"name": "a-s43", "model.tied": False}]
    swept(points)
    with pytest.raises(UsageError, match="two starts, arms, points or seeds give the name data-0.a-s43; write"):
        swept(points, seeds=[42, 43])


def test_points_may_have_fewer_seeds():
    sweep = [{"name": "small", "model.tied": True}, {"name": "large", "model.tied": False, "seeds": [42]}]
    plan = swept(sweep, seeds=[42, 43])
    assert plan.by_name["pretrain-20.large"].labels == ("data-20.large", "full-20.large")
    assert len(plan.by_name["pretrain-20.small"].labels) == 4


def test_models_of_other_sizes_have_jobs_of_their_own():
    plan = swept([{"name": "small", "model.tied": True}, {"name": "large", "model.tied": False}])
    assert {job.name for job in plan.jobs if job.name.startswith("pretrain-20")} == {"pretrain-20.small", "pretrain-20.large"}
    assert all({element.variant for element in job.elements} in ({""}, {"small"}, {"large"}) for job in plan.jobs)


def test_sizes_are_swept_one_by_one_or_as_whole_models():
    own = {"layers": 2, "hidden": 96, "heads": 6, "kv_heads": 2, "ffn": 256, "vocabulary": 2048, "sequence_length": 128}
    plan = swept([{"model.hidden": 64}, {"name": "own", "model": own}, {"name": "same", "model.layers": 3}])
    points = {one["name"]: one for one in describe(plan)["points"]}
    assert [one["model"] for one in points.values()] == [
        "tiny, hidden 64", "layers 2, hidden 96, heads 6, kv_heads 2, ffn 256", "tiny, layers 3",
    ]  # fmt: skip
    assert points["hidden-64"]["parameters"] < points["own"]["parameters"] < points["same"]["parameters"] == 852_864
    assert {job.name for job in plan.jobs if job.name.startswith("pretrain-20")} == {
        "pretrain-20.hidden-64", "pretrain-20.own", "pretrain-20.same",
    }  # fmt: skip
    again = swept([{"name": "a", "model.preset": "tiny"}, {"name": "b", "model.layers": 3}])
    assert len(trained(again)) == len(trained(ONE))  # one model, written in two ways
    assert {job.name for job in again.jobs} == {job.name for job in ONE.jobs}


def test_the_evaluation_of_a_point_costs_as_much_as_in_a_study_of_its_own():
    tied = (True, False)
    alone = [parse_study({**demo(), "model": {**demo()["model"], "tied": one}}, "study.yaml") for one in tied]
    hours = [describe(plan_study(one))["evaluation_gpu_hours"] for one in alone]
    assert hours[0]["probes"] < hours[1]["probes"]
    together = describe(swept({"model.tied": list(tied)}))["evaluation_gpu_hours"]
    assert together == {task: pytest.approx(sum(one[task] for one in hours)) for task in hours[0]}


def test_jobs_that_several_points_have_share_a_row_of_the_plan(capsys):
    plan = swept({"model.tied": [True, False]})
    print_plan(value := describe(plan), plan.study, Console(width=300))
    jobs = capsys.readouterr().out.partition("Jobs; *: for each point")[2].partition("Warning:")[0]
    sizes = re.findall(r"(?m)^ \S+ +(\d+) ", jobs)
    assert sum(map(int, sizes)) == sum(len(job["elements"]) for job in value["jobs"])
    assert re.search(r"benign-0\.\* +4 +instruct-0\.\*, each after its own", jobs) and "benign-0.tied" not in jobs


def test_the_plan_says_what_each_point_adds_and_arms_select_all_points(capsys):
    plan = swept({"tuning.instruct.lr": [1e-3, 2e-3]})
    value = describe(plan)
    first, second = value["points"]
    assert first["gpu_hours"]["pretraining"] > 0 == second["gpu_hours"]["pretraining"]
    assert first["parameters"] == 852_864 and first["tokens"] == value["budget"]["tokens"]
    print_plan(value, plan.study, Console(width=300))
    printed = capsys.readouterr().out
    assert "Point lr-0.002 (tuning.instruct.lr: 0.002): tiny, 852,864 parameters" in printed
    assert "GPU-hours" not in printed, "it runs on a laptop"
    tied = swept({"model.tied": [True, False]})
    print_plan(describe(tied), tied.study, Console(width=300))
    assert "Point tied-True (model.tied: true)" in capsys.readouterr().out, "settings are shown as a study writes them"
    mixed = swept({"curriculum.interventions.full.refuseweb": [12, 30]})
    print_plan(describe(mixed), mixed.study, Console(width=300))
    mixes = capsys.readouterr().out.partition("Mixes: ")[2]
    (headings,) = [line.split() for line in mixes.splitlines() if line.startswith(" source") and "safe " in line]
    assert headings == ["source", "safe", "data", "full.refuseweb-12", "full.refuseweb-30"]
    second = by_job(select(plan, Selection(points=("lr-0.002",)), with_needs=True))
    assert second["instruct-20"] == ["data-20.lr-0.002", "full-20.lr-0.002"] and "report" in second
    assert second["pretrain-20"] == ["data-20.lr-0.001", "full-20.lr-0.001"] and "export-base-20" not in second
    assert "pretrain-20" not in by_job(select(plan, Selection(points=("lr-0.002",))))
    with pytest.raises(UsageError, match="point 'lr-3' is not in this study; choose one of lr-0.001, lr-0.002"):
        select(plan, Selection(points=("lr-3",)))
    chosen = by_job(select(plan, Selection(arms=("full-20",)), with_needs=True))
    assert chosen["instruct-20"] == ["full-20.lr-0.001", "full-20.lr-0.002"]


# From study to report -------------------------------------------------------------------------------------------------


@pytest.mark.slow  # a whole study, a minute or two on two cores
def test_a_sweep_runs_to_a_report_for_each_point_and_what_is_lost_is_made_again_alike(tmp_path):
    refusals, rate = "curriculum.interventions.full.refuseweb", "tuning.instruct.lr"
    sweep = [{refusals: 12, rate: 1e-3}, {refusals: 12, rate: 2e-3}, {refusals: 30, rate: 1e-3}]
    raw = smaller_demo()
    raw["evaluation"]["tasks"] = {"base": ["attacks-topk"], "instruct": ["attacks-topk"], "benign": []}
    raw["evaluation"]["benchmarks"] = ["harmbench"]
    raw["tuning"]["benign"] = None
    path = small_study(tmp_path, tuning=raw["tuning"], evaluation=raw["evaluation"], sweep=sweep)
    plan = plan_study(load_study(path))
    assert main(["submit", str(path), "--run", str(tmp_path / "run")]) == 0
    run = Run.open(tmp_path / "run")
    assert len(done_elements(run, plan)) == len(plan.needs)
    branches = sorted(folder.name for folder in (run.root / "pretrain").iterdir())
    first, other = "refuseweb-12_lr-0.001", "refuseweb-30_lr-0.001"
    assert branches == sorted([f"full-50.{first}", f"full-50.{other}", f"trunk.{first}"])
    points = {name: read_json(run.report / "points" / name / "summary.json") for name in plan.study.variants}
    for name, summary in points.items():
        assert {entry["arm"] for entry in summary["attacks"]} == {"full-50", "safe-100"}, name
        assert {entry["stage"] for entry in summary["attacks"]} == {"base", "instruct"}, name
    rates = {name: [entry for entry in summary["attacks"] if entry["stage"] == "base"] for name, summary in points.items()}
    assert rates[first] == rates["refuseweb-12_lr-0.002"]  # one base model, measured once
    tokens = plan.study.budget.tokens * 3 // 2  # of the trunk and of half an arm: of the point alone, not of the sweep
    for name in points:
        page = (run.report / "points" / name / "index.html").read_text()
        assert f"{tokens:,} tokens, with a shared trunk" in page and "at all points of the sweep together" in page
        own = f"full-50.{name if name == other else first}"
        assert [row["Run"] for row in table(page, "t-losses")] == [own, f"trunk.{first}"]
    models = sorted(folder.name for folder in (run.root / "models").iterdir() if (folder / "base").exists())
    assert models == sorted([f"full-50.{first}", f"full-50.{other}", f"safe-100.{first}"])
    rows = list(csv.DictReader((run.report / "tables" / "differences.csv").open()))
    assert {row["point"] for row in rows} == set(plan.study.variants)
    overview = (run.report / "index.html").read_text()
    assert all(f'href="points/{name}/index.html"' in overview for name in points)
    # A model that is lost is made again with the same numbers, and so is what was made from it.
    before = {path: path.read_bytes() for path in (run.report / "tables").glob("*.csv")}
    shutil.rmtree(run.root / "jobs" / "instruct-50" / f"full-50.{first}")
    shutil.rmtree(run.tuning(f"full-50.{first}", "instruct"))
    shutil.rmtree(run.report)
    run_elements(run.root, plan, Console(quiet=True), list(plan.needs))
    assert {path: path.read_bytes() for path in (run.report / "tables").glob("*.csv")} == before
