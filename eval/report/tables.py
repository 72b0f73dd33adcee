"""The tables of a report as CSV, LaTeX and JSON, beside the page."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from curricula import durable
from curricula.eval.analysis.seeds import OverSeeds
from curricula.eval.analysis.study_rows import ArmInfo
from curricula.terminal import fixed

FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""First characters of a cell that a spreadsheet would run as a formula."""


def write_tables(out: Path, tables: Mapping[str, Sequence[Any]], arms: Sequence[ArmInfo]) -> None:
    """Write each table as `tables/NAME.csv` and `.tex`, and all as `summary.json`: the same bytes for the same rows."""
    plain_tables = write_each(out / "tables", tables)
    durable.write_json(out / "summary.json", {"arms": [dataclasses.asdict(arm) for arm in arms], **plain_tables})


def write_each(folder: Path, tables: Mapping[str, Sequence[Any]]) -> dict[str, list[dict[str, Any]]]:
    """Write each table as `NAME.csv` and `.tex`, or remove the files if it has no rows; returns all as plain values."""
    plain_tables = {name: [plain(record) for record in records] for name, records in tables.items()}
    for name, records in plain_tables.items():
        if not records:
            for suffix in (".csv", ".tex"):
                (folder / f"{name}{suffix}").unlink(missing_ok=True)
            continue
        table = [{key: value for key, value in row.items() if key != "shares"} | row.get("shares", {}) for row in records]
        columns = list(dict.fromkeys(key for row in table for key in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: cell(value) for key, value in row.items()} for row in table)
        for suffix, written in ((".csv", text.getvalue()), (".tex", latex(columns, table))):
            durable.write_text(folder / f"{name}{suffix}", written)
    return plain_tables


LATEX = str.maketrans(
    {char: f"\\{char}" for char in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\n": " ", "\r": " "}
)


def latex(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    """A table for LaTeX's booktabs package, without columns that are empty; floats have three decimals."""
    kept = [name for name in columns if any(row.get(name) not in (None, "") for row in rows)]

    def written(value: Any) -> str:
        if isinstance(value, float):
            return fixed(value, 3).replace("-", "$-$")
        return "--" if value in (None, "") else str(value).translate(LATEX)

    numeric = [all(isinstance(row.get(name), (int, float, type(None))) for row in rows) for name in kept]
    lines = [" & ".join(written(row.get(name)) for name in kept) + r" \\" for row in rows]
    head = " & ".join(name.translate(LATEX) for name in kept) + r" \\"
    alignment = "".join("r" if is_number else "l" for is_number in numeric)
    body = [rf"\begin{{tabular}}{{{alignment}}}", r"\toprule", head, r"\midrule", *lines, r"\bottomrule", r"\end{tabular}"]
    return "\n".join(body) + "\n"


def cell(value: Any) -> Any:
    """`value` as a cell, with an apostrophe before text that a spreadsheet would take for a formula, and a sign for each NUL.

    Few readers of CSV take a NUL, and until Python 3.11 not even the writer does.
    """
    if not isinstance(value, str):
        return value
    value = value.replace("\0", "\N{SYMBOL FOR NULL}")
    if not value.startswith(FORMULA):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


def as_row(record: Any) -> dict[str, Any]:
    """The fields of a record as columns. An `OverSeeds` fills several; the values of its runs are one text."""
    row: dict[str, Any] = {}
    columns: dict[str, Any]
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if isinstance(value, OverSeeds):
            columns = {field.name: value.value, "low": value.low, "high": value.high, "spread": value.spread}
            columns |= {"seeds": len(value.runs), "runs": _in_words(value.runs)}
        else:
            columns = {field.name: _in_words(value, field.metadata["form"]) if "form" in field.metadata else value}
        if taken := row.keys() & columns.keys():
            raise ValueError(f"{type(record).__name__}.{field.name} would overwrite column {min(taken)}; rename the field")
        row |= columns
    return row


def _in_words(runs: Mapping[int, float] | Sequence[tuple[float, bool]], form: tuple[int, str] = (3, "")) -> str:
    """Runs as text: "42: 0.147, 43: 0.357", or for those of a point "0.108, 0.431*", with a star for an incoherent run."""
    if isinstance(runs, Mapping):
        return ", ".join(f"{seed}: {fixed(value, *form)}" for seed, value in runs.items())
    return ", ".join(f"{fixed(value, *form)}{'*' if is_incoherent else ''}" for value, is_incoherent in runs)


def plain(record: Any) -> dict[str, Any]:
    """A row of plain values, rounded."""
    return rounded(record if isinstance(record, dict) else as_row(record))


def rounded(value: Any) -> Any:
    """`value` as JSON holds it: floats have six decimals, beyond which processors differ, and no -0.0. JSON lacks NaN and
    infinities, so these are None."""
    return json.loads(json.dumps(value), parse_float=lambda text: round(float(text), 6) + 0.0, parse_constant=lambda _: None)
