"""GCG on a tiny random chat model: gradients, candidates and how the loss falls."""

from __future__ import annotations

import copy
import dataclasses
import math
import time

import msgspec
import numpy as np
import pytest
import torch
from evaluating_child import attack_prompts, identity
from forked import PROMPT_S, started
from scipy.stats import spearmanr
from tiny_llama import save_tiny_llama, spaced_tokenizer, tiny_tokenizer
from tokenizers import AddedToken

from curricula.errors import UserError
from curricula.eval.attacks.gcg import (
    attacked_prompts,
    barred_tokens,
    draw_candidates,
    optimise_suffixes,
    promising,
    saved_states,
)
from curricula.eval.attacks.losses import Attack, gradients, losses_of_embeddings
from curricula.eval.benchmarks import Prompt
from curricula.eval.config import Gcg, ProbeSampling
from curricula.eval.models import load_model
from curricula.eval.rows import SuffixRow, read_rows
from curricula.progress import silent
from curricula.randomness import keyed_rng

REQUEST = "Describe how to pick a lock."
CONFIG = Gcg(steps=12, search_width=48, topk=32, suffix="x x x x x x", batch_candidates=20)
REQUESTS = [REQUEST, "Explain", "give three tips for staying healthy and name the primary colors"]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return load_model(save_tiny_llama(tmp_path_factory.mktemp("model")), "instruct", "cpu")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return load_model(save_tiny_llama(tmp_path_factory.mktemp("model"), seed=1), "base", "cpu")


@pytest.fixture(scope="module", params=["Sure", " a", "Sure, here is how the"])
def attack(request, loaded):
    return Attack(loaded, REQUEST, Gcg(suffix=CONFIG.suffix, target=request.param, batch_candidates=2))


def optimise_suffix(loaded, request, config, words, on_step=lambda *_: None, save=None):
    (result,) = optimise_suffixes(loaded, [request], config, {"key": words}, on_step, save)
    return result


def gradient_of(attack, suffix):
    return gradients(attack.loaded, [attack.prefix], [suffix], attack.closing_ids, attack.target_ids)[0]


def whole_prompt_loss(attack, suffix):
    """Cross-entropy of the target the plain way: the whole text in one pass, no cache."""
    head = [*attack.opening_ids, *suffix, *attack.closing_ids]
    logits = attack.loaded.model(torch.tensor([head + attack.target_ids])).logits[0].float()
    predictions = logits[len(head) - 1 : -1]
    return float(torch.nn.functional.cross_entropy(predictions, torch.tensor(attack.target_ids)))


def test_losses_equal_those_of_the_whole_prompt_without_a_cache(attack):
    initial = attack.initial_ids
    suffixes = [initial, initial[::-1], [40 + i for i in range(len(initial))], initial]
    suffixes += [[*initial[:place], 77 + place, *initial[place + 1 :]] for place in range(len(initial))]
    with torch.no_grad():
        expected = [whole_prompt_loss(attack, suffix) for suffix in suffixes]
    for near in (None, initial, suffixes[2]):
        losses, hits = attack.losses(suffixes, near)
        assert losses == pytest.approx(expected, abs=1e-4) and losses[0] == losses[3]
        assert not any(hits)


def test_what_candidates_share_is_read_once(loaded):
    attack = Attack(loaded, REQUEST, CONFIG)
    initial, tokens = attack.initial_ids, []
    hook = loaded.model.register_forward_pre_hook(
        lambda model, _, inputs: tokens.append(inputs["input_ids"].numel()), with_kwargs=True
    )
    try:
        attack.losses([[*initial[:4], 77 + number, *initial[5:]] for number in range(16)], initial)
    finally:
        hook.remove()
    each = len(initial) - 4 + len(attack.closing_ids) + len(attack.target_ids) - 1  # from its fifth token to the last but one
    assert tokens == [4, 16 * each]


def test_a_hit_is_a_suffix_after_which_greedy_decoding_begins_with_the_target(loaded, attack):
    head = [*attack.opening_ids, *attack.initial_ids, *attack.closing_ids]
    greedy = []
    for _ in attack.target_ids:
        greedy.append(int(loaded.model(torch.tensor([head + greedy])).logits[0, -1].argmax()))
    attack = Attack(loaded, REQUEST, CONFIG)
    for target, expected in [(greedy, [True]), ([*greedy[:-1], greedy[-1] + 1], [False])]:
        attack.target_ids = target
        assert attack.losses([attack.initial_ids])[1] == expected


def test_the_gradient_equals_finite_differences(attack):
    gradient = gradient_of(attack, attack.initial_ids)
    weights = attack.loaded.model.get_input_embeddings().weight
    ids = torch.tensor(attack.initial_ids)
    for position, token in [(0, 17), (2, 91), (len(ids) - 1, 250)]:
        change = 1e-2
        losses = []
        for sign in (1, -1):
            one_hot = torch.nn.functional.one_hot(ids, len(weights)).float()
            one_hot[position, token] += sign * change
            with torch.no_grad():
                (loss,), _ = losses_of_embeddings(
                    attack.loaded, [attack.prefix], (one_hot @ weights)[None], attack.closing_ids, attack.target_ids
                )
                losses.append(float(loss))
        slope = (losses[0] - losses[1]) / (2 * change)
        assert float(gradient[position, token]) == pytest.approx(slope, abs=2e-3, rel=0.02)


def test_gradients_side_by_side_equal_those_of_each_prompt_alone(loaded):
    attacks = [Attack(loaded, request, CONFIG) for request in REQUESTS]
    assert len({len(attack.opening_ids) for attack in attacks}) == 3
    initial = attacks[0].initial_ids
    suffixes = [initial, initial[::-1], [40 + place for place in range(len(initial))]]
    first = attacks[0]
    together = gradients(loaded, [attack.prefix for attack in attacks], suffixes, first.closing_ids, first.target_ids)
    for attack, suffix, gradient in zip(attacks, suffixes, together):
        torch.testing.assert_close(gradient, gradient_of(attack, suffix), rtol=1e-4, atol=1e-5)


def test_a_request_that_quotes_control_tokens_is_attacked_as_text(loaded):
    attack = Attack(loaded, "Say <|im_end|> and pick a lock.", CONFIG)
    text = loaded.tokenizer.decode(attack.initial_ids)
    ids = [*attack.opening_ids, *attack.initial_ids, *attack.closing_ids]
    assert ids == loaded.prompt_ids(f"Say <|im_end|> and pick a lock.{text}") and ids.count(2) == 1


@pytest.mark.parametrize(
    ("content", "trims"),
    [("m['content']", False), ("m['content'].strip()", True), ("m['content'].strip() + ' '", True)],  # the last as Llama 2
)
def test_a_suffix_may_end_in_a_blank_where_the_chat_template_leaves_it_there(loaded, content, trims):
    tokenizer = copy.deepcopy(loaded.tokenizer)
    tokenizer.chat_template = tokenizer.chat_template.replace("m['content']", content)
    model = dataclasses.replace(loaded, tokenizer=tokenizer)
    attack = Attack(model, REQUEST, CONFIG)
    suffix = [*attack.initial_ids[:-1], *loaded.encode(" ")]
    read = model.prompt_ids(f"{REQUEST}{model.decode_parts([suffix])[0]}")
    assert (read == [*attack.opening_ids, *suffix, *attack.closing_ids]) is not trims
    assert attack.keeps_tokens([attack.initial_ids, suffix]) == [True, not trims]


@pytest.mark.parametrize("keeps_blank", [False, True])
@pytest.mark.parametrize("kind", ["base", "instruct"])
def test_a_tokenizer_that_puts_a_blank_before_every_text_is_no_obstacle(base, loaded, kind, keeps_blank):
    tokenizer = tiny_tokenizer(adds_blank=True) if keeps_blank else spaced_tokenizer()
    model = dataclasses.replace(base if kind == "base" else loaded, tokenizer=tokenizer)
    suffix, state = optimise_suffix(model, REQUEST, CONFIG, (0, "a"))
    assert suffix.startswith(" ") and state.idle_steps < CONFIG.steps
    attack, text = Attack(model, REQUEST, CONFIG), f"{REQUEST}{suffix}"
    read = [*attack.opening_ids, *state.best, *attack.closing_ids]
    assert model.prompt_ids(text) == read
    assert model.encode(f"{text if model.raw else model.chat(text)} Sure") == read + attack.target_ids


@pytest.mark.parametrize(("closing", "keeps_blank"), [(" <|im_end|>", False), ("Assistant:", True)])
def test_what_closes_a_turn_is_read_as_it_is_after_the_suffix(loaded, closing, keeps_blank):
    tokenizer = tiny_tokenizer(adds_blank=True) if keeps_blank else spaced_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken("<|im_end|>", lstrip=True, special=True)]})
    tokenizer.chat_template = f"{{{{ messages[0]['content'] + '{closing}' }}}}"
    model = dataclasses.replace(loaded, tokenizer=tokenizer)
    suffix, state = optimise_suffix(model, REQUEST, CONFIG, (0, "a"))
    assert state.best_loss < state.initial_loss
    attack = Attack(model, REQUEST, CONFIG)
    assert model.prompt_ids(f"{REQUEST}{suffix}") == [*attack.opening_ids, *state.best, *attack.closing_ids]


def test_a_prompt_that_fills_the_context_with_its_suffix_is_refused(loaded):
    long = REQUEST
    while len(loaded.prompt_ids(long)) < loaded.context_length - 5:  # alone it fits
        long += " a"
    with pytest.raises(UserError, match=r"a prompt has \d+ tokens, but the context of .* holds 512; shorten it"):
        Attack(loaded, long, Gcg(suffix="x x x x x x x x x x x x x x x x x x x x"))


def test_a_model_that_diverged_is_not_attacked(tmp_path):
    diverged = load_model(save_tiny_llama(tmp_path), "instruct", "cpu")
    diverged.model.lm_head.weight.fill_(torch.nan)
    with pytest.raises(UserError, match=f"{tmp_path}: gives logits that are not numbers; did its training diverge"):
        optimise_suffix(diverged, REQUEST, CONFIG, (0,))


def test_the_loss_falls_and_the_result_is_the_lowest_of_all_steps(loaded):
    seen = []
    words = (0, "bench", "a")
    suffix, state = optimise_suffix(loaded, REQUEST, CONFIG, words, lambda step, loss: seen.append((step, loss)))
    assert state.best_loss < state.initial_loss - 0.05
    assert state.best_loss == min([state.initial_loss, *state.losses])
    assert seen == list(enumerate(state.losses, start=1))
    assert suffix.startswith(" ") and suffix.isascii()
    attack = Attack(loaded, REQUEST, CONFIG)
    ids = loaded.encode(loaded.chat(REQUEST + suffix))
    suffix_ids = ids[len(attack.opening_ids) : len(ids) - len(attack.closing_ids)]
    assert len(suffix_ids) == len(attack.initial_ids)
    assert attack.losses([suffix_ids])[0][0] == pytest.approx(state.best_loss, abs=1e-5)


def test_a_step_without_a_candidate_that_keeps_its_tokens_leaves_the_suffix(loaded):
    config = Gcg(steps=12, search_width=1, topk=64, suffix="x x x")
    _, state = optimise_suffix(loaded, REQUEST, config, (0, "a"))
    stayed = sum(before == after for before, after in zip([state.initial_loss, *state.losses], state.losses, strict=False))
    assert 0 < state.idle_steps <= stayed and state.step == len(state.losses) == 12


def test_the_same_key_gives_the_same_suffix_and_another_key_another(loaded):
    first, again, other = (optimise_suffix(loaded, REQUEST, CONFIG, key) for key in [(0, "a"), (0, "a"), (1, "a")])
    assert first == again
    assert first[1].losses != other[1].losses


@pytest.mark.parametrize(("kind", "aim"), [("base", " Sure"), ("instruct", "Sure")])
def test_a_model_is_attacked_in_the_prompt_that_it_then_decodes(base, loaded, tmp_path, kind, aim):
    model = base if kind == "base" else loaded
    prompts = [Prompt(benchmark="b", id="1", text=f"\n {REQUEST} ", behavior=REQUEST, category="")]
    path = tmp_path / "gcg/b.jsonl"
    (attacked,) = attacked_prompts(model, prompts, CONFIG, path, 0, silent)
    (row,) = read_rows(path.with_name("b.suffixes.jsonl"), SuffixRow)
    assert attacked.text == REQUEST + row.suffix
    ids, target = model.prompt_ids(attacked.text), model.encode(aim)
    logits = model.model(torch.tensor([ids + target])).logits[0, len(ids) - 1 : -1].float()
    assert row.loss == pytest.approx(float(torch.nn.functional.cross_entropy(logits, torch.tensor(target))), abs=1e-4)
    assert row.loss < row.initial_loss


def test_candidates_that_would_tokenise_otherwise_are_dropped(loaded):
    attack = Attack(loaded, REQUEST, CONFIG)
    x = attack.initial_ids[0]
    whole = loaded.encode(" the")
    parts = [loaded.encode(" t")[0], loaded.encode("he")[0]]
    assert len(whole) == 1 and loaded.decode(parts) == " the"  # as text, the two parts are another token
    without_space = [loaded.encode("x")[0], *[x] * 5]
    assert attack.keeps_tokens([[x] * 6, [x, x, x, *parts, x], without_space]) == [True, False, False]


@pytest.mark.parametrize(("replace", "draws"), [(1, "nanogcg"), (3, "nanogcg"), (1, "llm-attacks")])
def test_candidates_differ_from_the_suffix_in_some_places_by_allowed_tokens(loaded, replace, draws):
    attack = Attack(loaded, REQUEST, CONFIG)
    barred = barred_tokens(loaded)
    replacements = promising(gradient_of(attack, attack.initial_ids), barred, 32)
    assert not barred[torch.from_numpy(replacements)].any()
    for special in (*loaded.end_ids, loaded.tag_id, 1):
        assert barred[special]
    config = Gcg(search_width=200, replace=replace, draws=draws)
    candidates = np.array(draw_candidates(attack.initial_ids, replacements, config, np.random.default_rng(0)))
    changed = candidates != np.array(attack.initial_ids)
    assert changed.sum(1).max() == replace
    assert changed.any(0).all()  # every position is tried
    for row, position in zip(*changed.nonzero()):
        assert candidates[row, position] in replacements[position]
    if draws == "llm-attacks":  # as many at each place, in order, and none unchanged
        assert changed.sum(1).min() == 1 and (np.diff(changed.argmax(1)) >= 0).all()
        counts = np.bincount(changed.argmax(1))
        assert counts.max() - counts.min() <= 3 and len(counts) == len(attack.initial_ids)


def plain_gcg(loaded, request, config, words, draft=None):
    """nanoGCG's loop without any optimisation: whole texts, one candidate at a time, the gradient of the one-hot suffix.

    Returns the loss and the suffix of the best candidate of each step.
    """
    attack = Attack(loaded, request, config)
    head, tail, target = [*attack.beginning, *attack.opening_ids], attack.closing_ids, attack.target_ids
    weights = loaded.model.get_input_embeddings().weight
    barred = barred_tokens(loaded)

    def logits_of(embeds):
        return loaded.model(inputs_embeds=embeds[None]).logits[0, -len(target) - 1 : -1].float()

    def loss_of(embeds):
        return torch.nn.functional.cross_entropy(logits_of(embeds), torch.tensor(target))

    def embedded(suffix_rows):
        return torch.cat([weights[head], suffix_rows, weights[tail].view(-1, weights.shape[1]), weights[target]])

    def text_of(candidate):
        return loaded.tokenizer.decode(candidate, clean_up_tokenization_spaces=False)

    def by_draft(candidate):
        ids = draft.encode(attack.opening + text_of(candidate) + attack.closing)
        aim = draft.encode(attack.target)
        logits = draft.model(torch.tensor([ids + aim])).logits[0, len(ids) - 1 : -1]
        return float(torch.nn.functional.cross_entropy(logits, torch.tensor(aim)))

    current, taken = list(attack.initial_ids), []
    with torch.no_grad():
        buffer = [(float(loss_of(embedded(weights[current]))), current)]
    for step in range(config.steps):
        one_hot = torch.nn.functional.one_hot(torch.tensor(current), len(weights)).float().requires_grad_()
        with torch.enable_grad():
            loss_of(embedded(one_hot @ weights)).backward()
        gradient = one_hot.grad.masked_fill(barred, torch.inf)
        replacements = gradient.neg().topk(config.topk, dim=-1).indices.numpy()
        rng = keyed_rng("gcg", *words, step)
        candidates = []
        for candidate in draw_candidates(current, replacements, config, rng):
            own = text_of(candidate).startswith(" ")  # the suffix follows the request after a space
            if own and loaded.encode(attack.opening + text_of(candidate) + attack.closing) == [
                *attack.opening_ids,
                *candidate,
                *tail,
            ]:
                candidates.append(candidate)
        with torch.no_grad():
            losses = [float(loss_of(embedded(weights[candidate]))) for candidate in candidates]
            hit = any(logits_of(embedded(weights[candidate])).argmax(-1).tolist() == target for candidate in candidates)
            if draft:
                guesses = [by_draft(candidate) for candidate in candidates]
                probes = rng.permutation(len(candidates))[: len(candidates) // config.probe_sampling.sampling_factor]
                agreement = spearmanr([losses[i] for i in probes], [guesses[i] for i in probes]).statistic
                kept = max(1, int((1 - (1 + agreement) / 2) * len(candidates) / config.probe_sampling.r))
                chosen = {*probes.tolist(), *np.argsort(guesses, kind="stable")[:kept].tolist()}
                losses = [loss if place in chosen else math.inf for place, loss in enumerate(losses)]
        best = min(zip(losses, candidates), key=lambda pair: pair[0])
        taken.append(best)
        current = best[1]
        if config.buffer:
            if len(buffer) < config.buffer or best[0] < buffer[-1][0]:
                buffer = sorted([*buffer, best], key=lambda pair: pair[0])[: config.buffer]
            current = buffer[0][1]
        if config.early_stop and hit:
            break
    return taken


VARIANTS = {
    "the paper's": {},
    "a longer target": {"target": "Sure, here"},
    "two replaced": {"replace": 2, "target": " the"},
    "drawn as in llm-attacks": {"draws": "llm-attacks"},
    "with a buffer": {"buffer": 3},
    "stopped early": {"early_stop": True, "steps": 30},
}


RAW = ("the paper's", "stopped early")
"""Of a raw prompt in quick tests, too: it differs from a chat in what surrounds the suffix, and in the target."""


@pytest.mark.parametrize(
    ("kind", "changed"),
    [
        pytest.param(kind, changed, id=f"{kind}-{name}", marks=[pytest.mark.slow] * (kind == "raw" and name not in RAW))
        for kind in ("tuned", "raw")
        for name, changed in VARIANTS.items()
    ],
)
def test_losses_and_suffixes_equal_those_of_a_plain_loop(loaded, base, kind, changed):
    model = loaded if kind == "tuned" else base
    if changed.get("early_stop"):
        changed = {**changed, "target": target_within_reach(model)}
    config = Gcg(**{"steps": 4, "search_width": 12, "topk": 32, "suffix": "x x x", "batch_candidates": 10, **changed})
    requests = REQUESTS[:2]
    draws = {str(number): (3, number) for number in range(len(requests))}
    results = optimise_suffixes(model, requests, config, draws)
    fell = []
    for request, words, (suffix, state) in zip(requests, draws.values(), results):
        plain = plain_gcg(model, request, config, words)
        assert state.losses == pytest.approx([loss for loss, _ in plain], abs=2e-5)
        fell.append(min(plain)[0] < state.initial_loss)
        if fell[-1]:
            assert suffix == model.tokenizer.decode(min(plain)[1])
    assert any(fell)
    assert not changed.get("early_stop") or 0 < len(results[0][1].losses) < 30


def target_within_reach(loaded):
    """A target of one token that the model almost writes after the first request and the initial suffix."""
    logits = loaded.model(torch.tensor([loaded.prompt_ids(f"{REQUEST} x x x")])).logits[0, -1]
    for token in logits.topk(60).indices[1:].tolist():
        text = loaded.decode([token])
        if loaded.encode(f" {text.lstrip()}" if loaded.kind == "base" else text) == [token]:
            return text
    raise AssertionError("no such target")


def test_probe_sampling_computes_few_candidates_and_equals_a_plain_loop(loaded, tmp_path):
    draft = load_model(save_tiny_llama(tmp_path / "draft", seed=5, vocab_size=330), "base", "cpu")
    sampling = ProbeSampling(draft=str(draft.folder), sampling_factor=4, r=2)
    config = Gcg(steps=3, search_width=40, topk=32, suffix="x x x x", probe_sampling=sampling)
    prompts = [Prompt(benchmark="b", id="1", text=REQUEST, behavior=REQUEST, category="")]
    path = tmp_path / "gcg/b.jsonl"
    passes = []
    hook = loaded.model.register_forward_pre_hook(
        lambda model, _, inputs: passes.append(len(inputs["input_ids"])) if "input_ids" in inputs else None, with_kwargs=True
    )
    try:
        attacked_prompts(loaded, prompts, config, path, 0, silent)
    finally:
        hook.remove()
    (row,) = read_rows(path.with_name("b.suffixes.jsonl"), SuffixRow)
    plain = plain_gcg(loaded, REQUEST, config, (0, "b", "1"), draft)
    assert row.losses == pytest.approx([loss for loss, _ in plain], abs=2e-5)
    assert sum(passes) < 0.7 * 3 * 40  # the candidates of three steps, with what they share


def test_an_interrupted_attack_resumes_from_its_last_saved_step(loaded, tmp_path):
    save, steps = tmp_path / "step.json", []

    def stop(step, loss):
        steps.append(step)
        if len(steps) == 25:
            raise KeyboardInterrupt

    config = Gcg(steps=30, search_width=16, topk=16, suffix="x x x x", buffer=2)
    whole = optimise_suffix(loaded, REQUEST, config, (0, "a"))
    with pytest.raises(KeyboardInterrupt):
        optimise_suffix(loaded, REQUEST, config, (0, "a"), stop, save)
    assert list(saved_states(save)) == ["key"]
    resumed = optimise_suffix(loaded, REQUEST, config, (0, "a"), stop, save)
    assert resumed == whole
    assert steps[25:] == list(range(21, 31))
    again = optimise_suffix(loaded, REQUEST, config, (0, "a"), lambda *_: pytest.fail("a step"), save)
    assert again == whole  # killed between the last step and its row
    for damaged in ('{"key"', '{"key": {"step": 3}}', "[]"):
        save.write_text(damaged)
        assert saved_states(save) == {}


@pytest.mark.forked
def test_a_killed_attack_ends_with_the_same_bytes_and_repeats_few_steps(loaded, tmp_path):
    config = msgspec.json.encode(Gcg(steps=25, search_width=8, topk=16, suffix="x x x", batch_prompts=2, buffer=2))

    def start(out, steps=None):
        return started(attack_prompts, loaded.folder, REQUESTS, out, config, steps)

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    child = start(whole)
    child.join(PROMPT_S)
    assert child.exitcode == 0
    saved = killed / "b.suffixes.step.json"
    for steps in (0, 3):  # after the one that was saved, at the most
        before = identity(saved)
        child = start(killed, steps)
        while child.is_alive() and identity(saved) in (before, None):
            time.sleep(0.001)
        time.sleep(0.1)
        assert child.is_alive(), "the attack ended before it could be killed"
        child.kill()
        child.join()
    child = start(killed)
    child.join(PROMPT_S)
    assert child.exitcode == 0
    assert not saved.exists() and [path.name for path in killed.iterdir()] == ["b.suffixes.jsonl"]
    assert (killed / "b.suffixes.jsonl").read_bytes() == (whole / "b.suffixes.jsonl").read_bytes()


def test_how_many_prompts_go_side_by_side_leaves_suffixes_the_same(loaded, tmp_path):
    prompts = [Prompt(benchmark="b", id=str(i), text=text, behavior=text, category="") for i, text in enumerate(REQUESTS)]
    config = Gcg(steps=3, search_width=12, topk=16, suffix="x x x x")
    for count in (1, 2, 3):
        changed = msgspec.structs.replace(config, batch_prompts=count, batch_candidates=3 * count)
        attacked_prompts(loaded, prompts, changed, tmp_path / f"{count}/b.jsonl", 0, silent)
    one, *others = (read_rows(tmp_path / f"{count}/b.suffixes.jsonl", SuffixRow) for count in (1, 2, 3))
    for rows in others:
        assert [(row.key, row.suffix) for row in rows] == [(row.key, row.suffix) for row in one]
        assert [row.loss for row in rows] == pytest.approx([row.loss for row in one], abs=1e-5)


def test_deterministic_takes_no_suffix_that_was_optimised_without_it(loaded, tmp_path):
    prompts = [Prompt(benchmark="b", id=str(i), text=text, behavior=text, category="") for i, text in enumerate(REQUESTS)]
    config, path = Gcg(steps=1, search_width=4, topk=16, suffix="x x x x"), tmp_path / "b.jsonl"
    alone = dataclasses.replace(loaded, model=copy.deepcopy(loaded.model).to(torch.bfloat16), deterministic=True)
    found = []
    for model, count in ((dataclasses.replace(alone, deterministic=False), 3), (alone, 3), (alone, 2)):
        attacked_prompts(model, prompts, msgspec.structs.replace(config, batch_prompts=count), path, 0, silent)
        found.append([row.key for row in read_rows(path.with_name("b.suffixes.jsonl"), SuffixRow)])
    assert found[1] == found[2] and not set(found[0]) & set(found[1])
