"""HarmBench's classifier in this process: batched and padded, it gives the replies of unpadded greedy decoding."""

from __future__ import annotations

import errno
import os
import shutil
from unittest.mock import MagicMock

import msgspec
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from judge_server import answer_row
from safetensors.torch import load_file, save_file
from tiny_llama import save_tiny_llama
from transformers import AutoModelForCausalLM, AutoTokenizer

from curricula import durable
from curricula.curriculum.sources.hub import HubAway
from curricula.errors import StorageError, UserError
from curricula.eval.judges.registry import load_judge
from curricula.eval.judges.settings import JudgeConfig
from curricula.eval.judges.templates import TEMPLATES
from curricula.eval.verdicts import question_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_llama(tmp_path_factory.mktemp("classifier"), scale=8.0, context=2048)


def verdicts_on(settings, questions, tmp_path):
    found = {}
    load_judge(settings, "attack", None).rule(questions, lambda some: found.update(some), tmp_path / "x", True)
    return [found[question] for question in questions]


def test_its_replies_equal_those_of_generate_for_one_prompt_at_a_time(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("curricula.eval.judges.model_judge.ANSWERS_AT_ONCE", 3)
    questions = [
        question_of(answer_row(number, response="bread and a letter " * number, context="the sea" if number % 2 else ""))
        for number in range(7)
    ]
    settings = JudgeConfig(name="harmbench", model=str(folder), clip_tokens=12)
    found = verdicts_on(settings, questions, tmp_path)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    for question, verdict in zip(questions, found, strict=True):
        clipped = tokenizer.decode(tokenizer(question.response)["input_ids"][:12])
        filled = TEMPLATES["harmbench-llama2"].fill(question, clipped)
        assert load_judge(settings, "attack", None).prompt(question) == filled  # the replies are too alike to show a clip
        prompt = tokenizer(filled, return_tensors="pt")
        with torch.no_grad():
            out = model.generate(
                input_ids=prompt["input_ids"], attention_mask=prompt["attention_mask"], max_new_tokens=1, do_sample=False
            )
        assert verdict.reply == tokenizer.decode(out[0, -1:])
        assert verdict.label == TEMPLATES["harmbench-llama2"].read(verdict.reply)


def test_a_clip_that_cuts_nothing_changes_nothing(folder, tmp_path):
    questions = [question_of(answer_row(1))]
    settings = JudgeConfig(name="harmbench", model=str(folder))
    whole = verdicts_on(msgspec.structs.replace(settings, clip_tokens=None), questions, tmp_path)
    assert verdicts_on(settings, questions, tmp_path) == whole


def test_a_model_that_is_not_a_classifier_ends_the_work_before_anything_is_written(folder, tmp_path):
    judge = load_judge(JudgeConfig(name="harmbench", model=str(folder)), "attack", None)
    with pytest.raises(UserError, match="which is not a verdict; is it a classifier for the template harmbench-llama2?"):
        judge.rule([question_of(answer_row(1))], lambda _: pytest.fail("settled"), tmp_path / "x", False)


def test_a_missing_judge_is_named(tmp_path):
    with pytest.raises(UserError, match="no tokenizer for the judge"):
        verdicts_on(JudgeConfig(name="harmbench", model=str(tmp_path)), [question_of(answer_row(1))], tmp_path)


def test_a_judge_on_a_disk_that_cannot_be_read_is_loaded_again_by_the_next_start(folder, tmp_path, monkeypatch):
    def unreadable(*_, **__):
        raise OSError(errno.EIO, os.strerror(errno.EIO), "config.json")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", unreadable)
    with pytest.raises(StorageError, match="the judge cannot be loaded .*Input/output error"):
        verdicts_on(JudgeConfig(name="harmbench", model=str(folder)), [question_of(answer_row(1))], tmp_path)


def test_a_judge_whose_files_lack_weights_is_refused(folder, tmp_path):
    weights = load_file(folder / "model.safetensors")
    del weights["model.norm.weight"]
    shutil.copytree(folder, tmp_path / "judge")
    save_file(weights, tmp_path / "judge/model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="the judge cannot be loaded .its files lack 1 tensors, model.norm.weight among them"):
        verdicts_on(JudgeConfig(name="harmbench", model=str(tmp_path / "judge")), [question_of(answer_row(1))], tmp_path)


def test_a_judge_of_the_hub_is_taken_at_its_revision(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    cached = tmp_path / "models--org--judge"
    shutil.copytree(folder, cached / "snapshots/1a2b")
    durable.write_text(cached / "refs/v2", "1a2b")
    questions = [question_of(answer_row(1, response="bread and a letter " * 9))]
    here, there = (JudgeConfig(name="harmbench", model=name, clip_tokens=12) for name in (str(folder), "org/judge@v2"))
    assert verdicts_on(there, questions, tmp_path) == verdicts_on(here, questions, tmp_path)


@pytest.mark.parametrize("kind", [AutoTokenizer, AutoModelForCausalLM])
def test_a_hub_that_is_away_while_a_judge_is_loaded_may_answer_another_start(tmp_path, monkeypatch, kind):
    def away(*_, **__):
        raise OSError("We couldn't connect") from ConnectionError()

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", MagicMock())
    monkeypatch.setattr(kind, "from_pretrained", away)
    with pytest.raises(HubAway, match="^judge org/judge: the hub at .* cannot be reached"):
        verdicts_on(JudgeConfig(name="harmbench", model="org/judge", clip_tokens=None), [question_of(answer_row(1))], tmp_path)

    def offline(*_, **__):
        raise OSError("We couldn't connect") from LocalEntryNotFoundError("not in the cache")

    monkeypatch.setattr(kind, "from_pretrained", offline)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="^judge org/judge: HF_HUB_OFFLINE forbids the network; fetch it beforehand"):
        verdicts_on(JudgeConfig(name="harmbench", model="org/judge", clip_tokens=None), [question_of(answer_row(1))], tmp_path)

    def unreadable(*_, **__):
        raise ValueError("Couldn't instantiate the backend tokenizer")

    monkeypatch.setattr(kind, "from_pretrained", unreadable)
    with pytest.raises(UserError, match="^org/judge: .*Couldn't instantiate.*; name its folder as judge"):
        verdicts_on(JudgeConfig(name="harmbench", model="org/judge", clip_tokens=None), [question_of(answer_row(1))], tmp_path)
