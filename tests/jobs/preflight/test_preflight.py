"""The preflight in real processes that talk over gloo: a fit job begins, an unfit node is recorded and named by all."""

import os
import re
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from unittest.mock import patch

import msgspec
import pytest
from preflight_ranks import preflights
from run_folders import FakeSlurm, new_run

from curricula.durable import write_json, write_text
from curricula.errors import UserError
from curricula.jobs.graph import plan_study
from curricula.jobs.preflight import node_checks
from curricula.jobs.preflight.node_checks import disk_problems, gpu_problems, job_gpu_problems, reach_problems, within
from curricula.jobs.preflight.preflight import (
    PreflightFailed,
    Rendezvous,
    UnfitNodes,
    _blame,
    _compare_clocks,
    _judge_reports,
    _Report,
    _Verdict,
    check_gpus,
)
from curricula.jobs.run import Run
from curricula.jobs.slurm import submissions as record
from curricula.jobs.slurm.profile import Preflight
from curricula.jobs.slurm.submissions import BadNode, bad_nodes, exclusion, record_bad_nodes
from curricula.jobs.stages import STAGES, Work
from curricula.model.checkpoints.folder import step_folder
from curricula.model.runtime.distributed import Ranks
from curricula.model.runtime.stopping import PeerLost

pytestmark = pytest.mark.forked

GOOD = "0, 81559, 4, 0, 31, Not Active, Not Active\n1, 81559, 4, 0, 33, Not Active, Not Active\n"


@pytest.fixture
def run(tmp_path):
    """A run whose arms can begin: shards, tokenizer and the trunk's checkpoint are there."""
    run, _ = new_run(tmp_path / "run")
    write_text(run.tokenizer / "tokenizer.json", "{}")
    for source in run.study.sources:
        for suffix in (".idx", ".bin"):
            write_text(run.shards / source / f"00000{suffix}", "x")
    trunk = run.branch("trunk") / "checkpoints"
    for step in (100, 300, 500):
        write_json(trunk / f"step_{step:08d}" / "checkpoint.json", {})
    return run


@pytest.fixture
def smi(tmp_path, monkeypatch):
    slurm = FakeSlurm(tmp_path / "bin", monkeypatch)
    slurm.answer("nvidia-smi", GOOD)
    return slurm


def test_fit_processes_begin_and_nothing_is_recorded(run, free_port):
    assert preflights(run.root, free_port, ["a", "a", "b"], Preflight(min_bandwidth_gb_s=1e-6)) == [("fit",)] * 3
    assert bad_nodes(run) == []


def test_a_node_with_a_sick_gpu_is_named_by_all_and_recorded(run, free_port, tmp_path, monkeypatch):
    slurm = FakeSlurm(tmp_path / "bin", monkeypatch)
    slurm.answer("nvidia-smi", script=f'printf %s "{GOOD}" | sed "1s/ 0, 31/ 3, 31/"')
    outcomes = preflights(run.root, free_port, ["a", "a"], Preflight(), path=os.environ["PATH"])
    assert {outcome[:2] for outcome in outcomes} == {("unfit", ("a",))}
    assert all("GPU 0 has 3 uncorrected memory errors" in outcome[2] for outcome in outcomes)
    assert [(bad.node, bad.task) for bad in bad_nodes(run)] == [("a", "70")]
    assert exclusion(run) == "a"


def test_what_every_node_lacks_is_the_fault_of_none(run, free_port):
    outcomes = preflights(run.root, free_port, ["a", "b"], Preflight(min_free_gb=1e9))
    assert [kind for kind, _ in outcomes] == ["error", "error"]
    assert all("on every node: " in said and "GB are free" in said for _, said in outcomes), outcomes
    assert not bad_nodes(run)


def test_a_store_that_cannot_be_opened_or_reached_or_ends_early_is_a_lost_peer(free_port):
    server, client = (Ranks(rank, 2, rank, f"127.0.0.1:{free_port}") for rank in (0, 1))
    with pytest.raises(PeerLost, match=f"127.0.0.1:{free_port + 1}: the store of the preflight cannot be reached"):
        Rendezvous(client, 0.2)
    taken = socket.create_server(("127.0.0.1", free_port + 1))
    with taken, pytest.raises(PeerLost, match=f"127.0.0.1:{free_port + 1}: the store of the preflight cannot be opened"):
        Rendezvous(server, 0.2)
    first, second = Rendezvous(server, 60.0), Rendezvous(client, 60.0)
    first.put("speed", 3)
    assert second.broadcast("speed", int, None) == 3
    del first
    with pytest.raises(PeerLost, match="the first process ended without a verdict; see the log of rank 0"):
        second.broadcast("verdict", int, None)


def test_nodes_with_different_problems_are_each_to_blame():
    reports = {0: _Report("a", own=("GPU 0 has 3 uncorrected memory errors",)), 1: _Report("b", own=("/tmp: 0.2 GB are free",))}
    rendezvous = SimpleNamespace(size=2, gather=lambda *_: reports)
    verdict = _judge_reports(rendezvous, Preflight())
    assert [problem.node for problem in verdict.problems] == ["a", "b"] and not verdict.failure


def test_the_node_whose_clock_is_wrong_is_named_even_if_it_is_the_first(run, free_port):
    outcomes = preflights(run.root, free_port, ["a", "b", "c"], Preflight(max_skew_s=60), skew_s={0: -3600.0})
    assert {outcome[:2] for outcome in outcomes} == {("unfit", ("a",))}
    assert re.search(r"node a: its clock is -3[56]\d\d\.\d s from the others'", outcomes[0][2])


def test_of_two_clocks_that_differ_either_may_be_wrong():
    def compared(*ahead_s):
        clocks = {rank: time.time() + ahead for rank, ahead in enumerate(ahead_s)}
        return _compare_clocks(SimpleNamespace(gather=lambda *_: clocks), ["a", "a", "b"], Preflight())

    assert compared(0.0, 0.0, 4.0) == _Verdict()
    verdict = compared(0.0, 0.0, 60.0)
    assert verdict.problems == () and verdict.failure.startswith("the clocks of a and b are 60.0 s apart")
    assert [problem.node for problem in compared(0.0, 0.0).problems] == ["b"]  # it has stopped answering


def test_a_process_that_reads_the_verdict_late_makes_no_clock_look_wrong(free_port):
    first, second, third = (Rendezvous(Ranks(rank, 3, 0, f"127.0.0.1:{free_port}"), 60.0) for rank in range(3))
    with ThreadPoolExecutor(1) as pool:
        sent = pool.submit(first.broadcast, "examined", int, 3)
        second.broadcast("examined", int, None)
        time.sleep(2)
        third.broadcast("examined", int, None)
        sent.result()
    assert _compare_clocks(first, ["a", "b", "c"], Preflight(max_skew_s=1)) == _Verdict()


@pytest.mark.parametrize(
    ("slow", "blamed"), [("ab bc cd da", ""), ("ab bc cd", "bc"), ("ab bc", "b"), ("ab", ""), ("ab cd", ""), ("", "")]
)
def test_a_node_is_blamed_that_is_slow_with_both_its_neighbours_unless_all_are(slow, blamed):
    verdict = _blame(list("abcd"), [tuple(pair) for pair in slow.split()], 1.0, 2.0)
    assert "".join(problem.node for problem in verdict.problems) == blamed and bool(verdict.failure) is not bool(blamed)


@pytest.mark.parametrize("slurm_knows", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_process_that_never_starts_is_reported_by_the_others(run, free_port, tmp_path, monkeypatch, slurm_knows):
    slurm = FakeSlurm(tmp_path / "bin", monkeypatch)
    slurm.answer("scontrol", "a\nb\nc\n", code=0 if slurm_knows else 1)
    path = os.environ["PATH"]
    outcomes = preflights(run.root, free_port, ["a", "b", "c"], Preflight(patience_s=20), absent=(2,), path=path)
    assert len(outcomes) == 2
    if slurm_knows:
        assert outcomes[0][:2] == ("unfit", ("c",)) and "no report from its processes within 20 s" in outcomes[0][2]
        assert exclusion(run) == "c"
    else:
        assert outcomes[0] == ("error", "preflight: no report from ranks 2 within 20 s")
        assert exclusion(run) == ""


def test_the_slow_node_among_four_is_found_by_pairs(run, free_port):
    settings = Preflight(min_bandwidth_gb_s=0.02)  # 0.4 s a call is below it by a quarter, and 1 ms far above it
    outcomes = preflights(run.root, free_port, ["a", "b", "c", "d"], settings, slow=("c",))
    assert {outcome[:2] for outcome in outcomes} == {("unfit", ("c",))}
    assert "either neighbour is below the floor of 0.02 GB/s" in outcomes[0][2]


@pytest.mark.parametrize("like_nccl", [False, True], ids=["gloo", "like NCCL"])
def test_a_slow_fabric_is_nobodys_fault_and_excludes_nobody(run, free_port, like_nccl):
    settings = Preflight(min_bandwidth_gb_s=1e6)
    outcomes = preflights(run.root, free_port, ["a", "b"], settings, like_nccl=like_nccl)
    assert {outcome[0] for outcome in outcomes} == {"error"}
    assert "below the floor of 1e+06, between a and b" in outcomes[0][1] and bad_nodes(run) == []


def test_data_that_one_node_cannot_read_is_its_fault_and_data_that_is_gone_is_nobodys(run, free_port):
    outcomes = preflights(run.root, free_port, ["a", "b"], Preflight(), blind=("b",))
    assert {outcome[:2] for outcome in outcomes} == {("unfit", ("b",))}
    shard = run.shards / "web" / "00000.bin"
    shard.unlink()
    outcomes = preflights(run.root, free_port, ["a", "b"], Preflight())
    assert {outcome[0] for outcome in outcomes} == {"error"} and f"{shard}: cannot be read from this node" in outcomes[0][1]
    assert exclusion(run) == "b"


def test_what_an_element_needs_is_what_it_will_read(run):
    plan = plan_study(run.study)
    arm, trunk = (
        STAGES["pretrain"].inputs(Work(run, plan, *plan.find(*key)))
        for key in [("pretrain-20", "full-20"), ("pretrain-trunk-100", "trunk")]
    )
    assert run.branch("trunk") / "checkpoints/step_00000100/checkpoint.json" in arm
    assert run.branch("trunk") / "checkpoints/step_00000500/checkpoint.json" in trunk  # its newest, where it goes on
    assert run.shards / "unsafe-tagged" / "00000.bin" in arm and run.shards / "unsafe-tagged" / "00000.bin" not in trunk
    assert all(path.exists() for path in arm)


@pytest.mark.parametrize("job", ["pretrain-20", "instruct-20"])
def test_an_element_needs_the_checkpoint_that_training_goes_on_from_and_not_a_damaged_newer_one(run, job):
    plan = plan_study(run.study)
    work = Work(run, plan, *plan.find(job, "full-20"))
    branch = run.branch("full-20") if job.startswith("pretrain") else run.tuning("full-20", "instruct")
    model = msgspec.to_builtins(run.study.model.resolve())
    record = {"consumed_samples": 1, "consumed_tokens": 1, "model": model, "precision": "float32", "full": True}
    for step in (200, 300, 400):
        folder = step_folder(branch / "checkpoints", step)
        file = {"common.pt": {"size_bytes": 2, "sha256": ""}}
        write_json(folder / "checkpoint.json", {**record, "step": step, "files": file})
        write_text(folder / "common.pt", "xx" if step < 400 else "x")  # cut short
    (branch / "checkpoints" / "latest").write_text("step_00000400\n")
    assert STAGES[work.job.stage].inputs(work)[-1] == step_folder(branch / "checkpoints", 300) / "checkpoint.json"
    (step_folder(branch / "checkpoints", 300) / "checkpoint.json").unlink()
    assert STAGES[work.job.stage].inputs(work)[-1] == step_folder(branch / "checkpoints", 200) / "checkpoint.json"


@pytest.mark.parametrize(
    ("listing", "message"),
    [
        (GOOD, None),
        (GOOD.replace("4, 0,", "[N/A], [N/A],"), None),
        (GOOD.splitlines()[0] + "\n", "1 of 2 GPUs answer"),
        (GOOD.replace("0, 31", "7, 31"), "GPU 0 has 7 uncorrected memory errors"),
        (
            GOOD.replace("33, Not Active, Not Active", "93, Active, Active"),
            "GPU 1 is slowed down by its hardware (hw_thermal_slowdown, 93 C)",
        ),
        (GOOD.replace("81559, 4", "81559, 40960"), "GPU 0 has 40.0 of 80 GiB in use before the job began"),
        ("0, [GPU is lost], [GPU is lost]\n" + GOOD.splitlines()[1] + "\n", "GPU 0 does not answer"),
    ],
)
def test_a_sick_gpu_is_recognised_in_the_output_of_nvidia_smi(smi, listing, message):
    smi.answer("nvidia-smi", listing)
    found = gpu_problems(2)
    assert (found == []) if message is None else any(message in problem for problem in found), found


def check_gpus_of(run: Run, gpus: str, node: str = "n1", **more: str) -> None:
    with patch.dict("os.environ", SLURM_GPUS_ON_NODE=gpus, SLURMD_NODENAME=node, **more):
        check_gpus(run)


def test_a_job_of_one_process_checks_its_gpu_and_records_the_node(run, smi):
    check_gpus_of(run, "1", "n4", SLURM_STEP_GPUS="1")
    smi.answer("nvidia-smi", GOOD.replace("33,", "[GPU is lost],"))
    with pytest.raises(UnfitNodes, match="preflight: node n4: GPU 1 does not answer"):
        check_gpus_of(run, "1", "n4", SLURM_STEP_GPUS="1")
    assert exclusion(run) == "n4"


def test_jobs_of_one_process_blame_no_node_for_what_four_had_alike(run, smi):
    """As with a torch that is newer than the driver: otherwise an array would blame all nodes, one after another."""
    smi.answer("nvidia-smi", error="Driver/library version mismatch", code=18)
    record_bad_nodes(run, [BadNode(node="n7", reason='a "quoted" ü', time=time.time())])

    for node in ("n1", "n1", "n2", "n3"):
        with pytest.raises(UnfitNodes):
            check_gpus_of(run, "1", node)
    with pytest.raises(PreflightFailed, match="n4: .*mismatch; no node is to blame, since n1, n2, n3 had the same") as error:
        check_gpus_of(run, "1", "n4")
    assert not isinstance(error.value, UnfitNodes) and exclusion(run) == "n7"  # for another problem
    smi.answer("nvidia-smi", GOOD.replace("4, 0,", "4, 9,"))
    with pytest.raises(UnfitNodes):  # the node's own problem
        check_gpus_of(run, "2", "n5")
    assert exclusion(run) == "n5,n7"


@pytest.mark.parametrize("listing", [GOOD.replace("4, 0,", "40960, 0,"), GOOD.replace("Not Active", "Active")])
def test_a_job_that_may_share_its_gpu_minds_neither_other_work_on_it_nor_its_pace(run, smi, listing):
    smi.answer("nvidia-smi", listing)
    assert gpu_problems(2) != []
    check_gpus_of(run, "2")
    smi.answer("nvidia-smi", listing.replace("33,", "[GPU is lost],"))
    check_gpus_of(run, "1")  # it may be another job's
    smi.answer("nvidia-smi", listing)
    check_gpus_of(run, "4")  # parts of a divided GPU
    smi.answer("nvidia-smi")
    with pytest.raises(UnfitNodes, match="0 of 1 GPUs answer"):
        check_gpus_of(run, "1")


def test_gpus_of_other_jobs_are_ignored(smi):
    smi.answer("nvidia-smi", GOOD + "2, 81559, 70000, 0, 33, Not Active, Not Active\n")
    assert gpu_problems(2, "0,1") == [] and gpu_problems(3, "0,1,2") != []


def test_an_nvidia_smi_that_fails_or_hangs_is_a_problem_and_none_at_all_is_not(smi, monkeypatch):
    smi.answer("nvidia-smi", error="Failed to initialize NVML: Driver/library version mismatch", code=18)
    assert gpu_problems(2) == ["nvidia-smi failed: Failed to initialize NVML: Driver/library version mismatch"]
    smi.answer("nvidia-smi", script="exec sleep 60")
    monkeypatch.setattr(node_checks, "SMI_PATIENCE_S", 0.2)
    assert "no answer" in gpu_problems(2)[0]
    smi.remove("nvidia-smi")
    monkeypatch.setenv("PATH", str(smi.folder))
    assert gpu_problems(2) == []


def test_an_nvidia_smi_that_nothing_can_kill_does_not_hang_the_job(smi, monkeypatch):
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "2")
    smi.answer("nvidia-smi", script="exec sleep 20")
    monkeypatch.setattr(subprocess.Popen, "kill", lambda process: None)  # as while it waits in the driver
    monkeypatch.setattr(node_checks, "SMI_PATIENCE_S", 0.2)
    assert job_gpu_problems() == ["nvidia-smi: no answer within 0 s"]


def test_a_full_disk_and_a_file_system_that_hangs_are_problems(tmp_path):
    assert disk_problems([tmp_path, tmp_path / "absent"], 1e9)[0].startswith(f"{tmp_path}: ")
    assert disk_problems([tmp_path], 0) == []
    assert reach_problems(tmp_path, []) == [] == list(tmp_path.iterdir())
    assert "absent: cannot be written to from this node" in reach_problems(tmp_path / "absent", [])[0]
    fifo = tmp_path / "hangs"
    os.mkfifo(fifo)
    assert within(0.2, "the disk", lambda: [fifo.read_text()]) == ["the disk: no answer within 0 s"]
    os.close(os.open(fifo, os.O_RDWR | os.O_NONBLOCK))


def test_bad_nodes_are_forgotten_after_a_week_and_a_damaged_record_is_named(run, monkeypatch):
    found = [BadNode(node=name, reason="x", time=time, task="1") for name, time in (("old", 0.0), ("new", 1e6))]
    record_bad_nodes(run, found)
    monkeypatch.setattr(record.time, "time", lambda: 1e6 + 86400)
    assert [bad.node for bad in bad_nodes(run)] == ["new"] and exclusion(run) == "new"
    with open(run.bad_nodes, "a") as file:
        file.write('{"node": 3}\n')
    with pytest.raises(UserError, match=r"bad-nodes\.jsonl: line 3 is not a failure of a node"):
        bad_nodes(run)
