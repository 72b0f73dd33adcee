"""Panels of lines, points and areas, described once and drawn twice: by matplotlib for print, and by the page itself.

    Panel("Validation", "tokens", "loss", [Series("web", "line", [0, 1e9], [3.1, 2.4])])

A figure that returns panels (`Figure.panels` in `eval/report/figures.py`) needs no drawing code of its own.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import EngFormatter, FixedLocator, NullLocator, PercentFormatter

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31", "#6A4C93", "#7A7A7A")
"""Okabe and Ito's colours and three more; the page has similar ones as CSS variables."""
DASHES = ("-", "--", ":", "-.")
"""Dashes of a line, which tell lines apart whose colour repeats; `DASHES` of the page's script has the same."""
INK = -1
"""Stands for the colour of text wherever an index into `PALETTE` is expected."""

Format = Literal["", "percent", "count", "points"]
"""How an axis writes its numbers: as they are, in %, as 1.2M, or as percentage points with their sign."""


@dataclass(frozen=True)
class Series:
    label: str
    """Equal labels share one entry of the legend; "" has none."""
    kind: Literal["line", "dots", "rule", "area", "span", "whisker"]
    """"rule" draws vertical lines at x, "area" an area stacked on those before it, "span" horizontal intervals from low to high
    at y, and "whisker" vertical intervals at x."""
    x: Sequence[float]
    y: Sequence[float] = ()
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    colour: int = 0
    """Index into `PALETTE`, which repeats after its end with the next of `DASHES`, or `INK`."""
    faint: bool = False
    strength: float = 1.0
    """Opacity of a line, which distinguishes lines of one colour."""
    hollow: bool = False
    """Whether dots are hollow, as those of incoherent models are."""


@dataclass(frozen=True)
class Panel:
    title: str
    x: str
    y: str
    series: Sequence[Series]
    x_format: Format = "count"
    y_format: Format = ""
    """With "percent", the axis is that of a share and goes from 0 to 100%."""
    lanes: Sequence[str] = ()
    """Names of y = 0, 1, ... from the top, for an axis of names instead of numbers."""
    y_range: tuple[float, float] | None = None
    """Ends of the axis, such as a range that several panels share; None to fit the series."""


def draw_panels(panels: Sequence[Panel]) -> Canvas:
    """Draw the panels, two in a row, with one legend for all."""
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    lanes = max(len(panel.lanes) for panel in panels)
    height = max(2.6, 0.9 + 0.24 * lanes)
    canvas, grid = pyplot.subplots(rows, columns, figsize=(8.4, 0.5 + height * rows), layout="constrained", squeeze=False)
    handles: dict[str, Any] = {}
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, panel in zip(grid.flat, panels):
        for label, handle in _draw(axes, panel).items():
            handles.setdefault(label, handle)
    if handles:
        look: Any = {"frameon": False, "fontsize": 8.5, "columnspacing": 1.4}
        canvas.legend(list(handles.values()), list(handles), loc="outside upper center", ncols=min(5, len(handles)), **look)
    return canvas


def _draw(axes: Axes, panel: Panel) -> dict[str, Any]:
    """Draw one panel; returns a handle for each label of the legend."""
    handles: dict[str, Any] = {}
    below: list[float] = []
    for series in panel.series:
        handle: Any = None
        colour = "#222222" if series.colour == INK else PALETTE[series.colour % len(PALETTE)]
        look: dict[str, Any] = {"color": colour, "alpha": (0.45 if series.faint else 1.0) * series.strength}
        if series.kind == "line":
            dashes = DASHES[max(0, series.colour) // len(PALETTE) % len(DASHES)]
            handle = axes.plot(series.x, series.y, ls=dashes, lw=1.0 if series.faint else 1.6, **look)[0]
        elif series.kind == "dots":
            face: Any = {"mfc": "white", "mew": 1.4} if series.hollow else {"mec": "white", "mew": 0.6}
            handle = axes.plot(series.x, series.y, "o", ms=3 if series.faint else 5, **face, **look)[0]
        elif series.kind == "rule":
            for x in series.x:
                handle = axes.axvline(x, lw=1, ls=(0, (4, 3)), **look)
        elif series.kind == "span":
            handle = axes.hlines(series.y, series.low, series.high, lw=1.6, **look)
        elif series.kind == "whisker":
            handle = axes.vlines(series.x, series.low, series.high, lw=1.2, **look)
        else:
            below = below or [0.0] * len(series.x)
            above = [low + own for low, own in zip(below, series.y, strict=True)]
            handle = axes.fill_between(series.x, below, above, lw=0.4, ec="white", **(look | {"alpha": 0.9}))
            below = above
        if series.label:
            handles.setdefault(series.label, handle)
    axes.set_title(textwrap.fill(panel.title, 34), fontsize=9)  # names of lanes leave it less than half the figure's width
    axes.set(xlabel=panel.x, ylabel=panel.y)
    for axis, name in ((axes.xaxis, panel.x_format), (axes.yaxis, panel.y_format)):
        if name == "count":
            axis.set_major_formatter(EngFormatter(sep=""))
        elif name == "percent":
            axis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        elif name == "points":
            axis.set_major_formatter(lambda value, _: f"{value * 100:+.0f}".replace("-", "\N{MINUS SIGN}"))
    if panel.y_range is not None:
        axes.set_ylim(*panel.y_range)
    elif panel.y_format == "percent":
        axes.set_ylim(-0.03, 1.03)  # room for marks at 0 and 100%
    if panel.lanes:
        axes.yaxis.set_major_locator(FixedLocator(range(len(panel.lanes))))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_yticklabels(panel.lanes, fontsize=8)
        axes.set_ylim(len(panel.lanes) - 0.5, -0.5)
        axes.grid(False)
    return handles
