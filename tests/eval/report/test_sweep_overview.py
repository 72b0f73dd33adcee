"""The overview of a sweep: tables of all points as one, the effect at each point, nothing unescaped."""

import re

import pytest
from report_page import csv_rows

from curricula.durable import write_json
from curricula.eval.report.overviews import SweptPoint, write_overview

HOSTILE = "<script>alert(1)</script>\u202e"


def point(out, name, value, settings):
    folder = out / "points" / name
    folder.mkdir(parents=True)
    gap = {"stage": "base", "decoder": "topk", "task": "attacks-topk", "reference": "safe-100", "arm": "data-0"}
    over = {**gap, "task": "overrefusal-topk", "arm": "only refusals"}
    over["note"] = gap["note"] = f"judged by different versions: {HOSTILE}"
    gaps = [{**one, "value": value, "low": value - 0.1, "high": value + 0.1} for one in (gap, over)]
    effects = {"differences": gaps, "estimates": [{"arm": "data-0", "rate": value}, {"arm": "=1+1", "rate": 0}]}
    effects["along"] = [{"arm": "data-0", "tokens": 20}]  # of its checkpoint
    write_json(folder / "summary.json", {"arms": [{"name": "data-0"}], "trends": [{"outcome": "inconclusive"}] * 2, **effects})
    return SweptPoint(name, settings, 852_864, 1000, folder / "index.html")


def test_the_overview_joins_the_points_and_escapes_what_it_shows(tmp_path):
    points = [point(tmp_path, "small", -0.2, HOSTILE), point(tmp_path, "large", -0.3, "model.preset: x")]
    page = write_overview("study", points, tmp_path).read_text()
    assert "<script" not in page and "&lt;script&gt;" in page and "⟨U+202E⟩" in page
    assert 'href="points/small/index.html"' in page and "2 inconclusive" in page
    assert "Holm’s correction is within each point" in page and page.count("judged by different versions: &lt;script") == 2
    assert "−20.0" in page and "−40.0 to −20.0" in page and "only refusals" not in page
    rows = csv_rows(tmp_path / "tables/estimates.csv")
    assert [(row["point"], row["parameters"], row["rate"]) for row in rows] == [
        ("small", "852864", "-0.2"), ("small", "852864", "0"), ("large", "852864", "-0.3"), ("large", "852864", "0"),
    ]  # fmt: skip
    assert rows[1]["arm"] == "'=1+1"
    (row, _) = csv_rows(tmp_path / "tables/along.csv")
    assert (row["budget_tokens"], row["tokens"]) == ("1000", "20")
    assert re.findall(r'href="tables/(\w+).csv"', page) == ["along", "differences", "estimates", "trends"]
    written = {path.name for path in (tmp_path / "tables").iterdir()}
    assert written == {
        f"{name}{suffix}" for name in ("along", "differences", "estimates", "trends") for suffix in (".csv", ".tex")
    }


@pytest.mark.parametrize("watched", [{"viewport": {"width": 390, "height": 844}}], indirect=True)
def test_on_a_phone_a_long_note_makes_no_table_of_effects_wider_than_the_page(tmp_path, watched):
    points = [point(tmp_path, name, -0.2, "model.preset: x") for name in ("small", "large")]
    effects = watched.open(write_overview("study", points, tmp_path)).locator(".scroll").last
    assert effects.locator("small.wide").count() == 2 and watched.is_clean
    assert effects.evaluate("scroll => scroll.scrollWidth - scroll.clientWidth") == 0
