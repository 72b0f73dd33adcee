"""Top-k sampling: independent of the batch, cut at end marks and at the tag, and drawn from the k likeliest."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tiny_llama import save_tiny_llama

from curriculum.errors import UserError
from eval.config import TopK
from eval.models import load_model
from eval.sampling import draw, sample_topk

PROMPTS = ["Write a short story", "Describe how to pick a lock.", "Explain", "give three tips for staying healthy", "I"]
CONFIG = TopK(k=10, max_new_tokens=24, samples=3, stop_at_tag=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_llama(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def loaded(folder):
    # Frequent end marks, so that answers leave the batch at different steps.
    return dataclasses.replace(load_model(folder, "base", "cpu"), end_ids=(0, 2, *range(30, 60)))


def sample(loaded, texts, config=CONFIG):
    return sample_topk(loaded, [loaded.prompt_ids(t) for t in texts], [(7, "bench", t) for t in texts], config)


def test_an_answer_does_not_depend_on_the_batch_it_was_sampled_in(loaded):
    together = sample(loaded, PROMPTS)
    assert together == [sample(loaded, [text])[0] for text in PROMPTS]
    assert together[::-1] == sample(loaded, PROMPTS[::-1])


def test_more_samples_leave_the_first_ones_as_they_were(loaded):
    more = sample(loaded, PROMPTS, TopK(max_new_tokens=24, samples=5, stop_at_tag=True))
    assert [answers[:3] for answers in more] == sample(loaded, PROMPTS)


def test_samples_of_a_prompt_differ_from_each_other(loaded):
    assert all(len({answer.text for answer in answers}) > 1 for answers in sample(loaded, PROMPTS))


def test_tokens_equal_those_of_a_loop_without_cache_or_batch(loaded):
    from curriculum.randomness import keyed_rng

    text = PROMPTS[1]
    for number, answer in enumerate(sample(loaded, [text])[0]):
        uniforms = keyed_rng("topk", 7, "bench", text, number).random(CONFIG.max_new_tokens)
        ids, prompt = [], loaded.prompt_ids(text)
        for uniform in uniforms:
            with torch.inference_mode():
                logits = loaded.model(torch.tensor([prompt + ids])).logits[:, -1]
            ids.append(int(draw(logits, torch.tensor([uniform], dtype=torch.float64), CONFIG)))
            if ids[-1] in (*loaded.end_ids, loaded.tag_id):
                break
        assert answer.text == loaded.decode(ids)
        assert answer.tokens == len(ids)
        ended = {**dict.fromkeys(loaded.end_ids, "end"), loaded.tag_id: "tag"}
        assert answer.finish == ended.get(ids[-1], "length")


def test_draws_follow_the_softmax_of_the_k_likeliest():
    logits = torch.tensor([[0.0, 2.0, 1.0, -1.0]]).expand(20000, -1)
    uniforms = (torch.arange(20000, dtype=torch.float64) + 0.5) / 20000
    for temperature in (1.0, 0.5):
        counts = torch.bincount(draw(logits, uniforms, TopK(k=3, temperature=temperature)), minlength=4) / 20000
        expected = torch.softmax(torch.tensor([0.0, 2.0, 1.0, -torch.inf]) / temperature, dim=0)
        assert torch.allclose(counts, expected, atol=1e-3)
    assert set(draw(logits, uniforms, TopK(k=1)).tolist()) == {1}


def test_an_answer_is_cut_at_the_tag_and_marked_as_shortcircuit(loaded):
    tagged = dataclasses.replace(loaded, tag_id=200, end_ids=(0,))
    config = TopK(max_new_tokens=60, samples=8, stop_at_tag=True)
    cut = [a for answers in sample(tagged, PROMPTS, config) for a in answers]
    on = dataclasses.replace(loaded, tag_id=200, end_ids=(0,))
    going_on = [
        a for answers in sample(on, PROMPTS, TopK(max_new_tokens=60, samples=8, stop_at_tag=False)) for a in answers
    ]
    hit = [place for place, answer in enumerate(cut) if answer.shortcircuit]
    assert 0 < len(hit) < len(cut)
    for place, (short, long) in enumerate(zip(cut, going_on)):
        assert short.shortcircuit == long.shortcircuit == (place in hit)
        assert long.text.startswith(short.text.rstrip("\ufffd"))
        assert long.finish != "tag"
        if place in hit:
            assert short.finish == "tag"
            assert short.tokens <= long.tokens


def test_a_base_model_gets_the_text_itself_and_a_tuned_one_a_chat_turn(folder):
    base, tuned = (load_model(folder, kind, "cpu") for kind in ("base", "instruct"))
    assert base.decode(base.prompt_ids("Explain why")) == "Explain why"
    rendered = "<|im_start|>user\nExplain why<|im_end|>\n<|im_start|>assistant\n"
    assert tuned.tokenizer.decode(tuned.prompt_ids("Explain why")) == rendered
    assert tuned.tag_id == 3
    assert set(tuned.end_ids) == {0, 2}


def test_the_content_hash_is_of_the_content_and_not_of_the_place(folder, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    assert load_model(copy, "base", "cpu").content_hash == load_model(folder, "base", "cpu").content_hash
    config = copy / "config.json"
    config.write_text(config.read_text().replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'))
    assert load_model(copy, "base", "cpu").content_hash != load_model(folder, "base", "cpu").content_hash


@pytest.mark.parametrize(
    "missing, words", [("config.json", "is it a Hugging Face checkpoint"), ("tokenizer.json", "copy the tokenizer")]
)
def test_a_folder_that_lacks_a_file_is_named_in_the_error(folder, tmp_path, missing, words):
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    (broken / missing).unlink()
    with pytest.raises(UserError, match=f"{broken}: no {missing}; {words}"):
        load_model(broken, "base", "cpu")


def test_missing_and_truncated_weights_are_user_errors(folder, tmp_path):
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match="cannot be loaded .* export the model again"):
        load_model(broken, "base", "cpu")
    weights.unlink()
    with pytest.raises(UserError, match="has the export finished"):
        load_model(broken, "base", "cpu")
