"""The nine figures of the paper, drawn from the cells of a study: PNG for the page, SVG for print.

Knows what each figure is for and what the paper found in it; how panels are drawn is in `eval/report/panels.py`. What is not
evaluated yet is said in the figure, and never drawn as a zero. The same cells give the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import PercentFormatter

from curricula import durable
from curricula.eval.analysis.claims import ArmInfo
from curricula.eval.analysis.metrics import Cells
from curricula.eval.report.panels import draw_attacks, draw_overrefusal, draw_probes, finish_panel, name_lines

STYLE: Any = {  # matplotlib settings
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "xtick.color": "#333333",
    "ytick.color": "#333333",
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "svg.fonttype": "none",
    "svg.hashsalt": "curricula",
}
DPI = 130
STAGES = {"base": "base models", "instruct": "instruction-tuned models", "benign": "benign-finetuned models"}


@dataclass(frozen=True)
class Figure:
    """One figure: the paper's number, what it shows, what the paper found, and the stage and task or layer it draws."""

    number: int
    name: str
    title: str
    kind: str  # "attacks" | "overrefusal" | "probes"
    stage: str
    detail: str  # decoder prefix for attacks, decoder for overrefusal, layer for probes
    paper: str


FIGURES = (
    Figure(
        1,
        "fig1-base-asr",
        "Attack success on base models",
        "attacks",
        "base",
        "",
        "Interventions from 20% or 60% gave the safest base models under top-k, none at all the least safe;"
        " with SafeBeam, the start of training was best.",
    ),
    Figure(
        2,
        "fig2-benign-asr",
        "Attack success after benign finetuning on GSM8K",
        "attacks",
        "benign",
        "",
        "The clearest effect of all: early interventions (0% or 20%) survived the finetuning best under top-k;"
        " with SafeBeam, the start of training was best.",
    ),
    Figure(
        3,
        "fig3-instruct-asr",
        "Attack success on instruction-tuned models",
        "attacks",
        "instruct",
        "",
        "The middle of training (20% or 60%) was safest under top-k, the start of training with SafeBeam.",
    ),
    Figure(
        4,
        "fig4-overrefusal-topk",
        "Answers to benign requests under top-k",
        "overrefusal",
        "instruct",
        "topk",
        "Earlier interventions complied slightly more often: no price in over-refusal.",
    ),
    Figure(
        5,
        "fig5-overrefusal-safebeam",
        "Answers to benign requests under SafeBeam",
        "overrefusal",
        "instruct",
        "safebeam",
        "Earlier interventions over-refused slightly more, while the answers that complied were more helpful.",
    ),
    Figure(
        6,
        "fig6-gcg",
        "Attack success of adversarial suffixes (GCG)",
        "attacks",
        "instruct",
        "gcg+",
        "With SafeBeam, starting at 20% or 60% was much more robust than at 0% or never; under top-k the start"
        " made no noticeable difference.",
    ),
    Figure(
        7,
        "fig7-probe-last",
        "Probe AUC, safe against unsafe text, last layer",
        "probes",
        "",
        "last",
        "Earlier interventions separated safe from unsafe text better, above all with tags from the start.",
    ),
    Figure(
        8,
        "fig8-probe-first",
        "Probe AUC, safe against unsafe text, first layer",
        "probes",
        "",
        "first",
        "Similar trends, with less separation than in the last layer.",
    ),
    Figure(
        9,
        "fig9-probe-middle",
        "Probe AUC, safe against unsafe text, middle layer",
        "probes",
        "",
        "middle",
        "Similar trends, with less separation than in the last layer.",
    ),
)


def draw_figures(cells: Cells, arms: Sequence[ArmInfo], folder: Path) -> list[Path]:
    """Write all nine figures to `folder` as PNG and SVG; returns the PNG paths in order."""
    paths = []
    for figure in FIGURES:
        with matplotlib.rc_context(STYLE):
            canvas = draw(figure, cells, arms)
            canvas.draw_without_rendering()
            canvas.set_layout_engine("none")  # laid out: do not do it again for each format
            for suffix, metadata in ((".svg", {"Date": None, "Creator": None}), (".png", {"Software": None})):
                with durable.open_atomically(folder / (figure.name + suffix)) as file:
                    canvas.savefig(file, format=suffix[1:], dpi=DPI, metadata=metadata)
            pyplot.close(canvas)
        paths.append(folder / f"{figure.name}.png")
    return paths


def draw(figure: Figure, cells: Cells, arms: Sequence[ArmInfo]) -> Canvas:
    if figure.kind == "overrefusal":
        return draw_overrefusal(
            [cell for cell in cells.overrefusals if (cell.stage, cell.decoder) == (figure.stage, figure.detail)], arms
        )
    drawn = []
    canvas, panels = pyplot.subplots(1, 2, figsize=(8.4, 3.7), sharey=True, layout="constrained")
    for index, panel in enumerate(panels):
        if figure.kind == "attacks":
            decoder = figure.detail + ("topk", "safebeam")[index]
            of = [cell for cell in cells.attacks if (cell.stage, cell.decoder) == (figure.stage, decoder)]
            panel.set_title(("Top-k sampling", "SafeBeam")[index])
            drawn.append(draw_attacks(panel, of, arms))
        else:
            panel.set_title(("Base models", "Instruction-tuned models")[index])
            drawn.append(draw_probes(panel, cells, arms, ("base", "instruct")[index], figure.detail))
        finish_panel(panel, arms, drawn[-1])
    extents = [panel.dataLim for panel, there in zip(panels, drawn) if there]
    if figure.kind == "attacks":
        top = min(1.0, max([0.05, *(extent.y1 for extent in extents)])) if extents else 1.0
        panels[0].set(ylabel="attack success rate", ylim=(0, top * 1.06))
        panels[0].yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0 if top > 0.1 else None))
    else:
        panels[0].set(ylabel="test AUC", ylim=(min([0.5, *(extent.y0 for extent in extents)]) - 0.02, 1.02))
    name_lines(canvas, arms)
    return canvas
