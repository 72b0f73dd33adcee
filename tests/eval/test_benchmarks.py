"""Benchmark loaders: small files of every published shape, and the published files where they are at hand."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from curriculum.errors import UsageError, UserError
from eval.benchmarks import load_prompts

REAL = os.environ.get("CURRICULA_DATA")
needs_data = pytest.mark.skipif(not REAL, reason="set CURRICULA_DATA to the folder of public datasets")


@pytest.fixture
def root(tmp_path):
    files = {
        "harmbench/harmbench_behaviors_text_test.csv": (
            "Behavior,FunctionalCategory,SemanticCategory,Tags,ContextString,BehaviorID\n"
            "Do the first thing,standard,illegal,,,first\n"
            "Explain the tool,contextual,illegal,context,A tool with a handle.,second\n"
            'Recite the song,copyright,copyright,"lyrics, hash_check",,third\n'
        ),
        "advbench/harmful_behaviors.csv": (
            'goal,target\nWrite a script,"Sure, here is a script"\nPlan a trick,"Sure, here is a trick"\n'
        ),
        "jailbreakbench/harmful-behaviors.csv": (
            ",Goal,Target,Behavior,Category,Source\n7,Do it,Sure,Trick,Harm,Original\n"
        ),
        "tdc2023/test_behaviors.json": json.dumps(["Give a reason", "Name a place"]),
        "stanford_alpaca/alpaca_instructions_noinput.json": json.dumps(
            [{"instruction": f"Name {i} things.", "category": None} for i in range(50)]
        ),
        "jb_completions/train.jsonl": json.dumps(
            {"original_behavior": "Write it", "completion_behavior": "It was written ", "source_dataset": "AdvBench"}
        )
        + "\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_harmbench_puts_the_context_before_the_request_and_leaves_copyright_rows_out(root):
    first, second = load_prompts("harmbench", root)
    assert (first.id, first.text, first.behavior, first.category) == (
        "first",
        "Do the first thing",
        "Do the first thing",
        "illegal",
    )
    assert second.text == "A tool with a handle.\n\n---\n\nExplain the tool"
    assert (second.behavior, second.context) == ("Explain the tool", "A tool with a handle.")
    assert [p.id for p in load_prompts("harmbench", root, with_copyright=True)] == ["first", "second", "third"]


def test_the_other_shapes_become_prompts(root):
    assert [(p.id, p.text) for p in load_prompts("advbench", root)] == [("0", "Write a script"), ("1", "Plan a trick")]
    assert [(p.id, p.text, p.category) for p in load_prompts("jailbreakbench", root)] == [("7", "Do it", "Harm")]
    assert [(p.id, p.behavior) for p in load_prompts("tdc", root)] == [("0", "Give a reason"), ("1", "Name a place")]
    (completion,) = load_prompts("jb_completions", root)
    assert (completion.text, completion.behavior, completion.category) == ("It was written", "Write it", "AdvBench")


def test_without_the_completions_file_advbench_targets_stand_in_and_say_so(root):
    (root / "jb_completions/train.jsonl").unlink()
    first, _ = load_prompts("jb_completions", root)
    assert (first.benchmark, first.text, first.behavior) == (
        "advbench_completions",
        "Here is a script",
        "Write a script",
    )


def test_a_limit_takes_a_sample_that_larger_limits_contain(root):
    ids = {limit: [p.id for p in load_prompts("alpaca", root, limit=limit)] for limit in (5, 10, 50, 80)}
    assert set(ids[5]) < set(ids[10]) < set(ids[50])
    assert ids[50] == ids[80] == [str(i) for i in range(50)]
    assert ids[10] == sorted(ids[10], key=int)
    assert ids[10] != [str(i) for i in range(10)]


@pytest.mark.parametrize(
    "name, file, text, words",
    [
        ("tdc", "tdc2023/test_behaviors.json", None, "tdc2023/test_behaviors: no such table"),
        ("tdc", "tdc2023/test_behaviors.json", "[]", "holds no prompt for benchmark tdc; fetch it again"),
        (
            "advbench",
            "advbench/harmful_behaviors.csv",
            "aim\nx\n",
            r"row 1 has no column 'goal' or 'prompt', only \['aim'\]",
        ),
        (
            "jailbreakbench",
            "jailbreakbench/harmful-behaviors.csv",
            "Index,Goal\n1,a\n1,b\n",
            "1 prompts repeat the id of another",
        ),
    ],
)
def test_a_file_that_is_missing_empty_or_of_another_shape_is_named(root, name, file, text, words):
    if text is None:
        (root / file).unlink()
    else:
        (root / file).write_text(text)
    with pytest.raises(UserError, match=words):
        load_prompts(name, root)


def test_an_unknown_benchmark_is_answered_with_the_known_ones(root):
    with pytest.raises(UsageError, match="'harmbanch' is not known; choose from harmbench, advbench"):
        load_prompts("harmbanch", root)


@needs_data
def test_the_published_files_have_the_published_counts():
    root = Path(REAL)
    counts = {
        name: len(load_prompts(name, root)) for name in ("harmbench", "advbench", "jailbreakbench", "tdc", "alpaca")
    }
    assert counts == {"harmbench": 240, "advbench": 520, "jailbreakbench": 100, "tdc": 50, "alpaca": 31323}
    assert len(load_prompts("harmbench", root, with_copyright=True)) == 320
    contextual = [p for p in load_prompts("harmbench", root) if p.context]
    assert len(contextual) == 81
    assert all(p.text.startswith(p.context.strip()[:20]) and p.text.endswith(p.behavior) for p in contextual)
    if not (root / "jb_completions").exists():
        completions = load_prompts("jb_completions", root)
        assert len(completions) == 520
        assert not any(p.text.startswith("Sure") for p in completions)
