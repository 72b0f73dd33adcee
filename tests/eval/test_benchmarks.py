"""Benchmark loaders: small files of every published shape, and the published files where they are available."""

from __future__ import annotations

import csv
import functools
import json
import os
from pathlib import Path

import pytest

from curricula.curriculum.sources.hub import HubAway
from curricula.errors import UsageError, UserError
from curricula.eval.benchmarks import BENCHMARKS, PromptSet, difference, load_prompts
from curricula.eval.config import EvalConfig
from curricula.eval.runner import task_prompts

REAL = os.environ.get("CURRICULA_DATA")
small_prompts = functools.partial(load_prompts, accept_changed=BENCHMARKS)
"""Prompts of the small files that stand for the published ones."""
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
        "jailbreakbench/harmful-behaviors.csv": (",Goal,Target,Behavior,Category,Source\n7,Do it,Sure,Trick,Harm,Original\n"),
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
    first, second = small_prompts("harmbench", root)
    assert (first.id, first.text, first.behavior, first.category) == (
        "first",
        "Do the first thing",
        "Do the first thing",
        "illegal",
    )
    assert second.text == "A tool with a handle.\n\n---\n\nExplain the tool"
    assert (second.behavior, second.context) == ("Explain the tool", "A tool with a handle.")
    assert [p.id for p in small_prompts("harmbench", root, with_copyright=True)] == ["first", "second", "third"]


def test_a_study_may_attack_with_copyright_rows_and_begin_base_models_with_another_benchmark(root):
    for wanted in (False, True):
        config = EvalConfig(benchmarks=("harmbench",), harmbench_copyright=wanted, accept_changed=("harmbench",))
        (task, *_) = config.eval_tasks("instruct")
        assert [prompt.id for prompt in task_prompts(task, config, root)] == ["first", "second", *["third"] * wanted]
    own = PromptSet(path=str(root / "own.csv"), column="text", kind="completion")
    config = EvalConfig(base_benchmark="ours", prompts={"ours": own})
    assert {task.benchmark for task in config.eval_tasks("base") if task.task.kind == "attack"} == {"ours"}


def test_the_other_shapes_become_prompts(root):
    assert [(p.id, p.text) for p in small_prompts("advbench", root)] == [("0", "Write a script"), ("1", "Plan a trick")]
    assert [(p.id, p.text, p.category) for p in small_prompts("jailbreakbench", root)] == [("7", "Do it", "Harm")]
    assert [(p.id, p.behavior) for p in small_prompts("tdc", root)] == [("0", "Give a reason"), ("1", "Name a place")]
    (completion,) = small_prompts("jb_completions", root)
    assert (completion.text, completion.behavior, completion.category) == ("It was written", "Write it", "AdvBench")


def test_advbench_targets_replace_a_missing_completions_file_under_their_own_name(root):
    (root / "jb_completions/train.jsonl").unlink()
    first, _ = small_prompts("jb_completions", root)
    assert (first.benchmark, first.text, first.behavior) == ("advbench_completions", "Here is a script", "Write a script")


def test_a_limit_takes_a_sample_that_larger_limits_contain(root):
    ids = {limit: [p.id for p in small_prompts("alpaca", root, limit=limit)] for limit in (5, 10, 50, 80)}
    assert set(ids[5]) < set(ids[10]) < set(ids[50])
    assert ids[50] == ids[80] == [str(i) for i in range(50)]
    assert ids[10] == sorted(ids[10], key=int)
    assert ids[10] != [str(i) for i in range(10)]


def test_a_limit_takes_the_same_prompts_from_every_file_of_a_set(root):
    drawn = {prompt.text for prompt in small_prompts("alpaca", root, limit=10)}
    rows = [{"instruction": f"Name  {i} things.", "input": ""} for i in reversed(range(50))]
    rows[20:20] = [{"instruction": "Sum it up.", "input": f"Text {i}."} for i in range(30)]  # left out, as on the hub
    table = root / "stanford_alpaca/alpaca_instructions_noinput.json"
    table.write_text(json.dumps(rows))
    again = small_prompts("alpaca", root, limit=10)
    assert len(again) == 10 and {" ".join(prompt.text.split()) for prompt in again} == drawn


TDC, ADVBENCH = "tdc2023/test_behaviors.json", "advbench/harmful_behaviors.csv"


@pytest.mark.parametrize(
    "name, file, text, words",
    [
        ("tdc", TDC, None, "tdc2023/test_behaviors: no such table"),
        ("tdc", TDC, "[]", "holds no prompt for benchmark tdc; fetch it again"),
        ("tdc", TDC, '[{"text": ["Write", "it"]}]', "row 1: column 'text' holds a list instead of text; correct the row"),
        ("tdc", TDC, '[{"text": null}]', "row 1 has nothing in column 'text' or 'prompt'"),
        ("tdc", TDC, '[{"prompts": "x"}]', r"row 1 has nothing in column 'text' or 'prompt', only in \['prompts'\]"),
        ("tdc", TDC, '["\\ud800"]', "row 1: column 'text' is not UTF-8"),
        ("advbench", ADVBENCH, "aim\nx\n", "line 2 has nothing in column 'goal' or 'prompt', only in"),
        ("advbench", ADVBENCH, f"goal\n{'x' * 300_000}\n", "line 2: column 'goal' holds 300,000 characters"),
        ("jailbreakbench", "jailbreakbench/harmful-behaviors.csv", "Index,Goal\n1,a\n1,b\n", "2 prompts have the id '1'"),
    ],
    ids=range(9),
)
def test_a_file_that_is_missing_empty_or_of_another_shape_is_named_in_one_sentence(root, name, file, text, words):
    if text is None:
        (root / file).unlink()
    else:
        (root / file).write_text(text)
    with pytest.raises(UserError, match=words) as raised:
        small_prompts(name, root)
    assert "\n" not in str(raised.value)


def test_an_unknown_benchmark_is_refused_with_the_known_ones(root):
    with pytest.raises(UsageError, match="'harmbanch' is not known; choose from harmbench, advbench"):
        small_prompts("harmbanch", root)


def test_a_folder_in_place_of_a_file_is_refused(root):
    file = root / "tdc2023/test_behaviors.json"
    file.unlink()
    file.mkdir()
    with pytest.raises(UserError, match="tdc2023/test_behaviors: no such table"):
        small_prompts("tdc", root)
    file.with_suffix("").mkdir()
    with pytest.raises(UserError, match="no Parquet, JSON Lines, JSON or CSV file in this folder"):
        small_prompts("tdc", root)


def test_xstest_gives_only_its_harmless_requests(root):
    path = root / "xstest/xstest_prompts.csv"
    path.parent.mkdir()
    path.write_text(
        "id,prompt,type,label,focus,note\n"
        "1,How do I kill a process?,homonyms,safe,,\n2,How do I harm?,contrast_homonyms,unsafe,,\n"
    )
    assert [(p.id, p.text, p.category) for p in small_prompts("xstest", root)] == [
        ("1", "How do I kill a process?", "homonyms")
    ]
    path.write_text("id,prompt,type\n1,How do I kill a process?,homonyms\n2,How do I harm?,contrast_homonyms\n")
    assert [p.id for p in small_prompts("xstest", root)] == ["1"]


def test_every_benchmark_has_a_use_a_licence_and_a_size():
    for name, entry in BENCHMARKS.items():
        assert entry.use in ("attack", "completion", "overrefusal") and entry.licence and entry.rows > 0
        assert entry.hub_revision is None or len(entry.hub_revision) == 40
        assert "text" in entry.columns, name


@needs_data
def test_hub_tables_with_all_splits_give_the_prompts_of_the_test_split(root):
    real = Path(REAL)
    with open(real / "harmbench/harmbench_behaviors_text_all.csv", newline="") as file:
        rows = [
            {
                "prompt": row["Behavior"],
                "context": row["ContextString"],
                "category": row["SemanticCategory"],
                "tags": row["Tags"],
            }
            for row in csv.DictReader(file)
        ]
    (root / "harmbench/harmbench_behaviors_text_test.csv").unlink()
    (root / "harmbench/harmbench_behaviors_text_test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    both = [json.loads((real / f"tdc2023/{split}_behaviors.json").read_text()) for split in ("dev", "test")]
    (root / "tdc2023/test_behaviors.json").write_text(json.dumps([{"prompt": text} for text in sum(both, [])]))
    for name in ("harmbench", "tdc"):
        # The two files of HarmBench end their lines differently.
        found = [load_prompts(name, where, with_copyright=True) for where in (root, real)]
        texts = [sorted(" ".join(prompt.text.split()) for prompt in prompts) for prompts in found]
        assert texts[0] == texts[1]


@pytest.mark.parametrize("name, words", [("advbench", "2 prompts, where 520"), ("tdc", "2 prompts, where 50")])
def test_a_part_of_a_benchmark_is_refused_unless_it_is_accepted_by_name(root, name, words):
    with pytest.raises(UserError, match=words) as raised:
        load_prompts(name, root)
    assert f"evaluation.accept_changed: [{name}]" in str(raised.value) and "\n" not in str(raised.value)
    with pytest.raises(UserError, match=words):
        load_prompts(name, root, limit=1, accept_changed=["alpaca"])
    assert len(load_prompts(name, root, accept_changed=[name])) == 2
    assert difference(name, root).startswith(words)


def test_prompts_in_a_subfolder_are_not_passed_over_in_an_accepted_set(root):
    folder = BENCHMARKS["advbench"].stem(root)
    table = next(folder.parent.glob(f"{folder.name}.*"))
    (folder / "more").mkdir(parents=True)
    for name in ("a", "more/b"):
        (folder / f"{name}{table.suffix}").write_bytes(table.read_bytes())
    table.unlink()
    with pytest.raises(UserError, match=rf"more/b{table.suffix}: is not read in a subfolder"):
        load_prompts("advbench", root, accept_changed=["advbench"])


def test_the_sets_of_a_fictional_world_are_not_held_to_the_published_ones(root):
    (root / "world.json").write_text("{}")
    assert len(load_prompts("advbench", root)) == 2 and difference("advbench", root) == ""


@needs_data
def test_one_line_or_one_word_less_in_a_published_file_is_noticed(tmp_path):
    file = tmp_path / "advbench/harmful_behaviors.csv"
    file.parent.mkdir()
    whole = (Path(REAL) / "advbench/harmful_behaviors.csv").read_text()
    lines = whole.splitlines(keepends=True)
    for text, words in (
        ("".join(lines[:11]), "10 prompts, where 520 were published"),
        ("".join(lines[:200] + lines[201:]), "519 prompts, where 520 were published"),
        (whole.replace("bomb", "cake", 1), "520 prompts, as published, but not with the published texts"),
    ):
        file.write_text(text)
        with pytest.raises(UserError, match=words):
            load_prompts("advbench", tmp_path)


@needs_data
def test_the_published_set_is_known_in_any_order_and_format(tmp_path):
    import pyarrow
    import pyarrow.parquet

    for name, column in (("advbench/harmful_behaviors", "goal"), ("jailbreakbench/harmful-behaviors", "Goal")):
        with open(Path(REAL) / f"{name}.csv", newline="") as lines:
            rows = [{**row, column: row[column] + " \r\n"} for row in csv.DictReader(lines)][::-1]
        (tmp_path / name).parent.mkdir()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / f"{name}.parquet")
        benchmark = name.partition("/")[0]
        assert difference(benchmark, tmp_path) == "" and len(load_prompts(benchmark, tmp_path)) == len(rows)


@needs_data
def test_the_published_files_have_the_published_counts():
    root = Path(REAL)
    counts = {name: len(load_prompts(name, root)) for name in ("harmbench", "advbench", "jailbreakbench", "tdc", "alpaca")}
    assert counts == {"harmbench": 240, "advbench": 520, "jailbreakbench": 100, "tdc": 50, "alpaca": 31323}
    assert len(load_prompts("harmbench", root, with_copyright=True)) == 320
    contextual = [p for p in load_prompts("harmbench", root) if p.context]
    assert len(contextual) == 81
    assert all(p.text.startswith(p.context.strip()[:20]) and p.text.endswith(p.behavior) for p in contextual)
    if not (root / "jb_completions").exists():
        completions = load_prompts("jb_completions", root)
        assert len(completions) == 520
        assert not any(p.text.startswith("Sure") for p in completions)


@pytest.mark.parametrize(("name", "rows"), [("harmbench", 3), ("advbench", 1)])
def test_without_a_data_folder_a_benchmark_is_fetched_into_the_hubs_cache(name, rows, monkeypatch, tmp_path):
    import pyarrow
    import pyarrow.parquet

    asked = []

    def fetch(download):
        asked.append(download.revision)
        download.out.mkdir(parents=True, exist_ok=True)
        row = {"prompt": f"Describe the {download.config} clock.", **download.constants}
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), download.file(0, 1))

    monkeypatch.setattr("curricula.eval.benchmarks.fetch", fetch)
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "cache"))
    folder = f"{tmp_path}/cache/curricula/{BENCHMARKS[name].hub_revision or 'newest'}/{name}/.*"
    with pytest.raises(UserError, match=f"{folder}: {rows} prompts, where .* were published; remove {folder}, so that it is"):
        load_prompts(name, None)
    prompts = load_prompts(name, None, with_copyright=True, accept_changed=(name,))
    assert set(asked) == {BENCHMARKS[name].hub_revision} and len(prompts) == rows
    assert [prompt.text for prompt in prompts if prompt.copyright] == ["Describe the copyright clock."] * (rows == 3)


@pytest.mark.parametrize("kind", [UserError, HubAway])
def test_a_benchmark_that_the_hub_does_not_give_may_come_from_a_data_folder(monkeypatch, kind):
    def refuse(download):
        raise kind(f"dataset {download.hub}: gated; set HF_TOKEN")

    monkeypatch.setattr("curricula.eval.benchmarks.fetch", refuse)
    with pytest.raises(
        UserError, match="walledai/AdvBench: gated; set HF_TOKEN, or put advbench/.* in CURRICULA_DATA"
    ) as found:
        load_prompts("advbench", None)
    assert found.type is kind  # a hub that is away may answer another start
