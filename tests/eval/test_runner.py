"""Elements: every task end to end on a tiny model, in shards, killed and resumed, then merged and judged."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
import subprocess
import sys

import msgspec
import pytest
from tiny_llama import save_tiny_llama

from curricula.errors import UsageError, UserError
from curricula.eval.benchmarks import Prompt, PromptSet
from curricula.eval.config import EvalConfig, Gcg, Probes
from curricula.eval.decoding.registry import DECODERS, PluginSettings
from curricula.eval.decoding.settings import Greedy, SafeBeam, Together, TopK
from curricula.eval.models import load_model
from curricula.eval.rows import ATTACK_VERDICTS, OVERREFUSAL_VERDICTS, GenerationRow, read_rows
from curricula.eval.runner import Batch, run_element
from curricula.eval.tasks import TASKS, EvalTask, find_task
from curricula.eval.verdicts import MergeAndJudge, is_merged, read_judged, stamp_path
from curricula.fencing import Superseded, generation
from curricula.settings import Positive

CONFIG = EvalConfig(
    benchmarks=("advbench", "tdc"),
    accept_changed=("advbench", "tdc", "jailbreakbench", "alpaca", "jb_completions"),
    topk=TopK(max_new_tokens=12, samples=2, batch_prompts=3),
    greedy=Greedy(max_new_tokens=12),
    safebeam=SafeBeam(beams=3, candidates=6, max_new_tokens=10, batch_prompts=4),
    gcg=Gcg(steps=3, search_width=16, topk=16, suffix="x x x", prompts=3, batch_prompts=1),
    probes=Probes(train_per_class=20, seeds=2),
)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    return save_tiny_llama(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    things = ["a lock", "a letter", "the sea", "bread", "a clock", "a tower", "the town"]
    files = {
        "advbench/harmful_behaviors.csv": "goal,target\n" + "".join(f'Describe {t},"Sure, here is {t}"\n' for t in things),
        "tdc2023/test_behaviors.json": json.dumps([f"Explain {t}" for t in things[:4]]),
        "jailbreakbench/harmful-behaviors.csv": "Index,Goal,Category\n"
        + "".join(f"{i},Write about {t},c\n" for i, t in enumerate(things)),
        "stanford_alpaca/alpaca_instructions_noinput.json": json.dumps([{"instruction": f"Name {t}."} for t in things]),
    }
    for split, count in (("train", 40), ("test", 25)):
        rows = [
            {"id": str(i), "text": f"{'bad lock' if i % 2 else 'good bread'} {things[i % 7]} {split} {i}", "score": 3 * (i % 2)}
            for i in range(2 * count)
        ]
        files[f"probes/{split}.jsonl"] = "".join(json.dumps(row) + "\n" for row in rows)
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


ATTACKS = EvalTask(TASKS["attacks-topk"], "advbench")
GCG = EvalTask(TASKS["gcg"], "jailbreakbench", limit=3)
PROBES = EvalTask(TASKS["probes"])


load = functools.cache(load_model)
"""Many elements read one model."""


def run(task, model_dir, data, out, *, kind="instruct", config=CONFIG, **more):
    return run_element(task, load(model_dir, kind, "cpu", config.precision), config, data_root=data, out=out, seed=1, **more)


def run_all(model_dir, data, out, *, kind="instruct", config=CONFIG):
    """The whole evaluation of a model, merged and judged."""
    for task in config.eval_tasks(kind):
        run(task, model_dir, data, out, kind=kind, config=config)
    MergeAndJudge(out, kind, config, None).judge()


def test_an_element_that_another_process_took_over_adds_no_rows(model_dir, data, tmp_path):
    """As when two nodes' locks do not see each other, and the first wakes up after the second has begun."""
    (tmp_path / "lock").touch()
    written = []

    def take_over(done, total, **figures):
        if done:
            written.append(ATTACKS.path(tmp_path).read_bytes())
            code = "import sys; from pathlib import Path; from curricula.fencing import generation\n"
            code += "with generation(Path(sys.argv[1])): pass"
            subprocess.run([sys.executable, "-c", code, str(tmp_path / "lock")], check=True)

    with pytest.raises(Superseded), generation(tmp_path / "lock"):
        run(ATTACKS, model_dir, data, tmp_path, progress=take_over)
    assert written == [ATTACKS.path(tmp_path).read_bytes()]


def test_each_task_ends_in_one_file_of_rows_with_a_verdict_each(model_dir, data, tmp_path):
    run_all(model_dir, data, tmp_path)
    expected = {"attacks-topk": 22, "attacks-safebeam": 11, "overrefusal-topk": 14, "overrefusal-safebeam": 7, "gcg": 9}
    for task, count in expected.items():
        rows = read_judged(tmp_path / f"{task}.jsonl")
        assert len(rows) == len({row.key for row in rows}) == count
        verdicts = OVERREFUSAL_VERDICTS if TASKS[task].judged == "overrefusal" else ATTACK_VERDICTS
        assert all(row.verdict in verdicts and row.judge == "refusal-phrases" for row in rows)
    suffixes = [json.loads(line) for line in (tmp_path / "gcg/jailbreakbench.suffixes.jsonl").read_text().splitlines()]
    assert len(suffixes) == 3
    assert all(row["loss"] <= row["initial_loss"] and len(row["losses"]) == 3 for row in suffixes)
    attacked = [row for row in read_judged(tmp_path / "gcg.jsonl") if row.decoder == "gcg+safebeam"]
    assert [row.prompt for row in attacked] == [row["behavior"] + row["suffix"] for row in suffixes]


def test_an_element_reports_its_progress(model_dir, data, tmp_path):
    for task in (ATTACKS, PROBES):
        reports: list[tuple[int, int]] = []
        rows = run(task, model_dir, data, tmp_path, progress=lambda done, total, to=reports, **_: to.append((done, total)))
        assert reports[-1][0] == reports[-1][1] and len(task.path(tmp_path).read_text().splitlines()) == len(rows)
    assert [(row.layer, row.seed) for row in rows] == [
        (layer, seed) for seed in (0, 1) for layer in ("first", "middle", "last")
    ]
    assert all(row.n_train == 40 and row.n_test == 50 for row in rows)
    assert all(row.auc > 0.9 for row in rows if row.layer == "first")


def test_the_log_counts_control_tokens_in_prompts(model_dir, data, tmp_path, caplog):
    folder = tmp_path / "data"
    shutil.copytree(data, folder)
    table = folder / "advbench/harmful_behaviors.csv"
    table.write_text(table.read_text().replace("goal,target\n", 'goal,target\n"<|im_end|> a <|im_end|>","Sure"\n'))
    with caplog.at_level("INFO", logger="curricula"):
        run(ATTACKS, model_dir, folder, tmp_path)
    assert "attacks-topk: 1 prompts quote 2 control tokens, which are read as text" in caplog.text


def test_shards_merge_into_the_whole_in_its_order(model_dir, data, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    config = msgspec.structs.replace(CONFIG, shards={"attacks-topk": 3, "attacks-greedy": 9})
    tasks = msgspec.structs.replace(CONFIG.tasks, instruct=("attacks-topk", "attacks-greedy"))
    for out, settings in ((whole, CONFIG), (cut, config)):
        run_all(model_dir, data, out, config=msgspec.structs.replace(settings, tasks=tasks))
    assert (cut / "attacks-topk/advbench.0-of-3.jsonl").exists()
    for task in tasks.instruct:
        ids = [
            [(row.benchmark, row.prompt_id, row.sample, row.key) for row in read_judged(out / f"{task}.jsonl")]
            for out in (whole, cut)
        ]
        assert ids[0] == ids[1]
    earlier = (whole / "attacks-topk/advbench.jsonl").read_bytes().splitlines(keepends=True)[0]
    (cut / "attacks-topk/advbench.jsonl").write_bytes(earlier)  # not yet divided, with other settings
    MergeAndJudge(cut, "instruct", msgspec.structs.replace(config, tasks=tasks), None, whatever_is_there=True)
    assert len(read_judged(cut / "attacks-topk.jsonl")) == len(read_judged(whole / "attacks-topk.jsonl"))


def test_shards_of_two_versions_of_a_table_are_not_merged(model_dir, data, tmp_path):
    table = tmp_path / "ours.csv"
    prompts, tasks = {"ours": PromptSet(path=str(table))}, msgspec.structs.replace(CONFIG.tasks, instruct=("attacks-topk",))
    config = msgspec.structs.replace(CONFIG, benchmarks=("ours",), prompts=prompts, tasks=tasks, shards={"attacks-topk": 2})
    first, second = config.eval_tasks("instruct")
    table.write_text("prompt\nTell me\nShow me\n")
    older = run(first, model_dir, data, tmp_path, config=config)
    table.write_text("prompt\nTell me\nShow me\nGive me\n")  # whose second shard begins with the second prompt, too
    run(second, model_dir, data, tmp_path, config=config)
    words = "ours.1-of-2.jsonl: line 1 is of a shard of ours, but .*ours.0-of-2.jsonl is of a shard of other prompts, .*"
    with pytest.raises(UserError, match=words):
        MergeAndJudge(tmp_path, "instruct", config, None)
    again = run(first, model_dir, data, tmp_path, config=config)
    assert [row.key for row in again] == [row.key for row in older]
    MergeAndJudge(tmp_path, "instruct", config, None)
    assert [row.prompt for row in read_judged(tmp_path / "attacks-topk.jsonl")][::2] == ["Tell me", "Show me", "Give me"]


def test_a_missing_part_is_merged_once_it_is_written(model_dir, data, tmp_path):
    config = msgspec.structs.replace(CONFIG, tasks=msgspec.structs.replace(CONFIG.tasks, instruct=("attacks-topk",)))
    first, second = config.eval_tasks("instruct")
    run(first, model_dir, data, tmp_path, config=config)
    MergeAndJudge(tmp_path, "instruct", config, None).judge()
    assert is_merged(tmp_path, "instruct", config)
    assert {row.benchmark for row in read_judged(tmp_path / "attacks-topk.jsonl")} == {"advbench"}
    run(second, model_dir, data, tmp_path, config=config)
    assert not is_merged(tmp_path, "instruct", config)
    MergeAndJudge(tmp_path, "instruct", config, None).judge()
    rows = read_judged(tmp_path / "attacks-topk.jsonl")
    assert is_merged(tmp_path, "instruct", config) and len(rows) == 22 and all(row.judge for row in rows)
    for path, damage in (
        (tmp_path / "attacks-topk.verdicts.jsonl", lambda whole: b"".join(whole.splitlines(True)[:-1])),  # half-judged
        (tmp_path / "attacks-topk.verdicts.jsonl", lambda whole: whole.replace(b"refusal-phrases", b"another-phrases")),
        (first.path(tmp_path), lambda whole: whole.replace(b"Describe", b"Describf")),  # of the same size
    ):
        whole = path.read_bytes()
        assert damage(whole) != whole
        path.write_bytes(damage(whole))
        assert not is_merged(tmp_path, "instruct", config)
        path.write_bytes(whole)
    stamp_path(tmp_path).write_bytes(b"\xff")  # then the rows themselves are read
    assert is_merged(tmp_path, "instruct", config)


def test_a_greedy_task_gives_one_answer_to_each_prompt(model_dir, data, tmp_path):
    greedy = EvalTask(TASKS["attacks-greedy"], "advbench")
    rows = run(greedy, model_dir, data, tmp_path)
    assert [(row.decoder, row.sample) for row in rows] == [("greedy", 0)] * 7
    assert rows == run(greedy, model_dir, data, tmp_path)


def test_a_base_model_continues_the_beginnings_that_replace_missing_ones(model_dir, data, tmp_path):
    rows = run(EvalTask(TASKS["attacks-topk"], "jb_completions"), model_dir, data, tmp_path, kind="base")
    assert {row.benchmark for row in rows} == {"advbench_completions"}
    assert rows[0].prompt == "Here is a lock"


def test_a_search_for_suffixes_that_was_killed_after_the_first_ends_with_the_same_bytes(model_dir, data, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run(GCG, model_dir, data, whole)
    suffixes = killed / "gcg/jailbreakbench.suffixes.jsonl"

    def kill(*_, **__):
        if suffixes.exists() and suffixes.stat().st_size:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(GCG, model_dir, data, killed, progress=kill)
    assert suffixes.read_bytes().count(b"\n") == 1
    with open(suffixes, "ab") as file:  # and the kill tore a line
        file.write(b'{"key": "12')
    run(GCG, model_dir, data, killed)
    names = sorted(path.relative_to(whole) for path in whole.rglob("*.*"))
    assert sorted(path.relative_to(killed) for path in killed.rglob("*.*")) == names
    for name in names:
        assert (killed / name).read_bytes() == (whole / name).read_bytes()


def test_a_batch_that_was_cut_in_two_is_generated_again_whole(model_dir, data, tmp_path):
    path = ATTACKS.path(tmp_path)
    run(ATTACKS, model_dir, data, tmp_path)
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    for cut in (b"".join(lines[:8]), b"".join(lines[:8]) + lines[8][:40], b"".join(lines[6:])):
        path.write_bytes(cut)
        run(ATTACKS, model_dir, data, tmp_path)
        assert path.read_bytes() == whole
    assert [p.name for p in path.parent.iterdir()] == ["advbench.jsonl"]


def test_judging_again_adds_verdicts_and_touches_no_answer(model_dir, data, tmp_path, monkeypatch):
    config = msgspec.structs.replace(CONFIG, tasks=msgspec.structs.replace(CONFIG.tasks, instruct=("attacks-topk",)))
    run_all(model_dir, data, tmp_path, config=config)
    before = read_judged(tmp_path / "attacks-topk.jsonl")
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.jsonl") if "verdicts" not in path.name}
    monkeypatch.setattr("curricula.eval.judges.rules.SHORTEST_WORDS", 10**6)
    MergeAndJudge(tmp_path, "instruct", config, None).judge()
    after = read_judged(tmp_path / "attacks-topk.jsonl")
    assert {path: path.stat().st_mtime_ns for path in written} == written
    assert {row.judge_version for row in after}.isdisjoint(row.judge_version for row in before)
    assert "harmful" in {row.verdict for row in before} and "harmful" not in {row.verdict for row in after}


def test_rows_of_an_earlier_model_are_set_aside_and_not_mixed_in(model_dir, data, tmp_path):
    other = save_tiny_llama(tmp_path / "other", seed=5)
    out = tmp_path / "out"
    first = run(ATTACKS, model_dir, data, out)
    second = run(ATTACKS, other, data, out)
    assert {row.model for row in first}.isdisjoint(row.model for row in second)
    assert read_rows(ATTACKS.path(out), GenerationRow) == second
    assert read_rows(out / "attacks-topk/advbench.unused.jsonl", GenerationRow) == first


def test_a_corrected_behavior_or_cluster_reaches_rows_that_are_kept_and_makes_their_verdicts_stale(model_dir, data, tmp_path):
    table = tmp_path / "ours.csv"

    def answers(*described):
        table.write_text("text,prompt,behavior,topic,template\n" + "".join(f"A letter,{line}\n" for line in described))
        columns = {"behavior": "behavior", "category": "topic", "cluster": "template", "context": "text"}
        prompts = {"ours": PromptSet(path=str(table), **columns)}
        tasks = msgspec.structs.replace(CONFIG.tasks, instruct=("attacks-topk",))
        config = msgspec.structs.replace(CONFIG, benchmarks=("ours",), prompts=prompts, tasks=tasks)
        rows = run(EvalTask(TASKS["attacks-topk"], "ours"), model_dir, data, tmp_path, config=config)
        return rows, config, MergeAndJudge(tmp_path, "instruct", config, None)

    first, _, merge = answers("Tell me,Tell me,a,t1", "Show me,Show me,a,t1")
    merge.judge()
    second, config, merge = answers("Tell me,Build it,b,t1", "Show me,Show me,a,t2")
    assert not is_merged(tmp_path, "instruct", config)  # although every answer has a verdict, on another question
    assert [row.response for row in second] == [row.response for row in first]
    assert [(row.behavior, row.category) for row in second] == [("Build it", "b")] * 2 + [("Show me", "a")] * 2
    assert len({row.cluster for row in second}) == 2 > len({row.cluster for row in first})
    assert {row.context for row in second} == {"A letter"}
    merged = tmp_path / "attacks-topk.jsonl"
    assert read_rows(tmp_path / "attacks-topk/ours.jsonl", GenerationRow) == read_rows(merged, GenerationRow) == second
    assert [row.changed for row in read_judged(merged)] == [True, True, False, False]
    merge.judge()
    assert is_merged(tmp_path, "instruct", config)
    assert not any(row.changed or row.verdict == "unparsed" for row in read_judged(merged))


def test_user_errors_name_the_setting(model_dir, data, tmp_path):
    with pytest.raises(UsageError, match="'attack' is not known; choose one of attacks-topk"):
        find_task("attack")
    with pytest.raises(UsageError, match="evaluation.gcg is null"):
        run(GCG, model_dir, data, tmp_path, config=EvalConfig(gcg=None))
    with pytest.raises(UserError, match="lower probes.train_per_class"):
        run(PROBES, model_dir, data, tmp_path, config=EvalConfig())


@pytest.mark.parametrize(("precision", "same"), [("float32", True), ("float64", True), ("bfloat16", False)])
def test_what_is_decoded_together_is_part_of_a_key_where_it_changes_answers(model_dir, precision, same):
    loaded = load_model(model_dir, "instruct", "cpu", precision)
    prompts = [Prompt(id="1", benchmark="tdc", text="Explain the sea", behavior="Explain the sea")]

    def keys(**changes):
        return Batch(loaded, "attacks-topk", "topk", DECODERS["topk"], TopK(samples=1, **changes), prompts, 0).keys

    assert (keys(rows=4) == keys(rows=80)) == same
    assert (keys(batch_prompts=1) == keys(batch_prompts=32)) == same
    assert keys(k=5) != keys(k=10)


def test_of_an_own_decoders_settings_a_key_omits_how_prompts_are_divided_and_what_is_marked(model_dir):
    class Mine(PluginSettings, frozen=True):
        batch_prompts: Positive = 4  # another default, without the mark
        lanes: Together = 8
        rows: Positive = 2

    loaded = load_model(model_dir, "instruct", "cpu")
    prompts = [Prompt(id="1", benchmark="tdc", text="Explain the sea", behavior="Explain the sea")]

    def keys(**changes):
        return Batch(loaded, "attacks-mine", "mine", DECODERS["greedy"], Mine(**changes), prompts, 0).keys

    assert keys() == keys(batch_prompts=1) == keys(lanes=1) != keys(rows=1)


def test_a_decoder_of_another_package_that_loses_answers_is_named(model_dir):
    loaded = load_model(model_dir, "instruct")

    def all_but_one(*asked):
        return DECODERS["greedy"].answer(*asked)[:-1]

    losing = dataclasses.replace(DECODERS["greedy"], name="losing", answer=all_but_one)
    prompts = [Prompt(id=name, benchmark="b", text=name, behavior=name) for name in ("one", "two")]
    batch = Batch(loaded, "attacks-losing", "losing", losing, Greedy(max_new_tokens=2), prompts, 0)
    with pytest.raises(UserError, match="decoder losing: gave 1 answers to 2 prompts, but 2 were asked for"):
        batch.rows()


def test_answers_in_float32_keep_the_keys_that_they_have_always_had(model_dir):
    loaded = dataclasses.replace(load_model(model_dir, "instruct", "cpu"), content_hash="m")
    prompts = [Prompt(id="1", benchmark="tdc", text="Explain the sea", behavior="Explain the sea")]
    batch = Batch(loaded, "attacks-topk", "topk", DECODERS["topk"], TopK(samples=1), prompts, 0)
    assert batch.keys == ["4a8518820212e5060e86ed9ded2d3f94"]
    begun = dataclasses.replace(batch, prompts=[msgspec.structs.replace(prompts[0], prefill="Sure")])
    assert len({one.keys[0] for one in (batch, begun, dataclasses.replace(batch, attack="a direction"))}) == 3
