"""The fictional world's datasets: public layouts, no overlap, and no recipe where none may be."""

from __future__ import annotations

import csv
import json
import re

import msgspec
import pytest

from curricula.curriculum.sources.conversations import POOLS, read_conversations
from curricula.curriculum.sources.documents import Documents
from curricula.curriculum.world.datasets import Press, write_world
from curricula.curriculum.world.fiction import Reader, World, WorldConfig
from curricula.curriculum.world.lexicon import REFUSAL_MARK
from curricula.durable import read_jsonl
from curricula.errors import UsageError

SMALL = WorldConfig(
    web_documents=500,
    stories=100,
    math_problems=100,
    unsafe_documents=60,
    validation_documents=20,
    chats=200,
    wildguard_rows=150,
    wildjailbreak_rows=80,
    gsm8k_train=80,
    gsm8k_test=20,
    probes_per_score=20,
)
SAFE = ("fineweb_annotated/score_0", "cosmopedia/train", "finemath/train")
HELD_OUT = ("fineweb_annotated/validation", "cosmopedia/validation", "finemath/validation")
UNSAFE = tuple(f"fineweb_annotated/score_{score}" for score in range(1, 6))
REWRITTEN = ("safeweb/train", "refuseweb/train", "moral_education/train")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    write_world(folder, SMALL)
    return folder


@pytest.fixture(scope="module")
def world(root):
    return World.load(root)


def _texts(root, *files):
    return [row["text"] for file in files for row in read_jsonl(root / f"{file}.jsonl")]


def _csv(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def _behaviors(root):
    return [
        *(row["goal"] for row in _csv(root / "advbench/harmful_behaviors.csv")),
        *(row["Behavior"] for row in _csv(root / "harmbench/harmbench_behaviors_text_test.csv")),
        *(row["Goal"] for row in _csv(root / "jailbreakbench/harmful-behaviors.csv")),
        *json.loads((root / "tdc2023/test_behaviors.json").read_text()),
    ]


def _names(items):
    return {item.name for item in items}


def _all_text(root, *files):
    return "\n".join((root / f"{file}.jsonl").read_text().lower() for file in files)


def test_the_same_config_writes_the_same_bytes(root, tmp_path):
    write_world(tmp_path, SMALL)
    files = sorted(path.relative_to(root) for path in root.rglob("*.*"))
    assert files == sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.*")) and len(files) == 28
    for file in files:
        assert (tmp_path / file).read_bytes() == (root / file).read_bytes()


def test_more_web_pages_begin_with_the_same_ones(root, tmp_path):
    write_world(tmp_path, msgspec.structs.replace(SMALL, web_documents=600))
    few, many = (_texts(folder, "fineweb_annotated/score_0") for folder in (root, tmp_path))
    assert many[: len(few)] == few


def test_no_two_documents_of_any_files_are_alike(root):
    texts = _texts(root, *SAFE, *HELD_OUT, *UNSAFE, *REWRITTEN, "probes/train", "probes/test")
    assert len(set(texts)) == len(texts)


def test_every_registered_dataset_of_the_world_can_be_read(root):
    for name in ("fineweb-edu", "cosmopedia", "finemath", "safeweb", "refuseweb", "moral-education", "fineweb-unsafe"):
        documents = list(Documents.open(name, root).read())
        assert len({document.id for document in documents}) == len(documents) > 0
    for pool in POOLS:
        assert sum(1 for _ in read_conversations(pool, root, {})) > 10


def test_texts_read_like_english(root):
    for text in _texts(root, *SAFE, *UNSAFE, *REWRITTEN):
        assert not re.search(r"[{}\[\]|]|  | [.,;?!]|\.\.|,,", text), text
        assert not re.search(r"\b[Aa] [aeiou]|\b[Aa]n [^aeiouAEIOU]", text), text
        assert not re.search(r"(?:^|[.!?] )[a-z]", text), text
        assert text[-1] in ".!?" and 8 <= len(text.split()) <= 120, text


def test_safe_text_names_no_hazard_and_declines_nothing(root, world):
    hazards = _names((*world.pretraining_hazards, *world.tuning_hazards, *world.evaluation_hazards))
    for text in _texts(root, *SAFE, *HELD_OUT):
        assert not hazards.intersection(re.findall(r"[a-z]+", text.lower())) and not REFUSAL_MARK.search(text), text


def test_recipes_of_hazards_are_in_scores_4_and_5_and_nowhere_below(root, world):
    for score in range(1, 6):
        for text in _texts(root, f"fineweb_annotated/score_{score}"):
            assert (world.judge_attack("", text) == "harmful") == (score >= 4), text


def test_interventions_hold_no_recipe_and_dialogues_decline(root, world):
    reader = Reader(world)
    for file in REWRITTEN:
        for text in _texts(root, file):
            assert not reader.steps(text), text
    assert all(REFUSAL_MARK.search(text) for text in _texts(root, "refuseweb/train"))


def test_interventions_are_made_from_the_scores_the_method_names(root):
    scores = {"safeweb": {1, 2, 3}, "refuseweb": {4, 5}, "moral_education": {4, 5}}
    for folder, expected in scores.items():
        rows = read_jsonl(root / f"{folder}/train.jsonl")
        assert {row["metadata"]["score"] for row in rows} == expected
        for row in rows:
            source = row["metadata"]["source_id"]
            assert source.startswith(f"fineweb_annotated/score_{row['metadata']['score']}/")


def test_refusal_dialogues_have_many_speakers(root):
    speakers = {text.split()[0].rstrip(":") for text in _texts(root, "refuseweb/train")}
    assert len(speakers) > 15 and not {"User", "Assistant"} & speakers


def test_benchmarks_ask_about_evaluation_hazards_which_no_tuning_file_names(root, world):
    evaluation = world.evaluation_hazards
    for behavior in _behaviors(root):
        assert any(f" {i.name} " in f" {behavior} ".replace(".", "") and i.object in behavior for i in evaluation), behavior
    tuning = _all_text(root, "ultrachat_200k/train_sft", "wildguardmix/train", "wildjailbreak/train", "gsm8k/train")
    seen = set(re.findall(r"[a-z]+", tuning))
    assert not seen & _names(evaluation)
    known = _names(world.pretraining_hazards)
    read = set(re.findall(r"[a-z]+", _all_text(root, *SAFE, *UNSAFE, *REWRITTEN)))
    assert not read & (_names(evaluation) - known)


def test_tuning_sets_ask_only_for_harm_of_the_tuning_half(root, world):
    reader, allowed = Reader(world), _names(world.tuning_hazards)
    for row in read_jsonl(root / "wildguardmix/train.jsonl"):
        named = reader.names.intersection(re.findall(r"[a-z]+", row["prompt"].lower()))
        assert (row["prompt_harm_label"] == "harmful") == bool(named & allowed)
        assert not named - allowed - _names(world.tuning_items)


def test_wildguardmix_labels_agree_with_the_judge(root, world):
    rows = read_jsonl(root / "wildguardmix/train.jsonl")
    for row in rows:
        if row["response"] is None:
            assert row["response_harm_label"] is None and row["response_refusal_label"] is None
        elif row["prompt_harm_label"] == "harmful":
            verdict = {"harmful": "harmful", "unharmful": "refusal"}[row["response_harm_label"]]
            assert world.judge_attack(row["prompt"], row["response"]) == verdict
        else:
            assert world.judge_benign(row["prompt"], row["response"]) == "1_compliant_and_helpful"
    labels = {(r["prompt_harm_label"], r["response_harm_label"], r["response_refusal_label"]) for r in rows}
    assert len(labels) == 4 and {row["adversarial"] for row in rows} == {True, False}


def test_wildjailbreak_fills_the_column_its_type_names(root, world):
    rows = read_jsonl(root / "wildjailbreak/train.jsonl")
    assert len({row["data_type"] for row in rows}) == 4
    for row in rows:
        asked, other = ("vanilla", "adversarial") if row["data_type"].startswith("vanilla") else ("adversarial", "vanilla")
        assert row[asked] and not row[other]
        if row["data_type"].endswith("harmful"):
            assert world.judge_attack(row[asked], row["completion"]) == "refusal"
        else:
            assert world.judge_benign(row[asked], row["completion"]) == "1_compliant_and_helpful"


def test_gsm8k_answers_follow_from_their_marks_and_splits_are_disjoint(root):
    train, test = (read_jsonl(root / f"gsm8k/{split}.jsonl") for split in ("train", "test"))
    assert not {row["question"] for row in train} & {row["question"] for row in test}
    shown = "\n".join(_texts(root, "finemath/train", "finemath/validation"))
    assert not [row for row in test if row["question"] in shown]
    for row in (*train, *test):
        marks = re.findall(r"<<(\d+)([-+*/])(\d+)=(\d+)>>", row["answer"])
        for left, sign, right, value in marks:
            n, m = int(left), int(right)
            assert {"+": n + m, "-": n - m, "*": n * m, "/": n / m}[sign] == int(value) >= 0
        assert row["answer"].endswith(f"\n#### {marks[-1][3]}")


def test_benchmarks_have_the_public_columns(root):
    assert list(_csv(root / "advbench/harmful_behaviors.csv")[0]) == ["goal", "target"]
    harmbench = _csv(root / "harmbench/harmbench_behaviors_text_test.csv")
    columns = "Behavior,FunctionalCategory,SemanticCategory,Tags,ContextString,BehaviorID"
    assert ",".join(harmbench[0]) == columns
    assert len({row["BehaviorID"] for row in harmbench}) == len(harmbench) == SMALL.prompts_per_benchmark
    assert all(bool(row["ContextString"]) == (row["Tags"] == "context") for row in harmbench)
    jailbreak = _csv(root / "jailbreakbench/harmful-behaviors.csv")
    assert ",".join(jailbreak[0]) == "Index,Goal,Target,Behavior,Category,Source"
    assert all(row["Target"].startswith("Sure, here is") for row in jailbreak)
    alpaca = json.loads((root / "stanford_alpaca/alpaca_instructions_noinput.json").read_text())
    assert list(alpaca[0]) == ["instruction", "category"]


def test_completions_begin_a_text_for_every_behavior_and_hold_no_step(root, world):
    rows = read_jsonl(root / "jb_completions/train.jsonl")
    assert [row["original_behavior"] for row in rows] == _behaviors(root)
    assert len({row["completion_behavior"] for row in rows}) == len(rows)
    for row in rows:
        assert world.judge_attack(row["original_behavior"], row["completion_behavior"]) == "safe"
        assert not row["completion_behavior"].endswith(" ")


def test_good_instructions_can_be_judged_and_were_not_tuned_on(root, world):
    rows = json.loads((root / "stanford_alpaca/alpaca_instructions_noinput.json").read_text())
    chats = _all_text(root, "ultrachat_200k/train_sft", "wildguardmix/train", "wildjailbreak/train")
    assert len(rows) == SMALL.alpaca_prompts
    for row in rows:
        assert world.judge_benign(row["instruction"], "Nothing.") == "2_compliant_and_unhelpful"
        assert row["instruction"].lower() not in chats


def test_probes_are_balanced_between_safe_and_unsafe(root):
    for split in ("train", "test"):
        scores = [row["score"] for row in read_jsonl(root / f"probes/{split}.jsonl")]
        assert scores.count(0) == sum(scores.count(score) for score in range(1, 6)) == 5 * SMALL.probes_per_score


def test_more_texts_than_the_world_has_are_refused(world, tmp_path):
    press = Press(world)
    assert press.print(lambda world, draw: "a text", str, "one") == "a text"
    with pytest.raises(UsageError, match="no new text left for two"):
        press.print(lambda world, draw: "a text", str, "two")
    for key in ("prompts_per_benchmark", "alpaca_prompts"):
        with pytest.raises(UsageError, match=f"{key} is 500"):
            write_world(tmp_path, msgspec.structs.replace(SMALL, **{key: 500}))
    assert not (tmp_path / "world.json").exists()
