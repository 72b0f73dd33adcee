"""An element's marks, and how its process ends."""

import contextlib
import errno
import os
import socket
import subprocess
import sys
import time

import pytest
from run_folders import finish, new_run
from small_studies import demo

from curricula.durable import exclusive_lock, read_json, write_json, write_text
from curricula.errors import StorageError, UsageError, UserError
from curricula.fencing import InUse, Superseded
from curricula.jobs import element
from curricula.jobs.element import main, run_element
from curricula.jobs.graph import plan_study
from curricula.jobs.monitor import progress
from curricula.jobs.run import Run
from curricula.jobs.slurm.restarts import GaveUp
from curricula.jobs.slurm.submissions import exclusion
from curricula.jobs.stages import STAGES
from curricula.jobs.study import parse_study
from curricula.model.runtime.stopping import Interrupted, PeerLost

KEY = ("prepare", "prepare")
TAKE_OVER = """
import sys; from pathlib import Path; from curricula.fencing import generation
with generation(Path(sys.argv[1])): pass
"""
LEFT_WITH_ITS_GROUP = """
import atexit, logging, sys, torch.distributed as dist
from curricula.errors import UserError
from curricula.jobs.element import main
from curricula.jobs.stages import STAGES

def fail(*_):
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    print("so far")
    for name in ("curricula.model.train", "another.library"):
        logging.getLogger(name).info("as far as %s", name)
    raise UserError("the shard is gone")

type(STAGES["prepare"]).run = fail
atexit.register(print, "a library waits for other processes")
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("ending", ["success", "error"])
def test_an_element_that_another_process_took_over_leaves_no_mark(tmp_path, monkeypatch, ending):
    run, _ = new_run(tmp_path / "run")
    folder = run.element(*KEY)

    def be_overtaken(*_):
        subprocess.run([sys.executable, "-c", TAKE_OVER, str(folder / "lock")], check=True)
        if ending == "error":
            raise RuntimeError("the shard is gone")

    monkeypatch.setattr(type(STAGES["prepare"]), "run", be_overtaken)
    assert main([str(run.root), *KEY]) == Superseded.exit_code
    assert not list(folder.glob("*.json"))


@pytest.mark.parametrize(
    ("key", "held"), [(KEY, "jobs/prepare/prepare"), (("pretrain-0", "full-0"), "pretrain/full-0")], ids=["own", "shared"]
)
def test_an_element_that_another_job_works_on_ends_without_marks_and_with_a_code_of_its_own(tmp_path, monkeypatch, key, held):
    run, _ = new_run(tmp_path / "run")
    monkeypatch.setattr(element, "DEAD_HOLDER_S", 0.0)
    with exclusive_lock(run.root / held / "lock"):
        assert main([str(run.root), *key]) == InUse.exit_code == 251
    assert not list(run.element(*key).glob("*.json"))
    monkeypatch.undo()
    begun = Interrupted(0, 1, "TERM")
    for stage in ("prepare", "pretrain"):
        monkeypatch.setattr(type(STAGES[stage]), "run", lambda *_: (_ for _ in ()).throw(begun))
    with contextlib.ExitStack() as dying:
        dying.enter_context(exclusive_lock(run.root / held / "lock"))
        monkeypatch.setattr("curricula.durable.time.sleep", lambda _: dying.close())  # while the element waits
        assert main([str(run.root), *key]) == begun.exit_code


def test_a_start_leaves_no_mark_but_its_own(tmp_path, monkeypatch, capfd):
    run, _ = new_run(tmp_path / "run")
    for ending, left in ((UserError("gone"), "failed.json"), (None, "done.json"), (Interrupted(3, 9, "TERM"), None)) * 2:

        def work(*_, ending=ending):
            if ending:
                raise ending

        monkeypatch.setattr(type(STAGES["prepare"]), "run", work)
        main([str(run.root), *KEY])
        assert [path.name for path in run.element(*KEY).glob("*.json")] == ([left] if left else [])
    assert "stopped by TERM at step 3 of 9" in capfd.readouterr().err
    monkeypatch.setenv("RANK", "1")
    assert main([str(run.root), *KEY]) == 0  # srun kills the others when one ends with an error


def test_a_clock_that_is_set_back_neither_stops_the_progress_nor_counts_backwards(tmp_path, monkeypatch):
    run, _ = new_run(tmp_path / "run")
    monkeypatch.setattr(progress, "REWRITE_EVERY_S", 0.0)

    def work(_, __, report):
        report(1, 10)
        monkeypatch.setattr("time.time", lambda: 0.0)
        report(2, 10)

    monkeypatch.setattr(type(STAGES["prepare"]), "run", work)
    assert main([str(run.root), *KEY]) == 0
    reading = progress.read_progress(run.element(*KEY) / "progress.json")
    assert reading is not None and reading.done == 2 and (reading.left_s or 0) >= 0
    assert read_json(run.element(*KEY) / "done.json")["seconds"] >= 0


def test_no_process_works_on_what_is_done(tmp_path, monkeypatch):
    """The second one would wait for the first for ever."""
    run, _ = new_run(tmp_path / "run")
    finish(run, *KEY)
    monkeypatch.setattr("curricula.jobs.completion.is_complete", lambda *_: True)
    monkeypatch.setattr(type(STAGES["prepare"]), "run", lambda *_: 1 / 0)
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        assert main([str(run.root), *KEY]) == 0


@pytest.mark.parametrize(
    ("rank", "set_here"),
    [
        ("0", {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2"}),
        ("1", {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1", "RANK": "1", "WORLD_SIZE": "2"}),
    ],
    ids=["srun", "torchrun in a task"],
)
def test_all_processes_of_a_training_join_the_preflight_and_the_first_reports_the_seed(tmp_path, monkeypatch, rank, set_here):
    (run, _), joined, training = new_run(tmp_path / "run"), [], ("pretrain-0", "full-0")
    run.element(*training).mkdir(parents=True)
    for name, value in set_here.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("curricula.model.runtime.distributed.read_ranks", lambda: None)
    monkeypatch.setattr("curricula.jobs.preflight.preflight.preflight", lambda *_: joined.append(rank))

    def work(_, __, report):
        report(1, 2)
        raise UserError("enough")

    for stage in ("pretrain", "prepare"):
        monkeypatch.setattr(type(STAGES[stage]), "run", work)
    with pytest.raises(UserError, match="enough"):
        run_element(run.root, *training)
    reading = progress.read_progress(run.element(*training) / "progress.json")
    assert joined == [rank] and (reading and reading.seed) == (42 if rank == "0" else None)
    assert (reading is None) is (rank == "1")
    for key, processes in ((KEY, "2"), (training, "1")):  # no training, and nobody to train with
        monkeypatch.setenv("WORLD_SIZE", processes)
        with pytest.raises(UserError, match="enough"):
            run_element(run.root, *key)
    assert joined == [rank]


@pytest.mark.parametrize("problem", [StorageError("the disk is full"), OSError(errno.EIO, "the disk is broken")])
def test_a_full_disk_does_not_hide_the_error(tmp_path, monkeypatch, capfd, problem):
    run, _ = new_run(tmp_path / "run")

    def fail(*_):
        (run.element(*KEY) / "failed.json").write_text("damaged")
        monkeypatch.setattr(element, "write_json", write)
        raise StorageError("the shard is gone")

    def write(*_, **__):
        raise problem

    monkeypatch.setattr(type(STAGES["prepare"]), "run", fail)
    assert main([str(run.root), *KEY]) == StorageError.exit_code
    said = capfd.readouterr().err
    assert "curricula: the shard is gone" in said and f"the failure could not be recorded: {problem}" in said


@pytest.mark.parametrize(
    ("built_for", "simulated", "code", "avoided"),
    [(None, False, UsageError.exit_code, ""), ("12.8", False, 76, "n4"), (None, True, 0, "")],
)
def test_a_job_with_gpus_does_not_compute_on_the_cpu_unless_the_profile_says_so(
    tmp_path, monkeypatch, capfd, built_for, simulated, code, avoided
):
    import torch

    run, jobs = new_run(tmp_path / "run")
    evaluate = next(job for job in jobs.values() if job.stage == "evaluate")
    environment = {"SLURM_GPUS_ON_NODE": "1", "CUDA_VISIBLE_DEVICES": "0", "CURRICULA_RESTARTS_WITHOUT_PROGRESS": "5",
                   "SLURMD_NODENAME": "n4"}  # fmt: skip
    for name, value in {**environment, **({"CURRICULA_SIMULATED_GPUS": "1"} if simulated else {})}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", built_for)
    monkeypatch.setattr("curricula.jobs.preflight.node_checks.gpu_problems", lambda *_: [])
    monkeypatch.setattr(type(STAGES["evaluate"]), "run", lambda *_: None)
    assert main([str(run.root), evaluate.name, evaluate.labels[0]]) == code
    assert exclusion(run) == avoided
    said = f"torch {torch.__version__} sees no GPU, though the job has some"
    assert (said in capfd.readouterr().err) is (code != 0)
    monkeypatch.setattr(type(STAGES["prepare"]), "run", lambda *_: None)
    assert main([str(run.root), *KEY]) == 0  # it would not compute on a GPU
    monkeypatch.delenv("CURRICULA_RESTARTS_WITHOUT_PROGRESS")
    assert main([str(run.root), evaluate.name, evaluate.labels[0]]) == 0  # not in a job of the suite


@pytest.mark.parametrize(
    ("job", "tensor_parallel", "given", "seen"),
    [("pretrain-0", 1, "", ""), ("pretrain-0", 2, "", "1"), ("pretrain-0", 2, "8", "8"), ("evaluate-base-0", 2, "", "")],
)
def test_kernels_start_in_launch_order_where_tensors_are_split(tmp_path, monkeypatch, job, tensor_parallel, given, seen):
    resources = {"tensor_parallel": tensor_parallel, "pretraining": {"nodes": 1, "gpus_per_node": 2}}
    study = parse_study({**demo(), "resources": {**demo()["resources"], **resources}}, "demo.yaml")
    run, found = Run.create(tmp_path / "run", study), []
    stage, label = next((one.stage, one.labels[0]) for one in plan_study(study).jobs if one.name == job)

    def work(*_):
        found.append(os.environ.get("CUDA_DEVICE_MAX_CONNECTIONS", ""))
        raise UserError("enough")

    monkeypatch.setattr(type(STAGES[stage]), "run", work)
    monkeypatch.setenv("CUDA_DEVICE_MAX_CONNECTIONS", given)
    if not given:
        monkeypatch.delenv("CUDA_DEVICE_MAX_CONNECTIONS")
    with pytest.raises(UserError, match="enough"):
        run_element(run.root, job, label)
    assert found == [seen]


def test_the_mark_of_an_element_names_its_start_and_what_made_its_results(tmp_path, monkeypatch):
    (run, _), amid = new_run(tmp_path / "run"), []
    monkeypatch.setattr(type(STAGES["prepare"]), "run", lambda *_: amid.append(time.time()))
    monkeypatch.setattr(type(STAGES["prepare"]), "made", lambda *_: "a hash")
    for number in (1, 2):
        (run.element(*KEY) / "done.json").unlink(missing_ok=True)
        before = time.time()
        run_element(run.root, *KEY)
        mark = read_json(run.element(*KEY) / "done.json")
        assert mark["generation"] == number and mark["made"] == "a hash"
        assert before <= mark["started"] <= amid[-1]
    monkeypatch.setattr(type(STAGES["tokenize"]), "run", lambda *_: finish(run, *KEY))  # it is made again meanwhile
    run_element(run.root, "tokenize", "web/00000")
    assert read_json(run.element("tokenize", "web/00000") / "done.json")["read"] == {"prepare/prepare": mark["started"]}


def test_a_process_that_is_left_with_its_group_notes_the_error_and_waits_for_no_library(tmp_path):
    run, _ = new_run(tmp_path / "run")
    command = [sys.executable, "-c", LEFT_WITH_ITS_GROUP, str(run.root), *KEY]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == UserError.exit_code and ended.stderr.endswith("failed\ncurricula: the shard is gone\n")
    assert f" prepare/prepare, rank 0 on {socket.gethostname()}, process " in ended.stderr
    assert (
        ended.stdout == "so far\n"
        and " INFO as far as curricula.model.train\n" in ended.stderr
        and "another" not in ended.stderr
    )
    failure = read_json(run.element(*KEY) / "failed.json")
    assert failure["error"] == "the shard is gone" and failure["final"]


@pytest.mark.parametrize(
    ("error", "is_final"),
    [(UserError, True), (UsageError, True), (GaveUp, True), (StorageError, False), (PeerLost, False), (RuntimeError, False)],
)
def test_an_error_is_final_where_another_start_cannot_cure_it(tmp_path, monkeypatch, error, is_final):
    run, _ = new_run(tmp_path / "run")

    def fail(*_):
        raise error("the shard is gone")

    monkeypatch.setattr(type(STAGES["prepare"]), "run", fail)
    code = main([str(run.root), *KEY])
    failure = read_json(run.element(*KEY) / "failed.json")
    assert failure["final"] is is_final and failure["exit_code"] == code != 0
    (run.element(*KEY) / "failed.json").unlink()
    monkeypatch.setenv("RANK", "1")
    assert main([str(run.root), *KEY]) == code and (run.element(*KEY) / "failed.json").exists() is is_final


def test_an_error_stays_final_where_the_first_process_only_loses_the_one_that_met_it(tmp_path, monkeypatch):
    run, _ = new_run(tmp_path / "run")

    def fail_as_the_second_and_lose_it(*_):
        monkeypatch.setattr(type(STAGES["prepare"]), "run", fail)
        monkeypatch.setenv("RANK", "1")
        assert main([str(run.root), *KEY]) == UserError.exit_code
        raise PeerLost("another process ended")

    def fail(*_):
        raise UserError("the shard is gone")

    monkeypatch.setattr(type(STAGES["prepare"]), "run", fail_as_the_second_and_lose_it)
    assert main([str(run.root), *KEY]) == PeerLost.exit_code
    failure = read_json(run.element(*KEY) / "failed.json")
    assert failure["final"] and failure["error"] == "the shard is gone"


def test_an_error_before_the_work_begins_is_final_too_and_noted_by_the_first_process(tmp_path, monkeypatch):
    run, _ = new_run(tmp_path / "run")
    frozen = (run.root / "study.yaml").read_text()
    write_text(run.root / "study.yaml", "name: [")
    mark = run.element(*KEY) / "failed.json"
    assert main([str(run.root)]) == UsageError.exit_code and not mark.exists()
    write_json(mark, {"error": "of an earlier start"})
    assert main([str(run.root), *KEY]) == UsageError.exit_code
    assert read_json(mark)["final"]
    mark.unlink()
    with monkeypatch.context() as patch:
        patch.setenv("RANK", "1")
        assert main([str(run.root), *KEY]) == UsageError.exit_code and not mark.exists()

    write_text(run.root / "study.yaml", frozen)
    for error in (StorageError, UserError):

        def fail(_, error=error):
            raise error("the plan cannot be made")

        monkeypatch.setattr(element, "plan_study", fail)
        assert main([str(run.root), *KEY]) == error.exit_code
        assert mark.exists() is (error is UserError)  # after the other Slurm starts it again


def test_work_that_waits_outlives_a_profile_with_keys_of_newer_code(tmp_path, monkeypatch, capfd):
    run, _ = new_run(tmp_path / "run")
    monkeypatch.setattr(type(STAGES["prepare"]), "run", lambda *_: None)
    write_text(run.profile, "a_key_of_tomorrow: 1\n")
    assert main([str(run.root), *KEY]) == 0 and (run.element(*KEY) / "done.json").exists()
    assert "a_key_of_tomorrow" in capfd.readouterr().err
