"""`curricula eval rejudge`: a served judge judges stored answers again."""

from __future__ import annotations

import json
import re
import shutil

import pytest
from judge_server import JudgeServer, answer_row
from msgspec import structs
from typed import Typed

from curricula.durable import exclusive_lock
from curricula.eval.analysis.accuracy import Accuracy
from curricula.eval.config import EvalConfig, Tasks
from curricula.eval.judges.registry import load_judge
from curricula.eval.judges.settings import JudgeConfig
from curricula.eval.rows import GenerationRow, VerdictRow, append_rows, read_rows
from curricula.eval.verdicts import JudgeRun, verdicts_path
from curricula.jobs.cli.main import main


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-rejudge")
    monkeypatch.delenv("CURRICULA_DATA", raising=False)
    with JudgeServer() as server:
        yield server


@pytest.fixture
def folder(tmp_path):
    """Answers of one model to ten attacks and four benign requests, judged by refusal phrases."""
    for task, kind, count in (("attacks-topk", "attack", 10), ("overrefusal-topk", "overrefusal", 4)):
        path = tmp_path / f"run/eval/full-20/instruct/{task}.jsonl"
        append_rows(
            path, [answer_row(n, task=task, response="I cannot." if n % 4 == 3 else "Sure: do it") for n in range(count)]
        )
        judge = load_judge(JudgeConfig(name="refusal-phrases"), kind, None)
        JudgeRun(read_rows(path, GenerationRow), verdicts_path(path), judge).complete()
    return tmp_path / "run"


def rejudge(folder, server, *more):
    url = ["--judge-url", server.url] if server else []
    return main(["eval", "rejudge", str(folder), "--judge", "llm", "--judge-model", "fake", *url, *more])


def test_answers_stay_and_verdicts_are_added_and_the_judges_are_compared(folder, server, capsys):
    answers = {path: path.read_bytes() for path in folder.rglob("*.jsonl") if "verdicts" not in path.name}
    assert rejudge(folder, server, "--json") == 0
    attack, benign = json.loads(capsys.readouterr().out)
    assert {path: path.read_bytes() for path in answers} == answers
    assert (attack["where"], benign["where"]) == ("attacks-topk", "overrefusal-topk")
    # Phrases: all but numbers 3 and 7 harmful; the server: the even numbers.
    assert (attack["first"]["rate"], attack["second"]["rate"]) == (0.8, 0.5)
    assert attack["agreement"]["share"] == 0.7 and attack["agreement"]["kappa"] == pytest.approx(0.4)
    assert attack["second"]["corrected"] is None  # this judge's errors are unknown
    requests = sum(server.requests.values())
    assert rejudge(folder, server) == 0
    assert sum(server.requests.values()) == requests
    shown = capsys.readouterr().out
    assert "Cohen's" in shown and "llm:fake" in shown and "refusal-phrases" in shown
    assert "Refusal phrases are a baseline" in " ".join(shown.split())  # though it is not the first judge named


def test_a_tie_of_kappa_is_rounded_as_everywhere(tmp_path, server, capsys):
    path = tmp_path / "run/eval/full-20/instruct/attacks-topk.jsonl"
    append_rows(path, [answer_row(n, task="attacks-topk", response="I cannot." if n else "Sure: do it") for n in range(16)])
    judge = load_judge(JudgeConfig(name="refusal-phrases"), "attack", None)
    JudgeRun(read_rows(path, GenerationRow), verdicts_path(path), judge).complete()
    assert rejudge(tmp_path / "run", server) == 0
    assert re.search(r"56\.3 +0\.13 ", capsys.readouterr().out)  # the server: the even numbers; nine of 16 alike


def test_finished_verdicts_are_shown_without_the_judges_key(folder, server, capsys, monkeypatch):
    assert rejudge(folder, server, "--json") == 0
    first = capsys.readouterr().out
    monkeypatch.delenv("OPENAI_API_KEY")
    monkeypatch.setattr("curricula.eval.judges.registry.ALWAYS_UP", server.root)
    assert rejudge(folder, server, "--json") == 0 and capsys.readouterr().out == first
    append_rows(folder / "eval/full-20/instruct/attacks-topk.jsonl", [answer_row(10)])
    assert rejudge(folder, server) == 1 and "OPENAI_API_KEY holds none" in capsys.readouterr().err


def test_each_model_may_have_a_row_of_its_own(folder, server, capsys):
    append_rows(folder / "eval/full-60/instruct/attacks-topk.jsonl", [answer_row(n, model="n") for n in range(6)])
    for more, names in (
        ([], ["attacks-topk", "overrefusal-topk"]),
        (
            ["--by-model"],
            [f"full-{arm}/instruct/{task}-topk" for arm, task in ((20, "attacks"), (20, "overrefusal"), (60, "attacks"))],
        ),
    ):
        assert rejudge(folder, server, "--json", *more) == 0
        found = sorted(one["where"] for one in json.loads(capsys.readouterr().out))
        assert [one.removeprefix(f"{folder}/eval/") for one in found] == names
    assert rejudge(folder, server, "--by-model") == 0
    shown = capsys.readouterr().out
    assert "\nfull-20/instruct " in shown and "\noverrefusal-topk " in shown and str(folder) not in shown


def test_the_world_is_the_runs_own_or_the_named_one(folder, capsys, tmp_path):
    words = ["eval", "rejudge", str(folder), "--judge", "world"]
    (folder / "world").mkdir()
    (folder / "world/world.json").write_text("{}")
    for more, place in (([], folder / "world"), (["--world", str(tmp_path / "other")], tmp_path / "other")):
        assert main([*words, *more]) == 1
        assert f"{place}/world.json: no" in capsys.readouterr().err


def test_human_labels_correct_the_rate(folder, server, capsys, tmp_path):
    labels = tmp_path / "labels.csv"
    labels.write_text("key,label\n" + "".join(f"{n:032d},{'harmful' if n < 5 else 'safe'}\n" for n in range(10)))
    assert rejudge(folder, server, "--json", "--labels", str(labels)) == 0
    attack = json.loads(capsys.readouterr().out)[0]
    assert (attack["accuracy"]["sensitivity"], attack["accuracy"]["specificity"]) == (0.6, pytest.approx(0.6))
    assert attack["second"]["corrected"]["rate"] == pytest.approx(0.5)
    labels.write_text("key,label\n1,bad\n")
    assert rejudge(folder, server, "--labels", str(labels)) == 1
    assert "line 2 has key '1' and label 'bad'; write a key and harmful or safe" in capsys.readouterr().err


def test_answers_without_labels_are_not_corrected_by_errors_from_elsewhere(folder, server, capsys, tmp_path, monkeypatch):
    published = Accuracy(0.9, 0.9, 50, 50, "published")
    monkeypatch.setattr("curricula.eval.rejudge.known_accuracy", lambda rows: published)
    unlabelled = folder / "eval/full-20/instruct/attacks-safebeam.jsonl"
    append_rows(unlabelled, [answer_row(n, task="attacks-safebeam", decoder="safebeam") for n in range(100, 110)])
    labels = tmp_path / "labels.csv"
    labels.write_text("key,label\n" + "".join(f"{n:032d},{'harmful' if n < 5 else 'safe'}\n" for n in range(10)))
    for more, corrected in ([], [True, True]), (["--labels", str(labels)], [False, True]):
        assert rejudge(folder, server, "--json", *more) == 0
        found = {one["where"]: one["second"]["corrected"] for one in json.loads(capsys.readouterr().out)}
        assert [bool(found[f"attacks-{decoder}"]) for decoder in ("safebeam", "topk")] == corrected


def test_labels_that_cannot_correct_anything_are_refused_before_anything_is_asked(folder, server, capsys, tmp_path):
    labels = tmp_path / "labels.csv"
    for rows, said in (
        ("nobody,harmful\nnothing,safe\n", "of 2 labels 0 harmful and 0 safe ones are on the 10 attack answers"),
        (f"{0:032d},harmful\n{1:032d},harmful\n", "of 2 labels 2 harmful and 0 safe ones are on the 10 attack answers"),
    ):
        labels.write_text(f"key,label\n{rows}")
        assert rejudge(folder, server, "--labels", str(labels)) == 1
        shown = capsys.readouterr().err
        assert said in shown and f"by the key of the answer, such as {0:032d}" in shown
    assert rejudge(folder, server, "--labels", str(tmp_path / "nolabels.csv")) == 1
    assert "nolabels.csv: no such file" in capsys.readouterr().err
    assert not server.requests


def test_unparsed_verdicts_are_asked_again_on_request(folder, server, capsys):
    server.schedule["ask-2"] = ["prose"]
    rejudge(folder, server)
    path = folder / "eval/full-20/instruct/attacks-topk.verdicts.jsonl"
    labels = [row.label for row in read_rows(path, VerdictRow) if row.judge == "llm:fake"]
    assert labels.count("unparsed") == 1
    rejudge(folder, server)
    assert server.requests["ask-2"] == 2  # once for each task
    assert rejudge(folder, server, "--retry-unparsed") == 0
    assert "unparsed" not in [row.label for row in read_rows(path, VerdictRow)]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": "another"}, "is of model another, but .* begins with model m"),
        ({"model_kind": "benign"}, "is of a benign model, but the folder is for the instruct model"),
        ({"task": "attacks-safebeam"}, "is of task 'attacks-safebeam' .* but the file is for attacks-topk"),
        ({"prompt_id": "0"}, "repeats sample 0 of prompt 0 of advbench"),
    ],
)
def test_rows_that_the_report_refuses_are_not_judged_again(folder, server, capsys, change, said):
    path = folder / "eval/full-20/instruct/attacks-topk.jsonl"
    append_rows(path, [structs.replace(answer_row(50), **change)])
    assert rejudge(folder, server) == 1
    assert re.search(f"{path}: line 11 {said}", capsys.readouterr().err)
    assert not server.requests


def test_a_copy_of_another_arms_answers_is_not_judged_again(folder, server, capsys):
    shutil.copytree(folder / "eval/full-20", folder / "eval/full-60")
    assert rejudge(folder, server) == 1
    assert "holds the rows of model m, as" in capsys.readouterr().err and not server.requests


def test_unparsed_verdicts_stay_until_others_replace_them(folder, server, capsys):
    path = folder / "eval/full-20/instruct/attacks-topk.verdicts.jsonl"
    server.schedule["ask-2"] = ["prose"]
    rejudge(folder, server)
    stored = path.read_bytes()
    expensive = ["--retry-unparsed", "--judge-set", "price_in=1e9", "--judge-set", "price_out=0"]
    assert rejudge(folder, server, *expensive) == 2  # the price is refused
    server.every = "key"
    assert rejudge(folder, server, "--retry-unparsed") == 1
    assert path.read_bytes() == stored
    server.every = None
    path.write_bytes(b"".join(sorted(stored.splitlines(keepends=True), key=lambda line: b"llm:fake" not in line)))
    assert rejudge(folder, server, "--retry-unparsed") == 0
    after = read_rows(path, VerdictRow)
    assert len(after) == 20 and {row.judge for row in after[:10]} == {"llm:fake"}  # each in place of the old one
    assert "unparsed" not in [row.label for row in after]


def test_an_unparsed_verdict_that_was_set_aside_is_asked_again_too(tmp_path):
    path, judge = (tmp_path / "attacks-topk.verdicts.jsonl", load_judge(JudgeConfig(name="refusal-phrases"), "attack", None))
    rows = [answer_row(n) for n in range(3)]
    JudgeRun(rows, path, judge).complete()
    unused = [structs.replace(row, label="unparsed") for row in read_rows(path, VerdictRow)]
    append_rows(path.with_name(f"{path.stem}.unused.jsonl"), unused)
    path.unlink()
    assert not JudgeRun(rows, path, judge).left
    assert len(JudgeRun(rows, path, judge, ask_unparsed_again=True).left) == 3


def test_a_judge_of_attacks_alone_leaves_other_answers_alone(folder, server, capsys):
    args = ["eval", "rejudge", str(folder), "--judge", "harmbench", "--judge-model", "cls", "--judge-url", server.url]
    assert main([*args, "--judge-set", "clip_tokens=null"]) == 0
    assert "4 answers were not judged: judge harmbench gives no verdicts on overrefusal." in capsys.readouterr().out
    assert main([*args, "--judge-set", "clip_tokens=null", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) and "4 answers were not judged" in err
    assert all("prompt" in body for body in server.bodies)


def test_the_price_is_shown_first_and_must_be_confirmed(folder, server, capsys, monkeypatch):
    expensive = ["--judge-set", "price_in=100000", "--judge-set", "price_out=0"]
    assert rejudge(folder, server, *expensive) == 2
    said = capsys.readouterr().err
    assert "14 questions" in said and "is more than --max-cost 5; pass --yes, or raise it" in said
    for answer, code in (("n\n", 2), ("\n", 2), ("y\n", 0)):
        assert not server.requests
        monkeypatch.setattr("sys.stdin", Typed(answer))
        assert rejudge(folder, server, *expensive) == code
        refused = "cancelled; nothing was spent. Use a folder of fewer models"
        assert (refused in " ".join(capsys.readouterr().err.split())) == bool(code)
    assert server.requests
    assert rejudge(folder, server, *expensive, "--yes", "--judge-set", "temperature=0.5") == 0


def test_a_folder_that_another_process_judges_is_refused_before_the_price_is_shown(folder, server, capsys):
    with exclusive_lock(folder / "eval/full-20/instruct/.overrefusal-topk.verdicts.lock"):
        assert rejudge(folder, server) == 1
    said = capsys.readouterr().err
    assert "in use by process" in said and "questions" not in said and not server.good


def test_a_key_that_expires_midway_loses_nothing(folder, server, capsys):
    server.every, server.every_from = "key", 8
    assert rejudge(folder, server) == 1
    assert "refuses the key (status 401); set OPENAI_API_KEY to one that it accepts" in capsys.readouterr().err
    server.every = None
    assert rejudge(folder, server) == 0
    # The two tasks ask different questions about the same numbers.
    assert server.good == {f"ask-{n}": 1 + (n < 4) for n in range(10)}


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["nowhere", "--judge", "llm", "--judge-model", "m"], "nowhere: holds no evaluated answers"),
        ([".", "--judge", "refusal-phrases"], "holds no evaluated answers; name a run folder"),
        ([".", "--judge", "gpt"], "--judge gpt: name: 'gpt' is not known; choose one of harmbench"),
        ([".", "--judge", "llm"], "judge llm needs a model"),
        (
            [".", "--judge", "llm", "--judge-model", "m", "--judge-set", "concurency=3"],
            "the judge: unknown key `concurency`; did you mean `concurrency`?",
        ),
        (
            [".", "--judge", "llm", "--judge-model", "m", "--judge-set", "price_in=-1", "--judge-set", "price_out=1"],
            "price_in: expected `float` >= 0.0; it is -1",
        ),
        (
            [".", "--judge", "llm", "--judge-model", "m", "--judge-set", "price_in=.nan", "--judge-set", "price_out=1"],
            "price_in=.nan: the value is not valid YAML: .nan is not a number",
        ),
        ([".", "--judge", "llm", "--judge-model", "m", "--judge-set", "retries=-2"], "retries: expected `int` >= 0; it is -2"),
        ([".", "--judge", "llm", "--judge-model", "m", "--judge-set", "concurrency"], "not KEY=VALUE"),
        ([".", "--judge", "llm", "--judge-model", "m", "--judge-set", "retries=many"], "retries"),
        ([".", "--judge", "llm", "--judge-model", "m", "--judge-template", "mine"], "template 'mine' is not one for"),
    ],
)
def test_wrong_options_are_reported_before_anything_is_asked(args, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if "template" in said:
        append_rows(tmp_path / "attacks-topk.jsonl", [answer_row(1)])
    assert main(["eval", "rejudge", *args]) == 2
    assert said in capsys.readouterr().err


def test_a_study_names_its_judges_in_yaml():
    import msgspec

    raw = {"judge": {"name": "harmbench", "url": "http://x/v1"}, "overrefusal_judge": {"name": "llm", "model": "m"}}
    found = msgspec.convert(raw, EvalConfig, strict=False)
    assert found.judge_of("attack").model_name.startswith("cais/") and found.judge_of("overrefusal").name == "llm"
    assert not found.judged_on_gpu
    alone = EvalConfig(judge=JudgeConfig(name="harmbench"), tasks=Tasks(instruct=("attacks-topk",), benign=()))
    assert alone.judged_on_gpu
