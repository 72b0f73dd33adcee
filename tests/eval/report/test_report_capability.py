"""What safety costs, on the page: the figure with the Pareto front, the tables, and a correction that says nothing."""

from __future__ import annotations

import io
import json
import re
import shutil
from dataclasses import replace

import pytest
from msgspec import structs
from report_page import Page, csv_rows
from rich.console import Console
from study_rows import ARMS, append_judged, attack_rows, capability_rows, overrefusal_rows, trained

from curricula.eval.analysis.along import Course
from curricula.eval.analysis.capability import CapabilityEstimate, capability_metrics
from curricula.eval.analysis.metrics import Model
from curricula.eval.analysis.runs import runs_of, study_metrics
from curricula.eval.analysis.seeds import OverSeeds
from curricula.eval.analysis.study_rows import StudyRows
from curricula.eval.judges.caveats import vague
from curricula.eval.report.console import print_metrics
from curricula.eval.report.figures import FIGURES
from curricula.eval.report.page import write_report
from curricula.eval.report.points import Shown
from curricula.eval.rows import CapabilityRow, append_rows

SEEDS = (1, 2)
SHOWN = [trained(arm, seed) for seed in SEEDS for arm in (ARMS[0], ARMS[1], ARMS[6])]
RIGHT = {"data-0": 0.3, "full-0": 0.7, "safe-100": 0.8}
HARM = {"data-0": 0.3, "full-0": 0.1, "safe-100": 0.5}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    run = tmp_path_factory.mktemp("run")
    for arm in SHOWN:
        folder = run / "eval" / arm.key / "base"
        append_judged(folder / "attacks-topk.jsonl", attack_rows(arm, "base", "topk", HARM[arm.name], 1, {"tdc": 20}))
        for name in ("arc_easy", "<b>mine"):
            append_rows(folder / "capability" / f"{name}.jsonl", capability_rows(arm, "base", name, RIGHT[arm.name]))
    losses = [
        {"arm": arm.name, "seed": arm.seed, "source": "web", "loss": 2.0 + arm.seed / 10, "bytes_per_token": 4.0}
        for arm in SHOWN
    ]
    planned = ["attacks-topk", "capability arc_easy", "capability mmlu"]
    study = {"bits_per_byte": losses, "tasks": {"base": planned, "instruct": ["capability arc_easy"]}}
    return run, write_report(run, SHOWN, study, run / "report").read_text()


def test_the_page_shows_attack_success_against_capability_and_escapes_names(built):
    run, page = built
    read = Page(page)
    assert "What safety costs" in read.text and "<b>mine" in read.text
    assert "Pareto front" in read.text and "capability" in read.ids
    assert (run / "report/figures/capability.svg").stat().st_size > 5_000
    assert "data-0-s1 instruct capability arc_easy" in read.text and "data-0-s1 base capability mmlu" in read.text
    assert "data-0-s1 base capability arc_easy" not in read.text


def test_an_incoherent_model_is_hollow_and_not_on_the_pareto_front():
    arms, answers = ARMS[:2], {}
    for arm, harm, helpful in ((arms[0], 0.0, 0.0), (arms[1], 0.5, 1.0)):
        answers[arm.key, "instruct", "attacks-topk"] = attack_rows(arm, "instruct", "topk", harm, 1, {"tdc": 30})
        shares = (helpful, 1 - helpful, 0.0, 0.0)
        answers[arm.key, "instruct", "overrefusal-topk"] = overrefusal_rows(arm, "topk", shares)
    metrics = study_metrics(runs_of(StudyRows(tuple(arms), answers, {})))
    estimates = [CapabilityEstimate("instruct", "arc", arm.name, OverSeeds(0.6, 0.5, 0.7, None, {0: 0.6})) for arm in arms]
    shown, figure = Shown(arms, [0], metrics, capability=estimates), next(one for one in FIGURES if one.name == "capability")
    canvas = figure.draw(shown)
    lost, fluent, front = canvas.axes[0].get_lines()
    assert (lost.get_markerfacecolor() == "white") and (fluent.get_markerfacecolor() != "white")
    assert list(front.get_ydata()) == list(fluent.get_ydata())
    assert "Hollow: incoherent models" in figure.caption(shown)
    # A set has its colour of the legend, whether or not the arms of others are in the panel.
    of_legend = {text.get_text(): text.get_color() for text in canvas.legends[0].get_texts()}
    (alone, _) = figure.draw(replace(shown, capability=estimates[1:])).axes[0].get_lines()
    assert alone.get_color() == fluent.get_color() == of_legend["data and tags"]


def test_the_page_of_a_study_that_measures_capability_alone_has_its_name_and_says_nothing_of_safety(built, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(built[0] / "eval", run / "eval", ignore=shutil.ignore_patterns("attacks*"))
    study = {"plan": {"study": "maths-late"}, "tasks": {"base": ["capability arc_easy", "capability <b>mine"]}}
    page = write_report(run, SHOWN, study, run / "report").read_text()
    read = Page(page)
    assert "<title>maths-late</title>" in page and "<h1>maths-late</h1>" in page
    assert "Capability of base models" in read.text and "maths-late" in read.text
    assert not re.search("safety|paper|claim|judge’s|harmful|verdict|over-refusal|attack|unparsed", read.text, re.IGNORECASE)
    assert {link[1:] for link in read.links if link.startswith("#")} <= set(read.ids)
    places = {"points": (), "begin": None, "end": "data-0/base", "logs": (), "step_tokens": 1}
    courses = [Course(arm="data-0", seed=1, stage="base", tasks=("attacks-topk",), **places)]
    assert "paper’s claims" in write_report(run, SHOWN, {**study, "courses": courses}, run / "report").read_text()


def test_the_tables_hold_every_run_and_every_arm(built):
    run, _ = built
    runs = csv_rows(run / "report/tables/capability.csv")
    assert len(runs) == len(SHOWN) * 3 and {row["benchmark"] for row in runs} == {"arc_easy", "<b>mine", "all"}
    summary = json.loads((run / "report/summary.json").read_text())
    full = [row for row in summary["capability-estimates"] if (row["arm"], row["benchmark"]) == ("full-0", "all")]
    assert full[0]["seeds"] == 2 and full[0]["low"] < full[0]["value"] < full[0]["high"]
    bits = {(row["arm"], row["seed"]): row["value"] for row in summary["bits-per-byte"]}
    assert bits["full-0", 1] == pytest.approx(2.1 / 0.693147 / 4, abs=1e-5)
    assert {(row["seeds"], row["runs"]) for row in summary["bits-estimates"]} == {(2, "1: 0.7574, 2: 0.7935")}


def test_the_page_says_why_there_are_no_bits_per_byte(tmp_path):
    why = "web: holds no finished shard; make its shards"
    text = Page(write_report(tmp_path, SHOWN, {"bits_missing": why}, tmp_path / "report").read_text()).text
    assert f"Bits per byte are not shown, because what they are computed from is gone: {why}." in text


def test_questions_that_lost_their_beginning_are_counted_beside_their_score():
    row = CapabilityRow(
        key="k", model="m", model_kind="base", precision="float32", benchmark="words", task="words", prompt_id="0",
        question="q", metric="acc", value=1.0, shots=0,
    )  # fmt: skip
    rows = [structs.replace(row, prompt_id=str(n), question=str(n), cut=n < 3) for n in range(7)]
    for given, cut in ((rows, 3), (rows[3:], 0)):
        (found,) = capability_metrics(given, Model("arm", 0, "base"))
        shown = io.StringIO()
        print_metrics({"attacks": [], "overrefusal": [], "capability": [found]}, Console(file=shown, width=120))
        assert found.cut == cut and ("lost their" in shown.getvalue()) is bool(cut)
    assert found.questions == 4


def test_a_correction_that_says_nothing_is_called_so():
    words = vague([("topk on tdc", 0.0, 0.904), ("topk on advbench", 0.1, 0.3), ("topk on average", 0.2, 0.8)])
    assert words.startswith(
        "Corrected rates that could be almost anything: topk on tdc (0.0% to 90.4%), topk on average (20.0%"
    )
    assert words.count("Label more answers") == 1 and "advbench" not in words
    assert vague([("x", 0.1, 0.3), ("y", None, None)]) == ""


def test_an_arm_of_which_a_run_lacks_a_task_has_no_average_and_is_named(built, tmp_path):
    run, page = built
    shutil.copytree(run / "eval", tmp_path / "eval")
    (tmp_path / "eval/safe-100-s2/base/capability/<b>mine.jsonl").unlink()
    text = Page(write_report(tmp_path, SHOWN, {}, tmp_path / "report").read_text()).text
    summary = json.loads((tmp_path / "report/summary.json").read_text())
    averages = {row["arm"] for row in summary["capability-estimates"] if row["benchmark"] == "all"}
    assert averages == {"data-0", "full-0"}
    note = "An average needs all tasks in every run: “no interventions” lacks <b>mine."
    left_out = "Left out among the base models, because a run lacks a task or a benchmark that others have: “no interventions”."
    assert note in text and left_out in text
    assert "An average needs all tasks" not in page and "Left out among" not in page
