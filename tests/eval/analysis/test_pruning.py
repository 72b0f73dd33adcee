"""What SafeBeam's pruning cost: means over answers, shares over steps, and rows of versions that did not record it."""

from __future__ import annotations

import msgspec
import pytest
from report_page import csv_rows
from study_rows import ARMS, append_judged, generation

from curricula.errors import UserError
from curricula.eval.analysis.metrics import Model, pruning_metrics
from curricula.eval.report.page import write_report
from curricula.eval.rows import GenerationRow, Pruning, read_rows

pytestmark = pytest.mark.usefixtures("svg_alone")


def row(number, cost, decoder="safebeam", arm=ARMS[0]):
    made = generation(
        key=f"{arm.name}/{decoder}/{number}",
        task="attacks-safebeam",
        model=f"{arm.name}/instruct",
        model_kind="instruct",
        benchmark="tdc",
        prompt_id=str(number),
        behavior="b",
        prompt="p",
        decoder=decoder,
        sample=0,
        seed=arm.seed,
        response="r",
        verdict="safe",
    )
    return msgspec.structs.replace(made, pruning=cost)


COSTS = [Pruning(logp=-10, lost=2, dropped=3, steps=10), Pruning(logp=-30, lost=6, dropped=0, steps=20), None]


def test_means_over_answers_and_the_share_of_all_steps():
    rows = [row(number, cost) for number, cost in enumerate(COSTS)] + [row(9, None, "topk")]
    (found,) = pruning_metrics(rows, Model("full-0", 42, "instruct"))
    assert (found.decoder, found.benchmark, found.answers, found.unrecorded) == ("safebeam", "tdc", 2, 1)
    assert (found.logp, found.logp_lost) == (-20, 4)
    assert found.likeliest_dropped == pytest.approx(3 / 30)


def test_the_report_has_a_table_of_it(tmp_path):
    for arm in ARMS:
        rows = [row(number, cost, arm=arm) for number, cost in enumerate(COSTS)]
        append_judged(tmp_path / "eval" / arm.name / "instruct/attacks-safebeam.jsonl", rows)
    write_report(tmp_path, ARMS, {}, tmp_path / "report")
    table = csv_rows(tmp_path / "report/tables/pruning.csv")
    assert [line["arm"] for line in table] == [arm.name for arm in ARMS]
    shown = ("answers", "unrecorded", "logp", "logp_lost", "likeliest_dropped")
    assert [table[0][name] for name in shown] == ["2", "1", "-20.0", "4.0", "0.1"]


def test_rows_of_earlier_versions_are_read_and_those_of_another_shape_refused_in_one_sentence(tmp_path):
    whole = msgspec.to_builtins(row(0, COSTS[0]))
    fields = {name: value for name, value in whole.items() if name in GenerationRow.__struct_fields__}
    old = {name: value for name, value in fields.items() if name != "pruning"}
    path = tmp_path / "attacks-safebeam.jsonl"
    path.write_bytes(msgspec.json.encode(old) + b"\n" + msgspec.json.encode(fields) + b"\n")
    assert [found.pruning for found in read_rows(path, GenerationRow)] == [None, COSTS[0]]
    path.write_bytes(msgspec.json.encode({**fields, "pruning": {"logp": -1.0, "lost": 0.5}}) + b"\n")
    with pytest.raises(UserError, match=r"line 1 is not a GenerationRow \(.*dropped.*\); remove the line and run the job"):
        read_rows(path, GenerationRow)
