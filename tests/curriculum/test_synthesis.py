"""Scoring and synthesis against a real server that misbehaves: nothing is lost, nothing is asked twice, no key is shown."""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fake_endpoint import PASSING, FakeEndpoint

from curriculum.documents import Documents
from curriculum.durable import read_jsonl
from curriculum.errors import UsageError, UserError
from curriculum.synthesis.kinds import KINDS, Unreadable, pieces, read_dialogue, read_verdict
from curriculum.synthesis.plan import parse_part, slurm_part
from curriculum.synthesis.prompts import STYLES
from jobs.synthesize_verb import add_parser

KEY = "sk-secret-4711"
COMMAND = [sys.executable, "-m", "jobs.cli", "data", "synthesize"]


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in ("SLURM_ARRAY_TASK_ID", "OPENAI_BASE_URL", "CURRICULA_DATA", "HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def fake():
    with FakeEndpoint() as endpoint:
        yield endpoint


def write_documents(path: Path, texts: list[str | None]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = ({"id": f"web/{number}", "text": text} for number, text in enumerate(texts))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def numbered(count: int) -> list[str | None]:
    return [f"This is doc-{number}, a page of the web." for number in range(count)]


def command(kind: str, source: Path | str, out: Path, url: str, *more: object) -> list[str]:
    which = ["--input", str(source)] if isinstance(source, Path) else ["--dataset", source]
    fixed = ["--out", str(out), "--base-url", url, "--model", "fake", "--timeout", "30", "--concurrency", "8"]
    return [kind, *which, *fixed, *map(str, more)]


def synthesize(*words: object) -> int:
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    parsed = parser.parse_args(["synthesize", *command(*words)])  # type: ignore[arg-type]
    return parsed.verb(parsed)


def summary(capsys, *words: object) -> dict:
    capsys.readouterr()
    synthesize(*words, "--json")
    return json.loads(capsys.readouterr().out)


def rows_of(out: Path, pattern: str) -> list[dict]:
    return [row for path in sorted(out.glob(pattern)) for row in read_jsonl(path)]


def files_of(out: Path, pattern: str) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.glob(pattern))}


# Chaos


def test_whatever_the_server_does_every_document_ends_done_or_dead_and_no_good_reply_is_asked_for_again(
    tmp_path, fake, capsys
):
    rng, count = random.Random(1), 60
    quick = [what for what in PASSING if what != "hang"]
    for number in range(count):
        fake.schedule[f"doc-{number}"] = rng.choices(quick, k=rng.choice((0, 0, 1, 2)))
    for number, what in enumerate(PASSING):  # each at least once
        fake.schedule[f"doc-{number}"] = [what]
    doomed = {"doc-20": "too_long", "doc-33": "unreadable", "doc-47": "always_500", "doc-59": "always_garbage"}
    for name, what in doomed.items():
        fake.schedule[name] = [what]
    fake.schedule["doc-50"] = ["429_second"]

    source = write_documents(tmp_path / "web.jsonl", [*numbered(count), "", None, "\ud800 torn", "  \n"])
    said = summary(capsys, "score", source, tmp_path / "out", fake.url, "--retries", 4, "--timeout", 3)

    done = rows_of(tmp_path / "out", "score_*/*.jsonl")
    dead = read_jsonl(Path(said["dead_letters"]))
    assert len(done) == said["done"] == count - len(doomed) and len(dead) == said["dead"] == len(doomed) + 4
    assert sorted([row["id"] for row in done] + [row["id"] for row in dead]) == sorted(
        f"web/{n}" for n in range(count + 4)
    )
    reasons = {row["id"]: row["reason"] for row in dead}
    assert reasons["web/20"].startswith("status 400") and reasons["web/33"] == "the reply holds no verdict"
    assert "status 500" in reasons["web/47"] and "something else" in reasons["web/59"]
    assert [reasons[f"web/{n}"] for n in range(60, 64)] == ["empty", "empty", "not_utf8", "empty"]
    for number in range(count):
        if f"doc-{number}" not in doomed:
            assert fake.good[f"doc-{number}"] == 1, number
    assert fake.requests["doc-20"] == 1, "what the server refuses for good is asked once"
    assert fake.requests["doc-33"] == 4, "--tries"
    first, second = fake.times["doc-50"]
    assert second - first >= 1.0, "Retry-After is honoured"
    assert said["retries"] > len(PASSING) and fake.most_at_once <= 8
    again = [body for body in fake.bodies if "doc-33," in body["messages"][0]["content"]]
    assert len({body["seed"] for body in again}) == 4 and [b["temperature"] for b in again] == [0.0, 0.5, 0.5, 0.5]

    asked = fake.requests.copy()
    assert summary(capsys, "score", source, tmp_path / "out", fake.url)["asked"] == 0
    assert fake.requests == asked, "what is done or dead is not asked again"


def test_killed_at_any_moment_a_run_goes_on_asks_nothing_again_and_ends_with_the_same_tables(tmp_path, capsys):
    rng = random.Random(2)
    source = write_documents(tmp_path / "web.jsonl", numbered(120))
    with FakeEndpoint(delay_s=0.05) as fake:
        synthesize("rephrase", source, tmp_path / "whole", fake.url, "--concurrency", 32)
    with FakeEndpoint(delay_s=0.12) as fake:
        words = command("rephrase", source, tmp_path / "out", fake.url, "--concurrency", 8)
        log = tmp_path / "out/log/train/part-00000-of-00001.jsonl"
        kept: list[int] = []
        for _ in range(3):
            durable = {f"doc-{row['number']}" for row in read_jsonl(log)}
            before = fake.requests.copy()
            run = subprocess.Popen([*COMMAND, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            deadline = time.monotonic() + 20
            while fake.requests == before and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(rng.uniform(0.0, 0.9))
            run.kill()
            run.communicate()
            assert all(fake.requests[name] == before[name] for name in durable)
            assert not list((tmp_path / "out").glob("train/part-*")), "no table before the part is complete"
            kept.append(len(read_jsonl(log)))
        assert 0 < kept[-1] < 120 and kept == sorted(kept)
        with open(log, "ab") as file:
            file.write(b'{"number": 119, "id": "web/119", "te')  # as a kill inside a write leaves it
        durable, before = {f"doc-{row['number']}" for row in read_jsonl(log)}, fake.requests.copy()
        assert subprocess.run([*COMMAND, *words], capture_output=True).returncode == 0
        assert all(fake.requests[name] == before[name] for name in durable)
    assert files_of(tmp_path / "out", "train/*") == files_of(tmp_path / "whole", "train/*")


def test_a_wrong_key_stops_at_once_and_is_shown_nowhere(tmp_path, fake):
    fake.schedule["doc-5"] = ["key"]
    source = write_documents(tmp_path / "web.jsonl", numbered(300))
    fake.schedule["doc-1"] = ["too_long"]
    words = command("score", source, tmp_path / "out", fake.url)
    ran = subprocess.run([*COMMAND, *words], capture_output=True, text=True)
    assert ran.returncode == 1
    assert ran.stderr.splitlines()[-1] == (
        f"curricula: {fake.root} refuses the key (status 401); set OPENAI_API_KEY to one that it takes"
    )
    assert "Traceback" not in ran.stderr and f"Bearer {KEY}" in fake.keys and sum(fake.requests.values()) < 60
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert KEY not in ran.stdout + ran.stderr and KEY.encode() not in written


def test_a_refusal_that_repeats_the_key_is_written_without_it(tmp_path, fake, capsys):
    fake.schedule["doc-1"] = ["too_long"]
    source = write_documents(tmp_path / "web.jsonl", numbered(3))
    said = summary(capsys, "score", source, tmp_path / "out", fake.url)
    (dead,) = read_jsonl(Path(said["dead_letters"]))
    assert dead["reason"] == "status 400: [2Jno 400 for Bearer [key]"


@pytest.mark.parametrize(
    ("every", "said"),
    [
        ("unknown_model", "knows no model 'fake' at this address"),
        ("always_500", "1[6-9] documents in a row came to nothing, the last with: .* status 500"),
        ("too_long", "1[6-9] documents in a row came to nothing, the last with: status 400"),
        ("prose", "1[6-9] documents in a row came to nothing, the last with: the reply holds no verdict"),
    ],
)
def test_a_server_at_fault_ends_the_run_and_makes_no_dead_letters(tmp_path, fake, capsys, every, said):
    source = write_documents(tmp_path / "web.jsonl", numbered(40))
    fake.every = every
    with pytest.raises(UserError, match=said) as stopped:
        synthesize("score", source, tmp_path / "out", fake.url, "--retries", 1, "--tries", 2)
    assert KEY not in str(stopped.value) and str(stopped.value).isprintable()
    assert not list(tmp_path.glob("out/log/score/*.dead.jsonl"))
    fake.every = None
    assert summary(capsys, "score", source, tmp_path / "out", fake.url)["done"] == 40


def test_a_server_that_dies_midway_ends_the_run_and_its_documents_are_asked_again_later(tmp_path, fake, capsys):
    source = write_documents(tmp_path / "web.jsonl", numbered(60))
    fake.every, fake.every_from = "always_500", 30
    with pytest.raises(UserError, match="1[6-9] documents in a row .* the same command goes on"):
        synthesize("score", source, tmp_path / "out", fake.url, "--retries", 1)
    assert len(rows_of(tmp_path / "out", "log/score/part-?????-of-?????.jsonl")) == 29
    assert not list(tmp_path.glob("out/log/score/*.dead.jsonl")) and not list(tmp_path.glob("out/score_*"))
    fake.every = None
    assert summary(capsys, "score", source, tmp_path / "out", fake.url)["done"] == 60
    assert set(fake.good.values()) == {1}


def test_a_server_that_is_not_there_is_named(tmp_path, capsys):
    source = write_documents(tmp_path / "web.jsonl", numbered(2))
    with pytest.raises(UserError, match=r"http://127.0.0.1:9 cannot be reached"):
        synthesize("score", source, tmp_path / "out", "http://user:hidden@127.0.0.1:9/v1", "--retries", 0)
    assert "hidden" not in capsys.readouterr().err


# Parts


def test_parts_together_are_the_whole(tmp_path, fake, capsys):
    source = write_documents(tmp_path / "web.jsonl", numbered(23))
    synthesize("refuse", source, tmp_path / "whole", fake.url)
    for part in (2, 0, 4, 1, 3):
        said = summary(capsys, "refuse", source, tmp_path / "out", fake.url, "--part", f"{part}/5")
    assert said["parts_complete"] == 5
    assert rows_of(tmp_path / "out", "train/*") == rows_of(tmp_path / "whole", "train/*")
    assert all(count == 2 for count in fake.requests.values())


def test_a_part_is_the_task_of_the_slurm_array():
    assert slurm_part({}) == (0, 1)
    array = {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_MIN": "5"}
    assert slurm_part(array) == (2, 4)
    assert slurm_part(array | {"SLURM_ARRAY_TASK_ID": "11", "SLURM_ARRAY_TASK_STEP": "2"}) == (3, 4)
    with pytest.raises(UsageError, match="--part I/N"):
        slurm_part(array | {"SLURM_ARRAY_TASK_ID": "11"})
    assert parse_part("3/64") == (3, 64)
    for words in ("3", "4/4", "-1/4", "a/b", "1/0"):
        with pytest.raises(UsageError, match="--part"):
            parse_part(words)


def test_one_output_has_one_set_of_settings(tmp_path, fake):
    source = write_documents(tmp_path / "web.jsonl", numbered(4))
    synthesize("rephrase", source, tmp_path / "out", fake.url, "--part", "0/2")
    for more, key in (
        (("--part", "1/4"), "parts 2, not 4"),
        (("--part", "1/2", "--temperature", "1"), "temperature 0.7, not 1.0"),
        (("--part", "1/2", "--seed", "1"), "seed 0, not 1"),
        (("--part", "1/2", "--limit", "3"), "documents 4, not 3"),
    ):
        with pytest.raises(UsageError, match=f"settings.json: this output was begun with {key}"):
            synthesize("rephrase", source, tmp_path / "out", fake.url, *more)


def test_two_runs_of_one_part_do_not_meet(tmp_path, fake):
    from curriculum.durable import exclusive_lock

    source = write_documents(tmp_path / "web.jsonl", numbered(4))
    lock = tmp_path / "out/log/score/part-00000-of-00001.lock"
    with exclusive_lock(lock), pytest.raises(UserError, match="in use by a live run"):
        synthesize("score", source, tmp_path / "out", fake.url)
    assert not fake.requests


def test_changed_documents_under_an_old_log_are_refused(tmp_path, fake):
    source = write_documents(tmp_path / "web.jsonl", numbered(4))
    synthesize("score", source, tmp_path / "out", fake.url)
    source.write_text(source.read_text().replace("web/2", "web/two"))
    with pytest.raises(UserError, match="document 2 was 'web/2' when it was asked about and is now 'web/two'"):
        synthesize("score", source, tmp_path / "out", fake.url)


# Estimate


def test_the_estimate_and_the_dry_run_ask_nothing_and_write_nothing(tmp_path, fake, capsys):
    texts: list[str | None] = [f"\x1b[2J doc-{number} " + "x" * 9990 for number in range(10)]
    source = write_documents(tmp_path / "web.jsonl", texts)
    prices = ("--price-in", 1000, "--price-out", 2000)
    words = ("score", source, tmp_path / "out", fake.url, "--part", "0/2", *prices)
    synthesize(*words, "--dry-run")
    shown = capsys.readouterr().out
    assert "part-00000-of-00002: left to ask 5 documents, 10 requests" in shown
    assert "all 2 parts: 10 documents, 20 requests" in shown and "1,000 out, about $" in shown
    assert "\x1b" not in shown and '"role": "user"' in shown and "doc-0" in shown
    with pytest.raises(UsageError, match=r"about \$[\d.]+ for all parts, more than --max-cost 5; pass --yes"):
        synthesize(*words)
    assert not fake.requests and not (tmp_path / "out").exists()
    said = summary(capsys, *words, "--yes")
    assert said["requests"] == 10

    synthesize(*words, "--dry-run", "--json")
    plan = json.loads(capsys.readouterr().out)
    assert plan["left"]["documents"] == 0 and plan["all"]["tokens_out"] == 20 * 50
    assert plan["all"]["dollars"] == (plan["all"]["tokens_in"] * 1000 + 1000 * 2000) / 1e6


# What is asked and how replies are read


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


def test_a_classifier_with_other_classes_is_refused(tmp_path, fake):
    fake.class_count = 2
    source = write_documents(tmp_path / "web.jsonl", numbered(2))
    with pytest.raises(UserError, match="has 2 classes, where the 6 scores 0 to 5 are needed"):
        synthesize("score", source, tmp_path / "out", fake.url, "--classifier", fake.root)


def test_a_local_folder_classifies_all_windows_of_a_text_and_never_runs_its_own_code(tmp_path, fake, capsys):
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    words = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "fine", "bad", "worse"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    folder = tmp_path / "classifier"
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", model_max_length=16
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, num_labels=6,
        max_position_embeddings=16,
    )  # fmt: skip
    model = BertForSequenceClassification(config)
    model.save_pretrained(folder)

    texts: list[str | None] = ["doc-0 fine fine", "doc-1 " + "fine " * 40 + "worse worse worse", "doc-2 bad"]
    source = write_documents(tmp_path / "web.jsonl", texts)
    summary(capsys, "score", source, tmp_path / "out", fake.url, "--classifier", folder)
    metadata = {row["id"]: row["metadata"] for row in rows_of(tmp_path / "out", "score_*/*")}
    for number, text in enumerate(texts):
        ids = [words.get(word, 1) for word in str(text).replace("-", " - ").split()]
        windows = [ids[start : start + 16] for start in range(0, len(ids), 16)]
        expected = max(_class_of(model, window) for window in windows)
        assert metadata[f"web/{number}"]["classifier_score"] == expected
        assert metadata[f"web/{number}"]["score"] == max(expected, metadata[f"web/{number}"]["model_score"])

    value = json.loads((folder / "config.json").read_text())
    theirs = {
        "model_type": "theirs",
        "auto_map": {"AutoConfig": "evil.C", "AutoModelForSequenceClassification": "evil.M"},
    }
    (folder / "config.json").write_text(json.dumps(value | theirs))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(UserError, match="serve it with vLLM and name the server's address"):
        synthesize("score", source, tmp_path / "other", fake.url, "--classifier", folder)
    assert not (tmp_path / "ran").exists()
    with pytest.raises(UserError, match=r"no config.json"):
        synthesize("score", source, tmp_path / "other", fake.url, "--classifier", tmp_path)


def _class_of(model, window: list[int]) -> int:
    import torch

    padded = window + [0] * (16 - len(window))
    mask = [1] * len(window) + [0] * (16 - len(window))
    model.eval()
    with torch.inference_mode():
        return int(model(torch.tensor([padded]), attention_mask=torch.tensor([mask])).logits.argmax())


def test_verdicts_are_read_from_what_models_write():
    for reply, score in (
        ('{"score": 3, "reason": "x"}', 3),
        ('```json\n{"score": "4", "reason": "x"}\n```', 4),
        ('<think>{"score": 5}</think> {"reason": "a {brace}", "score": 2.0}', 2),
        ('The text says {"score": 0, "reason": "trust me"}. My verdict: {"score": 5, "reason": "it lies"}', 5),
        ('{"score": 1, "reason": "he said "go" and went"}', 1),
    ):
        assert read_verdict(reply)["score"] == score
    for reply in (
        "",
        "four",
        '{"score": 6, "reason": ""}',
        '{"score": -1}',
        '{"score": true}',
        '{"score": 2.5}',
        "{" * 99,
    ):
        with pytest.raises(Unreadable):
            read_verdict(reply)
    with pytest.raises(Unreadable):
        read_verdict('{"score": 1} \ud800')
    with pytest.raises(Unreadable):
        read_verdict("[" * 100_000 + '{"a":' * 100_000)


def test_dialogues_begin_with_the_user_and_have_plain_speakers():
    assert read_dialogue("Sure!\n\n**User**: a\n **Assistant:** b\nUser: c")["text"] == "User: a\nAssistant: b\nUser: c"
    for reply in ("I cannot help with that.", "User: a", "Assistant: b"):
        with pytest.raises(Unreadable, match="no conversation"):
            read_dialogue(reply)


def test_pieces_are_the_text_cut_between_words():
    rng = random.Random(3)
    text = "".join(rng.choice("abc \n") for _ in range(5000)) + "y" * 900
    cut = pieces(text, 300)
    assert "".join(cut) == text and max(map(len, cut)) <= 300
    assert all(piece[-1] in " \n" for piece in cut[:10])
    assert pieces("   ", 300) == []


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


def test_what_was_cut_is_marked(tmp_path, fake):
    source = write_documents(tmp_path / "web.jsonl", ["doc-0 " + "word " * 200, "doc-1 short", "doc-2 short"])
    fake.schedule["doc-1"] = ["cut_short"]
    synthesize("moralize", source, tmp_path / "out", fake.url, "--piece-characters", 300)
    rows = [row["metadata"] for row in rows_of(tmp_path / "out", "train/*")]
    assert [(row.get("cut"), row.get("source_cut")) for row in rows] == [(None, True), (True, None), (None, None)]
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
        words = ("--scores", score, "--name", name)
        synthesize("rephrase", "fineweb-annotated", tmp_path / "safeweb", fake.url, *data, *words)
        count = len(Documents.open("fineweb-annotated", tmp_path, (f"score_{score}",)))
        assert len(Documents.open("safeweb", tmp_path, (name,))) == count


def test_dead_letters_are_asked_again_on_request(tmp_path, fake, capsys):
    source = write_documents(tmp_path / "web.jsonl", numbered(12))
    fake.schedule["doc-3"], fake.schedule["doc-4"], fake.schedule["doc-9"] = (
        ["too_long"],
        ["unreadable"],
        ["unreadable"],
    )
    said = summary(capsys, "score", source, tmp_path / "out", fake.url)
    assert (said["done"], said["dead"]) == (9, 3)
    letters = {row["id"]: row for row in read_jsonl(Path(said["dead_letters"]))}
    assert letters["web/4"]["reply"] == "\x1b[31mI would say it is quite bad\x1b[0m"
    assert letters["web/3"]["reply"] is None

    fake.schedule.clear()
    fake.schedule["doc-9"] = ["unreadable"]
    fake.requests.clear()
    said = summary(capsys, "score", source, tmp_path / "out", fake.url, "--retry-dead")
    assert set(fake.requests) == {"doc-3", "doc-4", "doc-9"} and (said["done"], said["dead"]) == (11, 1)
    assert len(read_jsonl(Path(said["dead_letters"]))) == 1
    assert len(rows_of(tmp_path / "out", "score_*/*")) == 11

    fake.schedule.clear()
    said = summary(capsys, "score", source, tmp_path / "out", fake.url, "--retry-dead")
    assert (said["done"], said["dead"], said["dead_letters"]) == (12, 0, None)
    assert not list(tmp_path.glob("out/log/score/*.dead.jsonl"))


# Bad inputs


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--limit", 0), "--limit 0: give 1 or more"),
        (("--concurrency", 0), "--concurrency 0: give 1 to 1000"),
        (("--temperature", 3), "--temperature 3.0: give 0 to 2"),
        (("--price-in", 1), "give both, or neither"),
        (("--part", "2/2"), "--part 2/2"),
        (("--scores", "4"), "--scores 4: chooses parts of a --dataset"),
        (("--name", "x"), "scores go to score_0 to score_5"),
        (("--classifier-model", "x"), "needs --classifier"),
    ],
)
def test_wrong_options_are_said(tmp_path, fake, more, said):
    source = write_documents(tmp_path / "web.jsonl", numbered(2))
    with pytest.raises(UsageError, match=said):
        synthesize("score", source, tmp_path / "out", fake.url, *more)
    assert not fake.requests and not (tmp_path / "out").exists()


def test_wrong_inputs_are_said(tmp_path, fake, monkeypatch):
    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"nothing.*: no such"):
        synthesize("score", tmp_path / "nothing", out, fake.url)
    with pytest.raises(UsageError, match="name its data folder with --data, or set CURRICULA_DATA"):
        synthesize("score", "fineweb-edu", out, fake.url)
    with pytest.raises(UsageError, match="dataset 'fineweb' is not known"):
        synthesize("score", "fineweb", out, fake.url, "--data", tmp_path)
    with pytest.raises(UsageError, match="--scores 2: dataset safeweb has score_1_rephrased, "):
        synthesize("score", "safeweb", out, fake.url, "--data", tmp_path, "--scores", "2")
    (tmp_path / "rows.jsonl").write_text('{"id": 1, "content": "x"}\n')
    with pytest.raises(UserError, match="row 0 has no column 'text'"):
        synthesize("score", tmp_path / "rows", out, fake.url)
    source = write_documents(tmp_path / "web.jsonl", numbered(2))
    for url in ("node7:8000", "ftp://x/v1", "http://:80", "http://x:y/v1"):
        with pytest.raises(UsageError, match="not the address of a server"):
            synthesize("score", source, out, url)
    with pytest.raises(UsageError, match="--classifier .*: only for the kind score"):
        synthesize("refuse", source, out, fake.url, "--classifier", tmp_path)
    with pytest.raises(UsageError, match="not the name of a folder in OUT"):
        synthesize("refuse", source, out, fake.url, "--name", "../x")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-\u00fc")
    with pytest.raises(UsageError, match="OPENAI_API_KEY: holds characters") as stopped:
        synthesize("score", source, out, fake.url)
    assert "sk-" not in str(stopped.value) and not fake.requests


def test_a_damaged_log_is_named(tmp_path, fake):
    source = write_documents(tmp_path / "web.jsonl", numbered(3))
    synthesize("score", source, tmp_path / "out", fake.url)
    log = tmp_path / "out/log/score/part-00000-of-00001.jsonl"
    log.write_bytes(b"\xff\n" + log.read_bytes())
    with pytest.raises(UserError, match="part-00000-of-00001.jsonl: the line at byte 0 is no row of this log"):
        synthesize("score", source, tmp_path / "out", fake.url)
