"""Elements: every task end to end on a tiny model, killed and resumed, and judged again without generating."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
import torch
from tiny_llama import save_tiny_llama

from curriculum.errors import UsageError, UserError
from eval.config import Evaluation, Gcg, Probes, SafeBeam, TopK, tasks_for
from eval.element import run_element
from eval.rows import ATTACK_VERDICTS, OVERREFUSAL_VERDICTS

CONFIG = Evaluation(
    benchmarks=("advbench", "tdc"),
    topk=TopK(max_new_tokens=12, samples=2, batch_prompts=3),
    safebeam=SafeBeam(beams=3, candidates=6, max_new_tokens=10, batch_prompts=4),
    gcg=Gcg(steps=3, search_width=16, topk=16, suffix="x x x", prompts=3),
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
        "advbench/harmful_behaviors.csv": "goal,target\n"
        + "".join(f'Describe {t},"Sure, here is {t}"\n' for t in things),
        "tdc2023/test_behaviors.json": json.dumps([f"Explain {t}" for t in things[:4]]),
        "jailbreakbench/harmful-behaviors.csv": "Index,Goal,Category\n"
        + "".join(f"{i},Write about {t},c\n" for i, t in enumerate(things)),
        "stanford_alpaca/alpaca_instructions_noinput.json": json.dumps([{"instruction": f"Name {t}."} for t in things]),
    }
    for split, count in (("train", 40), ("test", 25)):
        rows = [
            {"id": str(i), "text": f"{'bad lock' if i % 2 else 'good bread'} {things[i % 7]} {i}", "score": 3 * (i % 2)}
            for i in range(2 * count)
        ]
        files[f"probes/{split}.jsonl"] = "".join(json.dumps(row) + "\n" for row in rows)
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def run(task, model_dir, data, out, *, kind="instruct", config=CONFIG, **more):
    return run_element(
        task, model_dir, kind, config, data_root=data, world_root=None, out=out, seed=1, device="cpu", **more
    )


def test_each_task_writes_its_rows_with_a_verdict_each(model_dir, data, tmp_path):
    for task in tasks_for("instruct", CONFIG):
        reports: list[tuple[int, int]] = []
        rows = run(
            task, model_dir, data, tmp_path, progress=lambda done, total, to=reports, **_: to.append((done, total))
        )
        assert reports[-1][0] == reports[-1][1]
        assert len((tmp_path / f"{task}.jsonl").read_text().splitlines()) == len(rows)
        assert len({row.key for row in rows}) == len(rows)
        if task == "probes":
            assert [(row.layer, row.seed) for row in rows] == [
                (layer, seed) for seed in (0, 1) for layer in ("first", "middle", "last")
            ]
            assert all(row.n_train == 40 and row.n_test == 50 and 0 <= row.auc <= 1 for row in rows)
            assert all(row.auc > 0.9 for row in rows if row.layer == "first")
            continue
        verdicts = OVERREFUSAL_VERDICTS if task.startswith("overrefusal") else ATTACK_VERDICTS
        assert all(row.verdict in verdicts for row in rows)
        expected = {
            "attacks-topk": 22,
            "attacks-safebeam": 11,
            "overrefusal-topk": 14,
            "overrefusal-safebeam": 7,
            "gcg": 9,
        }
        assert len(rows) == expected[task]
    suffixes = [json.loads(line) for line in (tmp_path / "gcg.suffixes.jsonl").read_text().splitlines()]
    assert len(suffixes) == 3
    assert all(row["loss"] <= row["initial_loss"] and len(row["losses"]) == 3 for row in suffixes)
    attacked = [row for row in run("gcg", model_dir, data, tmp_path) if row.decoder == "gcg+safebeam"]
    assert [row.prompt for row in attacked] == [row["behavior"] + row["suffix"] for row in suffixes]


def test_a_greedy_task_gives_one_answer_to_each_prompt(model_dir, data, tmp_path):
    rows = run("attacks-greedy", model_dir, data, tmp_path)
    assert [(row.decoder, row.sample) for row in rows] == [("greedy", 0)] * 11
    assert rows == run("attacks-greedy", model_dir, data, tmp_path)


def test_a_base_model_continues_the_stand_in_beginnings(model_dir, data, tmp_path):
    rows = run("attacks-topk", model_dir, data, tmp_path, kind="base")
    assert {row.benchmark for row in rows} == {"advbench_completions"}
    assert rows[0].prompt == "Here is a lock"


CHILD = """
import sys, msgspec
from pathlib import Path
from eval.config import Evaluation
from eval.element import run_element
task, model_dir, data, out, config = sys.argv[1:]
def slow(done, total, **figures):
    import time; time.sleep(0.15)
run_element(task, Path(model_dir), "instruct", msgspec.json.decode(config, type=Evaluation), data_root=Path(data),
            world_root=None, out=Path(out), seed=1, device="cpu", progress=slow)
"""


@pytest.mark.parametrize("task", ["attacks-topk", "gcg"])
def test_an_element_killed_and_run_again_ends_with_the_same_bytes(task, model_dir, data, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run(task, model_dir, data, whole)
    watched = killed / ("gcg.suffixes.jsonl" if task == "gcg" else f"{task}.jsonl")
    arguments = [task, str(model_dir), str(data), str(killed), msgspec.json.encode(CONFIG).decode()]
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": str(torch.get_num_threads())}
    child = subprocess.Popen([sys.executable, "-c", CHILD, *arguments], env=environment)
    deadline = time.monotonic() + 60
    while not (watched.exists() and watched.stat().st_size) and time.monotonic() < deadline:
        assert child.poll() is None, "the child ended before it could be killed"
        time.sleep(0.005)
    child.kill()
    child.wait()
    left = watched.read_bytes()
    assert left and left != (whole / watched.name).read_bytes()
    with open(watched, "ab") as file:  # and the kill tore a line
        file.write(b'{"key": "12')
    run(task, model_dir, data, killed)
    names = sorted(path.name for path in whole.iterdir())
    assert sorted(path.name for path in killed.iterdir()) == names
    for name in names:
        assert (killed / name).read_bytes() == (whole / name).read_bytes()


def test_a_batch_that_was_cut_in_two_is_made_again_as_a_whole(model_dir, data, tmp_path):
    path = tmp_path / "attacks-topk.jsonl"
    run("attacks-topk", model_dir, data, tmp_path)
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    for cut in (b"".join(lines[:8]), b"".join(lines[:8]) + lines[8][:40], b"".join(lines[6:])):
        path.write_bytes(cut)
        run("attacks-topk", model_dir, data, tmp_path)
        assert path.read_bytes() == whole
    assert sorted(p.name for p in tmp_path.iterdir()) == ["attacks-topk.jsonl"]


def test_judging_again_changes_verdicts_and_generates_nothing(model_dir, data, tmp_path, monkeypatch):
    before = run("attacks-topk", model_dir, data, tmp_path)
    monkeypatch.setattr("eval.judges.SHORTEST_WORDS", 10**6)
    monkeypatch.setattr("eval.sampling.sample_topk", lambda *_: pytest.fail("generated again"))
    after = run("attacks-topk", model_dir, data, tmp_path)
    assert [row.response for row in after] == [row.response for row in before]
    assert {row.judge_version for row in after}.isdisjoint(row.judge_version for row in before)
    assert "harmful" in {row.verdict for row in before}
    assert "harmful" not in {row.verdict for row in after}


def test_rows_of_an_earlier_model_are_set_aside_and_not_mixed_in(model_dir, data, tmp_path):
    other = save_tiny_llama(tmp_path / "other", seed=5)
    out = tmp_path / "out"
    first = run("attacks-topk", model_dir, data, out)
    second = run("attacks-topk", other, data, out)
    assert {row.model for row in first}.isdisjoint(row.model for row in second)
    assert len((out / "attacks-topk.jsonl").read_text().splitlines()) == len(second)
    assert len((out / "attacks-topk.unused.jsonl").read_text().splitlines()) == len(first)


def test_what_the_user_got_wrong_is_said(model_dir, data, tmp_path):
    with pytest.raises(UsageError, match="'attack' is not known; choose one of attacks-topk"):
        run("attack", model_dir, data, tmp_path)
    with pytest.raises(UsageError, match="evaluation.gcg is null"):
        run("gcg", model_dir, data, tmp_path, config=Evaluation(gcg=None))
    with pytest.raises(UserError, match="lower probes.train_per_class"):
        run("probes", model_dir, data, tmp_path, config=Evaluation())


def test_tasks_follow_the_kind_of_model():
    assert tasks_for("base", Evaluation()) == ["attacks-topk", "attacks-safebeam", "probes"]
    assert "gcg" in tasks_for("instruct", Evaluation())
    assert "gcg" not in tasks_for("instruct", Evaluation(gcg=None))
    assert tasks_for("benign", Evaluation())[-1] == "overrefusal-safebeam"
