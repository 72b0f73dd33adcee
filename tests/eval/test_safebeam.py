"""SafeBeam against a plain-Python Algorithm 1 without cache, and against Hugging Face's beam search."""

from __future__ import annotations

import dataclasses
import math

import msgspec
import pytest
import torch
from tiny_llama import save_tiny_llama

from curriculum.errors import UserError
from eval.config import SafeBeam
from eval.models import load_model
from eval.safebeam import best_first, search_safebeam, search_tokens

PROMPTS = [
    "Write a short story",
    "Describe how to pick a lock.",
    "Explain",
    "give three tips for staying healthy and name",
]


@pytest.fixture(scope="module", params=[(0, 1.0), (1, 2.0), (2, 0.3)])
def loaded(request, tmp_path_factory):
    seed, scale = request.param
    return load_model(save_tiny_llama(tmp_path_factory.mktemp("model"), seed=seed, scale=scale), "base", "cpu")


@torch.inference_mode()
def brute_force(loaded, prompt, config):
    """Algorithm 1 by the book: every distribution from the whole text, candidates in Python lists.

    Returns what the answer would be after each number of steps: [(ids, log-probability)].
    """

    def log_probs(ids):
        return loaded.model(torch.tensor([ids])).logits[0, -1].float().log_softmax(-1).double().tolist()

    tag, ends = loaded.tag_id, loaded.end_ids
    first = log_probs(prompt)
    beams = [([], 0.0, math.exp(first[tag]), False, first)]  # text, log-probability, P(tag), ended, next log-probs
    answers = []
    for _ in range(config.max_new_tokens):
        candidates = []
        for place, (text, score, p_tag, ended, logp) in enumerate(beams):
            if ended:
                candidates.append((-score, place, ends[0], text, p_tag, True))
            else:
                candidates += [(-(score + x), place, t, [*text, t], p_tag, t in ends) for t, x in enumerate(logp)]
        looked = []
        for rank, (minus, _, _, text, parent_tag, ended) in enumerate(sorted(candidates)[: config.candidates]):
            logp = None if ended else log_probs(prompt + text)
            looked.append((text, -minus, parent_tag if ended else math.exp(logp[tag]), ended, logp, rank))
        dropped = sorted(looked, key=lambda c: (-c[2], -c[5]))[: math.floor(config.drop * len(looked))]
        beams = [c[:5] for c in looked if c not in dropped][: config.beams]
        answers.append(max(((text, score) for text, score, *_ in beams), key=lambda b: b[1]))
    return answers


@pytest.mark.parametrize(
    "config",
    [
        SafeBeam(beams=3, candidates=6, drop=0.5, max_new_tokens=12),
        SafeBeam(beams=4, candidates=12, drop=0.5, max_new_tokens=8),
        SafeBeam(beams=2, candidates=9, drop=0.3, max_new_tokens=10),
        SafeBeam(beams=1, candidates=2, drop=0.5, max_new_tokens=10),
    ],
    ids=str,
)
def test_safebeam_equals_brute_force_algorithm_1_after_every_step(loaded, config):
    # Frequent end marks, so that beams end at different steps.
    loaded = dataclasses.replace(loaded, end_ids=(0, 2, *range(30, 60)))
    prompts = [loaded.prompt_ids(text) for text in PROMPTS]
    expected = [brute_force(loaded, prompt, config) for prompt in prompts]
    for steps in range(1, config.max_new_tokens + 1):
        found = search_tokens(loaded, prompts, msgspec.structs.replace(config, max_new_tokens=steps))
        assert [ids for ids, _ in found] == [answers[steps - 1][0] for answers in expected]
        assert [score for _, score in found] == pytest.approx([answers[steps - 1][1] for answers in expected], abs=1e-4)


def test_pruning_changes_answers(loaded):
    prompts = [loaded.prompt_ids(text) for text in PROMPTS]
    pruned, plain = (
        search_tokens(loaded, prompts, SafeBeam(beams=4, candidates=8, drop=drop, max_new_tokens=16))
        for drop in (0.5, 0)
    )
    assert any(ours != theirs for ours, theirs in zip(pruned, plain))


def test_without_pruning_it_is_the_beam_search_of_transformers(loaded):
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
        assert score == pytest.approx(float(theirs.sequences_scores[0]), abs=1e-3)


def test_the_answer_does_not_depend_on_the_prompts_beside_it(loaded):
    prompts = [loaded.prompt_ids(text) for text in PROMPTS]
    config = SafeBeam(beams=4, candidates=8, max_new_tokens=16)
    together = search_tokens(loaded, prompts, config)
    assert [ids for ids, _ in together] == [search_tokens(loaded, [prompt], config)[0][0] for prompt in prompts]


def test_an_answer_that_holds_the_tag_is_a_shortcircuit_and_ends_there(loaded):
    with torch.no_grad():
        weights = loaded.model.lm_head.weight
        kept = weights.clone()
        other = 77
        weights[loaded.tag_id] = weights[other]  # the tag is as likely as another token
        weights[other] = 0
    try:
        config = SafeBeam(beams=2, candidates=8, drop=0.0, max_new_tokens=24)
        prompts = [loaded.prompt_ids(text) for text in PROMPTS]
        raw = [ids for ids, _ in search_tokens(loaded, prompts, config)]
        answers = search_safebeam(loaded, prompts, config)
        for ids, answer in zip(raw, answers):
            assert answer.shortcircuit == (loaded.tag_id in ids)
            if answer.shortcircuit:
                assert answer.finish == "tag"
                assert answer.tokens == ids.index(loaded.tag_id) + 1
            assert "<potentially" not in answer.text
    finally:
        with torch.no_grad():
            weights.copy_(kept)


def test_a_tokenizer_that_splits_the_tag_is_refused(tmp_path):
    folder = save_tiny_llama(tmp_path, specials=["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    with pytest.raises(UserError, match="splits <potentially_unsafe_content> into"):
        search_safebeam(load_model(folder, "base", "cpu"), [[5, 6]], SafeBeam(max_new_tokens=2))


def test_equal_scores_are_taken_in_the_order_of_their_places():
    scores = torch.tensor([[1.0, 3.0, 2.0, 2.0, 2.0, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0, 0.0]])
    values, places = best_first(scores, 3)
    assert places.tolist() == [[1, 2, 3], [0, 1, 2]]
    assert values.tolist() == [[3.0, 2.0, 2.0], [0.0, 0.0, 0.0]]


def test_too_few_candidates_for_the_beams_are_refused():
    with pytest.raises(ValueError, match="raise candidates to at least 20"):
        SafeBeam(beams=10, candidates=12)
