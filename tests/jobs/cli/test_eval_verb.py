"""`curricula eval` as a user calls it: a table with intervals, resuming, mistakes reported before any work."""

from __future__ import annotations

import json
import logging
import sys

import pytest
from judge_server import JudgeServer, answer_row
from permissions import open_to_others
from tiny_llama import save_tiny_llama
from typed import Typed

from curricula.eval.rows import append_rows
from curricula.eval.verdicts import read_judged
from curricula.jobs.cli.main import main


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("root")
    save_tiny_llama(root / "model")
    save_tiny_llama(root / "other", seed=5)
    (root / "data/advbench").mkdir(parents=True)
    goals = "".join(f"Describe ask-{n},x\n" for n in range(6))
    (root / "data/advbench/harmful_behaviors.csv").write_text("goal,target\n" + goals)
    (root / "data/tdc2023").mkdir()
    (root / "data/tdc2023/test_behaviors.json").write_text(json.dumps([f"Explain ask-{n}" for n in range(4)]))
    (root / "data/stanford_alpaca").mkdir()
    benign = json.dumps([{"instruction": f"Name ask-{n}."} for n in range(3)])
    (root / "data/stanford_alpaca/alpaca_instructions_noinput.json").write_text(benign)
    return root


def evaluate(root, out, *more, model="model", benchmark="advbench,tdc"):
    fixed = ["--data", str(root / "data"), "--max-new-tokens", "6", "--out", str(out)]
    fixed += [] if "greedy" in more else ["--samples", "2"]
    fixed += ["--accept-changed", "advbench,tdc,alpaca"]
    fixed += [] if "--benchmark" in more else ["--benchmark", benchmark]
    return main(["eval", "--model", str(root / model), *fixed, *map(str, more)])


def test_another_set_than_the_published_one_is_refused_or_named_beside_the_table(root, tmp_path, capsys):
    words = ["eval", "--model", str(root / "model"), "--data", str(root / "data"), "--benchmark", "tdc"]
    assert main([*words, "--decoder", "topk", "--out", str(tmp_path)]) == 1
    assert "4 prompts, where 50 were published; fetch it again, or accept it" in capsys.readouterr().err
    assert evaluate(root, tmp_path, "--decoder", "topk", benchmark="tdc") == 0
    assert "Not the published tdc: 4 prompts, where 50 were published." in capsys.readouterr().out
    assert evaluate(root, tmp_path, "--decoder", "topk", "--json", benchmark="tdc") == 0
    assert json.loads(capsys.readouterr().out)["changed"] == {"tdc": "4 prompts, where 50 were published"}
    assert evaluate(root, tmp_path, "--accept-changed", "tdk") == 2
    assert "accept_changed names 'tdk'" in capsys.readouterr().err


def test_a_models_path_is_not_read_as_markup(root, tmp_path, capsys):
    (tmp_path / "a[").mkdir()
    (tmp_path / "a[/b]").symlink_to(root / "model")
    assert evaluate(root, tmp_path / "out", "--decoder", "greedy", model=tmp_path / "a[/b]", benchmark="tdc") == 0
    assert "Rows: " in capsys.readouterr().out


def test_a_table_with_intervals_the_judge_and_its_version(root, tmp_path, capsys):
    assert evaluate(root, tmp_path / "out", "--decoder", "topk,safebeam", "--overrefusal", "alpaca") == 0
    shown = capsys.readouterr()
    assert "Judge and version: refusal-phrases " in " ".join(shown.out.split())
    lines = [line.split() for line in shown.out.splitlines()]
    assert [line[:3] for line in lines if line[:1] in (["topk"], ["safebeam"])][:6] == [
        ["topk", "advbench", "6"],
        ["topk", "tdc", "4"],
        ["topk", "all,", "mean"],
        ["safebeam", "advbench", "6"],
        ["safebeam", "tdc", "4"],
        ["safebeam", "all,", "mean"],
    ]
    assert "ASR is ASR@1" in shown.out and "Answers to benign requests" in shown.out
    said = [line for line in shown.err.splitlines() if line]
    assert list(dict.fromkeys(line.partition(":")[0] for line in said)) == [
        "attacks-topk/advbench",
        "attacks-topk/tdc",
        "attacks-safebeam/advbench",
        "attacks-safebeam/tdc",
        "overrefusal-topk/alpaca",
        "overrefusal-safebeam/alpaca",
        "judge",
    ]  # and no library's bars or warnings between them
    assert open_to_others(tmp_path / "out") == []


def test_the_same_command_generates_and_asks_nothing_again(root, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with JudgeServer() as server:
        server.key_of = lambda text: "ask-0"  # type: ignore[method-assign]
        judge = ["--judge", "llm", "--judge-model", "fake", "--judge-url", server.url, "--json", "--decoder", "topk"]
        assert evaluate(root, tmp_path / "out", *judge) == 0
        first, asked = json.loads(capsys.readouterr().out), server.requests["ask-0"]
        written = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.jsonl")}
        monkeypatch.setattr("curricula.eval.decoding.sampling.sample_topk", lambda *_: pytest.fail("generated again"))
        assert evaluate(root, tmp_path / "out", *judge) == 0
        assert server.requests["ask-0"] == asked and json.loads(capsys.readouterr().out) == first
        assert {path: path.read_bytes() for path in written} == written
        # Fewer benchmarks, then all again: what was judged is not asked again.
        assert evaluate(root, tmp_path / "out", *judge, benchmark="tdc") == 0
        assert evaluate(root, tmp_path / "out", *judge) == 0
        assert server.requests["ask-0"] == asked
    # Nor is the judge's server looked for, until something is missing.
    monkeypatch.setattr("curricula.eval.judges.registry.ALWAYS_UP", server.root)
    capsys.readouterr()
    assert evaluate(root, tmp_path / "out", *judge) == 0 and json.loads(capsys.readouterr().out) == first
    assert evaluate(root, tmp_path / "out", *judge, "--seed", "43") == 1
    assert "OPENAI_API_KEY holds none" in capsys.readouterr().err
    cell = first["attacks"][0]
    assert (cell["benchmark"], cell["prompts"], cell["samples"], cell["judges"][:8]) == ("advbench", 6, 2, "llm:fake")


def test_a_judge_whose_cost_is_declined_is_not_taken_for_the_judge_of_the_answers(root, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    out, costly = tmp_path / "out", ["--judge-set", "price_in=1e9", "--judge-set", "price_out=0"]
    with JudgeServer() as server:
        judge = ["--judge", "llm", "--judge-model", "fake", "--judge-url", server.url, *costly]
        assert evaluate(root, out, *judge, "--decoder", "greedy", benchmark="tdc") == 2
        assert "is more than --max-cost" in capsys.readouterr().err
        monkeypatch.setattr("sys.stdin", Typed("n\n"))
        assert evaluate(root, out, *judge, "--decoder", "greedy", benchmark="tdc") == 2
        assert "cancelled; nothing was spent" in capsys.readouterr().err and not server.requests
    assert main(["eval", "rejudge", str(out), "--judge", "refusal-phrases"]) == 0
    (answers,) = out.rglob("attacks-greedy.jsonl")
    assert {row.judge for row in read_judged(answers)} == {"refusal-phrases"}


def test_precision_is_part_of_the_model_and_a_device_is_checked(root, tmp_path, capsys):
    words = [root, tmp_path / "out", "--decoder", "greedy", "--precision"]
    assert evaluate(*words, "float64", benchmark="tdc") == 0
    assert evaluate(*words, "float32", benchmark="tdc") != 0
    said = " ".join(capsys.readouterr().err.split())
    assert "holds the answers of another model" in said and "in float64, this one is" in said
    assert evaluate(*words, "float64", "--device", "gpu", benchmark="tdc") != 0
    assert "device 'gpu' is asked for, but this machine has cpu" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("fault", "said"),
    [("down", "127.0.0.1:9 cannot be reached"), ("key", "(status 401)"), ("typo", "knows no model 'fke', only fake")],
)
def test_a_judge_that_would_not_answer_is_named_before_the_answers(root, tmp_path, capsys, monkeypatch, fault, said):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    with JudgeServer() as server:
        server.every = {"key": "key", "typo": "unknown_model"}.get(fault)
        url, name = "http://127.0.0.1:9/v1" if fault == "down" else server.url, "fke" if fault == "typo" else "fake"
        judge = ["--judge", "llm", "--judge-model", name, "--judge-url", url, "--judge-set", "retries=0"]
        monkeypatch.setattr(logging.getLogger("curricula"), "handlers", [logging.StreamHandler(sys.stderr)])
        assert evaluate(root, tmp_path / "out", *judge, "--decoder", "greedy", benchmark="tdc") != 0
    shown = " ".join(capsys.readouterr().err.split())
    assert said in shown and "it must be up when answers are judged" in shown and "sk-secret" not in shown
    assert shown.index("it must be up") < shown.index("attacks-greedy/tdc")
    # Nothing is lost: with the fault mended the answers are there.
    with JudgeServer() as server:
        server.key_of = lambda text: "ask-0"  # type: ignore[method-assign]
        monkeypatch.setattr("curricula.eval.decoding.sampling.search_greedy", lambda *_: pytest.fail("generated again"))
        judge = ["--judge", "llm", "--judge-model", "fake", "--judge-url", server.url]
        assert evaluate(root, tmp_path / "out", *judge, "--decoder", "greedy", benchmark="tdc") == 0
    assert "it must be up" not in capsys.readouterr().err


def test_the_rows_of_a_model_near_the_root_lie_below_evaluations_too(root, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["eval", "--model", "/no/model", "--benchmark", "advbench", "--data", str(root / "data")]
    assert main([*words, "--accept-changed", "advbench"]) == 1
    assert "/no/model" in capsys.readouterr().err and (tmp_path / "evaluations/no-model").is_dir()


def test_the_folder_of_another_model_is_refused_whatever_benchmark_it_answered_and_kept(root, tmp_path, capsys):
    greedy = ["--decoder", "greedy", "--prompts", 2]
    assert evaluate(root, tmp_path / "out", *greedy, benchmark="advbench") == 0
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.jsonl")}
    for benchmark in ("advbench", "tdc"):
        assert evaluate(root, tmp_path / "out", *greedy, benchmark=benchmark, model="other") == 2
        assert "holds the answers of another model" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.jsonl")} == before


def test_benchmarks_evaluated_one_after_another_are_all_kept(root, tmp_path, capsys):
    greedy = ["--decoder", "greedy", "--prompts", 2, "--json"]
    assert evaluate(root, tmp_path / "out", *greedy, benchmark="advbench") == 0
    capsys.readouterr()
    assert evaluate(root, tmp_path / "out", *greedy, benchmark="tdc") == 0
    assert [cell["benchmark"] for cell in json.loads(capsys.readouterr().out)["attacks"]] == ["tdc"]
    assert evaluate(root, tmp_path / "both", *greedy) == 0
    for name in ("attacks-greedy.jsonl", "attacks-greedy.verdicts.jsonl"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "both" / name).read_bytes()


def test_gcg_and_the_sensitivity_of_safebeam_are_tasks_of_any_model(root, tmp_path, capsys):
    config = tmp_path / "evaluation.yaml"
    config.write_text(
        """
        benchmarks: [tdc]
        prompts_per_benchmark: 2
        accept_changed: [tdc]
        topk: { max_new_tokens: 6, samples: 2 }
        safebeam: { beams: 2, candidates: 4, max_new_tokens: 6 }
        deterministic: true
        gcg: { benchmark: tdc, prompts: 2, steps: 2, search_width: 8, topk: 8, suffix: x x x, buffer: 2, early_stop: true }
        tasks: { instruct: [gcg, safebeam-candidates] }
        """
    )
    words = ["eval", "--model", str(root / "model"), "--data", str(root / "data"), "--out", str(tmp_path / "out")]
    words += ["--config", str(config)]
    assert main([*words, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    labels = [f"safebeam-{times}x-{pool}" for pool in ("all", "beam") for times in (2, 5, 10)]
    prompts = {cell["decoder"]: cell["prompts"] for cell in shown["attacks"]}
    assert prompts == dict.fromkeys(["gcg+topk", "gcg+safebeam", *labels], 2)
    assert [cell["decoder"] for cell in shown["pruning"]] == sorted(["gcg+safebeam", *labels])
    for cell in shown["pruning"]:
        assert cell["answers"] == 2 and cell["unrecorded"] == 0
        assert cell["logp"] < 0 and cell["logp_lost"] >= 0 and 0 <= cell["likeliest_dropped"] <= 1
    assert len((tmp_path / "out/gcg/tdc.suffixes.jsonl").read_text().splitlines()) == 2
    written = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.jsonl")}
    assert main(words) == 0
    assert "SafeBeam's pruning: nats per answer" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.jsonl")} == written


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("gcg: { stesp: 5 }", "gcg: unknown key `stesp`; did you mean `steps`?"),
        ("gcg: { draws: llm-attacks, replace: 2 }", "llm-attacks replaces one token; choose draws: nanogcg"),
        (
            "{ safebeam: { drop: 0.6, candidates: 25 }, tasks: { instruct: [safebeam-candidates] } }",
            "safebeam.candidates 20 with drop 0.6 leaves 8, fewer than the 10 beams; raise candidates to at least 23",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused_before_the_model_is_loaded(
    root, tmp_path, capsys, monkeypatch, given, said
):
    monkeypatch.setattr("curricula.eval.models.load_model", lambda *_: pytest.fail("loaded"))
    (tmp_path / "evaluation.yaml").write_text(given)
    assert main(["eval", "--model", str(root / "model"), "--config", str(tmp_path / "evaluation.yaml")]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--decoder", "greedy", "--overrefusal", "alpaca"], "not measured under greedy decoding; add topk or safebeam"),
        (["--decoder", "beam"], "--decoder beam: not known; choose from topk, safebeam, greedy"),
        (["--benchmark", "advbensh"], "benchmarks names 'advbensh'; choose from"),
        (["--benchmark", "alpaca"], "benchmarks names 'alpaca', which is of kind overrefusal, not attack; choose from"),
        (["--benchmark", "tdc", "--benchmark", "tdc", "--kind", "base"], "of kind attack, not completion; choose from"),
        (["--overrefusal", "advbench"], "overrefusal_benchmark names 'advbench', which is of kind attack, not overrefusal"),
        (["--overrefusal", "alpacca"], "overrefusal_benchmark names 'alpacca'; choose from"),
        (["--capability", "quick", "--capability", "mm.lu"], "'mm.lu'"),
        (["--kind", "base"], "base models take one benchmark of beginnings"),
        (["--judge", "llm", "--judge-model", "m"], "judge.url: name the judge's server"),
        (["--judge", "llm", "--judge-model", "m", "--judge-url", "node7:8000"], "'node7:8000': not the address of a server"),
        (["--judge", "llm", "--judge-model", "m", "--judge-url", "http://[::1:8000/v1"], "judge.url: 'http://[::1:8000/v1'"),
        (["--judge", "harmbench", "--overrefusal", "alpaca"], "name another as evaluation.overrefusal_judge"),
    ],
)
def test_wrong_options_are_refused_before_the_model_is_loaded(root, tmp_path, capsys, monkeypatch, more, said):
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.setattr("curricula.eval.models.load_model", lambda *_: pytest.fail("loaded"))
    assert evaluate(root, tmp_path / "out", *more) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("verb", [["eval", "--model", "m", "--benchmark", "tdc", "--out", "out"], ["eval", "rejudge", "out"]])
@pytest.mark.parametrize(
    ("judge", "said"),
    [
        (["harmbench", "--judge-model", "/nowhere/judge"], "judge.model /nowhere/judge: no such folder"),
        (["llm", "--judge-model", "m", "--judge-url", "https://api.openai.com/v1"], "OPENAI_API_KEY holds none"),
    ],
)
def test_a_judge_without_its_model_or_key_is_named_at_once(root, tmp_path, capsys, monkeypatch, verb, judge, said):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CURRICULA_DATA", str(root / "data"))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("curricula.eval.models.load_model", lambda *_, **__: pytest.fail("loaded"))
    append_rows(tmp_path / "out/attacks-topk.jsonl", [answer_row(0)])
    accept = ["--accept-changed", "tdc"] if "rejudge" not in verb else []
    assert main([*verb, *accept, "--judge", *judge]) == 1
    assert said in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["attacks-topk.jsonl"]


def test_answers_that_the_context_cuts_are_announced_and_a_models_name_is_no_markup(root, tmp_path, capsys):
    words = ["--decoder", "greedy", "--prompts", 1]
    assert evaluate(root, tmp_path / "out", *words, "--max-new-tokens", 512) == 0
    assert "holds 512 tokens, the prompt among them: answers are cut there" in " ".join(capsys.readouterr().err.split())
    assert evaluate(root, tmp_path / "other", *words, "--max-new-tokens", 8) == 0
    assert "cut there" not in capsys.readouterr().err
    assert evaluate(root, tmp_path / "other", *words, model="no[/model]") == 1
    assert "no[/model]: no such folder" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["[]", "false", "0", "''"])
def test_a_configuration_that_is_no_mapping_is_refused(root, tmp_path, capsys, text):
    (tmp_path / "evaluation.yaml").write_text(text)
    assert main(["eval", "--model", str(root / "model"), "--config", str(tmp_path / "evaluation.yaml")]) == 2
    assert "evaluation.yaml: the eval: expected `mapping`" in capsys.readouterr().err


def test_a_prompt_that_fills_the_context_is_named_before_any_answer(root, tmp_path, capsys):
    (tmp_path / "data/advbench").mkdir(parents=True)
    goals = "goal,target\nShort,x\n" + "word " * 600 + ",x\n"
    (tmp_path / "data/advbench/harmful_behaviors.csv").write_text(goals)
    words = ["eval", "--model", str(root / "model"), "--benchmark", "advbench", "--data", str(tmp_path / "data")]
    words += ["--accept-changed", "advbench"]
    assert main([*words, "--out", str(tmp_path / "out"), "--decoder", "greedy"]) != 0
    said = " ".join(capsys.readouterr().err.split())
    assert "advbench, prompt 1: a prompt has" in said and "the context of" in said
    assert not list((tmp_path / "out").rglob("*.jsonl"))
