"""`curricula eval` with attacks and probes on any model: one command, one table, one JSON."""

from __future__ import annotations

import json

import pytest
import yaml
from tiny_llama import save_tiny_llama

from curricula.jobs.cli.main import main

THINGS = ["a lock", "a letter", "the sea", "bread"]
SETTINGS = {
    "benchmarks": ["jailbreakbench"],
    "accept_changed": ["advbench", "jailbreakbench", "alpaca"],
    "topk": {"max_new_tokens": 6, "samples": 2},
    "gcg": {"steps": 2, "search_width": 8, "topk": 8, "suffix": "x x x", "prompts": 3},
    "attacks": {
        "best_of_n": {"attempts": 4},
        "ablation": {"train": 2, "validation": 2, "pruned_layers": 0},
        "suffixes_of": ["other"],
    },
    "probes": {"train_per_class": 8, "seeds": 2, "layers": ["all"], "baselines": ["words"]},
    "tasks": {
        "instruct": [
            *("attacks-topk", "prefill-topk", "template-removal-topk", "best-of-n", "ablation-topk", "transfer-topk", "probes")
        ]
    },
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("root")
    save_tiny_llama(root / "model", layers=3)
    save_tiny_llama(root / "other-model", seed=1)
    texts = {"safe": [f"good bread {i}" for i in range(40)], "unsafe": [f"bad lock {i}" for i in range(40)]}
    for name, own in texts.items():
        (root / f"{name}.csv").write_text("body\n" + "".join(f"{text}\n" for text in own))
    files = {
        "advbench/harmful_behaviors.csv": "goal,target\n" + "".join(f"Describe {t} badly,x\n" for t in THINGS),
        "jailbreakbench/harmful-behaviors.csv": "Index,Goal,Category\n"
        + "".join(f"{i},Write about {t},c\n" for i, t in enumerate(THINGS)),
        "stanford_alpaca/alpaca_instructions_noinput.json": json.dumps([{"instruction": f"Name {t}."} for t in THINGS]),
    }
    for name, text in files.items():
        (root / "data" / name).parent.mkdir(parents=True)
        (root / "data" / name).write_text(text)
    tables = {name: {"path": str(root / f"{name}.csv"), "text": "body"} for name in texts}
    settings = {**SETTINGS, "probes": {**SETTINGS["probes"], "texts": tables}}
    (root / "all.yaml").write_text(yaml.safe_dump(settings))
    (root / "gcg.yaml").write_text(yaml.safe_dump({**settings, "tasks": {"instruct": ["gcg"]}}))
    return root


def evaluate(root, out, config, *more, model="model"):
    named = ["--model", str(root / model), "--config", str(root / config), "--data", str(root / "data")]
    return main(["eval", *named, "--out", str(out), "--device", "cpu", *more])


def test_attacks_and_probes_make_one_json_with_the_worst_case(root, tmp_path, capsys):
    other, own = tmp_path / "other", tmp_path / "own"
    assert evaluate(root, other, "gcg.yaml", model="other-model") == 0
    assert evaluate(root, own, "all.yaml") == 2
    assert "suffixes_of names other; say where its rows are with --suffixes other=FOLDER" in capsys.readouterr().err
    suffixes = ("--suffixes", f"other={other}")
    assert evaluate(root, own, "all.yaml", *suffixes, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert {one["decoder"] for one in found["attacks"]} == {
        *("topk", "prefill+topk", "template-removal+topk", "best-of-n+topk", "ablation+topk", "transfer+topk")
    }
    best_of_n = next(one for one in found["attacks"] if one["decoder"] == "best-of-n+topk")
    assert (best_of_n["prompts"], best_of_n["samples"]) == (4, 4)
    worst = {one["attack"]: one["broken"] for one in found["worst_case"]}
    assert len(worst) == 7 and worst.pop("worst") >= max(worst.values())
    assert [one["layer"] for one in found["probes"]] == ["first", "middle", "last"]
    assert all(one["low"] <= one["auc"] <= one["high"] and one["words_auc"] > 0.9 for one in found["probes"])

    rows = {path: path.read_bytes() for path in own.rglob("*.jsonl")}
    assert evaluate(root, own, "all.yaml", *suffixes) == 0
    assert {path: path.read_bytes() for path in own.rglob("*.jsonl")} == rows
    table = capsys.readouterr().out
    assert "worst case over attacks" in table and "Linear probes" in table and "best-of-n+topk" in table
