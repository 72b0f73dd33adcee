"""Decoders of other packages: found by their entry point, used like those of the suite, and harmless when broken."""

from __future__ import annotations

import contextlib
import io
import json
import multiprocessing
import os
import sys
from pathlib import Path

from docs_examples import example
from plugin_package import install
from tiny_llama import save_tiny_llama

WORDS = ["eval", "--model", "model", "--config", "eval.yaml", "--out", "out", "--json", "--kind"]
BROKEN = "[curricula.decoders]\nbroken = my_broken:nothing\n"


def evaluate(site, folder, calls):
    """What the command line answers to `calls` where `site` is installed: status, output and errors of each. In a child of
    this process that imports the suite anew, since decoders are found when their registry is imported."""

    def answer():
        os.chdir(folder)
        sys.path.insert(0, str(site))
        for name in [name for name in sys.modules if name.partition(".")[0] == "curricula"]:
            del sys.modules[name]
        from curricula.jobs.cli.main import main

        said = []
        for settings, kind in calls:
            Path("eval.yaml").write_text(json.dumps(settings))
            out, err = io.StringIO(), io.StringIO()
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                status = main([*WORDS, kind])
            said.append([status, out.getvalue(), err.getvalue()])
        Path("said.json").write_text(json.dumps(said))

    child = multiprocessing.get_context("fork").Process(target=answer)
    child.start()
    child.join()
    assert child.exitcode == 0
    return json.loads((folder / "said.json").read_text())


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
    chosen = {**settings, "tasks": {**settings["tasks"], "benign": []}}
    mistaken = {**chosen, "decoders": {"short": {"token": 3}}}
    calls = [(chosen, "instruct"), (settings, "benign"), (mistaken, "instruct")]
    (status, out, err), broken, wrong = evaluate(site, tmp_path, calls)
    assert status == 0, err
    (found,) = json.loads(out)["attacks"]
    assert (found["decoder"], found["benchmark"], found["prompts"]) == ("short", "ours", 2)
    rows = [json.loads(line) for line in (tmp_path / "out/attacks-short/ours.jsonl").read_text().splitlines()]
    assert {row["tokens"] for row in rows} <= {1, 2, 3}
    assert broken[0] == 2 and "decoder 'broken': cannot be imported from my_broken:nothing" in broken[2]
    assert wrong[0] == 2 and "decoders.short: the short: unknown key `token`; did you mean `tokens`?" in wrong[2]
