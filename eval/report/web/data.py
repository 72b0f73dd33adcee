"""The data of the page's scripts, and the caption and numbers under each figure.

The answers are stored in blocks, as columns of numbers that index lists of values. A block is JSON, gzipped and written in
base64, so that nothing in an answer can be taken for markup. The scripts read the blocks in order: the block where a prompt or
text first occurs holds it, and later blocks refer to it by its number.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
from markupsafe import Markup

from curricula.eval.analysis.study_rows import StudyRows
from curricula.eval.report import wording
from curricula.eval.report.drawing import curves_of
from curricula.eval.report.figures import DifferenceFigure, Figure, figures_of
from curricula.eval.report.panels import Panel
from curricula.eval.report.points import COMPLIED, Point, Shown
from curricula.eval.report.tables import as_row, rounded
from curricula.eval.report.wording import (
    CATEGORIES,
    CORRECTED,
    DECODERS,
    NO_INTERVENTIONS,
    STAGES,
    START_AXIS,
    arm_label,
    stage_title,
    start_label,
)
from curricula.eval.rows import JudgedRow
from curricula.terminal import fixed

HERE = Path(__file__).parent
SCRIPTS = ("../vendor/d3.min.js", "../vendor/plot.min.js", "page.js", "charts.js", "answers.js")
"""The page's scripts, in the order in which they run."""
CHART_SCRIPTS = SCRIPTS[:-1]
BLOCK = 4000
"""Answers in one block."""
LONGEST_ALT = 40
"""Rows of numbers in the alternative text of a figure, at most; a screen reader finds the others in the table."""


@dataclass(frozen=True)
class PageFigure:
    """A figure on the page."""

    figure: Figure
    picture: str
    caption: str
    rows: Sequence[Mapping[str, str]]
    """The rows of its table, by column."""

    @property
    def alt(self) -> str:
        numbers = "; ".join(", ".join(filter(None, row.values())) for row in self.rows[:LONGEST_ALT])
        more = " The table below has all values." if len(self.rows) > LONGEST_ALT else ""
        return f"{self.figure.heading} {numbers}.{more}" if numbers else self.figure.heading


def page_figures(shown: Shown, pictures: Mapping[str, Path]) -> Iterator[PageFigure]:
    """The study's figures with their captions and tables. `pictures` has the path of each SVG by the figure's name."""
    for figure in figures_of(shown):
        if isinstance(figure, DifferenceFigure):
            rows = list(_difference_rows(shown))
        else:
            rows = list(_point_rows(figure, shown) if figure.places(shown) else _panel_rows(figure, shown))
        columns = {name for row in rows for name, text in row.items() if text}
        rows = [{name: text for name, text in row.items() if name in columns} for row in rows]
        yield PageFigure(figure, embedded(pictures[figure.name]), figure.caption(shown), rows)


def _point_rows(figure: Figure, shown: Shown) -> Iterator[dict[str, str]]:
    labels = {arm.name: arm_label(arm) for arm in shown.arms}
    for place in figure.places(shown):
        measures = (*CATEGORIES, COMPLIED) if place.measure == "answers" else (place.measure,)
        points = shown.at(place.stage, place.place, *measures)
        uncorrected = "not correctable" if any(point.corrected is not None for point in points) else ""
        for point in points:
            interval = "" if point.low is None or point.high is None else f"{_number(point.low)} to {_number(point.high)}"
            yield {
                "panel": place.title,
                "arm": labels[point.arm],
                "what": point.benchmark or CATEGORIES.get(point.measure, point.measure),
                "value": _number(point.value),
                "95% interval": interval,
                CORRECTED: uncorrected if point.corrected is None else _number(point.corrected),
                "runs (* incoherent)": as_row(point)["runs"],
            }


def _difference_rows(shown: Shown) -> Iterator[dict[str, str]]:
    labels = {arm.name: arm_label(arm) for arm in shown.arms}
    for gap in shown.differences:
        yield {
            "measure": f"{gap.measure}, {gap.stage}, {DECODERS[gap.decoder]}",
            "arm": labels[gap.arm],
            "against": labels[gap.reference],
            "difference, points": wording.points(gap.value, gap.measure),
            "95% interval": f"{wording.points(gap.low, gap.measure)} to {wording.points(gap.high, gap.measure)}",
            "note": gap.note,
        }


def _panel_rows(figure: Figure, shown: Shown) -> Iterator[dict[str, str]]:
    for panel in figure.panels(shown):
        for series in panel.series:
            if series.label and series.y and not panel.lanes:
                first, last = (f"{_number(series.y[i])} at {series.x[i]:,.0f}" for i in (0, -1))
                yield {"panel": panel.title, "series": series.label, "first": first, "last": last}


def _number(value: float) -> str:
    return fixed(value, 3)


def study_data(shown: Shown, points: Sequence[Point], answers: Mapping[str, Any]) -> dict[str, Any]:
    """All data of the scripts except the blocks of answers; `answers` says what the numbers in the blocks stand for."""
    return {
        "arms": [
            {
                "name": arm.name,
                "label": arm_label(arm),
                "start": arm.start,
                "tick": start_label(arm.start),
                "interventions": arm.interventions,
            }
            for arm in shown.arms
        ],
        "curves": [{"label": curve.label, "arms": [arm.name for arm in curve.arms]} for curve in curves_of(shown.arms)],
        "several": shown.several,
        "words": {"start": START_AXIS, "none": NO_INTERVENTIONS, "corrected": CORRECTED},
        "lengths": {
            f"{stage}/{layer}": shown.length_auc(stage, layer)
            for stage, layer in dict.fromkeys((probe.stage, probe.layer) for probe in shown.metrics.probes)
        },
        "categories": CATEGORIES,
        "stages": {name: stage_title(name) for name in dict.fromkeys((*STAGES, *shown.metrics.stages))},
        "decoders": DECODERS,
        "figures": {
            figure.name: {
                "places": msgspec.to_builtins(figure.places(shown)),
                "panels": msgspec.to_builtins(figure.panels(shown)),
            }
            for figure in figures_of(shown)
        },
        "points": {"columns": [field.name for field in fields(Point)], "rows": [[*as_row(point).values()] for point in points]},
        "answers": answers,
    }


def _numbered(names: dict[Any, int], value: Any) -> int:
    """The number that stands for `value` in a column; values are numbered in the order of their first use."""
    return names.setdefault(value, len(names))


def packed_answers(study: StudyRows) -> tuple[list[str], dict[str, Any]]:
    """All answers as blocks, and what the numbers in the blocks' columns stand for."""
    arms = [{"key": arm.key, "name": arm.name, "seed": arm.seed} for arm in study.arms]
    arm_numbers = {arm.key: number for number, arm in enumerate(study.arms)}
    names: dict[str, dict[Any, int]] = {
        "stage": {},
        "decoder": {},
        "finish": {},
        "verdict": {"": 0, "unparsed": 1},
        "own": {"": 0},
    }
    prompts: dict[Any, int] = {}
    texts: dict[Any, int] = {}
    rows, blocks, count = _rows(study), [], 0
    while rows_of_block := list(islice(rows, BLOCK)):
        count += len(rows_of_block)
        known_prompts, known_texts = len(prompts), len(texts)
        numbers = [
            {
                "arm": arm_numbers[key],
                "stage": _numbered(names["stage"], stage),
                "decoder": _numbered(names["decoder"], row.decoder),
                "prompt": _numbered(prompts, (row.benchmark, row.prompt_id, row.behavior or row.prompt, row.category)),
                "text": _numbered(texts, row.prompt),
                "sample": row.sample,
                "finish": _numbered(names["finish"], row.finish),
                "tokens": row.tokens,
                "own": _numbered(names["own"], f"{row.judge} {row.judge_version}".strip()),
                "verdict": _numbered(names["verdict"], row.verdict if row.judge else "" if not row.changed else "unparsed"),
                "others": [_numbered(names["verdict"], other.verdict if other and other.judge else "") for other in judged],
            }
            for key, stage, row, judged in rows_of_block
        ]
        others = [row.pop("others") for row in numbers]
        block = {
            "prompts": list(islice(prompts, known_prompts, None)),
            "texts": list(islice(texts, known_texts, None)),
            "columns": {name: [row[name] for row in numbers] for name in numbers[0]},
            "others": [list(column) for column in zip(*others)],
            "answers": [row.response for _, _, row, _ in rows_of_block],
        }
        packed = gzip.compress(json.dumps(block, ensure_ascii=False, separators=(",", ":")).encode(), 6, mtime=0)
        blocks.append(base64.b64encode(packed).decode())
    meanings = {name: list(values) for name, values in names.items()}
    return blocks, {"count": count, "arms": arms, **meanings, "judges": list(study.others)}


def _rows(study: StudyRows) -> Iterator[tuple[str, str, JudgedRow, list[JudgedRow | None]]]:
    """For each answer: its arm's key, its stage, the answer, and the answer as judged by each other judge, if it is."""
    for (key, stage, task), rows in study.generations.items():
        others = [judged.get((key, stage, task)) for judged in study.others.values()]
        for number, row in enumerate(rows):
            yield key, stage, row, [of[number] if of else None for of in others]


def hashes(study: StudyRows) -> list[tuple[str, str, str]]:
    """(what, name, hash) of the prompts as they were asked, the judges and the models."""
    prompts: dict[str, set[str]] = defaultdict(set)
    judges = {(name, version) for name, _, version in (judge.rpartition(" ") for judge in study.others)}
    models: dict[str, str] = {}
    for (arm, stage, _), rows in study.generations.items():
        for row in rows:
            prompts[row.benchmark].add(f"{row.prompt_id}\0{row.behavior}\0{row.context}\n")
            models[f"{arm}/{stage}"] = row.model
            if row.judge:
                judges.add((row.judge, row.judge_version))
    digests = {name: hashlib.sha256("".join(sorted(asked)).encode()).hexdigest() for name, asked in sorted(prompts.items())}
    return [
        *(("prompts", f"{name}, {len(prompts[name])} asked", digest) for name, digest in digests.items()),
        *(("judge", name, version) for name, version in sorted(judges)),
        *(("model", name, model) for name, model in models.items()),
    ]


def embedded_json(value: Any) -> Markup:
    """`value`, rounded, as JSON that cannot end the script element around it, whatever its texts hold."""
    text = json.dumps(rounded(value), ensure_ascii=False, separators=(",", ":"))
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def plain_data(panels: Sequence[Panel]) -> dict[str, Any]:
    """The data of the page that compares studies, which has one figure of plain panels."""
    figures = {"comparison": {"places": [], "panels": msgspec.to_builtins(panels)}} if panels else {}
    points: dict[str, list[Any]] = {"columns": [], "rows": []}
    return {"arms": [], "curves": [], "several": False, "categories": {}, "decoders": {}, "figures": figures, "points": points}


def program(scripts: Sequence[str] = SCRIPTS) -> str:
    """The scripts, joined into one."""
    return "\n;\n".join((HERE / name).read_text(encoding="utf-8") for name in scripts)


def head(scripts: Sequence[str] = SCRIPTS, is_live: bool = False) -> dict[str, str]:
    """The page's script and style, and its Content-Security-Policy, which allows only these two and embedded pictures.

    The policy of a live page also lets it ask its server for a newer version.
    """
    script, style = program(scripts), (HERE / "report.css").read_text(encoding="utf-8")
    rules = ["default-src 'none'", f"script-src {digest(script)}", f"style-src {digest(style)}", "img-src data:"]
    rules += ["base-uri 'none'", "form-action 'none'", *(["connect-src 'self'"] if is_live else [])]
    return {"policy": "; ".join(rules), "script": Markup(script), "style": Markup(style)}


def embedded(picture: Path) -> str:
    """An SVG as a data URL."""
    return f"data:image/svg+xml;base64,{base64.b64encode(picture.read_bytes()).decode()}"


def digest(text: str) -> str:
    """The hash by which a Content-Security-Policy allows this script or style."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
