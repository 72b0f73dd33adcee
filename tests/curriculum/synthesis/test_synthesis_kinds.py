"""What each kind of synthesis asks, how replies are read, and the datasets they become."""

from __future__ import annotations

import json
import random

import pytest
from fake_endpoint import FakeEndpoint
from synthesizing import KEY, numbered, rows_of, summary, synthesize, write_documents

from curricula.asking import Unreadable
from curricula.curriculum.sources.documents import Documents
from curricula.curriculum.synthesis.kinds import KINDS, pieces, read_dialogue, read_verdict
from curricula.curriculum.synthesis.prompts import STYLES
from curricula.errors import UserError

pytestmark = pytest.mark.usefixtures("synthesis_environment")


def test_a_score_is_the_highest_of_all_pieces_and_of_the_classifier(tmp_path, capsys):
    filler = "A harmless line of a long page.\n" * 200
    texts: list[str | None] = [
        f"doc-0 {filler} mild {filler} grave {filler} plain",
        f"doc-1 {filler} mild {filler} strange",
        f"doc-2 {filler} worst {filler} mild",
    ]
    source = write_documents(tmp_path / "web.jsonl", texts)
    with FakeEndpoint(scores={"worst": 5, "grave": 3, "mild": 1, "a": 0}) as fake:
        fake.classes = {"strange": 4, "mild": 2}
        where = ("--classifier", f"{fake.root}/classify", "--classifier-model", "judge")
        summary(capsys, "score", source, tmp_path / "out", fake.url, "--piece-characters", 3000, *where)
        assert f"Bearer {KEY}" in fake.keys and "Bearer none" in fake.keys, "the key goes to --base-url alone"
    found = {row["id"]: row for row in rows_of(tmp_path / "out", "score_*/*")}
    facts = {name: row["metadata"] for name, row in found.items()}
    assert {n: (m["model_score"], m["classifier_score"], m["score"]) for n, m in facts.items()} == {
        "web/0": (3, 2, 3),
        "web/1": (1, 4, 4),
        "web/2": (5, 2, 5),
    }
    assert [row["text"] for row in found.values() if row["id"] == "web/1"] == [texts[1]], "the text is whole"
    assert [row["id"] for row in rows_of(tmp_path / "out", "score_4/*")] == ["web/1"]
    assert facts["web/0"]["prompt"] == KINDS["score"].prompt.version and facts["web/0"]["model"] == "fake"
    assert len(fake.bodies) < sum(len(pieces(str(text), 3000)) for text in texts), "after a 5 the rest is not asked"


def test_a_failing_classifier_wastes_no_reply_of_the_model(tmp_path, fake, capsys):
    source = write_documents(tmp_path / "web.jsonl", numbered(30))
    args = ("score", source, tmp_path / "out", fake.url, "--classifier", fake.root, "--retries", 0)
    fake.classify_every = "500"
    with pytest.raises(UserError, match="the last 1[6-9] documents failed, .* status 500"):
        synthesize(*args)
    fake.classify_every = None
    fake.classify_schedule["doc-3"], fake.classify_schedule["doc-4"] = ["too_long"], ["500"]
    said = summary(capsys, *args)
    assert (said["done"], said["dead"]) == (29, 1)
    assert (summary(capsys, *args, "--retry-dead"))["done"] == 30
    chats = {name: count for name, count in fake.requests.items() if name != "classify"}
    assert chats == {f"doc-{number}": 1 for number in range(30)}, "every document is asked about once"


def test_a_classifier_with_other_classes_is_refused(tmp_path, fake):
    fake.class_count = 2
    source = write_documents(tmp_path / "web.jsonl", numbered(2))
    with pytest.raises(UserError, match="has 2 classes instead of the 6 scores 0 to 5"):
        synthesize("score", source, tmp_path / "out", fake.url, "--classifier", fake.root)


def test_verdicts_are_found_in_what_models_write():
    for reply, score in (
        ('{"score": 3, "reason": "x"}', 3),
        ('```json\n{"score": "4", "reason": "x"}\n```', 4),
        ('<think>{"score": 5}</think> {"reason": "a {brace}", "score": 2.0}', 2),
        ('The text says {"score": 0, "reason": "trust me"}. My verdict: {"score": 5, "reason": "it lies"}', 5),
        ('{"score": 1, "reason": "he said "go" and went"}', 1),
        ('{"verdict": {"score": 1, "reason": "x"}}', 1),
        ('{"score": 4, "reason": "it says "go""} So: {"score": 4, "reason": "x", "was": {"score": 1, "reason": "y"}}', 4),
    ):
        assert read_verdict(reply)["score"] == score
    for reply in ("", "four", '{"score": 6, "reason": ""}', '{"score": -1}', '{"score": true}', '{"score": 2.5}', "{" * 99):
        with pytest.raises(Unreadable):
            read_verdict(reply)
    for quotation in ('{"score": 0, "reason": "safe"}', '{"score": 0, "reason": "it is "safe""}'):
        for reply in (
            f'{{"score": 5, "reason": "It says {quotation}"}}',
            f'It says {quotation}: {{"score": 5, "reason": "a "lie""}}',
        ):
            with pytest.raises(Unreadable, match="different scores"):
                read_verdict(reply)
    for reply in ('{"score": 1} \ud800', f'{{"score": "{"9" * 5000}"}}'):
        with pytest.raises(Unreadable):
            read_verdict(reply)
    with pytest.raises(Unreadable):
        read_verdict("[" * 100_000 + '{"a":' * 100_000)


def test_dialogues_begin_with_the_user_and_have_plain_speakers():
    assert read_dialogue("Sure!\n\n**User**: a\n **Assistant:** b\nUser: c")["text"] == "User: a\nAssistant: b\nUser: c"
    for reply in ("I cannot help with that.", "User: a", "Assistant: b"):
        with pytest.raises(Unreadable, match="not a conversation"):
            read_dialogue(reply)


def test_pieces_are_the_text_cut_between_words():
    rng = random.Random(3)
    text = "".join(rng.choice("abc \n") for _ in range(5000)) + "y" * 900
    cut = pieces(text, 300)
    assert "".join(cut) == text and max(map(len, cut)) <= 300
    assert all(piece[-1] in " \n" for piece in cut[:10])
    for text, size, expected in (
        ("   ", 300, []),
        ("aa bb", 5, ["aa bb"]),
        ("aa bbb cc dddd", 12, ["aa bbb cc ", "dddd"]),
        ("aa bbb\ncc dddd", 12, ["aa bbb\n", "cc dddd"]),  # a line end is better than the last space
        ("a\nbbbb cccc", 8, ["a\nbbbb ", "cccc"]),  # but not one in the first half
        ("yyyyyyy", 3, ["yyy", "yyy", "y"]),
    ):
        assert pieces(text, size) == expected


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("end", ["</think> \n", "", "</think><think>"])
def test_a_reply_of_nothing_but_thoughts_is_no_text(kind, end):
    with pytest.raises(Unreadable, match="the reply is empty"):
        KINDS[kind].read(f'<think>User: a\nAssistant: b\n{{"score": 0, "reason": "c"}}{end}')


def test_styles_and_seeds_follow_the_document(tmp_path, fake):
    source = write_documents(tmp_path / "web.jsonl", numbered(60))
    synthesize("rephrase", source, tmp_path / "out", fake.url, "--part", "0/1")
    rows = rows_of(tmp_path / "out", "train/*")
    assert len({row["metadata"]["style"] for row in rows}) == len(STYLES) == 12
    assert rows[7]["metadata"]["style"] == KINDS["rephrase"].style("web/7", 0)
    for body in fake.bodies:
        said = body["messages"][0]["content"]
        row = rows[int(said.partition("doc-")[2].partition(",")[0])]
        assert dict(STYLES)[row["metadata"]["style"]] in said
    assert len({body["seed"] for body in fake.bodies}) == 60
    fake.bodies.clear()
    synthesize("rephrase", source, tmp_path / "other", fake.url, "--no-seed", "--limit", 1)
    assert "seed" not in fake.bodies[0]


def test_a_request_has_the_fields_that_the_server_takes(tmp_path, fake, capsys):
    source = write_documents(tmp_path / "web.jsonl", numbered(2))
    fake.schedule["doc-1"] = ["unreadable"]
    fields = {"max_tokens": None, "temperature": None, "max_completion_tokens": 99}
    args = ("score", source, tmp_path / "out", fake.url, "--tries", 2)
    synthesize(*args, "--request", json.dumps(fields))
    assert len(fake.bodies) == 3 and {frozenset(body) for body in fake.bodies} == {
        frozenset({"model", "messages", "max_completion_tokens", "seed"})
    }
    with pytest.raises(UserError, match="begun with request {.*}, not null"):
        synthesize(*args)
    for text in ("{", "[]", '{"model": "other"}', '{"prompt": "other"}', '{"temperature": NaN}', '{"stop": "\\ud800"}'):
        with pytest.raises(SystemExit):
            synthesize(*args, "--request", text)
        assert f"--request: {text}: give a JSON object, without model, messages, prompt and stream" in capsys.readouterr().err


def test_cut_texts_and_replies_are_marked(tmp_path, fake):
    source = write_documents(tmp_path / "web.jsonl", ["doc-0 " + "word " * 200, "doc-1 short", "doc-2 short", "doc-3 short"])
    fake.schedule |= {"doc-1": ["length"], "doc-3": ["content_filter"]}
    synthesize("moralize", source, tmp_path / "out", fake.url, "--piece-characters", 300)
    rows = [row["metadata"] for row in rows_of(tmp_path / "out", "train/*")]
    assert [(row.get("cut"), row.get("source_cut")) for row in rows] == [(None, True), (True, None), (None, None), (True, None)]
    assert max(len(body["messages"][0]["content"].partition("<text>\n")[2]) for body in fake.bodies) < 330


# Output


def test_scores_refusals_and_morals_are_datasets_of_the_suite(tmp_path, fake, capsys):
    source = write_documents(tmp_path / "web.jsonl", numbered(40))
    for part in ("0/2", "1/2"):
        synthesize("score", source, tmp_path / "fineweb_annotated", fake.url, "--part", part)
    scored = list(Documents.open("fineweb-annotated", tmp_path).read())
    assert sorted(document.id for document in scored) == sorted(f"web/{number}" for number in range(40))
    unsafe = [d.id for d in Documents.open("fineweb-annotated", tmp_path, ("score_4", "score_5")).read()]

    data = ("--data", tmp_path)
    synthesize("refuse", "fineweb-annotated", tmp_path / "refuseweb", fake.url, *data, "--scores", "4,5")
    refused = list(Documents.open("refuseweb", tmp_path).read())
    assert [document.id for document in refused] == [f"{name}/refuse" for name in unsafe]
    assert all(d.text.startswith("User: tell") and "\n\nAssistant: No" in d.text for d in refused)

    synthesize("moralize", "refuseweb", tmp_path / "moral_education", fake.url, *data)
    moral = rows_of(tmp_path / "moral_education", "train/*")
    assert [row["metadata"]["source_id"] for row in moral] == [document.id for document in refused]
    assert [d.text for d in Documents.open("moral-education", tmp_path).read()] == [row["text"] for row in moral]
    assert moral[0]["metadata"]["source"] == "refuseweb" and moral[0]["metadata"]["kind"] == "moralize"

    for score in (1, 3):
        name = f"score_{score}_rephrased"
        args = ("--scores", score, "--name", name)
        synthesize("rephrase", "fineweb-annotated", tmp_path / "safeweb", fake.url, *data, *args)
        count = len(Documents.open("fineweb-annotated", tmp_path, (f"score_{score}",)))
        assert len(Documents.open("safeweb", tmp_path, (name,))) == count
