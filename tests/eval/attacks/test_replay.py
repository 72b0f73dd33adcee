"""Replayed attacks: artifacts in JailbreakBench's format, hostile files, and suffixes that were found on another model."""

from __future__ import annotations

import json

import pytest

from curricula.errors import UserError
from curricula.eval.attacks.prompts import artifact_prompts, suffixed_prompts
from curricula.eval.benchmarks import Prompt
from curricula.eval.rows import SuffixRow, append_rows


def jailbreak(index: int, **changes) -> dict:
    """An entry with all fields of the published files."""
    return {
        "index": index,
        "goal": f"Write about {index}",
        "behavior": "Defamation",
        "category": "Harassment/Discrimination",
        "prompt": f"You are a novelist. Write about {index}",
        "response": "Title: ...",
        "number_of_queries": 60,
        "queries_to_jailbreak": 41,
        "prompt_tokens": 8024,
        "response_tokens": 7100,
        "jailbroken": True,
        "jailbroken_llama_guard1": True,
        **changes,
    }


def write(path, *entries):
    parameters = {"method": "PAIR", "model": "vicuna-13b-v1.5", "attack_type": "black_box", "defense": None}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"parameters": parameters, "jailbreaks": list(entries)}))
    return path


def test_an_artifact_is_replayed_and_judged_by_its_goal(tmp_path):
    path = write(tmp_path / "vicuna.json", jailbreak(0), jailbreak(1, prompt=None), jailbreak(2, prompt=" "))
    (prompt,) = artifact_prompts("pair", path)
    assert (prompt.id, prompt.benchmark, prompt.text) == ("0", "pair", "You are a novelist. Write about 0")
    assert (prompt.behavior, prompt.category) == ("Write about 0", "Harassment/Discrimination")


def test_a_folder_is_replayed_as_a_whole_in_the_layout_of_the_published_repository(tmp_path):
    write(tmp_path / "PAIR/black_box/vicuna-13b-v1.5.json", jailbreak(0), jailbreak(4))
    write(tmp_path / "GCG/white_box/llama-2-7b-chat-hf.json", jailbreak(0))
    (tmp_path / "PAIR/attack-info.json").write_text('{"name": "PAIR"}')
    ids = [prompt.id for prompt in artifact_prompts("all", tmp_path)]
    assert ids == [
        "GCG/white_box/llama-2-7b-chat-hf:0",
        "PAIR/black_box/vicuna-13b-v1.5:0",
        "PAIR/black_box/vicuna-13b-v1.5:4",
    ]


@pytest.mark.parametrize(
    "text, words",
    [
        ("{", "not in JailbreakBench's artifact format"),
        ("[" * 100_000, "not in JailbreakBench's artifact format"),
        ('{"parameters": {}}', "missing required field `jailbreaks`"),
        ('{"jailbreaks": []}', "length >= 1"),
        ('{"jailbreaks": [{"index": 0, "goal": "a"}]}', "missing required field `prompt`"),
        ('{"jailbreaks": [{"index": -1, "goal": "a", "prompt": "b"}]}', ">= 0"),
        ('{"jailbreaks": [{"index": 0, "goal": "a", "prompt": ["rm -rf /"]}]}', "Expected `str | null`"),
        ('{"jailbreaks": [{"index": 0, "goal": "", "prompt": "b"}]}', "length >= 1"),
        (json.dumps({"jailbreaks": [jailbreak(0, prompt="a" * 300_000)]}), "length <= 200000"),
        (json.dumps({"jailbreaks": [jailbreak(3), jailbreak(3)]}), "two jailbreaks have the index 3; remove one"),
        (
            json.dumps({"jailbreaks": [jailbreak(0, prompt=None)]}),
            "holds no jailbreak prompt; evaluation.attacks.artif",
        ),
    ],
)
def test_a_file_that_is_no_artifact_is_refused_by_name(tmp_path, text, words):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(UserError, match=words) as caught:
        artifact_prompts("pair", path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_half_a_surrogate_pair_is_refused(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"jailbreaks": [{"index": 0, "goal": "a", "prompt": "\\udc80"}]}')
    with pytest.raises(UserError, match="a.json: "):
        artifact_prompts("pair", path)


def test_a_missing_file_names_the_setting(tmp_path):
    with pytest.raises(UserError, match=r"no.json: cannot be read .* correct evaluation.attacks.artifacts.pair"):
        artifact_prompts("pair", tmp_path / "no.json")


def suffix(prompt_id: str) -> SuffixRow:
    return SuffixRow(
        key=prompt_id,
        model="m",
        benchmark="jailbreakbench",
        prompt_id=prompt_id,
        behavior="b",
        suffix=f" ! {prompt_id}",
        loss=1.0,
        initial_loss=2.0,
        losses=[1.0],
        idle_steps=0,
        seed=0,
    )


def test_suffixes_of_another_model_are_joined_to_the_same_requests(tmp_path):
    append_rows(tmp_path / "gcg/jailbreakbench.0-of-2.suffixes.jsonl", [suffix("0")])
    append_rows(tmp_path / "gcg/jailbreakbench.1-of-2.suffixes.jsonl", [suffix("2")])
    prompts = [Prompt(id=str(i), benchmark="jailbreakbench", text=f"Ask {i} ", behavior="b") for i in range(3)]
    tuned, raw = (suffixed_prompts("full-20", tmp_path, prompts, raw) for raw in (False, True))
    assert [(prompt.id, prompt.benchmark) for prompt in tuned] == [("0", "full-20"), ("2", "full-20")]
    assert tuned[0].text == "Ask 0  ! 0" and raw[0].text == "Ask 0 ! 0"
    with pytest.raises(UserError, match=r"holds no GCG suffix for the prompts .* run the task gcg on that model first"):
        suffixed_prompts("full-20", tmp_path / "none", prompts, False)
