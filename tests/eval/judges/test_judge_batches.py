"""Judges that are asked in batches: no verdict is lost, and none is paid for twice."""

from __future__ import annotations

import json

import pytest
from judge_server import answer_row, complete, stored

from curricula.errors import UserError
from curricula.eval.judges.registry import load_judge
from curricula.eval.rows import GenerationRow, VerdictRow, append_rows, read_rows
from curricula.eval.verdicts import JudgeRun, verdicts_path


@pytest.mark.parametrize(("limit", "most", "files"), [("MOST_REQUESTS", 12, 1), ("MOST_REQUESTS", 5, 3), ("MOST_BYTES", 9, 12)])
def test_batches_bring_the_same_verdicts_in_any_order_within_the_limits_of_a_file(
    server, tmp_path, monkeypatch, limit, most, files
):
    monkeypatch.setattr(f"curricula.eval.judges.batch.{limit}", most)
    path = stored(tmp_path, 12)
    settings = server.settings(batch_api=True)
    assert [row.label for row in complete(path, settings)] == ["harmful", "safe"] * 6
    assert len(server.batches) == files and not server.requests
    assert not list(tmp_path.glob("*.batches.json"))


@pytest.mark.parametrize("fate", ["lost", "broken_off"])
def test_questions_without_a_whole_reply_in_a_batch_are_asked_again(server, tmp_path, fate):
    path = stored(tmp_path, 4)
    setattr(server, fate, {"ask-2"})
    settings = server.settings(batch_api=True)
    with pytest.raises(UserError, match="came back without a reply"):
        complete(path, settings)
    assert len(read_rows(verdicts_path(path), VerdictRow)) == 3
    setattr(server, fate, set())
    assert [row.label for row in complete(path, settings)] == ["harmful", "safe"] * 2
    assert server.good == {f"ask-{number}": 1 for number in range(4)}


def test_the_list_of_batches_is_read_only_for_a_file_that_was_sent_and_to_its_last_page(server, tmp_path):
    complete(stored(tmp_path / "first", 2), server.settings(batch_api=True))
    assert not server.lists
    server.page, server.unconfirmed = 1, 1
    complete(stored(tmp_path / "second", 3), server.settings(batch_api=True))
    assert server.lists == 2 and len(server.batches) == 2


@pytest.mark.parametrize("when", ["noted", "made", "collected"])
def test_a_kill_while_a_batch_is_made_or_collected_does_not_double_it(server, tmp_path, monkeypatch, when):
    path = stored(tmp_path, 5)
    settings = server.settings(batch_api=True)
    from curricula.eval.judges import batch

    saved = batch._Batches.save

    def killed(work: object) -> None:
        if when == "noted":
            saved(work)  # type: ignore[arg-type]
        if when == "noted" or any(work.open.values()):  # type: ignore[attr-defined]
            raise KeyboardInterrupt
        saved(work)  # type: ignore[arg-type]

    def killed_before_verdicts_are_written(run: JudgeRun, rows: list[VerdictRow], progress: object) -> None:
        if rows:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        if when == "collected":
            patch.setattr(JudgeRun, "_append", killed_before_verdicts_are_written)
        else:
            patch.setattr(batch._Batches, "save", killed)
        complete(path, settings)
    assert len(server.batches) == (when != "noted")
    assert [row.label for row in complete(path, settings)] == ["harmful", "safe"] * 2 + ["harmful"]
    assert len(server.batches) == 1 and set(server.good.values()) == {1 + (when == "collected")}  # what it was asked to show


def test_a_batch_that_the_server_made_and_did_not_confirm_is_not_paid_for_twice(server, tmp_path):
    server.unconfirmed = 1
    assert [row.label for row in complete(stored(tmp_path, 4), server.settings(batch_api=True))] == ["harmful", "safe"] * 2
    assert len(server.batches) == 1


def fail_while_waiting(server, path, settings, monkeypatch):
    """Send a batch and give up waiting for it, because the server is away."""
    server.outage = 1
    with monkeypatch.context() as patched, pytest.raises(UserError, match="answers with status 503"):
        patched.setattr("curricula.eval.judges.batch.OUTAGE_S", 0.0)
        complete(path, settings)


def test_after_an_outage_of_the_server_the_wait_for_a_batch_goes_on_and_nothing_is_asked_twice(server, tmp_path, monkeypatch):
    path, settings = stored(tmp_path, 4), server.settings(batch_api=True, retries=0)
    fail_while_waiting(server, path, settings, monkeypatch)
    server.outage = 3
    assert [row.label for row in complete(path, settings)] == ["harmful", "safe"] * 2
    assert len(server.batches) == 1 and set(server.good.values()) == {1} and not server.outage


@pytest.mark.parametrize(
    "where",
    ["POST /v1/files", "POST /v1/batches", "GET /v1/batches", "GET /v1/batches/batch-0", "GET /v1/files/file-0/content"],
)
def test_a_proxys_page_in_place_of_a_reply_about_a_batch_costs_no_second_one(server, tmp_path, where):
    server.pages[where] = 1
    server.unconfirmed = int(where == "GET /v1/batches")  # the list is read only then
    assert [row.label for row in complete(stored(tmp_path, 4), server.settings(batch_api=True))] == ["harmful", "safe"] * 2
    assert len(server.batches) == 1 and not server.pages[where]


def test_a_batch_that_was_made_with_another_key_is_not_paid_again_unasked(server, tmp_path):
    path, settings = stored(tmp_path, 3), server.settings(batch_api=True)
    notes = tmp_path / "attacks-topk.verdicts.batches.json"
    noted = {"version": load_judge(settings, "attack", None).version, "open": {"a mark": "batch-9"}}
    notes.write_text(json.dumps(noted))
    with pytest.raises(UserError, match="has no batch batch-9, which .*batches.json names; give the address and the key"):
        complete(path, settings)
    assert not server.batches
    notes.write_text(json.dumps({**noted, "version": "another"}))  # of settings that have changed since
    assert [row.label for row in complete(path, settings)] == ["harmful", "safe", "harmful"]


@pytest.mark.parametrize("made", [True, False])
def test_a_batch_of_questions_that_have_changed_is_not_the_judges_fault(server, tmp_path, made):
    path = stored(tmp_path, 3)
    settings = server.settings(batch_api=True)
    complete(path, settings)
    verdicts = verdicts_path(path)
    version = read_rows(verdicts, VerdictRow)[0].version
    verdicts.unlink()
    path.unlink()
    append_rows(path, [answer_row(number) for number in range(4, 6)])
    noted = {"version": version, "open": {"a mark": "batch-0" if made else None}}
    verdicts.with_name("attacks-topk.verdicts.batches.json").write_text(json.dumps(noted))
    assert [row.label for row in complete(path, settings)] == ["harmful", "safe"]
    assert len(server.batches) == 2 and not verdicts.with_name("attacks-topk.verdicts.batches.json").exists()


def test_a_server_that_is_down_is_named_for_batches_too(server, tmp_path):
    path = stored(tmp_path, 3)
    with pytest.raises(UserError, match=r"judge fake: http://127.0.0.1:9 cannot be reached .* run the same command again"):
        complete(path, server.settings(url="http://127.0.0.1:9/v1", retries=0, batch_api=True))


def test_a_server_without_a_batch_api_is_named_as_such(server, tmp_path):
    path, server.has_batches = stored(tmp_path, 3), False
    said = r"http://127.0.0.1:\d+ has no Batch API at this address \(status 404\); set judge.batch_api to false"
    with pytest.raises(UserError, match=said):
        complete(path, server.settings(batch_api=True))
    assert len(complete(path, server.settings())) == 3


def test_a_refused_batch_says_why(server, tmp_path):
    path = stored(tmp_path, 3)
    server.batch_error = "line 1 is not right"
    settings = server.settings(batch_api=True)
    with pytest.raises(UserError, match=r"refuses the batch batch-0 \(line 1 is not right\)"):
        complete(path, settings)
    server.batch_error = ""  # a refused batch is not found again
    assert [row.label for row in complete(path, settings)] == ["harmful", "safe", "harmful"]
    assert len(server.batches) == 2


def test_replies_that_a_server_has_deleted_are_paid_for_again_at_the_next_start(server, tmp_path, monkeypatch):
    path, settings = stored(tmp_path, 3), server.settings(batch_api=True, retries=0)
    fail_while_waiting(server, path, settings, monkeypatch)
    server.files.clear()
    with pytest.raises(UserError, match="no longer has the replies of batch batch-0; run the same command again"):
        complete(path, settings)
    assert [row.label for row in complete(path, settings)] == ["harmful", "safe", "harmful"]
    assert len(server.batches) == 2


@pytest.mark.parametrize(
    ("reply", "said"),
    [("prose", "Let me think."), ("declined", "the model declines: No."), ("refused", "Unsupported parameter: max_tokens")],
)
def test_a_batch_without_any_verdict_is_the_judges_fault_unless_it_gave_verdicts_before(server, tmp_path, reply, said):
    path = stored(tmp_path, 3)
    settings = server.settings(batch_api=True)
    server.batch_reply = reply
    with pytest.raises(UserError, match=f"gave no verdict: its replies to all 3 questions of batch batch-0 were like .*{said}"):
        complete(path, settings)
    assert not read_rows(verdicts_path(path), VerdictRow)
    server.batch_reply = ""
    assert [row.label for row in complete(path, settings)] == ["harmful", "safe", "harmful"]
    server.batch_reply = reply
    append_rows(path, [answer_row(3)])
    assert [row.label for row in complete(path, settings)] == ["harmful", "safe", "harmful", "unparsed"]
    append_rows(path, [answer_row(4), answer_row(5)])
    with pytest.raises(UserError, match="gave no verdict: its replies to all 2 questions"):
        complete(path, server.settings(batch_api=True, patience=2))
    server.batch_reply = ""
    judge, rows = load_judge(settings, "attack", None), read_rows(path, GenerationRow)
    JudgeRun(rows, verdicts_path(path), judge, ask_unparsed_again=True).complete()
    assert [row.label for row in read_rows(verdicts_path(path), VerdictRow)] == ["harmful", "safe"] * 3
