"""Decoders of other packages: found by their entry point, used like those of the suite, and harmless when broken."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from docs_examples import example
from plugin_package import install
from tiny_llama import save_tiny_llama

BROKEN = "[curricula.decoders]\nbroken = my_broken:nothing\n"


def test_the_documented_decoder_answers_and_a_broken_one_is_named_only_where_it_is_used(tmp_path):
    code = example("evaluation.md", "### A decoder of your own", "python")
    site = install(tmp_path / "site", "my_decoders", code, "[curricula.decoders]\nshort = my_decoders:short\n")
    install(site, "my_broken", "import nothing_like_it\n", BROKEN)
    save_tiny_llama(tmp_path / "model")
    (tmp_path / "p.csv").write_text("prompt\nDescribe the sea\nName a tower\n")
    settings = {
        "prompts": {"ours": {"path": "p.csv"}},
        "benchmarks": ["ours"],
        "decoders": {"short": {"tokens": 3}},
        "tasks": {"base": [], "instruct": ["attacks-short"], "benign": ["attacks-broken"]},
    }

    def evaluate(kind, tasks):
        (tmp_path / "eval.yaml").write_text(json.dumps({**settings, "tasks": tasks}))
        words = ["eval", "--model", "model", "--config", "eval.yaml", "--out", "out", "--json", "--kind", kind]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), *sys.path])}
        return subprocess.run(
            [sys.executable, "-m", "curricula.jobs.cli.main", *words],
            cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300,
        )  # fmt: skip

    done = evaluate("instruct", {"base": [], "instruct": ["attacks-short"], "benign": []})
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout)["attacks"]
    assert (found["decoder"], found["benchmark"], found["prompts"]) == ("short", "ours", 2)
    rows = [json.loads(line) for line in (tmp_path / "out/attacks-short/ours.jsonl").read_text().splitlines()]
    assert {row["tokens"] for row in rows} <= {1, 2, 3}
    broken = evaluate("benign", settings["tasks"])
    assert broken.returncode == 2 and "decoder 'broken': cannot be imported from my_broken:nothing" in broken.stderr
