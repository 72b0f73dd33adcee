from __future__ import annotations

import pytest
from fake_endpoint import FakeEndpoint
from synthesizing import KEY


@pytest.fixture
def synthesis_environment(monkeypatch):
    """An environment with a key and none of the caller's settings."""
    for name in ("SLURM_ARRAY_TASK_ID", "OPENAI_BASE_URL", "CURRICULA_DATA", "HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def fake():
    with FakeEndpoint() as endpoint:
        yield endpoint
