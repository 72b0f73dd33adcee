"""The report: complete, candid about gaps, safe to open, and the same bytes for the same rows."""

from __future__ import annotations

import csv
import dataclasses
import html.parser
import json
import shutil
import subprocess
from pathlib import Path

import msgspec
import pytest
from study_rows import ARMS, append_judged, attack_rows, generation, trained, write_study

from curricula.errors import UserError
from curricula.eval import MODEL_KINDS, EvalConfig
from curricula.eval.analysis import ArmInfo, read_study_rows
from curricula.eval.analysis.metrics import study_metrics
from curricula.eval.report.figures import FIGURES
from curricula.eval.report.page import cell, write_report
from curricula.eval.report.wording import visible
from curricula.eval.rows import GenerationRow

VOID = {"meta", "img", "br", "link", "hr", "input"}
STUDY = {
    "plan": {
        "study": "demo",
        "model": {"preset": "tiny", "parameters": 1_000_000},
        "budget": {"tokens": 2_000_000, "steps": 100, "global_batch": 32, "sequence_length": 625},
        "trained_tokens": {"with_trunk_sharing": 10_000_000, "without": 14_000_000},
    },
    "provenance": {"git": {"sha": "abc", "changed_files": []}, "python": "3.11"},
    "tasks": {kind: [task.name for task in EvalConfig().tasks_of(kind)] for kind in MODEL_KINDS},
    "changed": {"advbench": "10 prompts, where 520 were published"},
}


class Page(html.parser.HTMLParser):
    """Checks that elements nest, and collects ids, links, images, scripts and text."""

    def __init__(self, text: str):
        super().__init__()
        self.stack: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.tags: set[str] = set()
        self.words: list[str] = []
        self.feed(text)
        assert self.stack == []

    def handle_starttag(self, tag, attributes):
        named = dict(attributes)
        self.tags.add(tag)
        self.ids += [named["id"]] if "id" in named else []
        self.links += [named["href"]] if tag == "a" else []
        self.images += [named] if tag == "img" else []
        if tag not in VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag, f"</{tag}> closes nothing at {self.getpos()}"

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> tuple[Path, str]:
    """A nearly finished run and its page: one model not evaluated, a few answers unparsed, a few missing."""
    run = write_study(tmp_path_factory.mktemp("run"))
    nasty = generation(
        key="nasty",
        model_kind="benign",
        prompt_id="nasty",
        benchmark="tdc",
        behavior="nasty",
        prompt="Say <script>alert(1)</script>",
        response="<script>alert(2)</script>\x1b[31m\u202e</pre>",
        verdict="unparsed",
    )
    for arm in ARMS:
        row = msgspec.structs.replace(nasty, model=f"{arm.name}/benign")
        append_judged(run / "eval" / arm.name / "benign" / "attacks-topk.jsonl", [row])
    for arm in ARMS[1:]:
        path = run / "eval" / arm.name / "instruct" / "attacks-safebeam.jsonl"
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:-2]))
    shutil.rmtree(run / "eval/full-20/benign")
    return run, write_report(run, ARMS, STUDY, run / "report").read_text()


def test_a_spread_over_sampling_seeds_is_not_taken_for_one_over_training_seeds(built):
    text = Page(built[1]).text
    assert "std over sampling seeds" in text and "not over training seeds" in text
    assert "std over seeds" not in text


def test_the_page_is_well_formed_and_self_contained(built):
    page = Page(built[1])
    assert built[1].startswith("<!DOCTYPE html>")
    assert "script" not in page.tags and "link" not in page.tags
    assert len(page.ids) == len(set(page.ids))
    assert all(link.startswith("#") and link[1:] in page.ids for link in page.links)
    assert all(image["src"].startswith("data:image/png;base64,") and image["alt"] for image in page.images)


def test_benchmarks_that_are_not_the_published_ones_are_named(built):
    assert "Not the published prompts: advbench (10 prompts, where 520 were published)." in Page(built[1]).text


def test_all_nine_figures_are_on_the_page_with_captions_and_in_files(built):
    run, text = built
    assert len(FIGURES) == 9 and len(Page(text).images) == 9
    for figure in FIGURES:
        assert f"Figure {figure.number}. {figure.title}" in text
        assert (run / "report/figures" / f"{figure.name}.png").read_bytes()[:4] == b"\x89PNG"
        assert "<svg" in (run / "report/figures" / f"{figure.name}.svg").read_text()
    assert text.count("<em>The paper:</em>") == 9
    assert "Judge: world 1a2b" in text


def test_generated_text_is_escaped_and_control_characters_are_spelled_out(tmp_path):
    arm = ARMS[0]
    row = generation(
        model_kind="benign",
        prompt="Say <script>alert(1)</script>",
        response="</pre><script>alert(2)</script>\x1b[31m \u202ereversed",
    )
    (tmp_path / "eval" / arm.name / "benign").mkdir(parents=True)
    line = json.dumps({name: getattr(row, name) for name in GenerationRow.__struct_fields__})
    (tmp_path / "eval" / arm.name / "benign" / "attacks-topk.jsonl").write_text(line + "\n")
    page = Page(write_report(tmp_path, ARMS, {}, tmp_path / "report").read_text())
    assert "script" not in page.tags
    assert "<script>alert(2)</script>⟨U+001B⟩[31m ⟨U+202E⟩reversed" in page.text


def test_plain_text_and_letters_of_all_scripts_are_unchanged():
    assert visible("Zürich, 東京\n\tعربي 👍") == "Zürich, 東京\n\tعربي 👍"
    assert visible("abcdef", limit=3) == "abc […]"


def test_unparsed_and_missing_answers_are_shown(built):
    run, text = built
    attacks = json.loads((run / "report/summary.json").read_text())["attacks"]
    benign = next(row for row in attacks if (row["arm"], row["stage"], row["decoder"]) == ("full-0", "benign", "topk"))
    tdc = [
        row for row in attacks if row["benchmark"] == "tdc" and row["stage"] == "benign" and row["decoder"] == "topk"
    ]
    assert benign["stage"] == "benign" and {row["unparsed"] for row in tdc} == {1}
    safebeam = [
        row for row in attacks if (row["stage"], row["decoder"], row["benchmark"]) == ("instruct", "safebeam", "all")
    ]
    assert [row["missing"] for row in safebeam] == [0, 2, 2, 2, 2, 2, 2]
    assert 'id="t-incomplete"' in text


def test_the_summary_and_tables_are_the_same_bytes_for_the_same_rows(built, tmp_path):
    run, _ = built
    shutil.copytree(run / "eval", tmp_path / "elsewhere/eval")
    write_report(tmp_path / "elsewhere", ARMS, {}, tmp_path / "out")
    names = ["summary.json", *(f"tables/{name}.csv" for name in ("attacks", "overrefusal", "probes", "trends"))]
    for name in [*names, *(f"figures/{figure.name}{end}" for figure in FIGURES for end in (".png", ".svg"))]:
        assert (run / "report" / name).read_bytes() == (tmp_path / "out" / name).read_bytes(), name


@pytest.mark.parametrize("text", ["=1+1", "+x", "-x", "@x", "\tx", "\rx"])
def test_a_spreadsheet_computes_no_text_of_a_table(text):
    assert cell(text) == f"'{text}"


def test_numbers_of_a_table_stay_numbers():
    assert [cell(value) for value in (-0.5, "-0.5", "+1e-3", "full 20%", None)] == [
        -0.5,
        "-0.5",
        "+1e-3",
        "full 20%",
        None,
    ]


def test_csv_tables_hold_what_the_summary_holds(built):
    report = built[0] / "report"
    summary = json.loads((report / "summary.json").read_text())
    for name in ("attacks", "overrefusal", "probes", "trends"):
        rows = list(csv.DictReader((report / "tables" / f"{name}.csv").open()))
        assert len(rows) == len(summary[name]) > 0
    assert float(rows[0]["difference"]) == summary["trends"][0]["difference"]


def test_a_run_without_evaluations_gives_a_page_that_says_so(tmp_path):
    calls = []
    page = Page(
        write_report(
            tmp_path,
            ARMS,
            {"tasks": {"base": ["probes"]}},
            tmp_path / "report",
            lambda done, total, **_: calls.append((done, total)),
        ).read_text()
    )
    assert "evaluations are still missing" in page.text and "data-0 base probes" in page.text
    assert "data-0 base attacks-topk" not in page.text  # not planned, so not missing
    assert len(page.images) == 9 and "18 not measured" in page.text
    assert calls[-1][0] == calls[-1][1]


def test_single_runs_get_no_verdict_and_the_page_says_why(built):
    page = Page(built[1])
    assert "0 reproduced" in page.text and "0 not reproduced" in page.text
    assert "1 single run single run: differences may be the seed's" in page.text


def test_several_training_seeds_have_a_table_and_verdicts(tmp_path):
    arms = [trained(arm, seed) for seed in (1, 2) for arm in ARMS[-3:]]
    for arm in arms:
        rows = attack_rows(arm, "benign", "topk", 0.3, 2, {"tdc": 20})
        append_judged(tmp_path / "eval" / arm.key / "benign/attacks-topk.jsonl", rows)
    page = Page(write_report(tmp_path, arms, {}, tmp_path / "report").read_text())
    assert "Over training seeds" in page.text and "Few training runs per arm" in page.text
    variance = list(csv.DictReader((tmp_path / "report/tables/variance.csv").open()))
    assert len(variance) == 5 and {row["seeds"] for row in variance} == {"2"}


def test_an_unfinished_study_lists_what_is_missing_and_draws_the_rest(built):
    page = Page(built[1])
    assert "full-20 benign attacks-topk" in page.text and "data-20 benign attacks-topk" not in page.text
    assert "rows missing" in page.text


def test_custom_arms_losses_provenance_and_the_study_file_are_shown(tmp_path):
    arms = [ArmInfo("tags-50", 0.5, "tags-only"), ArmInfo("data-50", 0.5, "data")]
    append_judged(tmp_path / "eval/tags-50/base/attacks-topk.jsonl", [generation(model_kind="base")])
    (tmp_path / "study.yaml").write_text("name: demo # <b>\nseed: 42\n")
    (tmp_path / "world").mkdir()
    (tmp_path / "pretrain/trunk").mkdir(parents=True)
    (tmp_path / "pretrain/trunk/metrics.jsonl").write_text(
        '{"step": 7, "tokens": 4096, "loss": 2.5}\n{"step": 7, "validation": {"web": 2.75}}\n'
    )
    page = Page(write_report(tmp_path, arms, STUDY, tmp_path / "report").read_text())
    shown = ["tags-only, from 50%", "1,000,000 parameters", "git.sha", "name: demo # <b>", "fictional world"]
    for words in [*shown, "trunk 7 4,096 2.5000 2.7500", "One training run per arm"]:
        assert words in page.text, words


def test_a_damaged_row_is_reported_with_its_line(tmp_path):
    (tmp_path / "eval/data-0/base").mkdir(parents=True)
    (tmp_path / "eval/data-0/base/probes.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="line 1"):
        write_report(tmp_path, ARMS, {}, tmp_path / "report")


@pytest.mark.skipif(not shutil.which("chromium"), reason="chromium is not installed")
@pytest.mark.parametrize("width", [400, 1400])
def test_a_browser_shows_the_page_without_sideways_scrolling(built, tmp_path, width):
    # The page has no script, so this copy measures itself; in a frame, since a headless window is at least 500 px wide.
    probe = (
        "<script>parent.postMessage(document.documentElement.scrollWidth + ' of ' + innerWidth, '*')</script></body>"
    )
    (tmp_path / "page.html").write_text(built[1].replace("</body>", probe))
    listen = "<script>onmessage = event => document.title = event.data</script>"
    frame = f'{listen}<iframe src="page.html" style="border:0;width:{width}px;height:900px"></iframe>'
    (tmp_path / "frame.html").write_text(f"<!DOCTYPE html><title>unseen</title>{frame}")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=3000"]
    options += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1600,1000", "--dump-dom"]
    command = ["chromium", *options, (tmp_path / "frame.html").as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    assert f"<title>{width} of {width}</title>" in shown


def test_each_seed_has_rows_of_its_own_and_none_is_pooled_or_lost(tmp_path):
    first = ARMS[-2:]
    arms = [*first, *(dataclasses.replace(arm, seed=43, key=f"{arm.name}-s43") for arm in first)]
    run = write_study(tmp_path / "run", arms=arms)
    alone = read_study_rows(run, first)
    both = read_study_rows(run, arms)
    assert {row.seed for row in both.answers(arms[-1], "base", "attacks-topk")} == {43}
    metrics = study_metrics(both)
    assert metrics.of_seed(0) == study_metrics(alone)

    text = write_report(run, arms, STUDY, run / "report").read_text()
    assert "full, from 60%, seed 43" in text and "One training run per arm" not in text
    for name, key in (
        ("attacks", "stage benchmark decoder"),
        ("overrefusal", "stage decoder"),
        ("probes", "stage layer"),
    ):
        with open(run / "report" / "tables" / f"{name}.csv") as file:
            rows = list(csv.DictReader(file))
        assert list(rows[0])[:2] == ["arm", "seed"]
        places = [tuple(row[column] for column in ("arm", "seed", *key.split())) for row in rows]
        assert len(set(places)) == len(places) and {place[1] for place in places} == {"0", "43"}
        assert {place[0] for place in places} == {arm.name for arm in first}
