"""How arms represent unsafe text, on the page: probes from layer to layer, and from arm to arm.

All layers and seeds are in `tables/representations.csv`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib import pyplot

from curricula.eval.analysis.study_rows import ArmInfo
from curricula.eval.probes.representations import Representation
from curricula.eval.report.drawing.curves import SAFE_ONLY_COLOUR, add_legend, curves_of
from curricula.eval.report.figures import save_figure
from curricula.eval.report.over_seeds import EstimateCell, EstimateTable
from curricula.eval.report.points import Shown
from curricula.eval.report.wording import arm_label, stage_title


def representation_tables(found: Sequence[Representation], arms: Sequence[ArmInfo]) -> Iterator[EstimateTable]:
    """For each stage, on the last layer that was probed: every arm's probes tested on every arm, as the mean over seeds."""
    for stage in dict.fromkeys(one.stage for one in found):
        pairs = [one for one in found if stage == one.stage and one.seed == one.other_seed]
        if len({one.arm for one in pairs}) < 2:
            continue
        layer = pairs[-1].layer
        rows = []
        for arm in arms:
            own = [
                [one for one in pairs if (one.layer, one.arm, one.other) == (layer, arm.name, other.name)]
                for other in arms
            ]
            rows.append((arm_label(arm), [_cell(of_pair) if of_pair else None for of_pair in own]))
        title = f"Probes of one arm tested on the states of another, {stage_title(stage)}, {layer} layer: test AUC, and under "
        title += "it the cosine between the two arms’ directions from safe to unsafe text."
        yield EstimateTable(title, [arm_label(arm) for arm in arms], rows)


def _cell(pairs: Sequence[Representation]) -> EstimateCell:
    cosine = fmean(one.direction_cosine for one in pairs)
    return EstimateCell(f"{fmean(one.transfer_auc for one in pairs):.3f}", f"cosine {cosine:.3f}", "")


def draw_layers(shown: Shown, folder: Path) -> tuple[Path, str] | None:
    """The AUC of every arm from layer to layer, and a caption; None where no more than the paper's three are probed."""
    stages = dict.fromkeys(one.stage for one in shown.metrics.probes)
    by_stage = {stage: [one for one in shown.metrics.probes if stage == one.stage] for stage in stages}
    drawn = {stage: found for stage, found in by_stage.items() if len({one.layer_index for one in found}) > 3}
    if not drawn:
        return None
    looks = {arm.name: curve for curve in curves_of(shown.arms) for arm in curve.arms}

    def draw() -> Any:
        size = (4.2 * len(drawn), 3.7)
        canvas, panels = pyplot.subplots(1, len(drawn), figsize=size, sharey=True, layout="constrained", squeeze=False)
        for panel, (stage, found) in zip(panels[0], drawn.items()):
            panel.set_title(stage_title(stage).capitalize())
            panel.set_xlabel("layer")
            for arm in shown.arms:
                layers = sorted({one.layer_index for one in found if one.arm == arm.name})
                means = [fmean(one.auc for one in found if (one.arm, one.layer_index) == (arm.name, n)) for n in layers]
                colour = SAFE_ONLY_COLOUR if arm.interventions == "none" else looks[arm.name].colour
                panel.plot(layers, means, color=colour, lw=1.6, alpha=1 - 0.6 * min(arm.start, 0.99))
        panels[0][0].set_ylabel("test AUC")
        add_legend(canvas, shown.arms)
        return canvas

    seeds = ", mean over training seeds" if shown.several else ""
    return save_figure("layers", draw, folder), (
        f"Test AUC of the probes from layer to layer{seeds}. The earlier an arm's interventions start, the darker its line."
    )
