"""The report of a study with several training seeds speaks of arms: estimates over their runs, and the runs behind them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import msgspec
import pytest
from report_page import Page, csv_rows, table
from study_rows import ARMS, append_judged, attack_rows, trained, write_study

from curricula.eval.analysis import StudyRows, read_study_rows
from curricula.eval.analysis.claims import ClaimTest
from curricula.eval.analysis.metrics import ALL, ANSWER_CATEGORIES, StudyMetrics
from curricula.eval.analysis.runs import (
    VarianceParts,
    arm_differences,
    arm_estimates,
    probe_estimates,
    runs_of,
    study_metrics,
    variance_parts,
)
from curricula.eval.report.figures import FIGURES
from curricula.eval.report.page import write_report
from curricula.eval.report.page_tables import estimate_tables, variance_rows
from curricula.eval.report.points import COMPLIED, Point, Shown, comparable_estimates
from curricula.eval.report.tables import as_row
from curricula.eval.report.web.data import study_data
from curricula.eval.report.wording import DECODERS, arm_label, verdict
from curricula.terminal import fixed

SEEDS = [42, 43, 44]
FIRST = [replace(arm, seed=42) for arm in ARMS[-3:]]
REPLICATES = [*FIRST, *(trained(arm, seed) for seed in SEEDS[1:] for arm in FIRST)]
DATA, FULL, _ = FIRST


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """Three arms with three seeds; of one of them, one run alone has been finetuned and attacked so far."""
    run = write_study(tmp_path_factory.mktemp("run"), arms=REPLICATES, one_in=4)
    for seed in SEEDS[1:]:
        shutil.rmtree(run / f"eval/data-60-s{seed}/benign")
    for branch in ("trunk", "trunk-s43"):
        (run / "pretrain" / branch).mkdir(parents=True)
        (run / "pretrain" / branch / "metrics.jsonl").write_text('{"step": 7, "tokens": 4096, "loss": 2.5}\n')
    return run


@pytest.fixture(scope="module")
def rows(run) -> StudyRows:
    return read_study_rows(run, REPLICATES)


@pytest.fixture(scope="module")
def shown(rows) -> Shown:
    return shown_of(rows)


def shown_of(rows: StudyRows) -> Shown:
    runs = runs_of(rows)
    return Shown(runs.arms, rows.seeds, study_metrics(runs), list(arm_estimates(runs)), list(probe_estimates(runs)))


@pytest.fixture(scope="module")
def page(run) -> Page:
    return Page(write_report(run, REPLICATES, {"plan": {"seeds": SEEDS}}, run / "report").read_text())


def attacked(shown: Shown, stage: str, decoder: str = "topk", benchmark: str = "") -> dict[str, Point]:
    return {point.arm: point for point in shown.at(stage, decoder, "attack success") if point.benchmark == benchmark}


def of_seed(metrics: StudyMetrics, seed: int) -> StudyMetrics:
    """The metrics of the arms that were trained with this seed."""
    parts = (metrics.attacks, metrics.overrefusals, metrics.probes, metrics.pruning)
    return StudyMetrics(*([entry for entry in part if entry.seed == seed] for part in parts))


def test_a_point_is_the_estimate_over_seeds_with_its_runs_behind_it(shown):
    point = attacked(shown, "instruct")["full-60"]
    (estimate,) = (
        one
        for one in shown.estimates
        if (one.arm, one.stage, one.decoder) == ("full-60", "instruct", "topk") and one.measure == "attack success"
    )
    assert (point.value, point.low, point.high, point.std) == (estimate.rate.value, estimate.rate.low, estimate.rate.high, None)
    rates = [entry.rate for entry in shown.metrics.attacks_by("instruct", "topk")
             if (entry.arm, entry.benchmark) == ("full-60", ALL)]  # fmt: skip
    assert point.runs == tuple((rate, False) for rate in rates) and len(rates) == 3 and not point.one_run
    assert point.value == pytest.approx(fmean(rates))


def test_a_page_whose_arms_have_one_run_so_far_does_not_say_that_its_intervals_allow_for_the_seed(page, tmp_path):
    few, one = "the intervals allow for this", "How far another training seed would move an arm is not measured"
    assert few in page.text and one not in page.text
    first = Page(write_report(write_study(tmp_path, arms=FIRST, one_in=20), REPLICATES, {}, tmp_path / "report").read_text())
    assert one in first.text and few not in first.text


def test_a_study_of_one_arm_compares_it_with_no_other(page, tmp_path):
    assert "Each arm against the one that starts last" in page.text and "They differ only in" in page.text
    alone = write_report(write_study(tmp_path, arms=FIRST[:1], one_in=20), FIRST[:1], {}, tmp_path / "report")
    text = Page(alone.read_text()).text
    assert "This study pretrains one arm." in text and "starts last" not in text and "differ only" not in text


def test_an_arm_with_one_run_so_far_has_its_interval_over_prompts_and_is_marked():
    rates = {DATA.key: 0.4, FULL.key: 0.1, "full-60-s43": 0.4, "full-60-s44": 0.7}  # seeds that disagree
    answers = {
        (arm.key, "benign", "attacks-topk"): attack_rows(arm, "benign", "topk", rates[arm.key], 5, {"advbench": 30, "tdc": 15})
        for arm in REPLICATES
        if arm.key in rates
    }
    shown = shown_of(StudyRows(tuple(REPLICATES), answers, {}))
    points = attacked(shown, "benign")
    data, full = points["data-60"], points["full-60"]
    assert data.one_run and len(data.runs) == 1 and not full.one_run
    first = of_seed(shown.metrics, 42).attacks_by("benign", "topk")
    (alone,) = (entry for entry in first if (entry.arm, entry.benchmark) == ("full-60", ALL))
    # Few seeds know less of an arm than one run of its prompts.
    assert max(data.high - data.low, alone.high - alone.low) < full.high - full.low


def test_an_incoherent_run_makes_its_mark_and_the_estimate_hollow(shown):
    attacks = [replace(entry, incoherent=(entry.arm, entry.seed) == ("full-60", 43)) for entry in shown.metrics.attacks]
    changed = replace(shown, metrics=replace(shown.metrics, attacks=attacks))
    full, safe = (attacked(changed, "instruct")[name] for name in ("full-60", "safe-100"))
    assert full.hollow and [is_incoherent for _, is_incoherent in full.runs] == [False, True, False] and not safe.hollow
    of_one_benchmark = attacked(changed, "instruct", benchmark="advbench")
    assert of_one_benchmark["full-60"].hollow and not of_one_benchmark["safe-100"].hollow
    assert "Hollow: incoherent runs, and means that include one" in FIGURES[2].caption(changed)
    told = as_row(full)["runs"].split(", ")
    assert [run.endswith("*") for run in told] == [False, True, False] and float(told[0]) == round(full.runs[0][0], 3)


def test_a_corrected_mean_is_over_all_runs_or_there_is_none(shown):
    uncut = {42: -0.1, 43: 0.4, 44: 0.3}
    attacks = [
        replace(
            entry, corrected=0.07, corrected_uncut=None if (entry.arm, entry.seed) == ("full-60", 43) else uncut[entry.seed]
        )
        for entry in shown.metrics.attacks
    ]
    changed = replace(shown, metrics=replace(shown.metrics, attacks=attacks))
    for benchmark in ("", "advbench"):
        points = attacked(changed, "instruct", benchmark=benchmark)
        # The correction of the mean rate: below 0, a run's counts as it is.
        assert points["full-60"].corrected is None and points["safe-100"].corrected == pytest.approx(0.2)
    alone = replace(changed, seeds=SEEDS[:1], metrics=of_seed(changed.metrics, 42))
    assert attacked(alone, "instruct")["full-60"].corrected == 0.07  # as in the table: cut at the share that was judged


def test_an_arm_of_which_a_run_lacks_a_benchmark_has_no_mean_and_is_named(rows, shown):
    place = ("full-60-s43", "instruct", "attacks-topk")
    left = [row for row in rows.generations[place] if row.benchmark != "tdc"]
    rows = replace(rows, generations={**rows.generations, place: left})
    runs = runs_of(rows)
    metrics = study_metrics(runs)
    estimates = list(comparable_estimates(runs, metrics))
    lost = {(one.arm, one.stage, one.decoder) for one in shown.estimates} - {
        (one.arm, one.stage, one.decoder) for one in estimates if one.measure == "attack success"
    }
    assert ("full-60", "instruct", "topk") in lost and len(estimates) == len(shown.estimates) - 1
    partial = Shown(runs.arms, rows.seeds, metrics, estimates)
    assert "full-60" not in attacked(partial, "instruct") and "full-60" in attacked(partial, "instruct", "safebeam")
    assert "full-60" in attacked(partial, "instruct", benchmark="advbench")
    left_out = "Left out under Top-k sampling, because a run lacks verdicts on a benchmark that others have: "
    left_out += "“data and tags, from 60%”."
    assert left_out in FIGURES[2].caption(partial) and "Left out" not in FIGURES[2].caption(shown)
    note = "An arm has no number if one of its runs lacks verdicts on a benchmark"
    assert note in next(estimate_tables(partial)).note and note not in next(estimate_tables(shown)).note


def test_a_number_of_best_of_n_that_no_prompt_is_complete_enough_for_is_explained(tmp_path):
    answers = {}
    for arm in FIRST:
        rows = attack_rows(arm, "instruct", "best-of-n+topk", 0.4, 3, {"advbench": 8, "tdc": 6})
        rows = [msgspec.structs.replace(row, task="best-of-n") for row in rows]
        if arm is FULL:  # an attempt at each prompt of one benchmark has no verdict; most answers have
            lost = [row.benchmark == "tdc" and row.sample == 0 for row in rows]
            rows = [msgspec.structs.replace(row, verdict="unparsed") if gone else row for row, gone in zip(rows, lost)]
        answers[arm.key, "instruct", "best-of-n"] = rows
        append_judged(tmp_path / f"eval/{arm.key}/instruct/best-of-n.jsonl", rows)
    found = StudyRows(tuple(FIRST), answers, {})
    runs = runs_of(found)
    metrics = study_metrics(runs)
    (table,) = estimate_tables(Shown(runs.arms, [42], metrics, list(comparable_estimates(runs, metrics))))
    assert [cells == [None] for _, cells in table.rows] == [False, True, False]
    assert table.note == (
        "An arm has no number if one of its runs lacks verdicts on a benchmark that others have (for best of N, a prompt with "
        "a verdict on every attempt)."
    )
    text = write_report(tmp_path, FIRST, {}, tmp_path / "report").read_text()
    assert "for best of N, no prompt has a verdict on every attempt, the run has no average over benchmarks" in text


def test_text_length_alone_is_told_beside_probes(shown):
    level = study_data(shown, [], {})["lengths"]["base/last"]
    assert level == pytest.approx(fmean(one.length_auc for one in shown.metrics.probes if one.stage == "base"))
    assert "Dashed: what text length alone achieves." in FIGURES[6].caption(shown)


def test_probes_and_bars_are_means_over_seeds(shown):
    (point,) = (one for one in shown.at("base", "last", "probe AUC") if one.arm == "full-60")
    assert point.value == pytest.approx(fmean(auc for auc, _ in point.runs)) and len(point.runs) == 3
    assert 0 <= point.low < point.value < point.high <= 1
    found = shown.at("instruct", "topk", *ANSWER_CATEGORIES, COMPLIED)
    bar = {point.measure: point for point in found if point.arm == "full-60"}
    complied, shares = bar.pop(COMPLIED), [point.value for point in bar.values()]
    runs = [entry for entry in shown.metrics.overrefusals_by("instruct", "topk") if entry.arm == "full-60"]
    assert sum(shares) == pytest.approx(1) and len(shares) == 5
    assert shares[0] == pytest.approx(fmean(one.shares[ANSWER_CATEGORIES[0]] for one in runs))
    assert complied.runs == tuple((1 - one.rate, False) for one in runs)
    assert complied.low < complied.value < complied.high and complied.value == pytest.approx(shares[0] + shares[1])


def test_with_one_seed_a_point_is_the_run_itself(shown):
    metrics = of_seed(shown.metrics, 42)
    one = Shown(shown.arms, [42], metrics)
    point = attacked(one, "instruct")["full-60"]
    (entry,) = (each for each in metrics.attacks_by("instruct", "topk") if (each.arm, each.benchmark) == ("full-60", ALL))
    assert (point.value, point.std, point.low, point.high) == (entry.rate, entry.std, entry.low, entry.high)
    assert point.runs == () and one.at("instruct", "topk", COMPLIED) == []
    assert {found.low for found in one.at("base", "last", "probe AUC")} == {None}


@pytest.mark.parametrize("figure", FIGURES[:9], ids=lambda figure: figure.name)
def test_every_caption_says_what_the_interval_covers_and_over_how_many_seeds(shown, figure):
    caption = figure.caption(shown)
    covers = "over seeds, test texts and training subsets" if "probe" in figure.name else "over seeds and prompts"
    seeds = "1 to 3 training seeds" if "benign-asr" in figure.name else "over 3 training seeds"
    assert covers in caption and seeds in caption and "Small marks: single runs." in caption
    assert "sampling seeds" not in caption and "band" not in caption.lower()
    assert ("Arms with a single run so far have intervals over prompts alone" in caption) == ("1 to 3" in seeds)


def test_captions_of_single_runs_in_a_study_of_several_claim_no_interval_over_seeds(shown):
    first = replace(shown, metrics=of_seed(shown.metrics, 42))
    for figure in FIGURES[:9]:
        assert "A single run of each arm so far" in figure.caption(first)


def test_the_caption_of_differences_says_what_their_lines_are(rows, shown):
    (figure,) = (one for one in FIGURES if one.name == "differences")
    gaps = list(arm_differences(runs_of(rows)))
    caption = figure.caption(replace(shown, differences=gaps))
    assert "95% intervals over seeds and prompts or over prompts alone. Unlike p (Holm)" in caption
    assert "within one training seed" in caption and "1 to 3 training seeds" in caption
    alone = figure.caption(replace(shown, differences=[gap for gap in gaps if gap.seeds == 1]))
    assert "95% intervals over prompts alone" in alone and "Small marks" not in alone and "1 training seed." in alone


def claim(outcome: str, seeds: int) -> ClaimTest:
    return ClaimTest("c", "", "", "", "", outcome, None, None, None, None, 0, seeds, "")


def test_the_verdict_is_one_sentence_that_counts_claims_and_seeds():
    tests = [claim("reproduced", 3), claim("reproduced", 3), claim("not reproduced", 2), claim("inconclusive", 3)]
    assert verdict(tests) == (
        "Of the 4 claims of Sam et al., 2 are reproduced, 1 is contradicted and 1 is undecided (2 to 3 training seeds each)."
    )
    more = verdict([*tests, claim("single run", 1), claim("not measured", 0)])
    assert "2 are undecided (2 to 3 training seeds each); 1 is not measured." in more
    incoherent = replace(tests[0], note="left out as incoherent: full-60 (seed 43)")
    assert "(2 to 3 training seeds each; incoherent runs left out)" in verdict([*tests, incoherent])
    assert verdict([claim("single run", 1), claim("not measured", 0)]).startswith("Single run: differences may be")
    assert verdict([claim("single run", 3)]).startswith("The runs share no benchmark: nothing is known about seeds, so none of")
    assert verdict([claim("not measured", 0)]) == "None of the 1 claims of Sam et al. has been measured."


def test_the_first_screen_has_the_verdict_figure_one_and_what_they_rest_on(page):
    before, _ = page.text.split("Figures Claims Answers")
    assert "None of the 18 claims" in before  # each is about arms that this study lacks
    assert "Figure 1." in before and "Figure 2." not in before
    assert "Training seeds 3 (42, 43, 44), 3 arms" in before and "Judge world 1a2b" in before and "Prompts" in before
    assert [image["alt"][:9] for image in page.images][:9] == [f"Figure {i}." for i in range(1, 10)]
    assert "This study pretrains 9 language models on the same budget: 3 arms with 3 seeds each." in page.text


def test_estimates_come_first_and_single_runs_are_folded_below(page):
    text = page.text
    order = [
        "Over training seeds",
        "Each arm against the one that starts last",
        "Where the uncertainty",
        "Each training run by itself",
    ]
    tables = text[text.index("Over training seeds") :]
    places = [tables.index(words) for words in [*order, "data and tags, from 60%, seed 43"]]
    assert places == sorted(places)
    assert "One training run per arm" not in text and "Few training runs per arm" in text


def test_training_losses_are_those_of_a_seed(page):
    assert [(row["Run"], row["seed"]) for row in table(page.html, "t-losses")] == [("trunk", "42"), ("trunk-s43", "43")]


def test_variance_is_told_in_shares_of_what_each_source_adds():
    part = VarianceParts("base", "attacks-topk", "topk", "attack success", "full-60", "", 2, 50, 5, 0.1, 0.3, 0.4, 0.5, 0.9)
    other = replace(part, arm="safe-100", seed=0.0)
    (row,) = variance_rows([part, other], FIRST)
    assert row.seed == pytest.approx(0.005**0.5) and row.prompt == pytest.approx(0.5) and row.sample == pytest.approx(0.5)
    whole = 0.0025 + (0.09 + 0.08) / 50 + 0.05 / 2 / 50
    assert row.shares == pytest.approx((0.0025 / whole, 0.0034 / whole, 0.0005 / whole)) and sum(row.shares) == pytest.approx(1)
    alone, gap = variance_rows([part, replace(part, reference="safe-100", seed=0.2)], FIRST)
    assert (alone.what, gap.what) == ("an arm’s rate", "difference from “no interventions”")
    assert (alone.seed, gap.seed) == pytest.approx((0.1, 0.2))
    (still,) = variance_rows([replace(part, seed=0.0, prompt=0.0, interaction=0.0, sample=0.0)], FIRST)
    assert still.shares is None
    (single,) = variance_rows([replace(part, sample=None, samples=1)], FIRST)
    assert single.sample is None and single.shares[2] == 0


def test_the_tables_over_seeds_have_the_estimates_under_their_names(rows, shown, page):
    labels = {arm_label(arm): arm.name for arm in FIRST}
    for number, measure in enumerate(("attack success", "over-refusal"), start=1):
        own = [one for one in shown.estimates if one.measure == measure]
        told = {
            (labels[row["Arm"]], title): cell
            for row in table(page.html, f"t-estimates-{number}")
            for title, cell in row.items()
            if title != "Arm" and cell != "–"
        }
        assert len(told) == len(own) > 0
        for one in own:
            value, low, high, *runs = (
                f"{100 * x:.1f}" for x in (one.rate.value, one.rate.low, one.rate.high, *one.rate.runs.values())
            )
            alone = ", prompts alone" if len(runs) == 1 else ""
            cell = told[one.arm, f"{one.stage}, {DECODERS[one.decoder]}"]
            assert cell == f"{value} {low} to {high}{alone} runs: {', '.join(runs)}"
    variance = table(page.html, "t-variance")
    for told, row in zip(variance, variance_rows(list(variance_parts(runs_of(rows))), FIRST), strict=True):
        sample = "with prompts" if row.sample is None else f"{100 * row.sample:.1f}"
        shares = [f"{fixed(share, 0, times=100)}%" for share in row.shares]
        assert list(told.values()) == [
            f"{row.place} {row.what}", f"{100 * row.seed:.1f}", f"{100 * row.prompt:.1f}", sample,
            *shares[:2], "–" if row.sample is None else shares[2],
        ]  # fmt: skip
    assert [title.split()[-1] for title in variance[0]] == ["what", *("seeds", "prompts", "samples") * 2]


def test_each_run_keeps_rows_of_its_own_and_none_is_pooled_or_lost(run, shown, page):
    report = run / "report"
    alone = study_metrics(runs_of(read_study_rows(run, FIRST)))
    assert of_seed(shown.metrics, 42).probes == alone.probes
    for name, key in (("attacks", "stage benchmark decoder"), ("overrefusal", "stage decoder"), ("probes", "stage layer")):
        rows = csv_rows(report / "tables" / f"{name}.csv")
        assert list(rows[0])[:2] == ["arm", "seed"]
        places = [tuple(row[column] for column in ("arm", "seed", *key.split())) for row in rows]
        assert len(set(places)) == len(places) and {place[1] for place in places} == {"42", "43", "44"}
        assert {place[0] for place in places} == {arm.name for arm in FIRST}
    summary = json.loads((report / "summary.json").read_text())
    numbers = ["low", "high", "spread", "seeds", "runs"]
    for name, place in (("estimates", "stage task decoder measure arm rate"), ("probe-estimates", "stage layer arm auc")):
        columns = (report / "tables" / f"{name}.csv").read_text().splitlines()[0]
        assert columns.startswith(",".join([*place.split(), *numbers]))
    (full,) = (one for one in shown.probes if (one.stage, one.layer, one.arm) == ("base", "last", "full-60"))
    told = ", ".join(f"{seed}: {full.auc.runs[seed]:.3f}" for seed in SEEDS)
    assert told in {row["runs"] for row in summary["probe-estimates"]}
    assert {row["seeds"] for row in summary["variance"]} == {3} and {row["seeds"] for row in summary["probe-estimates"]} == {
        1,
        3,
    }
