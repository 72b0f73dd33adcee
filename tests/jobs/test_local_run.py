"""A whole study, very small, through the command line in real processes: done, killed, interrupted, misused."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from compared_runs import differences, repeated, results, too_early
from small_studies import small_study, smaller_demo

from curricula.durable import exclusive_lock, read_jsonl

LIMIT_S = 600
"""For one command on a busy machine."""
OWN = {"layers": 3, "hidden": 96, "heads": 6, "kv_heads": 2, "ffn": 256, "vocabulary": 2048, "sequence_length": 128}


def submit(study: Path, run: Path, *options: str, **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "curricula.jobs.cli.main",
            "submit",
            str(study),
            "--cluster",
            "local",
            "--run",
            str(run),
            *options,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        start_new_session=True,
        # Shells start background jobs with SIGINT ignored, and so would be what these tests interrupt.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def study_of_two_sources(folder: Path, **changes) -> Path:
    """The small study with less to tokenise and to evaluate (the text that its blends switch between, and one benchmark), and a
    model of no preset."""
    raw = smaller_demo()
    sources = {name: raw["sources"][name] for name in ("web", "unsafe-tagged")}
    curriculum = {**raw["curriculum"], "safe": {"web": 1}, "interventions": {"full": {"web": 9, "unsafe-tagged": 1}}}
    evaluation = {**raw["evaluation"], "benchmarks": ["harmbench"]}
    return small_study(folder, sources=sources, curriculum=curriculum, evaluation=evaluation, model=OWN, **changes)


def finished(process: subprocess.Popen) -> str:
    output, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, output
    return output


def wait_for(condition, what: str, timeout_s: float = 240.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s} s for {what}"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing disturbed, although the shell holds the variables of another job's rank and of a Slurm step."""
    folder = tmp_path_factory.mktemp("whole")
    rank = {"RANK": "3", "WORLD_SIZE": "8", "SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "8", "SLURM_JOB_ID": "7"}
    finished(submit(study_of_two_sources(folder), folder / "run", **rank))
    return folder / "run"


def test_a_study_goes_from_nothing_to_nine_figures(whole):
    page = (whole / "report" / "index.html").read_text()
    assert page.count("<em>The paper:</em>") == 9
    assert "layers 3, hidden 96, heads 6, kv_heads 2, ffn 256, 492,192 parameters each" in page
    states = json.loads(
        subprocess.run(
            [sys.executable, "-m", "curricula.jobs.cli.main", "status", str(whole), "--json"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    )
    assert {element["state"] for element in states} == {"done"}


def test_the_blend_switches_inside_the_run_at_the_planned_step(whole):
    rows = [row for row in read_jsonl(whole / "pretrain/full-50/metrics.jsonl") if "phase" in row]
    assert [row["step"] for row in rows if "loss" in row][0] == 13  # branched off the trunk after 12 of 24 steps
    assert {row["phase"] for row in rows} == {1}
    assert "unsafe-tagged" in rows[0]["mix"]
    trunk = [row for row in read_jsonl(whole / "pretrain/trunk/metrics.jsonl") if "phase" in row]
    assert {row["phase"] for row in trunk} == {0} and "unsafe-tagged" not in trunk[0]["mix"]


def test_results_that_differ_repeat_or_came_too_early_are_found(whole, tmp_path):
    """By what this file and the disturbed rounds of tests/chaos compare runs with."""
    run = tmp_path / "run"
    shutil.copytree(whole, run, symlinks=True)
    jobs = {path.parent.parent.name for path in run.glob("jobs/*/*/done.json")}
    expected = results(whole)
    assert (differences(expected, results(run)), repeated(run), too_early(run, jobs)) == ([], [], [])

    rows, metrics = run / "eval/full-50/base/attacks-topk.jsonl", run / "pretrain/trunk/metrics.jsonl"
    rows.write_text(rows.read_text() + rows.read_text().splitlines(keepends=True)[-1])
    metrics.write_text(metrics.read_text() + next(line for line in metrics.open() if '"loss"' in line))
    mark = run / "jobs/pretrain-50/full-50/done.json"
    mark.write_text(json.dumps({**json.loads(mark.read_text()), "started": 0.0}))
    assert {line.partition(",")[0] for line in differences(expected, results(run))} == {
        str(path.relative_to(run)) for path in (rows, metrics)
    }
    assert len(repeated(run)) == 2
    assert any(line.startswith("pretrain-50/full-50 ") for line in too_early(run, jobs))


def test_a_second_call_redoes_nothing(whole):
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.is_file() and path.name != "lock"}
    output = finished(submit(whole / "study.yaml", whole))
    assert "elements done" in output
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_only_what_is_selected_runs(tmp_path):
    run = tmp_path / "run"
    output = finished(submit(small_study(tmp_path), run, "--stage", "prepare"))
    assert "1 chosen element done" in " ".join(output.split())
    assert [folder.name for folder in (run / "jobs").iterdir()] == ["prepare"]


def saved(run: Path) -> dict[str, dict]:
    """The hashes of the last checkpoint's tensors of each branch."""
    branches = run.glob("pretrain/*/checkpoints/latest")
    infos = {path.parent.parent.name: path.with_name(path.read_text().strip()) / "checkpoint.json" for path in branches}
    files = {name: json.loads(info.read_text())["files"] for name, info in infos.items()}
    return {name: {file: files[name][file] for file in files[name] if file.endswith(".distcp")} for name in files}


PRETRAINING = ("--stage", "prepare,tokenize,pretrain")


@pytest.mark.parametrize(("options", "kills"), [(PRETRAINING, 1), pytest.param((), 3, marks=pytest.mark.slow)], ids=[1, 3])
def test_a_run_interrupted_and_killed_ends_with_the_same_numbers(whole, tmp_path, options, kills):
    study, run = study_of_two_sources(tmp_path), tmp_path / "run"
    process = submit(study, run, *options)
    wait_for(lambda: len(read_jsonl(run / "pretrain/trunk/metrics.jsonl")) >= 2, "training to begin")
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 130 and "continues from here" in output
    step = json.loads((run / "pretrain/trunk/checkpoints" / latest(run) / "checkpoint.json").read_text())["step"]
    assert step == read_jsonl(run / "pretrain/trunk/metrics.jsonl")[-1]["step"]  # nothing of what was trained is lost
    for lock in run.glob("jobs/*/*/lock"):
        with exclusive_lock(lock):  # no element outlives the launcher
            pass

    moments = [
        lambda: len(read_jsonl(run / "pretrain/full-50/metrics.jsonl")) >= 7,  # within a segment, after a checkpoint
        lambda: any(run.glob("tune/*/instruct/metrics.jsonl")),
        lambda: any(run.glob("eval/*/*/attacks-topk.jsonl")),
    ]
    for moment in moments[:kills]:
        process = submit(study, run, *options)
        wait_for(moment, "the moment to kill at")
        process.kill()  # SIGKILL: the launcher cannot tell its elements
        process.communicate()
    finished(submit(study, run, *options))
    assert saved(run) == saved(whole) and saved(run).keys() == {"trunk", "full-50"}
    expected = results(whole)
    if options:
        expected = {name: text for name, text in expected.items() if name.startswith("pretrain/")}
    assert (differences(expected, results(run)), repeated(run)) == ([], [])


def test_no_element_outlives_a_launcher_that_was_killed(tmp_path):
    world = {**smaller_demo()["world"], "web_documents": 10_000_000}  # the element would go on for minutes
    study, run = small_study(tmp_path, world=world), tmp_path / "run"
    process = submit(study, run, "--stage", "prepare")
    wait_for((run / "world/fineweb_annotated/validation.jsonl").exists, "an element to be amid its work")
    process.kill()
    process.wait()  # not communicate(): elements that live on would keep the pipe open, and the test waiting for them
    with exclusive_lock(run / "jobs/prepare/prepare/lock", wait_s=60):
        assert not (run / "world/world.json").exists()


def latest(run: Path) -> str:
    return (run / "pretrain/trunk/checkpoints/latest").read_text().strip()


def test_a_failed_element_stops_what_needs_it_and_says_how_to_go_on(tmp_path):
    study = small_study(tmp_path, world=None, tokenizer={"folder": str(tmp_path / "nowhere")})
    (tmp_path / "data").mkdir()
    options = ("--stage", "fetch,prepare,tokenize")  # needs no torch
    process = submit(study, tmp_path / "run", *options, CURRICULA_DATA=str(tmp_path / "data"))
    output, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 1, output
    assert "1 element failed (prepare/prepare)" in output and "curricula logs" in output
    assert f": {tmp_path}/data/" in output and ": no such table" in output  # the element's own sentence
    assert not (tmp_path / "run" / "data" / "shards").exists()


def test_a_run_folder_in_use_is_refused(whole):
    with exclusive_lock(whole / "lock"):
        process = submit(whole / "study.yaml", whole)
        output, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 1
    assert f"{whole}: in use by process {os.getpid()}" in output


def test_another_study_in_the_same_folder_is_refused_by_its_key(whole, tmp_path):
    process = submit(study_of_two_sources(tmp_path, seed=43), whole)
    output, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 1
    assert "was created from a different study: seed was 42, now 43" in output


def marks(run: Path) -> dict[str, bytes]:
    return {str(path.parent.relative_to(run / "jobs")): path.read_bytes() for path in run.glob("jobs/*/*/done.json")}


@pytest.mark.slow
def test_a_run_grows_by_a_killed_seed_and_an_arm_into_what_a_fresh_one_is(tmp_path):
    evaluation = {**smaller_demo()["evaluation"], "benchmarks": ["harmbench"]}
    evaluation["tasks"] = {"base": ["attacks-topk", "probes"], "instruct": [], "benign": ["attacks-topk"]}
    curriculum = {**smaller_demo()["curriculum"], "starts": [0.25, 0.5, 1]}

    def study(name: str, **changes) -> Path:
        (tmp_path / name).mkdir()
        return small_study(tmp_path / name, evaluation=evaluation, **changes)

    seeds = {"seed": None, "seeds": [42, 43]}
    fresh, run = tmp_path / "fresh-run", tmp_path / "run"
    said = finished(submit(study("fresh", curriculum=curriculum, **seeds), fresh))
    assert said.count("A first look, at one training seed: ") == 1
    assert said.index("A first look") < said.index("report/report done")

    finished(submit(study("one"), run))
    alone = marks(run)
    two = study("two", **seeds)
    process = submit(two, run)
    wait_for(lambda: len(read_jsonl(run / "pretrain/trunk-s43/metrics.jsonl")) >= 7, "the second seed's training")
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    finished(submit(two, run))
    both = marks(run)
    assert {name for name in alone if both[name] != alone[name]} == {"report/report"}
    assert all("-s43" in name for name in both.keys() - alone.keys())

    finished(submit(study("three", curriculum=curriculum, **seeds), run))
    now = marks(run)
    assert {name for name in both if now[name] != both[name]} == {"report/report"}
    new = {name.partition("/")[0] for name in now.keys() - both.keys()}
    assert new == {
        "pretrain-trunk-6", "pretrain-25", "export-base-25", "instruct-25", "benign-25", "evaluate-base-25",
        "evaluate-benign-25", "merge-25",
    }  # fmt: skip
    assert now.keys() == marks(fresh).keys()
    assert differences(results(fresh), results(run)) == []
