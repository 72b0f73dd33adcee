"""Curves of what was measured along the way: which models are on a curve, at which step, on which prompts."""

import json

import msgspec
import pytest
from study_rows import append_judged, generation, probe_rows

from curricula.errors import UserError
from curricula.eval.analysis import ArmInfo
from curricula.eval.analysis.along import Course, curve_points, mean_over_seeds
from curricula.eval.analysis.metrics import StudyMetrics
from curricula.eval.report.figures import further_figures
from curricula.eval.report.points import Shown
from curricula.eval.rows import append_rows

ARM = ArmInfo("full-20", 0.2, "full", 42)


def answers(run, place, verdicts, step=None, kind="harmful", prompts=4, **more):
    """One answer to each of `prompts` prompts by the model in `place`, with these verdicts in turn."""
    rows = [
        generation(
            prompt_id=str(number),
            model=place,
            model_kind=kind,
            step=step,
            verdict=verdicts[number % len(verdicts)],
            key=f"{place}/{number}",
            **more,
        )
        for number in range(prompts)
    ]
    append_judged(run / "eval" / place / "attacks-topk.jsonl", rows)


def course(**changes):
    one = Course(
        arm="full-20",
        seed=42,
        stage="harmful",
        tasks=("attacks-topk",),
        points=("full-20/harmful@25", "full-20/harmful@50"),
        begin="full-20/instruct",
        end="full-20/harmful",
        logs=(("tune/full-20/harmful/metrics.jsonl", None),),
        step_tokens=1000,
    )
    return Course(**{**one.__dict__, **changes})


def log(run, name, steps, validated=()):
    path = run / name
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"step": step, "loss": 2.0} for step in range(1, steps + 1)]
    rows += [{"step": step, "validation": {"web": 3.0 - step / 10}} for step in validated]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def rates(points, measure="attack success"):
    return {point.step: point.value for point in points if point.measure == measure}


def test_a_tamper_curve_goes_from_the_model_before_to_the_finished_one_on_the_prompts_of_its_points(tmp_path):
    log(tmp_path, "tune/full-20/harmful/metrics.jsonl", 8)
    answers(tmp_path, "full-20/instruct", ["refusal"] * 4 + ["harmful"] * 6, kind="instruct", prompts=10)
    answers(tmp_path, "full-20/harmful@25", ["refusal", "harmful", "safe", "safe"], step=2)
    answers(tmp_path, "full-20/harmful@50", ["harmful", "harmful", "safe", "unparsed"], step=4)
    answers(tmp_path, "full-20/harmful", ["harmful"] * 4 + ["refusal"] * 6, prompts=10)
    points = curve_points(tmp_path, [course()])
    assert rates(points) == pytest.approx({0: 0.0, 2: 0.25, 4: 2 / 3, 8: 1.0})
    assert rates(points, "refusals") == pytest.approx({0: 1.0, 2: 0.25, 4: 0.0, 8: 0.0})
    assert {point.prompts for point in points} == {3, 4} and points[1].tokens == 1000 * points[1].step
    assert all(point.low <= point.value <= point.high for point in points)


def test_each_point_names_the_version_of_its_judge_and_the_figure_names_several(tmp_path):
    log(tmp_path, "tune/full-20/harmful/metrics.jsonl", 8)
    for place, step, version in (
        ("full-20/harmful@25", 2, "1a"),
        ("full-20/harmful@50", 4, "1a"),
        ("full-20/harmful", None, "2b"),
    ):
        answers(tmp_path, place, ["harmful", "safe"], step, judge_version=version)
    points = curve_points(tmp_path, [course()])
    assert {point.step: point.judges for point in points} == {2: "world 1a", 4: "world 1a", 8: "world 2b"}
    captions = [
        further_figures(shown)[0].caption(shown)
        for some in (points, [point for point in points if point.step < 8])
        for shown in [Shown((ARM,), [42], StudyMetrics([], [], [], []), curves=some)]
    ]
    assert "Not all points were judged by one version: world 1a, world 2b." in captions[0]
    assert captions[0].count("version") == 1 and "version" not in captions[1]


def test_points_that_are_not_there_yet_are_left_out(tmp_path):
    assert curve_points(tmp_path, [course()]) == []
    answers(tmp_path, "full-20/harmful@50", ["harmful"], step=4)
    assert rates(curve_points(tmp_path, [course()])) == {4: 1.0}


@pytest.mark.parametrize(("steps", "last"), [(None, {}), (8, {8: 0.5})])
def test_a_finished_model_whose_metrics_are_gone_stands_where_the_study_says_or_is_left_out(tmp_path, steps, last):
    for place, step in (("full-20/harmful@50", 4), ("full-20/harmful", None)):
        answers(tmp_path, place, ["harmful", "safe"], step)
        (probe,) = probe_rows(ARM, "harmful", "last", 0.5, seeds=1)
        append_rows(tmp_path / "eval" / place / "probes.jsonl", [msgspec.structs.replace(probe, step=step)])
    points = curve_points(tmp_path, [course(tasks=("attacks-topk", "probes"), steps=steps)])
    assert rates(points) == {4: 0.5, **last} and rates(points, "probe AUC").keys() == {4, *last}


def test_arms_share_the_points_and_the_losses_of_the_trunk(tmp_path):
    log(tmp_path, "pretrain/trunk/metrics.jsonl", 20, validated=(5, 15))
    log(tmp_path, "pretrain/full-20/metrics.jsonl", 20, validated=(15, 20))
    aucs = {}
    for number, place in enumerate(("trunk/base@25", "full-20/base@75", "full-20/base")):
        answers(tmp_path, place, ["harmful"] * number + ["safe"] * (4 - number), (5, 15, None)[number], "base")
        (probe,) = probe_rows(ARM, "base", "last", 0.7 + number / 10, seeds=1)
        aucs[(5, 15, 20)[number]] = probe.auc
        probe = msgspec.structs.replace(probe, step=(5, 15, None)[number])
        append_rows(tmp_path / "eval" / place / "probes.jsonl", [probe])
    logs = (("pretrain/trunk/metrics.jsonl", 10), ("pretrain/full-20/metrics.jsonl", None))
    places = ("trunk/base@25", "full-20/base@75")
    pretraining = {"stage": "base", "begin": None, "end": "full-20/base", "points": places, "logs": logs}
    points = curve_points(tmp_path, [course(**pretraining, tasks=("attacks-topk", "probes"))])
    assert rates(points) == {5: 0.0, 15: 0.25, 20: 0.5}
    assert rates(points, "validation loss") == {5: 2.5, 15: 1.5, 20: 1.0}
    assert rates(points, "probe AUC") == pytest.approx(aucs)


def test_over_refusal_along_a_training_is_over_all_its_sets(tmp_path):
    log(tmp_path, "tune/full-20/harmful/metrics.jsonl", 8)
    about = {"task": "overrefusal-topk", "model_kind": "harmful"}
    for place, step, refused in (("full-20/harmful@25", 2, 1), ("full-20/harmful", None, 4)):
        verdicts = ["4_full_refusal"] * refused + ["1_compliant_and_helpful"] * (8 - refused)
        rows = [
            generation(
                benchmark=("alpaca", "xstest")[i // 4],
                prompt_id=str(i),
                prompt=str(i),
                model=place,
                step=step,
                verdict=one,
                **about,
            )
            for i, one in enumerate(verdicts)
        ]
        append_judged(tmp_path / "eval" / place / "overrefusal-topk.jsonl", rows)
    points = curve_points(tmp_path, [course(tasks=("overrefusal-topk",))])
    assert rates(points, "over-refusal") == {2: 0.125, 8: 0.5}
    assert all(point.low < point.value < point.high and point.prompts == 8 for point in points)


def test_rows_of_another_stage_are_refused(tmp_path):
    answers(tmp_path, "full-20/harmful@25", ["harmful"], step=2, kind="benign")
    with pytest.raises(UserError, match="is of a benign model, but the folder is for the harmful model"):
        curve_points(tmp_path, [course()])


def test_training_seeds_are_averaged_step_by_step(tmp_path):
    for seed, verdict in ((42, "harmful"), (43, "safe")):
        answers(tmp_path, f"{seed}/harmful@50", [verdict], step=4)
    answers(tmp_path, "42/harmful@75", ["harmful"], step=6)  # the other run is not there yet
    seeds = [
        course(seed=seed, points=(f"{seed}/harmful@50", f"{seed}/harmful@75"), begin=None, end="none") for seed in (42, 43)
    ]
    points = curve_points(tmp_path, seeds)
    (mean,) = [point for point in mean_over_seeds(points) if point.measure == "attack success"]
    assert (mean.step, mean.value, mean.low) == (4, 0.5, None)
    assert len([point for point in points if point.measure == mean.measure]) == 3
