"""Tables that a study declares: their places, their rows, and what is said of wrong ones."""

import json

import pytest

from curricula.curriculum.config import Source
from curricula.curriculum.sources.conversations import TuningSet, read_conversations
from curricula.curriculum.sources.declared import TextTable, anchor, declared_in
from curricula.curriculum.sources.documents import Documents
from curricula.errors import UserError


def write_rows(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_files_of_a_pattern_are_read_in_order_with_the_columns_named(tmp_path):
    write_rows(tmp_path / "mine/b.jsonl", {"title": "C", "body": "c", "key": 3})
    write_rows(tmp_path / "mine/a.jsonl", {"title": "A", "body": "a", "key": 1}, {"title": "B", "body": None, "key": 2})
    source = Source(path="mine/*.jsonl", text="{title}: {body}", id="key")
    anchor({"sources": {"mine": source}}, tmp_path)
    source.look(tmp_path, "sources.mine")
    documents = list(Documents.of("mine", source, tmp_path).read())
    assert [(item.id, item.text, item.odd) for item in documents] == [
        ("1", "A: a", ""),
        ("2", "", "empty"),
        ("3", "C: c", ""),
    ]


def test_every_declared_table_is_found_under_its_key():
    one, two = TextTable(path="x.csv"), TextTable(hub="org/name", text="body")
    assert dict(declared_in({"sources": {"mine": one}, "more": (two,)})) == {"sources.mine": one, "more.0": two}


@pytest.mark.parametrize(
    ("rows", "keys", "said"),
    [
        ([{"body": "x"}], {}, r"sources.mine.text: .*a.jsonl has no column 'text', only body; name one of these"),
        (
            [{"text": None}, {"text": ""}],
            {},
            r"sources.mine.text: column 'text' is empty in the first 2 rows of .*a.jsonl",
        ),
        (
            [{"text": "a"}, {"text": 3}],
            {},
            r"sources.mine.text: .*a.jsonl, row 1: column 'text' holds 3, where text is need",
        ),
        ([{"text": "x"}], {"id": "key"}, r"sources.mine.id: .*a.jsonl has no column 'key', only text"),
        ([], {}, r"sources.mine: .*a.jsonl holds no row; name another file or split"),
    ],
)
def test_a_wrong_column_is_named_with_its_key_and_file(tmp_path, rows, keys, said):
    write_rows(tmp_path / "a.jsonl", *rows)
    with pytest.raises(UserError, match=said):
        TextTable(path=str(tmp_path / "a.jsonl"), **keys).look(tmp_path, "sources.mine")


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({}, "name exactly one of dataset, path and hub, not none of them"),
        ({"path": "x", "hub": "org/name"}, "name exactly one of dataset, path and hub, not path and hub"),
        ({"path": "x", "split": "test"}, "split is 'test', which only a table with `hub` has"),
        ({"hub": "../etc"}, "hub '../etc' is no name on the hub"),
        ({"hub": "org/name", "config": "../x"}, "config '../x' must be a plain name"),
        ({"dataset": "gsm8k", "text": "question"}, "text is 'question', but a known dataset has its own"),
        ({"path": "x", "parts": ("a",)}, "part 'a' is not in x, which is no known dataset"),
        ({"path": "x", "text": "{}"}, "text '{}' names no column"),
    ],
)
def test_contradictory_keys_are_refused(keys, said):
    with pytest.raises(ValueError, match=said):
        TextTable(**keys)


def test_labels_tell_refusals_and_harmful_answers_apart(tmp_path):
    path = tmp_path / "chats.jsonl"
    rows = [
        {"ask": "a", "answer": "Sorry.", "bad": True, "no": "yes", "worse": 0},
        {"ask": "b", "answer": "Sure!", "bad": True, "no": "no", "worse": 1},
        {"ask": "c", "answer": "Hello.", "bad": False, "no": "no", "worse": 0},
        {"ask": "d", "answer": None, "bad": False, "no": "no", "worse": 0},
    ]
    write_rows(path, *rows)
    labels = {"harmful_prompt": {"bad": True}, "harmful_response": {"worse": 1}, "refusal": {"no": ("yes",)}}
    keys = {"path": str(path), "prompt": "ask", "response": "answer"}
    sets = {
        "mine": TuningSet(**keys, **labels),
        "all": TuningSet(**keys),
        "bad": TuningSet(**keys, **labels, answers="harmful"),
    }
    read = {
        name: [(item.messages[1]["content"], item.is_refusal) for item in read_conversations(name, tmp_path, sets)]
        for name in sets
    }
    assert read == {
        "mine": [("Sorry.", True), ("Hello.", False)],
        "all": [("Sorry.", False), ("Sure!", False), ("Hello.", False)],
        "bad": [("Sure!", False)],
    }
