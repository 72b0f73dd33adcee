"""The figure of what safety costs: attack success against capability, with the Pareto front."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from curricula.eval.analysis.capability import CapabilityEstimate, pareto_front
from curricula.eval.analysis.metrics import ALL
from curricula.eval.analysis.seeds import OverSeeds
from curricula.eval.analysis.study_rows import ArmInfo
from curricula.eval.report.figures import save_figure
from curricula.eval.report.points import SAFE_ONLY_COLOUR, Point, Shown, add_legend, curves_of
from curricula.eval.report.wording import DECODERS, left_out, stage_title, start_label

NAME = "capability"


def draw_capability(shown: Shown, estimates: Sequence[CapabilityEstimate], folder: Path) -> tuple[Path, str] | None:
    """The figure as SVG, and its caption; None where no stage has both capability and attack success."""
    stages = dict.fromkeys(one.stage for one in estimates)
    by_stage = {stage: [one for one in estimates if stage == one.stage] for stage in stages}
    decoder = next((name for name in DECODERS if any(shown.metrics.attacks_by(stage, name) for stage in by_stage)), "")
    drawn = {stage: found for stage, own in by_stage.items() if (found := _points(shown, stage, decoder, own))}
    if not drawn:
        return None

    def draw() -> Any:
        canvas, panels = pyplot.subplots(
            1, len(drawn), figsize=(4.2 * len(drawn), 3.9), sharey=True, layout="constrained", squeeze=False
        )
        for panel, (stage, points) in zip(panels[0], drawn.items()):
            panel.set_title(stage_title(stage).capitalize())
            _draw(panel, points)
            task = _main(by_stage[stage])
            panel.set_xlabel(f"capability, {'mean of the tasks' if task == ALL else task}")
        panels[0][0].set_ylim(bottom=0)  # once all have been drawn: it ends the scaling of them all
        panels[0][0].set_ylabel(f"attack success rate, {DECODERS[decoder]}")
        add_legend(canvas, shown.arms)
        return canvas

    picture = save_figure(NAME, draw, folder)
    over = "training seeds and questions or prompts" if shown.several else "questions or prompts"
    hollow = " Hollow: incoherent models, or means that include one, which are never on the front."
    return picture, (
        f"Attack success under {DECODERS[decoder]} against capability. Right and low is better. The line joins the arms on the "
        f"Pareto front: no other arm is better in one and not worse in the other. Whiskers: 95% intervals over {over}."
        + hollow * any(attack.hollow for points in drawn.values() for *_, attack in points)
        + "".join(f" {sentence}" for sentence in _left_out(shown, by_stage, drawn, decoder))
    )


def _left_out(
    shown: Shown,
    by_stage: Mapping[str, Sequence[CapabilityEstimate]],
    drawn: Mapping[str, Sequence[tuple[ArmInfo, OverSeeds, Point]]],
    decoder: str,
) -> Iterator[str]:
    """What the figure says of arms that have both numbers for some benchmarks, but not both means."""
    for stage, points in drawn.items():
        attacked = {entry.arm for entry in shown.metrics.attacks_by(stage, decoder) if entry.rate is not None}
        both = attacked & {one.arm for one in by_stage[stage]}
        yield from left_out(
            shown.arms, both - {arm.name for arm, _, _ in points}, "a task or a benchmark", f"among the {stage_title(stage)}"
        )


def _main(estimates: Sequence[CapabilityEstimate]) -> str:
    """The mean of the tasks, or the only task."""
    names = list(dict.fromkeys(found.benchmark for found in estimates))
    return ALL if len(names) > 1 else names[0]


def _points(
    shown: Shown, stage: str, decoder: str, estimates: Sequence[CapabilityEstimate]
) -> list[tuple[ArmInfo, OverSeeds, Point]]:
    """The arms with both numbers."""
    found = {one.arm: one.value for one in estimates if one.benchmark == _main(estimates)}
    attacked = {point.arm: point for point in shown.at(stage, decoder, "attack success") if not point.benchmark}
    return [(arm, found[arm.name], attacked[arm.name]) for arm in shown.arms if arm.name in found and arm.name in attacked]


def _draw(panel: Axes, points: Sequence[tuple[ArmInfo, OverSeeds, Point]]) -> None:
    looks = {arm.name: (curve.colour, curve.marker) for curve in curves_of([arm for arm, _, _ in points]) for arm in curve.arms}
    for arm, capability, attack in points:
        colour, marker = (SAFE_ONLY_COLOUR, "D") if arm.interventions == "none" else looks[arm.name]
        if capability.low is not None and capability.high is not None:
            panel.hlines(attack.value, capability.low, capability.high, color=colour, lw=1, alpha=0.6)
        if attack.low is not None and attack.high is not None:
            panel.vlines(capability.value, attack.low, attack.high, color=colour, lw=1, alpha=0.6)
        face: Any = {"mfc": "white", "mew": 1.4} if attack.hollow else {"mec": "white"}
        panel.plot(capability.value, attack.value, marker=marker, color=colour, ms=6, ls="none", zorder=4, **face)
        panel.annotate(start_label(arm.start), (capability.value, attack.value), (4, 4), textcoords="offset points", fontsize=8)
    places = [(capability.value, attack.value) for _, capability, attack in points if not attack.hollow]
    front = [places[place] for place in pareto_front(places)]
    panel.plot([x for x, _ in front], [y for _, y in front], color="#777777", lw=1.2, ls=(0, (4, 3)), zorder=3)
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_major_formatter(PercentFormatter(1.0, decimals=0))
