"""SafeBeam against Algorithm 1 in plain Python (algorithm1.py), and against Hugging Face's beam search."""

from __future__ import annotations

import dataclasses
import math

import msgspec
import pytest
import torch
from algorithm1 import brute_force
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from tiny_llama import SPECIALS, save_tiny_llama

from curricula.errors import UserError
from curricula.eval.decoding.answers import is_finished, make_answer
from curricula.eval.decoding.safebeam import Search, best_first, search_safebeam, search_tokens
from curricula.eval.decoding.settings import SAFE_COMPLETIONS, SafeBeam
from curricula.eval.models import load_model

PROMPTS = ["Write a short story", "Describe how to pick a lock.", "Explain", "give three tips for staying healthy and name"]


@pytest.fixture(scope="module", params=[(0, 1.0), (1, 2.0), (2, 0.3)])
def loaded(request, tmp_path_factory):
    seed, scale = request.param
    return load_model(save_tiny_llama(tmp_path_factory.mktemp("model"), seed=seed, scale=scale), "base", "cpu")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """In float64, where rounding makes no ties: one peaked, one flat, and one whose tokenizer splits the tag."""
    made = []
    for seed, scale, specials in [(0, 1.0, None), (1, 2.5, None), (2, 1.0, SPECIALS[:3])]:
        folder = save_tiny_llama(tmp_path_factory.mktemp("model"), seed=seed, scale=scale, specials=specials)
        made.append(load_model(folder, "base", "cpu", "float64"))
    return made


@st.composite
def settings_of_safebeam(draw, tag="one-token"):
    beams = draw(st.integers(1, 4))
    drop = draw(st.sampled_from([0.0, 0.3, 0.5, 0.6]))
    least = math.ceil(beams / (1 - drop) / beams) * beams
    return SafeBeam(
        beams=beams,
        candidates=least + beams * draw(st.integers(0, 1)),
        drop=drop,
        pool=draw(st.sampled_from(["all", "beam"])),
        ended_risk=draw(st.sampled_from(["before", "after", "none"])),
        stop_at_tag=draw(st.booleans()),
        max_new_tokens=draw(st.integers(1, 9)),
        rows=draw(st.integers(1, 40)),
        tag=tag,
    )


PROMPT_IDS = st.lists(st.lists(st.integers(5, 399), min_size=1, max_size=14), min_size=1, max_size=4)


def cut(loaded, ids, config):
    """`ids` up to the first token that ends a text, which is part of it."""
    texts = (ids[:count] for count in range(1, len(ids) + 1))
    return next((text for text in texts if is_finished(loaded, text, config.stop_at_tag)), ids)


def beams_after_each_step(loaded, prompts, config):
    """The beams after every step: for each prompt and step [(ids, score), ...], best first."""
    search = Search(loaded, prompts, config)
    seen = [[] for _ in prompts]
    with torch.inference_mode():
        while search.queue or any(prompt >= 0 for prompt in search.active):
            search.admit()
            search.step()
            for line, (prompt, step) in enumerate(zip(search.active, search.steps)):
                if prompt >= 0 and step > 0:
                    texts = [cut(loaded, ids[:step], config) for ids in search.history[line].tolist()]
                    scores = search.score[line].tolist()
                    seen[prompt].append([beam for beam in zip(texts, scores) if beam[1] > -math.inf])
            search.collect()
    return seen, search


def assert_equal_to_brute_force(loaded, prompts, config):
    seen, search = beams_after_each_step(loaded, prompts, config)
    for number, prompt in enumerate(prompts):
        lost: list[float] = []
        expected = brute_force(loaded, prompt, config, lost)
        # Without pruning the search may stop before the algorithm, whose best beam is final.
        assert len(seen[number]) == len(expected) or (config.drop == 0 and len(seen[number]) < len(expected))
        for found, by_the_book in zip(seen[number], expected):
            assert [ids for ids, _ in found] == [ids for ids, _ in by_the_book]
            assert [score for _, score in found] == pytest.approx([score for _, score in by_the_book], abs=1e-9)
        ids, cost = search.results[number]
        best = max(expected[-1], key=lambda beam: beam[1])
        ids = cut(loaded, ids, config)
        assert ids == best[0] and cost.logp == pytest.approx(best[1], abs=1e-9)
        assert len(seen[number]) == cost.steps >= len(ids)
        assert cost.lost == pytest.approx(sum(lost), abs=1e-9)
        assert cost.dropped == sum(1 for nats in lost if nats)


@given(data=st.data(), prompts=PROMPT_IDS, which=st.integers(0, 1), config=settings_of_safebeam())
@examples(32)
def test_every_beam_of_every_step_equals_algorithm_1_by_brute_force(models, data, prompts, which, config):
    # Frequent end marks and, often, a frequent tag, so that beams end at different steps.
    ends = (0, 2, *range(30, 30 + data.draw(st.sampled_from([0, 40]))))
    loaded = dataclasses.replace(models[which], end_ids=ends, tag_id=data.draw(st.sampled_from([3, 77])))
    assert_equal_to_brute_force(loaded, prompts, config)


@pytest.mark.parametrize("stop_at_tag", [True, False])
def test_a_model_without_an_end_mark_ends_its_answers_at_the_tag_or_at_their_full_length(models, stop_at_tag):
    prompts = [[40, 41, 42], [50, 60]]
    logits = models[1].model(torch.tensor(prompts[:1])).logits[0, -1]
    endless = dataclasses.replace(models[1], end_ids=(), tag_id=int(logits.argsort()[-2]))
    config = SafeBeam(beams=3, candidates=9, drop=0.3, ended_risk="none", max_new_tokens=5, stop_at_tag=stop_at_tag)
    assert_equal_to_brute_force(endless, prompts, config)


@given(prompts=PROMPT_IDS.map(lambda prompts: prompts[:2]), config=settings_of_safebeam(tag="product"))
@examples(12)
def test_a_tag_of_several_tokens_is_the_product_of_their_probabilities(models, prompts, config):
    config = msgspec.structs.replace(config, max_new_tokens=min(config.max_new_tokens, 3))
    assert len(models[2].tag_spellings) == 2 and all(len(ids) > 1 for ids in models[2].tag_spellings)
    short = dataclasses.replace(models[2], end_ids=(0,))
    short.__dict__["tag_spellings"] = ((60, 71, 82), (93, 71))  # as if the tokenizer had longer words
    assert_equal_to_brute_force(short, prompts, config)
    assert_equal_to_brute_force(short, prompts, msgspec.structs.replace(config, tag="first-token"))


def test_a_spelled_tag_ends_a_text_and_is_a_shortcircuit(models):
    spelled = dataclasses.replace(models[2], end_ids=(0,))
    spelled.__dict__["tag_spellings"] = ((60, 71), (82, 71))
    assert make_answer(spelled, [5, 60, 71, 9], stop_at_tag=True).tokens == 3
    gone_on = make_answer(spelled, [5, 60, 71, 9, 82, 71, 0], stop_at_tag=False)
    assert (gone_on.shortcircuit, gone_on.finish, gone_on.text) == (True, "end", spelled.decode([5, 9]))
    assert not make_answer(spelled, [60, 5, 71], stop_at_tag=True).shortcircuit


def test_answers_do_not_depend_on_earlier_prompts_in_the_same_line(models):
    loaded = dataclasses.replace(models[1], end_ids=(0, 2, *range(30, 90)))
    prompts = [loaded.prompt_ids(text) for text in [*PROMPTS, *(f"{text} for the town" for text in PROMPTS)]]
    config = SafeBeam(beams=3, candidates=6, max_new_tokens=40)
    alone = [search_tokens(loaded, [prompt], config)[0] for prompt in prompts]
    assert len({len(ids) for ids, _ in alone}) > 2
    for rows in (6, 12, 18, 48):
        found = search_tokens(loaded, prompts, msgspec.structs.replace(config, rows=rows))
        assert [ids for ids, _ in found] == [ids for ids, _ in alone]


def test_a_step_is_one_forward_pass_and_the_beams_share_their_past_in_memory(models):
    loaded = dataclasses.replace(models[0], end_ids=())
    prompts = [loaded.prompt_ids(text) for text in PROMPTS]
    search = Search(loaded, prompts, SafeBeam(beams=5, candidates=10, max_new_tokens=100))
    passes = []

    def note_size(*_):
        slabs = [slab for slab in search.trees.decoding.slabs if slab.keys is not None]
        passes.append(sum(part.nbytes for slab in slabs for part in (slab.keys, slab.values)))

    hook = loaded.model.register_forward_hook(note_size)
    try:
        search.run()
    finally:
        hook.remove()
    assert len(passes) == 2 + 100  # the prompts, their last tokens, and the steps
    longest, token = max(map(len, prompts)), 2 * 2 * 2 * 8 * 8  # keys and values, layers, heads, head size, bytes
    assert max(passes) / token < len(prompts) * (longest + 2 * 100 + 5 * 12 + 10)
    assert max(passes) / token < 0.6 * len(prompts) * 5 * (longest + 100)  # a copy for each beam


def test_pruning_changes_answers(loaded):
    prompts = [loaded.prompt_ids(text) for text in PROMPTS]
    pruned, plain = (
        search_tokens(loaded, prompts, SafeBeam(beams=4, candidates=8, drop=drop, max_new_tokens=16)) for drop in (0.5, 0)
    )
    assert any(ours != theirs for ours, theirs in zip(pruned, plain))


def test_without_pruning_it_equals_the_beam_search_of_transformers(loaded):
    unending = dataclasses.replace(loaded, end_ids=())
    prompts = [loaded.prompt_ids(text) for text in PROMPTS]
    found = search_tokens(unending, prompts, SafeBeam(beams=5, candidates=10, drop=0.0, max_new_tokens=16))
    for prompt, (ids, score) in zip(prompts, found):
        theirs = loaded.model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            num_beams=5,
            do_sample=False,
            length_penalty=0.0,
            early_stopping=False,
            max_new_tokens=16,
            min_new_tokens=16,
            eos_token_id=None,
            pad_token_id=0,
            output_scores=True,
            return_dict_in_generate=True,
        )
        assert ids == theirs.sequences[0, len(prompt) :].tolist()
        assert score.logp == pytest.approx(float(theirs.sequences_scores[0]), abs=1e-3)
        assert score.lost == score.dropped == 0


def test_an_answer_that_holds_the_tag_is_a_shortcircuit_and_ends_there(loaded):
    with torch.no_grad():
        weights = loaded.model.lm_head.weight
        kept = weights.clone()
        other = 77
        weights[loaded.tag_id] = weights[other]  # make the tag as likely as another token
        weights[other] = 0
    try:
        config = SafeBeam(beams=2, candidates=8, drop=0.0, max_new_tokens=24)
        prompts = [loaded.prompt_ids(text) for text in PROMPTS]
        raw = [ids for ids, _ in search_tokens(loaded, prompts, config)]
        answers = search_safebeam(loaded, prompts, config)
        for ids, answer in zip(raw, answers):
            assert answer.shortcircuit == (loaded.tag_id in ids)
            assert (answer.completion in SAFE_COMPLETIONS) == answer.shortcircuit
            if answer.shortcircuit:
                assert answer.finish == "tag"
                assert answer.tokens == ids.index(loaded.tag_id) + 1
            assert "<potentially" not in answer.text
    finally:
        with torch.no_grad():
            weights.copy_(kept)


def test_a_tokenizer_that_splits_the_tag_is_refused(tmp_path):
    folder = save_tiny_llama(tmp_path, specials=["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    with pytest.raises(UserError, match="splits <potentially_unsafe_content> into .* set safebeam.tag to 'product'"):
        search_safebeam(load_model(folder, "base", "cpu"), [[5, 6]], SafeBeam(max_new_tokens=2))


def test_equal_scores_are_taken_in_the_order_of_their_places():
    scores = torch.tensor([[1.0, 3.0, 2.0, 2.0, 2.0, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0, 0.0]])
    values, places = best_first(scores, 3)
    assert places.tolist() == [[1, 2, 3], [0, 1, 2]]
    assert values.tolist() == [[3.0, 2.0, 2.0], [0.0, 0.0, 0.0]]
