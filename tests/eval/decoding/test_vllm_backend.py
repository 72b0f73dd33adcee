"""The vLLM backend against a stand-in for the package: what it is asked, and how its outputs become answers."""

from __future__ import annotations

import sys
import types

import pytest
from tiny_llama import save_tiny_llama

from curricula.errors import UserError
from curricula.eval.decoding import sampling
from curricula.eval.decoding.sampling import sample_topk
from curricula.eval.decoding.settings import TopK
from curricula.eval.models import load_model

CONFIG = TopK(samples=2, max_new_tokens=40, backend="vllm", stop_at_tag=True)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return load_model(save_tiny_llama(tmp_path_factory.mktemp("model")), "base", "cpu")


@pytest.fixture
def asked(monkeypatch):
    """Replaces vllm by a stand-in; returns the calls that create and query its engine."""
    calls: list[tuple] = []
    answers = [
        ([10, 11, 2], "stop", 2),  # the end mark among the ids, as some versions have it
        ([10, 11], "stop", 2),  # and not, as others
        ([10, 3], "stop", 3),  # the tag
        ([10] * 40, "length", None),
    ]

    class LLM:
        def __init__(self, **how):
            calls.append(("engine", how))

        def generate(self, prompts, settings):
            calls.append(("generate", prompts, settings))
            return [
                types.SimpleNamespace(
                    outputs=[types.SimpleNamespace(token_ids=tuple(ids), finish_reason=reason, stop_reason=stop)]
                )
                for ids, reason, stop in answers
            ]

    vllm, inputs = types.ModuleType("vllm"), types.ModuleType("vllm.inputs")
    vllm.LLM, vllm.SamplingParams = LLM, lambda **how: how
    inputs.TokensPrompt = lambda **how: how
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    monkeypatch.setitem(sys.modules, "vllm.inputs", inputs)
    sampling._engine.cache_clear()
    yield calls
    sampling._engine.cache_clear()


def test_every_answer_has_its_own_seed_and_is_cut_where_it_ended(loaded, asked):
    keys = [(7, "bench", "a"), (7, "bench", "b")]
    *first, third, fourth = sample_topk(loaded, [[5, 6], [5, 6, 7]], keys, CONFIG)
    assert [(a.text, a.tokens, a.finish) for a in first] == [(loaded.decode([10, 11]), 3, "end")] * 2
    assert (third.finish, third.shortcircuit, third.tokens) == ("tag", True, 2)
    assert third.completion in CONFIG.safe_completions
    assert (fourth.finish, fourth.tokens) == ("length", 40)
    (_, engine), (_, prompts, settings) = asked
    assert engine["model"] == str(loaded.folder) and engine["dtype"] == "float32"
    assert [prompt["prompt_token_ids"] for prompt in prompts] == [[5, 6], [5, 6], [5, 6, 7], [5, 6, 7]]
    assert len({setting["seed"] for setting in settings}) == 4
    for setting in settings:
        assert (setting["top_k"], setting["temperature"], setting["max_tokens"]) == (10, 1.0, 40)
        assert setting["stop_token_ids"] == [0, 2, 3]
    sample_topk(loaded, [[5, 6], [5, 6, 7]], keys, CONFIG)
    assert [name for name, *_ in asked] == ["engine", "generate", "generate"]
    assert asked[2][2] == settings


def test_a_missing_package_is_reported_with_how_to_install_it(loaded, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(UserError, match=r"topk.backend is 'vllm', .* `pip install safety-curricula\[vllm\]` or use"):
        sample_topk(loaded, [[5, 6]], [(0,)], CONFIG)
