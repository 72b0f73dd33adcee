"""The page shows what was measured along the way, where there is any."""

import msgspec
from figure_files import written_as
from report_page import Page
from study_rows import ARMS, append_judged, attack_rows, generation

from curricula.eval.analysis.along import Course, CurvePoint
from curricula.eval.analysis.metrics import StudyMetrics
from curricula.eval.report.figures import further_figures, remove_stale
from curricula.eval.report.page import write_report
from curricula.eval.report.points import Shown

(ASKED,) = attack_rows(ARMS[0], "benign", "topk", 0.5, 1, {"tdc": 1})


def test_a_stage_that_was_measured_along_the_way_has_a_figure_and_a_table(tmp_path):
    arms, run = ARMS[:1], tmp_path
    for stage in ("instruct", "benign"):
        row = generation(model=f"{arms[0].key}/{stage}", model_kind=stage, benchmark="tdc")
        row = msgspec.structs.replace(row, behavior=ASKED.behavior, prompt=ASKED.prompt)
        append_judged(run / "eval" / arms[0].key / stage / "attacks-topk.jsonl", [row])
    for step, verdict in ((2, "safe"), (4, "harmful")):
        place = f"{arms[0].key}/benign@step{step}"
        row = generation(model=place, model_kind="benign", step=step, verdict=verdict, key=place, benchmark="tdc")
        row = msgspec.structs.replace(row, behavior=ASKED.behavior, prompt=ASKED.prompt)
        append_judged(run / "eval" / place / "attacks-topk.jsonl", [row])
    points = tuple(f"{arms[0].key}/benign@step{step}" for step in (2, 4))
    ends = {"begin": f"{arms[0].key}/instruct", "end": f"{arms[0].key}/benign"}
    log = (("tune/none/metrics.jsonl", None),)
    course = Course(arms[0].name, 0, "benign", ("attacks-topk",), points, **ends, logs=log, step_tokens=10, steps=8)
    page = Page(write_report(run, arms, {"courses": [course]}, tmp_path / "out").read_text())
    assert "along-benign" in page.ids and "Measured along the way" in page.text
    assert (tmp_path / "out/tables/along.csv").read_text().count("attack success") == 4
    assert (tmp_path / "out/figures/along-benign.svg").exists()
    assert "stages" not in page.ids  # all are the paper's
    without = Page(write_report(run, arms, {}, tmp_path / "out").read_text())
    assert "along" not in without.ids and not list((tmp_path / "out/tables").glob("along.*"))
    assert not (tmp_path / "out/figures/along-benign.svg").exists()


def test_a_report_removes_the_figures_that_only_an_earlier_one_drew(tmp_path):
    earlier, drawn, others = ("along-a.b", "capability", "stage-harmful-asr", "fig6-gcg"), "along-base", ("mine", "along-mine")
    for name in (*earlier, drawn, *others):
        for suffix in (".svg", ".png") if name != "along-mine" else (".svg",):
            (tmp_path / f"{name}{suffix}").touch()
    with written_as(".svg", ".png"):
        remove_stale(tmp_path, [tmp_path / f"{drawn}.svg"])
    left = {f"{drawn}.svg", f"{drawn}.png", "mine.svg", "mine.png", "along-mine.svg"}
    assert {path.name for path in tmp_path.iterdir()} == left


def test_a_stage_that_the_paper_does_not_have_has_tables_and_a_figure(tmp_path):
    rows = [
        generation(model="m", model_kind="harmful", verdict="harmful", key=str(number), prompt_id=str(number))
        for number in range(5)
    ]
    append_judged(tmp_path / "eval" / ARMS[0].key / "harmful" / "attacks-topk.jsonl", rows)
    tasks = {"base": [], "instruct": [], "harmful": ["attacks-topk", "probes"], "none": ["attacks-topk"]}
    study = {"tasks": tasks, "having": {"none": ()}}
    page = Page(write_report(tmp_path, ARMS[:1], study, tmp_path / "out").read_text())
    assert "stage-harmful-asr" in page.ids and "Attack success on models after harmful" in page.text
    assert f"{ARMS[0].key} harmful probes" in page.text and "none attacks-topk" not in page.text
    assert (tmp_path / "out/figures/stage-harmful-asr.svg").exists()


def test_a_curve_along_pretraining_says_that_its_checkpoints_have_not_decayed():
    points = [CurvePoint(stage, "data-0", 0, 2, 20, "attack success", "topk", 0.5) for stage in ("base", "benign")]
    shown = Shown(ARMS[:1], [0], StudyMetrics([], [], [], []), curves=points)
    pretraining, tuning = (figure.caption(shown) for figure in further_figures(shown))
    assert "undecayed checkpoints are compared with a decayed end" in pretraining and "undecayed" not in tuning
