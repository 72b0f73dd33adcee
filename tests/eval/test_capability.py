"""Capability: lm_eval question by question, resumed exactly; task files that are data; intervals and the Pareto front."""

from __future__ import annotations

import copy
import dataclasses
import errno
import json
import math
import os
from types import SimpleNamespace

import numpy as np
import pyarrow
import pytest
from capability_tasks import CHOICES, write_tasks
from docs_examples import example
from hypothesis import given
from hypothesis import strategies as st
from tiny_llama import save_tiny_llama
from tokenizers.processors import TemplateProcessing

from curricula.curriculum.stream.pretraining import ValidationBatches
from curricula.curriculum.tokens.shards import write_shard
from curricula.curriculum.tokens.tokenizer import EOS, TAG, load_tokenizer, token_bytes, train_tokenizer
from curricula.errors import UserError
from curricula.eval.analysis.capability import (
    bits_estimates,
    bits_per_byte,
    capability_estimates,
    capability_metrics,
    lacking_tasks,
    pareto_front,
    study_capability,
)
from curricula.eval.analysis.metrics import Model
from curricula.eval.analysis.study_rows import ArmInfo, StudyRows
from curricula.eval.benchmarks import PromptSet
from curricula.eval.capability.harness import question_task, read_task, task_manager
from curricula.eval.capability.settings import LISTS, PUBLISHED, Capability
from curricula.eval.config import EvalConfig
from curricula.eval.models import load_model
from curricula.eval.report.page_tables import capability_tables
from curricula.eval.rows import CapabilityRow, read_rows
from curricula.eval.runner import run_element
from curricula.eval.tasks import TASKS, EvalTask
from curricula.jobs.cli.main import main

pytest.importorskip("lm_eval", reason="needs the extra lm-eval")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("capability")
    write_tasks(place / "tasks")
    return place, load_model(save_tiny_llama(place / "model", scale=6.0, tied=True), "base")


def measure(place, out, name="choices", **more):
    folder, loaded = place
    config = EvalConfig(capability=Capability(tasks=[name], folder=str(folder / "tasks"), batch=4, **more))
    return run_element(EvalTask(TASKS["capability"], name), loaded, config, data_root=None, out=out, seed=0)


@pytest.mark.parametrize("name", ["choices", "words"])
def test_rows_means_and_standard_errors_equal_lm_evals_own(place, tmp_path, name):
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    folder, loaded = place
    rows = measure(place, tmp_path, name)
    plain = simple_evaluate(
        model=HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer, backend="causal", batch_size=4),
        tasks=[read_task(folder / f"tasks/{name}.yaml").config],
        task_manager=TaskManager(include_defaults=False),
        bootstrap_iters=2,
    )
    metric = "acc_norm" if name == "choices" else "exact_match"
    samples = {str(sample["doc_id"]): float(sample[metric]) for sample in plain["samples"][name]}
    assert {row.prompt_id: row.value for row in rows} == samples and {row.metric for row in rows} == {metric}
    (found,) = capability_metrics(rows, Model("arm", 0, "base"))
    whole = plain["results"][name]
    assert found.value == pytest.approx(whole[f"{metric},none"])
    assert found.error == pytest.approx(whole[f"{metric}_stderr,none"], abs=1e-9)
    assert found.low <= found.value <= found.high and found.questions == len(rows)
    if name == "choices":
        assert 0 < found.value < 1  # else the test says little


@pytest.mark.parametrize(("name", "rope"), [("choices", "default"), ("words", "default"), ("choices", "longrope")])
def test_questions_that_do_not_fit_the_context_are_counted(place, tmp_path, name, rope, caplog, monkeypatch):
    _, loaded = place
    monkeypatch.setattr(loaded.model.config, "rope_parameters", {"rope_type": rope, "original_max_position_embeddings": 128})
    write_tasks(tmp_path / "tasks", questions=6)
    table = tmp_path / f"tasks/{name}.jsonl"
    first, *others = map(json.loads, table.read_text().splitlines())
    first["question"] = "a " * loaded.context_length + first["question"]
    table.write_text("".join(json.dumps(row) + "\n" for row in (first, *others)))
    rows = measure((tmp_path, loaded), tmp_path / "out", name)
    assert [row.cut for row in rows] == [True] + [False] * len(others)
    assert f"capability task {name}: 1 of {len(rows)} questions lost their beginning" in caplog.text


def test_a_tokenizer_that_ends_every_text_with_a_mark_is_refused(place, tmp_path):
    """lm_eval takes the tokens of question and answer, less as many as the question alone has, for those of the answer."""
    folder, loaded = place
    tokenizer = copy.deepcopy(loaded.tokenizer)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="$A <|endoftext|>", special_tokens=[("<|endoftext|>", 0)]
    )
    with pytest.raises(UserError, match="puts a mark after every text, .*; set add_eos_token to false"):
        measure((folder, dataclasses.replace(loaded, tokenizer=tokenizer)), tmp_path)


def test_an_evaluation_that_was_killed_asks_only_what_is_missing_and_ends_with_the_same_bytes(place, tmp_path, monkeypatch):
    from lm_eval.models.huggingface import HFLM

    monkeypatch.setattr("curricula.eval.capability.harness.BATCHES_AT_ONCE", 2)
    measure(place, tmp_path / "whole")
    asked, ask = [], HFLM.loglikelihood

    def counted(self, requests, disable_tqdm=False):
        if len(asked) == 3:
            raise KeyboardInterrupt
        asked.append(len(requests))
        return ask(self, requests, disable_tqdm=disable_tqdm)

    monkeypatch.setattr(HFLM, "loglikelihood", counted)
    with pytest.raises(KeyboardInterrupt):
        measure(place, tmp_path / "killed")
    kept = tmp_path / "killed/capability/choices.responses.jsonl"
    kept.write_bytes(kept.read_bytes()[:-9])  # the last batch was being written
    asked[:] = [0, 0]
    monkeypatch.setattr(
        HFLM,
        "loglikelihood",
        lambda self, requests, disable_tqdm=False: asked.append(len(requests)) or ask(self, requests, disable_tqdm=True),
    )
    measure(place, tmp_path / "killed")
    assert sum(asked) == 48 - 2 * 8 and not kept.exists()
    one, other = ((tmp_path / folder / "capability/choices.jsonl").read_bytes() for folder in ("whole", "killed"))
    assert one == other
    asked.clear()
    measure(place, tmp_path / "killed")
    assert not asked
    path = tmp_path / "killed/capability/choices.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-2]))  # damaged from outside
    measure(place, tmp_path / "killed")
    assert asked and path.read_bytes() == one
    measure(place, tmp_path / "killed", limit=6)
    assert len(read_rows(path, CapabilityRow)) == 6


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("task: choices", "task: other", "the task in it must be named as the file is; write task: choices"),
        ('doc_to_text: "{{question}}"', "doc_to_text: !function evil.run", "not valid YAML"),
        ("test_split: test", "include: /etc/passwd", "key 'include' is not supported"),
        ("{ metric: acc }", "{ metric: ./evil.py }", "metrics among acc, acc_norm, exact_match, all with aggregation mean"),
        ("{ metric: acc }", "{ metric: acc, hf_evaluate: true }", "metrics among acc, acc_norm, exact_match, all with"),
        ("test: choices.jsonl", "test: ../../secret.jsonl", "put a file of this name next to the task file"),
        ("test: choices.jsonl", "test: gone.jsonl", "put a file of this name next to the task file"),
        (
            "dataset_path: json",
            "dataset_path: evil/repo",
            "dataset_path is 'evil/repo'; write the data files' format, one of json",
        ),
        ("{{question}}", "{{ ''.__class__.__mro__ }}", "lm_eval cannot carry it out .SecurityError"),
        (
            "{{question}}",
            "{{questoin}}",
            "lm_eval cannot carry it out .UndefinedError: 'questoin' is undefined.; correct the task",
        ),
    ],
)
def test_a_task_file_is_data_and_a_wrong_one_is_named(place, tmp_path, old, new, said):
    assert old in CHOICES
    write_tasks(tmp_path / "tasks", 2)
    (tmp_path / "tasks/choices.yaml").write_text(CHOICES.replace(old, new))
    with pytest.raises(UserError, match=said):
        measure((tmp_path, place[1]), tmp_path / "out")
    assert not (tmp_path / "out/capability/choices.jsonl").exists()


def test_the_documented_task_of_ones_own_and_an_own_set_of_questions_work(place, tmp_path):
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks/sums.yaml").write_text(example("evaluation.md", "### Capability, and what safety costs", "yaml", 1))
    (tmp_path / "tasks/sums.jsonl").write_text('{"question": "1 + 1 =", "options": ["2", "3"], "right": 0}\n' * 3)
    assert len(measure((tmp_path, place[1]), tmp_path / "out", "sums")) == 3
    (tmp_path / "quiz.csv").write_text("q,a\nSay 1,one\nSay 2,two\n")
    quiz = {"path": str(tmp_path / "quiz.csv"), "column": "q", "target": "a", "kind": "capability"}
    config = EvalConfig(prompts={"quiz": PromptSet(**quiz)}, capability=Capability(tasks=["quiz"]))
    task = EvalTask(TASKS["capability"], "quiz")
    rows = run_element(task, place[1], config, data_root=None, out=tmp_path / "out", seed=0)
    assert [(row.metric, row.prompt_id) for row in rows] == [("exact_match", "0"), ("exact_match", "1")]


def test_an_answer_to_an_own_question_is_a_text_though_it_looks_like_a_list():
    from lm_eval.api.task import ConfigurableTask

    task = ConfigurableTask(config=dict(question_task("quiz", [("Count to 2", "[1, 2]"), ("Say 1", "One")]).config))
    found = [
        [task.process_results(doc, [said])["exact_match"] for said in ("[1, 2]", "1", "one", "o")] for doc in task.task_docs
    ]
    assert found == [[1, 0, 0, 0], [0, 0, 1, 0]]


def test_an_unknown_task_is_named_with_where_to_look(place, tmp_path, monkeypatch):
    monkeypatch.setattr("lm_eval.tasks.TaskManager", lambda: SimpleNamespace(all_tasks=[]))  # reading all takes seconds
    with pytest.raises(UserError, match="capability task 'mmlo' is not one of lm_eval's, and no mmlo.yaml is in"):
        measure(place, tmp_path, "mmlo")


@pytest.fixture
def asked(monkeypatch):
    """What lm_eval is asked to do; it does nothing."""
    asked = []

    def evaluate(**options):
        asked.append(options)
        raise RuntimeError("nothing is measured here")

    monkeypatch.setattr("lm_eval.evaluator.simple_evaluate", evaluate)
    return asked


@pytest.mark.parametrize("kind", ["base", "instruct"])
def test_examples_and_the_chat_template_of_tuned_models_reach_lm_eval(place, tmp_path, asked, kind):
    place = place[0], load_model(place[0] / "model", kind)
    for number, more in enumerate([{}, {"few_shot": 2, "chat_template": True}]):
        with pytest.raises(UserError, match="nothing is measured here"):
            measure(place, tmp_path / str(number), "words", **more)
    assert [(one["num_fewshot"], one["apply_chat_template"]) for one in asked] == [(None, False), (2, kind == "instruct")]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConnectionError("Couldn't reach 'piqa' on the Hub (ConnectTimeout)"), os.EX_UNAVAILABLE),
        (OSError(errno.EIO, "Input/output error"), os.EX_IOERR),
        (RuntimeError("CUDA error: uncorrectable ECC error encountered"), None),
        (RuntimeError("CUDA out of memory"), 1),
        (pyarrow.ArrowInvalid("JSON parse error: Invalid value. in row 0"), 1),  # of the task's own file, not of one on the hub
        (FileNotFoundError("Dataset 'org/set' is a gated dataset on the Hub."), 1),
    ],
)
def test_only_what_another_start_would_meet_again_ends_the_job(place, tmp_path, monkeypatch, error, code):
    monkeypatch.setattr("lm_eval.evaluator.simple_evaluate", lambda **_: (_ for _ in ()).throw(error))
    with pytest.raises(Exception) as caught:
        measure(place, tmp_path, "words")
    assert getattr(caught.value, "exit_code", None) == code
    said = "Error" if code == os.EX_UNAVAILABLE else str(error)  # a network error's text can quote a header
    assert caught.value is error or f"lm_eval cannot carry it out ({type(error).__name__}" in str(caught.value)
    assert said in str(caught.value)


def test_the_verb_measures_capability_beside_the_attacks(place, tmp_path, asked, monkeypatch, capsys):
    (tmp_path / "tdc2023").mkdir()
    (tmp_path / "tdc2023/test_behaviors.json").write_text('["Explain the sea"]')
    monkeypatch.setattr(
        "lm_eval.tasks.TaskManager", lambda **_: SimpleNamespace(all_tasks=["piqa"])
    )  # all take seconds to read
    words = ["eval", "--model", str(place[0] / "model"), "--data", str(tmp_path), "--out", str(tmp_path / "out")]
    words += ["--benchmark", "tdc", "--accept-changed", "tdc", "--decoder", "greedy", "--max-new-tokens", "2", "--capability"]
    assert main([*words, "piqa,mmlo"]) != 0 and "'mmlo' is not one of lm_eval's" in capsys.readouterr().err
    assert not (tmp_path / "out/attacks-greedy").exists()
    assert main([*words, "piqa"]) != 0 and "capability task piqa: lm_eval cannot carry it out" in capsys.readouterr().err
    assert [one["tasks"] for one in asked] == [["piqa"]] and (tmp_path / "out/attacks-greedy/tdc.jsonl").exists()


def test_the_published_tasks_are_lm_evals_and_their_lists_name_them():
    assert all(name in task_manager(name, is_local=False).all_tasks for name in PUBLISHED)
    assert all(set(names) <= PUBLISHED.keys() for names in LISTS.values())


def question(number, value, benchmark="a", model="m"):
    return CapabilityRow(
        key="k", model=model, model_kind="base", precision="float32", benchmark=benchmark, task=benchmark,
        prompt_id=str(number), question=f"{benchmark}{number}", metric="acc", value=value, shots=0,
    )  # fmt: skip


def test_an_arm_with_several_seeds_has_an_interval_over_seeds_and_questions():
    arms = tuple(ArmInfo("full-0", 0.0, "full", seed, f"full-0.{seed}") for seed in (1, 2, 3))
    right = {1: 30, 2: 34, 3: 26}
    rows = {
        (arm.key, "base"): [question(n, float(n < right[arm.seed])) for n in range(40)]
        + [question(n, 1.0, "b") for n in range(10)]
        for arm in arms
    }
    found = {one.benchmark: one.value for one in capability_estimates(StudyRows(arms, {}, {}, capability=rows))}
    assert found["a"].value == pytest.approx(0.75) and len(found["a"].runs) == 3 and found["a"].spread == pytest.approx(0.1)
    assert found["all"].value == pytest.approx((0.75 + 1) / 2)
    (alone,) = capability_metrics(rows["full-0.1", "base"][:40], Model("full-0", 1, "base"))
    assert found["a"].high - found["a"].low > alone.high - alone.low


def test_only_an_arm_whose_runs_all_have_every_task_of_any_arm_has_an_average():
    arms = tuple(ArmInfo(name, 0.0, "full", seed, f"{name}.{seed}") for name in ("whole", "one", "half") for seed in (1, 2))
    easy, hard = ([question(n, value, name) for n in range(10)] for name, value in (("a", 1.0), ("b", 0.0)))
    answers = [easy + hard, easy + hard, easy, easy, easy + hard, easy]
    study = StudyRows(arms, {}, {}, capability={(arm.key, "base"): rows for arm, rows in zip(arms, answers)})
    assert {one.arm: one.value.value for one in capability_estimates(study) if one.benchmark == "all"} == {"whole": 0.5}
    averages = {(one.arm, one.seed) for one in study_capability(study) if one.benchmark == "all"}
    assert averages == {("whole", 1), ("whole", 2), ("half", 1)}
    assert lacking_tasks(study) == {("base", "one"): ["b"], ("base", "half"): ["b"]}
    (table,) = capability_tables(arms[::2], list(capability_estimates(study)), lacking_tasks(study))
    assert table.columns == ["a", "b", "average"]
    assert [cells[-1] is None for _, cells in table.rows] == [False, True, True]
    assert table.note.count(" lacks b") == 2


points = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=12)


@given(points)
def test_the_pareto_front_is_what_nothing_beats(places):
    beaten = {one for one in places if any((x > one[0] and y <= one[1]) or (x >= one[0] and y < one[1]) for x, y in places)}
    front = pareto_front(places)
    assert sorted(front) == [place for place, one in enumerate(places) if one not in beaten]
    assert [places[place][0] for place in front] == sorted(places[place][0] for place in front)


def test_bits_per_byte_are_over_the_bytes_of_the_tokens_that_the_loss_is_of(tmp_path):
    texts = ["Läuse, naïve cafés and 東京 – all told.", "plain text with   spaces\nand lines"] * 40
    train_tokenizer(texts, 300, tmp_path / "tokenizer")
    tokenizer = load_tokenizer(tmp_path / "tokenizer")
    ids = np.concatenate(
        [[*tokenizer.encode(text).ids, tokenizer.token_to_id(EOS), tokenizer.token_to_id(TAG)] for text in texts]
    )
    (tmp_path / "source").mkdir()
    write_shard(tmp_path / "source/validation", [ids.astype(np.uint16)])
    tag = tokenizer.token_to_id(TAG)
    batches = ValidationBatches(tmp_path / "source", 16, 4, 300, tag)
    sizes = token_bytes(tokenizer)
    samples = (len(ids) - 1) // 16
    predicted = ids[1 : samples * 16 + 1]
    # Counted another way: what the tokens decode to, without the end marks and tags; the last character may be cut.
    spelled = b"".join(tokenizer.decode([*run], skip_special_tokens=True).encode() for run in [predicted])
    assert abs(int(sizes[predicted].sum()) - len(spelled)) <= 6
    assert sizes[tokenizer.token_to_id(EOS)] == sizes[tokenizer.token_to_id(TAG)] == 0
    assert batches.bytes_per_token(sizes) == pytest.approx(sizes[predicted].sum() / np.count_nonzero(predicted != tag))
    one = bits_per_byte("full-0", 1, "web", 2.0, 4.0)
    assert one.value == pytest.approx(2.0 / math.log(2) / 4.0)
    (alone,) = bits_estimates([one])
    assert (alone.value, alone.low, alone.seeds) == (one.value, None, 1)
    (several,) = bits_estimates([one, bits_per_byte("full-0", 2, "web", 2.2, 4.0)])
    assert 0 < several.low < one.value < several.high and several.seeds == 2
    (wide,) = bits_estimates([one, bits_per_byte("full-0", 2, "web", 3.0, 4.0)])
    assert wide.low == 0 and wide.high > 3  # Student's interval would reach below 0, where no text is


def test_every_byte_of_a_text_belongs_to_one_token(tmp_path):
    train_tokenizer(["some words to learn"] * 9, 280, tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    sizes = token_bytes(tokenizer)
    for text in ("abc", "Ünïcödé 東京 🗼", " \n\t x", "<|endoftext|>é"):
        ids = [i for i in tokenizer.encode(text, add_special_tokens=False).ids]
        assert sizes[ids].sum() == len(text.replace("<|endoftext|>", "").encode())
