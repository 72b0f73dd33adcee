"""The axes and colours of panels of lines, points and areas."""

from __future__ import annotations

import msgspec
import pytest
from figure_files import written_as
from matplotlib import pyplot
from study_rows import ARMS, probe_rows

from curricula.eval.analysis.along import CurvePoint
from curricula.eval.analysis.metrics import Model, StudyMetrics, probe_metrics
from curricula.eval.analysis.study_rows import ArmInfo
from curricula.eval.report.drawing import curves_of
from curricula.eval.report.figures import FIGURES, figures_of, save_figure
from curricula.eval.report.panels import Panel, Series, draw_panels
from curricula.eval.report.points import Shown

(LAYERS,) = (figure for figure in FIGURES if figure.name == "layers")


@pytest.fixture(autouse=True)
def closing():
    yield
    pyplot.close("all")


@pytest.fixture
def probed() -> Shown:
    """Six layers of base and tuned models of every arm; tuning lowers the AUC by 0.3."""
    found = []
    for arm in ARMS:
        for stage, auc in (("base", 0.9), ("instruct", 0.6)):
            rows = [
                msgspec.structs.replace(row, layer=name, layer_index=layer)
                for layer, name in enumerate(("first", "2", "middle", "4", "5", "last"))
                for row in probe_rows(arm, stage, "last", auc + layer / 100)
            ]
            found += probe_metrics(rows, Model(arm.name, 0, stage))
    return Shown(ARMS, [42], StudyMetrics([], [], found, []))


def test_rates_along_a_training_have_an_axis_from_0_to_100_percent_and_losses_their_own():
    values = {"attack success": (0.02, 0.04), "refusals": (0.9, 0.95), "validation loss": (2.9, 3.1)}
    curves = [
        CurvePoint("benign", "full-20", 42, step, 10 * step, measure, "topk", value)
        for measure, both in values.items()
        for step, value in enumerate(both)
    ]
    shown = Shown(ARMS[:1], [42], StudyMetrics([], [], [], []), curves=curves)
    (figure,) = figures_of(shown)
    attacked, refused, loss, *_ = [axes.get_ylim() for axes in figure.draw(shown).axes]
    assert attacked == refused == (-0.03, 1.03) and loss[0] > 2


def test_no_two_of_many_intervention_sets_look_alike():
    curves = curves_of([ArmInfo(f"dose-{number}", 0.5, f"dose-{number}") for number in range(18)])
    assert len({(curve.colour, curve.marker) for curve in curves}) == 18


def test_an_arm_of_the_studys_own_is_no_point_of_the_curve_of_a_set_with_its_name():
    custom, end = ArmInfo("data", 0.5, "data"), ArmInfo("safe-100", 1.0, "none")
    of_set = [ArmInfo("data-20", 0.2, "data"), ArmInfo("data-60", 0.6, "data")]
    curves = curves_of([*of_set, custom, end])
    assert [(curve.label, curve.arms) for curve in curves] == [("data", [*of_set, end]), ("data (arm)", [custom])]
    assert curves[0].colour != curves[1].colour


def test_the_arm_without_interventions_is_drawn_beside_arms_of_the_studys_own_too():
    custom, end = ArmInfo("ramp", 0.5, "ramp"), ArmInfo("safe-100", 1.0, "none")
    assert [curve.arms for curve in curves_of([custom, end])] == [[custom], [end]]


def test_no_two_of_many_arms_look_alike_along_a_training():
    names = [f"data-{start}" for start in range(18)]
    points = [CurvePoint("base", name, 42, step, step, "attack success", "topk", 0.5) for name in names for step in (1, 2)]
    shown = Shown((), [42], StudyMetrics([], [], [], []), curves=points)
    (figure,) = figures_of(shown)
    lines = figure.draw(shown).legends[0].get_lines()
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == len(names)


def test_stacked_shares_fill_the_axis_of_percent():
    shares = [Series(name, "area", [0, 1], [0.5, 0.5], colour=i) for i, name in enumerate("ab")]
    (axes,) = draw_panels([Panel("", "tokens", "share", shares, y_format="percent")]).axes
    low, high = axes.get_ylim()
    assert low <= axes.dataLim.y0 == 0 and axes.dataLim.y1 == 1 <= high


def test_base_and_tuned_models_are_drawn_on_one_scale_of_auc(probed):
    base, tuned = [axes.get_ylim() for axes in LAYERS.draw(probed).axes]
    assert base == tuned and base[0] < 0.6 and base[1] > 0.94
    assert [panel.y_range for panel in LAYERS.panels(probed)] == [base, tuned]  # what the page draws


def legend(canvas) -> dict[str, tuple[str, float]]:
    """Colour and opacity of each entry."""
    lines = zip(canvas.legends[0].get_texts(), canvas.legends[0].get_lines(), strict=True)
    return {text.get_text(): (line.get_color(), line.get_alpha()) for text, line in lines}


def test_arms_have_the_colours_of_their_sets_from_layer_to_layer_too(probed):
    (probes,) = (figure for figure in FIGURES if figure.name == "fig7-probe-last")
    elsewhere = {label: colour for label, (colour, _) in legend(probes.draw(probed)).items()}
    found = legend(LAYERS.draw(probed))
    assert {label: elsewhere[label.partition(", from")[0]] for label in found} == {
        label: colour for label, (colour, _) in found.items()
    }
    assert len(set(found.values())) == len(found) == len(ARMS)  # arms of one set differ in strength


def test_no_label_reaches_over_the_edge_of_a_figures_file(tmp_path):
    def draw():
        canvas, axes = pyplot.subplots(figsize=(8.4, 3), layout="constrained")
        axes.set_yticks([0, 1], ["data and tags, from 20%", "no interventions"])
        return canvas

    with written_as(".png"):
        drawn = pyplot.imread(save_figure("labels", draw, tmp_path).with_suffix(".png"))
    assert (drawn[:, 0, :3] == 1).all() and (drawn[:, :400, :3] < 1).any()
