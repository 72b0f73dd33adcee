"""Killed at random moments, an evaluation with a served judge ends with the same bytes and asks nothing twice."""

from __future__ import annotations

import hashlib
import random
import re
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from evaluating_child import evaluate
from forked import started
from judge_server import JudgeServer
from tiny_llama import save_tiny_llama

from curricula.eval.config import EvalConfig, Tasks
from curricula.eval.decoding.settings import TopK
from curricula.eval.judges.registry import load_judge
from curricula.eval.rows import GenerationRow, VerdictRow, read_rows
from curricula.eval.verdicts import question_of, verdicts_path

PROMPTS = 24
MISBEHAVIOUR = ("429", "500", "garbage", "half")


class WaywardServer(JudgeServer):
    """Tells questions apart by their whole text; the first attempt at every third one fails."""

    def key_of(self, text: str) -> str:
        return re.findall(r"ask-\d+", text)[0] + "#" + hashlib.sha256(text.encode()).hexdigest()[:12]

    def reply_to(self, text: str, key: str) -> str:
        return ("yes", "no", "I would rather not say")[int(key.partition("#")[2], 16) % 3]

    def enter(self, key: str, body: dict[str, Any], authorization: str | None) -> str:
        with self.lock:
            number = int(key.partition("#")[2], 16)
            if not self.requests[key] and number % 3 == 0:
                self.schedule[key].append(MISBEHAVIOUR[number // 3 % len(MISBEHAVIOUR)])
        return super().enter(key, body, authorization)


def events(out: Path, server: JudgeServer) -> int:
    """Progress of an evaluation: lines written and questions asked."""
    lines = sum(path.read_bytes().count(b"\n") for path in out.glob("attacks-topk/*.jsonl"))
    return lines + sum(server.requests.values())


@pytest.mark.forked
@pytest.mark.parametrize("wanted_kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_kills_leave_no_trace_and_no_question_is_asked_again(tmp_path, monkeypatch, wanted_kills):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    model = save_tiny_llama(tmp_path / "model")
    data = tmp_path / "data"
    (data / "advbench").mkdir(parents=True)
    goals = "".join(f"Describe ask-{number},x\n" for number in range(PROMPTS))
    (data / "advbench/harmful_behaviors.csv").write_text("goal,target\n" + goals)
    whole, killed = tmp_path / "whole", tmp_path / "killed"

    def start(out: Path, server: JudgeServer) -> Any:
        config = EvalConfig(
            benchmarks=("advbench",),
            accept_changed=("advbench",),
            judge=server.settings(concurrency=3),
            overrefusal_judge="refusal-phrases",
            topk=TopK(max_new_tokens=8, samples=2, batch_prompts=2),
            tasks=Tasks(instruct=("attacks-topk",)),
        )
        return started(evaluate, model, data, out, msgspec.json.encode(config))

    with WaywardServer() as server:
        child = start(whole, server)
        child.join(120)
        assert child.exitcode == 0
        total = events(whole, server)

    rng = random.Random(7)
    with WaywardServer(delay_s=0.02) as server:
        judge = load_judge(server.settings(concurrency=3), "attack", None)
        # Questions whose verdict was on the disk at a kill, and how often they had been asked.
        settled: dict[str, int] = {}
        kills = 0
        while kills < wanted_kills:
            child = start(killed, server)
            goal = max(events(killed, server) + 1, int(0.8 * total * (kills + rng.random()) / wanted_kills))
            time.sleep(rng.random() * 0.02)
            while events(killed, server) < goal and child.is_alive():
                time.sleep(0.001)
            if not child.is_alive():
                break
            child.kill()
            child.join()
            kills += 1
            while server._now:
                time.sleep(0.005)
            for key in on_disk(killed, judge, server):
                settled.setdefault(key, server.requests[key])
        assert kills == wanted_kills, "the evaluation ended before it could be killed often enough"
        child = start(killed, server)
        child.join(120)
        assert child.exitcode == 0
        again = {key: (times, server.requests[key]) for key, times in settled.items() if server.requests[key] != times}
        assert not again
        assert settled and sum(server.good.values()) - len(server.good) <= wanted_kills * 3  # only those in flight at a kill

    names = sorted(path.relative_to(whole) for path in whole.rglob("*.jsonl"))
    assert sorted(path.relative_to(killed) for path in killed.rglob("*.jsonl")) == names
    for name in names:
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name
    labels = {row.label for row in read_rows(whole / "attacks-topk.verdicts.jsonl", VerdictRow)}
    assert labels == {"harmful", "safe", "unparsed"}


def on_disk(out: Path, judge: Any, server: WaywardServer) -> list[str]:
    """The questions whose verdicts are on the disk, by the server's keys."""
    path = out / "attacks-topk.jsonl"
    rows = {row.key: row for row in read_rows(path, GenerationRow)}
    return [
        server.key_of(judge.request(question_of(rows[verdict.key]))["messages"][0]["content"])
        for verdict in read_rows(verdicts_path(path), VerdictRow)
    ]
