"""Studies over data of one's own: what `curricula plan` says of wrong tables, and a whole run."""

import json

import pytest
from small_studies import small_study

from curricula.jobs.cli.main import main


def write_rows(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def planned(tmp_path, capsys, sources, **changes):
    """What `curricula plan` says of the small study with these sources more, all of them in its safe mix."""
    raw = {"web": {"dataset": "fineweb-edu"}, **sources}
    weights = dict.fromkeys(raw, 1)
    curriculum = {"starts": [0.5, 1], "safe": {"web": 1}, "interventions": {"full": weights}}
    path = small_study(tmp_path, sources=raw, curriculum=curriculum, **changes)
    status = main(["plan", str(path)])
    out, err = capsys.readouterr()
    return status, " ".join((out + err).split())


ROWS = [{"body": f"text {number}", "key": number, "safety": number % 5} for number in range(9)]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ({"text": "txt"}, "sources.mine.text: {file} has no column 'txt', only body, key, safety; name one of these"),
        ({"text": "key"}, "sources.mine.text: {file}, row 0: column 'key' holds 0, where text is needed"),
        (
            {"text": "body", "score": "body"},
            "sources.mine.score: {file}, row 0: column 'body' holds 'text 0', where a number",
        ),
        (
            {"path": "none/*.csv"},
            "sources.mine: {folder}/none/*.csv: no such file, and no file matches it; correct the path",
        ),
        ({"path": "study.yaml"}, "sources.mine: {folder}/study.yaml: has none of the endings"),
        ({"path": "empty.jsonl"}, "sources.mine: {folder}/empty.jsonl holds no row; name another file or split"),
        ({"path": None, "hub": "org/name"}, "sources.mine.hub is 'org/name', but a study with a world fetches nothing"),
    ],
)
def test_the_plan_names_key_file_and_mend_of_a_wrong_table(tmp_path, capsys, source, said):
    write_rows(tmp_path / "mine/a.jsonl", *ROWS)
    (tmp_path / "empty.jsonl").write_text("\n")
    status, shown = planned(tmp_path, capsys, {"mine": {"path": "mine/*.jsonl", **source}})
    assert status and said.format(file=tmp_path / "mine/a.jsonl", folder=tmp_path) in shown


def test_an_arm_must_not_read_the_same_rows_through_two_sources(tmp_path, capsys):
    write_rows(tmp_path / "mine/a.jsonl", *ROWS)
    one = {"path": "mine/*.jsonl", "text": "body", "score": "safety", "max_score": 2}
    status, shown = planned(tmp_path, capsys, {"one": one, "two": {"path": "mine/a.jsonl", "text": "body"}})
    assert status and "sources.one and sources.two: arm full-50 would read the same rows" in shown
    status, shown = planned(tmp_path, capsys, {"one": one, "two": {**one, "max_score": None, "min_score": 2.5}})
    assert not status, shown


def test_the_plan_warns_of_licences_that_nobody_accepted(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("CURRICULA_DATA", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    mine = {"hub": "org/name", "config": "en", "gated": True}
    status, shown = planned(tmp_path, capsys, {"mine": mine}, world=None)
    assert not status
    assert "org/name/en/train: gated, and there is no token; accept the licences on the hub and set HF_TOKEN" in shown
    assert "sources.mine: no revision of org/name, so the newest commit is read" in shown
