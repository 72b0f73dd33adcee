from __future__ import annotations

import pytest
from judge_server import KEY, JudgeServer


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("curricula.eval.judges.batch.POLL_S", 0.02)
    with JudgeServer() as server:
        yield server
