"""Rows count only for the model, stage and task that wrote them, wherever their files lie."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import msgspec
import pytest
from study_rows import ARMS, append_judged, attack_rows, probe_rows

from curricula.errors import UserError
from curricula.eval import EvalConfig
from curricula.eval.analysis import read_study_rows
from curricula.eval.identity import content_hash, record_hash, recorded_hash
from curricula.eval.rejudge import Rejudging
from curricula.eval.report.page import write_report
from curricula.eval.rows import GenerationRow, ModelRows, append_rows, read_rows, write_rows
from curricula.eval.verdicts import MergeAndJudge, read_judged

pytestmark = pytest.mark.usefixtures("svg_alone")

TWO = ARMS[:2]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Two arms, each with attacks on its instruct and benign models and with probes."""
    for arm in TWO:
        for stage in ("instruct", "benign"):
            folder = tmp_path / "eval" / arm.name / stage
            for decoder, samples in (("topk", 2), ("safebeam", 1)):
                rows = attack_rows(arm, stage, decoder, 0.4, samples, {"advbench": 10})
                append_judged(folder / f"attacks-{decoder}.jsonl", rows)
            append_rows(folder / "probes.jsonl", probe_rows(arm, stage, "last", 0.8))
    return tmp_path


def place(run: Path, arm: int, stage: str, name: str = "attacks-topk") -> Path:
    return run / "eval" / TWO[arm].name / stage / f"{name}.jsonl"


def refusal(run: Path, path: Path) -> str:
    """The one sentence, beginning with `path`, with which reading the run ends."""
    with pytest.raises(UserError) as caught:
        read_study_rows(run, TWO)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    return message


def test_the_rows_of_a_run_as_it_wrote_them_are_read(run):
    assert len(read_study_rows(run, TWO).generations) == 8


def test_a_file_of_another_arm_is_refused(run):
    shutil.copy(place(run, 0, "instruct"), place(run, 1, "instruct"))
    said = refusal(run, place(run, 1, "instruct", "attacks-safebeam"))
    assert "data-0" in said and "full-0" in said


def test_a_folder_of_another_arm_is_refused(run):
    shutil.rmtree(place(run, 1, "benign").parent)
    shutil.copytree(place(run, 0, "benign").parent, place(run, 1, "benign").parent)
    said = refusal(run, place(run, 1, "benign"))
    assert str(place(run, 0, "benign")) in said and "copy" in said


def test_swapped_arms_are_refused_where_the_export_recorded_its_model(run):
    for arm in TWO:
        folder = run / "models" / arm.name / "instruct"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(arm.name)
        record_hash(folder)
        assert recorded_hash(folder) == content_hash(folder)
    assert "the exported model is" in refusal(run, place(run, 0, "instruct"))


def test_rows_of_two_models_in_one_file_are_refused(run):
    path = place(run, 0, "instruct")
    path.write_text(path.read_text() + place(run, 1, "instruct").read_text())
    assert "line 21" in refusal(run, path)


def test_rows_of_another_kind_of_model_are_refused(run):
    shutil.copy(place(run, 0, "benign"), place(run, 0, "instruct"))
    said = refusal(run, place(run, 0, "instruct"))
    assert "benign model" in said and "instruct model" in said


def test_rows_of_another_task_are_refused(run):
    shutil.copy(place(run, 0, "instruct"), place(run, 0, "instruct", "attacks-safebeam"))
    assert "'attacks-topk'" in refusal(run, place(run, 0, "instruct", "attacks-safebeam"))


def test_a_repeated_answer_is_refused(run):
    path = place(run, 0, "instruct")
    path.write_text(path.read_text() + path.read_text().splitlines(keepends=True)[3])
    assert "line 21 repeats sample 1" in refusal(run, path)


def test_a_repeated_probe_is_refused(run):
    path = place(run, 0, "instruct", "probes")
    path.write_text(path.read_text() * 2)
    assert "line 6 repeats probe 0 of layer last" in refusal(run, path)


@pytest.mark.parametrize(("field", "value"), [("sample", -1), ("tokens", -7)])
def test_negative_counts_are_refused(run, field, value):
    path = place(run, 0, "instruct")
    lines = path.read_text().splitlines()
    path.write_text("\n".join([json.dumps(json.loads(lines[0]) | {field: value}), *lines[1:]]) + "\n")
    said = refusal(run, path)
    assert "line 1" in said and field in said


def test_an_answer_that_is_not_the_judged_text_counts_as_unparsed_and_is_shown(run):
    path = place(run, 0, "instruct")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[4]["response"] = "Replaced."
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    changed = [number for number, row in enumerate(read_judged(path)) if row.changed]
    assert changed == [4] and read_judged(path)[4].verdict == "unparsed"
    assert "1 answer differs from the text that the judge was asked about" in " ".join(
        write_report(run, TWO, {}, run / "report").read_text().split()
    )


def test_merged_answers_that_lost_rows_are_refused_until_they_are_merged_again(run):
    path = place(run, 0, "instruct")
    path.with_name("attacks-topk.verdicts.jsonl").unlink()
    append_rows(path.with_suffix("") / "advbench.jsonl", read_rows(path, GenerationRow)[:18])
    config = EvalConfig(benchmarks=("advbench",), gcg=None, probes=None)

    def merge() -> MergeAndJudge:
        return MergeAndJudge(path.parent, "instruct", config, None)

    merge().judge()
    whole = path.read_bytes()
    path.write_bytes(b"".join(whole.splitlines(keepends=True)[:15]))
    assert f"and the merge left {len(whole):,}; run the study again" in refusal(run, path)
    with pytest.raises(UserError, match="and the merge left"):
        Rejudging([path], {"attack": None, "overrefusal": None}, ask_unparsed_again=False)
    again = merge()
    assert path.read_bytes() == whole
    assert len(read_study_rows(run, TWO).generations["data-0", "instruct", "attacks-topk"]) == 18
    again.judge()
    # A merge of other parts that is under way is no loss.
    (path.with_suffix("") / "advbench.jsonl").write_bytes(b"".join(whole.splitlines(keepends=True)[:12]))
    merge()
    assert len(read_study_rows(run, TWO).generations["data-0", "instruct", "attacks-topk"]) == 12


def test_a_shard_of_another_model_is_named_as_such_even_if_it_is_of_another_table_too(run, tmp_path):
    shards = [tmp_path / f"advbench.{shard}-of-2.jsonl" for shard in (0, 1)]
    for arm, path in enumerate(shards):
        rows = read_rows(place(run, arm, "instruct"), GenerationRow)
        write_rows(path, [msgspec.structs.replace(row, shard_of=f"table {arm}") for row in rows])
    with pytest.raises(UserError, match=r"1-of-2.jsonl: line 1 is of model full-0/instr.*remove the file of the wrong model"):
        ModelRows("instruct").read_answers(shards, "attacks-topk", ["topk"])


def test_a_run_with_one_arm_evaluated_still_reports(run):
    shutil.rmtree(run / "eval" / TWO[1].name)
    place(run, 0, "benign").unlink()
    assert len(read_study_rows(run, TWO).generations) == 3


def test_merging_refuses_the_shard_of_another_model(run, tmp_path):
    out = tmp_path / "merging"
    for arm, benchmark in zip(TWO, ("advbench", "harmbench")):
        rows = attack_rows(arm, "instruct", "topk", 0.4, 1, {benchmark: 3})
        append_judged(tmp_path / f"{arm.name}.jsonl", rows)
        write_rows(out / f"attacks-topk/{benchmark}.jsonl", read_rows(tmp_path / f"{arm.name}.jsonl", GenerationRow))
    config = EvalConfig(benchmarks=("advbench", "harmbench"), gcg=None, probes=None)
    with pytest.raises(UserError, match=r"harmbench\.jsonl: line 1 is of model full-0/instr"):
        MergeAndJudge(out, "instruct", config, None)
    assert not (out / "attacks-topk.jsonl").exists()
