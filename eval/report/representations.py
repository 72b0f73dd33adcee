"""The page's tables of how alike arms represent unsafe text; all layers and seeds are in `tables/representations.csv`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import fmean

from curricula.eval.analysis.representations import Representation
from curricula.eval.analysis.study_rows import ArmInfo
from curricula.eval.report.over_seeds import EstimateCell, EstimateTable
from curricula.eval.report.wording import STAGES, arm_label


def representation_tables(found: Sequence[Representation], arms: Sequence[ArmInfo]) -> Iterator[EstimateTable]:
    """For each stage, on the last layer that was probed: every arm's probes tested on every arm, as the mean over seeds."""
    for stage in STAGES:
        pairs = [one for one in found if one.stage == stage and one.seed == one.other_seed]
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
        title = (
            f"Probes of one arm tested on the states of another, {STAGES[stage]}, {layer} layer: test AUC, and under "
        )
        title += "it the cosine between the two arms’ directions from safe to unsafe text."
        yield EstimateTable(title, [arm_label(arm) for arm in arms], rows)


def _cell(pairs: Sequence[Representation]) -> EstimateCell:
    cosine = fmean(one.direction_cosine for one in pairs)
    return EstimateCell(f"{fmean(one.transfer_auc for one in pairs):.3f}", f"cosine {cosine:.3f}", "")
