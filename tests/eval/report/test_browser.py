"""The page in a real browser: what a reader does with it, and what it must never do."""

from __future__ import annotations

import csv
import io
import json
import re
import threading
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from axe_playwright_python.sync_playwright import Axe
from hostile_texts import PAYLOADS
from matplotlib import pyplot
from study_rows import (
    ARMS,
    append_judged,
    attack_rows,
    capability_rows,
    generation,
    overrefusal_rows,
    paper_rate,
    probe_rows,
    trained,
)

from curricula.eval.report import figures
from curricula.eval.report.page import write_report
from curricula.eval.report.web.serve import LivePage
from curricula.eval.rows import GenerationRow, VerdictRow, append_rows, read_rows
from curricula.eval.verdicts import key_of_question, verdicts_path
from curricula.jobs.estimates import describe
from curricula.jobs.graph import plan_study
from curricula.jobs.study import load_study

FIRST = [replace(arm, seed=42) for arm in (ARMS[2], ARMS[3], ARMS[-1])]
TRAINED = [*FIRST, *(trained(arm, 43) for arm in FIRST)]
PROMPTS = {"base": {"jb_completions": 8}, "instruct": {"advbench": 6, "tdc": 6}}
PHONE, DESKTOP = {"width": 390, "height": 844}, {"width": 1280, "height": 900}


def second_judge(path: Path) -> None:
    """Another judge, which calls the first sample of every answer harmful."""
    append_rows(
        verdicts_path(path),
        [
            VerdictRow(
                key=row.key,
                judge="strict",
                version="9f",
                label="harmful" if row.sample == 0 else "safe",
                question=key_of_question(row, "strict", "9f"),
                tells_helpful=None,
            )
            for row in read_rows(path, GenerationRow)
        ],
    )


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    """The page of a small study of two seeds, whose answers two judges have judged, with hostile texts in one place."""
    run = tmp_path_factory.mktemp("run")
    for arm in TRAINED:
        for stage, benchmarks in PROMPTS.items():
            folder = run / "eval" / arm.key / stage
            for decoder, samples in (("topk", 2), ("safebeam", 1)):
                rows = attack_rows(arm, stage, decoder, paper_rate(arm, stage, decoder), samples, benchmarks)
                append_judged(folder / f"attacks-{decoder}.jsonl", rows)
            append_rows(folder / "probes.jsonl", probe_rows(arm, stage, "last", 0.8))
            append_rows(folder / "capability/quiz.jsonl", capability_rows(arm, stage, "quiz", 0.6))
        append_judged(folder / "overrefusal-topk.jsonl", overrefusal_rows(arm, "topk", (0.6, 0.3, 0.06, 0.04), 10))
        second_judge(folder / "attacks-topk.jsonl")
    for i, branch in enumerate(("data-20", "trunk")):
        steps = [
            {"step": k, "tokens": 512 * k, "loss": 3 - k / 400 - i / 10, "timing": {"seconds": 1.0}} for k in range(1, 501)
        ]
        validations = [{"step": step, "validation": {"web": 2.1}} for step in (250, 500)]
        text = "".join(json.dumps(row) + "\n" for row in [*steps, *validations])
        (run / "pretrain" / branch).mkdir(parents=True)
        (run / "pretrain" / branch / "metrics.jsonl").write_text(text)
    hostile = [
        generation(
            model=f"{TRAINED[0].key}/benign", model_kind="benign", benchmark="hostile", prompt_id=text, category=text,
            behavior=text, prompt=f"{text} asked", response=f"{text} answered", judge=text, judge_version="1",
        )
        for text in PAYLOADS
    ]  # fmt: skip
    append_judged(run / "eval" / TRAINED[0].key / "benign" / "attacks-topk.jsonl", hostile)
    study = {"plan": describe(plan_study(load_study(Path("demo"))))}
    return write_report(run, TRAINED, study, run / "report")


def opened(watched, page: Path, address: str = ""):
    watched.open(page.as_uri() + address)
    watched.page.wait_for_selector("#browser[data-loaded]")
    return watched.page


def choose(page, label: str, value: str) -> None:
    page.locator("#browser").get_by_label(label, exact=True).select_option(value)


def told(page) -> str:
    return page.locator("#browser [role=status]").inner_text()


def waits_for(page, text: str) -> None:
    page.locator("#browser [role=status]", has_text=re.compile(f"^{text}$")).wait_for()


def test_filters_and_search_narrow_the_list_and_the_address_keeps_them(watched, page):
    shown = opened(watched, page)
    total = told(shown).split()[0]
    assert told(shown) == f"{total} of {total} answers"
    choose(shown, "Arm", "full-20")
    choose(shown, "Stage", "instruct")
    choose(shown, "Decoder", "topk")
    waits_for(shown, f"68 of {total} answers")  # 12 prompts twice and 10 benign ones, of two seeds
    choose(shown, "Seed", "43")
    choose(shown, "Benchmark", "tdc")
    waits_for(shown, f"12 of {total} answers")
    shown.keyboard.press("/")
    shown.keyboard.type("NUMBER 3 OF")
    waits_for(shown, f"2 of {total} answers")
    choose(shown, "Judge", "strict 9f")
    choose(shown, "Verdict", "harmful")
    waits_for(shown, f"1 of {total} answers")
    again = opened(watched, page, "#" + shown.url.split("#")[1])
    choose(shown, "Verdict", "none")  # of this judge, which has seen all answers under top-k
    waits_for(shown, f"0 of {total} answers")
    choose(shown, "Decoder", "safebeam")
    waits_for(shown, f"1 of {total} answers")
    again.reload()
    waits_for(again, f"1 of {total} answers")
    assert again.get_by_label("Search in prompts").input_value() == "NUMBER 3 OF" and watched.is_clean


def test_one_prompt_lies_side_by_side_with_differences_and_every_judges_verdict(watched, page):
    shown = opened(watched, page, "#answers?stage=instruct&benchmark=tdc")
    shown.locator(".list").focus()
    shown.keyboard.press("Home")
    shown.keyboard.press("ArrowDown")
    shown.keyboard.press("Enter")
    cards = shown.locator(".compare article")
    assert cards.count() == 3 * 2 * 2 and shown.locator("article.chosen").count() == 1  # arms, seeds, decoders
    assert "(world 1a2b)" in cards.first.inner_text() and "(strict 9f)" in cards.first.inner_text()
    shown.get_by_label("show harmful answers").check()
    assert shown.get_by_role("button", name="Show it").count() == 0
    texts = [card.locator("pre").inner_text() for card in cards.all()]
    different = next(i for i, text in enumerate(texts) if text != texts[0])
    assert cards.nth(different).locator("mark").count() > 0 and cards.first.locator("mark").count() == 0
    shown.get_by_label("all samples").check()
    assert shown.locator(".compare article").count() == 3 * 2 * (2 + 1)
    address = shown.url
    other = watched.page.context.new_page()
    other.goto(address)
    other.wait_for_selector(".compare article")
    assert other.locator("article.chosen h4").inner_text() == shown.locator("article.chosen h4").inner_text()
    assert watched.is_clean


def test_a_harmful_answer_stays_covered_until_it_is_asked_for(watched, page):
    shown = opened(watched, page, "#answers?verdict=harmful&stage=base")
    assert "lamp oil" not in shown.locator(".list").inner_text()
    shown.locator(".row").first.click()
    assert "lamp oil" not in shown.locator(".compare").inner_text()
    shown.locator("article.chosen").get_by_role("button", name="Show it").click()
    assert "lamp oil" in shown.locator("article.chosen").inner_text()


def test_the_selection_is_saved_as_csv_and_json_and_a_table_as_latex(watched, page, tmp_path):
    shown = opened(watched, page, "#answers?stage=base&arm=safe-100&decoder=safebeam")
    saved = {}
    for name, button in (("csv", "Selection as CSV"), ("json", "as JSON")):
        with shown.expect_download() as caught:
            shown.get_by_role("button", name=button, exact=True).click()
        saved[name] = Path(caught.value.path()).read_text()
    assert "␀" in saved["csv"] and "\0" not in saved["csv"]  # in a judge's name; Python before 3.11 reads no NUL
    rows = list(csv.DictReader(io.StringIO(saved["csv"], newline="")))
    assert len(rows) == len(json.loads(saved["json"])) == 16 and {row["arm"] for row in rows} == {"safe-100"}
    assert {"seed", "behavior", "response", "verdict", "verdict: strict 9f"} <= rows[0].keys()
    with shown.expect_download() as caught:
        shown.locator("#study .tools").get_by_role("button", name="LaTeX").click()
    assert r"\toprule" in Path(caught.value.path()).read_text()


def figure_csv(shown, name: str) -> list[dict[str, str]]:
    with shown.expect_download() as caught:
        shown.locator(f"#{name} .tools").first.get_by_role("button", name="CSV").click()
    return list(csv.DictReader(Path(caught.value.path()).read_text().splitlines()))


def test_a_figure_is_drawn_again_for_another_judge_from_the_numbers_of_the_tables(watched, page):
    shown = opened(watched, page)
    with open(page.parent / "tables/points.csv") as file:
        points = [row for row in csv.DictReader(file) if (row["stage"], row["place"]) == ("instruct", "topk")]
    own = shown.locator("#fig3-instruct-asr .panels svg").first.get_attribute("aria-label")
    for judge, benchmark in (("", ""), ("strict 9f", ""), ("strict 9f", "tdc")):
        shown.locator("#choice").get_by_label("Judge").select_option(judge)
        shown.locator("#choice").get_by_label("Benchmark").select_option(benchmark)
        drawn = {row["arm"]: float(row["value"]) for row in figure_csv(shown, "fig3-instruct-asr") if row["place"] == "topk"}
        wanted = {
            row["arm"]: float(row["value"])
            for row in points
            if (row["judge"], row["benchmark"], row["measure"]) == (judge, benchmark, "attack success")
        }
        assert drawn == wanted and len(drawn) == 3
    assert shown.locator("#fig3-instruct-asr .panels svg").first.get_attribute("aria-label") != own
    shown.locator("#choice").get_by_label("Decoder").select_option("safebeam")
    assert shown.locator("#fig3-instruct-asr h4").all_inner_texts() == ["SafeBeam"] and watched.is_clean


def test_the_curriculum_the_losses_and_the_tree_are_drawn(watched, page):
    shown = opened(watched, page)
    for name in ("curriculum", "training-loss", "validation-loss", "tree", "differences"):
        assert shown.locator(f"#{name} .panels svg").count() >= 1, name
    assert "unsafe-tagged" in shown.locator("#curriculum .legend").inner_text()
    assert "interventions start" in shown.locator("#training-loss .legend").inner_text()
    lanes = {row["lane"] for row in figure_csv(shown, "differences") if row["label"] == "difference"}
    assert lanes == {"data, from 20%", "data and tags, from 20%"}


def test_a_figure_that_matplotlib_alone_draws_stays_a_picture_without_buttons(watched, tmp_path, monkeypatch):
    class Picture(figures.Figure):
        def caption(self, shown):
            return ""

        def draw(self, shown):
            return pyplot.figure()

        def has(self, shown):
            return True

    monkeypatch.setattr(figures, "FIGURES", (*figures.FIGURES, Picture(0, "picture", "A picture", "")))
    page = watched.open(write_report(tmp_path, [ARMS[0]], {}, tmp_path / "report"))
    assert page.locator("#picture img").is_visible() and not page.locator("#picture button").count() and watched.is_clean


def test_hostile_texts_run_nothing_wherever_they_are_shown(watched, page):
    watched.page.add_init_script("window.ran = []; window.alert = (x) => ran.push(String(x));")
    shown = opened(watched, page, "#answers?benchmark=hostile")
    assert len(PAYLOADS) == 48 and told(shown).startswith("48 of ")
    shown.locator(".list").focus()
    for _ in PAYLOADS:
        shown.keyboard.press("ArrowDown")
        shown.keyboard.press("Enter")
        shown.locator(".list").focus()
    shown.get_by_role("button", name="Selection as CSV").click()
    shown.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true })")
    assert shown.evaluate("ran") == [] and watched.is_clean, (watched.errors, watched.left)
    inside = "#browser script, #browser iframe, #browser img, #browser svg, #browser style, #browser form, #browser a"
    assert shown.locator(inside).count() == 0


@pytest.mark.parametrize("watched", [{"viewport": PHONE}, {"viewport": DESKTOP}], indirect=True, ids=["phone", "desktop"])
def test_nothing_scrolls_sideways_even_with_everything_open(watched, page):
    shown = opened(watched, page)
    shown.locator(".row").first.click()
    shown.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true })")
    assert shown.evaluate("document.documentElement.scrollWidth") == shown.viewport_size["width"]
    stacked = len({round(shown.locator("#fig3-instruct-asr .panels > div").nth(i).bounding_box()["x"]) for i in (0, 1)}) == 1
    assert stacked == (shown.viewport_size["width"] == PHONE["width"])


@pytest.mark.parametrize("watched", [{"color_scheme": "light"}], indirect=True)
def test_axe_finds_nothing_serious_in_light_and_dark(watched, page):
    shown = opened(watched, page)
    shown.locator(".row").first.click()
    shown.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true })")
    alike = "tr:nth-child(n+4), .list > :nth-child(n+4)"  # further rows of tables and lists, on which axe would take most time
    shown.evaluate(f"document.querySelectorAll('{alike}').forEach((one) => one.remove())")
    for scheme, options in (("light", {}), ("dark", {"runOnly": ["color-contrast"]})):
        shown.emulate_media(color_scheme=scheme)
        found = Axe().run(shown, options={**options, "resultTypes": ["violations"]}).response["violations"]
        serious = [(one["id"], one["nodes"][0]["html"][:160]) for one in found if one["impact"] in ("serious", "critical")]
        assert not serious, scheme


def test_print_keeps_the_figures_and_leaves_out_what_paper_cannot_do(watched, page):
    shown = opened(watched, page)
    shown.emulate_media(media="print")
    assert shown.locator("#fig1-base-asr .panels svg").first.is_visible()
    assert not shown.locator("#browser").is_visible() and not shown.locator("#choice").is_visible()


@pytest.mark.parametrize("watched", [{"java_script_enabled": False}], indirect=True)
def test_without_scripts_the_figures_are_pictures_with_their_numbers_as_text(watched, page):
    shown = watched.open(page)
    picture = shown.locator("#fig3-instruct-asr img")
    assert picture.is_visible() and picture.evaluate("one => one.naturalWidth") > 400
    assert re.search(r"data, from 20%, attack success, 0\.\d{3}", picture.get_attribute("alt"))


def big_study(run: Path, count: int) -> Path:
    """The page of a study with `count` answers of some 120 words."""
    rows, arm = [], FIRST[0]
    for number in range(count):
        words = " ".join(f"w{(number * 7919 + k * 31) % 5000}" for k in range(120))
        rows.append(generation(model_kind="base", model="m", benchmark="jb_completions", prompt_id=f"{number // 5}",
                               prompt=f"Request {number // 5}", sample=number % 5, response=words))  # fmt: skip
    append_judged(run / f"eval/{arm.key}/base/attacks-topk.jsonl", rows)
    return write_report(run, [arm], {}, run / "report")


def test_a_served_page_follows_its_run_and_stays_where_the_reader_is(watched, tmp_path):
    arm, folder = FIRST[0], tmp_path / f"eval/{FIRST[0].key}/base"
    rows = attack_rows(arm, "base", "topk", 0.4, 2, {"jb_completions": 8})
    append_judged(folder / "attacks-topk.jsonl", rows[:10])
    live = LivePage(tmp_path, lambda: write_report(tmp_path, [arm], {}, tmp_path / "page", is_live=True), 0)
    threading.Thread(target=live._server.serve_forever, daemon=True).start()
    try:
        shown = watched.open(f"{live.address}#answers?stage=base")
        waits_for(shown, "10 of 10 answers")
        append_judged(
            folder / "attacks-topk.jsonl", [msgspec.structs.replace(row, key=f"later-{row.key}") for row in rows[10:]]
        )
        assert live.refresh()
        waits_for(shown, "16 of 16 answers")
        assert shown.url.endswith("#answers?stage=base") and watched.is_clean, watched.errors
    finally:
        live.close()
    shown.locator("#live", has_text="the server has stopped").wait_for()


def used_s(clock) -> float:
    """Seconds of processor time that the page has used so far."""
    return {one["name"]: one["value"] for one in clock.send("Performance.getMetrics")["metrics"]}["TaskDuration"]


@pytest.mark.parametrize(
    "count, seconds",
    [(1_500, 0.6), *(pytest.param(*more, marks=pytest.mark.slow) for more in [(5_000, 1.0), (20_000, 2.0), (200_000, 10.0)])],
    ids=["1500", "5k", "20k", "200k"],
)
def test_many_answers_load_and_are_searched_in_time(watched, tmp_path, count, seconds):
    path = big_study(tmp_path, count)
    clock = watched.page.context.new_cdp_session(watched.page)
    clock.send("Performance.enable", {"timeDomain": "threadTicks"})  # processor time: other tests run beside this one
    shown = opened(watched, path)
    loaded = used_s(clock)
    shown.get_by_label("Search in prompts").fill("w4999 w30")
    shown.locator("#browser [role=status]", has_text=re.compile(rf"^(?!{count:,})[\d,]+ of {count:,} answers$")).wait_for()
    searched = used_s(clock) - loaded
    print(f"{count:,} answers, {path.stat().st_size / 1e6:.0f} MB: loaded in {loaded:.2f} s, searched in {searched:.2f} s")
    assert loaded < seconds and searched < seconds and shown.locator(".row").count() < 40
