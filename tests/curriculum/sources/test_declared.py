"""Tables that a study declares: their places, their rows, and what is said of wrong ones."""

import contextlib
import json
import math
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

from curricula.curriculum.config import Source
from curricula.curriculum.sources.conversations import TuningSet, read_conversations
from curricula.curriculum.sources.declared import DATASETS, TextTable, anchor, declared_in
from curricula.curriculum.sources.documents import Documents
from curricula.errors import UserError


def write_rows(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_files_of_a_pattern_are_read_in_order_with_the_columns_named(tmp_path):
    folder = tmp_path / "run[12]"  # which is no pattern
    write_rows(folder / "mine/more/b.jsonl", {"title": "C", "body": "c", "key": 3})
    write_rows(folder / "mine/a.jsonl", {"title": "A", "body": "a", "key": 1}, {"title": "B", "body": None, "key": 2})
    write_rows(tmp_path / "run1/mine/a.jsonl", {"title": "D", "body": "d", "key": 4})
    source = Source(path="mine/**/*.jsonl", text="{key}. {title}: {body}", id="key")
    anchor({"sources": {"mine": source}}, folder)
    source.look(tmp_path, "sources.mine")
    documents = list(Documents.of("sources.mine", source, tmp_path).read())
    assert [(item.id, item.text, item.odd) for item in documents] == [
        ("1", "1. A: a", ""),
        ("2", "", "empty"),
        ("3", "3. C: c", ""),
    ]


def test_a_row_of_a_csv_file_that_is_too_long_is_named(tmp_path):
    (tmp_path / "a.csv").write_text("text\nfine\nnot, fine\n")
    with pytest.raises(UserError, match=r"a.csv: line 3 has more fields than the header; put texts with commas in quotation"):
        TextTable(path=str(tmp_path / "a.csv"), text="body").look(tmp_path, "sources.mine")


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"prompt": ("ask", "asked"), "response": "answer"}, "mine.prompt: .* has no column 'asked'"),
        ({"prompt": "ask", "response": "number"}, "mine.response: .*: line 1: column 'number' holds 3, but text is needed"),
        ({"prompt": "ask", "response": "answer", "refusal": {"label": "no"}}, "mine.refusal: .* has no column 'label'"),
        ({"text": "number"}, "mine.text: .*: line 1: column 'number' holds 3, but text is needed"),
        ({"text": "{ask} {number}", "refusal": {"number": 3}}, ""),
        ({"messages": "ask"}, "mine.messages: .*: line 1: column 'ask' holds 'a', but a list of messages is needed"),
    ],
)
def test_a_wrong_column_of_a_tuning_set_is_named_with_its_key(tmp_path, keys, said):
    write_rows(tmp_path / "a.jsonl", {"ask": "a", "answer": "b", "number": 3})
    with pytest.raises(UserError, match=said) if said else contextlib.nullcontext():
        TuningSet(path=str(tmp_path / "a.jsonl"), **keys).look(tmp_path, "mine")


def test_every_declared_table_is_found_under_its_key():
    one, two = TextTable(path="x.csv"), TextTable(hub="org/name", text="body")
    assert dict(declared_in({"sources": {"mine": one}, "more": (two,)})) == {"sources.mine": one, "more.0": two}


def test_relative_paths_begin_at_the_study_and_a_tilde_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.chdir(tmp_path.parent)
    tables = [TextTable(path=path) for path in ("mine/*.csv", "~/mine.csv", "/data/mine.csv")]
    anchor(tables, Path(tmp_path.name))
    assert [table.path for table in tables] == [f"{tmp_path}/mine/*.csv", "/home/me/mine.csv", "/data/mine.csv"]


def test_a_part_of_the_name_of_the_split_is_no_table_of_all_parts(tmp_path):
    write_rows(tmp_path / "wildjailbreak/train.jsonl", {"vanilla": "x"})
    assert DATASETS["wildjailbreak"].stems(tmp_path) == [tmp_path / "wildjailbreak/train"]


def test_a_table_is_here_when_all_its_parts_are(tmp_path):
    table = TextTable(dataset="fineweb-unsafe", parts=("score_4", "score_5"))
    one, two = table.stems(tmp_path)
    write_rows(one.with_name(f"{one.name}.jsonl"), {"text": "x"})
    assert not table.is_here(tmp_path) and not table.is_here(None)
    write_rows(two.with_name(f"{two.name}.jsonl"), {"text": "x"})
    assert table.is_here(tmp_path)


@pytest.mark.parametrize(
    ("rows", "keys", "said"),
    [
        ([{"body": "x"}], {}, r"sources.mine.text: .*a.jsonl has no column 'text', only body; name one of these"),
        ([{"text": None}, {"text": ""}], {}, r"sources.mine.text: column 'text' is empty in the first 2 rows of .*a.jsonl"),
        ([{"text": "a"}, {"text": 3}], {}, r"sources.mine.text: .*a.jsonl: line 2: column 'text' holds 3, but text is need"),
        ([{"text": "x"}], {"id": "key"}, r"sources.mine.id: .*a.jsonl has no column 'key', only text"),
        ([{"text": "x", "s": 10**400}], {"score": "s"}, r"sources.mine.score: .*: line 1: column 's' holds 1000.*a number is"),
        ([{"text": "x", "s": True}], {"score": "s"}, r"sources.mine.score: .*: line 1: column 's' holds True, but a number is"),
        ([], {}, r"sources.mine: .*a.jsonl contains no rows; name another file or split"),
    ],
)
def test_a_wrong_column_is_named_with_its_key_and_file(tmp_path, rows, keys, said):
    write_rows(tmp_path / "a.jsonl", *rows)
    with pytest.raises(UserError, match=said):
        TextTable(path=str(tmp_path / "a.jsonl"), **keys).look(tmp_path, "sources.mine")


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({}, "give dataset, path or hub"),
        ({"path": "x", "hub": "org/name"}, "path and hub exclude each other; keep one of them"),
        ({"path": "x", "split": "test"}, "split is 'test', which has an effect only with `hub`"),
        ({"path": ""}, "path is empty; name a file, a folder or a pattern"),
        ({"hub": "org/name/../etc"}, "hub 'org/name/../etc' is not a name on the hub"),
        ({"hub": "org/name", "config": "x/../y"}, "config 'x/../y' must be a plain name"),
        ({"path": "x", "gated": True}, "gated is true, which has an effect only with `hub`"),
        ({"hub": "org/name", "split": "../x"}, "split '../x' must be a plain name"),
        ({"dataset": "fineweb-unsafe", "parts": ("score_5", "score_5")}, r"parts .'score_5', 'score_5'. repeats 'score_5'"),
        ({"path": "x", "score": "s", "min_score": -math.inf}, "min_score is -inf, which needs a finite number"),
        ({"dataset": "gsm8k", "text": "question"}, "text is 'question', which has an effect only in a table of your own"),
        ({"path": "x", "parts": ("a",)}, "part 'a' is not in x; it has no parts"),
        ({"path": "x", "min_score": 3.0}, "min_score is 3.0, which needs a finite number and a column of scores in `score`"),
        ({"path": "x", "score": "s", "min_score": 3.0, "max_score": 2.0}, "min_score 3.0 is above max_score 2.0"),
        ({"path": "x", "text": "{}"}, "text '{}' names no column"),
    ],
)
def test_contradictory_keys_are_refused(keys, said):
    with pytest.raises(ValueError, match=said):
        TextTable(**keys)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"talk": [{"from": "human", "value": "Hi"}]}, "line 1: a message has no role or no content: {'from': 'human'"),
        ({"talk": [{"role": "user", "content": None}]}, "line 1 has a message that is not text"),
        ({"talk": [{"role": "", "content": "Hi"}]}, "line 1: a message has no role or no content: {'role': ''"),
        ({"talk": ["Hi"]}, "line 1 has a message that is not text"),
        ({"chat": [], "a": 1}, "line 1 has no column 'talk', only ['a', 'chat']"),
    ],
)
def test_messages_of_another_form_are_named(tmp_path, row, said):
    path = tmp_path / "chats.jsonl"
    write_rows(path, row)
    with pytest.raises(UserError, match=re.escape(said)):
        list(read_conversations("mine", tmp_path, {"mine": TuningSet(path=str(path), messages="talk")}))


def test_rows_without_messages_or_with_bad_bytes_are_left_out_as_those_without_a_response_are(tmp_path, caplog):
    path = tmp_path / "chats.jsonl"
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    caplog.set_level("INFO", "curricula")
    write_rows(path, {"talk": turns}, {"talk": []}, {"talk": None}, {"talk": [turns[0], {**turns[1], "content": "\ud800"}]})
    (found,) = read_conversations("mine", tmp_path, {"mine": TuningSet(path=str(path), messages="talk")})
    assert found.messages == turns and caplog.messages == ["tuning set mine: 1 conversation left out, not UTF-8"]


def test_of_several_columns_of_prompts_the_first_that_is_not_empty_is_read(tmp_path):
    path = tmp_path / "chats.jsonl"
    write_rows(path, *({"long": long, "short": "b", "answer": "Yes."} for long in ("a", "", None)))
    own = TuningSet(path=str(path), prompt=("long", "short"), response="answer")
    assert [item.messages[0]["content"] for item in read_conversations("own", tmp_path, {"own": own})] == ["a", "b", "b"]


def test_labels_tell_refusals_and_harmful_answers_apart(tmp_path):
    path = tmp_path / "chats.jsonl"
    rows = [
        {"ask": "a", "answer": "Sorry.", "bad": True, "no": "yes", "worse": 0},
        {"ask": "b", "answer": "Sure!", "bad": 1, "no": "no", "worse": 1.0},
        {"ask": "c", "answer": "Hello.", "bad": False, "no": "no", "worse": 0},
        {"ask": "d", "answer": None, "bad": False, "no": "no", "worse": 0},
        {"ask": "e", "answer": "Well.", "bad": "True", "no": "no", "worse": False},
        {"ask": "f", "answer": "Ugh!", "bad": False, "no": "no", "worse": 1},
        {"ask": "g", "answer": "No.", "bad": False, "no": "yes", "worse": 0},
    ]
    write_rows(path, *rows)
    labels = {"harmful_prompt": {"bad": True}, "harmful_response": {"worse": 1}, "refusal": {"no": ("yes",)}}
    keys = {"path": str(path), "prompt": "ask", "response": "answer"}
    sets = {
        "mine": TuningSet(**keys, **labels),
        "all": TuningSet(**keys),
        "bad": TuningSet(**keys, **labels, answers="harmful"),
        "prompts": TuningSet(**keys, harmful_prompt={"bad": True}),
        "refusals": TuningSet(**keys, refusal={"no": "yes"}),
    }
    read = {
        name: [(item.messages[1]["content"], item.is_refusal) for item in read_conversations(name, tmp_path, sets)]
        for name in sets
    }
    assert read == {
        "mine": [("Sorry.", True), ("Hello.", False), ("No.", False)],
        "all": [(row["answer"], False) for row in rows if row["answer"]],
        "bad": [("Sure!", False)],
        "prompts": [(row["answer"], bool(row["bad"])) for row in rows if row["answer"]],
        "refusals": [(row["answer"], row["no"] == "yes") for row in rows if row["answer"]],
    }


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({}, "name either the column"),
        ({"prompt": "ask"}, "name either the column"),
        ({"messages": "talk", "text": "body"}, "name either the column"),
        ({"messages": "talk", "answers": "harmful", "harmful_prompt": {"bad": True}}, "needs the labels harmful_prompt and"),
        ({"messages": "talk", "parts": ("a",)}, "part 'a' is not in x"),
    ],
)
def test_contradictory_keys_of_a_tuning_set_are_refused(keys, said):
    with pytest.raises(ValueError, match=said):
        TuningSet(path="x", **keys)


@pytest.mark.parametrize(
    ("one", "other", "is_shared"),
    [
        ({"hub": "a/b", "score": "s", "max_score": 2.0}, {"hub": "a/b", "score": "s", "min_score": 2.5}, False),
        ({"hub": "a/b", "score": "s", "max_score": 2.0}, {"hub": "a/b", "score": "s", "min_score": 2.0}, True),
        ({"hub": "a/b", "score": "s", "max_score": 2.0}, {"hub": "a/b", "score": "t", "min_score": 2.5}, True),
        ({"hub": "a/b"}, {"hub": "a/b", "split": "test"}, False),
        ({"dataset": "fineweb-edu"}, {"dataset": "fineweb-annotated"}, True),
        ({"dataset": "fineweb-edu"}, {"dataset": "fineweb-unsafe"}, False),
        ({"dataset": "fineweb-unsafe"}, {"dataset": "fineweb-unsafe", "parts": ("score_5",)}, True),
        ({"dataset": "fineweb-unsafe", "parts": ("score_4",)}, {"dataset": "fineweb-unsafe", "parts": ("score_5",)}, False),
        ({"dataset": "ultrachat"}, {"hub": "HuggingFaceH4/ultrachat_200k", "split": "train_sft"}, True),
        ({"path": "*.jsonl"}, {"path": "a.*"}, True),
        ({"path": "a.jsonl"}, {"path": "b.jsonl"}, False),
        ({"path": "a.jsonl"}, {"hub": "a/b"}, False),
    ],
)
def test_two_tables_overlap_where_both_may_read_the_same_row(tmp_path, monkeypatch, one, other, is_shared):
    for name in ("a.jsonl", "b.jsonl"):
        write_rows(tmp_path / name, {"text": "x"})
    monkeypatch.chdir(tmp_path)
    assert TextTable(**one).overlaps(TextTable(**other)) is TextTable(**other).overlaps(TextTable(**one)) is is_shared


@examples(60)
@given(
    st.lists(st.one_of(st.none(), st.integers(0, 5), st.sampled_from(["2.5", "", "nan"])), max_size=30),
    st.sampled_from(["jsonl", "parquet"]),
    st.data(),
)
def test_rows_with_a_score_within_bounds_are_numbered_as_if_there_were_no_others(tmp_path_factory, scores, suffix, data):
    folder = tmp_path_factory.mktemp("scored")
    rows = [{"text": f"t{number}", "safety": score} for number, score in enumerate(scores)]
    if suffix == "parquet":
        rows = [{**row, "safety": None if row["safety"] in (None, "") else float(row["safety"])} for row in rows]
        pq.write_table(pa.Table.from_pylist(rows, pa.schema([("text", "string"), ("safety", "double")])), folder / "a.parquet")
    else:
        write_rows(folder / "a.jsonl", *rows)
    low, high = sorted(data.draw(st.tuples(st.integers(0, 5), st.integers(0, 5))))
    limit = data.draw(st.one_of(st.none(), st.integers(1, 9)))
    source = Source(path=str(folder / f"a.{suffix}"), score="safety", min_score=low, max_score=high)
    documents = Documents.of("sources.mine", source, folder, limit)
    kept = [row["text"] for row in rows if row["safety"] not in (None, "") and low <= float(row["safety"]) <= high][:limit]
    assert len(documents) == len(kept)
    start = data.draw(st.integers(0, len(kept)))
    stop = data.draw(st.integers(start, len(kept)))
    assert [(item.number, item.text) for item in documents.read(start, stop)] == list(enumerate(kept))[start:stop]
    chosen = sorted(data.draw(st.sets(st.integers(0, len(kept) - 1)))) if kept else []
    assert [item.text for item in documents.select(chosen)] == [kept[number] for number in chosen]
