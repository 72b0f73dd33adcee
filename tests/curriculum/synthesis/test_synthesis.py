"""Synthesis against a real server that misbehaves: nothing is lost, nothing is asked twice, no key is shown."""

from __future__ import annotations

import errno
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import forked
import pytest
from fake_endpoint import PASSING, FakeEndpoint
from permissions import open_to_others
from synthesizing import KEY, command, files_of, numbered, rows_of, summary, synthesize, write_documents
from typed import Typed

from curricula.curriculum.sources.documents import Documents
from curricula.curriculum.synthesis.files import Lines
from curricula.curriculum.synthesis.shard import parse_shard, slurm_shard
from curricula.durable import read_jsonl
from curricula.errors import UsageError, UserError
from curricula.jobs.cli.main import main

pytestmark = pytest.mark.usefixtures("synthesis_environment")


def test_whatever_the_server_does_every_document_ends_done_or_dead_and_no_good_reply_is_asked_for_again(tmp_path, fake, capsys):
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
    said = summary(capsys, "score", source, tmp_path / "out", fake.url, "--retries", 4)

    done = rows_of(tmp_path / "out", "score_*/*.jsonl")
    dead = read_jsonl(Path(said["dead_letters"]))
    assert len(done) == said["done"] == count - len(doomed) and len(dead) == said["dead"] == len(doomed) + 4
    assert sorted([row["id"] for row in done] + [row["id"] for row in dead]) == sorted(f"web/{n}" for n in range(count + 4))
    reasons = {row["id"]: row["reason"] for row in dead}
    assert reasons["web/20"].startswith("status 400") and reasons["web/33"] == "the reply holds no verdict"
    assert "status 500" in reasons["web/47"] and "something other" in reasons["web/59"]
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


@pytest.mark.forked
def test_a_run_killed_at_any_moment_continues_asks_nothing_again_and_ends_with_the_same_tables(tmp_path, capsys):
    rng = random.Random(2)
    source = write_documents(tmp_path / "web.jsonl", numbered(120))
    with FakeEndpoint(delay_s=0.05) as fake:
        synthesize("rephrase", source, tmp_path / "whole", fake.url, "--concurrency", 32)
    with FakeEndpoint(delay_s=0.12) as fake:
        args = command("rephrase", source, tmp_path / "out", fake.url, "--concurrency", 4)
        log = tmp_path / "out/log/train/part-00000-of-00001.jsonl"
        kept = [0]
        for waits in (False, True, True):  # the first kill may come before anything is on the disk, the others after more is
            durable = {f"doc-{row['number']}" for row in read_jsonl(log)}
            asked = fake.requests.copy()
            run = forked.curricula("data", "synthesize", *args)
            deadline = time.monotonic() + 120
            while fake.requests == asked or (waits and len(read_jsonl(log)) == kept[-1]):
                assert time.monotonic() < deadline
                time.sleep(0.01)
            time.sleep(rng.uniform(0.0, 0.3))
            run.kill()
            run.join()
            assert all(fake.requests[name] == asked[name] for name in durable)
            assert not list((tmp_path / "out").glob("train/part-*")), "no table before the shard is complete"
            kept.append(len(read_jsonl(log)))
        assert kept[1] < kept[2] < kept[3] < 120
        with open(log, "ab") as file:
            file.write(b'{"number": 119, "id": "web/119", "te')  # as a kill inside a write leaves it
        durable, asked = {f"doc-{row['number']}" for row in read_jsonl(log)}, fake.requests.copy()
        fake.delay_s = 0.01
        assert main(["data", "synthesize", *args]) == 0
        assert all(fake.requests[name] == asked[name] for name in durable)
    assert files_of(tmp_path / "out", "train/*") == files_of(tmp_path / "whole", "train/*")


def test_a_wrong_key_stops_at_once_and_is_shown_nowhere(tmp_path, fake, capsys):
    fake.schedule["doc-5"] = ["key"]
    source = write_documents(tmp_path / "web.jsonl", numbered(300))
    fake.schedule["doc-1"] = ["too_long"]
    args = command("score", source, tmp_path / "out", fake.url)
    assert main(["data", "synthesize", *args]) == 1
    said = capsys.readouterr()
    assert said.err.splitlines()[-1] == (
        f"curricula: {fake.root} refuses the key (status 401); set OPENAI_API_KEY to one that it accepts"
    )
    assert "Traceback" not in said.err and f"Bearer {KEY}" in fake.keys and sum(fake.requests.values()) < 60
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert KEY not in said.out + said.err and KEY.encode() not in written


def test_a_refusal_that_repeats_the_key_is_written_without_it(tmp_path, fake, capsys):
    fake.schedule["doc-1"] = ["too_long"]
    source = write_documents(tmp_path / "web.jsonl", numbered(3))
    said = summary(capsys, "score", source, tmp_path / "out", fake.url)
    (dead,) = read_jsonl(Path(said["dead_letters"]))
    assert dead["reason"] == "status 400: no 400 for Bearer [key]"


@pytest.mark.parametrize(
    ("every", "said"),
    [
        ("unknown_model", "knows no model 'fake' at this address"),
        ("always_500", "the last 1[6-9] documents failed, most recently with: .* status 500"),
        ("too_long", "the last 1[6-9] documents failed, most recently with: status 400"),
        ("prose", "the last 1[6-9] documents failed, most recently with: the reply holds no verdict;"),
        ("length", r"failed, most recently with: the reply holds no verdict, and was cut short \(--max-tokens\);"),
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
    with pytest.raises(UserError, match="the last 1[6-9] documents failed, .* run the same command again"):
        synthesize("score", source, tmp_path / "out", fake.url, "--retries", 1)
    assert len(rows_of(tmp_path / "out", "log/score/part-?????-of-?????.jsonl")) == 29
    assert not list(tmp_path.glob("out/log/score/*.dead.jsonl")) and not list(tmp_path.glob("out/score_*/part-*"))
    fake.every = None
    assert summary(capsys, "score", source, tmp_path / "out", fake.url)["done"] == 60
    assert set(fake.good.values()) == {1}


@pytest.mark.parametrize("gone", ["half", "429"])
def test_a_server_that_goes_away_before_the_last_documents_ends_the_run_without_dead_letters(tmp_path, fake, capsys, gone):
    source = write_documents(tmp_path / "web.jsonl", numbered(40))
    fake.every, fake.every_from = gone, 36
    with pytest.raises(UserError, match="the last 5 documents failed, .* run the same command again"):
        # One at a time: a good reply under way would come after a failure and clear the server of it.
        synthesize("score", source, tmp_path / "out", fake.url, "--retries", 0, "--concurrency", 1)
    assert not list(tmp_path.glob("out/log/score/*.dead.jsonl")) and not list(tmp_path.glob("out/score_*/part-*"))
    fake.every = None
    assert summary(capsys, "score", source, tmp_path / "out", fake.url)["done"] == 40
    assert set(fake.good.values()) == {1}


def test_the_last_document_is_at_fault_if_only_for_it_a_gateway_waits_in_vain(tmp_path, fake, capsys):
    source = write_documents(tmp_path / "web.jsonl", numbered(4))
    fake.schedule["doc-3"] = ["always_504"]
    said = summary(capsys, "score", source, tmp_path / "out", fake.url, "--retries", 0, "--concurrency", 1)
    assert (said["done"], said["dead"]) == (3, 1)


def test_an_account_that_is_used_up_midway_does_not_bury_the_rest(tmp_path, fake, capsys, monkeypatch):
    monkeypatch.setattr("curricula.curriculum.synthesis.run.REFUSED_IN_A_ROW", 20)
    source = write_documents(tmp_path / "web.jsonl", numbered(60))
    fake.every, fake.every_from = "too_long", 11
    with pytest.raises(
        UserError, match="20 documents in a row were refused, .* status 400: .*; check the server and the account"
    ):
        synthesize("score", source, tmp_path / "out", fake.url)
    fake.every = None
    assert summary(capsys, "score", source, tmp_path / "out", fake.url, "--retry-dead")["done"] == 60


def test_refused_documents_that_are_refused_again_do_not_end_the_run(tmp_path, fake, capsys, monkeypatch):
    monkeypatch.setattr("curricula.curriculum.synthesis.run.REFUSED_IN_A_ROW", 20)
    source = write_documents(tmp_path / "web.jsonl", numbered(60))
    for number in range(60):
        fake.schedule[f"doc-{number}"] = ["too_long"] if number % 12 else []
    said = summary(capsys, "score", source, tmp_path / "out", fake.url, "--concurrency", 1)
    assert (said["done"], said["dead"]) == (5, 55)
    fake.schedule["doc-59"] = []
    said = summary(capsys, "score", source, tmp_path / "out", fake.url, "--retry-dead", "--concurrency", 1)
    assert (said["asked"], said["done"], said["dead"]) == (55, 6, 54)


def test_a_short_outage_makes_no_dead_letters_but_two_requests_without_a_reply_make_one(tmp_path, fake, capsys):
    source = write_documents(tmp_path / "web.jsonl", numbered(40))
    for number in range(30):
        fake.schedule[f"doc-{number}"] = ["500"]
    fake.schedule["doc-39"], fake.schedule["doc-7"], fake.schedule["doc-3"] = ["500"], ["always_500"], ["too_long"]
    said = summary(capsys, "score", source, tmp_path / "out", fake.url, "--retries", 0, "--concurrency", 64)
    assert [row["id"] for row in read_jsonl(Path(said["dead_letters"]))] == ["web/3", "web/7"]
    assert (said["done"], said["dead"], set(fake.good.values())) == (38, 2, {1})
    assert fake.requests["doc-7"] == 2 and fake.requests["doc-3"] == 1

    fake.schedule["doc-2"] = ["500"]  # the last document, when nothing else is under way
    last = ("score", source, tmp_path / "last", fake.url, "--retries", 0, "--concurrency", 1, "--limit", 3)
    assert summary(capsys, *last)["done"] == 3


def test_however_many_documents_crash_the_server_they_stop_nothing_among_others(tmp_path, fake, capsys):
    source = write_documents(tmp_path / "web.jsonl", numbered(100))
    for number in range(0, 100, 4):
        fake.schedule[f"doc-{number}"] = ["always_500"]
    said = summary(capsys, "score", source, tmp_path / "out", fake.url, "--retries", 0)
    assert (said["done"], said["dead"]) == (75, 25)


def test_when_a_later_piece_gets_no_reply_the_earlier_ones_are_not_asked_about_again(tmp_path, fake, capsys):
    source = write_documents(tmp_path / "web.jsonl", ["doc-0 " + "word " * 40 + "doc-0 end", "doc-1"])
    fake.scores = {"doc": 2}
    fake.schedule["doc-0"] = ["good", "500"]
    args = ("score", source, tmp_path / "out", fake.url, "--retries", 0, "--piece-characters", 150)
    assert summary(capsys, *args)["done"] == 2
    assert fake.requests["doc-0"] == 3 and fake.good["doc-0"] == 2


@pytest.mark.parametrize("changed", ["text", "log"])
def test_verdicts_on_pieces_of_another_text_or_behind_a_lost_line_do_not_stand(tmp_path, fake, capsys, changed):
    text, path = "doc-0 " + "word " * 25, tmp_path / "web.jsonl"
    args = ("score", write_documents(path, [text * 3, "doc-1"]), tmp_path / "out", fake.url, "--piece-characters", len(text))
    fake.scores, fake.schedule["doc-0"] = {"doc": 2}, ["good", "good", "too_long"]
    assert summary(capsys, *args)["dead"] == 1
    fake.schedule.clear()
    if changed == "text":
        write_documents(path, [text.replace("word", "ward") * 3, "doc-1"])
    else:
        pieces = tmp_path / "out/log/score/part-00000-of-00001.pieces.jsonl"
        pieces.write_text("".join(pieces.read_text().splitlines(keepends=True)[1:]))
    assert summary(capsys, *args, "--retry-dead")["done"] == 2
    assert fake.good["doc-0"] == 2 + 3


@pytest.mark.forked
def test_a_kill_between_the_pieces_of_a_document_asks_about_none_again(tmp_path, capsys):
    page = " ".join(f"word-{number}" for number in range(60))
    texts = [f"This is doc-{number}. " + " ".join(f"doc-{number} {page}" for _ in range(8)) for number in range(3)]
    source = write_documents(tmp_path / "web.jsonl", texts)
    more = ["--piece-characters", 500, "--concurrency", 3]
    with FakeEndpoint(scores={"word": 1}) as fake:
        whole = summary(capsys, "score", source, tmp_path / "whole", fake.url, *more)
        fewest = whole["requests"]
        assert fewest > 20 and not list((tmp_path / "whole").glob("log/*/*.pieces.jsonl"))
    pieces = tmp_path / "out/log/score/part-00000-of-00001.pieces.jsonl"
    with FakeEndpoint(scores={"word": 1}, delay_s=0.3) as fake:
        args = command("score", source, tmp_path / "out", fake.url, *more)
        for _ in range(2):
            before = len(read_jsonl(pieces))
            run = forked.curricula("data", "synthesize", *args)
            deadline = time.monotonic() + 120
            while len(read_jsonl(pieces)) == before:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            run.kill()
            run.join()
    kept = len(read_jsonl(pieces))
    with FakeEndpoint(scores={"word": 1}) as fake:
        assert main(["data", "synthesize", *command("score", source, tmp_path / "out", fake.url, *more)]) == 0
        assert sum(fake.requests.values()) == fewest - kept
    rows = rows_of(tmp_path / "out", "score_1/*.jsonl")
    assert rows == rows_of(tmp_path / "whole", "score_1/*.jsonl") and len(rows) == 3
    assert not pieces.exists()


def test_what_is_written_is_for_the_owner_alone(tmp_path, fake):
    fake.schedule["doc-1"] = ["too_long"]
    source = write_documents(tmp_path / "web.jsonl", numbered(3))
    synthesize("score", source, tmp_path / "new/out", fake.url)
    assert open_to_others(tmp_path / "new") == []


def test_a_server_that_cannot_be_reached_is_named(tmp_path, capsys):
    source = write_documents(tmp_path / "web.jsonl", numbered(2))
    with pytest.raises(UserError, match=r"http://127.0.0.1:9 cannot be reached"):
        synthesize("score", source, tmp_path / "out", "http://user:hidden@127.0.0.1:9/v1", "--retries", 0)
    assert "hidden" not in capsys.readouterr().err


# Shards


def test_shards_together_are_the_whole(tmp_path, fake, capsys):
    source = write_documents(tmp_path / "web.jsonl", numbered(23))
    synthesize("refuse", source, tmp_path / "whole", fake.url)
    for part in (2, 0, 4, 1, 3):
        said = summary(capsys, "refuse", source, tmp_path / "out", fake.url, "--part", f"{part}/5")
    assert said["parts_complete"] == 5
    assert rows_of(tmp_path / "out", "train/*") == rows_of(tmp_path / "whole", "train/*")
    assert all(count == 2 for count in fake.requests.values())


def test_until_all_shards_are_complete_the_tables_are_marked_and_not_read(tmp_path, fake, capsys):
    source = write_documents(tmp_path / "web.jsonl", numbered(12))
    out = tmp_path / "fineweb_annotated"
    marks = [out / f"score_{score}/.unfinished.json" for score in range(6)]
    fake.every = "key"
    with pytest.raises(UserError, match="refuses the key"):
        synthesize("score", source, out, fake.url, "--part", "0/2")
    assert all(json.loads(mark.read_text()) == {"kind": "score", "parts": 2} for mark in marks)
    fake.every = None
    for part, complete in ((0, 1), (1, 2)):
        with pytest.raises(UserError, match="unfinished.json: this dataset is incomplete"):
            Documents.open("fineweb-annotated", tmp_path)
        said = summary(capsys, "score", source, out, fake.url, "--part", f"{part}/2")
        assert said["parts_complete"] == complete
    assert not any(mark.exists() for mark in marks) and len(Documents.open("fineweb-annotated", tmp_path)) == 12

    marks[3].write_text("{}")  # as a kill just before the end leaves it
    assert summary(capsys, "score", source, out, fake.url, "--part", "0/2")["asked"] == 0
    assert not marks[3].exists()


def test_a_shard_whose_tables_did_not_all_appear_is_not_complete(tmp_path, fake, capsys, monkeypatch):
    source = write_documents(tmp_path / "web.jsonl", numbered(12))
    replace, appeared = os.replace, []

    def second_fails(aside, path):
        if Path(path).parent.name.startswith("score_") and Path(path).name.startswith("part-"):
            appeared.append(path)
            if len(appeared) == 2:
                raise OSError(errno.EIO, "the disk went away")
        replace(aside, path)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="the disk went away"):
        patch.setattr(os, "replace", second_fails)
        synthesize("score", source, tmp_path / "out", fake.url, "--part", "0/2")
    for part, complete in ((1, 1), (0, 2)):
        said = summary(capsys, "score", source, tmp_path / "out", fake.url, "--part", f"{part}/2")
        assert said["parts_complete"] == complete


def test_a_shard_is_a_task_of_the_slurm_array():
    assert slurm_shard({}) == (0, 1)
    array = {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_MIN": "5"}
    assert slurm_shard(array) == (2, 4)
    assert slurm_shard(array | {"SLURM_ARRAY_TASK_ID": "11", "SLURM_ARRAY_TASK_STEP": "2"}) == (3, 4)
    with pytest.raises(UsageError, match="--part I/N"):
        slurm_shard(array | {"SLURM_ARRAY_TASK_ID": "11"})
    assert parse_shard("3/64") == (3, 64)
    for args in ("3", "4/4", "-1/4", "a/b", "1/0"):
        with pytest.raises(UsageError, match="--part"):
            parse_shard(args)


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


def test_two_runs_of_one_shard_exclude_each_other(tmp_path, fake):
    from curricula.durable import exclusive_lock

    source = write_documents(tmp_path / "web.jsonl", numbered(4))
    lock = tmp_path / "out/log/score/part-00000-of-00001.lock"
    with exclusive_lock(lock), pytest.raises(UserError, match="in use by process"):
        synthesize("score", source, tmp_path / "out", fake.url)
    assert not fake.requests


def test_changed_documents_under_an_old_log_are_refused(tmp_path, fake):
    source = write_documents(tmp_path / "web.jsonl", numbered(4))
    synthesize("score", source, tmp_path / "out", fake.url)
    source.write_text(source.read_text().replace("web/2", "web/two"))
    with pytest.raises(UserError, match="document 2 was 'web/2' when it was asked about and is now 'web/two'"):
        synthesize("score", source, tmp_path / "out", fake.url)


def test_changed_texts_without_ids_are_refused_before_anything_is_asked(tmp_path, fake):
    source, args = tmp_path / "web.jsonl", ("score", tmp_path / "web.jsonl", tmp_path / "out", fake.url)
    texts = [f"This is doc-{number}." for number in range(40)]
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    old, new = source.read_text(), source.read_text().replace("This is", "Here comes")
    refusal = "document 0 was '0' when it was asked about and is now another text; restore the old data, or name another"
    fake.every, fake.every_from = "key", 21
    with pytest.raises(UserError, match="refuses the key"):
        synthesize(*args)
    fake.every = None
    for _ in ("some replies are there", "all are"):
        asked = fake.requests.copy()
        source.write_text(new)
        with pytest.raises(UserError, match=refusal):
            synthesize(*args)
        assert fake.requests == asked
        source.write_text(old)
        synthesize(*args)
    assert sorted(row["text"] for row in rows_of(tmp_path / "out", "score_*/*")) == sorted(texts)
    assert set(fake.good.values()) == {1}


# Estimate


def test_the_estimate_and_the_dry_run_ask_nothing_and_write_nothing(tmp_path, fake, capsys, monkeypatch):
    texts: list[str | None] = [f"\x1b[2J doc-{number} " + "x" * 9990 for number in range(10)]
    source = write_documents(tmp_path / "web.jsonl", texts)
    prices = ("--price-in", 1000, "--price-out", 2000)
    args = ("score", source, tmp_path / "out", fake.url, "--part", "0/2", *prices)
    synthesize(*args, "--dry-run")
    shown = capsys.readouterr().out
    assert "part-00000-of-00002: left to ask 5 documents, 10 requests" in shown
    assert "all 2 parts: 10 documents, 20 requests" in shown and "1,000 out, about $" in shown
    assert "\x1b" not in shown and '"role": "user"' in shown and "doc-0" in shown
    with pytest.raises(UsageError, match=r"about \$[\d.]+ is more than --max-cost 5; pass --yes"):
        synthesize(*args)
    monkeypatch.setattr("sys.stdin", Typed("n\n"))
    with pytest.raises(UsageError, match="cancelled; nothing was spent"):
        synthesize(*args)
    assert not fake.requests and not (tmp_path / "out").exists()
    said = summary(capsys, *args, "--yes")
    assert (said["requests"], said["tokens_in"], said["tokens_out"]) == (10, 1000, 200)

    synthesize(*args, "--dry-run", "--json")
    plan = json.loads(capsys.readouterr().out)
    assert plan["left"]["documents"] == 0 and plan["all"]["tokens_out"] == 20 * 50
    assert plan["all"]["dollars"] == (plan["all"]["tokens_in"] * 1000 + 1000 * 2000) / 1e6


# What is asked and how replies are read


def test_dead_letters_are_asked_again_on_request(tmp_path, fake, capsys):
    source = write_documents(tmp_path / "web.jsonl", numbered(12))
    fake.schedule["doc-3"], fake.schedule["doc-4"], fake.schedule["doc-9"] = (["too_long"], ["unreadable"], ["unreadable"])
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
    synthesize("score", source, tmp_path / "out", fake.url)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "part 0 of 1: 11 of 12 documents done, 1 dead; 1 of 1 parts have their tables"
    assert lines[1] == "asked about 0 now: 0 requests, 0 retries, 0 tokens in, 0 out"
    assert lines[-1] == f"dead letters: {said['dead_letters']} (asked again with --retry-dead)"

    fake.schedule.clear()
    said = summary(capsys, "score", source, tmp_path / "out", fake.url, "--retry-dead")
    assert (said["done"], said["dead"], said["dead_letters"]) == (12, 0, None)
    assert not list(tmp_path.glob("out/log/score/*.dead.jsonl"))


# Bad inputs


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--price-in", 1), "give both, or neither"),
        (("--part", "2/2"), "--part 2/2"),
        (("--scores", "4"), "--scores has an effect only with --dataset"),
        (("--name", "x"), "scores go to score_0 to score_5"),
        (("--classifier-model", "x"), "--classifier-model has an effect only with --classifier"),
    ],
)
def test_wrong_options_are_reported(tmp_path, fake, more, said):
    source = write_documents(tmp_path / "web.jsonl", numbered(2))
    with pytest.raises(UsageError, match=said):
        synthesize("score", source, tmp_path / "out", fake.url, *more)
    assert not fake.requests and not (tmp_path / "out").exists()


def test_wrong_inputs_are_reported(tmp_path, fake, monkeypatch):
    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"nothing.*: no such"):
        synthesize("score", tmp_path / "nothing", out, fake.url)
    with pytest.raises(UsageError, match="name its data folder with --data, or set CURRICULA_DATA"):
        synthesize("score", "fineweb-edu", out, fake.url)
    with pytest.raises(UsageError, match="dataset 'fineweb' is not known"):
        synthesize("score", "fineweb", out, fake.url, "--data", tmp_path)
    with pytest.raises(UsageError, match="--scores 2: dataset safeweb has score_1_rephrased, "):
        synthesize("score", "safeweb", out, fake.url, "--data", tmp_path, "--scores", "2")
    with pytest.raises(UsageError, match="give scores separated by commas"):
        synthesize("score", "safeweb", out, fake.url, "--data", tmp_path, "--scores", "9" * 5000)
    (tmp_path / "rows.jsonl").write_text('{"id": 1, "content": "x"}\n')
    with pytest.raises(UserError, match="line 1 of dataset .*rows has no column 'text'"):
        synthesize("score", tmp_path / "rows", out, fake.url)
    source = write_documents(tmp_path / "web.jsonl", numbered(2))
    for url in ("node7:8000", "ftp://x/v1", "http://:80", "http://x:y/v1"):
        with pytest.raises(UsageError, match="not the address of a server"):
            synthesize("score", source, out, url)
    with pytest.raises(UsageError, match="--classifier .*: only for the kind score"):
        synthesize("refuse", source, out, fake.url, "--classifier", tmp_path)
    for name in ("../x", "score_3"):  # there the scored texts of the same OUT are
        with pytest.raises(UsageError, match="not the name of a folder for rewritten text"):
            synthesize("refuse", source, out, fake.url, "--name", name)
    pages = write_documents(tmp_path / "pages" / "web.jsonl", numbered(2)).parent
    for place in (pages, pages / "out", tmp_path / "other" / ".." / "pages" / "out"):
        with pytest.raises(UsageError, match="--out .*: in the folder of --input, whose subfolders must hold no tables"):
            synthesize("refuse", pages, place, fake.url)
    for key in ("sk-\u00fc", "sk-1\r\nsk-2"):
        monkeypatch.setenv("OPENAI_API_KEY", key)
        with pytest.raises(UsageError, match="OPENAI_API_KEY: holds characters") as stopped:
            synthesize("score", source, out, fake.url)
        assert "sk-" not in str(stopped.value) and not fake.requests


@pytest.mark.parametrize(
    "damage",
    [
        lambda row: b"\xff",
        lambda row: b"[]",
        lambda row: json.dumps({key: value for key, value in row.items() if key != "score"}).encode(),
        lambda row: json.dumps(row | {"score": 9}).encode(),
        lambda row: json.dumps(row | {"score": "4"}).encode(),
        lambda row: json.dumps(row | {"number": 3}).encode(),
        lambda row: json.dumps(row | {"text_hash": None}).encode(),
    ],
)
def test_a_damaged_log_is_named(tmp_path, fake, damage):
    source = write_documents(tmp_path / "web.jsonl", numbered(3))
    synthesize("score", source, tmp_path / "out", fake.url)
    log = tmp_path / "out/log/score/part-00000-of-00001.jsonl"
    lines = log.read_bytes().splitlines()
    lines[1] = damage(json.loads(lines[1]))
    log.write_bytes(b"\n".join(lines) + b"\n")
    with pytest.raises(UserError, match="00001.jsonl: line 2 is not a row of this log; remove that line and run"):
        synthesize("score", source, tmp_path / "out", fake.url)
    log.write_bytes(b"\n".join([lines[0], *lines[2:]]) + b"\n")
    synthesize("score", source, tmp_path / "out", fake.url)
    assert len(rows_of(tmp_path / "out", "score_*/*")) == 3


def test_damaged_settings_are_named(tmp_path, fake):
    source = write_documents(tmp_path / "web.jsonl", numbered(3))
    synthesize("score", source, tmp_path / "out", fake.url)
    (tmp_path / "out/log/score/settings.json").write_text("[]\n")
    with pytest.raises(UserError, match="settings.json: holds a list, not the settings .* delete the file and repeat"):
        synthesize("score", source, tmp_path / "out", fake.url)


# Overhead


def test_the_log_is_read_for_the_estimate_and_before_and_after_the_work(tmp_path, fake, monkeypatch):
    source = write_documents(tmp_path / "web.jsonl", numbered(3))
    read, scan = [], Lines.scan
    monkeypatch.setattr(Lines, "scan", lambda path, *more: read.append(path.name) or scan(path, *more))
    for times in (3, 2):  # the second time there is no work
        read.clear()
        synthesize("score", source, tmp_path / "out", fake.url)
        assert read.count("part-00000-of-00001.jsonl") == times


def test_synthesis_loads_no_torch():
    modules = ", ".join(f"curricula.curriculum.synthesis.{name}" for name in ("run", "shard", "files"))
    code = f"import sys, {modules}; sys.exit(bool({{'torch', 'transformers'}} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
