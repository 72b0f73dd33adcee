"""The report beside its metrics: other judges, answers without a merge, training, cost, LaTeX, several studies, a server."""

from __future__ import annotations

import http.client
import io
import json
import math
import re
import sys
import threading
import types
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import pytest
from figure_files import EVERY_FORMAT, written_as
from report_page import Page, csv_rows, table
from rich.console import Console
from small_studies import tree_study
from study_rows import ARMS, append_judged, attack_rows, generation, overrefusal_rows, verdict_rows

from curricula.durable import append_jsonl
from curricula.errors import UserError
from curricula.eval.analysis.along import Course
from curricula.eval.analysis.metrics import Model, attack_metrics
from curricula.eval.analysis.runs import runs_of, study_metrics
from curricula.eval.analysis.seeds import OverSeeds
from curricula.eval.analysis.study_rows import ArmInfo, read_study_rows
from curricula.eval.judges.caveats import COARSE
from curricula.eval.judges.rules import RefusalPhrases
from curricula.eval.report.console import print_metrics
from curricula.eval.report.overviews import comparison_panels, write_comparison
from curricula.eval.report.page import template, write_report
from curricula.eval.report.points import Point, Shown, judges_points
from curricula.eval.report.tables import as_row, latex, plain
from curricula.eval.report.training import (
    Branch,
    Training,
    cost_rows,
    curriculum_panels,
    loss_panels,
    read_training,
    training_rows,
    tree_panels,
    validation_panels,
)
from curricula.eval.report.web.data import embedded_json
from curricula.eval.report.web.serve import LivePage
from curricula.eval.report.wording import percent, points
from curricula.eval.rows import GenerationRow, VerdictRow, append_rows, read_rows
from curricula.eval.verdicts import key_of_question, verdicts_path
from curricula.jobs.estimates import describe
from curricula.jobs.graph import plan_study
from curricula.jobs.stages.report import track_report
from curricula.jobs.study import load_study, parse_study

TWO = [ARMS[2], ARMS[-1]]


def write_answers(run: Path, rate: float = 0.4, stage: str = "instruct") -> Path:
    for arm in TWO:
        rows = attack_rows(arm, stage, "topk", rate, 2, {"tdc": 10, "advbench": 10})
        append_judged(run / "eval" / arm.key / stage / "attacks-topk.jsonl", rows)
    return run


def test_every_judges_verdicts_become_points_of_their_own(tmp_path):
    path = write_answers(tmp_path) / "eval/data-20/instruct/attacks-topk.jsonl"
    rows = read_rows(path, GenerationRow)
    kind = {"judge": "strict", "version": "9f", "label": "harmful", "tells_helpful": None}
    given = [VerdictRow(key=row.key, question=key_of_question(row, "strict", "9f"), **kind) for row in rows]
    append_rows(verdicts_path(path), given)
    study = read_study_rows(tmp_path, TWO)
    runs = runs_of(study)
    own_points = Shown(runs.arms, [0], study_metrics(runs)).points
    points = {(row.judge, row.benchmark, row.arm): row for row in (*own_points, *judges_points(runs))}
    strict = {key: row for key, row in points.items() if key[0]}
    assert set(strict) == {("strict 9f", name, "data-20") for name in ("", "advbench", "tdc")}
    assert {row.value for row in strict.values()} == {1.0}
    own = [row for row in study.generations["data-20", "instruct", "attacks-topk"] if row.benchmark == "tdc"]
    assert points["", "tdc", "data-20"].value == pytest.approx(sum(row.verdict == "harmful" for row in own) / len(own))
    assert points["", "", "safe-100"].low < points["", "", "safe-100"].value < points["", "", "safe-100"].high


@pytest.mark.parametrize("judges, verdicts", [({}, {"unparsed"}), ({"attack": RefusalPhrases()}, {"harmful", "refusal"})])
def test_answers_that_no_merge_has_seen_are_shown_and_named_as_unfinished(tmp_path, judges, verdicts):
    folder = tmp_path / "eval/data-20/instruct/attacks-topk"
    for shard, prompt in (("0-of-2", "1"), ("1-of-2", "2")):
        rows = [("First, gather the lamp oil", 0), ("I cannot help with that.", 1)]
        made = [generation(model="m1", benchmark="tdc", prompt_id=prompt, sample=k, response=text) for text, k in rows]
        append_judged(folder / f"tdc.{shard}.jsonl", made)
        verdicts_path(folder / f"tdc.{shard}.jsonl").unlink()
    study = read_study_rows(tmp_path, TWO, judges=judges)
    answers = study.generations["data-20", "instruct", "attacks-topk"]
    assert len(answers) == 4 and {row.verdict for row in answers} == verdicts and study.partial
    planned = {"tasks": {"instruct": ["attacks-topk"]}, "judges": judges}
    text = write_report(tmp_path, TWO, planned, tmp_path / "report").read_text()
    assert (
        "Unfinished: 2 evaluations are still missing." in text
        and "data-20 instruct attacks-topk (some answers are there)" in text
    )
    rate = json.loads((tmp_path / "report/summary.json").read_text())["attacks"][0]["rate"]
    assert rate == (0.5 if judges else None)


@pytest.fixture
def trained(tmp_path) -> Path:
    """A trunk, trained to its end in two segments with a restart that lost three steps, and a branch on its way."""
    for branch, start, stop in (("trunk", 1, 500), ("data-20", 101, 300)):
        (tmp_path / "pretrain" / branch).mkdir(parents=True)
        timing = {"seconds": 3.6, "save_stall_s": 0.0, "tokens_per_second": 40.0, "tokens_per_second_per_device": 10.0}
        rows = [{"step": k, "tokens": 512 * k, "loss": 3 - k / 500, "timing": timing} for k in range(start, stop + 1)]
        append_jsonl(tmp_path / f"pretrain/{branch}/metrics.jsonl", rows)
    starts = [{"resumed_step": step, "lost_steps": lost} for step, lost in ((0, 0), (100, 0), (200, 3))]
    append_jsonl(tmp_path / "pretrain/trunk/starts.jsonl", starts)
    (tmp_path / "jobs/pretrain-trunk-100/trunk").mkdir(parents=True)
    (tmp_path / "jobs/pretrain-trunk-100/trunk/done.json").write_text('{"seconds": 7200, "started": 1}')
    return tmp_path


def test_cost_counts_devices_restarts_and_lost_steps(trained):
    plan = describe(plan_study(load_study(Path("demo"))))
    training = read_training(trained, plan)
    cost = {row.stage: row for row in cost_rows(training)}
    spent = cost["pretrain"]
    assert spent.device_hours == pytest.approx((500 + 200) * 3.6 * 4 / 3600)
    assert (spent.restarts, spent.lost_steps, spent.done, spent.hours) == (1, 3, 1, 2.0)
    assert spent.planned == sum(len(job["elements"]) for job in plan["jobs"] if job["stage"] == "pretrain")
    assert spent.planned_gpu_hours == pytest.approx(plan["gpu_hours"]["pretraining"])
    assert cost["tune"].device_hours is None and cost["tune"].restarts is None
    assert next(one for one in training.branches if one.name == "data-20").starts == 0  # written by an earlier version


def test_the_loss_of_the_latest_step_is_its_own_and_no_mean(trained):
    (tmp := trained / "pretrain/long").mkdir(parents=True)
    rows = [{"step": k, "tokens": 512 * k, "loss": 9.0 if k == 1000 else 2.0} for k in range(1, 1001)]
    append_jsonl(tmp / "metrics.jsonl", rows)
    training = read_training(trained, {})
    (long,) = (row for row in training_rows(training) if row["run"] == "long")
    assert (long["step"], long["loss"]) == (1000, 9.0)
    assert next(one for one in training.branches if one.name == "long").loss[-1] == pytest.approx((9 + 3 * 2) / 4)


def test_an_arms_validation_losses_are_those_of_its_own_steps(trained):
    (tmp := trained / "pretrain/late").mkdir(parents=True)
    losses = [{"step": step, "validation": {"web": float(step)}} for step in (5, 6)]
    append_jsonl(tmp / "metrics.jsonl", [losses[0], {"step": 6, "tokens": 3072, "loss": 2.0}, losses[1]])
    (late,) = (one for one in read_training(trained, {}).branches if one.name == "late")
    assert late.validation == {"web": [(3072, 6.0)]}


def test_midtraining_is_not_counted_as_tuning(trained):
    timing = {"seconds": 3.6, "tokens_per_second": 10.0, "tokens_per_second_per_device": 10.0}
    for stage, steps in (("mt", 100), ("instruct", 10)):
        (tmp := trained / "tune/data-20" / stage).mkdir(parents=True)
        rows = [{"step": k, "tokens": 512 * k, "loss": 2.0, "timing": timing} for k in range(1, steps + 1)]
        append_jsonl(tmp / "metrics.jsonl", rows)
    plan = plan_study(parse_study(tree_study(), "tree"))
    cost = {row.stage: row for row in cost_rows(read_training(trained, describe(plan)))}
    for stage, spent in (("pretrain", 2.0), ("midtrain", 0.1), ("tune", 0.01)):
        planned = sum(element.gpu_hours for job, element in plan.elements() if job.stage == stage)
        assert cost[stage].device_hours == pytest.approx(spent) and cost[stage].planned_gpu_hours == pytest.approx(planned)


def test_what_other_points_of_a_sweep_have_trained_is_left_out(trained):
    for name in ("pretrain/data-20.other", "tune/data-20/instruct", "tune/data-20.other/instruct"):
        (trained / name).mkdir(parents=True)
        append_jsonl(trained / name / "metrics.jsonl", [{"step": 1, "tokens": 512, "loss": 2.0}])
    plan = {"segments": [{"branch": name, "start_step": 0} for name in ("trunk", "data-20")]}
    found = read_training(trained, plan, {"data-20/instruct"})
    assert [one.name for one in found.branches] == ["data-20", "trunk", "data-20/instruct"]
    assert len(read_training(trained, {}).branches) == 5


def test_the_curriculum_and_the_tree_are_those_of_the_plan(trained):
    training = read_training(trained, describe(plan_study(load_study(Path("demo")))))
    panels = {panel.title: panel for panel in curriculum_panels(training)}
    areas = {series.label: series for series in panels["data, from 20%"].series}
    assert areas["safeweb"].x == [0, 51_200, 51_200, 256_000] and areas["safeweb"].y == [0, 0, 0.1, 0.1]
    for at in range(4):
        assert sum(series.y[at] for series in areas.values()) == pytest.approx(1)
    (tree,) = tree_panels(training)
    lane = tree.lanes.index("data-20")
    done = [series for series in tree.series if series.label == "trained" and series.y[0] == lane]
    assert [series.x for series in done] == [[51_200, 153_600]]
    (losses,) = loss_panels(training)
    assert [(one.label, one.x) for one in losses.series if one.kind == "rule"] == [("interventions start", [51_200])]


def test_a_dose_that_ends_is_no_start_of_interventions():
    raw = tree_study()
    dose = [{"until": 0.25, "mix": "safe"}, {"until": 0.75, "mix": "full"}, {"until": 1, "mix": "safe"}]
    raw["curriculum"]["arms"] = {"dose": dose}
    plan = describe(plan_study(parse_study(raw, "study.yaml")))
    (losses, *_) = loss_panels(Training([branch("trunk")], plan, {}))
    steps = {one.label: [x / plan["budget"]["step_tokens"] for x in one.x] for one in losses.series if one.kind == "rule"}
    assert steps == {"interventions start": [plan["budget"]["steps"] * share for share in (0.25, 0.5)],
                     "the blend changes": [plan["budget"]["steps"] * 0.75]}  # fmt: skip
    assert "dose, from 25% to 75%" in [panel.title for panel in curriculum_panels(Training([], plan, {}))]


def branch(name: str, validation: int = 1) -> Branch:
    points = [(512.0 * k, 2.0) for k in range(validation)]
    return Branch(name, [512.0], [2.0], 1, 2.0, {"web": points}, 0.0, 0.0, 0.0, 1, 0)


def test_the_seeds_of_an_arm_share_a_colour_and_the_further_ones_are_faint_in_every_panel():
    plan = {
        "seeds": [42, 43],
        "arms": [
            {"name": name, "interventions": kind, "phases": []} for name, kind in (("data-20", "data"), ("safe-100", "none"))
        ],
        "segments": [{"branch": name} for name in ("trunk", "data-20", "trunk-s43")],
    }
    plan["stages"] = [{"name": "mt"}, {"name": "instruct"}]
    names = ["data-20", "trunk", "trunk-s43", "data-20/instruct", "safe-100/instruct", "safe-100-s43/instruct", "data-20/mt"]
    pretraining, midtraining, tuning = loss_panels(Training([branch(name) for name in names], plan, {}))
    assert [one.title for one in (midtraining, tuning)] == ["After pretraining: mt", "After pretraining: instruct"]
    assert [one.label for one in midtraining.series] == ["data-20"]
    trunk = "trunk (= safe-100)"
    assert [(one.label, one.faint) for one in pretraining.series] == [("data-20", False), (trunk, False), (trunk, True)]
    assert [(one.label, one.faint) for one in tuning.series] == [("data-20", False), (trunk, False), (trunk, True)]
    assert len({one.colour for one in (*pretraining.series, *tuning.series)}) == 2


def test_the_trunk_of_a_point_is_that_of_its_arm_without_interventions():
    arm = {"name": "safe-100.large", "interventions": "none", "phases": []}
    plan = {"seeds": [42], "arms": [arm], "segments": [{"branch": "trunk.small"}, {"branch": "trunk.large"}]}
    names = ("trunk.small", "trunk.large", "safe-100.large/instruct")
    panels = loss_panels(Training([branch(name) for name in names], plan, {}))
    assert {(one.label, one.colour) for panel in panels for one in panel.series} == {("trunk (= safe-100.large)", 0)}


def test_a_single_validation_of_each_run_stands_in_the_table_alone():
    assert validation_panels(Training([branch("trunk"), branch("data-20")], {}, {})) == []
    (panel,) = validation_panels(Training([branch("trunk", 2), branch("data-20")], {}, {}))
    assert [one.kind for one in panel.series] == ["line", "dots"]


def test_what_is_no_number_and_what_is_markup_leave_the_pages_data_whole():
    text = embedded_json({"loss": [float("nan"), 1.0], "name": "</script><!--&"})
    assert json.loads(text) == {"loss": [None, 1.0], "name": "</script><!--&"} and "<" not in text


def test_a_loss_that_is_no_number_is_null_in_the_summary_and_nan_on_the_page(tmp_path):
    (log := tmp_path / "pretrain/trunk/metrics.jsonl").parent.mkdir(parents=True)
    log.write_text('{"step": 1, "tokens": 10, "loss": 2.0}\n{"step": 1, "validation": {"web": NaN}}\n')
    course = Course("data-20", 0, "base", (), (), None, "data-20/base", (("pretrain/trunk/metrics.jsonl", None),), 10)
    bits = {"arm": "data-20", "seed": 0, "source": "web", "loss": math.nan, "bytes_per_token": 4.0}
    study = {"courses": [course], "bits_per_byte": [bits]}
    text = write_report(tmp_path, TWO, study, tmp_path / "report").read_text()
    summary = (tmp_path / "report/summary.json").read_text()
    assert "NaN" not in summary
    assert [json.loads(summary)[name][0]["value"] for name in ("along", "bits-per-byte", "bits-estimates")] == [None] * 3
    assert table(text, "t-losses")[0]["validation: web"] == "nan" and "along-base" in Page(text).ids


def test_a_table_for_latex_escapes_what_latex_would_take_for_a_command():
    rows = [{"arm": "full_20 & 5% \\input{x}", "rate": -0.25, "empty": None}, {"arm": "a", "rate": None, "empty": ""}]
    text = latex(["arm", "rate", "empty"], rows)
    assert r"full\_20 \& 5\% \textbackslash{}input\{x\} & $-$0.250 \\" in text and "a & -- \\\\" in text
    assert text.startswith("\\begin{tabular}{lr}\n\\toprule\narm & rate \\\\\n\\midrule") and "empty" not in text


def test_the_page_and_its_tables_round_a_tie_alike():
    point = Point("", "attack success", "base", "topk", "", "data-0", 0.0625, runs=((0.0625, True),))
    assert as_row(point)["runs"] == "0.063*" and "0.063" in latex(["x"], [{"x": 0.0625}])
    page = template("report.html.j2").environment.from_string("{{ 12.5|fixed(0) }}").render()
    assert (page, percent(0.0625), points(-0.0625, "")) == ("13", "6.3%", "−6.3")
    assert str(plain({"value": -1e-9})) == "{'value': 0.0}"


def test_no_row_holds_two_numbers_over_seeds_in_one_column():
    @dataclass(frozen=True)
    class Two:
        first: OverSeeds
        second: OverSeeds

    with pytest.raises(ValueError, match="Two.second would overwrite column high"):
        as_row(Two(*(OverSeeds(rate, 0.1, 0.9, None, {1: rate}) for rate in (0.2, 0.3))))


def test_published_rates_stand_beside_the_arm_that_is_trained_most_alike(tmp_path):
    arms = [ARMS[1], ARMS[-1]]
    for arm in arms:
        for stage in ("base", "benign"):
            rows = attack_rows(arm, stage, "topk", 0.4, 2, {"tdc": 10})
            append_judged(tmp_path / "eval" / arm.key / stage / "attacks-topk.jsonl", rows)
    text = write_report(tmp_path, arms, {}, tmp_path / "report").read_text()
    published = csv_rows(tmp_path / "report/tables/published.csv")
    rows = {(row["model"], row["stage"], row["decoder"]): row for row in published}
    assert set(rows) == {
        (model, stage, "topk") for model in ("safety pretraining", "standard pretraining") for stage in ("base", "benign")
    } | {("safe text only", "benign", "topk")}
    assert rows["safety pretraining", "base", "topk"]["arm"] == "full-0" and rows["safe text only", "benign", "topk"]["rate"]
    assert not rows["standard pretraining", "base", "topk"]["rate"] and "Published numbers" in text


def test_published_rates_stand_beside_attack_success_and_beside_nothing_in_a_fictional_world(tmp_path):
    arm = ARMS[1]
    own = replace(arm, interventions=arm.name)  # its phases are the study's own
    for stage in ("instruct", "benign"):
        rows = attack_rows(arm, stage, "topk", 0.4, 2, {"tdc": 10, "advbench": 10})
        append_judged(tmp_path / f"eval/{arm.key}/{stage}/attacks-topk.jsonl", rows)
    append_judged(tmp_path / f"eval/{arm.key}/instruct/overrefusal-topk.jsonl", overrefusal_rows(arm, "topk", (0.9, 0.1), 10))
    write_report(tmp_path, [arm], {}, tmp_path / "report")
    summary = json.loads((tmp_path / "report/summary.json").read_text())
    success = {row["stage"]: row["rate"] for row in summary["attacks"] if row["benchmark"] == "all"}
    ours = {row["stage"]: row["rate"] for row in summary["published"] if row["arm"] == arm.name}
    assert ours == success and max(success.values()) < 0.9
    assert {row["arm"] for row in summary["published"]} == {arm.name, ""}  # arms that the study lacks have no name here
    write_report(tmp_path, [own], {}, tmp_path / "report")
    summary = json.loads((tmp_path / "report/summary.json").read_text())
    assert {(row["arm"], row["rate"]) for row in summary["published"]} == {("", None)}
    (tmp_path / "world").mkdir()
    text = write_report(tmp_path, [arm], {}, tmp_path / "report").read_text()
    assert "Published numbers" not in text


def test_several_studies_are_compared_from_the_numbers_of_their_pages(tmp_path):
    summaries = {}
    for name, rate in (("calm", 0.2), ("rash <b>", 0.7)):
        run = write_answers(tmp_path / name, rate)
        write_report(run, TWO, {}, run / "report")
        summaries[name] = json.loads((run / "report/summary.json").read_text())
    with written_as(*EVERY_FORMAT):
        page = write_comparison(summaries, tmp_path / "out")
    row = next(row for row in csv_rows(tmp_path / "out/tables/comparison.csv") if row["arm"] == "safe-100")
    for name, summary in summaries.items():
        own = next(point for point in summary["points"] if point["arm"] == "safe-100" and not point["benchmark"])
        assert float(row[name]) == own["value"] and float(row[f"{name}: high"]) == own["high"]
    assert "rash &lt;b&gt;" in page.read_text() and "rash <b>" not in page.read_text().split("study-data")[0]
    assert (tmp_path / "out/figures/comparison.pdf").read_bytes().startswith(b"%PDF")


def test_each_study_has_its_own_claims_and_curves_in_a_comparison(tmp_path):
    starts = {"data-0": (0.0, "data"), "data-60": (0.6, "data"), "full-0": (0.0, "full"), "safe-100": (1.0, "none")}
    starts |= {"ramp": (0.5, "ramp"), "full": (0.2, "full")}
    place = {"judge": "", "measure": "attack success", "stage": "base", "place": "topk", "benchmark": "", "hollow": False}

    def summary(values: list[float], *trends: tuple[str, str, float | None, str]) -> dict:
        points = [
            {**place, "arm": arm, "value": value, "low": value - 0.1, "high": value + 0.1} for arm, value in zip(starts, values)
        ]
        points += [{**one, "judge": "other", "value": 0.9} for one in points]
        points += [{**points[0], "benchmark": "tdc", "value": 0.8}, {**points[0], "measure": "4_full_refusal", "value": 0.7}]
        arms = [{"name": name, "start": start, "interventions": kind} for name, (start, kind) in starts.items()]
        claims = [dict(zip(("sentence", "outcome", "difference", "measure"), test)) for test in trends]
        return {"arms": arms[::-1], "points": points, "trends": claims, "overrefusal": []}

    first = summary(
        [0.1, 0.2, 0.3, 0.4], ("<A>", "reproduced", -0.25, "attack success"), ("B", "not measured", None, "probe AUC")
    )
    second = summary([0.5, 0.6, 0.65, 0.75, 0.55, 0.45], ("B", "inconclusive", 0.125, "probe AUC"))
    second["points"][3]["hollow"] = True
    page = write_comparison({"one": first, "two": second}, tmp_path).read_text()
    assert [list(row.values()) for row in table(page, "t-claims")] == [
        ["<A>", "✓ reproduced −25.0", "– not measured –"], ["B", "– not measured –", "~ inconclusive +0.125"],
    ]  # fmt: skip
    rates = {row["Arm"]: (row["one"], row["two"]) for row in table(page, "t-rates") if row["Measure"] == "attack success"}
    assert rates["safe-100"] == ("40.0% 30.0% to 50.0%", "75.0%* 65.0% to 85.0%") and len(rates) == 6
    (panel,) = comparison_panels({"one": first, "two": second})
    lines = {one.label: (one.x, one.y) for one in panel.series if one.kind == "line"}
    assert lines == {
        "one: data": ([0.0, 0.6, 1.0], [0.1, 0.2, 0.4]), "one: data and tags": ([0.0, 1.0], [0.3, 0.4]),
        "two: data": ([0.0, 0.6, 1.0], [0.5, 0.6, 0.75]), "two: data and tags": ([0.0, 1.0], [0.65, 0.75]),
        "two: ramp": ([0.5], [0.55]), "two: full (arm)": ([0.2], [0.45]),  # points, as on their own pages
    }  # fmt: skip
    assert len({one.colour for one in panel.series}) == 6
    hollow = [(one.x, one.y) for one in panel.series if one.hollow]
    assert hollow == [([1.0], [0.75])] * 2  # each curve of the second study ends there
    assert sum(len(one.x) for one in panel.series if one.kind == "dots" and not one.hollow) == 12 - 2


def test_answers_to_benign_requests_are_compared_as_finely_as_their_judge_can_tell(tmp_path):
    summaries = {}
    for name, tells in (("fine", True), ("coarse", False)):
        run = write_answers(tmp_path / name)
        for arm in TWO:
            rows = [
                msgspec.structs.replace(row, tells_helpful=tells)
                for row in overrefusal_rows(arm, "topk", (0.0, 0.75, 0.0, 0.25), 20)
            ]
            append_judged(run / "eval" / arm.key / "instruct/overrefusal-topk.jsonl", rows)
        page = write_report(run, TWO, {}, run / "report").read_text()
        assert tells != (f'<p class="note">{COARSE}</p>' in page)
        summaries[name] = json.loads((run / "report/summary.json").read_text())
    rows = [row for row in table(write_comparison(summaries, tmp_path).read_text(), "t-rates") if row["Arm"] == "safe-100"]
    found = {row["Measure"]: (row["fine"], row["coarse"]) for row in rows}
    (rate, *same) = {row["rate"] for one in summaries.values() for row in one["overrefusal"] if row["arm"] == "safe-100"}
    assert not same and found["not over-refused"][0].startswith(percent(1 - rate)) and " to " in found["not over-refused"][1]
    assert found["compliant, helpful"] == ("0.0%", "–") and found["full refusal"] == (percent(rate), "–")


@pytest.fixture
def live(tmp_path):
    """A page of a run that grows, and its server."""
    (tmp_path / "run/eval").mkdir(parents=True)
    (tmp_path / "page.html").write_text('<html lang="en">1')
    found = LivePage(tmp_path / "run", lambda: tmp_path / "page.html", 0, token="right")
    threading.Thread(target=found._server.serve_forever, daemon=True).start()
    yield found
    found.close()


def asked(live: LivePage, path: str, host: str = "localhost:9000") -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", live.port, timeout=120)
    connection.request("GET", path, headers={"Host": host})
    answer = connection.getresponse()
    assert answer.getheader("Cache-Control") == "no-store"
    return answer.status, answer.read().decode()


def test_the_server_shows_the_page_to_who_has_the_token_under_this_machines_name_alone(live):
    assert asked(live, "/?token=right") == (200, f'<html lang="en" data-version="{live.version}">1')
    assert asked(live, "/?token=right", "127.0.0.1")[0] == 200
    for path, host in (
        ("/", "localhost"),
        ("/?token=wrong", "localhost"),
        ("/?token=", "localhost"),
        ("/?token=right", "attacker.example:80"),
        ("/?token=right", "127.0.0.1.attacker.example"),
        ("/version?token=", "localhost"),
    ):
        assert asked(live, path, host)[0] == 403, (path, host)
    assert asked(live, "/../run/study.yaml?token=right")[0] == 404
    assert live._server.server_address[0] == "127.0.0.1" and live.address.endswith("/?token=right")


def test_the_page_is_made_anew_when_the_run_has_changed_and_not_for_a_heartbeat(live, tmp_path):
    assert not live.refresh()
    (tmp_path / "run/jobs/a/b").mkdir(parents=True)
    (tmp_path / "run/jobs/a/b/progress.json").write_text("{}")
    assert not live.refresh()
    (tmp_path / "run/jobs/a/b/done.json").write_text("{}")
    (tmp_path / "page.html").write_text('<html lang="en">2')
    before = live.version
    assert live.refresh() and asked(live, "/version?token=right") == (200, live.version) and live.version != before


def test_a_taken_port_is_named(live, tmp_path):
    with pytest.raises(UserError, match=f"--port {live.port}: Address already in use; name another port"):
        LivePage(tmp_path / "run", lambda: tmp_path / "page.html", live.port)
    with pytest.raises(UserError, match="--port 99999: not a port number"):
        LivePage(tmp_path / "run", lambda: tmp_path / "page.html", 99999)


def test_weights_and_biases_receives_tables_and_figures(tmp_path, monkeypatch):
    run = write_answers(tmp_path / "run")
    with written_as(".svg", ".png"):
        write_report(run, TWO, {}, run / "report")
    logged, begun = {}, {}

    class Run:
        log, finish = staticmethod(logged.update), staticmethod(lambda: None)

    wandb = types.SimpleNamespace(init=lambda **settings: begun.update(settings) or Run(),
                                  Table=lambda columns, data: (columns, data), Image=lambda path: path)  # fmt: skip
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    track_report("when-safety", run, run / "report")
    columns, rows = logged["tables/attacks"]
    assert (
        columns[:2] == ["arm", "seed"] and len(rows) == 6 and begun["project"] == "when-safety" and begun["resume"] == "allow"
    )
    assert logged["figures/fig3-instruct-asr"].endswith("fig3-instruct-asr.png")
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="wandb is not installed"):
        track_report("when-safety", run, run / "report")


def test_the_terminal_shows_how_many_samples_are_behind_each_decoders_rate():
    verdicts = {"best-of-n+topk": ["safe"] * 19 + ["harmful"], "topk": ["harmful", *["safe"] * 4], "safebeam": ["safe"]}
    rows = [row for decoder, given in verdicts.items() for row in verdict_rows({"a": given, "b": given}, decoder=decoder)]
    console = Console(record=True, width=200, file=io.StringIO())
    print_metrics({"attacks": attack_metrics(rows, Model("arm", 0, "instruct")), "overrefusal": []}, console)
    shown = " ".join(console.export_text().split())
    for row in ("best-of-n+topk harmbench 2 × 20 100.0 ", "safebeam harmbench 2 × 1 0.0 ", "topk harmbench 2 × 5 20.0 "):
        assert row in shown
    assert "ASR is ASR@1; for best of N, ASR@N" in shown and "ASR@20" not in shown


def test_differences_within_each_seed_stand_beside_the_estimate(tmp_path):
    first = [replace(arm, seed=42) for arm in TWO]
    arms = [*first, *(replace(arm, seed=43, key=f"{arm.name}-s43") for arm in TWO)]
    for arm in arms:
        rows = attack_rows(arm, "instruct", "topk", 0.2 if arm.start < 1 else 0.6, 2, {"tdc": 20})
        append_judged(tmp_path / "eval" / arm.key / "instruct" / "attacks-topk.jsonl", rows)
    write_report(tmp_path, arms, {}, tmp_path / "report")
    (gap,) = json.loads((tmp_path / "report/summary.json").read_text())["differences"]
    seeds = dict(run.split(": ") for run in gap["runs"].split(", "))
    assert list(seeds) == ["42", "43"] and sum(map(float, seeds.values())) / 2 == pytest.approx(gap["value"], abs=2e-3)


def test_what_a_later_stage_changes_stands_under_the_differences(tmp_path):
    def page(name: str, runs: list[tuple[ArmInfo, str]], **study) -> tuple[str, list[dict]]:
        run = tmp_path / name
        for arm, stage in runs:
            rate = 0.2 if stage == "instruct" else 0.9 if arm.start == 1 else 0.3
            rows = attack_rows(arm, stage, "topk", rate, 1, {"tdc": 30})
            append_judged(run / "eval" / arm.key / stage / "attacks-topk.jsonl", rows)
        arms = list(dict.fromkeys(arm for arm, _ in runs))
        text = Page(write_report(run, arms, study, run / "report").read_text()).text
        return text, json.loads((run / "report/summary.json").read_text())["changes"]

    plan, stages = {"parents": {"benign": "instruct"}}, ("instruct", "benign")
    first = [(arm, stage) for arm in TWO for stage in stages]
    text, (own, reference, against) = page("one", first, **plan)
    assert against["value"] == pytest.approx(own["value"] - reference["value"], abs=1e-5) and against["high"] < 0
    assert own["reference"] == "" and against["reference"] == "safe-100"
    table = text.split("Attack success, instruct → benign; the reference is “no interventions”.")[1]
    assert text.index("Each arm against the one") < text.index("What a later stage changes") < text.index(table)
    assert table.split()[:7] == ["Arm", "Top-k", "sampling", "Top-k", "sampling", "−", "reference"]
    value, low, high = (f"{own[name] * 100:+.1f}".replace("-", "−") for name in ("value", "low", "high"))
    assert f"data, from 20% {value} {low} to {high} p (Holm) " in table and "prompts alone p" not in table
    tables = tmp_path / "one/report/tables"
    assert (tables / "changes.csv").read_text().startswith("before,stage,task,") and (tables / "changes.tex").exists()

    text, changes = page("unfinished", first[:3], **plan)
    assert [one["arm"] for one in changes] == ["data-20"] and text.count("− reference") == 1 and "instruct → benign." in text
    text, changes = page("untuned", first)
    assert changes == [] and "What a later stage changes" not in text
    second = [(replace(arm, seed=43, key=f"{arm.name}-s43"), stage) for arm, stage in first[2:]]
    text, changes = page("more", first + second, cooled=True, **plan)
    assert "enter their data, and when, in the seed, and in when their learning rate falls." in text
    assert {one["arm"]: one["seeds"] for one in changes if not one["reference"]} == {"data-20": 1, "safe-100": 2}
    assert text.split("instruct → benign;")[1].split("no interventions")[1].count("prompts alone p") == 2


def test_the_page_says_what_arms_cannot_be_compared_by(tmp_path):
    arms = [ARMS[2], ARMS[3], ARMS[-1]]
    for arm in arms:
        changes = {"task": "transfer-topk", "decoder": "transfer+topk"}
        rows = attack_rows(arm, "instruct", "topk", 0.4, 1, {"data-20": 5, "full-20": 5})
        rows = [msgspec.structs.replace(row, **changes) for row in rows]
        append_judged(tmp_path / "eval" / arm.key / "instruct" / "transfer-topk.jsonl", rows)
        version = "9z" if arm.name == "full-20" else "1a2b"
        tuned = attack_rows(arm, "benign", "topk", 0.4, 1, {"tdc": 5}) if arm.start < 1 else []
        tuned = [msgspec.structs.replace(row, judge_version=version) for row in tuned]
        append_judged(tmp_path / "eval" / arm.key / "benign" / "attacks-topk.jsonl", tuned)
    having = {"benign": ("data-20", "full-20")}
    html = write_report(tmp_path, arms, {"having": having, "tagged": True, "cooled": True}, tmp_path / "report").read_text()
    text = Page(html).text
    for name in ("t-differences", "t-of-differences"):
        rows = html.split(f'id="{name}"')[1].split("</table>")[0]
        assert {"data, from 20%", "no interventions"} <= set(re.findall(r'<td class="text">([^<]+)</td>', rows))
        assert "judged by different versions: world 1a2b, world 9z" in rows
    assert "An arm’s own suffixes are no transfer" in text and "do not reflect timing alone" in text
    assert "in when their learning rate falls, and in how much of their tuning is tagged" in text
    assert "judged by different versions: world 1a2b, world 9z" in text and "the study lacks data-0" in text
    assert "(benign: data-20, instruct: safe-100)" in text or "(instruct: safe-100, benign: data-20)" in text
    points = csv_rows(tmp_path / "report/tables/points.csv")
    shown = {row["benchmark"]: row["value"] for row in points if (row["place"], row["arm"]) == ("transfer+topk", "data-20")}
    assert shown[""] == shown["full-20"] and "data-20" in shown  # the matrix has both
