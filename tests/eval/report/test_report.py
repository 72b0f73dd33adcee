"""The report: complete, candid about gaps, safe to open, and the same bytes for the same rows."""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import json
import re
import shutil
from pathlib import Path

import msgspec
import pytest
from report_page import Page, csv_rows, table
from study_rows import ARMS, append_judged, generation, write_study

from curricula.errors import UserError
from curricula.eval import MODEL_KINDS, EvalConfig
from curricula.eval.analysis import ArmInfo, read_study_rows
from curricula.eval.analysis.runs import arm_differences, runs_of, study_metrics
from curricula.eval.report.figures import FIGURES
from curricula.eval.report.page import write_report
from curricula.eval.report.tables import as_row, cell, write_each
from curricula.eval.report.wording import CATEGORIES, DECODERS, arm_label, p_value, percent, points, start_label, visible

STUDY = {
    "plan": {
        "study": "demo",
        "model": {"name": "tiny, hidden 96", "parameters": 1_000_000},
        "budget": {"tokens": 2_000_000, "steps": 100, "global_batch": 32, "sequence_length": 625},
        "trained_tokens": {"with_trunk_sharing": 10_000_000, "without": 14_000_000, "midtraining": 3_000},
    },
    "provenance": {"git": {"sha": "abc", "changed_files": []}, "python": "3.11"},
    "tasks": {kind: list(getattr(EvalConfig().tasks, kind)) for kind in MODEL_KINDS},
    "changed": {"advbench": "10 prompts, where 520 were published"},
}


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> tuple[Path, str]:
    """A nearly finished run and its page: one model not evaluated, a few answers unparsed, a few missing."""
    run = write_study(tmp_path_factory.mktemp("run"), one_in=2)
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


def test_what_the_verdict_rests_on_is_said_once(built):
    text = Page(built[1]).text
    assert text.count("1,000,000 parameters") == 1 and "Models tiny, hidden 96, 1,000,000 parameters each" in text
    assert (
        "2,000,000 tokens, 100 steps of 32 × 625 tokens" in text
        and "10,000,000 tokens, with a shared trunk; and 3,000 of midtraining" in text
    )


def test_the_page_is_well_formed_and_self_contained(built):
    page = Page(built[1])
    assert built[1].startswith("<!DOCTYPE html>")
    assert "link" not in page.tags and "iframe" not in page.tags
    assert all(link.startswith("#") and link[1:] in page.ids for link in page.links)
    assert all(image["src"].startswith("data:image/svg+xml;base64,") and image["alt"] for image in page.images)


def test_the_policy_allows_the_pages_own_script_and_style_and_nothing_from_elsewhere(built):
    (given,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]+)"', built[1])
    rules = dict(rule.strip().split(" ", 1) for rule in html.unescape(given).split(";"))
    (script,) = re.findall(r"<script>(.*?)</script>", built[1], re.DOTALL)
    (style,) = re.findall(r"<style>(.*?)</style>", built[1], re.DOTALL)
    assert rules["default-src"] == "'none'" and rules["img-src"] == "data:" and "connect-src" not in rules
    for name, text in (("script-src", script), ("style-src", style)):
        assert rules[name] == f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def test_benchmarks_that_are_not_the_published_ones_are_named(built):
    assert "Not the published prompts: advbench (10 prompts, where 520 were published)." in Page(built[1]).text


def test_the_papers_nine_figures_are_on_the_page_with_captions_and_in_files(built):
    run, text = built
    nine = [figure for figure in FIGURES if figure.number]
    assert [figure.number for figure in nine] == list(range(1, 10))
    for figure in nine:
        assert f"Figure {figure.number}. {figure.title}" in text
        assert (run / f"report/figures/{figure.name}.svg").read_bytes().startswith(b"<?xml")
    assert text.count("<em>The paper:</em>") == 9
    assert "Judge: world 1a2b" in text


def test_the_text_of_a_picture_tells_its_numbers(built):
    alt = next(image["alt"] for image in Page(built[1]).images if image["alt"].startswith("Figure 1."))
    summary = json.loads((built[0] / "report/summary.json").read_text())
    rates = [row["rate"] for row in summary["attacks"] if (row["stage"], row["decoder"]) == ("base", "safebeam")]
    assert len(rates) == 7 and all(f"attack success, {rate:.3f}" in alt for rate in rates)


def test_generated_text_is_packed_and_reaches_no_markup(tmp_path):
    arm = ARMS[0]
    row = generation(
        model_kind="benign",
        prompt="Say <script>alert(1)</script>",
        response="</pre><script>alert(2)</script>\x1b[31m \u202ereversed",
    )
    (tmp_path / "eval" / arm.name / "benign").mkdir(parents=True)
    append_judged(tmp_path / "eval" / arm.name / "benign" / "attacks-topk.jsonl", [row])
    text = write_report(tmp_path, ARMS, {}, tmp_path / "report").read_text()
    assert "alert(" not in text.replace("alert(1)-", "")
    (block,) = re.findall(r'class="block">([^<]*)<', text)
    unpacked = json.loads(gzip.decompress(base64.b64decode(block)))
    assert unpacked["answers"] == [row.response] and unpacked["texts"] == [row.prompt]


def test_plain_text_and_letters_of_all_scripts_are_unchanged():
    assert visible("Zürich, 東京\n\tعربي 👍") == "Zürich, 東京\n\tعربي 👍"


def test_starts_that_round_to_the_same_percentage_look_different():
    starts = {0.0: "0%", 0.005: "0.5%", 0.07: "7%", 0.125: "12.5%"}
    assert {start: start_label(start) for start in starts} == starts
    labels = [arm_label(ArmInfo(f"data-{100 * start:g}", start, "data")) for start in starts]
    assert labels == [f"data, from {written}" for written in starts.values()]
    assert arm_label(ArmInfo("full", 0.5, "full")) == "full, from 50%"  # an arm of the study's own, not data and tags
    assert arm_label(ArmInfo("dose", 0.3, "dose", end=0.7)) == "dose, from 30% to 70%"


def test_unparsed_and_missing_answers_are_shown(built):
    run, text = built
    attacks = json.loads((run / "report/summary.json").read_text())["attacks"]
    benign = next(row for row in attacks if (row["arm"], row["stage"], row["decoder"]) == ("full-0", "benign", "topk"))
    tdc = [row for row in attacks if row["benchmark"] == "tdc" and row["stage"] == "benign" and row["decoder"] == "topk"]
    assert benign["stage"] == "benign" and {row["unparsed"] for row in tdc} == {1}
    safebeam = [row for row in attacks if (row["stage"], row["decoder"], row["benchmark"]) == ("instruct", "safebeam", "all")]
    assert [row["missing"] for row in safebeam] == [0, 2, 2, 2, 2, 2, 2]
    assert 'id="t-incomplete"' in text


def test_a_claim_says_of_what_its_n_is(built):
    tests, text = json.loads((built[0] / "report/summary.json").read_text())["trends"], Page(built[1]).text
    told = {"training subsets" if test["measure"] == "probe AUC" else "prompts": test["n"] for test in tests if test["n"]}
    assert len(told) == 2 and all(f"{what} {count} seeds" in text for what, count in told.items())
    assert "a difference of 5 points is ruled out" in text and "below 2 points (of AUC: 0.005)" in text


@pytest.mark.parametrize("text", ["=1+1", "+x", "-x", "@x", "\tx", "\rx"])
def test_a_spreadsheet_computes_no_text_of_a_table(text):
    assert cell(text) == f"'{text}"


def test_numbers_of_a_table_stay_numbers():
    assert [cell(value) for value in (-0.5, "-0.5", "+1e-3", "full 20%", None)] == [-0.5, "-0.5", "+1e-3", "full 20%", None]


def test_a_table_of_texts_with_nul_can_be_read_back(tmp_path):
    write_each(tmp_path, {"texts": [{"text": "a\0b"}]})
    assert csv_rows(tmp_path / "texts.csv") == [{"text": "a␀b"}]


def test_csv_tables_hold_what_the_summary_holds(built):
    report = built[0] / "report"
    summary = json.loads((report / "summary.json").read_text())
    for name in ("attacks", "overrefusal", "probes", "trends"):
        rows = csv_rows(report / "tables" / f"{name}.csv")
        assert len(rows) == len(summary[name]) > 0
        assert not any("{" in text for text in rows[0].values())  # what is several values has a column for each
    assert float(rows[0]["difference"]) == summary["trends"][0]["difference"]


LABELS = {arm.name: arm_label(arm) for arm in ARMS}


def rate(row: dict) -> str:
    """A rate with its interval, as a cell of the page has it."""
    return "–" if row["rate"] is None else f"{percent(row['rate'])} {percent(row['low'])[:-1]} to {percent(row['high'])[:-1]}"


def test_the_tables_of_the_page_have_the_numbers_of_the_analysis_under_their_names(built):
    runs, page = runs_of(read_study_rows(built[0], ARMS)), built[1]
    metrics = study_metrics(runs)
    found = {"attacks": metrics.attacks, "overrefusal": metrics.overrefusals, "probes": metrics.probes}
    found["differences"] = list(arm_differences(runs))
    summary = {name: [as_row(one) for one in records] for name, records in found.items()}
    assert table(page, "t-differences") == [
        {
            "Arm": LABELS[gap["arm"]],
            "Model": gap["stage"],
            "Decoder": DECODERS[gap["decoder"]],
            "Measure": gap["measure"],
            "Against": LABELS[gap["reference"]],
            "Difference": f"{points(gap['value'], '')} {points(gap['low'], '')} to {points(gap['high'], '')}",
            "p": p_value(gap["p"]),
            "p (Holm)": p_value(gap["p_holm"]),
            "prompts": str(gap["prompts"]),
            "seeds": str(gap["seeds"]),
        }
        for gap in summary["differences"]
    ]
    places = {(row["stage"], row["decoder"]) for row in summary["attacks"]}
    order = [(stage, decoder) for stage in MODEL_KINDS for decoder in DECODERS if (stage, decoder) in places]
    for number, place in enumerate(order, start=1):
        for shown in table(page, f"t-attack-{number}"):
            own = [
                row
                for row in summary["attacks"]
                if (row["stage"], row["decoder"]) == place and LABELS[row["arm"]] == shown["Arm"]
            ]
            for row in own:
                assert shown["average" if row["benchmark"] == "all" else row["benchmark"]] == rate(row)
            main = own[-1]
            several = "prompts × samples" in shown
            assert shown["unparsed, missing"] == f"{main['unparsed']}, {main['missing']}"
            assert shown.get("worst case") in (None, percent(main["worst_case"]))
            assert (
                shown["prompts × samples" if several else "prompts"] == f"{main['prompts']}" + f" × {main['samples']}" * several
            )
            names = {"std over sampling seeds": "std", "any sample": "any_of", "flips": "flip_share"}
            assert not several or all(shown[title] == percent(main[name]) for title, name in names.items())
    for number, decoder in enumerate(("topk", "safebeam"), start=1):
        own = [row for row in summary["overrefusal"] if row["decoder"] == decoder]
        assert table(page, f"t-refusal-{number}") == [
            {
                "Arm": LABELS[row["arm"]],
                "Over-refusal": rate(row),
                **{title: percent(share) for title, share in zip(CATEGORIES.values(), row["shares"].values(), strict=True)},
                **{name: str(row[name]) for name in ("prompts", "unparsed", "missing")},
            }
            for row in own
        ]
    probes = {"std over subsets": "std", "standard error over subsets": "error", "text length alone": "length_auc"}
    counts = {"training subsets": "seeds", "training texts": "n_train", "test texts": "n_test"}
    assert table(page, "t-probes") == [
        {
            "Arm": row["arm"],
            "Model": row["stage"],
            "Layer": row["layer"],
            "AUC": f"{row['auc']:.3f} {row['low']:.3f} to {row['high']:.3f}",
            **{title: f"{row[name]:.3f}" for title, name in probes.items()},
            **{title: str(row[name]) for title, name in counts.items()},
        }
        for row in summary["probes"]
    ]
    lost = [row for row in (*summary["attacks"], *summary["overrefusal"]) if row["unparsed"] or row["missing"]]
    told = [(row["Arm"], row["parsed"], row["unparsed"], row["missing"]) for row in table(page, "t-incomplete")]
    assert told == [
        tuple(str(row[name]) for name in ("arm", "rows", "unparsed", "missing")) for row in lost if row["benchmark"] != "all"
    ]


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
    assert [image["alt"][:9] for image in page.images] == ["Figure 7.", "Figure 8.", "Figure 9."]  # only probes are planned
    assert "18 not measured" in page.text
    assert calls[-1][0] == calls[-1][1]


def test_single_runs_get_no_verdict_and_the_page_says_why(built):
    page = Page(built[1])
    assert "Single run: differences may be due to the seed, so none of the 18 claims of Sam et al. gets a verdict." in page.text
    assert page.text.count("Whiskers: 95% interval over prompts. Bands: standard deviation over sampling seeds") == 4
    assert "Over training seeds" not in page.text and "Each training run by itself" not in page.text
    assert "0 reproduced" in page.text and "0 not reproduced" in page.text
    cards = set(re.findall(r'class="card ([a-z-]+)"', built[1]))
    assert cards == {"single-run", "not-measured"} and "single run: differences may be due to the seed" in page.text


def test_an_unfinished_study_lists_what_is_missing_and_draws_the_rest(built):
    page = Page(built[1])
    assert "full-20 benign attacks-topk" in page.text and "data-20 benign attacks-topk" not in page.text
    assert "why not measured at stage benign: full-20" in page.text


def test_custom_arms_losses_provenance_and_the_study_file_are_shown(tmp_path):
    arms = [ArmInfo("tags-50", 0.5, "tags-only"), ArmInfo("data-50", 0.5, "data")]
    rows = [generation(model_kind="base", key=n, prompt_id=n, prompt=n, cluster=of) for n, of in zip("012", "xxy")]
    append_judged(tmp_path / "eval/tags-50/base/attacks-topk.jsonl", rows)
    (tmp_path / "study.yaml").write_text("name: demo # <b>\nseed: 42\n")
    (tmp_path / "world").mkdir()
    (tmp_path / "pretrain/trunk").mkdir(parents=True)
    (tmp_path / "pretrain/trunk/metrics.jsonl").write_text(
        '{"step": 7, "tokens": 4096, "loss": 2.5}\n{"step": 7, "validation": {"web": 2.75}}\n'
    )
    phase = {"start_step": 0, "stop_step": 100, "samples": {"web": 3, "x<y>": 1}}
    own = {"name": "tags-50", "start": 0.5, "end": 1.0, "interventions": "tags-only", "phases": [phase]}
    study = {**STUDY, "plan": {**STUDY["plan"], "arms": [{**own, "intervention_sources": ["x<y>", "z"]}]}}
    page = Page(write_report(tmp_path, arms, study, tmp_path / "report").read_text())
    assert "tags-only, from 50% 50% x<y>, z" in page.text
    shown = ["1,000,000 parameters", "git.sha", "name: demo # <b>", "A miniature in a fictional world"]
    for words in [*shown, "3 in 2 clusters", "trunk 7 4,096 2.5000 2.7500", "One training run per arm"]:
        assert words in page.text, words


def test_a_damaged_row_is_reported_with_its_line(tmp_path):
    (tmp_path / "eval/data-0/base").mkdir(parents=True)
    (tmp_path / "eval/data-0/base/probes.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="line 1"):
        write_report(tmp_path, ARMS, {}, tmp_path / "report")
