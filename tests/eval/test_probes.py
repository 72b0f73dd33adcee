"""Probes: which hidden state is read, how subsets are drawn, and what text length alone achieves."""

from __future__ import annotations

import json
import re

import msgspec
import numpy as np
import pytest
import torch
from tiny_llama import save_tiny_llama

from curricula.errors import UserError
from curricula.eval.config import Probes
from curricula.eval.models import load_model
from curricula.eval.probes.probing import last_token_states, layers_of, run_probes
from curricula.eval.probes.texts import LabelledTexts, balanced, check_texts, load_texts


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return load_model(save_tiny_llama(tmp_path_factory.mktemp("model"), layers=4), "base", "cpu")


def test_the_middle_layer_of_24_is_the_13th():
    assert layers_of(("first", "middle", "last"), 24) == [("first", 1), ("middle", 13), ("last", 24)]
    assert layers_of(("first", "middle", "last"), 1) == [("first", 1), ("middle", 1), ("last", 1)]


def test_layers_can_be_chosen_by_number_and_all_of_them_keep_the_three_names():
    assert layers_of((3, "last"), 4) == [("3", 3), ("last", 4)]
    assert layers_of(("all",), 5) == [("first", 1), ("2", 2), ("middle", 3), ("4", 4), ("last", 5)]
    with pytest.raises(UserError, match="layers names layer 9, but the model has 4"):
        layers_of((9,), 4)


def test_states_are_those_of_the_last_token_whatever_else_is_in_the_batch(loaded, monkeypatch):
    monkeypatch.setattr("curricula.eval.probes.probing.BATCH_TEXTS", 3)
    texts = ["bread rises", "a", "Write a short story about a lighthouse keeper", "the sea brings a letter"]
    batches = list(last_token_states(loaded, [loaded.encode(text) for text in texts], [1, 4]))
    assert [len(places) for places, _ in batches] == [3, 1]
    for place, text in enumerate(texts):
        with torch.inference_mode():
            hidden = loaded.model(torch.tensor([loaded.encode(text)]), output_hidden_states=True).hidden_states
        (states,) = (states[places.index(place)] for places, states in batches if place in places)
        for row, index in enumerate((1, 4)):
            assert np.allclose(states[row], hidden[index][0, -1].numpy(), atol=1e-4)


def test_a_model_that_diverged_is_refused(tmp_path):
    diverged = load_model(save_tiny_llama(tmp_path), "base", "cpu")
    diverged.model.model.layers[1].mlp.down_proj.weight.fill_(torch.nan)
    ids = diverged.encode("bread rises")
    list(last_token_states(diverged, [ids], [1]))
    with pytest.raises(UserError, match=f"{tmp_path}: gives hidden states that are not numbers; did its training"):
        list(last_token_states(diverged, [ids], [2]))


def test_balanced_subsets_differ_by_seed_and_hold_both_classes_equally():
    unsafe = np.arange(100) % 4 == 0
    first, again, other = (balanced(unsafe, 20, "train", seed) for seed in (0, 0, 1))
    assert (first == again).all() and not (first == other).all()
    assert unsafe[first].sum() == 20 and len(set(first.tolist())) == 40
    assert len(balanced(unsafe, None, "test")) == 50
    with pytest.raises(UserError, match="75 safe and 25 unsafe ones, fewer than 26 of each"):
        balanced(unsafe, 26, "train")


def reworded(texts: LabelledTexts) -> LabelledTexts:
    return LabelledTexts([f"Now {text}" for text in texts.texts], texts.unsafe)


def test_a_text_whose_first_tokens_are_those_of_a_test_text_trains_no_probe(loaded, tmp_path, caplog):
    unsafe = np.arange(80) % 2 == 1
    test = LabelledTexts([f"bread {'never ' * int(bad)}{i}" for i, bad in enumerate(unsafe)], unsafe)
    alike = LabelledTexts([f"{text} and more" for text in test.texts], unsafe)
    both = LabelledTexts(alike.texts + reworded(test).texts, np.concatenate([unsafe, unsafe]))
    config = Probes(train_per_class=20, seeds=2, max_tokens=min(len(loaded.raw_ids(text)) for text in test.texts))
    cut = [loaded.raw_ids(text)[: config.max_tokens] for text in alike.texts]
    assert all(ids in [loaded.raw_ids(text)[: config.max_tokens] for text in test.texts] for ids in cut)
    found, _ = run_probes(loaded, both, test, config, 0, tmp_path / "both")
    assert found == run_probes(loaded, reworded(test), test, config, 0, tmp_path / "reworded")[0]
    assert "80 training texts are left out, since a test text begins with the same tokens" in caplog.text
    scarce, all_left = (msgspec.structs.replace(config, train_per_class=count, seeds=1) for count in (50, 40))
    found, _ = run_probes(loaded, both, test, scarce, 0, tmp_path / "scarce")
    assert found == run_probes(loaded, reworded(test), test, all_left, 0, tmp_path / "reworded")[0]


def test_the_baseline_shows_labels_that_length_explains(loaded, tmp_path):
    unsafe = np.arange(80) % 2 == 1
    texts = LabelledTexts([("bread rises " * (12 if bad else 2)) + str(i) for i, bad in enumerate(unsafe)], unsafe)
    results, _ = run_probes(loaded, reworded(texts), texts, Probes(train_per_class=20, seeds=2), 0, tmp_path)
    assert len(results) == 6
    assert all(result.baseline_length_auc == 1.0 for result in results)


@pytest.mark.parametrize(
    ("per_class", "said"), [(20, None), (30, "takes 30 of 40 texts a class"), (40, "of 40 texts a class, .*all are the same")]
)
def test_subsets_that_overlap_because_texts_are_few_are_warned_of(loaded, tmp_path, caplog, per_class, said):
    unsafe = np.arange(80) % 2 == 1
    texts = LabelledTexts([f"bread rises {'never ' * int(bad)}{i}" for i, bad in enumerate(unsafe)], unsafe)
    run_probes(loaded, reworded(texts), texts, Probes(train_per_class=per_class, seeds=2), 0, tmp_path)
    assert bool(said) == ("training subsets" in caplog.text) and re.search(said or "", caplog.text)


def test_missing_texts_are_named_with_where_to_put_them():
    with pytest.raises(UserError, match="not on the Hugging Face hub; write probes/train.jsonl"):
        load_texts(None, "train", Probes())


@pytest.mark.parametrize(("threshold", "texts"), [(1, "abcd"), (3, "acd"), (5, "a")])
def test_texts_scored_between_safe_and_the_threshold_are_left_out(tmp_path, threshold, texts):
    (tmp_path / "probes").mkdir()
    rows = [{"text": text, "score": score} for text, score in zip("abcd", (0, 1, 3, 4))]
    (tmp_path / "probes/train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = load_texts(tmp_path, "train", Probes(unsafe_score=threshold))
    assert "".join(found.texts) == texts and found.unsafe.tolist() == [text != "a" for text in texts]


def test_a_text_that_trains_and_tests_a_probe_is_refused(tmp_path):
    config = Probes(train_per_class=1, unsafe_score=3)
    (tmp_path / "probes").mkdir()
    for split in ("train", "test"):
        rows = [{"text": f"{split} {score}", "score": score} for score in (0, 4, 1)]
        (tmp_path / f"probes/{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    check_texts(tmp_path, config)
    with open(tmp_path / "probes/train.jsonl", "a") as file:
        file.write('{"text": "test 4", "score": 0}\n{"text": "test 1", "score": 0}\n')
    with pytest.raises(UserError, match=r"/probes: 1 texts are in train and in test, such as 'test 4'; remove them from one"):
        check_texts(tmp_path, config)


@pytest.mark.parametrize(
    "row, words",
    [
        ('{"text": "b"}', "probes/train.jsonl: line 1 has text 'b' and score 'None'; a row has a text"),
        ('{"text": "a", "score": "high"}', "line 1 has text 'a' and score 'high'; a row has a text"),
        ('{"text": "a", "score": 7}', "line 1 has text 'a' and score '7'"),
        ('{"text": ["a"], "score": 0}', r"line 1 has text \['a'\] and score '0'"),
        ('{"text": "\\udc80", "score": 0}', r"line 1 has text '\\udc80' and score '0'"),
    ],
)
def test_a_row_without_a_text_or_a_score_is_refused(tmp_path, row, words):
    (tmp_path / "probes").mkdir()
    (tmp_path / "probes/train.jsonl").write_text(row + "\n")
    with pytest.raises(UserError, match=words):
        load_texts(tmp_path, "train", Probes())
