"""The report on attacks and representations: the worst case, the curve over layers, probes from arm to arm."""

from __future__ import annotations

import json
import shutil

import msgspec
import numpy as np
import pytest
from figure_files import EVERY_FORMAT, written_as
from report_page import Page, csv_rows
from study_rows import append_judged, attack_rows, probe_rows

from curricula.eval.analysis import ArmInfo
from curricula.eval.probes.store import FOLDER, Fitted, Store
from curricula.eval.report.page import write_report
from curricula.eval.rows import append_rows, row_key

ARMS = [ArmInfo("data-0", 0.0, "data"), ArmInfo("safe-100", 1.0, "none")]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    run = tmp_path_factory.mktemp("run")
    for arm in ARMS:
        folder = run / "eval" / arm.key / "instruct"
        for task, label, rate in (("attacks-topk", "topk", 0.2), ("prefill-topk", "prefill+topk", 0.6)):
            rows = attack_rows(arm, "instruct", "topk", rate, 2, {"jailbreakbench": 30})
            changes = {"task": task, "decoder": label}
            rows = [msgspec.structs.replace(row, key=f"{row.key}/{task}", **changes) for row in rows]
            append_judged(folder / f"{task}.jsonl", rows)
        keys = []
        for layer in range(1, 6):
            rows = probe_rows(arm, "instruct", "last", 0.7 + 0.02 * layer)
            named = {"layer": str(layer), "layer_index": layer, "error": 0.02, "baseline_words_auc": 0.61}
            rows = [msgspec.structs.replace(row, key=f"{row.key}/{layer}", **named) for row in rows]
            append_rows(folder / "probes.jsonl", rows)
            keys += [row.key for row in rows]
        rng = np.random.default_rng(len(arm.name))
        states = rng.normal(size=(20, 5, 8)).astype(np.float32)
        Store(folder / FOLDER, "key", 5, 8).append([str(i) for i in range(20)], states)
        Fitted(
            key=row_key(probes=keys),
            store="key",
            layers=list("12345"),
            weights=rng.normal(size=(2, 5, 8)),
            bias=np.zeros((2, 5)),
            directions=rng.normal(size=(5, 8)),
            test_ids=[str(i) for i in range(20)],
            test_unsafe=np.arange(20) % 2 == 1,
        ).write(folder / FOLDER)
    with written_as(*EVERY_FORMAT):
        return run, write_report(run, ARMS, {}, run / "report").read_text()


def test_the_strongest_attack_and_the_worst_case_have_a_table(built):
    run, page = built
    text = Page(page).text
    assert "The strongest attack" in text and "worst case over attacks" in text and "Prefilled answer, top-k" in text
    found = {(row["arm"], row["attack"]): float(row["broken"]) for row in csv_rows(run / "report/tables/worst-case.csv")}
    for arm in ARMS:
        own = {attack: share for (name, attack), share in found.items() if name == arm.name}
        assert own.keys() == {"topk", "prefill+topk", "worst"} and own["worst"] >= max(own.values())
    assert json.loads((run / "report/summary.json").read_text())["worst-case"]


def test_layers_and_transfer_between_arms_are_shown(built):
    run, page = built
    parsed = Page(page)
    assert "layers" in parsed.ids and (run / "report/figures/layers.svg").exists()
    assert "from layer to layer" in parsed.text and "Probes of one arm tested on the states of another" in parsed.text
    assert "words alone" in parsed.text and "before training" not in parsed.text
    rows = csv_rows(run / "report/tables/representations.csv")
    assert len(rows) == 4 * 5 and {row["layer"] for row in rows} == set("12345")
    assert all(float(row["direction_cosine"]) == 1 for row in rows if row["arm"] == row["other"])
    probes = [row for row in csv_rows(run / "report/tables/probes.csv") if row["arm"] == "data-0"]
    assert [row["layer_index"] for row in probes] == list("12345")
    assert all(float(row["low"]) < float(row["auc"]) < float(row["high"]) for row in probes)


def test_the_same_rows_elsewhere_give_the_same_bytes(built, tmp_path):
    run, page = built
    elsewhere = tmp_path / run.name
    shutil.copytree(run / "eval", elsewhere / "eval")
    with written_as(*EVERY_FORMAT):
        again = write_report(elsewhere, ARMS, {}, tmp_path / "again")
    names = [path.relative_to(run / "report") for path in (run / "report").glob("[ft]*/*")]
    for suffix, start in {".png": b"\x89PNG", ".pdf": b"%PDF", ".svg": b"<?xml"}.items():
        assert (run / f"report/figures/layers{suffix}").read_bytes().startswith(start)
    for name in ["summary.json", *names]:
        assert (tmp_path / "again" / name).read_bytes() == (run / "report" / name).read_bytes(), name
    assert again.read_text() == page
