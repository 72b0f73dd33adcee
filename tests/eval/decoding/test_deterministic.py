"""`evaluation.deterministic`: in bfloat16 an answer does not depend on what is decoded beside it, to the last bit."""

from __future__ import annotations

import dataclasses
import random

import msgspec
import pytest
from tiny_llama import save_tiny_llama

from curricula.errors import UserError
from curricula.eval.config import EvalConfig
from curricula.eval.decoding.batch import Decoding
from curricula.eval.decoding.registry import DECODERS
from curricula.eval.decoding.settings import Greedy, SafeBeam, TopK
from curricula.eval.models import load_model

SETTINGS = {
    "topk": TopK(max_new_tokens=24, samples=2, rows=6),
    "greedy": Greedy(max_new_tokens=24, rows=5),
    "safebeam": SafeBeam(max_new_tokens=16, beams=3, candidates=6, rows=24),
}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    folder = save_tiny_llama(tmp_path_factory.mktemp("model"), hidden=192, heads=6, kv_heads=3, layers=3, scale=0.2)
    model = load_model(folder, "base", "cpu", "bfloat16", deterministic=True)
    return dataclasses.replace(model, end_ids=(0, 2, *range(30, 42)))


@pytest.fixture(scope="module")
def prompts():
    rng = random.Random(0)
    # The third grows past the first stretch of columns.
    return [[rng.randrange(5, 399) for _ in range(length)] for length in (3, 17, 250, 1, 40, 17)]


def answers(loaded, prompts, name, order, together):
    """All answers by prompt, decoded `together` at a time in this order."""
    config, found = SETTINGS[name], {}
    for start in range(0, len(order), together):
        some = order[start : start + together]
        given = DECODERS[name].answer(loaded, [prompts[i] for i in some], [("bench", i) for i in some], config)
        each = len(given) // len(some)
        found.update({prompt: given[place * each :][:each] for place, prompt in enumerate(some)})
    return found


@pytest.mark.parametrize("name", SETTINGS)
def test_answers_do_not_depend_on_the_prompts_beside_them(loaded, prompts, name):
    order = list(range(len(prompts)))
    alone = answers(loaded, prompts, name, order, 1)
    assert len({answer.tokens for given in alone.values() for answer in given}) > 2
    shuffled = random.Random(1).sample(order, len(order))
    for some, together in [(order[::-1], 6), (shuffled, 4)]:
        found = answers(loaded, prompts, name, some, together)
        assert all(found[prompt] == alone[prompt] for prompt in some)


def test_without_the_setting_they_do_depend_on_them(loaded, prompts):
    """Else the test above would show nothing. Which decoder's answers change depends on the processor's kernels."""
    plain, order = dataclasses.replace(loaded, deterministic=False), list(range(len(prompts)))
    assert any(answers(plain, prompts, name, order, 1) != answers(plain, prompts, name, order, 6) for name in SETTINGS)


def test_more_samples_leave_the_first_ones_as_they_are(loaded, prompts):
    more = msgspec.structs.replace(SETTINGS["topk"], samples=5)
    draws = [("bench", i) for i in range(3)]
    few = DECODERS["topk"].answer(loaded, prompts[:3], draws, SETTINGS["topk"])
    many = DECODERS["topk"].answer(loaded, prompts[:3], draws, more)
    assert [many[5 * i : 5 * i + 2] for i in range(3)] == [few[2 * i : 2 * i + 2] for i in range(3)]


def test_a_device_whose_rows_are_not_alike_is_refused(loaded):
    def uneven(_, __, output):
        output.logits[2] *= 2

    hook = loaded.model.register_forward_hook(uneven)
    try:
        with pytest.raises(UserError, match=r"on this device \(cpu\) a row's result depends on its place among 4 rows"):
            Decoding(loaded, 2, 30, fixed=4)
    finally:
        hook.remove()


def test_vllm_does_not_promise_it():
    with pytest.raises(ValueError, match="vLLM does not support float64, deterministic or ablation; set topk.backend"):
        EvalConfig(deterministic=True, topk=TopK(backend="vllm"))
